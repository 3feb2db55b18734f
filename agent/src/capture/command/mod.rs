//! A program whose standard output is a camera, a microphone or a sensor: `rpicam-vid --codec mjpeg -o -`,
//! `arecord -t raw -f S16_LE`.
//!
//! Its output is read without pause, so it never blocks; of the samples that the model has no time for, or that
//! come sooner than `interval_ms`, the newest waits and the others are counted as skipped. A program that
//! ends is started again.
//!
//! ```text
//! running ─ends→ waiting (1 s, doubling to 60 s; 1 s again after a stable minute) ─→ running
//!    └─nothing new for too long→ ended; see `silence`
//! ```

mod delimited;
mod mjpeg;
mod newest;
mod silence;
#[cfg(test)]
mod tests;
mod windows;

use std::time::Duration;

use bytes::Bytes;
use hedge_core::clock::doubled;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use self::delimited::Delimited;
use self::mjpeg::Mjpeg;
use self::newest::Newest;
use self::silence::Silence;
use self::windows::{Pcm, Rows};
use super::{Asking, RETRY_WAIT, Source, Taker, passes, sample};
use crate::child::{Child, Use, describe_end};
use crate::sample::NewSample;
use hedge_config::StreamFormat;

const RESTART_WAIT_MIN: Duration = Duration::from_secs(1);
const RESTART_WAIT_MAX: Duration = Duration::from_secs(60);

/// A program that ran for so long is started again without a long wait.
const STABLE: Duration = Duration::from_secs(60);

/// How long the output of an ended program is read on, and an exit awaited after the output's end.
const END_WAIT: Duration = Duration::from_secs(1);

/// Samples are said to be fine again after so long without trouble, so that the state does not flicker.
const TROUBLE_OVER: Duration = Duration::from_secs(10);

const READ_BYTES: usize = 64 * 1024;

/// What a stream is made of.
enum Piece {
    Sample(Bytes),
    /// A sample too large or broken, or a stretch of bytes that is none.
    Skipped,
    /// The stream is not of the format that the configuration names.
    Wrong(&'static str),
}

enum Splitter {
    Mjpeg(Mjpeg),
    Delimited(Delimited),
    Pcm(Pcm),
    Rows(Rows),
}

impl Splitter {
    fn new(format: StreamFormat, bytes_max: usize) -> Self {
        match format {
            StreamFormat::Mjpeg => Self::Mjpeg(Mjpeg::new(bytes_max)),
            StreamFormat::LengthDelimited => Self::Delimited(Delimited::new(bytes_max)),
            StreamFormat::Pcm(window) => Self::Pcm(Pcm::new(window, bytes_max)),
            StreamFormat::Rows(window) => Self::Rows(Rows::new(window, bytes_max)),
        }
    }

    fn push(&mut self, bytes: &[u8], each: &mut impl FnMut(Piece)) {
        match self {
            Self::Mjpeg(stream) => stream.push(bytes, each),
            Self::Delimited(stream) => stream.push(bytes, each),
            Self::Pcm(stream) => stream.push(bytes, each),
            Self::Rows(stream) => stream.push(bytes, each),
        }
    }

    fn end(&mut self, each: &mut impl FnMut(Piece)) {
        match self {
            Self::Mjpeg(stream) => stream.end(each),
            Self::Delimited(stream) => stream.end(each),
            Self::Pcm(stream) => stream.end(each),
            Self::Rows(stream) => stream.end(each),
        }
    }
}

/// Whether these bytes hold a JPEG from its first marker to its last.
pub(super) fn holds_whole_jpeg(bytes: &[u8]) -> bool {
    let mut is_whole = false;
    Mjpeg::new(usize::MAX).push(bytes, &mut |piece| is_whole |= matches!(piece, Piece::Sample(_)));
    is_whole
}

/// What a program writes, in the words of its state.
fn noun(format: StreamFormat) -> &'static str {
    match format {
        StreamFormat::Mjpeg => "picture",
        StreamFormat::LengthDelimited => "sample",
        StreamFormat::Pcm(_) | StreamFormat::Rows(_) => "window",
    }
}

/// Keeps the program running until `stop`.
pub async fn run<I: Taker>(source: Source<I>, command: Vec<String>, format: StreamFormat, stop: CancellationToken) {
    let program = command.first().map_or("the command", String::as_str);
    let mut asked = source.intake.asked(&source.name);
    let mut wait = RESTART_WAIT_MIN;
    // Numbers may stay as they are for long: a room's temperature does.
    let repeats = matches!(format, StreamFormat::Rows(_));
    let silence = Silence::new(source.quiet, noun(format), repeats);
    loop {
        let started = Instant::now();
        silence.begin();
        let (end, last_words) = match Child::spawn(&command, Use::Stdout) {
            Err(error) => (format!("it cannot be started: {error}"), String::new()),
            Ok(mut child) => {
                source.say(format!("`{program}` is running"));
                let silent = tokio::select! {
                    silent = follow(&source, &mut child, format, &silence, &mut asked) => silent,
                    () = stop.cancelled() => {
                        let status = child.stop().await;
                        tracing::debug!("`{program}`: {}", describe_end(&status, ""));
                        return;
                    }
                };
                // The output often ends a moment before the program does.
                let status = match timeout(END_WAIT, child.wait()).await {
                    Ok(status) if silent.is_none() => status,
                    _ => child.stop().await,
                };
                (silent.unwrap_or_else(|| describe_end(&status, "")), child.last_words().await)
            }
        };
        if started.elapsed() >= STABLE {
            wait = RESTART_WAIT_MIN;
        }
        let state = format!("`{program}` is not running: {end}; starting it again in {} s", wait.as_secs());
        source.say_quoting(state, &last_words);
        tokio::select! {
            () = sleep(wait) => {}
            () = stop.cancelled() => return,
        }
        wait = doubled(wait, 1, RESTART_WAIT_MAX);
    }
}

/// Answers the program's samples until its output ends, or brings nothing new for too long; says so then.
async fn follow<I: Taker>(
    source: &Source<I>,
    child: &mut Child,
    format: StreamFormat,
    silence: &Silence,
    asked: &mut mpsc::Receiver<Asking>,
) -> Option<String> {
    let stdout = child.stdout()?;
    let newest = Newest::default();
    let reading = async {
        let mut reading = std::pin::pin!(read(source, stdout, format, silence, &newest));
        let silent = tokio::select! {
            () = &mut reading => None,
            // What it started may hold the output open for ever; only the rest in the pipe is of interest.
            _ = child.wait() => {
                drop(timeout(END_WAIT, reading).await);
                None
            }
            silent = silence.is_too_long() => Some(silent),
        };
        newest.close();
        silent
    };
    tokio::join!(reading, answer(source, format, &newest, asked)).0
}

async fn read<I: Taker>(
    source: &Source<I>,
    mut output: impl AsyncRead + Unpin,
    format: StreamFormat,
    silence: &Silence,
    newest: &Newest,
) {
    let mut splitter = Splitter::new(format, source.sample_bytes_max);
    let mut buffer = vec![0; READ_BYTES];
    let mut seen_any = false;
    let mut said_none = false;
    loop {
        let length = output.read(&mut buffer).await.unwrap_or(0);
        let (mut skipped, mut wrong) = (0, None);
        let mut each = |piece| match piece {
            Piece::Sample(bytes) => {
                seen_any = true;
                source.intake.saw(&source.name, silence.saw(&bytes));
                skipped += u64::from(newest.put(bytes));
            }
            Piece::Skipped => skipped += 1,
            Piece::Wrong(why) => (skipped, wrong) = (skipped + 1, Some(why)),
        };
        if length == 0 {
            splitter.end(&mut each);
        } else {
            splitter.push(buffer.get(..length).unwrap_or_default(), &mut each);
        }
        if skipped > 0 {
            source.intake.count_skipped(&source.name, skipped);
            if !seen_any && !said_none {
                said_none = true;
                let none = || format!("its output holds no whole {} within the limit so far", noun(format));
                source.say(format!("the command is running, but {}", wrong.map_or_else(none, str::to_owned)));
            }
        }
        if length == 0 {
            return;
        }
    }
}

/// Answers the newest sample, again and again, at most one per interval; one that is asked for at once.
async fn answer<I: Taker>(
    source: &Source<I>,
    format: StreamFormat,
    newest: &Newest,
    asked: &mut mpsc::Receiver<Asking>,
) {
    let noun = noun(format);
    let mut trouble: Option<Instant> = None;
    let mut next = Instant::now();
    loop {
        let asking = tokio::select! {
            biased;
            Some(asking) = asked.recv() => Some(asking),
            () = sleep_until(next) => None,
        };
        let Some(bytes) = newest.take().await else { return };
        next = Instant::now() + source.interval.unwrap_or(Duration::ZERO);
        let answered = match sample(&source.name, None, bytes).map(|sample| NewSample { frame: true, ..sample }) {
            Ok(sample) => source.intake.answer(sample).await,
            Err(error) => Err(error),
        };
        if let Some(asking) = asking {
            // Who asked may have given up.
            drop(asking.send(answered.clone().map_err(|error| error.to_string())));
        }
        match answered {
            Ok(_) if trouble.is_some_and(|last| last.elapsed() >= TROUBLE_OVER) => {
                trouble = None;
                source.say(format!("the command is running and its {noun}s are answered again"));
            }
            Ok(_) => {}
            Err(error) => {
                if trouble.replace(Instant::now()).is_none() {
                    source.say(format!("the command is running, but a {noun} got no answer: {error}"));
                }
                // One that is not whole was passed over as well.
                source.intake.count_skipped(&source.name, 1);
                if passes(&error) {
                    next = next.max(Instant::now() + RETRY_WAIT);
                }
            }
        }
    }
}

/// Any bytes as what such a program writes. However they come, in one piece or many, they are cut the same way.
#[cfg(any(test, fuzzing))]
pub(crate) mod splitting {
    use super::*;
    use hedge_config::{PcmWindow, RowWindow};

    const SAMPLE_BYTES_MAX: usize = 300;

    pub fn mjpeg(bytes: &[u8]) {
        check(StreamFormat::Mjpeg, bytes);
    }

    pub fn length_delimited(bytes: &[u8]) {
        check(StreamFormat::LengthDelimited, bytes);
    }

    pub fn pcm(bytes: &[u8]) {
        check(StreamFormat::Pcm(PcmWindow { rate: 8000, channels: 2, samples: 30, hop: 11 }), bytes);
    }

    pub fn rows(bytes: &[u8]) {
        check(StreamFormat::Rows(RowWindow { rows: 4, hop: 3 }), bytes);
    }

    fn check(format: StreamFormat, bytes: &[u8]) {
        let whole = pieces(format, bytes, bytes.len().max(1));
        assert!(whole.iter().flatten().all(|picture| picture.len() <= SAMPLE_BYTES_MAX), "a piece is too large");
        for chunk in [1, 7] {
            assert_eq!(pieces(format, bytes, chunk), whole, "in chunks of {chunk}");
        }
    }

    /// `None` for one that was skipped.
    fn pieces(format: StreamFormat, bytes: &[u8], chunk: usize) -> Vec<Option<Bytes>> {
        let (mut splitter, mut pieces) = (Splitter::new(format, SAMPLE_BYTES_MAX), Vec::new());
        let mut each = |piece| {
            pieces.push(match piece {
                Piece::Sample(picture) => Some(picture),
                Piece::Skipped | Piece::Wrong(_) => None,
            });
        };
        bytes.chunks(chunk).for_each(|bytes| splitter.push(bytes, &mut each));
        splitter.end(&mut each);
        pieces
    }
}
