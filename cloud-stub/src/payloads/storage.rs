//! Files named by the SHA-256 sum of what is in them, until their case is on record.
//!
//! A part grows piece by piece in `{sum}.part` and becomes `{sum}` once all of it is there and the sum is right.
//! Every instance that takes cases of the same devices needs the same folder.
//!
//! What nobody finishes or names must not fill the disk: parts are bounded for each address and together, and at a
//! bound those that nobody has gone on with for longest give way. A part that was lost costs its upload, no case.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hedge_proto::Digest;
use sha2::{Digest as _, Sha256};

/// The largest payload: twice what an agent takes over HTTP by default.
pub const PAYLOAD_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What may lie here at once. Payloads on record have left.
const STORAGE_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// What all unfinished payloads may take.
const PARTS_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// What the unfinished payloads from one address may take: the largest, or eight of the largest that agents keep by
/// default. A device sends one at a time; behind one address may be several.
const PARTS_OF_ONE_BYTES_MAX: u64 = PAYLOAD_BYTES_MAX;

/// A part counts for at least this much, so that their number is bounded, too.
const PART_BYTES_MIN: u64 = 1024 * 1024;

/// A part that was gone on with in this time does not give way.
const PART_REST_MIN: Duration = Duration::from_secs(60);

/// What nobody names or goes on with for so long is removed. A device goes on within minutes of its link's return.
const AGE_MAX: Duration = Duration::from_secs(3 * 24 * 3600);

/// Parts that nobody goes on with for so long are removed. A link may be away for an hour or two.
const PART_AGE_MAX: Duration = Duration::from_secs(6 * 3600);

/// The folder.
#[derive(Debug, Clone)]
pub struct Storage {
    dir: PathBuf,
    /// Who began each part; of those from before this start nobody knows it.
    senders: Arc<Mutex<HashMap<PathBuf, IpAddr>>>,
}

/// A part that lies here.
struct Part {
    path: PathBuf,
    bytes: u64,
    rests: Duration,
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
    #[error("the piece does not begin where the {0} bytes that are here end")]
    Elsewhere(u64),
    #[error("the payload has {0} bytes, more than the {PAYLOAD_BYTES_MAX} that are taken")]
    TooLarge(u64),
    #[error("the piece extends beyond the payload's end")]
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
        Ok(Self { dir: dir.to_owned(), senders: Arc::default() })
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
    pub fn take(&self, sum: Digest, from: IpAddr, piece: Piece<'_>) -> Result<Held, PieceError> {
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
        // Before the file is made: a part for which there is no room leaves nothing behind.
        self.make_room(sum, from, end)?;
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

    /// Whether a part may grow to `bytes`; the parts that have rested for longest give way to it.
    fn make_room(&self, sum: Digest, from: IpAddr, bytes: u64) -> Result<(), PieceError> {
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        let mut parts = self.parts()?;
        senders.retain(|path, _| parts.iter().any(|part| part.path == *path));
        let own = self.part(sum);
        parts.retain(|part| part.path != own);
        parts.sort_by_key(|part| part.rests);
        let is_from = |part: &Part| senders.get(&part.path) == Some(&from);
        let fits = |parts: &[Part]| {
            let sum = |parts: &mut dyn Iterator<Item = &Part>| parts.map(|part| part.bytes).sum::<u64>();
            let of_one = sum(&mut parts.iter().filter(|part| is_from(part))) + bytes <= PARTS_OF_ONE_BYTES_MAX;
            (of_one, sum(&mut parts.iter()) + bytes <= PARTS_BYTES_MAX)
        };
        loop {
            let gives_way = match fits(&parts) {
                (true, true) => break,
                (false, _) => parts.iter().rposition(is_from),
                (true, false) => parts.len().checked_sub(1),
            };
            let gone = gives_way.filter(|at| parts[*at].rests >= PART_REST_MIN).ok_or(PieceError::NoRoom)?;
            forget(&parts.remove(gone).path);
        }
        senders.insert(own, from);
        Ok(())
    }

    fn parts(&self) -> io::Result<Vec<Part>> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(crate::wall_ms());
        let mut parts = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let path = entry.path();
            if !is_part(&path) {
                continue;
            }
            match entry.metadata() {
                Ok(metadata) => {
                    let rests = now.duration_since(metadata.modified()?).unwrap_or_default();
                    parts.push(Part { path, bytes: metadata.len().max(PART_BYTES_MIN), rests });
                }
                // Another instance has finished or removed it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(parts)
    }

    /// Removes what nobody has touched for long.
    pub fn prune(&self, now_ms: u64) -> io::Result<()> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(now_ms);
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let age = now.duration_since(entry.metadata()?.modified()?).unwrap_or_default();
            let path = entry.path();
            if age > if is_part(&path) { PART_AGE_MAX } else { AGE_MAX } {
                forget(&path);
            }
        }
        Ok(())
    }

    fn finish(&self, sum: Digest, mut part: File) -> Result<Held, PieceError> {
        part.seek(SeekFrom::Start(0))?;
        // Never whole in memory: several may be finished at once.
        let (mut sha, mut block) = (Sha256::new(), vec![0; 64 * 1024]);
        loop {
            match part.read(&mut block)? {
                0 => break,
                count => sha.update(&block[..count]),
            }
        }
        if Digest(sha.finalize().into()) != sum {
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

fn is_part(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "part")
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

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
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
        assert_eq!(storage.take(sum, HERE, piece(0, 4)).expect("taken"), Held::Part(4));
        assert!(matches!(storage.take(sum, HERE, piece(5, 9)), Err(PieceError::Elsewhere(4))));
        assert_eq!(storage.held(sum).expect("looked"), Held::Part(4));
        assert_eq!(storage.read(sum).expect("looked"), None, "a part is no payload");
        assert_eq!(storage.take(sum, HERE, piece(4, PAYLOAD.len())).expect("taken"), Held::All);
        assert_eq!(storage.read(sum).expect("looked").as_deref(), Some(PAYLOAD));
        assert_eq!(storage.take(sum, HERE, piece(0, 4)).expect("had already"), Held::All);
        storage.remove(sum);
        assert_eq!(storage.held(sum).expect("looked"), Held::Part(0));
    }

    #[test]
    fn another_payload_than_its_name_says_is_never_taken_and_can_be_begun_anew() {
        let (_dir, storage) = storage();
        let sum = Digest::of(PAYLOAD);
        let other = Piece { at: 0, total: 3, bytes: b"abc" };
        assert!(matches!(storage.take(sum, HERE, other), Err(PieceError::WrongSum)));
        assert_eq!(storage.held(sum).expect("looked"), Held::Part(0));
        storage.take(sum, HERE, piece(0, 4)).expect("taken");
        assert_eq!(storage.take(sum, HERE, piece(0, PAYLOAD.len())).expect("anew"), Held::All);
    }

    #[test]
    fn sizes_are_refused_before_anything_is_written() {
        let (_dir, storage) = storage();
        let sum = Digest::of(PAYLOAD);
        let huge = Piece { at: 0, total: PAYLOAD_BYTES_MAX + 1, bytes: b"a" };
        assert!(matches!(storage.take(sum, HERE, huge), Err(PieceError::TooLarge(_))));
        let long = Piece { at: 0, total: 1, bytes: b"ab" };
        assert!(matches!(storage.take(sum, HERE, long), Err(PieceError::TooLong)));
        assert_eq!(storage.bytes().expect("counted"), 0);
    }

    #[test]
    fn what_nobody_goes_on_with_is_removed_after_days() {
        let (_dir, storage) = storage();
        storage.take(Digest::of(PAYLOAD), HERE, piece(0, 4)).expect("taken");
        storage.prune(crate::wall_ms()).expect("pruned");
        assert_eq!(storage.bytes().expect("counted"), 4);
        storage.prune(crate::wall_ms() + 2 * u64::try_from(AGE_MAX.as_millis()).expect("days")).expect("pruned");
        assert_eq!(storage.bytes().expect("counted"), 0);
    }

    /// Begins an upload of a payload of its own, and makes it rest for so long.
    fn begin(storage: &Storage, n: u32, from: IpAddr, bytes: &[u8], rests: Duration) -> Result<Held, PieceError> {
        let sum = Digest::of(&n.to_le_bytes());
        let held = storage.take(sum, from, Piece { at: 0, total: PAYLOAD_BYTES_MAX, bytes })?;
        let part = File::options().write(true).open(storage.part(sum)).expect("a part");
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(crate::wall_ms());
        part.set_modified(now - rests).expect("set");
        Ok(held)
    }

    #[test]
    fn what_one_sender_abandons_is_bounded_and_keeps_no_other_from_sending() {
        let (_dir, storage) = storage();
        let piece = vec![0; 4 * 1024 * 1024];
        let many = 4 * u32::try_from(PARTS_OF_ONE_BYTES_MAX / piece.len() as u64).expect("few");
        let refused = (0..many).filter(|n| begin(&storage, *n, HERE, &piece, Duration::ZERO).is_err()).count();
        assert!(refused > 0 && storage.bytes().expect("counted") <= PARTS_OF_ONE_BYTES_MAX);
        let other = IpAddr::from([192, 0, 2, 1]);
        begin(&storage, many, other, &piece, Duration::ZERO).expect("another has its own share");
    }

    #[test]
    fn a_part_that_rests_gives_way_and_one_that_goes_on_does_not() {
        let (_dir, storage) = storage();
        let half = vec![0; usize::try_from(PARTS_OF_ONE_BYTES_MAX / 2).expect("fits")];
        begin(&storage, 1, HERE, &half, PART_REST_MIN * 2).expect("taken");
        begin(&storage, 2, HERE, &half, Duration::ZERO).expect("taken");
        begin(&storage, 3, HERE, &half, Duration::ZERO).expect("the first gives way");
        let held = |n: u32| storage.held(Digest::of(&n.to_le_bytes())).expect("looked");
        assert_eq!((held(1), held(2)), (Held::Part(0), Held::Part(half.len() as u64)));
        assert!(matches!(begin(&storage, 4, HERE, &half, Duration::ZERO), Err(PieceError::NoRoom)));
    }

    #[test]
    fn parts_are_bounded_in_number() {
        let (_dir, storage) = storage();
        let one = 2 * u32::try_from(PARTS_OF_ONE_BYTES_MAX / PART_BYTES_MIN).expect("few");
        let taken = (0..one).filter(|n| begin(&storage, *n, HERE, b"a", Duration::ZERO).is_ok()).count();
        assert_eq!(taken as u64, PARTS_OF_ONE_BYTES_MAX / PART_BYTES_MIN);
    }
}
