//! Text as people save and read it: files of any editor in, an error with its causes in one line out.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::error::Error;

/// What editors on Windows put before UTF-8.
const MARK: &[u8] = "\u{feff}".as_bytes();

/// How a file was saved that is not the text it should be, and what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotText {
    #[error("it is saved as UTF-16; save it as UTF-8")]
    Utf16,
    #[error(
        "line {line} is not UTF-8 text; letters with accents were most likely saved as Latin-1 or Windows-1252: save \
         the file as UTF-8"
    )]
    NotUtf8 { line: usize },
}

/// The bytes of a text file without the byte order mark that some editors put first.
pub fn without_mark(mut bytes: Vec<u8>) -> Result<Vec<u8>, NotText> {
    // UTF-16 has its own mark; without one, every second byte of plain letters is 0.
    let utf16 = matches!(
        bytes.as_slice(),
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] | [0, 1..=255, 0, ..] | [1..=255, 0, 1..=255, 0, ..]
    );
    if utf16 {
        return Err(NotText::Utf16);
    }
    while bytes.starts_with(MARK) {
        bytes.drain(..MARK.len());
    }
    Ok(bytes)
}

/// The text of a file, without its byte order mark.
pub fn text(bytes: Vec<u8>) -> Result<String, NotText> {
    String::from_utf8(without_mark(bytes)?).map_err(|error| {
        let read = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        NotText::NotUtf8 { line: 1 + read.iter().filter(|byte| **byte == b'\n').count() }
    })
}

/// An error and what caused it. A cause that is said already is not said again.
#[must_use]
pub fn in_one_line(error: &(dyn Error + 'static)) -> String {
    core::iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source()).fold(
        String::new(),
        |line, cause| {
            let cause = cause.to_string();
            match line.as_str() {
                "" => cause,
                said if said.contains(&cause) => line,
                said => format!("{said}: {cause}"),
            }
        },
    )
}

/// What all the others that are said came of; `None` if the error has no cause.
#[must_use]
pub fn root_cause(error: &(dyn Error + 'static)) -> Option<String> {
    let causes = core::iter::successors(error.source(), |cause: &&(dyn Error + 'static)| (*cause).source());
    causes.last().map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_any_editor_is_read_without_its_mark_or_says_how_it_was_saved() {
        let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        for (bytes, expected) in [
            ("\u{feff}r\r\ng".as_bytes().to_vec(), Ok("r\r\ng".to_string())),
            ("\u{feff}\u{feff}r".into(), Ok("r".to_string())),
            ("r".into(), Ok("r".to_string())),
            ("".into(), Ok(String::new())),
            (utf16("\u{feff}röhre"), Err(NotText::Utf16)),
            (utf16("red"), Err(NotText::Utf16)),
            ("\u{feff}red".encode_utf16().flat_map(u16::to_be_bytes).collect(), Err(NotText::Utf16)),
            (b"g\nR\xf6hr\n".to_vec(), Err(NotText::NotUtf8 { line: 2 })),
        ] {
            assert_eq!(text(bytes.clone()), expected, "{bytes:x?}");
        }
        // A certificate may have a remark in any encoding before it.
        assert_eq!(without_mark(b"R\xf6hr".to_vec()), Ok(b"R\xf6hr".to_vec()));
    }

    #[test]
    fn an_error_brings_its_causes_and_says_none_twice() {
        #[derive(Debug, thiserror::Error)]
        #[error("{said}")]
        struct Said {
            said: &'static str,
            source: Option<alloc::boxed::Box<Said>>,
        }
        let chain = |said: &[&'static str]| {
            let boxed = |source, said: &&'static str| Some(alloc::boxed::Box::new(Said { said, source }));
            in_one_line(&*said.iter().rev().fold(None, boxed).expect("not empty"))
        };
        assert_eq!(chain(&["cannot read a.txt", "line 1 is not UTF-8"]), "cannot read a.txt: line 1 is not UTF-8");
        assert_eq!(chain(&["cannot read a.txt: gone", "gone"]), "cannot read a.txt: gone");
        assert_eq!(chain(&["gone"]), "gone");
    }
}
