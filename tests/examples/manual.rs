//! Writes manual pages and completions of both programs, made from their command lines, as they lie below `/usr/share`:
//! `manual DIR` fills `DIR/hedge-agent` and `DIR/hedge-cloud`.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory as _};
use clap_complete::{Shell, generate_to};
use flate2::{Compression, GzBuilder};

/// Section 8: commands of whoever runs the machine.
const SECTION: &str = "8";

fn main() -> Result<()> {
    let dir = std::env::args_os().nth(1).context("say where to write: manual DIR")?;
    for program in [hedge_tools::arguments::Arguments::command(), hedge_cloud::args::Cli::command()] {
        let dir = Path::new(&dir).join(program.get_name());
        pages(&program, program.get_name(), &dir.join("man/man8"))?;
        completions(program, &dir)?;
    }
    Ok(())
}

/// A page for the command, and one for each below it: `hedge-agent-queue-list(8)`.
fn pages(command: &Command, name: &str, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let mut command = command.clone().disable_help_subcommand(true);
    command.build();
    let file = File::create(dir.join(format!("{name}.{SECTION}.gz")))?;
    let mut file = GzBuilder::new().write(file, Compression::best());
    let shown = command.clone().name(name.to_owned().leak() as &str);
    clap_mangen::Man::new(shown).section(SECTION).manual("Hedge").render(&mut file)?;
    file.finish()?;
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        let version = command.get_version().unwrap_or_default().to_owned().leak() as &str;
        pages(&below.clone().version(version), &format!("{name}-{}", below.get_name()), dir)?;
    }
    Ok(())
}

fn completions(mut program: Command, dir: &Path) -> Result<()> {
    let name = program.get_name().to_owned();
    for (shell, folder, file) in [
        (Shell::Bash, "bash-completion/completions", name.clone()),
        (Shell::Zsh, "zsh/vendor-completions", format!("_{name}")),
        (Shell::Fish, "fish/vendor_completions.d", format!("{name}.fish")),
    ] {
        let folder = dir.join(folder);
        fs::create_dir_all(&folder)?;
        let made = generate_to(shell, &mut program, &name, &folder)?;
        fs::rename(made, folder.join(file))?;
    }
    Ok(())
}
