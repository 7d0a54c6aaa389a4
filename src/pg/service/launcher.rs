//! The launcher: a static background worker that keeps one encoder worker alive, with back-off.

use super::shared::{self, Shared};
use super::statistics::add;
use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
use pgrx::{pg_guard, pg_sys};
use std::ffi::CStr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Pause before the first new start, doubled with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How often a worker that starts or ends is looked at.
const ENDING: Duration = Duration::from_millis(20);
/// A worker that lived this long was a success.
const SUCCESS: Duration = Duration::from_secs(5);

fn copy<const N: usize>(to: &mut [std::ffi::c_char; N], from: &CStr) {
    for (to, from) in to.iter_mut().zip(from.to_bytes().iter().take(N - 1)) {
        *to = *from as std::ffi::c_char;
    }
}

fn worker(name: &CStr, function: &CStr, restart: i32) -> pg_sys::BackgroundWorker {
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: pg_sys::BGWORKER_SHMEM_ACCESS as i32,
        bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_ConsistentState,
        bgw_restart_time: restart,
        ..Default::default()
    };
    copy(&mut worker.bgw_name, name);
    copy(&mut worker.bgw_type, name);
    copy(&mut worker.bgw_library_name, c"situ");
    copy(&mut worker.bgw_function_name, function);
    worker
}

/// Registers the launcher. In `_PG_init`, while the postmaster loads its libraries.
pub fn register() {
    let mut launcher = worker(c"situ launcher", c"situ_launcher_main", 1);
    // SAFETY: the server copies the structure.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut launcher) }
}

/// Entry of the launcher's process.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn situ_launcher_main(_argument: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    let Some(shared) = Shared::get() else { return };
    // SAFETY: this process's latch in the server's process table.
    shared
        .launcher_latch
        .store(unsafe { pg_sys::MyLatch }, Ordering::SeqCst);
    let mut child: Option<(*mut pg_sys::BackgroundWorkerHandle, Instant)> = None;
    let mut epoch_before = 0;
    let mut pause = FIRST_PAUSE / 2;
    let mut next_start = Instant::now();
    while !BackgroundWorker::sigterm_received() {
        if BackgroundWorker::sighup_received() {
            // SAFETY: outside of a transaction, as the server's own workers do.
            unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
        }
        if let Some((handle, since)) = child
            && stopped(handle)
        {
            child = None;
            pause = if since.elapsed() >= SUCCESS {
                FIRST_PAUSE
            } else {
                longer(pause)
            };
            next_start = Instant::now() + pause;
            add(&shared.account.counters.restarts, 1);
            pgrx::log!(
                "situ launcher: the encoder worker ended; a new one starts in {} ms",
                pause.as_millis()
            );
            if shared.epoch.load(Ordering::SeqCst) == epoch_before {
                shared.start_failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        // A worker of an earlier launcher may still be on its way out.
        if child.is_none() && Instant::now() >= next_start && !shared.worker_runs() {
            epoch_before = shared.epoch.load(Ordering::SeqCst);
            match start() {
                Some(handle) => child = Some((handle, Instant::now())),
                None => {
                    shared.start_failures.fetch_add(1, Ordering::Relaxed);
                    shared.note_error("no background worker slot is free for the encoder: raise max_worker_processes");
                    pgrx::log!("situ launcher: no background worker slot is free: raise max_worker_processes");
                    pause = longer(pause);
                    next_start = Instant::now() + pause;
                }
            }
        }
        let wait = match child {
            Some(_) if shared.worker_runs() => Duration::from_secs(5),
            Some(_) => ENDING,
            None => next_start
                .saturating_duration_since(Instant::now())
                .clamp(FIRST_PAUSE / 10, LONGEST_PAUSE),
        };
        sleep(wait);
    }
    if let Some((handle, _)) = child {
        // SAFETY: a handle that the server gave for a worker of ours.
        unsafe { pg_sys::TerminateBackgroundWorker(handle) };
    }
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(LONGEST_PAUSE)
}

/// Starts a worker; `None` where the server has no room for one.
fn start() -> Option<*mut pg_sys::BackgroundWorkerHandle> {
    let mut encoder = worker(c"situ encoder", c"situ_encoder_main", pg_sys::BGW_NEVER_RESTART);
    let mut handle = std::ptr::null_mut();
    // SAFETY: the server copies the structure; the handle is allocated in a context that lives as long as we do.
    unsafe {
        let previous = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        let registered = pg_sys::RegisterDynamicBackgroundWorker(&mut encoder, &mut handle);
        pg_sys::MemoryContextSwitchTo(previous);
        registered.then_some(handle)
    }
}

fn stopped(handle: *mut pg_sys::BackgroundWorkerHandle) -> bool {
    let mut pid = 0;
    // SAFETY: a handle that the server gave.
    let status = unsafe { pg_sys::GetBackgroundWorkerPid(handle, &mut pid) };
    status == pg_sys::BgwHandleStatus::BGWH_STOPPED
}

fn sleep(wait: Duration) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: this process's own latch.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            events as i32,
            wait.as_millis() as i64,
            shared::wait_event(),
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}
