//! `PageStore` over the buffer manager: what is committed is read back, what is dropped leaves no trace.

use crate::index::store::{CONTENT_START, PAGE_SIZE, PageChange, PageStore};
use crate::pg::store::RelationStore;
use pgrx::pg_sys;
use pgrx::prelude::*;

/// Says in the page's header (`pd_lower`, at byte 12) that the whole page is in use: what lies behind the used end is
/// dropped when a change is committed.
fn fill(page: &mut [u8; PAGE_SIZE]) {
    page[12..14].copy_from_slice(&(PAGE_SIZE as u16).to_ne_bytes());
}

/// Runs `test` over a store on a new, small index; pages may be added to its end.
fn with_store(test: impl FnOnce(RelationStore)) {
    Spi::run("CREATE TABLE pages (v vector(3)); INSERT INTO pages VALUES ('[1,2,3]')").expect("a table");
    Spi::run("CREATE INDEX pages_v ON pages USING situ (v vector_l2_ops)").expect("an index");
    let oid = Spi::get_one::<pg_sys::Oid>("SELECT 'pages_v'::regclass::oid")
        .expect("a query")
        .expect("an OID");
    // SAFETY: an index of this transaction, open while the store is used.
    unsafe {
        let relation = pg_sys::index_open(oid, pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE);
        test(RelationStore::new(relation));
        pg_sys::index_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
    }
}

#[pg_extern(sql = false)]
fn test_a_committed_change_is_read_back() {
    with_store(|store| {
        let before = store.blocks().expect("blocks");
        let mut change = store.change().expect("a change");
        let (block, page) = change.extend().expect("a new page");
        assert!(
            page[CONTENT_START..].iter().all(|byte| *byte == 0),
            "a new page is empty"
        );
        fill(page);
        page[CONTENT_START..CONTENT_START + 4].copy_from_slice(b"situ");
        page[PAGE_SIZE - 1] = 7;
        change.commit().expect("the commit");
        assert_eq!(store.blocks().expect("blocks"), before + 1);
        let page = store.read(block).expect("the page");
        assert_eq!(&page[CONTENT_START..CONTENT_START + 4], b"situ");
        assert_eq!(page[PAGE_SIZE - 1], 7);
    });
}

#[pg_extern(sql = false)]
fn test_a_dropped_change_leaves_the_page_as_it_was() {
    with_store(|store| {
        let mut change = store.change().expect("a change");
        let (block, page) = change.extend().expect("a new page");
        fill(page);
        page[CONTENT_START] = 1;
        change.commit().expect("the commit");

        let mut change = store.change().expect("a change");
        change.page(block).expect("the page")[CONTENT_START] = 2;
        drop(change);
        assert_eq!(store.read(block).expect("the page")[CONTENT_START], 1);
    });
}

#[pg_extern(sql = false)]
fn test_asking_twice_for_a_page_gives_the_same_bytes() {
    with_store(|store| {
        let mut change = store.change().expect("a change");
        let (block, page) = change.extend().expect("a new page");
        fill(page);
        change.page(block).expect("the page")[CONTENT_START] = 3;
        assert_eq!(change.page(block).expect("the page again")[CONTENT_START], 3);
        change.commit().expect("the commit");
        assert_eq!(store.read(block).expect("the page")[CONTENT_START], 3);
    });
}
