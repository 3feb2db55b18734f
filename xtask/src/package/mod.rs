//! Makes the Debian packages, and the layout of an apt repository that holds them.
//!
//! What is in a package stands in `packaging/NAME`: `control`, the maintainer scripts, and `files` with a line for each
//! file or folder. Programs for the other processor are built with Debian's cross compiler.

mod build;
mod copyright;
mod deb;
mod repository;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use hedge_tests::places;

pub(crate) use self::build::{cross_compiled, manual};
pub(crate) use self::deb::Recipe;
use crate::onnxruntime;

/// Those whose version is the project's, and those that change with what they carry.
const PROGRAMS: [&str; 2] = ["hedge-agent", "hedge-cloud"];
const CARRIED: [&str; 3] = ["hedge-onnxruntime", "hedge-model-photo-small", "hedge-model-photo-large"];

/// An upgrade of the agent must be possible over a phone's link.
const AGENT_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The processor the packages are for [default: this machine's]
    #[arg(long)]
    arch: Option<Arch>,
    /// The packages' Debian revision
    #[arg(long, default_value_t = 1)]
    revision: u32,
    /// Where they go
    #[arg(long, value_name = "DIR", default_value = "target/debian")]
    out: PathBuf,
    /// Sign the repository with this key of gpg's
    #[arg(long, value_name = "KEY")]
    sign: Option<String>,
}

/// A processor, as Debian calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    pub(crate) const HERE: Self = if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 };

    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    pub(crate) fn processor(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let arch = arguments.arch.unwrap_or(Arch::HERE);
    let programs = if arch == Arch::HERE { crate::build::released_programs()? } else { cross_compiled(arch)? };
    let out = places::root().join(&arguments.out);
    let pool = out.join("pool");
    let recipe = Recipe {
        arch,
        revision: arguments.revision,
        programs,
        manual: manual(&crate::build::programs_and_tests()?)?,
        quick: false,
    };
    for package in recipe.build(&PROGRAMS, &pool)?.into_iter().chain(recipe.build(&CARRIED, &pool)?) {
        let bytes = package.metadata()?.len();
        let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
        println!("{bytes:>10}  {name}");
        ensure!(
            !name.starts_with("hedge-agent_") || bytes <= AGENT_BYTES_MAX,
            "{name} has {bytes} bytes, more than the {AGENT_BYTES_MAX} an upgrade may take"
        );
        deb::lint(&package)?;
    }
    repository::lay_out(&out, arguments.sign.as_deref())?;
    println!("The packages are in {}; the folder as it is can be served as an apt repository", out.display());
    Ok(())
}

/// The agent's package as it is delivered, from these programs.
pub(crate) fn agent(programs: &Path) -> Result<PathBuf> {
    let out = places::root().join("target/footprint");
    let manual = manual(&crate::build::manual_writer()?)?;
    let recipe = Recipe { arch: Arch::HERE, revision: 1, programs: programs.into(), manual, quick: false };
    let made = recipe.build(&["hedge-agent"], &out)?;
    made.into_iter().next().context("no package was made")
}

/// Both revisions of the programs and what they need, from programs as the tests build them.
pub(crate) fn for_tests(programs: &Path) -> Result<PathBuf> {
    let out = places::root().join("target/debian-tests");
    let manual = manual(programs)?;
    for revision in [1, 2] {
        let recipe =
            Recipe { arch: Arch::HERE, revision, programs: programs.into(), manual: manual.clone(), quick: true };
        recipe.build(&PROGRAMS, &out)?;
        if revision == 1 {
            recipe.build(&CARRIED, &out)?;
        }
    }
    Ok(out)
}

fn onnxruntime_folder(arch: Arch) -> Result<PathBuf> {
    let library = onnxruntime::cached(arch.processor())?;
    Ok(library.parent().unwrap_or(Path::new(".")).to_owned())
}
