//! Page formats, format version 1. All numbers are little-endian; offsets are bytes from the start of the page.
//!
//! Every page begins with PostgreSQL's 24-byte header, whose `pd_lower` is always set to the end of the used bytes
//! (the server drops what lies between `pd_lower` and `pd_upper`), then a kind byte at 24 and flags at 25.
//!
//! Block 0 is the meta page (`meta.rs`), followed by blob pages if the meta data is longer than a page, then the
//! centroid pages; these never change after a build. Behind them lie vector pages and code pages.
//!
//! **Centroids** (from 32): records in list order, `head u32, scale f32, squared norm f32, i8 * D`: component i of the
//! centroid, in rotated space, is `scale * i8`. That decoded value *is* the centroid, so codes are exact against it.
//! `D` is the number of dimensions padded to a multiple of 64. A record longer than a page covers whole consecutive
//! pages alone.
//!
//! **Codes**: a list is a chain of code pages; its head is in the centroid's record and never changes.
//! `list u32 @28, head u32 @32, next u32 @36 (0: last), cursor u32 @40, open vectors u32 @44, entries u32 @48, rows u32
//! @52, live bitmap @56 (256 bits)`, then from 88, for N lanes: `add f32*N, scale f32*N, error f32*N, tid u64*N, vector block u32*N, vector slot
//! u16*N, ordinal u32*N` (bit 31 of the ordinal marks the first entry of its row), then the codes. Up to 1,728 padded
//! dimensions the codes lie in blocks of 32 lanes (`compute/vectors/fastscan.rs`); above, where such a block does not fit a
//! page, one row code a lane. `cursor`, `open vectors`, `entries` and `rows` are kept in the head alone: where an insert
//! looks for a lane first (0: the head itself), the first of the list's vector pages with free slots, and the live
//! lanes of the list, all of them and those that are the first of their row.
//!
//! **Vectors**: `next open u32 @28, used bitmap @32 (256 bits)`, records from 64: `tid u64, hash u64, ordinal u32,
//! span u32 u32`, then the vector. Flag 1 of a vector page: it is in some list's chain of open pages.
//!
//! **Pieces**: a vector record longer than a page's 8,128 bytes is cut into pieces of 8,144: `next u32 @28, tid u64
//! @32, ordinal u32 @40, number u16 @44, length u16 @46`, bytes from 48. The pieces of one vector share no page.
//!
//! **Free** pages have only their kind.

use super::IndexError;
use super::store::{Block, CONTENT_START, PAGE_SIZE, PageBytes, PageStore};
use super::types::IndexOptions;
use crate::compute::vectors::fastscan::BLOCK;
use crate::compute::vectors::rotation::padded_dimensions;

/// Block 0 is the meta page, so it can never be the target of a pointer.
pub const NONE: Block = 0;
/// Ordinals are 31 bits; this bit of the stored one marks the first entry of its row.
pub const FIRST: u32 = 1 << 31;

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Meta = 1,
    Blob = 2,
    Centroids = 3,
    Codes = 4,
    Vectors = 5,
    Piece = 6,
    Free = 7,
}

const KIND: usize = CONTENT_START;
const FLAGS: usize = CONTENT_START + 1;
/// Flag of a vector page: it is in a list's chain of open pages.
pub const OPEN: u8 = 1;

pub const CENTROIDS_START: usize = 32;
pub const CENTROIDS_SIZE: usize = PAGE_SIZE - CENTROIDS_START;
/// Bytes of a centroid's record before its components.
pub const CENTROID_HEADER: usize = 12;

pub const LIST: usize = 28;
pub const HEAD: usize = 32;
pub const NEXT: usize = 36;
pub const CURSOR: usize = 40;
pub const OPEN_VECTORS: usize = 44;
const ENTRIES: usize = 48;
const ROWS: usize = 52;
const LIVE: usize = 56;
const LANES_START: usize = 88;
const LANES_SIZE: usize = PAGE_SIZE - LANES_START;
/// Bytes a lane takes beside its code.
const LANE: usize = 30;
const MAX_LANES: usize = 256;

pub const NEXT_OPEN: usize = 28;
const USED: usize = 32;
const RECORDS_START: usize = 64;
const RECORDS_SIZE: usize = PAGE_SIZE - RECORDS_START;
/// Bytes of a vector's record before its components.
pub const RECORD_HEADER: usize = 28;

pub const PIECE_NEXT: usize = 28;
const PIECE_TID: usize = 32;
const PIECE_ORDINAL: usize = 40;
const PIECE_NUMBER: usize = 44;
const PIECE_LENGTH: usize = 46;
const PIECE_START: usize = 48;
/// Bytes of a record that one piece holds.
pub const PIECE_SIZE: usize = PAGE_SIZE - PIECE_START;

/// An empty page with the server's header, as the store initialises it.
pub fn new_page() -> PageBytes {
    let mut page = [0u8; PAGE_SIZE];
    init_page(&mut page);
    page
}

/// Empties a page and gives it the server's header.
pub fn init_page(page: &mut PageBytes) {
    page.fill(0);
    put_u16(page, 12, CONTENT_START as u16);
    put_u16(page, 14, PAGE_SIZE as u16);
    put_u16(page, 16, PAGE_SIZE as u16);
    put_u16(page, 18, PAGE_SIZE as u16 | 4);
}

/// Empties a page, gives it its kind and says how many of its bytes are used (header included).
pub fn begin(page: &mut PageBytes, kind: Kind, used: usize) {
    // The log sequence number and checksum belong to the server: they outlive a change of kind.
    let server: [u8; 12] = std::array::from_fn(|i| page[i]);
    init_page(page);
    page[..12].copy_from_slice(&server);
    page[KIND] = kind as u8;
    put_u16(page, 12, used.clamp(CONTENT_START, PAGE_SIZE) as u16);
}

/// Whether the page is of this kind.
#[inline]
pub fn is_kind(page: &PageBytes, kind: Kind) -> bool {
    page[KIND] == kind as u8
}

/// Whether nothing on the page is in use: freed, or added by a change that was never made durable.
pub fn is_free(page: &PageBytes) -> bool {
    page[KIND] == Kind::Free as u8 || page[KIND] == 0
}

/// Fails unless the page is of this kind.
pub fn expect_kind(page: &PageBytes, block: Block, kind: Kind) -> Result<(), IndexError> {
    if is_kind(page, kind) {
        Ok(())
    } else {
        Err(corrupted(
            block,
            format!("kind {} where {kind:?} is expected", page[KIND]),
        ))
    }
}

pub fn corrupted(block: Block, what: impl Into<String>) -> IndexError {
    IndexError::Corrupted {
        block,
        what: what.into(),
    }
}

#[inline]
pub fn u16_at(page: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

#[inline]
pub fn u32_at(page: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

#[inline]
pub fn f32_at(page: &[u8], at: usize) -> f32 {
    f32::from_bits(u32_at(page, at))
}

#[inline]
pub fn u64_at(page: &[u8], at: usize) -> u64 {
    u64::from(u32_at(page, at)) | u64::from(u32_at(page, at + 4)) << 32
}

pub fn put_u16(page: &mut [u8], at: usize, value: u16) {
    page[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub fn put_u32(page: &mut [u8], at: usize, value: u32) {
    page[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub fn put_u64(page: &mut [u8], at: usize, value: u64) {
    page[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// A 256-bit map on a page.
#[inline]
fn bit(page: &PageBytes, map: usize, i: usize) -> bool {
    page[map + i / 8] >> (i % 8) & 1 == 1
}

fn put_bit(page: &mut PageBytes, map: usize, i: usize, on: bool) {
    let mask = 1u8 << (i % 8);
    if on {
        page[map + i / 8] |= mask
    } else {
        page[map + i / 8] &= !mask
    }
}

fn first_clear(page: &PageBytes, map: usize, n: usize) -> Option<usize> {
    (0..n).find(|&i| !bit(page, map, i))
}

/// Sizes and offsets that follow from an index's dimensions and element.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Components of a vector.
    pub dimensions: usize,
    /// Entries are chunks of documents.
    pub documents: bool,
    /// Components of a rotated vector.
    pub padded: usize,
    /// Codes lie in blocks of 32 lanes; otherwise one row a lane.
    pub blocks: bool,
    /// Lanes of a code page.
    pub lanes: usize,
    /// Bytes of a vector's record.
    pub record: usize,
    /// Records of a vector page; 0 where a record is cut into pieces.
    pub slots: usize,
    /// Pieces of a record; 0 where it fits a page.
    pub pieces: usize,
    /// Centroids of a page; 0 where one covers several pages.
    pub centroids: usize,
    /// Pages of a centroid where it covers several, otherwise 1.
    pub centroid_pages: usize,
}

/// Where a vector's record lies: block, and slot within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordPtr {
    pub block: Block,
    pub slot: u16,
}

/// What lives in a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub entries: u32,
    pub rows: u32,
}

impl Counts {
    /// One entry more, with this ordinal.
    pub fn add(&mut self, ordinal: u32) {
        self.entries = self.entries.saturating_add(1);
        self.rows = self.rows.saturating_add(u32::from(ordinal & FIRST != 0));
    }

    /// One entry less.
    pub fn remove(&mut self, ordinal: u32) {
        self.entries = self.entries.saturating_sub(1);
        self.rows = self.rows.saturating_sub(u32::from(ordinal & FIRST != 0));
    }
}

/// What a lane of a code page says beside its code.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lane {
    pub add: f32,
    pub scale: f32,
    pub error: f32,
    pub tid: u64,
    /// With [`FIRST`].
    pub ordinal: u32,
    pub place: RecordPtr,
}

impl Layout {
    pub fn new(options: &IndexOptions) -> Layout {
        let dimensions = options.dimensions as usize;
        let padded = padded_dimensions(dimensions);
        let block = BLOCK * LANE + BLOCK * padded / 8;
        let blocks = block <= LANES_SIZE;
        let lanes = if blocks {
            (LANES_SIZE / block * BLOCK).min(MAX_LANES)
        } else {
            (LANES_SIZE / (LANE + padded / 8)).min(MAX_LANES)
        };
        let record = RECORD_HEADER + dimensions * options.element.bytes();
        let slots = (RECORDS_SIZE / record).min(MAX_LANES);
        let pieces = if slots == 0 { record.div_ceil(PIECE_SIZE) } else { 0 };
        let centroid = CENTROID_HEADER + padded;
        let centroids = CENTROIDS_SIZE / centroid;
        let centroid_pages = if centroids == 0 {
            centroid.div_ceil(CENTROIDS_SIZE)
        } else {
            1
        };
        Layout {
            documents: options.documents,
            dimensions,
            padded,
            blocks,
            lanes,
            record,
            slots,
            pieces,
            centroids,
            centroid_pages,
        }
    }

    /// Bytes of a centroid's record.
    pub fn centroid(&self) -> usize {
        CENTROID_HEADER + self.padded
    }

    /// Pages that hold the centroids of `lists` lists.
    pub fn pages_of_centroids(&self, lists: usize) -> usize {
        match self.centroids {
            0 => lists * self.centroid_pages,
            n => lists.div_ceil(n),
        }
    }

    fn codes_start(&self) -> usize {
        LANES_START + LANE * self.lanes
    }

    fn codes_end(&self) -> usize {
        self.codes_start() + self.lanes * self.padded / 8
    }

    /// Makes `page` an empty code page.
    pub fn begin_codes(&self, page: &mut PageBytes, list: u32, head: Block) {
        begin(page, Kind::Codes, self.codes_end());
        put_u32(page, LIST, list);
        put_u32(page, HEAD, head);
    }

    /// Live entries and rows of the list whose head `page` is.
    pub fn counts(&self, page: &PageBytes) -> Counts {
        Counts {
            entries: u32_at(page, ENTRIES),
            rows: u32_at(page, ROWS),
        }
    }

    pub fn put_counts(&self, page: &mut PageBytes, counts: Counts) {
        put_u32(page, ENTRIES, counts.entries);
        put_u32(page, ROWS, counts.rows);
    }

    pub fn set_live(&self, page: &mut PageBytes, lane: usize, on: bool) {
        put_bit(page, LIVE, lane, on);
    }

    pub fn free_lane(&self, page: &PageBytes) -> Option<usize> {
        first_clear(page, LIVE, self.lanes)
    }

    /// Calls `take` with every lane in use, in ascending order.
    #[inline]
    pub fn each_live(&self, page: &PageBytes, mut take: impl FnMut(usize)) {
        for (word, bytes) in page[LIVE..LANES_START].chunks_exact(8).enumerate() {
            let mut bits = u64_at(bytes, 0);
            while bits != 0 {
                let lane = word * 64 + bits.trailing_zeros() as usize;
                if lane >= self.lanes {
                    return;
                }
                take(lane);
                bits &= bits - 1;
            }
        }
    }

    /// The three factors of every lane, as little-endian bytes: add, scale, error.
    #[inline]
    pub fn factors<'a>(&self, page: &'a PageBytes) -> [&'a [u8]; 3] {
        let part = 4 * self.lanes;
        std::array::from_fn(|i| &page[LANES_START + i * part..LANES_START + (i + 1) * part])
    }

    #[inline]
    pub fn lane(&self, page: &PageBytes, lane: usize) -> Lane {
        let n = self.lanes;
        Lane {
            add: f32_at(page, LANES_START + 4 * lane),
            scale: f32_at(page, LANES_START + 4 * n + 4 * lane),
            error: f32_at(page, LANES_START + 8 * n + 4 * lane),
            tid: u64_at(page, LANES_START + 12 * n + 8 * lane),
            place: RecordPtr {
                block: u32_at(page, LANES_START + 20 * n + 4 * lane),
                slot: u16_at(page, LANES_START + 24 * n + 2 * lane),
            },
            ordinal: u32_at(page, LANES_START + 26 * n + 4 * lane),
        }
    }

    /// Fills a lane; the caller sets it live and writes its code.
    pub fn put_lane(&self, page: &mut PageBytes, lane: usize, value: &Lane) {
        let n = self.lanes;
        put_u32(page, LANES_START + 4 * lane, value.add.to_bits());
        put_u32(page, LANES_START + 4 * n + 4 * lane, value.scale.to_bits());
        put_u32(page, LANES_START + 8 * n + 4 * lane, value.error.to_bits());
        put_u64(page, LANES_START + 12 * n + 8 * lane, value.tid);
        put_u32(page, LANES_START + 20 * n + 4 * lane, value.place.block);
        put_u16(page, LANES_START + 24 * n + 2 * lane, value.place.slot);
        put_u32(page, LANES_START + 26 * n + 4 * lane, value.ordinal);
    }

    /// The codes of a page: blocks of `4 D` bytes, or rows of `D / 8`.
    #[inline]
    pub fn codes<'a>(&self, page: &'a PageBytes) -> &'a [u8] {
        &page[self.codes_start()..self.codes_end()]
    }

    pub fn codes_mut<'a>(&self, page: &'a mut PageBytes) -> &'a mut [u8] {
        let (start, end) = (self.codes_start(), self.codes_end());
        &mut page[start..end]
    }

    /// Makes `page` an empty vector page.
    pub fn begin_vectors(&self, page: &mut PageBytes) {
        begin(page, Kind::Vectors, RECORDS_START + self.slots * self.record);
    }

    #[inline]
    pub fn is_used(&self, page: &PageBytes, slot: u16) -> bool {
        usize::from(slot) < self.slots && bit(page, USED, slot.into())
    }

    pub fn set_used(&self, page: &mut PageBytes, slot: u16, on: bool) {
        put_bit(page, USED, slot.into(), on);
    }

    pub fn free_slot(&self, page: &PageBytes) -> Option<u16> {
        first_clear(page, USED, self.slots).map(|slot| slot as u16)
    }

    pub fn is_empty(&self, page: &PageBytes) -> bool {
        (0..self.slots).all(|slot| !bit(page, USED, slot))
    }

    /// The record in a slot; the slot is below `slots`.
    #[inline]
    pub fn record<'a>(&self, page: &'a PageBytes, slot: u16) -> &'a [u8] {
        let start = RECORDS_START + usize::from(slot) * self.record;
        &page[start..start + self.record]
    }

    pub fn record_mut<'a>(&self, page: &'a mut PageBytes, slot: u16) -> &'a mut [u8] {
        let start = RECORDS_START + usize::from(slot) * self.record;
        &mut page[start..start + self.record]
    }
}

/// Whether a vector page is in a list's chain of open pages.
pub fn is_open(page: &PageBytes) -> bool {
    page[FLAGS] & OPEN != 0
}

pub fn set_open(page: &mut PageBytes, on: bool) {
    page[FLAGS] = if on { OPEN } else { 0 };
}

/// Makes `page` piece `number` of a record.
pub fn write_piece(page: &mut PageBytes, next: Block, tid: u64, ordinal: u32, number: u16, bytes: &[u8]) {
    let length = bytes.len().min(PIECE_SIZE);
    begin(page, Kind::Piece, PIECE_START + length);
    put_u32(page, PIECE_NEXT, next);
    put_u64(page, PIECE_TID, tid);
    put_u32(page, PIECE_ORDINAL, ordinal);
    put_u16(page, PIECE_NUMBER, number);
    put_u16(page, PIECE_LENGTH, length as u16);
    page[PIECE_START..PIECE_START + length].copy_from_slice(&bytes[..length]);
}

/// The next block and the bytes of a page that is still piece `number` of this entry's record.
pub fn read_piece(page: &PageBytes, tid: u64, ordinal: u32, number: u16) -> Option<(Block, &[u8])> {
    let length = usize::from(u16_at(page, PIECE_LENGTH));
    let fits = is_kind(page, Kind::Piece)
        && u64_at(page, PIECE_TID) == tid
        && u32_at(page, PIECE_ORDINAL) == ordinal
        && u16_at(page, PIECE_NUMBER) == number
        && length <= PIECE_SIZE;
    fits.then(|| (u32_at(page, PIECE_NEXT), &page[PIECE_START..PIECE_START + length]))
}

/// Reads pages by number, with pointers past the end reported as corruption instead of left to the store.
#[derive(Clone)]
pub struct Reader<S: PageStore> {
    pub store: S,
    blocks: Block,
}

impl<S: PageStore> Reader<S> {
    pub fn new(store: S) -> Result<Self, IndexError> {
        let blocks = store.blocks()?;
        Ok(Reader { store, blocks })
    }

    /// Number of blocks when last asked for.
    pub fn blocks(&self) -> Block {
        self.blocks
    }

    /// Fails unless `block` exists.
    pub fn check(&mut self, block: Block) -> Result<(), IndexError> {
        if block >= self.blocks {
            self.blocks = self.store.blocks()?;
            if block >= self.blocks {
                return Err(corrupted(
                    block,
                    format!("pointer past the end ({} blocks)", self.blocks),
                ));
            }
        }
        Ok(())
    }

    #[inline]
    pub fn read(&mut self, block: Block) -> Result<S::Page, IndexError> {
        self.check(block)?;
        self.store.read(block)
    }
}
