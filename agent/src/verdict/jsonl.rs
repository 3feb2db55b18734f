//! Appends answers to a JSON-lines file, each exactly once whatever happens in between.
//!
//! A line counts once it is on disk. The delivery loop confirms it afterwards; after a crash in between the
//! answer is offered again and recognised by its key among the last lines of the file. So whoever confirms
//! must do so before [`TAIL_BYTES`] more are written. A last line without its newline was torn by a power
//! cut and is cut off.
//!
//! Nothing is appended behind an error: the file is cut back to where it was before, then opened afresh. A file that
//! somebody renamed keeps its lines; into one that was deleted meanwhile nothing counts as written.

use std::collections::{HashSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use hedge_proto::{Answer, CaseId};
use serde::Deserialize;

use super::SinkError;
use hedge_outbox::files::{is_at, is_deleted};

/// How much of the file's end (and of the one before it) is read for keys at start: thousands of answers, while
/// a batch has [`super::BATCH_MAX`].
const TAIL_BYTES: u64 = 4 * 1024 * 1024;

/// The keys remembered while running: more than the tail holds.
const KEYS_MAX: usize = 32 * 1024;

/// Answers as lines of a file that is rotated by size.
pub struct Jsonl {
    file: Arc<Mutex<JsonlFile>>,
}

impl Jsonl {
    /// The file is opened with the first answer, and again after every error.
    #[must_use]
    pub fn new(path: PathBuf, bytes_max: u64) -> Self {
        Self { file: Arc::new(Mutex::new(JsonlFile { path, bytes_max, open: None })) }
    }

    /// Whether the file can be opened; it is made if it is not there.
    pub async fn look(&mut self) -> Result<(), String> {
        self.blocking(|file| file.open().map(drop)).await.map_err(|error| error.to_string())
    }

    /// On disk when it returns.
    pub async fn send(&mut self, answer: &Answer) -> Result<(), SinkError> {
        self.append(vec![line(answer)]).await
    }

    /// Like [`Self::send`] for each, with one sync for all: all are on disk, or none counts.
    pub async fn send_all(&mut self, answers: &[Arc<Answer>]) -> Result<(), SinkError> {
        self.append(answers.iter().map(|answer| line(answer)).collect()).await
    }

    /// Whether the file is known to hold the answer with this idempotency key.
    pub async fn contains(&mut self, idempotency_key: &str) -> Result<bool, SinkError> {
        let key = idempotency_key.to_owned();
        self.blocking(move |file| Ok(file.open()?.keys.contains(&key))).await
    }

    async fn append(&self, lines: Vec<Keyed>) -> Result<(), SinkError> {
        self.blocking(move |file| file.append(lines)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut JsonlFile) -> io::Result<T> + Send + 'static,
    ) -> Result<T, SinkError> {
        let file = self.file.clone();
        let result = tokio::task::spawn_blocking(move || {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            f(&mut file).map_err(|error| format!("cannot write {}: {error}", file.path.display()))
        });
        result.await.unwrap_or_else(|error| Err(error.to_string())).map_err(SinkError::Away)
    }
}

/// One line with its newline, and its key.
struct Keyed {
    key: String,
    text: Vec<u8>,
}

fn line(answer: &Answer) -> Keyed {
    let mut text = hedge_proto::to_json(answer);
    text.push(b'\n');
    Keyed { key: answer.idempotency_key(), text }
}

struct JsonlFile {
    path: PathBuf,
    bytes_max: u64,
    open: Option<Open>,
}

struct Open {
    file: File,
    keys: Keys,
}

impl JsonlFile {
    /// Writes those lines that are not in the file yet.
    fn append(&mut self, lines: Vec<Keyed>) -> io::Result<()> {
        let mut batch = Vec::new();
        let mut keys = Vec::new();
        let open = self.open()?;
        for line in lines {
            if !open.keys.contains(&line.key) && !keys.contains(&line.key) {
                batch.extend(line.text);
                keys.push(line.key);
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        // Somebody may have cut the file short meanwhile, as a rotation in place does.
        let bytes = open.file.metadata()?.len();
        if bytes > 0 && bytes + batch.len() as u64 > self.bytes_max {
            self.rotate()?;
        }
        self.write(&batch)?;
        if self.open.as_ref().is_some_and(|open| is_deleted(&open.file)) {
            self.open = None;
            self.write(&batch)?;
        }
        let open = self.open()?;
        keys.into_iter().for_each(|key| open.keys.remember(key));
        Ok(())
    }

    /// All of it is on disk, or the file is as it was.
    fn write(&mut self, batch: &[u8]) -> io::Result<()> {
        let open = self.open()?;
        let bytes = open.file.metadata()?.len();
        match open.file.write_all(batch).and_then(|()| open.file.sync_data()) {
            Ok(()) => Ok(()),
            Err(error) => {
                // What a failed sync left in memory may never reach the disk, so it must not be found there later.
                let cut = open.file.set_len(bytes);
                self.open = None;
                cut.and(Err(error))
            }
        }
    }

    /// The open file; opened again if someone moved or deleted it.
    fn open(&mut self) -> io::Result<&mut Open> {
        if self.open.as_ref().is_some_and(|open| !is_at(&open.file, &self.path)) {
            self.open = None;
        }
        match self.open.take() {
            Some(open) => Ok(self.open.insert(open)),
            None => {
                let open = Open::new(&self.path)?;
                Ok(self.open.insert(open))
            }
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        std::fs::rename(&self.path, before(&self.path))?;
        let (file, _) = open_for_append(&self.path)?;
        self.open = Some(Open { file, keys: open.keys });
        Ok(())
    }
}

impl Open {
    fn new(path: &Path) -> io::Result<Self> {
        let (mut file, bytes) = open_for_append(path)?;
        cut_torn_line(&mut file, bytes)?;
        let mut keys = Keys::default();
        match File::open(before(path)) {
            Ok(mut earlier) => keys.read_tail(&mut earlier)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        keys.read_tail(&mut file)?;
        // Lines written before the crash count from now on, so they must be on disk.
        file.sync_data()?;
        Ok(Self { file, keys })
    }
}

/// Whether the file, or one of its name in its folder, can be written. Nothing is touched: another agent may use it.
pub(super) fn appendable(path: &Path) -> Result<(), String> {
    let told = |error: &dyn std::fmt::Display| format!("cannot write {}: {error}", path.display());
    if path.exists() {
        return OpenOptions::new().append(true).open(path).map(drop).map_err(|error| told(&error));
    }
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::access(folder_of(path), access).map_err(|error| told(&io::Error::from(error)))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The file the last rotation left: `<path>.1`.
fn before(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn open_for_append(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let bytes = file.metadata()?.len();
    if bytes == 0 {
        // The name of a new file must survive a power cut as well.
        File::open(folder_of(path))?.sync_all()?;
    }
    Ok((file, bytes))
}

/// Cuts the file behind its last newline.
fn cut_torn_line(file: &mut File, bytes: u64) -> io::Result<()> {
    let mut end = bytes;
    let mut block = vec![0; 64 * 1024];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let part = &mut block[..usize::try_from(end - start).unwrap_or(0)];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(newline) = part.iter().rposition(|byte| *byte == b'\n') {
            end = start + newline as u64 + 1;
            break;
        }
        end = start;
    }
    if end < bytes {
        tracing::warn!("a torn line of {} bytes was cut off", bytes - end);
        file.set_len(end)?;
        file.sync_data()?;
    }
    Ok(())
}

/// The latest keys.
#[derive(Default)]
struct Keys {
    set: HashSet<Arc<str>>,
    oldest_first: VecDeque<Arc<str>>,
}

impl Keys {
    fn contains(&self, key: &str) -> bool {
        self.set.contains(key)
    }

    fn remember(&mut self, key: String) {
        let key: Arc<str> = key.into();
        if self.set.insert(key.clone()) {
            self.oldest_first.push_back(key);
        }
        if self.oldest_first.len() > KEYS_MAX
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.set.remove(&oldest);
        }
    }

    fn read_tail(&mut self, file: &mut File) -> io::Result<()> {
        #[derive(Deserialize)]
        struct Key {
            id: CaseId,
            revision: u32,
        }
        let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut lines = BufReader::new(file.take(TAIL_BYTES));
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            // The first line may be cut, and others may not be ours.
            if let Ok(Key { id, revision }) = serde_json::from_slice(&line) {
                self.remember(format!("{id}/{revision}"));
            }
            line.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing::{answer, id};

    fn correction(sequence: u64) -> Arc<Answer> {
        Arc::new(answer(id(sequence), "cam", None, 1))
    }

    fn sequences(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).expect("readable");
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines().map(|line| serde_json::from_str::<Answer>(line).expect("an answer").id.key.sequence).collect()
    }

    fn place() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("answers.jsonl");
        (folder, path)
    }

    #[tokio::test]
    async fn an_answer_offered_again_after_a_kill_before_its_confirmation_is_not_written_twice() {
        let (_folder, path) = place();
        Jsonl::new(path.clone(), 1 << 20).send_all(&[correction(1), correction(2)]).await.expect("written");
        // The process died here: both are on disk, neither is confirmed.
        let mut again = Jsonl::new(path.clone(), 1 << 20);
        assert_eq!(again.contains(&correction(2).idempotency_key()).await, Ok(true));
        assert_eq!(again.contains(&correction(3).idempotency_key()).await, Ok(false));
        again.send_all(&[correction(1), correction(2), correction(3), correction(3)]).await.expect("written");
        again.send(&correction(3)).await.expect("recognised");
        assert_eq!(sequences(&path), [1, 2, 3]);
    }

    #[tokio::test]
    async fn a_torn_line_is_cut_off_at_every_length_and_its_answer_written_whole() {
        let (_folder, path) = place();
        Jsonl::new(path.clone(), 1 << 20).send(&correction(1)).await.expect("written");
        let first = std::fs::read(&path).expect("readable");
        let second = line(&correction(2)).text;
        for torn in 1..second.len() {
            std::fs::write(&path, [&first[..], &second[..torn]].concat()).expect("torn");
            let mut sink = Jsonl::new(path.clone(), 1 << 20);
            sink.send_all(&[correction(1), correction(2)]).await.expect("written");
            assert_eq!(sequences(&path), [1, 2], "torn after {torn} bytes");
        }
    }

    #[tokio::test]
    async fn keys_are_found_across_a_rotation() {
        let (_folder, path) = place();
        let one = line(&correction(1)).text.len() as u64;
        Jsonl::new(path.clone(), one * 2).send_all(&[correction(1), correction(2)]).await.expect("written");
        let mut sink = Jsonl::new(path.clone(), one * 2);
        sink.send(&correction(3)).await.expect("written");
        assert_eq!((sequences(&before(&path)), sequences(&path)), (vec![1, 2], vec![3]));
        let mut sink = Jsonl::new(path.clone(), one * 3);
        sink.send_all(&[correction(2), correction(3), correction(4)]).await.expect("written");
        assert_eq!((sequences(&before(&path)), sequences(&path)), (vec![1, 2], vec![3, 4]));
    }

    #[tokio::test]
    async fn a_file_moved_away_by_someone_else_is_made_anew() {
        let (folder, path) = place();
        let mut sink = Jsonl::new(path.clone(), 1 << 20);
        sink.send(&correction(1)).await.expect("written");
        std::fs::rename(&path, folder.path().join("elsewhere")).expect("moved");
        sink.send(&correction(2)).await.expect("written");
        assert_eq!(sequences(&path), [2]);
    }

    #[tokio::test]
    async fn a_file_deleted_or_cut_short_by_someone_else_holds_every_later_answer() {
        let (_folder, path) = place();
        let mut sink = Jsonl::new(path.clone(), 1 << 20);
        sink.send(&correction(1)).await.expect("written");
        std::fs::remove_file(&path).expect("deleted");
        sink.send(&correction(2)).await.expect("written");
        assert_eq!(sequences(&path), [2]);
        File::options().write(true).open(&path).and_then(|file| file.set_len(0)).expect("cut short");
        sink.send(&correction(3)).await.expect("written");
        assert_eq!(sequences(&path), [3]);
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_is_tried_again_later() {
        let (folder, _) = place();
        let missing = folder.path().join("missing");
        let mut sink = Jsonl::new(missing.join("answers.jsonl"), 1 << 20);
        assert!(matches!(sink.send(&correction(1)).await, Err(SinkError::Away(_))));
        std::fs::create_dir(&missing).expect("made");
        sink.send(&correction(1)).await.expect("written");
    }
}
