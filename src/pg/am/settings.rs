//! Settings of the access method.

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

static PROBES: GucSetting<i32> = GucSetting::<i32>::new(0);
static BUILD_THREADS: GucSetting<i32> = GucSetting::<i32>::new(0);

/// Registers the settings.
pub fn define() {
    GucRegistry::define_int_guc(
        c"situ.probes",
        c"Inverted lists that a scan reads in its first round (0 = as calibrated when the index was built).",
        c"A scan goes on to further lists when more rows are asked for, whatever this is.",
        &PROBES,
        0,
        1_000_000,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"situ.build_threads",
        c"Threads of an index build (0 = max_parallel_maintenance_workers + 1, at most the machine's).",
        c"They cluster and assign vectors; they do not call into the server.",
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

/// Threads of an index build.
pub fn build_threads() -> usize {
    let machine = std::thread::available_parallelism().map_or(1, usize::from);
    match usize::try_from(BUILD_THREADS.get()) {
        Ok(threads) if threads > 0 => threads,
        // SAFETY: a plain setting of this process.
        _ => {
            let workers = unsafe { pgrx::pg_sys::max_parallel_maintenance_workers };
            (usize::try_from(workers).unwrap_or(0) + 1).min(machine)
        }
    }
}
