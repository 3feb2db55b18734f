//! Every decoder as a function of any bytes: what `fuzz/` runs for hours and a test replays in a moment.
//!
//! Each panics if a promise about what it read is broken. Only tests and fuzzing have this module.

#[cfg(test)]
mod tests;

use hedge_core::clock::Moment;
use hedge_core::control::commands::{Arrived, Book};
use hedge_inference::bundle::{Input, Manifest};
use hedge_inference::{ContentType, pixels_only};
use hedge_proto::{
    Case, CaseMessage, CloudStatus, DOCUMENT_BYTES_MAX, DeviceId, DeviceStatus, DownMessage, MESSAGE_BYTES_MAX, Reply,
    Reported, Telemetry, Topics, from_cbor, from_json, to_cbor, to_json,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use crate::capture::command::splitting::{length_delimited, mjpeg, pcm, rows};
pub use crate::capture::http::headers::http_sample;
pub use crate::capture::open_inference::requests::open_inference;
pub use crate::commands::lines::journal;
pub use crate::settings::desired::documents::desired;
pub use hedge_outbox::records::{log, queue_index};

/// `down/command`: the message, its order, and whether it runs.
pub fn command(bytes: &[u8]) {
    let (Ok(device), Ok(topics)) = (DeviceId::new("device-1"), Topics::new("")) else { return };
    let correlation = bytes.get(..7);
    let arrived = Arrived { payload: bytes, correlation, ..Arrived::default() };
    let mut book = Book::new(device, topics);
    let first = book.admit(Moment(0), Some(1 << 40), &arrived);
    if let hedge_core::control::commands::Admission::Begin { intent, .. } = first {
        book.begin(intent);
        let again = book.admit(Moment(60_000), Some(1 << 40), &arrived);
        assert!(matches!(again, hedge_core::control::commands::Admission::Ignore(_)), "it begins twice: {again:?}");
    }
}

/// `down/verdict`.
pub fn verdict(bytes: &[u8]) {
    cbor::<DownMessage>(bytes);
}

/// `up/case`, and a case's header as the outbox keeps it.
pub fn case(bytes: &[u8]) {
    cbor::<CaseMessage>(bytes);
    cbor::<Case>(bytes);
}

/// What device and cloud say of themselves, and the device's state file.
pub fn documents(bytes: &[u8]) {
    json::<CloudStatus>(bytes);
    json::<DeviceStatus>(bytes);
    json::<Reported>(bytes);
    json::<Reply>(bytes);
    json::<Telemetry>(bytes);
    json::<crate::state::State>(bytes);
    json::<crate::audit::Line>(bytes);
}

/// `manifest.toml` of a model bundle.
pub fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(error) = toml::from_str::<Manifest>(text) {
        assert!(!error.message().is_empty());
    }
}

/// A picture from anyone: one that is read gives the model every value it takes, also as the thumbnail that travels.
pub fn picture(bytes: &[u8]) {
    const INPUT: &str = r#"
        name = "input"
        shape = [1, 3, 16, 12]
        picture = { layout = "nchw", color = "rgb", crop = 0.875, mean = 127.5, std = 127.5 }
    "#;
    let (Some(content_type), Ok(input)) = (ContentType::sniff(bytes), toml::from_str::<Input>(INPUT)) else { return };
    let values = input.tensor(&content_type, bytes, None);
    if let Ok(tensor) = &values {
        assert_eq!(tensor.data.len(), 3 * 16 * 12);
        assert!(tensor.data.iter().all(|value| (-1.0..=1.0).contains(value)), "beyond what pixels can be");
    }
    let small = pixels_only(&content_type, bytes, 32);
    if let Ok(Some(small)) = small {
        assert!(input.tensor(&ContentType::Jpeg, &small, None).is_ok(), "the thumbnail is no picture");
    }
}

/// A recording from anyone: one that is read gives the model every value it takes.
pub fn recording(bytes: &[u8]) {
    const RAW: &str = "name = \"pcm\"\nshape = [1, 800]\naudio = { rate = 8000, length = 800, channels = \"mean\" }";
    const MEL: &str = r#"
        name = "logmel"
        shape = [1, 8, 9]
        [audio]
        rate = 8000
        length = 800
        mel = { frame = 128, hop = 80, bands = 8, low_hz = 0, high_hz = 4000, scale = "slaney", filter = "area", log = "decibel",
            log_offset = 1e-9 }
    "#;
    for (text, values) in [(RAW, 800), (MEL, 72)] {
        let Ok(input) = toml::from_str::<Input>(text) else { continue };
        whole(&input, &ContentType::Wav, bytes, values);
    }
}

/// Rows of numbers from anyone, in each of the ways they are written.
pub fn series(bytes: &[u8]) {
    const PLAIN: &str = r#"
        name = "x"
        shape = [1, 6, 2]
        series = { channels = 2, layout = "time_channels", fit = "end", missing_rows_max = 1 }
    "#;
    const TIMED: &str = r#"
        name = "x"
        shape = [1, 2, 6]
        [series]
        channels = ["x", "y"]
        layout = "channels_time"
        fit = "middle"
        fill = "hold"
        missing_rows_max = 3
        time = { column = "t", rate = 10 }
    "#;
    for text in [PLAIN, TIMED] {
        let Ok(input) = toml::from_str::<Input>(text) else { continue };
        for kind in [ContentType::Csv, ContentType::Json, ContentType::NdJson] {
            whole(&input, &kind, bytes, 12);
        }
    }
}

fn whole(input: &Input, kind: &ContentType, bytes: &[u8], values: usize) {
    if let Ok(tensor) = input.tensor(kind, bytes, None) {
        assert_eq!(tensor.data.len(), values);
        assert!(tensor.data.iter().all(|value| value.is_finite()), "no number");
    }
}

/// What was read is what would be written.
fn cbor<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(read) = from_cbor::<T>(bytes, MESSAGE_BYTES_MAX) {
        let written = to_cbor(&read);
        let again = from_cbor::<T>(&written, MESSAGE_BYTES_MAX).map(|again| to_cbor(&again));
        assert_eq!(again, Ok(written), "it does not read back");
    }
}

fn json<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(read) = from_json::<T>(bytes, DOCUMENT_BYTES_MAX) {
        let written = to_json(&read);
        let again = from_json::<T>(&written, usize::MAX).map(|again| to_json(&again));
        assert_eq!(again, Ok(written), "it does not read back");
    }
}
