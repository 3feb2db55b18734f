//! With real files, and a fake intake. Most tests pause the clock, so that no scan is waited for.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{SCAN_INTERVAL, run};
use crate::capture::testing::Fake;
use crate::sample::SampleError;
use hedge_config::Fate;

/// From its first marker to its last; no decoder sees it.
const JPEG: &[u8] = &[0xff, 0xd8, 0xff, 0xe0, 0, 4, 1, 2, 0xff, 0xd9];

/// The same of a PNG: header and end, without checksums.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\x01IHDR!....\0\0\0\0IEND....";

struct Place {
    _root: tempfile::TempDir,
    folder: PathBuf,
    fake: Arc<Fake>,
    stop: CancellationToken,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("in");
        std::fs::create_dir(&folder).expect("made");
        Self { _root: root, folder, fake: Arc::default(), stop: CancellationToken::new() }
    }

    fn write(&self, name: &str, content: &[u8]) {
        std::fs::write(self.folder.join(name), content).expect("written");
    }

    /// A file written `age` seconds ago.
    fn write_aged(&self, name: &str, age: u64) {
        self.write(name, JPEG);
        let file = std::fs::File::options().write(true).open(self.folder.join(name)).expect("there");
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 - age)).expect("set");
    }

    fn start(&self, interval: Option<Duration>, after: Fate) -> JoinHandle<()> {
        let answered = self.folder.with_extension("answered");
        tokio::spawn(run(self.fake.source(interval), self.folder.clone(), after, answered, self.stop.clone()))
    }

    async fn until_there(&self, path: &str) {
        let wanted = self.folder.join(path);
        // A move follows its answer without another sign.
        let there = async {
            while !wanted.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let given_up = self.fake.until(path, |_| false);
        tokio::select! { () = there => {}, () = given_up => {} }
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.join(folder)).expect("readable");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn contents(&self) -> Vec<Vec<u8>> {
        self.fake.samples.lock().expect("not poisoned").iter().map(|sample| sample.bytes.to_vec()).collect()
    }

    fn references(&self) -> Vec<String> {
        let samples = self.fake.samples.lock().expect("not poisoned");
        samples.iter().filter_map(|sample| sample.reference.clone()).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn files_that_were_there_before_are_answered_oldest_first_and_moved() {
    let place = Place::new();
    place.write_aged("b", 300);
    place.write_aged("c", 100);
    place.write_aged("a", 200);
    let running = place.start(None, Fate::Move);
    place.until_there("done/c").await;
    assert_eq!(place.references(), ["b", "a", "c"]);
    assert_eq!(place.names("done"), ["a", "b", "c"]);
    place.stop.cancel();
    running.await.expect("no panic");
}

#[tokio::test]
async fn a_file_is_taken_as_soon_as_it_is_closed_or_moved_in_and_not_before() {
    let place = Place::new();
    let running = place.start(None, Fate::Delete);
    place.fake.until("the watch", |fake| fake.said("watching")).await;
    let started = tokio::time::Instant::now();
    let mut slow = std::fs::File::create(place.folder.join("slow.jpg")).expect("made");
    slow.write_all(&JPEG[..4]).expect("half of it");
    place.write("moved.part", JPEG);
    std::fs::rename(place.folder.join("moved.part"), place.folder.join("moved.jpg")).expect("moved");
    place.fake.until("the moved file", |fake| fake.sample_count() == 1).await;
    assert_eq!(place.references(), ["moved.jpg"]);
    slow.write_all(&JPEG[4..]).expect("the rest");
    drop(slow);
    place.fake.until("the closed file", |fake| fake.sample_count() == 2).await;
    assert_eq!(&place.fake.samples.lock().expect("not poisoned")[1].bytes[..], JPEG);
    assert!(started.elapsed() < SCAN_INTERVAL, "events, not scans, brought them");
    place.stop.cancel();
    running.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_a_sample_goes_to_failed_with_the_reason() {
    let place = Place::new();
    place.write("text.jpg", b"just text");
    place.write("large.jpg", &[&[0xff; 3][..], &vec![0; 200_000]].concat());
    place.write("empty.jpg", b"");
    place.write("torn.jpg", JPEG);
    place.fake.decide(|_| Err(SampleError::Unusable("the picture ends too early".to_owned())));
    let running = place.start(None, Fate::Move);
    for (name, reason) in [
        ("text", "neither a JPEG nor a PNG"),
        ("large", "200003 bytes are more than the 100000"),
        ("empty", "the file is empty"),
        ("torn", "the picture ends too early"),
    ] {
        place.until_there(&format!("failed/{name}.jpg.error.txt")).await;
        let note = place.folder.join(format!("failed/{name}.jpg.error.txt"));
        while std::fs::read_to_string(&note).expect("a note").is_empty() {
            tokio::task::yield_now().await;
        }
        let note = std::fs::read_to_string(note).expect("a note");
        assert!(note.contains(reason), "{name}: {note}");
        assert!(place.folder.join(format!("failed/{name}.jpg")).exists());
    }
    place.write("good.jpg", JPEG);
    place.fake.decide(|_| Ok(()));
    place.until_there("done/good.jpg").await;
    place.stop.cancel();
    running.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn links_pipes_folders_and_unfinished_names_are_left_alone() {
    let place = Place::new();
    place.write("good.jpg", JPEG);
    place.write(".hidden.jpg", JPEG);
    place.write("a.part", JPEG);
    std::fs::create_dir(place.folder.join("folder.jpg")).expect("made");
    std::os::unix::fs::symlink("good.jpg", place.folder.join("link.jpg")).expect("linked");
    let pipe = place.folder.join("pipe.jpg");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let odd = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"od\xffd.jpg");
    std::fs::write(place.folder.join(odd), JPEG).expect("written");
    let running = place.start(None, Fate::Delete);
    place.fake.until("both files", |fake| fake.sample_count() == 2).await;
    let mut references = place.references();
    references.sort();
    assert_eq!(references, ["good.jpg", "od\u{fffd}d.jpg"]);
    place.write("last.jpg", JPEG);
    place.fake.until("a later one", |fake| fake.sample_count() == 3).await;
    place.stop.cancel();
    running.await.expect("no panic");
    let left = place.names("");
    for name in [".hidden.jpg", "a.part", "folder.jpg", "link.jpg", "pipe.jpg"] {
        assert!(left.iter().any(|other| other == name), "{name} is gone");
    }
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_vanishes_is_said_so_and_watched_again_when_it_returns() {
    let place = Place::new();
    let running = place.start(None, Fate::Move);
    place.fake.until("the watch", |fake| fake.said("watching")).await;
    std::fs::rename(&place.folder, place.folder.with_extension("away")).expect("moved away");
    place.fake.until("the news", |fake| fake.said("does not exist; watching for it to return")).await;
    std::fs::create_dir(&place.folder).expect("made again");
    place.write("a.jpg", JPEG);
    place.until_there("done/a.jpg").await;
    // Replaced between two looks, so that it was never missing.
    std::fs::rename(&place.folder, place.folder.with_extension("again")).expect("moved away");
    std::fs::create_dir(&place.folder).expect("made again");
    place.write("b.jpg", JPEG);
    place.until_there("done/b.jpg").await;
    place.stop.cancel();
    running.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn files_wait_while_there_is_no_room_and_none_fails_for_it() {
    let place = Place::new();
    place.write_aged("a", 20);
    place.write_aged("b", 10);
    let tries = AtomicU64::new(0);
    place.fake.decide(move |_| match tries.fetch_add(1, Ordering::Relaxed) {
        0 => Err(SampleError::Overloaded("m".to_owned())),
        1 => Err(SampleError::ModelFailed { model: "m".to_owned(), reason: "no library".into() }),
        _ => Ok(()),
    });
    let running = place.start(None, Fate::Move);
    place.until_there("done/b").await;
    assert_eq!(place.references(), ["a", "a", "a", "b"]);
    assert!(place.fake.said("than it can answer soon") && place.fake.said("no library"));
    assert!(!place.folder.join("failed").exists());
    place.stop.cancel();
    running.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_stop_in_the_middle_leaves_the_file_for_the_next_start() {
    let mut place = Place::new();
    place.fake = Arc::new(Fake::stuck());
    place.write("a.jpg", JPEG);
    let running = place.start(None, Fate::Move);
    place.fake.until("the sample", |fake| fake.sample_count() == 1).await;
    place.stop.cancel();
    running.await.expect("no panic");
    assert!(place.folder.join("a.jpg").exists());
    (place.fake, place.stop) = (Arc::default(), CancellationToken::new());
    let running = place.start(None, Fate::Move);
    place.until_there("done/a.jpg").await;
    place.stop.cancel();
    running.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn with_an_interval_the_newest_file_is_answered_and_the_others_are_passed_over() {
    let place = Place::new();
    place.write_aged("a", 30);
    place.write_aged("b", 10);
    place.write_aged("c", 20);
    let running = place.start(Some(Duration::from_secs(60)), Fate::Move);
    place.until_there("done/c").await;
    place.until_there("done/a").await;
    assert_eq!(place.references(), ["b"]);
    assert_eq!(place.fake.skipped.load(Ordering::Relaxed), 2);
    assert_eq!(place.names("done"), ["a", "b", "c"]);
    place.stop.cancel();
    running.await.expect("no panic");
}

#[tokio::test]
async fn a_name_written_again_is_another_sample_and_nothing_is_overwritten() {
    let place = Place::new();
    let running = place.start(None, Fate::Move);
    place.fake.until("the watch", |fake| fake.said("watching")).await;
    place.write("latest.jpg", JPEG);
    place.until_there("done/latest.jpg").await;
    place.write("latest.jpg", &[JPEG, b"2"].concat());
    place.until_there("done/latest.2.jpg").await;
    let references = place.references();
    assert_eq!(references[0], "latest.jpg");
    assert!(references[1].starts_with("latest.jpg#"), "{references:?}");
    place.stop.cancel();
    running.await.expect("no panic");
}

#[tokio::test]
async fn pictures_of_one_name_and_one_time_are_each_answered() {
    for restart in [false, true] {
        let mut place = Place::new();
        let mut running = place.start(None, Fate::Move);
        let mut contents: Vec<Vec<u8>> = Vec::new();
        for (picture, done) in [b"r", b"b", b"g", b"r", b"r"].into_iter().zip(["", ".2", ".3", ".4", ".5"]) {
            place.fake.until("the watch", |fake| fake.said("watching")).await;
            let hidden = place.folder.join(".x");
            std::fs::write(&hidden, [JPEG, picture].concat()).expect("written");
            let file = std::fs::File::options().write(true).open(&hidden).expect("there");
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(315_532_800)).expect("set");
            std::fs::rename(hidden, place.folder.join("cam.jpg")).expect("moved");
            place.until_there(&format!("done/cam{done}.jpg")).await;
            if restart {
                contents.extend(place.contents());
                place.stop.cancel();
                running.await.expect("no panic");
                (place.fake, place.stop) = (Arc::default(), CancellationToken::new());
                running = place.start(None, Fate::Move);
            }
        }
        contents.extend(place.contents());
        let expected: Vec<Vec<u8>> = [b"r", b"b", b"g", b"r", b"r"].map(|picture| [JPEG, picture].concat()).into();
        assert_eq!(contents, expected, "restarted: {restart}");
        let references = place.references();
        let different: std::collections::BTreeSet<&String> = references.iter().collect();
        assert_eq!(different.len(), references.len(), "{references:?}");
        place.stop.cancel();
        running.await.expect("no panic");
    }
}

#[tokio::test(start_paused = true)]
async fn a_picture_whose_writer_pauses_is_answered_once_and_whole() {
    for (picture, pause) in [(JPEG, 16), (PNG, 16), (JPEG, 100), (PNG, 100)] {
        for at in 0..picture.len() {
            let place = Place::new();
            let running = place.start(None, Fate::Move);
            place.fake.until("the watch", |fake| fake.said("watching")).await;
            let mut writer = std::fs::File::create(place.folder.join("slow")).expect("made");
            writer.write_all(&picture[..at]).expect("half of it");
            let fake = place.fake.clone();
            // What a decoder would say of half a picture.
            place.fake.decide(move |sample| match sample.bytes.len() == picture.len() {
                true => Ok(()),
                false => Err(SampleError::Unusable(format!("half a picture; {}", fake.sample_count()))),
            });
            tokio::time::sleep(Duration::from_secs(pause)).await;
            assert_eq!(place.folder.join("slow").exists(), pause == 16, "{at} bytes for {pause} s");
            writer.write_all(&picture[at..]).expect("the rest");
            place.until_there("done/slow").await;
            let contents = place.contents();
            assert_eq!(contents.last().map(Vec::as_slice), Some(picture), "while its writer still has it open");
            drop(writer);
            assert!(contents.iter().filter(|content| *content == picture).count() == 1);
            assert!(pause == 16 || place.names("failed").is_empty(), "{:?}", place.names("failed"));
            place.stop.cancel();
            running.await.expect("no panic");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_written_to_after_it_failed_is_looked_at_again_also_after_a_restart() {
    let mut place = Place::new();
    place.write("text.jpg", b"no picture");
    place.write("more.jpg", b"no picture");
    let mut running = place.start(None, Fate::Move);
    for name in ["text", "more"] {
        place.until_there(&format!("failed/{name}.jpg.error.txt")).await;
    }
    std::fs::write(place.folder.join("failed/text.jpg"), JPEG).expect("put right");
    place.until_there("done/text.jpg").await;
    place.stop.cancel();
    running.await.expect("no panic");
    std::fs::write(place.folder.join("failed/more.jpg"), JPEG).expect("put right");
    let note = std::fs::File::options().write(true).open(place.folder.join("failed/more.jpg.error.txt"));
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    note.expect("there").set_modified(long_ago).expect("set");
    place.stop = CancellationToken::new();
    running = place.start(None, Fate::Move);
    place.until_there("done/more.jpg").await;
    assert!(place.names("failed").is_empty(), "{:?}", place.names("failed"));
    place.stop.cancel();
    running.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn what_takes_the_place_of_a_file_while_it_is_answered_is_a_sample_of_its_own() {
    for in_place in [true, false] {
        for after in [Fate::Move, Fate::Delete] {
            let mut place = Place::new();
            place.fake = Arc::new(Fake::stuck());
            let running = place.start(None, after);
            place.write("cam.jpg", JPEG);
            place.fake.until("the first", |fake| fake.sample_count() == 1).await;
            let second = [JPEG, b"2"].concat();
            if in_place {
                place.write("cam.jpg", &second);
            } else {
                place.write(".x", &second);
                std::fs::rename(place.folder.join(".x"), place.folder.join("cam.jpg")).expect("moved");
            }
            place.fake.open();
            place.fake.until("the second", |fake| fake.sample_count() == 2).await;
            assert_eq!(place.contents(), [JPEG.to_vec(), second]);
            place.stop.cancel();
            running.await.expect("no panic");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_its_writer_adds_to_an_answered_file_is_a_sample_of_its_own() {
    let place = Place::new();
    let running = place.start(None, Fate::Move);
    place.fake.until("the watch", |fake| fake.said("watching")).await;
    let mut writer = std::fs::File::create(place.folder.join("cam.jpg")).expect("made");
    writer.write_all(JPEG).expect("a whole picture");
    place.until_there("done/cam.jpg").await;
    writer.write_all(b"more").expect("written");
    place.fake.until("the second", |fake| fake.sample_count() == 2).await;
    assert_eq!(place.contents(), [JPEG.to_vec(), [JPEG, b"more"].concat()]);
    place.stop.cancel();
    running.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_file_answered_but_not_moved_is_not_answered_again_after_a_restart() {
    let mut place = Place::new();
    place.write("done", b"a file where the folder should be");
    place.write_aged("a.jpg", 10);
    let running = place.start(None, Fate::Move);
    place.fake.until("the trouble", |fake| fake.said("cannot be moved away")).await;
    place.stop.cancel();
    running.await.expect("no panic");
    std::fs::remove_file(place.folder.join("done")).expect("put right");
    // Whoever puts right who owns the files changes how they look.
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(place.folder.join("a.jpg"), std::fs::Permissions::from_mode(0o600)).expect("set");
    (place.fake, place.stop) = (Arc::default(), CancellationToken::new());
    let running = place.start(None, Fate::Move);
    place.until_there("done/a.jpg").await;
    assert_eq!(place.references(), Vec::<String>::new());
    // The same once more is a picture of its own.
    place.write_aged("a.jpg", 10);
    place.until_there("done/a.2.jpg").await;
    assert_eq!(place.references(), ["a.jpg"]);
    place.stop.cancel();
    running.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_moved_away_is_answered_once() {
    let place = Place::new();
    place.write("done", b"a file where the folder should be");
    place.write_aged("a.jpg", 10);
    let running = place.start(None, Fate::Move);
    place.fake.until("the trouble", |fake| fake.said("cannot be moved away")).await;
    place.write("b.jpg", JPEG);
    place.fake.until("the other file", |fake| fake.sample_count() == 2).await;
    place.stop.cancel();
    running.await.expect("no panic");
    assert_eq!(place.references(), ["a.jpg", "b.jpg"]);
}

#[test]
fn unfinished_and_hidden_names_are_not_wanted() {
    assert!(super::files::is_wanted("a.jpg".as_ref()));
    for left_alone in [".a.jpg", "a.jpg.part", "a.tmp", "a.jpg~", "done", "failed"] {
        assert!(!super::files::is_wanted(Path::new(left_alone).as_os_str()), "{left_alone}");
    }
}
