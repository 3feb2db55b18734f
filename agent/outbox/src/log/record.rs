//! What one record of the log looks like.
//!
//! ```text
//!  0 magic "HdgR"          16 case key             48 count
//!  4 kind                  32 moment, ms           52 CRC-32C of the header
//!  5 tag                   40 sort key, f64        56 CRC-32C of the 56 bytes before
//!  6 life                                          60 header, then payload, then CRC-32C of the payload
//!  7 the tag's high byte
//!  8 header length, 12 payload length; all little-endian, the case key as it sorts
//! ```
//! A record without payload ends after its header. The first CRC is sealed with the segment's salt and the
//! record's own offset: a payload that contains a copy of a log is never mistaken for records.

use bytes::Bytes;
use hedge_core::clock::Moment;
use hedge_proto::CaseKey;

pub(crate) const HEAD_BYTES: usize = 60;
const CRC_BYTES: u64 = 4;
pub(crate) const MAGIC: [u8; 4] = *b"HdgR";

/// The longest header of a case. Ours have about 500 bytes; metadata is at most 1 KiB of them.
pub const HEADER_BYTES_MAX: usize = u16::MAX as usize;

/// What a record says about its case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Here it is: header and payload. `count` tries have failed, `life` times it was queued again.
    Case = 1,
    /// `count` tries have failed in its life `life`.
    Attempt = 2,
    /// The payload is verdict number `count`; the sinks in the bit mask `tag` have it.
    Verdict = 3,
    /// Sink `tag` has verdict number `count`.
    Delivered = 4,
    /// It is gone for good.
    Forgotten = 5,
    /// It ended life number `life - 1` as a dead letter; the payload says why.
    Dead = 6,
    /// The powered clock, and no case.
    Clock = 7,
    /// It begins life number `life`.
    Requeued = 8,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Case,
            2 => Self::Attempt,
            3 => Self::Verdict,
            4 => Self::Delivered,
            5 => Self::Forgotten,
            6 => Self::Dead,
            7 => Self::Clock,
            8 => Self::Requeued,
            _ => return None,
        })
    }
}

/// The fixed part of a record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) tag: u16,
    pub(crate) life: u8,
    pub(crate) header_bytes: u16,
    pub(crate) payload_bytes: u32,
    pub(crate) key: CaseKey,
    pub(crate) moment: Moment,
    pub(crate) sort_key: f64,
    pub(crate) count: u32,
    pub(crate) header_crc: u32,
}

/// What binds a record to its place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seal {
    pub(crate) salt: u64,
    pub(crate) offset: u32,
}

impl Seal {
    pub(crate) fn crc(self, head: &[u8]) -> u32 {
        let crc = crc32c::crc32c(&self.salt.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c_append(crc, &self.offset.to_le_bytes()), head)
    }
}

impl Head {
    /// A record that is only this much: no header, no payload.
    pub(crate) fn mark(kind: Kind, key: CaseKey, moment: Moment) -> Self {
        Self {
            kind,
            tag: 0,
            life: 0,
            header_bytes: 0,
            payload_bytes: 0,
            key,
            moment,
            sort_key: 0.0,
            count: 0,
            header_crc: 0,
        }
    }

    /// The length of the whole record.
    pub(crate) fn record_bytes(&self) -> u64 {
        record_bytes(self.header_bytes, self.payload_bytes)
    }

    pub(crate) fn encode(&self, seal: Seal) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        // The first version wrote 0 into the last of these, and eight sinks at most into the tag.
        let [tag, high] = self.tag.to_le_bytes();
        bytes[4..8].copy_from_slice(&[self.kind as u8, tag, self.life, high]);
        bytes[8..12].copy_from_slice(&u32::from(self.header_bytes).to_le_bytes());
        bytes[12..16].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.key.to_bytes());
        bytes[32..40].copy_from_slice(&self.moment.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.sort_key.to_bits().to_le_bytes());
        bytes[48..52].copy_from_slice(&self.count.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.header_crc.to_le_bytes());
        let crc = seal.crc(&bytes[..56]);
        bytes[56..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Nothing unless these bytes were written at this place of this segment.
    pub(crate) fn decode(bytes: &[u8; HEAD_BYTES], seal: Seal) -> Option<Self> {
        if bytes[..4] != MAGIC || u32_at(bytes, 56) != seal.crc(&bytes[..56]) {
            return None;
        }
        Some(Self {
            kind: Kind::from_byte(bytes[4])?,
            tag: u16::from_le_bytes([bytes[5], bytes[7]]),
            life: bytes[6],
            header_bytes: u16::try_from(u32_at(bytes, 8)).ok()?,
            payload_bytes: u32_at(bytes, 12),
            key: CaseKey::from_bytes(array_at(bytes, 16)),
            moment: Moment(u64::from_le_bytes(array_at(bytes, 32))),
            sort_key: f64::from_bits(u64::from_le_bytes(array_at(bytes, 40))),
            count: u32_at(bytes, 48),
            header_crc: u32_at(bytes, 52),
        })
    }
}

pub(crate) fn record_bytes(header_bytes: u16, payload_bytes: u32) -> u64 {
    let payload = if payload_bytes == 0 { 0 } else { u64::from(payload_bytes) + CRC_BYTES };
    HEAD_BYTES as u64 + u64::from(header_bytes) + payload
}

fn u32_at(bytes: &[u8; HEAD_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn array_at<const N: usize>(bytes: &[u8; HEAD_BYTES], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// A whole record, ready to be appended anywhere.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) head: Head,
    pub(crate) header: Vec<u8>,
    pub(crate) payload: Bytes,
    payload_crc: [u8; 4],
}

/// A header or payload is longer than a record can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLarge;

impl Record {
    /// Fills in the lengths and sums of `head`. Called where the bytes come from, not on the log's thread.
    pub(crate) fn new(mut head: Head, header: Vec<u8>, payload: Bytes) -> Result<Self, TooLarge> {
        head.header_bytes = u16::try_from(header.len()).map_err(|_| TooLarge)?;
        head.payload_bytes = u32::try_from(payload.len()).map_err(|_| TooLarge)?;
        head.header_crc = crc32c::crc32c(&header);
        let payload_crc = crc32c::crc32c(&payload).to_le_bytes();
        Ok(Self { head, header, payload, payload_crc })
    }

    pub(crate) fn mark(head: Head) -> Self {
        Self { head, header: Vec::new(), payload: Bytes::new(), payload_crc: [0; 4] }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.head.record_bytes()
    }

    /// Everything after the fixed part, in order.
    pub(crate) fn body(&self) -> impl Iterator<Item = &[u8]> {
        let crc: &[u8] = if self.payload.is_empty() { &[] } else { &self.payload_crc };
        [&self.header[..], &self.payload[..], crc].into_iter().filter(|part| !part.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hedge_proto::Epoch;

    #[test]
    fn a_head_reads_back_only_at_its_own_place() {
        let key = CaseKey { epoch: Epoch(7), sequence: 9 };
        let head = Head { count: 3, sort_key: -1.5, ..Head::mark(Kind::Attempt, key, Moment(5)) };
        let seal = Seal { salt: 1, offset: 64 };
        let bytes = head.encode(seal);
        assert_eq!(Head::decode(&bytes, seal), Some(head));
        assert_eq!(Head::decode(&bytes, Seal { salt: 2, ..seal }), None);
        assert_eq!(Head::decode(&bytes, Seal { offset: 65, ..seal }), None);
    }
}
