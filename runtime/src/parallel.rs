//! Who brings the threads.

/// Runs a parallel range.
///
/// # Safety
/// `run` calls `task` for disjoint ranges that together are exactly `0..units`, and returns only when all these
/// calls have returned: generated code writes to memory on the strength of that.
pub unsafe trait ParallelFor: Sync {
    /// Runs `task(begin, end)` over `0..units`.
    fn run(&self, units: u64, task: &(dyn Fn(u64, u64) + Sync));

    /// Threads that take part, at least 1.
    fn threads(&self) -> usize;
}

/// No threads but the caller's: what bare metal has.
#[derive(Clone, Copy, Debug, Default)]
pub struct SingleThread;

// SAFETY: one call with the whole range, made before `run` returns.
unsafe impl ParallelFor for SingleThread {
    fn run(&self, units: u64, task: &(dyn Fn(u64, u64) + Sync)) {
        if units > 0 {
            task(0, units);
        }
    }

    fn threads(&self) -> usize {
        1
    }
}
