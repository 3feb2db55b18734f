//! Takes secrets out of text before it leaves the device.
//!
//! Known secrets are those in the files that the configuration names; each place where one stands is masked. Besides,
//! whatever looks like one is: a password in an address, what stands behind `?` in it, bearer tokens, private keys.

use std::path::PathBuf;

use hedge_config::{BrokerConfig, Config, SinkConfig};

/// What stands in a secret's place.
pub(super) const MASK: &str = "***";

/// Shorter ones would mask half the text; nobody's password is that short.
const SECRET_CHARS_MIN: usize = 4;

/// The largest file of a secret.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// Words that name a secret where they stand before `=` or `:`.
const NAMES: [&str; 8] = ["password", "passwd", "passphrase", "secret", "token", "api_key", "apikey", "authorization"];

/// Where a private key begins and ends in PEM.
const KEY_BEGINS: &str = "-----BEGIN";
const KEY_ENDS: &str = "-----END";

/// What is known to be secret on this device.
#[derive(Debug, Default)]
pub(super) struct Masker {
    known: Vec<String>,
}

impl Masker {
    /// Reads the files of secrets that can be read; what cannot be read cannot be printed either.
    pub(super) fn new(config: &Config, text: &str) -> Self {
        // What stands in the configuration itself may be repeated anywhere in a log.
        let mut known = Vec::new();
        for line in text.lines() {
            mask_line(line, &mut known);
        }
        known = known.iter().flat_map(|masked| masked.split([':', '=', '&'])).map(str::to_owned).collect();
        for file in secret_files(config) {
            let small = std::fs::metadata(&file).is_ok_and(|file| file.len() <= SECRET_BYTES_MAX);
            let Ok(text) = hedge_inference::read_text(&file) else { continue };
            if small {
                // A key is masked line by line: a log may have cut it anywhere.
                known.extend(text.lines().map(str::trim).filter(|line| !line.starts_with("-----")).map(str::to_owned));
            }
        }
        known.retain(|secret| secret.chars().count() >= SECRET_CHARS_MIN && secret != MASK);
        // A longer one first, of which a shorter one may be a part.
        known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        known.dedup();
        Self { known }
    }

    /// The same text without secrets.
    pub(super) fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.known {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), MASK);
            }
        }
        let mut masked = String::with_capacity(text.len());
        let mut in_key = false;
        for line in text.split_inclusive('\n') {
            if line.contains(KEY_BEGINS) && line.contains("PRIVATE KEY") {
                in_key = true;
                masked.push_str(MASK);
                masked.push('\n');
            }
            if !in_key {
                masked.push_str(&mask_line(line, &mut Vec::new()));
            }
            if line.contains(KEY_ENDS) {
                in_key = false;
            }
        }
        masked
    }
}

/// A line without what looks like a secret; what that was goes to `found`.
fn mask_line(line: &str, found: &mut Vec<String>) -> String {
    named(&addresses(&bearer(line, found), found), found)
}

/// Every file whose content is a secret.
fn secret_files(config: &Config) -> Vec<PathBuf> {
    let brokers = config.broker.iter().flat_map(|broker| [Some(broker), broker.recovery.as_deref()]).flatten();
    let mut files: Vec<PathBuf> = brokers.flat_map(BrokerConfig::secret_files).cloned().collect();
    files.extend(config.verdicts.sinks.values().flat_map(SinkConfig::secret_files).cloned());
    for credentials in config.credentials.values() {
        files.extend(credentials.password_file.iter().chain(&credentials.key_file).cloned());
    }
    files.extend(config.payloads.iter().filter_map(|payloads| payloads.token_file.clone()));
    files
}

/// `Bearer abc` and `Basic abc`.
fn bearer(line: &str, found: &mut Vec<String>) -> String {
    let mut line = line.to_owned();
    for scheme in ["Bearer ", "Basic "] {
        let mut from = 0;
        while let Some(at) = line[from..].find(scheme) {
            let begin = from + at + scheme.len();
            let end = begin + line[begin..].find(ends_word).unwrap_or(line.len() - begin);
            take(&mut line, begin..end, found);
            from = begin + MASK.len();
        }
    }
    line
}

/// `scheme://user:password@host/path?query`: the user and password, and the query.
fn addresses(line: &str, found: &mut Vec<String>) -> String {
    let mut line = line.to_owned();
    let mut from = 0;
    while let Some(at) = line[from..].find("://") {
        let begin = from + at + "://".len();
        let end = |line: &str| begin + line[begin..].find(ends_word).unwrap_or(line.len() - begin);
        let authority = line[begin..end(&line)].find('/').map_or_else(|| end(&line), |slash| begin + slash);
        if let Some(at) = line[begin..authority].rfind('@') {
            take(&mut line, begin..begin + at, found);
        }
        let whole = end(&line);
        if let Some(query) = line[begin..whole].find('?') {
            take(&mut line, begin + query + 1..whole, found);
        }
        from = begin;
    }
    line
}

/// `password = "x"`, `"token": "x"`, `--password x`; a file's name is none.
fn named(line: &str, found: &mut Vec<String>) -> String {
    let lower = line.to_ascii_lowercase();
    if lower.len() != line.len() {
        return line.to_owned();
    }
    let mut masks = Vec::new();
    for name in NAMES {
        for (at, _) in lower.match_indices(name) {
            let after = at + name.len();
            let rest = &line[after..];
            if rest.starts_with("_file") {
                continue;
            }
            let separators = |c: char| matches!(c, '=' | ':' | '"' | '\'' | ' ' | ',');
            let value = rest.len() - rest.trim_start_matches(separators).len();
            let said = &rest[..value];
            let is_value = said.contains('=') || said.contains(':') || (at > 1 && &line[at - 2..at] == "--");
            if is_value {
                let begin = after + value;
                let end = begin + line[begin..].find(ends_word).unwrap_or(line.len() - begin);
                if begin < end {
                    masks.push(begin..end);
                }
            }
        }
    }
    masks.sort_by_key(|range| std::cmp::Reverse(range.start));
    masks.dedup_by_key(|range| range.start);
    let mut masked = line.to_owned();
    for range in masks {
        take(&mut masked, range, found);
    }
    masked
}

fn take(line: &mut String, secret: std::ops::Range<usize>, found: &mut Vec<String>) {
    found.push(line[secret.clone()].to_owned());
    line.replace_range(secret, MASK);
}

fn ends_word(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '\'' | ',' | '>' | '<' | ')' | ']' | '}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(Masker::default().text(text), expected);
    }

    #[test]
    fn what_looks_like_a_secret_is_masked_and_the_rest_is_as_it_was() {
        check("command = [\"ffmpeg\", \"rtsp://ana:pw@cam/x\"]", "command = [\"ffmpeg\", \"rtsp://***@cam/x\"]");
        check("url = \"https://hook/x?key=1&b=2\"", "url = \"https://hook/x?***\"");
        check("password = \"abc\" # x", "password = \"***\" # x");
        check("{\"token\":\"abc\",\"a\":1}", "{\"token\":\"***\",\"a\":1}");
        check("camera --password abc --fps 3", "camera --password *** --fps 3");
        check("Authorization: Bearer abc.def\n", "Authorization: *** ***\n");
        check("password_file = \"/etc/hedge/pw\"", "password_file = \"/etc/hedge/pw\"");
        check("mqtts://broker.example:8883 is well", "mqtts://broker.example:8883 is well");
        check("a\n-----BEGIN PRIVATE KEY-----\nMIG\n-----END PRIVATE KEY-----\nb\n", "a\n***\nb\n");
    }

    #[test]
    fn the_content_of_a_secret_file_is_masked_wherever_it_stands() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let file = dir.path().join("pw");
        std::fs::write(&file, "hunter22\n").expect("written");
        let text = format!("[broker]\nurl = \"mqtt://b\"\nusername = \"me\"\npassword_file = \"{}\"\n", file.display());
        let config = Config::parse(&text, "agent.toml", std::iter::empty()).expect("valid");
        assert_eq!(Masker::new(&config, "").text("refused for hunter22!"), "refused for ***!");
        let address = "url = \"rtsp://ana:longsecret@cam\"";
        assert_eq!(Masker::new(&config, address).text("the camera said longsecret"), "the camera said ***");
    }
}
