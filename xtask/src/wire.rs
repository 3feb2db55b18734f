//! Captures what this version's programs say to each other: fixtures for the versions to come.

use anyhow::Result;
use hedge_tests::wire;

use crate::{build, onnxruntime};

pub(crate) fn run() -> Result<()> {
    let library = onnxruntime::library()?;
    build::programs()?;
    println!("{}", wire::capture(&library)?.display());
    Ok(())
}
