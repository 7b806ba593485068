//! What the timing model knows of an instruction.

use lapidary_npu_isa::access::Access;
use lapidary_npu_isa::address::Memory;
use lapidary_npu_isa::{Queue, instruction::Tokens};

use super::banks::BankSet;
use super::requests::Requests;
use crate::tally::Account;

/// Bounding range of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    memory: Memory,
    writes: bool,
    begin: u64,
    end: u64,
}

impl Default for Range {
    fn default() -> Range {
        Range { memory: Memory::Dram, writes: false, begin: 0, end: 0 }
    }
}

impl Range {
    pub(crate) fn of(access: &Access) -> Range {
        Range { memory: access.memory, writes: access.kind.writes(), begin: access.begin, end: access.end() }
    }

    /// Whether both have a unit in common that one of them changes.
    pub(crate) fn conflicts_with(&self, other: &Range) -> bool {
        self.memory == other.memory
            && (self.writes || other.writes)
            && self.begin.max(other.begin) < self.end.min(other.end)
    }
}

/// A transfer between DRAM and the chip.
#[derive(Clone, Debug)]
pub(crate) struct Transfer {
    pub requests: Requests,
    /// Rule D5.
    pub list_cycles: u64,
    pub ranges: [Range; 3],
    pub is_store: bool,
}

/// What an instruction does to its unit.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// Nothing: it passes by (rule Q4).
    Short,
    /// A tile into the array.
    Preload,
    /// Rows through the array.
    Pass { rows: u64, banks: Box<BankSet> },
    /// VECTOR and ROUTE. Of `cycles`, some are for turns at a bank's ports.
    Fixed { cycles: u64, conflict_cycles: u64, banks: Box<BankSet> },
    /// LOAD and STORE.
    Transfer(Box<Transfer>),
}

/// An instruction on its way to a queue.
#[derive(Clone, Debug)]
pub(crate) struct Issued {
    /// Position in the program.
    pub at: u32,
    pub queue: Queue,
    pub account: Account,
    pub tokens: Tokens,
    pub work: Work,
}
