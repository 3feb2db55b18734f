//! What the bytes of a sample are, as media types say it.

/// The most dimensions a tensor header may name.
pub const DIMENSIONS_MAX: usize = 8;

/// The media type of raw tensors: `application/vnd.hedge.tensor; dtype=f32; shape=1,3,128,128`, then the
/// values as little-endian f32.
const TENSOR: &str = "application/vnd.hedge.tensor";

/// What a sample is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentType {
    Jpeg,
    Png,
    Tensor { shape: Vec<usize> },
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
            Self::Tensor { shape } => {
                let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
                format!("{TENSOR}; dtype=f32; shape={}", shape.join(","))
            }
        }
    }

    /// Tells JPEG and PNG by their first bytes. A tensor cannot be told.
    #[must_use]
    pub fn sniff(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(&[0xFF, 0xD8, 0xFF]) {
            Some(Self::Jpeg)
        } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            Some(Self::Png)
        } else {
            None
        }
    }

    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::Tensor { .. } => "tensor",
        }
    }
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
        for content_type in [ContentType::Jpeg, ContentType::Png, ContentType::Tensor { shape: vec![1, 3, 128, 128] }] {
            check(&content_type.to_header(), Some(content_type));
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
