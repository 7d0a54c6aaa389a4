//! The centroids: reading them, ranking them.

use super::IndexError;
use super::memory_limit::with_room;
use super::meta::Meta;
use super::page::{
    CENTROID_HEADER, CENTROIDS_SIZE, CENTROIDS_START, Kind, Layout, NONE, Reader, begin, corrupted, expect_kind,
    f32_at, new_page, put_u32, u32_at,
};
use super::rabitq::{Centroid, ListTerms};
use super::store::{Block, PAGE_SIZE, PageBytes, PageStore};
use crate::compute::vectors::distance::{Stored, dot};

/// A list as a query sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankedList {
    pub terms: ListTerms,
    pub head: Block,
    pub list: u32,
}

/// Bytes of a centroid's record.
pub fn put_centroid(centroid: &Centroid, head: Block, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + CENTROID_HEADER, 0);
    put_u32(out, start, head);
    put_u32(out, start + 4, centroid.scale.to_bits());
    put_u32(out, start + 8, centroid.norm_squared.to_bits());
    out.extend(centroid.components.iter().map(|&x| x as u8));
}

/// The pages that hold these centroid records (as written one after another by [`put_centroid`]).
pub fn centroid_pages<'a>(layout: &'a Layout, records: &'a [u8]) -> impl Iterator<Item = PageBytes> + 'a {
    let size = layout.centroid();
    let group = if layout.centroids > 0 {
        layout.centroids * size
    } else {
        size
    };
    records
        .chunks(group)
        .flat_map(|group| group.chunks(CENTROIDS_SIZE))
        .map(|bytes| {
            let mut page = new_page();
            begin(&mut page, Kind::Centroids, CENTROIDS_START + bytes.len());
            page[CENTROIDS_START..CENTROIDS_START + bytes.len()].copy_from_slice(bytes);
            page
        })
}

/// Calls `take(list, record)` for every centroid record, a page lock held meanwhile where a page holds several.
fn each_record<S: PageStore>(
    reader: &mut Reader<S>,
    meta: &Meta,
    layout: &Layout,
    mut take: impl FnMut(u32, &[u8]) -> Result<(), IndexError>,
) -> Result<(), IndexError> {
    let size = layout.centroid();
    let lists = meta.lists as usize;
    if layout.centroids > 0 {
        for page_number in 0..layout.pages_of_centroids(lists) {
            let block = meta.centroids + page_number as Block;
            if page_number % 32 == 0 {
                reader.store.check_cancel()?;
            }
            let page = reader.read(block)?;
            expect_kind(&page, block, Kind::Centroids)?;
            let first = page_number * layout.centroids;
            let count = layout.centroids.min(lists - first);
            for (i, record) in page[CENTROIDS_START..].chunks_exact(size).take(count).enumerate() {
                take((first + i) as u32, record)?;
            }
        }
        return Ok(());
    }
    let mut record = Vec::with_capacity(size);
    for list in 0..lists {
        reader.store.check_cancel()?;
        record.clear();
        for part in 0..layout.centroid_pages {
            let block = meta.centroids + (list * layout.centroid_pages + part) as Block;
            let page = reader.read(block)?;
            expect_kind(&page, block, Kind::Centroids)?;
            let more = (size - record.len()).min(PAGE_SIZE - CENTROIDS_START);
            record.extend_from_slice(&page[CENTROIDS_START..CENTROIDS_START + more]);
        }
        take(list as u32, &record)?;
    }
    Ok(())
}

fn head_of(meta: &Meta, list: u32, record: &[u8]) -> Result<Block, IndexError> {
    let head = u32_at(record, 0);
    if head == NONE || head <= meta.centroids {
        return Err(corrupted(meta.centroids, format!("list {list} has no pages")));
    }
    Ok(head)
}

/// All lists with their terms for a query, in list order. `terms` is given `<q, c>` and `|c|^2`.
pub fn rank<S: PageStore>(
    reader: &mut Reader<S>,
    meta: &Meta,
    layout: &Layout,
    rotated: &[f32],
    terms: impl Fn(f32, f32) -> ListTerms,
) -> Result<Vec<RankedList>, IndexError> {
    let mut lists = with_room(meta.lists as usize)?;
    each_record(reader, meta, layout, |list, record| {
        let head = head_of(meta, list, record)?;
        let product = f32_at(record, 4) * dot(rotated, &record[CENTROID_HEADER..], Stored::I8);
        lists.push(RankedList {
            terms: terms(product, f32_at(record, 8)),
            head,
            list,
        });
        Ok(())
    })?;
    Ok(lists)
}

/// The heads of all lists.
pub fn heads<S: PageStore>(reader: &mut Reader<S>, meta: &Meta, layout: &Layout) -> Result<Vec<Block>, IndexError> {
    let mut heads = with_room(meta.lists as usize)?;
    each_record(reader, meta, layout, |list, record| {
        heads.push(head_of(meta, list, record)?);
        Ok(())
    })?;
    Ok(heads)
}

/// The list nearest to a rotated vector (less the origin): head, number and centroid.
pub fn nearest<S: PageStore>(
    reader: &mut Reader<S>,
    meta: &Meta,
    layout: &Layout,
    rotated: &[f32],
) -> Result<(Block, u32, Centroid), IndexError> {
    let mut best: Option<(f32, Block, u32, Centroid)> = None;
    each_record(reader, meta, layout, |list, record| {
        let components = &record[CENTROID_HEADER..];
        let scale = f32_at(record, 4);
        let score = f32_at(record, 8) - 2.0 * scale * dot(rotated, components, Stored::I8);
        if best.as_ref().is_none_or(|(s, ..)| score < *s) {
            let centroid = Centroid::decode(scale, components.iter().map(|&x| x as i8).collect());
            best = Some((score, head_of(meta, list, record)?, list, centroid));
        }
        Ok(())
    })?;
    best.map(|(_, head, list, centroid)| (head, list, centroid))
        .ok_or_else(|| corrupted(meta.centroids, "no centroids"))
}
