//! Cuts a stream of JPEG pictures into pictures by reading their markers (ITU-T T.81, annex B).
//!
//! Looking for the end marker alone would cut a picture at its embedded thumbnail, so segments are stepped
//! over by their length and only entropy-coded data is searched.
//!
//! ```text
//! between ─FF D8→ marker ⇄ segment          (by length)
//!                  │  ↑─────────┐
//!                  └─FF DA→ segment → entropy ─FF xx→ marker
//!                  └─FF D9→ a picture → between
//! ```
//! A picture that breaks off, because a marker stands where none may, is given up and the next one sought. One without
//! an end marker ends where the next begins, or with the stream: whether its data are whole is seen when it is decoded.

use super::Piece;

/// What may stand between two pictures without being counted: the part headers of multipart streams.
const BETWEEN_BYTES_MAX: usize = 1024;

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Between {
        marker: bool,
    },
    Marker,
    /// After `FF`; inside entropy-coded data `FF 00` is the byte `FF` and restart markers go by.
    MarkerCode {
        in_entropy: bool,
    },
    Length {
        high: Option<u8>,
        scan: bool,
    },
    Segment {
        left: usize,
        scan: bool,
    },
    Entropy,
}

pub(super) struct Mjpeg {
    picture_bytes_max: usize,
    picture: Vec<u8>,
    too_large: bool,
    between_bytes: usize,
    state: State,
}

impl Mjpeg {
    pub(super) fn new(picture_bytes_max: usize) -> Self {
        let state = State::Between { marker: false };
        Self { picture_bytes_max, picture: Vec::new(), too_large: false, between_bytes: 0, state }
    }

    /// Reads on, and hands out each picture that came to its end.
    pub(super) fn push(&mut self, mut bytes: &[u8], each: &mut impl FnMut(Piece)) {
        while let Some((&byte, rest)) = bytes.split_first() {
            match self.state {
                State::Between { marker: false } | State::Entropy if byte != 0xff => {
                    let (plain, rest) = bytes.split_at(bytes.iter().position(|b| *b == 0xff).unwrap_or(bytes.len()));
                    if self.state == State::Entropy {
                        self.keep(plain)
                    } else {
                        self.pass_over(plain.len(), each)
                    }
                    bytes = rest;
                }
                State::Segment { left, scan } => {
                    let (inside, rest) = bytes.split_at(left.min(bytes.len()));
                    self.keep(inside);
                    self.state = after_segment(left - inside.len(), scan);
                    bytes = rest;
                }
                _ => {
                    self.step(byte, each);
                    bytes = rest;
                }
            }
        }
    }

    /// The stream is over: a picture without any of its data is lost.
    pub(super) fn end(&mut self, each: &mut impl FnMut(Piece)) {
        match self.state {
            State::Between { .. } => {}
            State::Entropy | State::MarkerCode { in_entropy: true } => self.finish(each),
            _ => self.give_up(each),
        }
    }

    fn step(&mut self, byte: u8, each: &mut impl FnMut(Piece)) {
        match self.state {
            State::Between { marker: true } if byte == SOI => self.begin(),
            State::Between { .. } => {
                self.pass_over(1, each);
                self.state = State::Between { marker: byte == 0xff };
            }
            State::Entropy | State::Marker => {
                self.keep(&[byte]);
                if byte == 0xff {
                    self.state = State::MarkerCode { in_entropy: self.state == State::Entropy };
                } else {
                    self.give_up(each);
                }
            }
            State::MarkerCode { in_entropy } => self.marker(byte, in_entropy, each),
            State::Length { high: None, scan } => {
                self.keep(&[byte]);
                self.state = State::Length { high: Some(byte), scan };
            }
            State::Length { high: Some(high), scan } => {
                self.keep(&[byte]);
                // The length counts itself.
                match usize::from(u16::from_be_bytes([high, byte])).checked_sub(2) {
                    Some(left) => self.state = after_segment(left, scan),
                    None => self.give_up(each),
                }
            }
            State::Segment { .. } => {}
        }
    }

    fn marker(&mut self, code: u8, in_entropy: bool, each: &mut impl FnMut(Piece)) {
        self.keep(&[code]);
        match code {
            0xff => {} // fill
            0x00 if in_entropy => self.state = State::Entropy,
            0xd0..=0xd7 if in_entropy => self.state = State::Entropy,
            0x01 | 0xd0..=0xd7 => self.state = State::Marker,
            0x00 => self.give_up(each),
            SOI => {
                if in_entropy {
                    self.picture.truncate(self.picture.len().saturating_sub(2));
                    self.finish(each);
                } else {
                    self.give_up(each);
                }
                self.begin();
            }
            EOI => self.finish(each),
            _ => self.state = State::Length { high: None, scan: code == SOS },
        }
    }

    fn begin(&mut self) {
        self.picture.clear();
        self.too_large = false;
        self.between_bytes = 0;
        self.keep(&[0xff, SOI]);
        self.state = State::Marker;
    }

    fn finish(&mut self, each: &mut impl FnMut(Piece)) {
        self.state = State::Between { marker: false };
        let picture = std::mem::take(&mut self.picture);
        each(if self.too_large { Piece::Skipped } else { Piece::Sample(picture.into()) });
    }

    fn give_up(&mut self, each: &mut impl FnMut(Piece)) {
        self.state = State::Between { marker: false };
        self.picture = Vec::new();
        each(Piece::Skipped);
    }

    /// A picture over the limit is read to its end, so that the next one is found, but not kept.
    fn keep(&mut self, bytes: &[u8]) {
        if self.picture.len() + bytes.len() > self.picture_bytes_max {
            self.too_large = true;
            self.picture = Vec::new();
        }
        if !self.too_large {
            self.picture.extend_from_slice(bytes);
        }
    }

    fn pass_over(&mut self, bytes: usize, each: &mut impl FnMut(Piece)) {
        let before = self.between_bytes;
        self.between_bytes = before.saturating_add(bytes);
        if before <= BETWEEN_BYTES_MAX && self.between_bytes > BETWEEN_BYTES_MAX {
            each(Piece::Skipped);
        }
    }
}

fn after_segment(left: usize, scan: bool) -> State {
    match (left, scan) {
        (0, true) => State::Entropy,
        (0, false) => State::Marker,
        (left, scan) => State::Segment { left, scan },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(code: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len() + 2).expect("short").to_be_bytes();
        [&[0xff, code], &length[..], content].concat()
    }

    /// Every construct that could be taken for an end or a beginning.
    fn picture(seed: u8) -> Vec<u8> {
        let thumbnail = [&[0xff, 0xd8][..], &segment(0xda, &[1]), &[seed, 0xff, 0xd9]].concat();
        [
            &[0xff, 0xd8][..],
            &segment(0xe1, &thumbnail),
            &segment(0xdd, &[]),
            &[0xff, 0xff],
            &segment(0xda, &[1, 2, 3])[1..],
            &[seed, 0xff, 0x00, 0xd9, 0xff, 0xd3, 5],
            &segment(0xc4, &[0xff, 0xd9]),
            &segment(0xda, &[]),
            &[seed, 0xff, 0xff, 0xd9],
        ]
        .concat()
    }

    #[track_caller]
    fn check(stream: &[u8], bytes_max: usize, expected: &[Option<&[u8]>]) {
        for chunk in [1, 2, 3, 7, 64, usize::MAX] {
            let mut pieces = Vec::new();
            let mut each = |piece| {
                pieces.push(match piece {
                    Piece::Sample(bytes) => Some(bytes.to_vec()),
                    Piece::Skipped | Piece::Wrong(_) => None,
                });
            };
            let mut mjpeg = Mjpeg::new(bytes_max);
            stream.chunks(chunk.min(stream.len())).for_each(|bytes| mjpeg.push(bytes, &mut each));
            mjpeg.end(&mut each);
            assert!(mjpeg.picture.capacity() <= 2 * bytes_max);
            let pieces: Vec<_> = pieces.iter().map(Option::as_deref).collect();
            assert_eq!(pieces, expected, "in chunks of {chunk}");
        }
    }

    #[test]
    fn thumbnails_stuffing_restarts_and_several_scans_do_not_end_a_picture() {
        let (a, b) = (picture(1), picture(2));
        check(&[&a[..], &b].concat(), 1000, &[Some(&a), Some(&b)]);
    }

    #[test]
    fn multipart_headers_pass_unnoticed_and_garbage_is_counted_once() {
        let (a, b) = (picture(1), picture(2));
        let header = b"\r\n--frame\r\nContent-Type: image/jpeg\r\n\r\n";
        check(&[&header[..], &a, header, &b].concat(), 1000, &[Some(&a), Some(&b)]);
        let garbage = vec![0xff; 5000];
        check(&[&a[..], &garbage, &b].concat(), 1000, &[Some(&a), None, Some(&b)]);
    }

    #[test]
    fn a_picture_over_the_limit_is_skipped_and_the_next_one_found() {
        let small = picture(1);
        let large = [&small[..2], &segment(0xe2, &[0xff; 300]), &small[2..]].concat();
        check(&[&small[..], &large, &small].concat(), small.len(), &[Some(&small), None, Some(&small)]);
    }

    #[test]
    fn a_picture_that_breaks_off_costs_only_itself() {
        let whole = picture(1);
        let in_header = &[0xff, 0xd8, 0xff, 0xdd, 0, 2][..];
        check(&[in_header, &whole].concat(), 1000, &[None, Some(&whole)]);
        let bad_length = [0xff, 0xd8, 0xff, 0xe0, 0, 1];
        check(&[&bad_length, &whole[..]].concat(), 1000, &[None, Some(&whole)]);
        check(&[&whole[..], in_header].concat(), 1000, &[Some(&whole), None]);
    }

    #[test]
    fn a_picture_without_an_end_marker_ends_where_the_next_begins() {
        let whole = picture(1);
        let open = &whole[..whole.len() - 3]; // with its last marker go two bytes of fill
        check(&[open, &whole, open].concat(), 1000, &[Some(open), Some(&whole), Some(open)]);
        let half = &whole[..whole.len() - 1];
        check(&[&whole[..], half].concat(), 1000, &[Some(&whole), Some(half)]);
        check(&[open, &whole].concat(), open.len() - 1, &[None, None]);
    }

    #[test]
    fn real_pictures_come_out_as_they_went_in() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/pictures");
        let files =
            std::fs::read_dir(folder).expect("the demo's pictures").map(|entry| entry.expect("an entry").path());
        let jpegs = files.filter(|path| path.extension().is_some_and(|extension| extension == "jpg"));
        let pictures: Vec<Vec<u8>> = jpegs.map(|path| std::fs::read(path).expect("readable")).collect();
        assert!(!pictures.is_empty());
        let mut pieces = Vec::new();
        let mut each = |piece| match piece {
            Piece::Sample(bytes) => pieces.push(bytes.to_vec()),
            Piece::Skipped | Piece::Wrong(_) => panic!("a picture was skipped"),
        };
        let mut mjpeg = Mjpeg::new(10_000_000);
        pictures.concat().chunks(4096).for_each(|bytes| mjpeg.push(bytes, &mut each));
        mjpeg.end(&mut each);
        assert!(pieces == pictures);
    }
}
