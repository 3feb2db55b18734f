//! Cuts a stream into samples by the 4-byte big-endian length before each.

use super::Piece;

pub(super) struct Delimited {
    sample_bytes_max: usize,
    header: Vec<u8>,
    sample: Vec<u8>,
    /// What is missing of the current sample, and whether it is kept.
    left: Option<(usize, bool)>,
}

const HEADER_BYTES: usize = 4;

impl Delimited {
    pub(super) fn new(sample_bytes_max: usize) -> Self {
        Self { sample_bytes_max, header: Vec::with_capacity(HEADER_BYTES), sample: Vec::new(), left: None }
    }

    pub(super) fn push(&mut self, mut bytes: &[u8], each: &mut impl FnMut(Piece)) {
        while !bytes.is_empty() {
            let wanted = self.left.map_or(HEADER_BYTES - self.header.len(), |(left, _)| left);
            let (taken, rest) = bytes.split_at(wanted.min(bytes.len()));
            bytes = rest;
            match &mut self.left {
                None => self.header.extend_from_slice(taken),
                Some((left, kept)) => {
                    *left -= taken.len();
                    if *kept {
                        self.sample.extend_from_slice(taken);
                    }
                }
            }
            self.advance(each);
        }
    }

    /// The stream is over: a sample that is not whole is lost.
    pub(super) fn end(&mut self, each: &mut impl FnMut(Piece)) {
        if self.left.take().is_some() || !self.header.is_empty() {
            each(Piece::Skipped);
        }
    }

    fn advance(&mut self, each: &mut impl FnMut(Piece)) {
        if let Ok(header) = <[u8; HEADER_BYTES]>::try_from(&self.header[..]) {
            self.header.clear();
            let length = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
            self.left = Some((length, (1..=self.sample_bytes_max).contains(&length)));
        }
        if let Some((0, kept)) = self.left {
            self.left = None;
            let sample = std::mem::take(&mut self.sample);
            each(if kept { Piece::Sample(sample.into()) } else { Piece::Skipped });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_cut_by_their_length_and_those_over_the_limit_are_skipped() {
        let stream =
            [&[0, 0, 0, 3][..], b"abc", &[0, 0, 0, 0], &[0, 0, 0, 9], b"too large", &[0, 0, 0, 1], b"d", &[0, 0]];
        let stream = stream.concat();
        for chunk in [1, 2, 5, stream.len()] {
            let mut pieces = Vec::new();
            let mut each = |piece| match piece {
                Piece::Sample(bytes) => pieces.push(String::from_utf8_lossy(&bytes).into_owned()),
                Piece::Skipped | Piece::Wrong(_) => pieces.push("-".to_owned()),
            };
            let mut delimited = Delimited::new(5);
            stream.chunks(chunk).for_each(|bytes| delimited.push(bytes, &mut each));
            delimited.end(&mut each);
            assert_eq!(pieces, ["abc", "-", "-", "d", "-"]);
        }
    }
}
