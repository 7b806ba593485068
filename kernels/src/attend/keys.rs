//! Which keys a query sees.

use crate::args::AttendArgs;
use core::ops::Range;

/// Keys of a block: with heads of 64 elements their keys and values fill 32 KiB.
pub(super) const BLOCK_KEYS: usize = 64;

/// Positions of the keys of one block.
pub(super) struct Block {
    pub(super) position: [usize; BLOCK_KEYS],
    pub(super) len: usize,
}

/// The keys that one query sees, each once: the sinks, the window, then its cluster's chain outside of both.
pub(super) struct Keys {
    pub(super) sinks: Range<usize>,
    pub(super) window: Range<usize>,
    /// Positions of the chain that are not in the other two.
    between: Range<usize>,
    previous: *const i32,
    /// Next position of the chain, negative at its end.
    next: i64,
    /// How many positions of the chain may still count.
    left: u64,
}

impl Keys {
    /// Keys of `attend_range`.
    #[inline(always)]
    pub(super) fn in_range(args: &AttendArgs, position: usize) -> Self {
        let end = if args.causal != 0 { position + 1 } else { args.num_keys as usize };
        let begin = if args.window > 0 { (position + 1).saturating_sub(args.window as usize) } else { 0 };
        Self { sinks: 0..0, window: begin..end, between: 0..0, previous: args.previous, next: -1, left: 0 }
    }

    /// Keys of `attend_clustered`.
    #[inline(always)]
    pub(super) fn clustered(args: &AttendArgs, position: usize) -> Self {
        let end = position + 1;
        let sinks = end.min(args.sinks as usize);
        let window = end.saturating_sub(args.window as usize).max(sinks);
        Self {
            sinks: 0..sinks,
            window: window..end,
            between: sinks..window,
            previous: args.previous,
            next: position as i64,
            left: args.cluster_cap,
        }
    }

    /// Leaves only the chain.
    #[inline(always)]
    pub(super) fn skip_ranges(&mut self) {
        self.sinks.start = self.sinks.end;
        self.window.start = self.window.end;
    }

    /// Fills a block with the next keys.
    ///
    /// # Safety
    /// The chain is empty, or `previous` has an element for its first position and every earlier one.
    #[inline(always)]
    pub(super) unsafe fn fill(&mut self, block: &mut Block) {
        block.len = 0;
        for range in [&mut self.sinks, &mut self.window] {
            let taken = range.len().min(BLOCK_KEYS - block.len);
            for position in &mut block.position[block.len..block.len + taken] {
                *position = range.start;
                range.start += 1;
            }
            block.len += taken;
        }
        while block.len < BLOCK_KEYS && self.left > 0 && self.next >= 0 {
            let key = self.next as usize;
            self.left -= 1;
            // SAFETY: the chain only descends from its first position.
            let previous = i64::from(unsafe { self.previous.add(key).read() });
            // A chain that does not descend is broken: it ends, instead of running in circles.
            self.next = if previous < self.next { previous } else { -1 };
            if self.between.contains(&key) {
                block.position[block.len] = key;
                block.len += 1;
            }
        }
    }
}
