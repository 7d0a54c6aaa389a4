//! Scans that SQL cannot ask for.

use crate::pg::am::scan_state::QUERY_STRATEGY;
use crate::pg::search::query::Query;
use pgrx::pg_sys;
use pgrx::prelude::*;

#[pg_extern(sql = false)]
fn test_a_snapshot_that_is_not_mvcc_is_refused() {
    Spi::run("CREATE TABLE scans (v vector(3)); INSERT INTO scans VALUES ('[1,2,3]')").expect("a table");
    Spi::run("CREATE INDEX scans_v ON scans USING situ (v vector_l2_ops)").expect("an index");
    let oid = |name: &str| {
        Spi::get_one::<pg_sys::Oid>(&format!("SELECT '{name}'::regclass::oid"))
            .expect("a query")
            .expect("an OID")
    };
    let (table, index) = (oid("scans"), oid("scans_v"));
    let query = Query {
        embedding: Some(vec![1.0, 2.0, 3.0]),
        ..Query::default()
    };
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    for (kind, refused) in [
        (pg_sys::SnapshotType::SNAPSHOT_SELF, true),
        (pg_sys::SnapshotType::SNAPSHOT_MVCC, false),
    ] {
        // SAFETY: a table and an index of this transaction; the snapshot is on the stack and outlives the scan.
        let failed = unsafe {
            let heap = pg_sys::table_open(table, lock);
            let relation = pg_sys::index_open(index, lock);
            let mut snapshot = *pg_sys::GetActiveSnapshot();
            snapshot.snapshot_type = kind;
            #[cfg(feature = "pg18")]
            let scan = pg_sys::index_beginscan(heap, relation, &raw mut snapshot, std::ptr::null_mut(), 0, 1);
            #[cfg(not(feature = "pg18"))]
            let scan = pg_sys::index_beginscan(heap, relation, &raw mut snapshot, 0, 1);
            let mut key = pg_sys::ScanKeyData {
                sk_attno: 1,
                sk_strategy: QUERY_STRATEGY,
                sk_argument: query.clone().into_datum().expect("a datum"),
                ..Default::default()
            };
            pg_sys::index_rescan(scan, std::ptr::null_mut(), 0, &raw mut key, 1);
            let failed = PgTryBuilder::new(|| {
                pg_sys::index_getnext_tid(scan, pg_sys::ScanDirection::ForwardScanDirection);
                false
            })
            .catch_when(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, |_| true)
            .execute();
            pg_sys::index_endscan(scan);
            pg_sys::index_close(relation, lock);
            pg_sys::table_close(heap, lock);
            failed
        };
        assert_eq!(failed, refused);
    }
}
