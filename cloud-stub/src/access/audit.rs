//! `hedge-cloud audit`: who did what, from the records.

use std::path::PathBuf;

use clap::Args;

use crate::store::{AuditRow, Reader, RecordsArgs};
use crate::utc;

/// Say who did what by the dashboard, the latest last
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Where the records are kept
    #[arg(long, value_name = "DIR", env = "HEDGE_CLOUD_STATE_DIR", default_value = "hedge-cloud-state")]
    pub state_dir: PathBuf,

    #[command(flatten)]
    pub records: RecordsArgs,

    /// How many of the latest
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub last: u32,

    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// What to print.
pub fn run(args: &AuditArgs) -> anyhow::Result<String> {
    let mut rows = Reader::open(&args.records.at(&args.state_dir)?)?.audit(None, args.last)?;
    rows.reverse();
    let lines: Result<Vec<String>, _> =
        rows.iter().map(|row| if args.json { serde_json::to_string(row) } else { Ok(line(row)) }).collect();
    let lines = lines?;
    Ok(if lines.is_empty() { "nobody has done anything yet".to_owned() } else { lines.join("\n") })
}

fn line(row: &AuditRow) -> String {
    let AuditRow { who, address, act, about, detail, outcome, .. } = row;
    let who = if who.is_empty() { "-" } else { who };
    let words = [&format!("{} UTC", utc(row.at_ms)), who, address, act, about, detail, outcome];
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_act_is_one_line() {
        let row = AuditRow {
            seq: 7,
            at_ms: 1_796_058_189_500,
            who: "ann".to_owned(),
            address: "192.0.2.1".to_owned(),
            act: "command".to_owned(),
            about: "hall-1".to_owned(),
            detail: "restart".to_owned(),
            outcome: "200".to_owned(),
        };
        assert_eq!(line(&row), "2026-11-30 17:03:09 UTC  ann  192.0.2.1  command  hall-1  restart  200");
        let nobody = AuditRow { who: String::new(), about: String::new(), detail: String::new(), ..row };
        assert_eq!(line(&nobody), "2026-11-30 17:03:09 UTC  -  192.0.2.1  command  200");
    }
}
