//! `hedge-cloud check`: reads the configuration file, loads and asks every answerer of it, and says how each is.

use hedge_proto::word;

use crate::answerers::Kind;
use crate::args::Check;
use crate::model::{self, Way};

/// `true`: all of them can be asked.
#[expect(clippy::print_stdout, reason = "what was asked for")]
pub fn run(args: &Check) -> anyhow::Result<bool> {
    let config = args.config.read()?;
    if config.answerers.is_empty() {
        println!("no answerer is configured");
        return Ok(true);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut is_well = true;
    for answerer in &config.answerers {
        let (name, kind) = (&answerer.name, word(&answerer.kind));
        let asked = match model::load(answerer, args.library.as_deref()) {
            Ok(answering) => match answering.way {
                Way::Remote(remote, _) => runtime.block_on(remote.question()).map_err(|failure| failure.to_string()),
                Way::Local(..) | Way::Person(_) => Ok(()),
            }
            .map(|()| answering.task),
            Err(error) => Err(error),
        };
        match asked {
            Ok(task) if answerer.kind == Kind::Person => {
                println!("ok    {name} ({kind}) answers `{task}` in the review queue")
            }
            Ok(task) => println!("ok    {name} ({kind}) answers `{task}`"),
            Err(why) => {
                is_well = false;
                println!("wrong {name} ({kind}): {why}");
            }
        }
    }
    Ok(is_well)
}
