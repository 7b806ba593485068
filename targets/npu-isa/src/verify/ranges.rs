//! Who touched which part of a memory last.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// The sequencer and the five queues.
pub(super) const AGENTS: usize = 6;

/// Number of an agent's event, from 1, and its instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    pub number: u32,
    pub at: u32,
}

/// The latest of each agent; earlier ones of the same agent are ordered before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Last {
    pub reads: [Event; AGENTS],
    pub writes: [Event; AGENTS],
}

/// A memory as parts from a begin to an end, each with who touched it last.
#[derive(Debug, Default)]
pub(super) struct Ranges(BTreeMap<u64, (u64, Last)>);

impl Ranges {
    /// Cuts the part that `at` is inside of.
    fn cut(&mut self, at: u64) {
        if let Some((_, (end, last))) = self.0.range_mut(..at).next_back()
            && *end > at
        {
            let right = (*end, *last);
            *end = at;
            self.0.insert(at, right);
        }
    }

    /// Calls `conflict` with each part of `begin..end` that was touched before, until it finds something; then notes the event.
    pub(super) fn touch<T>(
        &mut self,
        begin: u64,
        end: u64,
        (agent, event, writes): (usize, Event, bool),
        conflict: impl Fn(u64, &Last) -> Option<T>,
    ) -> Option<T> {
        if begin >= end {
            return None;
        }
        self.cut(begin);
        self.cut(end);
        let mut free = begin;
        let mut gaps = Vec::new();
        for (at, (to, last)) in self.0.range_mut(begin..end) {
            if let Some(found) = conflict(*at, last) {
                return Some(found);
            }
            if *at > free {
                gaps.push((free, *at));
            }
            free = *to;
            let side = if writes { &mut last.writes } else { &mut last.reads };
            side[agent] = event;
        }
        if free < end {
            gaps.push((free, end));
        }
        for (from, to) in gaps {
            let mut last = Last::default();
            let side = if writes { &mut last.writes } else { &mut last.reads };
            side[agent] = event;
            self.0.insert(from, (to, last));
        }
        None
    }
}
