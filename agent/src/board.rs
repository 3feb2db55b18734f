//! Reads what the board and the kernel tell about this device: memory, temperature, throttling.
//!
//! Files only, and nothing that is not there is guessed. What to do about a hot board is up to people.

use std::path::Path;

use hedge_proto::{BoardFigures, Throttling};

/// Linux gives millidegrees; zone 0 is the processor on the boards we know.
const TEMPERATURE: &str = "sys/class/thermal/thermal_zone0/temp";

/// A Raspberry Pi's firmware: bits 0 to 3 for now, 16 to 19 for since the boot.
const THROTTLED: &str = "sys/devices/platform/soc/soc:firmware/get_throttled";

const MEMORY: &str = "proc/self/status";

/// What the bits of a Raspberry Pi's `get_throttled` mean, from bit 0.
pub const LIMITS: [&str; 4] = ["under_voltage", "frequency_capped", "throttled", "soft_temperature_limit"];

/// Reads everything now.
#[must_use]
pub fn read() -> BoardFigures {
    read_below(Path::new("/"))
}

fn read_below(root: &Path) -> BoardFigures {
    let text = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    BoardFigures {
        rss_bytes: text(MEMORY).and_then(|status| resident_bytes(&status)),
        temperature_c: text(TEMPERATURE).and_then(|text| Some(f64::from(text.trim().parse::<i32>().ok()?) / 1000.0)),
        throttling: text(THROTTLED).and_then(|text| throttling(&text)),
    }
}

/// `VmRSS:     12345 kB`
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Hexadecimal, with or without `0x`.
fn throttling(text: &str) -> Option<Throttling> {
    let text = text.trim();
    let bits = u32::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()?;
    let set = |from: u32| {
        let named = (from..).zip(LIMITS).filter(|(bit, _)| bits & (1 << bit) != 0);
        named.map(|(_, name)| name.to_owned()).collect()
    };
    Some(Throttling { now: set(0), since_boot: set(16) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_board_tells_is_read_and_what_it_does_not_is_absent() {
        let root = tempfile::tempdir().expect("temporary folder");
        assert_eq!(read_below(root.path()), BoardFigures::default());
        for (path, text) in [(TEMPERATURE, "48312\n"), (THROTTLED, "50005\n"), (MEMORY, "VmRSS:\t   2048 kB\n")] {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("made");
            std::fs::write(path, text).expect("written");
        }
        let figures = read_below(root.path());
        assert_eq!((figures.rss_bytes, figures.temperature_c), (Some(2_097_152), Some(48.312)));
        let throttling = figures.throttling.expect("told");
        assert_eq!(throttling.now, ["under_voltage", "throttled"]);
        assert_eq!(throttling.since_boot, ["under_voltage", "throttled"]);
    }

    #[test]
    fn a_board_that_talks_nonsense_tells_nothing() {
        assert_eq!(throttling("off"), None);
        assert_eq!(resident_bytes("VmRSS: many kB"), None);
    }

    #[test]
    fn this_process_has_memory() {
        assert!(read().rss_bytes.is_some_and(|bytes| bytes > 1024 * 1024));
    }
}
