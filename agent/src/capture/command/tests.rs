//! With real programs, and a fake intake.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::newest::Newest;
use super::{answer, run};
use crate::capture::Source;
use crate::capture::testing::Fake;
use crate::sample::SampleError;
use hedge_config::{PcmWindow, RowWindow, SourceConfig, StreamFormat};
use hedge_inference::ContentType;

/// A whole picture as printf prints it; the smallest that is read as JPEG.
const PICTURE: &str = r"\377\330\377\332\000\002ab\377\331";

fn picture(number: u8) -> Bytes {
    Bytes::from(vec![0xff, 0xd8, 0xff, 0xe0, number])
}

/// Runs a script as a source until `until` holds, then stops it.
async fn run_until(script: &str, format: StreamFormat, what: &str, holds: impl Fn(&Fake) -> bool) -> Arc<Fake> {
    let (fake, stop) = (Arc::new(Fake::default()), CancellationToken::new());
    let command = vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()];
    let running = tokio::spawn(run(fake.source(None), command, format, stop.clone()));
    fake.until(what, holds).await;
    stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(60), running).await;
    ended.expect("it stops").expect("no panic");
    fake
}

#[tokio::test]
async fn pictures_of_a_running_program_are_answered() {
    let script = format!("printf '{PICTURE}'; sleep 1000");
    let fake = run_until(&script, StreamFormat::Mjpeg, "a picture", |fake| fake.sample_count() == 1).await;
    let sample = fake.samples.lock().expect("not poisoned")[0].clone();
    assert!(sample.frame, "the answers to the frames before it say something of this one's");
    let bytes = sample.bytes;
    assert_eq!(&bytes[..], b"\xff\xd8\xff\xda\x00\x02ab\xff\xd9");
    let script = r"printf '\000\000\000\004\377\330\377z'; sleep 1000";
    run_until(script, StreamFormat::LengthDelimited, "a sample", |fake| fake.sample_count() == 1).await;
}

#[tokio::test]
async fn a_picture_that_is_not_whole_is_counted_as_skipped_and_said() {
    let (fake, stop) = (Arc::new(Fake::default()), CancellationToken::new());
    fake.decide(|_| Err(SampleError::Unusable("the picture data ends early".to_owned())));
    let command = vec!["sh".to_owned(), "-c".to_owned(), format!("printf '{PICTURE}'; sleep 1000")];
    let running = tokio::spawn(run(fake.source(None), command, StreamFormat::Mjpeg, stop.clone()));
    fake.until("a skipped picture", |fake| fake.skipped.load(Ordering::Relaxed) == 1).await;
    assert!(fake.said("a picture got no answer: the picture data ends early"));
    stop.cancel();
    running.await.expect("no panic");
}

#[tokio::test]
async fn a_program_that_dies_is_named_with_its_last_words_and_started_again() {
    let script = format!("printf '{PICTURE}'; echo 'camera unplugged' >&2; exit 3");
    let fake = run_until(&script, StreamFormat::Mjpeg, "a second run", |fake| fake.sample_count() >= 2).await;
    let text = "`sh` is not running: it ended with exit code 3; starting it again in 1 s: camera unplugged";
    assert!(fake.said(text), "{:?}", fake.states.lock().expect("not poisoned"));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_said_so() {
    let (fake, stop) = (Arc::new(Fake::default()), CancellationToken::new());
    let command = vec!["/nonexistent/camera".to_owned()];
    let running = tokio::spawn(run(fake.source(None), command, StreamFormat::Mjpeg, stop.clone()));
    fake.until("the reason", |fake| fake.said("cannot be started: No such file")).await;
    stop.cancel();
    running.await.expect("no panic");
}

#[tokio::test]
async fn a_flood_on_both_outputs_neither_blocks_the_program_nor_fills_memory() {
    // 100 MB of garbage on standard output, and no end of it on standard error.
    let script = format!("yes >&2 & head -c 100000000 /dev/zero; printf '{PICTURE}'; yes");
    let fake =
        run_until(&script, StreamFormat::Mjpeg, "a picture behind the flood", |fake| fake.sample_count() > 0).await;
    assert!(fake.skipped.load(Ordering::Relaxed) >= 1);
    assert!(fake.said("no whole picture within the limit so far"));
}

#[tokio::test]
async fn pictures_are_read_while_the_model_is_busy_and_the_newest_waits() {
    let fake = Arc::new(Fake::stuck());
    let stop = CancellationToken::new();
    let script = format!("for i in 1 2 3 4 5; do printf '{PICTURE}'; done; echo read >&2; sleep 1000");
    let command = vec!["sh".to_owned(), "-c".to_owned(), script];
    let running = tokio::spawn(run(fake.source(None), command, StreamFormat::Mjpeg, stop.clone()));
    // One is being answered or waits; of the others all but the newest are gone.
    fake.until("skipped pictures", |fake| fake.skipped.load(Ordering::Relaxed) >= 3).await;
    stop.cancel();
    running.await.expect("no panic");
    assert!(fake.sample_count() <= 1);
}

#[tokio::test(start_paused = true)]
async fn an_interval_takes_the_newest_picture_each_time() {
    let fake = Arc::new(Fake::default());
    let source = fake.source(Some(Duration::from_secs(10)));
    let newest = Newest::default();
    let camera = async {
        for number in 0..25 {
            newest.put(picture(number));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        newest.close();
    };
    let mut asked = source.intake.snapshots.register(&source.name);
    tokio::join!(camera, answer(&source, StreamFormat::Mjpeg, &newest, &mut asked));
    let samples = fake.samples.lock().expect("not poisoned");
    let numbers: Vec<u8> = samples.iter().map(|sample| sample.bytes[4]).collect();
    assert_eq!(numbers.len(), 4);
    assert!(matches!(numbers[..], [0, 9 | 10, 19 | 20, 24]), "{numbers:?}");
}

#[tokio::test(start_paused = true)]
async fn a_picture_that_is_asked_for_does_not_wait_for_the_interval() {
    let fake = Arc::new(Fake::default());
    let source = fake.source(Some(Duration::from_secs(1000)));
    let newest = Newest::default();
    let mut asked = fake.snapshots.register(&source.name);
    let camera = async {
        newest.put(picture(0));
        tokio::time::sleep(Duration::from_secs(5)).await;
        newest.put(picture(1));
        let answered = fake.snapshots.ask(&source.name).await.expect("an answer");
        assert_eq!(answered.source, source.name.as_str());
        newest.close();
    };
    tokio::join!(camera, answer(&source, StreamFormat::Mjpeg, &newest, &mut asked));
    let numbers: Vec<u8> = fake.samples.lock().expect("not poisoned").iter().map(|sample| sample.bytes[4]).collect();
    assert_eq!(numbers, [0, 1]);
    drop(asked);
    let gone = fake.snapshots.ask(&source.name).await.expect_err("nobody is there");
    assert!(gone.contains("kind `command`"), "{gone}");
}

/// Of one that must bring something new every so many seconds.
async fn restarts(script: &str, quiet_after_s: u32, what: &str, holds: impl Fn(&Fake) -> bool) -> Arc<Fake> {
    restarts_of(StreamFormat::Mjpeg, script, quiet_after_s, what, holds).await
}

async fn restarts_of(
    format: StreamFormat,
    script: &str,
    quiet_after_s: u32,
    what: &str,
    holds: impl Fn(&Fake) -> bool,
) -> Arc<Fake> {
    let source = format!("name = \"cam\"\nkind = \"command\"\ncommand = [\"sh\"]\nquiet_after_s = {quiet_after_s}");
    let quiet = toml::from_str::<SourceConfig>(&source).expect("valid").quiet_after();
    let (fake, stop) = (Arc::new(Fake::default()), CancellationToken::new());
    let command = vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()];
    let source = Source { quiet, ..fake.source(None) };
    let running = tokio::spawn(run(source, command, format, stop.clone()));
    fake.until(what, holds).await;
    stop.cancel();
    running.await.expect("no panic");
    fake
}

#[tokio::test]
async fn a_program_that_gives_no_picture_is_started_again() {
    let fake = restarts("sleep 1000", 1, "two starts", |fake| {
        fake.states.lock().expect("not poisoned").iter().filter(|state| state.contains("is running")).count() == 3
    });
    let fake = fake.await;
    assert!(fake.said("it gave no picture for 1 s and was ended; starting it again in 1 s"));
    assert!(fake.said("it gave no picture for 2 s and was ended"), "it is given twice the time");
}

#[tokio::test]
async fn a_program_that_gives_the_same_picture_for_ever_is_started_again() {
    let script = format!("while printf '{PICTURE}'; do sleep 0.1; done");
    let fake = restarts(&script, 1, "the reason", |fake| fake.said("is not running")).await;
    assert!(fake.said("it gave the same picture again and again for"), "{:?}", fake.states.lock());
    let seen = fake.seen.lock().expect("not poisoned").clone();
    assert!(seen.len() > 2 && seen[0] && !seen[1..].contains(&true), "{seen:?}");
}

#[tokio::test]
async fn a_program_whose_pictures_differ_or_that_may_be_quiet_is_left_alone() {
    let script = r"i=100; while printf '\377\330\377\332\000\002'$i'\377\331'; do i=$((i+1)); sleep 0.1; done";
    let fake = restarts(script, 1, "25 pictures", |fake| fake.seen.lock().expect("not poisoned").len() >= 25).await;
    assert!(!fake.said("is not running"), "{:?}", fake.states.lock());
    let script = format!("while printf '{PICTURE}'; do sleep 0.1; done");
    let fake = restarts(&script, 0, "25 pictures", |fake| fake.seen.lock().expect("not poisoned").len() >= 25).await;
    assert!(!fake.said("is not running"), "{:?}", fake.states.lock());
}

#[tokio::test]
async fn numbers_that_stay_as_they_are_are_no_silence_and_sound_that_does_is() {
    let rows = StreamFormat::Rows(RowWindow { rows: 1, hop: 1 });
    let script = "while echo 21.5; do sleep 0.1; done";
    let fake =
        restarts_of(rows, script, 1, "25 windows", |fake| fake.seen.lock().expect("not poisoned").len() >= 25).await;
    assert!(!fake.said("is not running"), "{:?}", fake.states.lock());
    let sample = fake.samples.lock().expect("not poisoned")[0].clone();
    assert_eq!((sample.content_type, &sample.bytes[..]), (ContentType::Csv, &b"21.5\n"[..]));
    let sound = StreamFormat::Pcm(PcmWindow { rate: 8000, channels: 1, samples: 10, hop: 10 });
    let script = "while head -c 20 /dev/zero; do sleep 0.1; done";
    let fake = restarts_of(sound, script, 1, "the reason", |fake| fake.said("is not running")).await;
    assert!(fake.said("it gave the same window again and again for"), "{:?}", fake.states.lock());
}

#[tokio::test]
async fn sound_that_broke_off_within_a_sample_begins_anew_with_the_next_program() {
    let scratch = tempfile::tempdir().expect("a folder");
    let mark = scratch.path().join("mark");
    let script =
        format!("if [ -e {0} ]; then printf 'abcd'; sleep 1000; else touch {0}; printf 'xyz'; fi", mark.display());
    let sound = StreamFormat::Pcm(PcmWindow { rate: 8000, channels: 1, samples: 2, hop: 2 });
    let fake = run_until(&script, sound, "a window", |fake| fake.sample_count() == 1).await;
    let sample = fake.samples.lock().expect("not poisoned")[0].clone();
    assert_eq!((sample.content_type, &sample.bytes[44..]), (ContentType::Wav, &b"abcd"[..]));
    assert_eq!(fake.skipped.load(Ordering::Relaxed), 1, "what broke off is counted");
}
