//! Where a unit's cycles went: each is spent on exactly one thing.

use lapidary_npu_isa::Queue;

use crate::observe::Observer;

macro_rules! causes {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal,)*) => {
        /// What a cycle of a unit is spent on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Cause {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Cause {
            /// Every one; the first is work, the others are stalls.
            pub const ALL: &[Cause] = &[$(Cause::$variant),*];

            /// Its name in reports.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Cause::$variant => $name,)*
                }
            }

            /// What it means.
            pub const fn about(self) -> &'static str {
                match self {
                    $(Cause::$variant => concat!($($doc),*),)*
                }
            }
        }
    };
}

causes! {
    /// It works. Of LOAD and STORE: data move on the DRAM's bus.
    Busy = "busy",
    /// The next instruction waits for tokens.
    TokenWait = "token_wait",
    /// Another unit holds a bank of the scratchpad, or streams take turns at one.
    BankConflict = "bank_conflict",
    /// The next transfer waits for a DMA channel or for an earlier one that touches the same bytes.
    DmaBusy = "dma_busy",
    /// DMA setup, the column command, or the limit on requests in flight.
    DmaLatency = "dma_latency",
    /// The DRAM's bus moves other data.
    Bandwidth = "bandwidth",
    /// Rows of DRAM are closed and opened.
    RowMiss = "row_miss",
    /// DRAM refreshes.
    Refresh = "refresh",
    /// The sequencer waits for a place in a queue.
    QueueFull = "queue_full",
    /// The sequencer has not issued the next instruction yet.
    QueueEmpty = "queue_empty",
    /// The program has ended, other units have not.
    NothingLeft = "nothing_left",
}

/// The cycles of one unit.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    queue: Queue,
    cycles: [u64; Cause::ALL.len()],
    /// Cycles before this one are accounted for.
    until: u64,
    /// What cycles from there on are spent on if nothing else happens.
    pub idle_cause: Cause,
}

impl Ledger {
    pub(crate) fn new(queue: Queue) -> Ledger {
        Ledger { queue, cycles: [0; Cause::ALL.len()], until: 0, idle_cause: Cause::QueueEmpty }
    }

    /// Cycles by cause.
    pub(crate) fn cycles(&self) -> &[u64; Cause::ALL.len()] {
        &self.cycles
    }

    /// First cycle that is not accounted for.
    #[inline]
    pub(crate) fn until(&self) -> u64 {
        self.until
    }

    /// Spends the next `count` cycles.
    #[inline]
    pub(crate) fn spend(&mut self, cause: Cause, count: u64, observer: &mut impl Observer) {
        if count > 0 {
            self.cycles[cause as usize] += count;
            observer.spent(self.queue, cause, self.until, self.until + count);
            self.until += count;
        }
    }

    /// Spends all cycles before `end` that are not accounted for.
    #[inline]
    pub(crate) fn spend_until(&mut self, cause: Cause, end: u64, observer: &mut impl Observer) {
        self.spend(cause, end.saturating_sub(self.until), observer);
    }

    /// Nothing happened before `end`.
    #[inline]
    pub(crate) fn idle_until(&mut self, end: u64, observer: &mut impl Observer) {
        self.spend_until(self.idle_cause, end, observer);
    }
}
