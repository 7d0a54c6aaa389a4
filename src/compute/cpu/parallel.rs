//! Short-lived threads for a loop.
//!
//! The threads of a loop block every signal, so that a server's signal handlers run in its own thread alone.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Blocks every signal in the calling thread until dropped; threads spawned meanwhile inherit the mask.
pub struct SignalsBlocked {
    before: libc::sigset_t,
}

impl SignalsBlocked {
    #[allow(clippy::new_without_default)] // not a plain value
    pub fn new() -> Self {
        // SAFETY: both sets are plain data that the calls fill in; zero is a valid initial state for them.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
            SignalsBlocked { before }
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: `before` was filled in by pthread_sigmask.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut());
        }
    }
}

/// Runs `work(i)` for every `i` below `n` on up to `threads` threads, the calling one among them.
///
/// Tasks are handed out one at a time in ascending order. If a thread cannot be started the others do its share.
pub fn parallel_for<F: Fn(usize) + Sync>(threads: usize, n: usize, work: F) {
    let helpers = threads.min(n).saturating_sub(1);
    if helpers == 0 {
        (0..n).for_each(work);
        return;
    }
    let next = AtomicUsize::new(0);
    let run = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= n {
                break;
            }
            work(i);
        }
    };
    std::thread::scope(|scope| {
        {
            let _blocked = SignalsBlocked::new();
            for _ in 0..helpers {
                if std::thread::Builder::new()
                    .name("situ-loop".into())
                    .spawn_scoped(scope, run)
                    .is_err()
                {
                    break;
                }
            }
        }
        run();
    });
}

/// Like [`parallel_for`], over pieces of `items` of `piece` elements (the last may be shorter); `work` is given the
/// piece's number and the piece.
pub fn parallel_chunks<T: Send, F: Fn(usize, &mut [T]) + Sync>(threads: usize, items: &mut [T], piece: usize, work: F) {
    let pieces: Vec<parking_lot::Mutex<&mut [T]>> =
        items.chunks_mut(piece.max(1)).map(parking_lot::Mutex::new).collect();
    parallel_for(threads, pieces.len(), |i| work(i, &mut pieces[i].lock()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let counts: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
            parallel_for(threads, counts.len(), |i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn chunks_cover_the_items() {
        let mut items = vec![0usize; 103];
        parallel_chunks(3, &mut items, 10, |piece, part| {
            part.iter_mut().for_each(|x| *x = piece + 1)
        });
        assert!(items.iter().enumerate().all(|(i, &x)| x == i / 10 + 1));
    }

    #[test]
    fn helper_threads_block_signals() {
        let blocked = AtomicUsize::new(0);
        let seen = AtomicUsize::new(0);
        let main = std::thread::current().id();
        parallel_for(2, 64, |_| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            if std::thread::current().id() == main {
                return;
            }
            seen.fetch_add(1, Ordering::Relaxed);
            // SAFETY: the set is filled in by pthread_sigmask before it is read.
            let is_blocked = unsafe {
                let mut now: libc::sigset_t = std::mem::zeroed();
                libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), &mut now);
                libc::sigismember(&now, libc::SIGTERM) == 1
            };
            blocked.fetch_add(usize::from(is_blocked), Ordering::Relaxed);
        });
        assert!(seen.load(Ordering::Relaxed) > 0);
        assert_eq!(blocked.load(Ordering::Relaxed), seen.load(Ordering::Relaxed));
    }
}
