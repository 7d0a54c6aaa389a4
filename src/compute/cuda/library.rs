//! Whether CUDA's libraries are there. Every call of `cudarc` panics where its library is missing, so each entry to this
//! module asks here first.

use super::super::ComputeError;
use cudarc::{cublaslt, driver, nvrtc};
use std::sync::OnceLock;

/// The libraries, by the names that an error shows.
const DRIVER: &str = "libcuda (the GPU's driver)";
const MATMUL: &str = "libcublasLt (CUDA 13)";
const COMPILER: &str = "libnvrtc (CUDA 13)";

/// Fails with the name of the first library that cannot be loaded. The answer is kept for the process's life.
pub fn require_all() -> Result<(), ComputeError> {
    static MISSING: OnceLock<Option<&'static str>> = OnceLock::new();
    let missing = MISSING.get_or_init(|| {
        // SAFETY: loading a library runs its initialisers; these are the vendor's own, found as the system finds any.
        let found = unsafe {
            [
                (driver::sys::is_culib_present(), DRIVER),
                (cublaslt::sys::is_culib_present(), MATMUL),
                (nvrtc::sys::is_culib_present(), COMPILER),
            ]
        };
        found.into_iter().find(|(present, _)| !present).map(|(_, name)| name)
    });
    missing.map_or(Ok(()), |library| Err(ComputeError::Library { library }))
}

/// Whether the driver alone is there: enough to list GPUs.
pub fn has_driver() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    // SAFETY: as in `require_all`.
    *FOUND.get_or_init(|| unsafe { driver::sys::is_culib_present() })
}
