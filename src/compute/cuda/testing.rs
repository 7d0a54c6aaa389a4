//! The GPU of the tests: a real one where there is one, else the emulated one of kernels/emulate/, which needs a C++
//! compiler. `SITU_TEST_CUDA=emulated` takes the emulated one on every machine, `SITU_TEST_CUDA=gpu` insists on a GPU.

use super::engine::Engine;
use parking_lot::{Mutex, MutexGuard};
use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, OnceLock};

/// What the kernels of these tests run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    Gpu,
    Emulated,
}

/// An engine, and the turn: the emulated GPU is not thread-safe, and switches of one test must not reach another.
pub struct Bench {
    pub platform: Platform,
    pub engine: Arc<Engine>,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

/// The platform, decided once; `None` where there is neither GPU nor compiler.
fn platform() -> Option<Platform> {
    static FOUND: OnceLock<Option<Platform>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let wanted = std::env::var("SITU_TEST_CUDA").unwrap_or_default();
        let emulated = wanted == "emulated";
        if wanted == "card" {
            assert!(
                !super::gpus().is_empty(),
                "SITU_TEST_CUDA asks for a card, and none is found"
            );
            return Some(Platform::Gpu);
        }
        // Asking for a GPU loads the driver's library: the emulated one has to be loaded before where it is wanted.
        if !emulated && std::path::Path::new("/dev/nvidiactl").exists() && !super::gpus().is_empty() {
            return Some(Platform::Gpu);
        }
        load_emulated().map(|()| Platform::Emulated)
    })
}

/// Builds and loads the emulated libraries, so that the loader finds them when CUDA is looked for by name.
fn load_emulated() -> Option<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let folder = std::env::current_exe().ok()?.parent()?.join("emulate");
    let output = Command::new("sh")
        .arg(root.join("kernels/emulate/build.sh"))
        .arg(folder)
        .output()
        .ok()?;
    if output.status.code() == Some(3) {
        return None;
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the emulated card does not build: {errors}");
    let folder = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    for name in ["libcuda.so", "libnvrtc.so", "libcublasLt.so"] {
        let path = CString::new(folder.join(name).to_str()?).ok()?;
        // SAFETY: our own library, without initialisers; the name is a C string.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        // SAFETY: the loader answers with a string of its own after a failure.
        assert!(!handle.is_null(), "{:?}", unsafe { CStr::from_ptr(libc::dlerror()) });
    }
    Some(())
}

/// An engine on the test's platform; prints why where there is none.
pub fn bench() -> Option<Bench> {
    let turn = TURN.lock();
    let Some(platform) = platform() else {
        println!("SKIPPED: neither a card nor a C++ compiler for the emulated one");
        return None;
    };
    if platform == Platform::Emulated {
        println!("SKIPPED on a card: there is none; the kernels run emulated");
    }
    Some(Bench {
        platform,
        engine: Engine::open(0, None).expect("an engine"),
        _turn: turn,
    })
}

/// A switch or counter of the emulated GPU; the caller knows its type.
pub fn switch(name: &CStr) -> *mut libc::c_void {
    // SAFETY: a look-up by name.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    assert!(!found.is_null(), "{name:?}");
    found
}

/// A counter of the emulated GPU.
pub fn counter(name: &CStr) -> u64 {
    // SAFETY: all counters have this type.
    let read: extern "C" fn() -> u64 = unsafe { std::mem::transmute(switch(name)) };
    read()
}

/// Memory of the emulated GPU, in bytes.
pub fn set_memory(bytes: usize) {
    // SAFETY: the type of this switch.
    let set: extern "C" fn(usize) = unsafe { std::mem::transmute(switch(c"emulate_set_memory")) };
    set(bytes);
}

/// Takes the emulated GPU away, or gives it back.
pub fn lose(lost: bool) {
    // SAFETY: the type of this switch.
    let set: extern "C" fn(bool) = unsafe { std::mem::transmute(switch(c"emulate_lose")) };
    set(lost);
}
