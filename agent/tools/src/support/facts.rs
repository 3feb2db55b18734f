//! What the system around the agent is: versions, board, journal.

use std::path::Path;
use std::process::Command;

use hedge_agent::board;

/// The largest file of the system that is read.
const READ_BYTES_MAX: u64 = 1024 * 1024;

pub(super) fn versions() -> String {
    let system = rustix::system::uname();
    let mut text = format!(
        "hedge-agent {}\nkernel {} {}\n",
        env!("CARGO_PKG_VERSION"),
        system.release().to_string_lossy(),
        system.machine().to_string_lossy()
    );
    text += &file("/etc/os-release");
    let packages = ["-W", "-f", "${Package} ${Version} ${Architecture} ${db:Status-Status}\\n", "hedge-*"];
    text += &output("dpkg-query", &packages).unwrap_or_else(|error| format!("dpkg-query: {error}\n"));
    text
}

pub(super) fn board(state_dir: &Path) -> String {
    let mut text = String::new();
    for name in ["/proc/device-tree/model", "/proc/meminfo", "/proc/loadavg", "/proc/uptime"] {
        text += &format!("== {name}\n{}\n", file(name).trim_end_matches(['\0', '\n']));
    }
    let cpu = file("/proc/cpuinfo");
    let kinds: std::collections::BTreeSet<&str> = cpu
        .lines()
        .filter(|line| ["model name", "Model", "Hardware", "Features", "flags"].iter().any(|key| line.starts_with(key)))
        .collect();
    text.push_str("== /proc/cpuinfo, in short\n");
    kinds.iter().for_each(|line| text += &format!("{line}\n"));
    text += &format!("== the board tells\n{}\n", String::from_utf8_lossy(&hedge_proto::to_json(&board::read())));
    if let Ok(stat) = rustix::fs::statvfs(state_dir) {
        let mib = |blocks: u64| blocks.saturating_mul(stat.f_frsize) >> 20;
        let (free, all) = (mib(stat.f_bavail), mib(stat.f_blocks));
        let mounted =
            if stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) { "read-only" } else { "writable" };
        text += &format!("== disk of {}\n{free} MiB of {all} MiB free, mounted {mounted}\n", state_dir.display());
    }
    text
}

/// The last lines of the journal, or of a file.
pub(super) fn log(from: Option<&Path>, lines: usize) -> Result<String, String> {
    if let Some(path) = from {
        let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().collect();
        return Ok(all[all.len().saturating_sub(lines)..].join("\n"));
    }
    let count = lines.to_string();
    output("journalctl", &["--unit", "hedge-agent.service", "--lines", &count, "--no-pager", "--output", "short-iso"])
        .map_err(|error| format!("journalctl: {error}; name a file with --log"))
}

fn output(program: &str, arguments: &[&str]) -> Result<String, String> {
    let done = Command::new(program).args(arguments).output().map_err(|error| error.to_string())?;
    if done.status.success() {
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&done.stderr).trim().to_owned())
    }
}

fn file(path: &str) -> String {
    let read = std::fs::File::open(path).and_then(|file| {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(file, READ_BYTES_MAX), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    });
    read.unwrap_or_else(|error| format!("{error}\n"))
}
