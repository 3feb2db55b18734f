//! What a server of a test's own is asked.

use std::collections::BTreeMap;
use std::io::{BufRead, Read as _};

use anyhow::{Result, ensure};

#[derive(Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// By their names in small letters.
    headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// The next one, whose head and body have at most so many bytes each; `None` when the client has gone, whether between two
    /// or within one.
    pub(crate) fn read(reader: &mut impl BufRead, part_bytes_max: u64) -> Result<Option<Self>> {
        let mut request = Self::default();
        let mut line = String::new();
        let mut head = reader.by_ref().take(part_bytes_max);
        loop {
            line.clear();
            if !matches!(head.read_line(&mut line), Ok(1..)) {
                return Ok(None);
            }
            let text = line.trim_end();
            if text.is_empty() {
                break;
            }
            if let Some((name, value)) = text.split_once(": ") {
                request.headers.insert(name.to_ascii_lowercase(), value.to_owned());
            } else {
                let mut words = text.split(' ').map(str::to_owned);
                request.method = words.next().unwrap_or_default();
                request.path = words.next().unwrap_or_default();
            }
        }
        let length: u64 = request.headers.get("content-length").map_or(Ok(0), |length| length.parse())?;
        ensure!(length <= part_bytes_max, "a body of {length} bytes");
        let read = reader.take(length).read_to_end(&mut request.body);
        Ok((read.is_ok() && request.body.len() as u64 == length).then_some(request))
    }

    /// A header, or nothing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}
