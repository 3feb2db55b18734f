//! What the bytes of a sample are, as media types say it.

/// The most dimensions a tensor header may name.
pub const DIMENSIONS_MAX: usize = 8;

/// The media type of raw tensors: `application/vnd.hedge.tensor; dtype=f32; shape=1,3,128,128`, then the
/// values as little-endian f32.
const TENSOR: &str = "application/vnd.hedge.tensor";

/// How much of a text is looked at to tell what it is: a line of headings and a row, as long as the longest that a program
/// may write.
const SNIFFED_BYTES: usize = 2 * 64 * 1024;

/// What a sample is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentType {
    Jpeg,
    Png,
    /// A recording: a WAV file.
    Wav,
    /// Rows of numbers as text, with or without a line of headings.
    Csv,
    /// Rows of numbers as one JSON document.
    Json,
    /// Rows of numbers as one JSON document a line.
    NdJson,
    Tensor {
        shape: Vec<usize>,
    },
}

impl ContentType {
    /// Reads a `Content-Type` header. Nothing is assumed: a tensor needs its dtype and shape.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split(';').map(str::trim);
        let media = parts.next()?.to_ascii_lowercase();
        match media.as_str() {
            "image/jpeg" | "image/jpg" | "image/pjpeg" | "image/jpe" | "image/jfif" => return Some(Self::Jpeg),
            "image/png" | "image/x-png" | "image/apng" => return Some(Self::Png),
            "audio/wav" | "audio/wave" | "audio/x-wav" | "audio/vnd.wave" => return Some(Self::Wav),
            "text/csv" | "application/csv" => return Some(Self::Csv),
            "application/json" => return Some(Self::Json),
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/x-jsonlines" => {
                return Some(Self::NdJson);
            }
            TENSOR => {}
            _ => return None,
        }
        let (mut dtype, mut shape) = (None, None);
        for part in parts.filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=')?;
            match name.trim().to_ascii_lowercase().as_str() {
                "dtype" => dtype = Some(value.trim()),
                "shape" => shape = Some(value.trim().trim_matches('"')),
                _ => {}
            }
        }
        (dtype? == "f32").then_some(())?;
        let shape: Vec<usize> =
            shape?.split(',').take(DIMENSIONS_MAX + 1).map(|size| size.trim().parse().ok()).collect::<Option<_>>()?;
        (shape.len() <= DIMENSIONS_MAX).then_some(Self::Tensor { shape })
    }

    #[must_use]
    pub fn to_header(&self) -> String {
        match self {
            Self::Jpeg => "image/jpeg".to_owned(),
            Self::Png => "image/png".to_owned(),
            Self::Wav => "audio/wav".to_owned(),
            Self::Csv => "text/csv".to_owned(),
            Self::Json => "application/json".to_owned(),
            Self::NdJson => "application/x-ndjson".to_owned(),
            Self::Tensor { shape } => {
                let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
                format!("{TENSOR}; dtype=f32; shape={}", shape.join(","))
            }
        }
    }

    /// Tells JPEG, PNG and WAV by their first bytes. A tensor cannot be told.
    #[must_use]
    pub fn sniff(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(&[0xFF, 0xD8, 0xFF]) {
            Some(Self::Jpeg)
        } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            Some(Self::Png)
        } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WAVE") {
            Some(Self::Wav)
        } else {
            None
        }
    }

    /// Tells rows of numbers from other text by the first line or two.
    #[must_use]
    pub fn sniff_rows(bytes: &[u8]) -> Option<Self> {
        // Enough for the headings and the first row; a character may be cut in two at its end.
        let text = bytes.get(..SNIFFED_BYTES).unwrap_or(bytes);
        let text = text.utf8_chunks().next()?.valid();
        let mut lines = text.trim_start_matches('\u{feff}').lines().filter(|line| !line.trim().is_empty());
        let first = lines.next()?.trim();
        if first.starts_with('{') || first.starts_with('[') {
            let is_whole = |line: &str| serde_json::from_str::<serde::de::IgnoredAny>(line).is_ok();
            let second = lines.next().map_or("", str::trim);
            let several = is_whole(first) && (second.starts_with('{') || second.starts_with('['));
            return Some(if several { Self::NdJson } else { Self::Json });
        }
        // Some tables have everything in quotes.
        let is_number = |cell: &str| cell.trim().trim_matches('"').parse::<f64>().is_ok();
        let numbers = |line: &str| line.split([',', ';', '\t', ' ']).any(is_number);
        (numbers(first) || lines.next().is_some_and(numbers)).then_some(Self::Csv)
    }

    #[must_use]
    pub fn is_picture(&self) -> bool {
        matches!(self, Self::Jpeg | Self::Png)
    }

    /// What a file of it is usually called; none for a tensor.
    #[must_use]
    pub fn ending(&self) -> Option<&'static str> {
        match self {
            Self::Jpeg => Some("jpg"),
            Self::Png => Some("png"),
            Self::Wav => Some("wav"),
            Self::Csv => Some("csv"),
            Self::Json => Some("json"),
            Self::NdJson => Some("ndjson"),
            Self::Tensor { .. } => None,
        }
    }

    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::Wav => "WAV",
            Self::Csv => "CSV",
            Self::Json => "JSON",
            Self::NdJson => "JSON lines",
            Self::Tensor { .. } => "tensor",
        }
    }
}

/// What a file is that is no sample, by its first bytes; none if nobody knows.
#[must_use]
pub fn what_else(bytes: &[u8]) -> Option<&'static str> {
    const MARKS: [(usize, &[u8], &str); 36] = [
        (8, b"WEBP", "a WebP picture"),
        (0, b"GIF8", "a GIF picture"),
        (4, b"ftyphei", "a HEIC picture"),
        (4, b"ftyphev", "a HEIC picture"),
        (4, b"ftypmif1", "a HEIC picture"),
        (4, b"ftypavi", "an AVIF picture"),
        (4, b"ftyp", "a video (MP4)"),
        (0, b"II*\0", "a TIFF picture, or a camera's raw file"),
        (0, b"MM\0*", "a TIFF picture, or a camera's raw file"),
        (0, b"\0\0\0\x0CjP  ", "a JPEG 2000 picture"),
        (0, b"\xFF\x4F\xFF\x51", "a JPEG 2000 picture"),
        (0, b"\xFF\x0A", "a JPEG XL picture"),
        (0, b"\0\0\0\x0CJXL ", "a JPEG XL picture"),
        (8, b"AVI ", "a video (AVI)"),
        (0, b"\x1A\x45\xDF\xA3", "a video (Matroska or WebM)"),
        (0, b"fLaC", "a FLAC recording"),
        (0, b"OggS", "an Ogg recording"),
        (0, b"ID3", "an MP3 recording"),
        (8, b"AIFF", "an AIFF recording"),
        (0, b"caff\0", "a CAF recording"),
        (0, b".snd\0", "a recording of Sun's kind (.au)"),
        (0, b"RIFX", "a big-endian WAV (RIFX)"),
        (0, b"RF64", "a WAV of the 64-bit kind (RF64)"),
        (0, b"riff\x2E\x91\xCF\x11", "a Wave64 recording"),
        (0, b"BM", "a BMP picture"),
        (0, b"%PDF", "a PDF document"),
        (0, b"\x93NUMPY", "a NumPy array (.npy)"),
        (0, b"\x89HDF", "an HDF5 file, as Keras writes"),
        (4, b"TFL3", "a TensorFlow Lite model"),
        (0, b"PK\x03\x04", "a ZIP archive, as .npz, .pt and .keras are"),
        (0, b"\x1F\x8B", "a gzip file"),
        (0, b"version https://git-lfs", "a pointer of Git LFS (`git lfs pull` brings the file)"),
        (0, b"<svg", "an SVG picture"),
        (0, b"<!DOCTYPE", "a web page"),
        (0, b"<html", "a web page"),
        (0, b"data:", "a data URL in place of the bytes themselves"),
    ];
    if bytes.is_empty() {
        return Some("empty");
    }
    let is_there = |(at, mark, _): &&(usize, &[u8], &str)| {
        bytes.get(*at..at + mark.len()).is_some_and(|part| part.eq_ignore_ascii_case(mark))
    };
    MARKS.iter().find(is_there).map(|(_, _, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(header: &str, expected: Option<ContentType>) {
        assert_eq!(ContentType::parse(header), expected, "{header}");
    }

    #[test]
    fn a_header_reads_back_as_it_was_written() {
        use ContentType::{Csv, Jpeg, Json, NdJson, Png, Tensor, Wav};
        for content_type in [Jpeg, Png, Wav, Csv, Json, NdJson, Tensor { shape: vec![1, 3, 128, 128] }] {
            check(&content_type.to_header(), Some(content_type));
        }
    }

    #[test]
    fn rows_of_numbers_are_told_from_other_text() {
        for (text, expected) in [
            ("1,2,3\n", Some(ContentType::Csv)),
            ("\u{feff}time;x\r\n0;1.5\r\n", Some(ContentType::Csv)),
            ("\"x\",\"y\"\n\"1\",\"2.5\"\n", Some(ContentType::Csv)),
            (&format!("{}\n1,2\n", "a_long_name,".repeat(5000)), Some(ContentType::Csv)),
            ("[[1, 2],\n [3, 4]]", Some(ContentType::Json)),
            ("{\"x\": 1}", Some(ContentType::Json)),
            ("{\"x\": 1}\n{\"x\": 2}\n", Some(ContentType::NdJson)),
            ("just text", None),
            ("", None),
        ] {
            assert_eq!(ContentType::sniff_rows(text.as_bytes()), expected, "{text}");
        }
        assert_eq!(ContentType::sniff(b"RIFF\0\0\0\0WAVEfmt "), Some(ContentType::Wav));
        assert_eq!(ContentType::sniff(b"RIFF\0\0\0\0AVI "), None);
    }

    #[test]
    fn what_is_no_sample_is_called_by_its_name() {
        for (bytes, what) in [
            (&b""[..], Some("empty")),
            (b"RIFF\x10\0\0\0WEBPVP8 ", Some("a WebP picture")),
            (b"\0\0\0\x18ftypheic", Some("a HEIC picture")),
            (b"\0\0\0\x18ftypavif", Some("an AVIF picture")),
            (b"\0\0\0\x18ftypisom", Some("a video (MP4)")),
            (b"<!doctype html>", Some("a web page")),
            (b"\x1c\0\0\0TFL3", Some("a TensorFlow Lite model")),
            (b"fLaC\0\0\0\x22", Some("a FLAC recording")),
            (b"FORM\0\0\x10\0AIFFCOMM", Some("an AIFF recording")),
            (b"RF64\xFF\xFF\xFF\xFFWAVEds64", Some("a WAV of the 64-bit kind (RF64)")),
            (b"dear camera", None),
            (b"caffeine", None),
        ] {
            assert_eq!(what_else(bytes), what);
        }
    }

    #[test]
    fn headers_of_other_hands_are_read_and_guesses_are_not_made() {
        check("Image/JPEG; charset=binary", Some(ContentType::Jpeg));
        check("image/pjpeg", Some(ContentType::Jpeg));
        check("IMAGE/JPG ;q=1", Some(ContentType::Jpeg));
        check("image/x-png; name=\"a;b.png\"", Some(ContentType::Png));
        check("application/vnd.hedge.tensor;shape=\"1, 4\";dtype=f32", Some(ContentType::Tensor { shape: vec![1, 4] }));
        for header in [
            "",
            "text/plain",
            "image/gif",
            "application/vnd.hedge.tensor",
            "application/vnd.hedge.tensor; shape=1,4",
            "application/vnd.hedge.tensor; dtype=f64; shape=1,4",
            "application/vnd.hedge.tensor; dtype=f32; shape=1,-4",
            "application/vnd.hedge.tensor; dtype=f32; shape=1,1,1,1,1,1,1,1,1",
        ] {
            check(header, None);
        }
    }
}
