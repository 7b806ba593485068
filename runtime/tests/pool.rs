//! The thread pool: every unit once, whatever the threads do.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lapidary_runtime::{ParallelFor, SingleThread, ThreadPool};

fn check(pool: &dyn ParallelFor, units: u64) {
    let hits: Vec<AtomicU32> = (0..units).map(|_| AtomicU32::new(0)).collect();
    pool.run(units, &|begin, end| {
        assert!(begin < end && end <= units);
        for unit in begin..end {
            hits[unit as usize].fetch_add(1, Ordering::Relaxed);
        }
    });
    assert!(hits.iter().all(|hits| hits.load(Ordering::Relaxed) == 1));
}

#[test]
fn every_unit_runs_once() {
    check(&SingleThread, 0);
    check(&SingleThread, 7);
    for threads in 1..=8 {
        let pool = ThreadPool::new(threads).unwrap();
        assert_eq!(pool.threads(), threads);
        for units in (0..40).chain([100, 1000, 4099]) {
            check(&pool, units);
        }
    }
}

#[test]
fn many_short_ranges_with_pauses() {
    let pool = ThreadPool::new(4).unwrap();
    let sum = AtomicU64::new(0);
    for round in 0..20_000_u64 {
        let units = round % 13;
        pool.run(units, &|begin, end| {
            sum.fetch_add((begin..end).sum(), Ordering::Relaxed);
        });
        // Long enough that workers fall asleep now and then, at every stage of doing so.
        if round % 500 == 0 {
            thread::sleep(Duration::from_micros(round % 160));
        }
    }
    let expected = (0..20_000_u64).map(|round| (0..round % 13).sum::<u64>());
    assert_eq!(sum.into_inner(), expected.sum::<u64>());
}

#[test]
fn results_of_workers_are_seen_by_the_caller() {
    let pool = ThreadPool::new(3).unwrap();
    let mut data = vec![0_u64; 1000];
    struct Cells(*mut u64);
    // SAFETY: threads write disjoint elements.
    unsafe impl Sync for Cells {}
    impl Cells {
        fn add(&self, index: u64) {
            // SAFETY: `index` is below the length, and no other thread has it.
            unsafe { *self.0.add(index as usize) += index };
        }
    }
    for round in 1..=500 {
        let cells = Cells(data.as_mut_ptr());
        pool.run(1000, &|begin, end| (begin..end).for_each(|index| cells.add(index)));
        assert!(data.iter().zip(0..).all(|(value, index)| *value == index * round));
    }
}

#[test]
fn a_range_inside_a_range_runs_on_its_thread() {
    let pool = ThreadPool::new(4).unwrap();
    let sum = AtomicU64::new(0);
    pool.run(50, &|begin, end| {
        for _ in begin..end {
            let this = thread::current().id();
            pool.run(100, &|begin, end| {
                assert_eq!(thread::current().id(), this);
                sum.fetch_add(end - begin, Ordering::Relaxed);
            });
        }
    });
    assert_eq!(sum.into_inner(), 5000);
}

#[test]
fn several_callers_share_a_pool() {
    let pool = Arc::new(ThreadPool::new(3).unwrap());
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let pool = Arc::clone(&pool);
            thread::spawn(move || (0..500).for_each(|round| check(&*pool, round % 37)))
        })
        .collect();
    for caller in callers {
        caller.join().unwrap();
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_survives() {
    let pool = ThreadPool::new(4).unwrap();
    for bad in [0, 17, 63] {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(64, &|begin, end| assert!(!(begin..end).contains(&bad), "on purpose"));
        }));
        assert!(result.is_err());
        check(&pool, 100);
    }
}

#[test]
fn pools_come_and_go() {
    for round in 0..50 {
        let pool = ThreadPool::new(1 + round % 5).unwrap();
        if round % 2 == 0 {
            check(&pool, 10);
        }
        if round % 3 == 0 {
            thread::sleep(Duration::from_micros(100));
        }
    }
}

#[test]
fn more_threads_than_cores_do_not_collapse() {
    let cores = thread::available_parallelism().unwrap().get();
    let pool = ThreadPool::new(cores * 4).unwrap();
    let begin = Instant::now();
    for _ in 0..2000 {
        check(&pool, 64);
    }
    // A pool that waits for threads without a core needs a scheduler's slice, milliseconds, per range.
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}
