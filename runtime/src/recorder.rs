//! Times of the steps of calls.

use std::{
    cell::Cell,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
    vec::Vec,
};

use crate::Observer;

/// A step, or a module's share of one, on one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// Record of the artifact's step table.
    pub step: u32,
    /// The module, for a share of a step.
    pub module: Option<u32>,
    /// The thread, numbered from 0 in the order in which threads were first seen by the process.
    pub thread: u32,
    /// Begin, since the recorder was made.
    pub begin_ns: u64,
    /// End, not before the begin.
    pub end_ns: u64,
}

/// An [`Observer`] that keeps the time of every step.
///
/// A step lasts from the end of the one before it (or the begin of the call) to its own end, so that the steps of a
/// call cover it without a gap; what the clock and the recorder take is part of that.
#[derive(Debug)]
pub struct Recorder {
    origin: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    step_begin_ns: u64,
    intervals: Vec<Interval>,
}

static THREADS: AtomicU32 = AtomicU32::new(0);

std::thread_local! {
    static THREAD: u32 = THREADS.fetch_add(1, Ordering::Relaxed);
    /// Where the current part of a step, or the module in it, began.
    static PART_BEGIN_NS: Cell<u64> = const { Cell::new(0) };
}

impl Recorder {
    /// Begins to count time.
    pub fn new() -> Self {
        Self { origin: Instant::now(), state: Mutex::default() }
    }

    /// Time since the recorder was made.
    pub fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// Takes what was recorded so far.
    pub fn take(&self) -> Vec<Interval> {
        self.with(|state| core::mem::take(&mut state.intervals))
    }

    fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Observer for Recorder {
    fn begin_call(&self, _: u64, _: u64) {
        self.with(|state| state.step_begin_ns = self.now_ns());
        self.begin_part();
    }

    fn begin_part(&self) {
        PART_BEGIN_NS.set(self.now_ns());
    }

    fn end_step(&self, step: u64, _: &[u8]) {
        let end_ns = self.now_ns();
        self.with(|state| {
            let begin_ns = core::mem::replace(&mut state.step_begin_ns, end_ns);
            let thread = THREAD.with(|thread| *thread);
            state.intervals.push(Interval { step: step as u32, module: None, thread, begin_ns, end_ns });
        });
        self.begin_part();
    }

    fn end_module(&self, step: u64, module: u64) {
        let end_ns = self.now_ns();
        let begin_ns = PART_BEGIN_NS.replace(end_ns);
        let thread = THREAD.with(|thread| *thread);
        let interval = Interval { step: step as u32, module: Some(module as u32), thread, begin_ns, end_ns };
        self.with(|state| state.intervals.push(interval));
    }
}
