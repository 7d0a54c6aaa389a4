//! Loops of the pool: every task once, hooks, panics, threads.

use super::*;

#[test]
fn every_task_runs_once() {
    for threads in [1, 2, 5] {
        let pool = Pool::new(threads).unwrap();
        for tasks in [0usize, 1, 2, 7, 1000] {
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(tasks, |task| {
                counts[task].fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }
}

#[test]
fn many_short_loops_with_pauses() {
    let pool = Pool::new(3).unwrap();
    let total = AtomicUsize::new(0);
    for round in 0..3000usize {
        pool.run(round % 5, |_| {
            total.fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
        if round % 500 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(3));
        }
    }
    assert_eq!(total.load(Ordering::Relaxed), 3000 / 5 * 10);
}

#[test]
fn a_panic_is_an_error_and_the_pool_lives_on() {
    for threads in [1, 2] {
        let pool = Pool::new(threads).unwrap();
        let error = pool.run(64, |task| assert!(task != 13, "task thirteen")).unwrap_err();
        assert!(
            matches!(&error, ComputeError::Panicked(text) if text.contains("task thirteen")),
            "{error}"
        );
        pool.run(64, |_| ()).unwrap();
    }
}

#[test]
fn a_loop_is_stopped_by_its_caller() {
    for threads in [1, 3] {
        let pool = Pool::new(threads).unwrap();
        let (asked, ran) = (Cell::new(0), AtomicUsize::new(0));
        let stop = || {
            asked.set(asked.get() + 1);
            asked.get() == 5
        };
        let body = |_: usize, _: usize| {
            ran.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        let error = pool.run_until(10_000, &stop, body).unwrap_err();
        assert!(matches!(error, ComputeError::Stopped), "{error}");
        assert_eq!(asked.get(), 5);
        assert!((3..200).contains(&ran.load(Ordering::Relaxed)), "{ran:?}");
        let panics = || panic!("the hook");
        let error = pool.run_until(10_000, &panics, body).unwrap_err();
        assert!(
            matches!(&error, ComputeError::Panicked(text) if text.contains("hook")),
            "{error}"
        );
        pool.run(64, |_| ()).unwrap();
    }
}

#[test]
fn the_hook_of_a_loop_runs_loops() {
    for threads in [1, 3] {
        let pool = Pool::new(threads).unwrap();
        let (outer, inner) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let wide = Cell::new(0);
        let hook = || {
            let seen: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            pool.run_indexed(9, |thread, _| {
                seen[thread].fetch_add(1, Ordering::Relaxed);
                inner.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
            if inside_loop() {
                assert_eq!(seen[0].load(Ordering::Relaxed), 9, "on the calling thread alone");
            } else {
                wide.set(wide.get() + 1);
            }
            false
        };
        for _ in 0..50 {
            pool.run_until(7, &hook, |_, _| {
                outer.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
        }
        assert_eq!(outer.load(Ordering::Relaxed), 50 * 7);
        assert_eq!(inner.load(Ordering::Relaxed) % 9, 0);
        // Alone, a thread is never inside: it asks between any two tasks.
        assert_eq!(wide.get(), if threads == 1 { 50 * 7 } else { 50 });
    }
}

#[test]
fn loops_inside_loops_and_from_several_threads() {
    let pool = Pool::new(2).unwrap();
    let total = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..50 {
                    pool.run(4, |_| {
                        pool.run(3, |_| {
                            total.fetch_add(1, Ordering::Relaxed);
                        })
                        .unwrap();
                    })
                    .unwrap();
                }
            });
        }
    });
    assert_eq!(total.load(Ordering::Relaxed), 3 * 50 * 4 * 3);
}

#[test]
fn thread_numbers_are_not_shared() {
    let pool = Pool::new(4).unwrap();
    let busy: Vec<AtomicBool> = (0..4).map(|_| AtomicBool::new(false)).collect();
    pool.run_indexed(500, |thread, _| {
        assert!(
            !busy[thread].swap(true, Ordering::SeqCst),
            "number {thread} used twice at once"
        );
        std::thread::yield_now();
        busy[thread].store(false, Ordering::SeqCst);
    })
    .unwrap();
}

#[test]
fn pool_threads_block_signals() {
    let pool = Pool::new(2).unwrap();
    let barrier = std::sync::Barrier::new(2);
    let blocked = AtomicUsize::new(0);
    pool.run_indexed(2, |thread, _| {
        barrier.wait();
        // SAFETY: reads the calling thread's mask into a plain set.
        let has = unsafe {
            let mut mask: libc::sigset_t = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut mask);
            libc::sigismember(&mask, libc::SIGTERM) == 1
        };
        if thread == 1 && has {
            blocked.fetch_add(1, Ordering::Relaxed);
        } else if thread == 0 {
            assert!(!has, "the caller's own mask must be restored");
        }
    })
    .unwrap();
    assert_eq!(blocked.load(Ordering::Relaxed), 1);
}
