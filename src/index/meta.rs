//! The meta page: what kind of index this is and how to search it.
//!
//! Block 0: `magic u32 @28, format u32 @32, metric u8 @36, element u8 @37, documents u8 @38, has model u8 @39,
//! dimensions u32 @40, lists asked for u32 @44, lists u32 @48, first centroid block u32 @52, probes u32 @56, slack f32
//! @60, seed u64 @64, entries u64 @72, rows u64 @80, model bytes u32 @88, extra bytes u32 @92, for each recall that was
//! calibrated (probes u32, deviations f32, re-ranks u32) @96, checksum u32 @192` of the bytes 28..192 (FNV-1a), then from
//! 200 the blob: the origin (`f32 * D`, rotated), the model's name, the extra bytes. A blob
//! longer than the page goes on from byte 32 of the following blocks.
//!
//! An index is *undecided* while nothing says how many dimensions its vectors have: 0 dimensions, 0 lists, no origin
//! and no pages but this one. The first entry decides (`decide.rs`).

use super::IndexError;
use super::page::{self, Kind, Layout, NONE, begin, corrupted, expect_kind, f32_at, put_u32, put_u64, u32_at, u64_at};
use super::rabitq::EPSILON;
use super::recall::{Curve, Effort, TARGETS, effort};
use super::store::{Block, PAGE_SIZE, PageBytes, PageChange, PageStore};
use super::types::{Element, IndexOptions, Metric};

const MAGIC: u32 = 0x5549_5453;
/// The format this version writes.
pub const FORMAT: u32 = 2;
const FIXED: usize = 28;
const CURVE: usize = 96;
const CHECKSUM: usize = CURVE + 12 * TARGETS.len();
const BLOB: usize = CHECKSUM + 8;
const BLOB_MORE: usize = 32;

/// What the meta pages say about an index.
#[derive(Clone, Debug, PartialEq)]
pub struct Meta {
    /// Options the index was created with.
    pub options: IndexOptions,
    /// Entries and rows at the time of the build or of the last vacuum; [`super::count`] gives those of now.
    pub entries: u64,
    pub rows: u64,
    /// Number of lists.
    pub lists: u32,
    /// Lists that a scan reads first unless told otherwise.
    pub probes: u32,
    /// How much farther than a hit a list's centroid may be before the scan stops reading on: a factor on the squared
    /// distance, or (inner product) an offset in units of the query's norm.
    pub(super) slack: f32,
    /// How much work reaches which recall.
    pub curve: Curve,
    pub(super) seed: u64,
    /// First block of the centroids.
    pub(super) centroids: Block,
    /// What is subtracted from every vector after the rotation: about their mean.
    pub(super) origin: Vec<f32>,
}

/// The efforts on a meta page, within what `lists` and bounds can be.
fn curve_at(page: &PageBytes, lists: u32) -> Curve {
    std::array::from_fn(|i| {
        let deviations = f32_at(page, CURVE + 12 * i + 4);
        Effort {
            probes: u32_at(page, CURVE + 12 * i).min(lists),
            deviations: if (0.0..=100.0).contains(&deviations) {
                deviations
            } else {
                EPSILON
            },
            reranks: u32_at(page, CURVE + 12 * i + 8),
        }
    })
}

fn checksum(page: &PageBytes) -> u32 {
    page[FIXED..CHECKSUM]
        .iter()
        .fold(0x811C_9DC5, |hash, &b| (hash ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

/// Blocks that the meta data of an index takes.
pub fn pages_of_meta(padded: usize, options: &IndexOptions) -> usize {
    let blob = 4 * padded + options.model.as_ref().map_or(0, String::len) + options.extra.len();
    1 + blob.saturating_sub(PAGE_SIZE - BLOB).div_ceil(PAGE_SIZE - BLOB_MORE)
}

/// Checks options that come from outside.
pub fn check_options(options: &IndexOptions) -> Result<(), IndexError> {
    if options.dimensions == 0 || options.dimensions > IndexOptions::MAX_DIMENSIONS {
        return Err(IndexError::Dimensions {
            expected: IndexOptions::MAX_DIMENSIONS as usize,
            found: options.dimensions as usize,
        });
    }
    let model = options.model.as_ref().map_or(0, String::len);
    if options.extra.len() > IndexOptions::MAX_EXTRA || model > IndexOptions::MAX_EXTRA {
        return Err(IndexError::Store(format!(
            "index options are longer than {} bytes",
            IndexOptions::MAX_EXTRA
        )));
    }
    Ok(())
}

/// The meta page of an index that nothing was put into yet and whose dimensions are not known.
pub fn write_undecided<S: PageStore>(store: &S, options: IndexOptions) -> Result<(), IndexError> {
    let meta = Meta {
        options: IndexOptions {
            dimensions: 0,
            ..options
        },
        entries: 0,
        rows: 0,
        lists: 0,
        probes: 0,
        slack: 0.0,
        curve: Curve::default(),
        seed: 0,
        centroids: NONE,
        origin: Vec::new(),
    };
    for page in meta.to_pages() {
        store.append_bulk(&page)?;
    }
    store.finish_bulk()
}

impl Meta {
    /// Lists that a scan reads first for a recall.
    pub fn probes_for(&self, recall: f32) -> u32 {
        let effort = effort(&self.curve, recall).filter(|_| recall < 1.0);
        effort.map_or(self.probes, |effort| effort.probes)
    }

    /// Whether the number of dimensions is known: before, there is no entry.
    pub fn is_decided(&self) -> bool {
        self.options.dimensions > 0
    }

    /// Reads and checks the meta pages.
    pub fn open<S: PageStore>(store: &S) -> Result<Meta, IndexError> {
        let blocks = store.blocks()?;
        if blocks == 0 {
            return Err(corrupted(0, "the index has no pages"));
        }
        let page = store.read(0)?;
        let (mut meta, model, extra) = Meta::fixed(&page)?;
        let padded = Layout::new(&meta.options).padded;
        let length = 4 * padded + model.unwrap_or(0) + extra;
        let mut blob = page[BLOB..PAGE_SIZE.min(BLOB + length)].to_vec();
        drop(page);
        let mut block = 1;
        while blob.len() < length {
            if block >= blocks {
                return Err(corrupted(block, "the meta data ends too early"));
            }
            let page = store.read(block)?;
            expect_kind(&page, block, Kind::Blob)?;
            let more = (length - blob.len()).min(PAGE_SIZE - BLOB_MORE);
            blob.extend_from_slice(&page[BLOB_MORE..BLOB_MORE + more]);
            block += 1;
        }
        let (origin, rest) = blob.split_at(4 * padded);
        meta.origin = origin.chunks_exact(4).map(|b| f32_at(b, 0)).collect();
        if meta.origin.iter().any(|x| !x.is_finite()) {
            return Err(corrupted(0, "the origin is not finite"));
        }
        let (name, extra) = rest.split_at(model.unwrap_or(0));
        meta.options.extra = extra.to_vec();
        if model.is_some() {
            let name = std::str::from_utf8(name).map_err(|_| corrupted(0, "the model's name is not UTF-8"))?;
            meta.options.model = Some(name.to_owned());
        }
        let end = u64::from(meta.centroids) + Layout::new(&meta.options).pages_of_centroids(meta.lists as usize) as u64;
        if meta.is_decided() && (meta.centroids < block || end > u64::from(blocks)) {
            return Err(corrupted(0, "the centroids lie outside the index"));
        }
        Ok(meta)
    }

    /// The fixed fields, bytes of the model's name if there is one, and bytes of the extra data.
    fn fixed(page: &PageBytes) -> Result<(Meta, Option<usize>, usize), IndexError> {
        expect_kind(page, 0, Kind::Meta)?;
        if u32_at(page, 28) != MAGIC {
            return Err(corrupted(0, "not the meta page of this access method"));
        }
        let found = u32_at(page, 32);
        if found != FORMAT {
            return Err(IndexError::Format {
                found,
                supported: FORMAT,
            });
        }
        if u32_at(page, CHECKSUM) != checksum(page) {
            return Err(corrupted(0, "wrong checksum"));
        }
        let metric = match page[36] {
            0 => Metric::L2,
            1 => Metric::InnerProduct,
            2 => Metric::Cosine,
            other => return Err(corrupted(0, format!("unknown metric {other}"))),
        };
        let element = match page[37] {
            0 => Element::F32,
            1 => Element::F16,
            other => return Err(corrupted(0, format!("unknown element {other}"))),
        };
        let (model, extra) = (u32_at(page, 88) as usize, u32_at(page, 92) as usize);
        let options = IndexOptions {
            metric,
            element,
            dimensions: u32_at(page, 40),
            lists: u32_at(page, 44),
            documents: page[38] != 0,
            model: None,
            extra: Vec::new(),
        };
        let lists = u32_at(page, 48);
        let decided = (1..=IndexOptions::MAX_DIMENSIONS).contains(&options.dimensions)
            && (1..=IndexOptions::MAX_LISTS).contains(&lists);
        let undecided = options.dimensions == 0 && lists == 0;
        let long = model > IndexOptions::MAX_EXTRA || extra > IndexOptions::MAX_EXTRA;
        if !(decided || undecided) || long {
            return Err(corrupted(0, "a field is out of range"));
        }
        let meta = Meta {
            options,
            entries: u64_at(page, 72),
            rows: u64_at(page, 80),
            lists,
            probes: u32_at(page, 56).clamp(1, lists.max(1)),
            slack: f32_at(page, 60),
            curve: curve_at(page, lists),
            seed: u64_at(page, 64),
            centroids: u32_at(page, 52),
            origin: Vec::new(),
        };
        Ok((meta, (page[39] != 0).then_some(model), extra))
    }

    fn put_fixed(&self, page: &mut PageBytes) {
        put_u32(page, 28, MAGIC);
        put_u32(page, 32, FORMAT);
        page[36] = match self.options.metric {
            Metric::L2 => 0,
            Metric::InnerProduct => 1,
            Metric::Cosine => 2,
        };
        page[37] = match self.options.element {
            Element::F32 => 0,
            Element::F16 => 1,
        };
        page[38] = self.options.documents.into();
        page[39] = self.options.model.is_some().into();
        put_u32(page, 40, self.options.dimensions);
        put_u32(page, 44, self.options.lists);
        put_u32(page, 48, self.lists);
        put_u32(page, 52, self.centroids);
        put_u32(page, 56, self.probes);
        put_u32(page, 60, self.slack.to_bits());
        put_u64(page, 64, self.seed);
        put_u64(page, 72, self.entries);
        put_u64(page, 80, self.rows);
        put_u32(page, 88, self.options.model.as_ref().map_or(0, String::len) as u32);
        put_u32(page, 92, self.options.extra.len() as u32);
        for (i, effort) in self.curve.iter().enumerate() {
            put_u32(page, CURVE + 12 * i, effort.probes);
            put_u32(page, CURVE + 12 * i + 4, effort.deviations.to_bits());
            put_u32(page, CURVE + 12 * i + 8, effort.reranks);
        }
        let sum = checksum(page);
        put_u32(page, CHECKSUM, sum);
    }

    /// The meta page and its blob pages, for the first blocks of a build.
    pub(super) fn to_pages(&self) -> Vec<PageBytes> {
        let mut blob: Vec<u8> = self.origin.iter().flat_map(|x| x.to_le_bytes()).collect();
        blob.extend_from_slice(self.options.model.as_deref().unwrap_or("").as_bytes());
        blob.extend_from_slice(&self.options.extra);
        let mut first = page::new_page();
        let (here, mut rest) = blob.split_at(blob.len().min(PAGE_SIZE - BLOB));
        begin(&mut first, Kind::Meta, BLOB + here.len());
        first[BLOB..BLOB + here.len()].copy_from_slice(here);
        self.put_fixed(&mut first);
        let mut pages = vec![first];
        while !rest.is_empty() {
            let (here, later) = rest.split_at(rest.len().min(PAGE_SIZE - BLOB_MORE));
            let mut more = page::new_page();
            begin(&mut more, Kind::Blob, BLOB_MORE + here.len());
            more[BLOB_MORE..BLOB_MORE + here.len()].copy_from_slice(here);
            pages.push(more);
            rest = later;
        }
        pages
    }

    /// Writes the fixed fields (the calibration among them) over those on the meta page.
    pub(super) fn update<S: PageStore>(&self, store: &S) -> Result<(), IndexError> {
        let mut change = store.change()?;
        self.put_fixed(change.page(0)?);
        change.commit()
    }
}
