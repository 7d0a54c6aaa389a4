//! Settings of the access method.

use super::kind::KeyKind;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, pg_sys};

static PROBES: GucSetting<i32> = GucSetting::<i32>::new(0);
static RECALL_TARGET: GucSetting<f64> = GucSetting::<f64>::new(0.0);
static EXACT: GucSetting<bool> = GucSetting::<bool>::new(false);
static BUILD_THREADS: GucSetting<i32> = GucSetting::<i32>::new(0);

/// Registers the settings.
pub fn define() {
    GucRegistry::define_int_guc(
        c"situ.probes",
        c"Inverted lists that a scan reads in its first round (0 = as many as reach situ.recall_target).",
        c"A scan goes on to further lists when more rows are asked for, whatever this is.",
        &PROBES,
        0,
        1_000_000,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_float_guc(
        c"situ.recall_target",
        c"Share of the ten nearest rows that a scan aims to find (0 = 0.95 over vectors, 0.99 over text).",
        c"The build measured how many lists and re-ranks reach it. 1 reads on until the bounds prove every row.",
        &RECALL_TARGET,
        0.0,
        1.0,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"situ.exact",
        c"Scans compare every vector of an index, instead of following its lists and codes.",
        c"The answers are those of a scan of the table. Small indexes are searched like this in any case.",
        &EXACT,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"situ.build_threads",
        c"Threads of an index build (0 = as many as the server grants: max_parallel_maintenance_workers + 1).",
        c"They cluster and assign vectors; they do not call into the server. More than it grants are not taken.",
        &BUILD_THREADS,
        0,
        1024,
        GucContext::Userset,
        GucFlags::default(),
    );
}

/// Lists of the first round, 0 for the calibrated number.
pub fn probes() -> u32 {
    PROBES.get().unsigned_abs()
}

/// The recall that a scan aims at where its query says none. Over text the encoding of the question costs more than what
/// a higher recall takes.
pub fn recall_target(kind: KeyKind) -> f32 {
    match (RECALL_TARGET.get(), kind) {
        (recall, _) if recall > 0.0 => recall as f32,
        (_, KeyKind::Text) => 0.99,
        _ => 0.95,
    }
}

/// Whether scans compare every vector.
pub fn exact() -> bool {
    EXACT.get()
}

/// Threads of an index build: what the server would give a parallel build of its own, the backend included, and no more than
/// the machine has. The setting only lowers it.
pub fn build_threads() -> usize {
    let machine = std::thread::available_parallelism().map_or(1, usize::from);
    let count = |number: i32| usize::try_from(number).unwrap_or(0);
    // SAFETY: plain settings of this process.
    let granted = unsafe {
        let workers = [
            pg_sys::max_parallel_maintenance_workers,
            pg_sys::max_parallel_workers,
            pg_sys::max_worker_processes,
        ];
        workers.map(count).into_iter().min().unwrap_or(0) + 1
    };
    let most = granted.min(machine);
    match count(BUILD_THREADS.get()) {
        0 => most,
        threads => threads.min(most),
    }
}
