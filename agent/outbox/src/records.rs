//! Any bytes as a segment of the log, and as an entry of the queue's index.

use std::io::{self, IoSlice};

use super::block::{Fields, decode, encode};
use super::disk::SegmentFile;
use super::log::reader::{Found, Scan, read_head, read_header, read_payload};
use super::log::record::{HEAD_BYTES, MAGIC, Seal};
use super::log::segment::{FILE_HEADER_BYTES, FileHeader, Opening};

struct Memory(Vec<u8>);

impl SegmentFile for Memory {
    fn append(&mut self, _: &mut [IoSlice<'_>]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn cut(&mut self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let bytes = into.len().min(self.0.len() - from);
        into[..bytes].copy_from_slice(&self.0[from..from + bytes]);
        Ok(bytes)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
}

/// The slots of a block of the queue, one after the other.
pub fn queue_index(bytes: &[u8]) {
    let mut fields = Fields(bytes);
    while let Some((slot, outcome)) = decode(&mut fields) {
        let mut written = Vec::new();
        encode(&slot, outcome, &mut written);
        let mut again = Vec::new();
        if let Some((slot, outcome)) = decode(&mut Fields(&written)) {
            encode(&slot, outcome, &mut again);
        }
        assert_eq!(again, written, "it does not read back");
    }
}

/// As it is, and with a file header and a seal on every head, because no chance finds a CRC.
pub fn log(bytes: &[u8]) {
    scan(Memory(bytes.to_vec()));
    let header = FileHeader { segment: 1, salt: 7 };
    let mut sealed = header.encode().to_vec();
    sealed.extend_from_slice(bytes);
    let mut at = FILE_HEADER_BYTES;
    while let Some(head) = sealed.get_mut(at..at + HEAD_BYTES) {
        head[..4].copy_from_slice(&MAGIC);
        let seal = Seal { salt: header.salt, offset: u32::try_from(at).unwrap_or(u32::MAX) };
        let crc = seal.crc(&head[..HEAD_BYTES - 4]);
        head[HEAD_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        // What the head says of its length decides where the next one is; a short one is walked over here.
        at += HEAD_BYTES + usize::from(head[8]) + usize::from(head[12]);
    }
    scan(Memory(sealed));
}

/// Every byte is part of a record or of rubbish, once.
fn scan(file: Memory) {
    let Ok(Opening::Fine(header)) = FileHeader::read(&file, 1) else { return };
    let Ok(mut scan) = Scan::new(&file, header, 0) else { return };
    let mut seen = FILE_HEADER_BYTES as u64;
    while let Ok(Some(found)) = scan.next() {
        match found {
            Found::Record { head, offset } => {
                assert_eq!(u64::from(offset), seen, "a stretch was left out");
                seen += head.record_bytes();
                let seal = Seal { salt: header.salt, offset };
                let again = read_head(&file, header, offset).map(|again| again.encode(seal));
                assert_eq!(again.ok(), Some(head.encode(seal)), "it does not read back");
                drop(read_header(&file, &head, offset));
                drop(read_payload(&file, &head, offset));
            }
            Found::Rubbish { bytes, .. } => {
                assert!(bytes > 0);
                seen += bytes;
            }
        }
    }
    assert_eq!(seen, (file.0.len() as u64).max(FILE_HEADER_BYTES as u64), "a stretch was left out");
}
