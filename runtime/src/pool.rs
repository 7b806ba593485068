//! Threads that wait close by: they spin for some microseconds after each parallel range and then sleep.
//!
//! A range is a *job*. The caller opens it, takes part, closes it when no units are left, and waits only for
//! workers that have entered. A worker that is asleep or not scheduled costs nothing: it does not enter a closed job.

use core::{
    cell::UnsafeCell,
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};
use std::{
    format, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Instant,
    vec::Vec,
};

use crate::ParallelFor;

/// How long a thread spins without giving way.
const SPIN: Duration = Duration::from_micros(5);
/// How long a thread spins in all, giving way to others, before it sleeps.
const SPIN_AND_YIELD: Duration = Duration::from_micros(40);
/// Pieces per thread that a range is cut into, so that a slow thread gets fewer.
const PIECES: u64 = 4;

/// Bits of [`Shared::state`]: number of workers inside, whether the job is open, and its generation above.
const INSIDE: u64 = OPEN - 1;
const OPEN: u64 = 1 << 31;
const GENERATION: u64 = 1 << 32;

type Task<'t> = dyn Fn(u64, u64) + Sync + 't;

#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    units: u64,
    piece: u64,
}

/// Keeps what different threads write on different cache lines.
#[repr(align(128))]
struct Apart<T>(T);

struct Shared {
    state: Apart<AtomicU64>,
    next: Apart<AtomicU64>,
    /// Written by the caller while the job is closed and nobody inside; read by those inside.
    job: UnsafeCell<Option<Job>>,
    /// A caller is between opening and closing a job.
    busy: AtomicBool,
    stop: AtomicBool,
    panicked: AtomicBool,
    sleepers: AtomicUsize,
    caller_sleeps: AtomicBool,
    lock: Mutex<()>,
    wake_workers: Condvar,
    wake_caller: Condvar,
}

// SAFETY: `job` is the only field that is not `Sync`; the protocol above orders its accesses, and its task is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters the open job unless it is that of `last`; returns its generation.
    fn enter(&self, last: u64) -> Option<u64> {
        let mut state = self.state.0.load(Ordering::Acquire);
        while state & OPEN != 0 && state / GENERATION != last {
            match self.state.0.compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(state / GENERATION),
                Err(now) => state = now,
            }
        }
        None
    }

    fn leave(&self) {
        let before = self.state.0.fetch_sub(1, Ordering::SeqCst);
        let last_one = before & INSIDE == 1 && before & OPEN == 0;
        if last_one && self.caller_sleeps.load(Ordering::SeqCst) {
            drop(self.lock());
            self.wake_caller.notify_one();
        }
    }

    /// Takes pieces of the job until none is left.
    fn work(&self, task: &Task<'_>, units: u64, piece: u64) {
        loop {
            let begin = self.next.0.fetch_add(piece, Ordering::Relaxed);
            if begin >= units {
                return;
            }
            task(begin, units.min(begin + piece));
        }
    }

    fn work_inside(&self) {
        // SAFETY: this thread is inside the job, so the caller does not write it, and entering it happened after the
        // caller's write.
        let job = unsafe { *self.job.get() };
        if let Some(Job { task, units, piece }) = job {
            // SAFETY: the caller keeps the task until nobody is inside.
            let task = unsafe { &*task };
            if catch_unwind(AssertUnwindSafe(|| self.work(task, units, piece))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
        }
    }

    fn worker(&self) {
        let mut last = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let mut entered = None;
            spin(|| {
                entered = self.enter(last);
                entered.is_some() || self.stop.load(Ordering::Relaxed)
            });
            match entered {
                Some(generation) => {
                    last = generation;
                    self.work_inside();
                    self.leave();
                }
                None => self.sleep(last),
            }
        }
    }

    /// Sleeps until a job is opened, unless one is open.
    fn sleep(&self, last: u64) {
        let guard = self.lock();
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let state = self.state.0.load(Ordering::SeqCst);
        let open = state & OPEN != 0 && state / GENERATION != last;
        if !open && !self.stop.load(Ordering::SeqCst) {
            let woken = self.wake_workers.wait(guard);
            drop(woken.unwrap_or_else(PoisonError::into_inner));
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Opens a job; the job must be closed, and nobody inside.
    fn open(&self, job: Job) {
        // SAFETY: closed and nobody inside (the acquiring load in `close` saw that), so nobody reads.
        unsafe { *self.job.get() = Some(job) };
        self.next.0.store(0, Ordering::Relaxed);
        // Wrapping is harmless: at worst a worker takes a job for one it has worked on, and stays out.
        let generation = self.state.0.load(Ordering::Relaxed) & !(GENERATION - 1);
        let opened = generation.wrapping_add(GENERATION) | OPEN;
        self.state.0.store(opened, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.lock());
            self.wake_workers.notify_all();
        }
    }

    /// Closes the job and waits until nobody is inside.
    fn close(&self) {
        self.state.0.fetch_and(!OPEN, Ordering::SeqCst);
        let empty = || self.state.0.load(Ordering::Acquire) & INSIDE == 0;
        if spin(empty) {
            return;
        }
        let mut guard = self.lock();
        self.caller_sleeps.store(true, Ordering::SeqCst);
        while self.state.0.load(Ordering::SeqCst) & INSIDE != 0 {
            let woken = self.wake_caller.wait(guard);
            guard = woken.unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_sleeps.store(false, Ordering::SeqCst);
    }
}

/// Waits actively for `done`, some microseconds at most; whether it came.
fn spin(mut done: impl FnMut() -> bool) -> bool {
    for _ in 0..16 {
        if done() {
            return true;
        }
        spin_loop();
    }
    let begin = Instant::now();
    loop {
        let spent = begin.elapsed();
        if spent >= SPIN_AND_YIELD {
            return false;
        }
        if spent >= SPIN {
            thread::yield_now();
        }
        for _ in 0..8 {
            if done() {
                return true;
            }
            spin_loop();
        }
    }
}

/// Closes the job also when the caller's own share panics: workers may still use its task.
struct Closing<'s>(&'s Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
        self.0.busy.store(false, Ordering::Release);
    }
}

/// A pool of threads, shared by sessions through an `Arc`.
///
/// A range that is begun inside another, or while another thread uses the pool, runs on the thread that begins it.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl ThreadPool {
    /// A pool of `threads` threads, the caller's included; 0 means as many as the machine has.
    pub fn new(threads: usize) -> io::Result<Self> {
        let threads = match threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let mut pool = Self {
            shared: Arc::new(Shared {
                state: Apart(AtomicU64::new(0)),
                next: Apart(AtomicU64::new(0)),
                job: UnsafeCell::new(None),
                busy: AtomicBool::new(false),
                stop: AtomicBool::new(false),
                panicked: AtomicBool::new(false),
                sleepers: AtomicUsize::new(0),
                caller_sleeps: AtomicBool::new(false),
                lock: Mutex::new(()),
                wake_workers: Condvar::new(),
                wake_caller: Condvar::new(),
            }),
            workers: Vec::new(),
        };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new().name(format!("lapidary-{index}"));
            pool.workers.push(worker.spawn(move || shared.worker())?);
        }
        Ok(pool)
    }
}

// SAFETY: `work` takes pieces of `0..units` from an atomic counter, so they are disjoint and cover it; `Closing` waits
// for all who took one.
unsafe impl ParallelFor for ThreadPool {
    fn run(&self, units: u64, task: &(dyn Fn(u64, u64) + Sync)) {
        let alone = units <= 1 || self.workers.is_empty();
        if alone || self.shared.busy.swap(true, Ordering::Acquire) {
            if units > 0 {
                task(0, units);
            }
            return;
        }
        let closing = Closing(&self.shared);
        let piece = units.div_ceil(self.threads() as u64 * PIECES);
        // SAFETY: only the lifetime changes; `closing` ends the task's use before this function returns.
        let lasting = unsafe { core::mem::transmute::<&Task<'_>, &'static Task<'static>>(task) };
        self.shared.open(Job { task: lasting, units, piece });
        self.shared.work(task, units, piece);
        drop(closing);
        if self.shared.panicked.swap(false, Ordering::Relaxed) {
            panic!("a task of the thread pool panicked");
        }
    }

    fn threads(&self) -> usize {
        self.workers.len() + 1
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(self.shared.lock());
        self.shared.wake_workers.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of tasks and has none of its own.
            let _ = worker.join();
        }
    }
}

impl core::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ThreadPool").field("threads", &self.threads()).finish()
    }
}
