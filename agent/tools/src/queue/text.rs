//! Writes the queue's documents for people: aligned columns, ages and sizes in round numbers.

use hedge_agent::queue::{CaseDocument, CaseLine, Changed, CheckReport, Listing, Stats};
use hedge_proto::{Output, word};

/// How much of a note a line of the list shows; `show` has all of it.
const NOTE_CHARS_SHOWN: usize = 60;

pub(super) fn listing(listing: &Listing) -> String {
    if listing.cases.is_empty() {
        return "no cases".to_owned();
    }
    let head = ["ID", "STAGE", "AGE", "SIZE", "TRIES", "SOURCE", "WHY"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(listing.cases.iter().map(row)).collect();
    let mut text = table(&rows);
    if listing.more {
        text.push_str("… and more; --limit shows more of them, `stats` counts all\n");
    }
    text
}

fn row(line: &CaseLine) -> [String; 7] {
    let why = match (&line.note, &line.reason) {
        (Some(note), _) => note.chars().take(NOTE_CHARS_SHOWN).collect(),
        (None, reason) => reason.as_ref().map(word).unwrap_or_default(),
    };
    [
        line.id.to_string(),
        word(&line.stage),
        age(line.age_s),
        size(line.payload_bytes),
        line.tries.to_string(),
        line.source.clone().unwrap_or_default(),
        why,
    ]
}

pub(super) fn case(document: &CaseDocument) -> String {
    let CaseDocument { line, case, verdict } = document;
    let mut rows = vec![
        ["id".to_owned(), line.id.to_string()],
        ["stage".into(), format!("{}, {} old, {} tries failed", word(&line.stage), age(line.age_s), line.tries)],
        ["source".into(), case.source.clone()],
        ["task".into(), case.task.clone()],
        ["asked because".into(), format!("{}, threshold {}", word(&case.decision.reason), case.decision.threshold)],
        ["local model".into(), format!("{} {}", case.model.name, case.model.version)],
    ];
    let local = case.said.iter().flat_map(Output::lines);
    rows.extend(local.map(|line| ["local answer".into(), line]));
    rows.push(["payload".into(), format!("{}, {}", case.content_type, size(line.payload_bytes))]);
    rows.push(["sha256".into(), word(&case.payload_sha256)]);
    rows.extend(case.reference.iter().map(|reference| ["ref".into(), reference.clone()]));
    rows.extend(case.metadata.iter().map(|(name, value)| [format!("metadata {name}"), value.clone()]));
    rows.extend(line.note.iter().map(|note| ["note".into(), note.clone()]));
    if let Some(verdict) = verdict {
        let said = verdict.said.headline();
        rows.push(["verdict".into(), format!("revision {} by {}: {said}", verdict.revision, verdict.model.name)]);
    }
    table(&rows)
}

pub(super) fn stats(stats: &Stats) -> String {
    let cases: u64 = stats.cases.values().sum();
    let mut rows: Vec<_> = stats.cases.iter().map(|(stage, count)| [stage.clone(), count.to_string()]).collect();
    rows.push(["cases".into(), format!("{cases} of {} ({} %)", stats.cases_max, per_cent(cases, stats.cases_max))]);
    let share = per_cent(stats.bytes, stats.bytes_max);
    rows.push(["bytes".into(), format!("{} of {} ({share} %)", size(stats.bytes), size(stats.bytes_max))]);
    rows.push(["oldest unanswered".into(), stats.oldest_s.map_or_else(|| "none".to_owned(), age)]);
    rows.push(["on the disk".into(), size(stats.disk_bytes)]);
    rows.push(["damaged records".into(), stats.damaged_records.to_string()]);
    if stats.in_memory {
        rows.push(["attention".into(), "the queue cannot be written to the disk; its order is in memory".into()]);
    }
    table(&rows)
}

pub(super) fn check(report: &CheckReport) -> String {
    let mut text = format!("{} segments, {}\n", report.segments, size(report.bytes));
    let rows: Vec<_> = report.records.iter().map(|(kind, count)| [kind.clone(), count.to_string()]).collect();
    text.push_str(&table(&rows));
    for place in &report.damage {
        let at = format!("log/{:08}.log at byte {}", place.segment, place.offset);
        text.push_str(&format!("DAMAGED {at}: {}, {}\n", place.what, size(place.bytes)));
    }
    if report.damaged > report.damage.len() as u64 {
        text.push_str(&format!("… {} damaged places in all\n", report.damaged));
    }
    if report.torn_bytes > 0 {
        let torn = size(report.torn_bytes);
        text.push_str(&torn);
        text.push_str(" at the end are an interrupted write; the next start cuts them off, nothing is lost\n");
    }
    text.push_str(if report.damaged == 0 { "no damage" } else { "what is damaged is passed over; all else is kept" });
    text
}

pub(super) fn changed(done: &str, changed: &[Changed]) -> String {
    if changed.is_empty() {
        return "no cases".to_owned();
    }
    let line = |case: &Changed| format!("{}  {}\n", case.id, case.problem.as_deref().unwrap_or(done));
    changed.iter().map(line).collect()
}

/// Whole columns, the last one as long as it is.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let line: String = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}  ")).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

fn per_cent(part: u64, whole: u64) -> u64 {
    (part.saturating_mul(100)).checked_div(whole).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_the_last_one_has_no_tail() {
        let rows = [["ID", "WHY"], ["long-id", "x"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "ID       WHY\nlong-id  x\n");
    }

    #[test]
    fn ages_and_sizes_are_round_enough_to_read() {
        assert_eq!([0, 119, 120, 7199, 7200, 200_000].map(age), ["0 s", "119 s", "2 min", "119 min", "2 h", "2 d"]);
        assert_eq!([0, 28_672, 3 << 20, 1 << 30].map(size), ["0 B", "28.0 KiB", "3.0 MiB", "1.0 GiB"]);
        assert_eq!((per_cent(1, 3), per_cent(1, 0)), (33, 0));
    }
}
