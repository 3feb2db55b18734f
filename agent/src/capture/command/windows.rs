//! Cuts windows out of a stream that has no end: sound without a header, rows of numbers.
//!
//! Each window begins a hop after the one before, whatever pieces the stream comes in, and is a sample of its own: a
//! WAV file, or rows with the headings that stand over them. What comes after the last whole window when a program
//! ends is lost, and counted; the next program begins anew.

use std::collections::VecDeque;

use hedge_config::{PcmWindow, RowWindow};
use hedge_inference::{ContentType, is_heading, is_heading_again, wav};

use super::Piece;

/// Of sound, 16 bits a sample.
pub(super) struct Pcm {
    window: PcmWindow,
    bytes_max: usize,
    /// How the stream begins, until it is enough to tell what it is.
    begin: Vec<u8>,
    held: Vec<u8>,
    /// How much of what is held has been in a window.
    covered: usize,
}

/// Enough to tell a WAV file by.
const BEGIN_BYTES: usize = 12;

const IS_A_FILE: &str = "its output is a WAV file, where `format = \"pcm\"` takes samples without a header: give arecord \
                         `-t raw`, ffmpeg `-f s16le`";

impl Pcm {
    pub(super) fn new(window: PcmWindow, bytes_max: usize) -> Self {
        Self { window, bytes_max, begin: Vec::new(), held: Vec::new(), covered: 0 }
    }

    pub(super) fn push(&mut self, mut bytes: &[u8], each: &mut impl FnMut(Piece)) {
        let PcmWindow { rate, channels, samples, hop } = self.window;
        let frame = usize::from(channels) * 2;
        let (length, hop) = (samples.saturating_mul(frame), hop.saturating_mul(frame));
        let missing = BEGIN_BYTES - self.begin.len();
        self.begin.extend_from_slice(&bytes[..bytes.len().min(missing)]);
        // What its header says of rate and channels may be anything.
        if ContentType::sniff(&self.begin) == Some(ContentType::Wav) {
            self.held.clear();
            if missing > 0 {
                each(Piece::Wrong(IS_A_FILE));
            }
            return;
        }
        while !bytes.is_empty() {
            // No more than a window is ever held.
            let (taken, rest) = bytes.split_at(bytes.len().min(length - self.held.len()));
            bytes = rest;
            self.held.extend_from_slice(taken);
            if self.held.len() == length {
                let file = wav(rate, channels, &self.held);
                each(if file.len() > self.bytes_max { Piece::Skipped } else { Piece::Sample(file.into()) });
                self.held.drain(..hop);
                self.covered = self.held.len();
            }
        }
    }

    pub(super) fn end(&mut self, each: &mut impl FnMut(Piece)) {
        if self.held.len() > self.covered {
            each(Piece::Skipped);
        }
        self.held.clear();
        self.begin.clear();
        self.covered = 0;
    }
}

/// The longest row. A stream without an end of line is none.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Of rows, one a line.
pub(super) struct Rows {
    window: RowWindow,
    bytes_max: usize,
    line: Vec<u8>,
    /// The line is too long: nothing of it is held.
    is_too_long: bool,
    /// The first line of the stream, if it names the columns, or a later one that names them anew.
    headings: Option<Vec<u8>>,
    is_first: bool,
    held: VecDeque<Vec<u8>>,
    bytes: usize,
    /// How many of the rows held have been in a window.
    covered: usize,
}

impl Rows {
    pub(super) fn new(window: RowWindow, bytes_max: usize) -> Self {
        Self {
            window,
            bytes_max,
            line: Vec::new(),
            is_too_long: false,
            headings: None,
            is_first: true,
            held: VecDeque::new(),
            bytes: 0,
            covered: 0,
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8], each: &mut impl FnMut(Piece)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = piece
                .split_last()
                .map_or((piece, false), |(last, text)| if *last == b'\n' { (text, true) } else { (piece, false) });
            self.is_too_long |= self.line.len() + text.len() > LINE_BYTES_MAX;
            if !self.is_too_long {
                self.line.extend_from_slice(text);
            }
            if ends {
                self.take(each);
            }
        }
    }

    pub(super) fn end(&mut self, each: &mut impl FnMut(Piece)) {
        // The last line may have no end.
        self.take(each);
        if self.held.len() > self.covered {
            each(Piece::Skipped);
        }
        *self = Self::new(self.window, self.bytes_max);
    }

    /// A line is whole.
    fn take(&mut self, each: &mut impl FnMut(Piece)) {
        let line = std::mem::take(&mut self.line).trim_ascii().to_vec();
        if std::mem::take(&mut self.is_too_long) {
            return each(Piece::Skipped);
        }
        if line.is_empty() {
            return;
        }
        if std::mem::take(&mut self.is_first) && is_heading(&line) {
            self.headings = Some(line);
            return;
        }
        // A program that has lost its sensor and found it again may say them once more.
        if self.headings.as_ref() == Some(&line) {
            return;
        }
        // What follows stands under these, in another order maybe; no window has rows under both.
        if self.headings.as_ref().is_some_and(|before| is_heading_again(&line, before)) {
            if self.held.len() > self.covered {
                each(Piece::Skipped);
            }
            self.forget(self.held.len());
            self.headings = Some(line);
            return;
        }
        self.bytes += line.len() + 1;
        self.held.push_back(line);
        // Rows so long that they are no sample together are no reason to hold them.
        if self.bytes > self.bytes_max {
            each(Piece::Skipped);
            self.forget(self.held.len());
        }
        if self.held.len() == self.window.rows {
            let lines: Vec<&[u8]> = self.headings.iter().chain(&self.held).map(Vec::as_slice).collect();
            let mut text = lines.join(&b'\n');
            text.push(b'\n');
            each(if text.len() > self.bytes_max { Piece::Skipped } else { Piece::Sample(text.into()) });
            self.forget(self.window.hop);
        }
    }

    fn forget(&mut self, rows: usize) {
        self.bytes -= self.held.drain(..rows).map(|line| line.len() + 1).sum::<usize>();
        self.covered = self.held.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is cut, `None` for what is skipped.
    fn cut(
        mut push: impl FnMut(&[u8], bool, &mut dyn FnMut(Piece)),
        bytes: &[u8],
        chunk: usize,
    ) -> Vec<Option<Vec<u8>>> {
        let mut pieces = Vec::new();
        let mut each = |piece| {
            pieces.push(match piece {
                Piece::Sample(bytes) => Some(bytes.to_vec()),
                Piece::Skipped | Piece::Wrong(_) => None,
            });
        };
        bytes.chunks(chunk).for_each(|bytes| push(bytes, false, &mut each));
        push(&[], true, &mut each);
        pieces
    }

    fn pcm(window: PcmWindow, bytes_max: usize, bytes: &[u8], chunk: usize) -> Vec<Option<Vec<u8>>> {
        let mut pcm = Pcm::new(window, bytes_max);
        let push = |bytes: &[u8], ends: bool, mut each: &mut dyn FnMut(Piece)| {
            if ends { pcm.end(&mut each) } else { pcm.push(bytes, &mut each) }
        };
        cut(push, bytes, chunk)
    }

    fn rows(window: RowWindow, bytes_max: usize, text: &str, chunk: usize) -> Vec<Option<String>> {
        let mut rows = Rows::new(window, bytes_max);
        let push = |bytes: &[u8], ends: bool, mut each: &mut dyn FnMut(Piece)| {
            if ends { rows.end(&mut each) } else { rows.push(bytes, &mut each) }
        };
        let cut = cut(push, text.as_bytes(), chunk);
        cut.into_iter().map(|one| one.map(|bytes| String::from_utf8(bytes).expect("text"))).collect()
    }

    proptest! {
        /// However the stream comes in: every window is whole, the next begins a hop later, and none is left out.
        #[test]
        fn windows_of_sound_follow_each_other_by_the_hop(
            bytes in prop::collection::vec(any::<u8>(), 0..700),
            channels in 1_u16..4,
            samples in 1_usize..40,
            hop in 1_usize..40,
            chunk in 1_usize..90,
        ) {
            let window = PcmWindow { rate: 8000, channels, samples, hop: hop.min(samples) };
            let frame = usize::from(channels) * 2;
            let (length, step) = (samples * frame, window.hop * frame);
            let mut expected: Vec<Option<Vec<u8>>> = Vec::new();
            let mut begin = 0;
            while begin + length <= bytes.len() {
                expected.push(Some(wav(8000, channels, &bytes[begin..begin + length])));
                begin += step;
            }
            let seen = if expected.is_empty() { 0 } else { begin - step + length };
            if seen < bytes.len() {
                expected.push(None);
            }
            prop_assert_eq!(pcm(window, usize::MAX, &bytes, chunk), expected);
        }

        #[test]
        fn windows_of_rows_follow_each_other_by_the_hop(
            count in 0_usize..60,
            length in 1_usize..12,
            hop in 1_usize..12,
            chunk in 1_usize..40,
            has_headings in any::<bool>(),
        ) {
            let window = RowWindow { rows: length, hop: hop.min(length) };
            let headings = if has_headings { "t,x\n" } else { "" };
            let lines: Vec<String> = (0..count).map(|at| format!("{at},{}\n", at * 7 % 5)).collect();
            let mut expected: Vec<Option<String>> = Vec::new();
            let mut begin = 0;
            while begin + length <= count {
                expected.push(Some(format!("{headings}{}", lines[begin..begin + length].concat())));
                begin += window.hop;
            }
            let seen = if expected.is_empty() { 0 } else { begin - window.hop + length };
            if seen < count {
                expected.push(None);
            }
            prop_assert_eq!(rows(window, usize::MAX, &format!("{headings}{}", lines.concat()), chunk), expected);
        }
    }

    #[test]
    fn rows_are_cut_however_lines_end_and_headings_are_said_again() {
        let window = RowWindow { rows: 2, hop: 2 };
        let all = |one: &str| vec![Some(one.to_owned())];
        for chunk in [1, 3, 100] {
            assert_eq!(rows(window, 1000, "t,x\r\n\r\n1,2\r\nt,x\r\n3,4", chunk), all("t,x\n1,2\n3,4\n"));
            assert_eq!(rows(window, 1000, "{\"x\": 1}\n{\"x\": 2}\n", chunk), all("{\"x\": 1}\n{\"x\": 2}\n"));
        }
    }

    #[test]
    fn rows_stand_under_the_headings_that_came_last_and_no_window_has_rows_under_two() {
        let window = RowWindow { rows: 2, hop: 1 };
        let text = "t,x\n1,2\n3,4\nx,t,y\n5,6,7\n8,9,0\n";
        for chunk in [1, 3, 100] {
            let whole = ["t,x\n1,2\n3,4\n", "x,t,y\n5,6,7\n8,9,0\n"].map(|one| Some(one.to_owned()));
            assert_eq!(rows(window, 1000, text, chunk), whole);
            // Words that name none of the columns are a row that nobody can read, and no headings.
            let broken = Some("t,x\n1,2\nERR,ERR\n".to_owned());
            assert_eq!(rows(window, 1000, "t,x\n1,2\nERR,ERR\n", chunk), [broken]);
            // Rows that no window will have are counted.
            assert_eq!(rows(window, 1000, "t,x\n1,2\nx,t\n", chunk), [None]);
        }
    }

    #[test]
    fn a_wav_file_is_not_heard_as_sound_without_a_header() {
        let window = PcmWindow { rate: 16_000, channels: 1, samples: 20, hop: 20 };
        let file = wav(8000, 2, &[1; 400]);
        for chunk in [5, 12, 1000] {
            let mut pcm = Pcm::new(window, usize::MAX);
            let mut said = Vec::new();
            for bytes in file.chunks(chunk) {
                pcm.push(bytes, &mut |piece| match piece {
                    Piece::Wrong(why) => said.push(why),
                    Piece::Sample(_) | Piece::Skipped => panic!("it is no sound, and why is said"),
                });
            }
            pcm.end(&mut |_| panic!("nothing is held"));
            assert_eq!(said, [IS_A_FILE]);
        }
    }

    #[test]
    fn what_is_too_long_is_skipped_and_never_held() {
        let window = PcmWindow { rate: 8000, channels: 1, samples: 100, hop: 100 };
        assert_eq!(pcm(window, 50, &[0; 400], 7), [None, None]);
        let window = RowWindow { rows: 3, hop: 3 };
        assert_eq!(rows(window, 6, "1\n22222222\n3\n4\n5\n", 4), [None, Some("3\n4\n5\n".to_owned())]);
        let long = format!("{}\n1\n2\n3\n", "9".repeat(LINE_BYTES_MAX + 1));
        assert_eq!(rows(window, usize::MAX, &long, 1000), [None, Some("1\n2\n3\n".to_owned())]);
        // Neither does a stream without any end of line fill memory.
        let mut rows = Rows::new(window, usize::MAX);
        for _ in 0..100 {
            rows.push(&[b'1'; 10_000], &mut |_| panic!("no window"));
        }
        assert!(rows.line.capacity() <= 2 * LINE_BYTES_MAX);
    }
}
