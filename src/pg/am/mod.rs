//! The access method: one file a group of callbacks. This one names them to the server.

pub mod build;
pub mod cost;
mod entries;
pub mod insert;
pub mod kind;
pub mod options;
pub mod planner;
pub mod returned_distances;
pub mod rows;
pub mod scan;
pub mod scan_state;
pub mod settings;
pub mod spool;
pub mod text_index;
pub mod users;
pub mod vacuum;
pub mod waiting;

use pgrx::pg_sys;

/// Called once when the library is loaded.
pub fn define() {
    options::define();
    settings::define();
    insert::define();
    planner::define();
}

/// Tells the server that [`situ_handler`] uses the version-1 calling convention.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_finfo_situ_handler() -> *const pg_sys::Pg_finfo_record {
    static RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &raw const RECORD
}

/// The handler function of `CREATE ACCESS METHOD situ`.
///
/// # Safety
/// Called by the server.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn situ_handler(_call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: a node of the right tag and size in the caller's memory context, zeroed where not set here.
    unsafe {
        let routine = pg_sys::palloc0(std::mem::size_of::<pg_sys::IndexAmRoutine>()).cast::<pg_sys::IndexAmRoutine>();
        let methods = &mut *routine;
        methods.type_ = pg_sys::NodeTag::T_IndexAmRoutine;
        methods.amsupport = 1;
        methods.amcanorderbyop = true;
        methods.amcanmulticol = true;
        methods.amoptionalkey = true;
        methods.amusemaintenanceworkmem = true;
        methods.ambuild = Some(build::ambuild);
        methods.ambuildempty = Some(build::ambuildempty);
        methods.aminsert = Some(insert::aminsert);
        #[cfg(not(feature = "pg16"))]
        {
            methods.aminsertcleanup = Some(insert::aminsertcleanup);
        }
        methods.ambulkdelete = Some(vacuum::ambulkdelete);
        methods.amvacuumcleanup = Some(vacuum::amvacuumcleanup);
        methods.amcostestimate = Some(cost::amcostestimate);
        methods.amoptions = Some(options::amoptions);
        methods.ambuildphasename = Some(build::ambuildphasename);
        methods.amvalidate = Some(amvalidate);
        methods.ambeginscan = Some(scan::ambeginscan);
        methods.amrescan = Some(scan::amrescan);
        methods.amgettuple = Some(scan::amgettuple);
        methods.amendscan = Some(scan::amendscan);
        pg_sys::Datum::from(routine)
    }
}

/// Access-method callback: an operator class is valid if its support function gives a kind, which every build checks.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn amvalidate(_class: pg_sys::Oid) -> bool {
    true
}

/// Whether an open index is of this access method.
///
/// # Safety
/// `index` is open.
pub unsafe fn is_ours(index: pg_sys::Relation) -> bool {
    // SAFETY: the caller's promise; an index's relcache entry holds its access method's routines.
    let built_by = unsafe { (*index).rd_indam.as_ref() }.and_then(|methods| methods.ambuild);
    built_by.map(|function| function as usize) == Some(build::ambuild as *const () as usize)
}
