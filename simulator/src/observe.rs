//! Watching a run: traces and timelines, of which the timing model knows nothing but this.

use lapidary_npu_isa::Queue;

use crate::ledger::Cause;

/// An instruction that has started and whose end is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity {
    /// Who executes it.
    pub queue: Queue,
    /// Position in the program.
    pub at: u32,
    /// Part of the program: its place in the report's parts.
    pub part: u32,
    /// First cycle.
    pub begin: u64,
    /// First cycle after it.
    pub end: u64,
}

/// Sees what happens. Times of one unit ascend; those of different units may not.
pub trait Observer {
    /// An instruction's stay in its unit.
    fn activity(&mut self, activity: Activity);
    /// A unit spent cycles `begin` to `end` − 1 on one thing.
    fn spent(&mut self, queue: Queue, cause: Cause, begin: u64, end: u64);
    /// DRAM moved a burst for a queue, by cycle `at`.
    fn burst(&mut self, queue: Queue, at: u64, bytes: u64);
}

/// Nobody watches.
impl Observer for () {
    #[inline]
    fn activity(&mut self, _: Activity) {}
    #[inline]
    fn spent(&mut self, _: Queue, _: Cause, _: u64, _: u64) {}
    #[inline]
    fn burst(&mut self, _: Queue, _: u64, _: u64) {}
}

/// Both watch.
impl<A: Observer, B: Observer> Observer for (A, B) {
    fn activity(&mut self, activity: Activity) {
        self.0.activity(activity);
        self.1.activity(activity);
    }
    fn spent(&mut self, queue: Queue, cause: Cause, begin: u64, end: u64) {
        self.0.spent(queue, cause, begin, end);
        self.1.spent(queue, cause, begin, end);
    }
    fn burst(&mut self, queue: Queue, at: u64, bytes: u64) {
        self.0.burst(queue, at, bytes);
        self.1.burst(queue, at, bytes);
    }
}

/// Maybe somebody watches.
impl<A: Observer> Observer for Option<A> {
    fn activity(&mut self, activity: Activity) {
        if let Some(a) = self {
            a.activity(activity);
        }
    }
    fn spent(&mut self, queue: Queue, cause: Cause, begin: u64, end: u64) {
        if let Some(a) = self {
            a.spent(queue, cause, begin, end);
        }
    }
    fn burst(&mut self, queue: Queue, at: u64, bytes: u64) {
        if let Some(a) = self {
            a.burst(queue, at, bytes);
        }
    }
}

impl<A: Observer> Observer for &mut A {
    fn activity(&mut self, activity: Activity) {
        (**self).activity(activity);
    }
    fn spent(&mut self, queue: Queue, cause: Cause, begin: u64, end: u64) {
        (**self).spent(queue, cause, begin, end);
    }
    fn burst(&mut self, queue: Queue, at: u64, bytes: u64) {
        (**self).burst(queue, at, bytes);
    }
}

/// Shows an observer a run behind others: all times are `offset` cycles later.
#[derive(Debug)]
pub struct After<'o, O> {
    /// Who watches.
    pub observer: &'o mut O,
    /// Cycles of the runs before.
    pub offset: u64,
}

impl<O: Observer> Observer for After<'_, O> {
    fn activity(&mut self, activity: Activity) {
        let (begin, end) = (activity.begin + self.offset, activity.end + self.offset);
        self.observer.activity(Activity { begin, end, ..activity });
    }
    fn spent(&mut self, queue: Queue, cause: Cause, begin: u64, end: u64) {
        self.observer.spent(queue, cause, begin + self.offset, end + self.offset);
    }
    fn burst(&mut self, queue: Queue, at: u64, bytes: u64) {
        self.observer.burst(queue, at + self.offset, bytes);
    }
}
