//! Files named by the SHA-256 sum of what is in them, until their case is on record.
//!
//! A part grows piece by piece in `{sum}.part` and becomes `{sum}` once all of it is there and the sum is right.
//! Every instance that takes cases of the same devices needs the same folder.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hedge_proto::Digest;

/// The largest payload: twice what an agent takes over HTTP by default.
pub const PAYLOAD_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What may lie here at once. Payloads on record have left.
const STORAGE_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// What nobody names or goes on with for so long is removed. A device goes on within minutes of its link's return.
const AGE_MAX: Duration = Duration::from_secs(3 * 24 * 3600);

/// The folder.
#[derive(Debug, Clone)]
pub struct Storage {
    dir: PathBuf,
}

/// How much of a payload is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    All,
    /// So many bytes from its beginning.
    Part(u64),
}

/// Why a piece was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PieceError {
    #[error("the piece begins elsewhere than the {0} bytes that are here end")]
    Elsewhere(u64),
    #[error("the payload has {0} bytes, more than the {PAYLOAD_BYTES_MAX} that are taken")]
    TooLarge(u64),
    #[error("the piece goes on beyond the payload's end")]
    TooLong,
    #[error("what has come has another SHA-256 sum; begin again")]
    WrongSum,
    #[error("another upload of the same payload is under way")]
    Busy,
    #[error("too much is waiting here already")]
    NoRoom,
    #[error("the payload cannot be written: {0}")]
    Io(#[from] io::Error),
}

/// A piece of a payload.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// Where in the payload it begins. A piece at 0 begins the payload anew.
    pub at: u64,
    /// How long the whole payload is.
    pub total: u64,
    pub bytes: &'a [u8],
}

impl Storage {
    /// Makes the folder; only this user can look into it.
    pub fn open(dir: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    pub fn held(&self, sum: Digest) -> io::Result<Held> {
        if self.whole(sum).try_exists()? {
            return Ok(Held::All);
        }
        match fs::metadata(self.part(sum)) {
            Ok(metadata) => Ok(Held::Part(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Held::Part(0)),
            Err(error) => Err(error),
        }
    }

    /// Takes the next piece. What was taken whole survives a power cut.
    pub fn take(&self, sum: Digest, piece: Piece<'_>) -> Result<Held, PieceError> {
        if piece.total > PAYLOAD_BYTES_MAX {
            return Err(PieceError::TooLarge(piece.total));
        }
        let end = piece.at + piece.bytes.len() as u64;
        if end > piece.total {
            return Err(PieceError::TooLong);
        }
        if self.whole(sum).try_exists()? {
            return Ok(Held::All);
        }
        let mut part = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(self.part(sum))?;
        match part.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PieceError::Busy),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        if piece.at == 0 {
            part.set_len(0)?;
        }
        let here = part.seek(SeekFrom::End(0))?;
        if here != piece.at {
            return Err(PieceError::Elsewhere(here));
        }
        if self.bytes()? + (piece.total - here) > STORAGE_BYTES_MAX {
            return Err(PieceError::NoRoom);
        }
        part.write_all(piece.bytes)?;
        if end < piece.total {
            return Ok(Held::Part(end));
        }
        self.finish(sum, part)
    }

    /// The whole payload, if it is here.
    pub fn read(&self, sum: Digest) -> io::Result<Option<Vec<u8>>> {
        match File::open(self.whole(sum)) {
            Ok(file) => {
                let mut bytes = Vec::new();
                file.take(PAYLOAD_BYTES_MAX).read_to_end(&mut bytes)?;
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Its case is on record, with the payload.
    pub fn remove(&self, sum: Digest) {
        forget(&self.whole(sum));
    }

    /// Removes what nobody has touched for long.
    pub fn prune(&self, now_ms: u64) -> io::Result<()> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(now_ms);
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let age = now.duration_since(entry.metadata()?.modified()?).unwrap_or_default();
            if age > AGE_MAX {
                forget(&entry.path());
            }
        }
        Ok(())
    }

    fn finish(&self, sum: Digest, mut part: File) -> Result<Held, PieceError> {
        part.seek(SeekFrom::Start(0))?;
        let mut bytes = Vec::new();
        part.read_to_end(&mut bytes)?;
        if Digest::of(&bytes) != sum {
            forget(&self.part(sum));
            return Err(PieceError::WrongSum);
        }
        part.sync_all()?;
        fs::rename(self.part(sum), self.whole(sum))?;
        File::open(&self.dir)?.sync_all()?;
        Ok(Held::All)
    }

    fn bytes(&self) -> io::Result<u64> {
        fs::read_dir(&self.dir)?.try_fold(0, |sum, entry| match entry?.metadata() {
            Ok(metadata) => Ok(sum + metadata.len()),
            // Another instance has taken it away meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(sum),
            Err(error) => Err(error),
        })
    }

    fn whole(&self, sum: Digest) -> PathBuf {
        self.dir.join(sum.to_string())
    }

    fn part(&self, sum: Digest) -> PathBuf {
        self.dir.join(format!("{sum}.part"))
    }
}

fn forget(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("{} cannot be removed: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOAD: &[u8] = b"a large picture";

    fn storage() -> (tempfile::TempDir, Storage) {
        let dir = tempfile::tempdir().expect("a folder");
        let storage = Storage::open(&dir.path().join("payloads")).expect("made");
        (dir, storage)
    }

    fn piece(from: usize, to: usize) -> Piece<'static> {
        Piece { at: from as u64, total: PAYLOAD.len() as u64, bytes: &PAYLOAD[from..to] }
    }

    #[test]
    fn pieces_make_the_whole_and_an_interrupted_upload_goes_on_where_it_was() {
        let (_dir, storage) = storage();
        let sum = Digest::of(PAYLOAD);
        assert_eq!(storage.held(sum).expect("looked"), Held::Part(0));
        assert_eq!(storage.take(sum, piece(0, 4)).expect("taken"), Held::Part(4));
        assert!(matches!(storage.take(sum, piece(5, 9)), Err(PieceError::Elsewhere(4))));
        assert_eq!(storage.held(sum).expect("looked"), Held::Part(4));
        assert_eq!(storage.read(sum).expect("looked"), None, "a part is no payload");
        assert_eq!(storage.take(sum, piece(4, PAYLOAD.len())).expect("taken"), Held::All);
        assert_eq!(storage.read(sum).expect("looked").as_deref(), Some(PAYLOAD));
        assert_eq!(storage.take(sum, piece(0, 4)).expect("had already"), Held::All);
        storage.remove(sum);
        assert_eq!(storage.held(sum).expect("looked"), Held::Part(0));
    }

    #[test]
    fn another_payload_than_its_name_says_is_never_taken_and_can_be_begun_anew() {
        let (_dir, storage) = storage();
        let sum = Digest::of(PAYLOAD);
        let other = Piece { at: 0, total: 3, bytes: b"abc" };
        assert!(matches!(storage.take(sum, other), Err(PieceError::WrongSum)));
        assert_eq!(storage.held(sum).expect("looked"), Held::Part(0));
        storage.take(sum, piece(0, 4)).expect("taken");
        assert_eq!(storage.take(sum, piece(0, PAYLOAD.len())).expect("anew"), Held::All);
    }

    #[test]
    fn sizes_are_refused_before_anything_is_written() {
        let (_dir, storage) = storage();
        let sum = Digest::of(PAYLOAD);
        let huge = Piece { at: 0, total: PAYLOAD_BYTES_MAX + 1, bytes: b"a" };
        assert!(matches!(storage.take(sum, huge), Err(PieceError::TooLarge(_))));
        let long = Piece { at: 0, total: 1, bytes: b"ab" };
        assert!(matches!(storage.take(sum, long), Err(PieceError::TooLong)));
        assert_eq!(storage.bytes().expect("counted"), 0);
    }

    #[test]
    fn what_nobody_goes_on_with_is_removed_after_days() {
        let (_dir, storage) = storage();
        storage.take(Digest::of(PAYLOAD), piece(0, 4)).expect("taken");
        storage.prune(crate::wall_ms()).expect("pruned");
        assert_eq!(storage.bytes().expect("counted"), 4);
        storage.prune(crate::wall_ms() + 2 * u64::try_from(AGE_MAX.as_millis()).expect("days")).expect("pruned");
        assert_eq!(storage.bytes().expect("counted"), 0);
    }
}
