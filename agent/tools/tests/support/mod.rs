//! What the tests of this folder share.
#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod onnx;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use hedge_inference::{Runtime, RuntimeError};
use hedge_tools::{bench, bundle, infer};

#[derive(Parser)]
enum Cli {
    Infer(infer::InferArgs),
    Bench(bench::BenchArgs),
    #[command(subcommand)]
    Bundle(bundle::BundleCommand),
}

/// Runs a command line; its exit code and what it printed.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<(ExitCode, String)> {
    let mut out = Vec::new();
    let code = match Cli::try_parse_from([&["hedge-agent"], arguments].concat())? {
        Cli::Infer(args) => infer::write_answers(&args, &mut out)?,
        Cli::Bench(args) => bench::write_report(&args, &mut out)?,
        Cli::Bundle(command) => bundle::write_outcome(&command, &mut out)?,
    };
    Ok((code, String::from_utf8(out)?))
}

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Whether the library is there; says so on stderr if not. Any other trouble fails the test.
pub(crate) fn library_is_there() -> bool {
    match Runtime::find(None) {
        Ok(_) => true,
        Err(error @ RuntimeError::NotFound { .. }) => {
            eprintln!("skipped: {error}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

/// A PNG of one colour, 32 pixels square.
pub(crate) fn png([red, green, blue]: [u8; 3]) -> Vec<u8> {
    let chunk = |kind: &[u8], data: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(&[kind, data].concat());
        let length = u32::try_from(data.len()).expect("short");
        [&length.to_be_bytes(), kind, data, &crc.sum().to_be_bytes()].concat()
    };
    let head = [&32_u32.to_be_bytes()[..], &32_u32.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let row = [vec![0], [red, green, blue].repeat(32)].concat();
    let mut pixels = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    pixels.write_all(&row.repeat(32)).expect("written");
    let pixels = pixels.finish().expect("written");
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &head), chunk(b"IDAT", &pixels), chunk(b"IEND", &[])].concat()
}
