//! Why a program has no run.

use lapidary_npu_isa::program::StructureError;

/// A fault: the instruction, and what it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Position of the instruction.
    pub at: usize,
    /// Its text.
    pub text: String,
    /// What is wrong: an operand, a count, a counter.
    pub what: String,
    /// What would be right.
    pub wanted: String,
    /// What it is.
    pub found: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Fault { at, text, what, wanted, found } = self;
        write!(f, "instruction {at} (`{text}`): {what}: wanted {wanted}, found {found}")
    }
}

/// What a run is not allowed to spend more of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// [`crate::Limits::cycles`].
    Cycles,
    /// [`crate::Limits::steps`].
    Steps,
    /// [`crate::Limits::dram_bytes`].
    DramBytes,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Limit::Cycles => "cycles",
            Limit::Steps => "steps of work",
            Limit::DramBytes => "bytes of DRAM with contents",
        })
    }
}

/// Why a program has no run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SimError {
    /// The instructions are no program.
    #[error("program: {0}")]
    Structure(#[from] StructureError),
    /// Bytes that the machine's DRAM does not have.
    #[error("{what}: wanted bytes within a DRAM of {dram_bytes}, found {begin} to {end}")]
    OutsideDram {
        /// Whose bytes.
        what: String,
        /// Size of the DRAM.
        dram_bytes: u64,
        /// First byte.
        begin: u64,
        /// One past the last byte.
        end: u64,
    },
    /// A segment that a program does not have.
    #[error("segment {name:?}: wanted one of the program's: {wanted}")]
    NoSegment {
        /// Its name.
        name: String,
        /// Those that it has.
        wanted: String,
    },
    /// Bytes that a segment does not have.
    #[error("segment {name:?}: wanted bytes within its {wanted}, found {begin} to {end}")]
    OutsideSegment {
        /// Its name.
        name: String,
        /// Its length.
        wanted: u64,
        /// First byte.
        begin: u64,
        /// One past the last byte.
        end: u64,
    },
    /// Bytes that are read, but not known.
    #[error("segment {name:?}: wanted known data, found data that --timing-only did not compute; simulate with values")]
    NotComputed {
        /// Its name.
        name: String,
    },
    /// Memories that another machine left, or a run without values.
    #[error(
        "{memory}: wanted {wanted} bytes as the machine has, found {found}: memories go on only on their own machine and with values as before"
    )]
    OtherMemories {
        /// Which.
        memory: &'static str,
        /// Its size.
        wanted: u64,
        /// The size of what is there.
        found: u64,
    },
    /// An instruction did what it must not.
    #[error("{0}")]
    Fault(Fault),
    /// Without values, what an instruction does cannot be known.
    #[error(
        "instruction {at} (`{text}`): {what}: wanted known data, found data that --timing-only did not compute; simulate with values"
    )]
    Unknown {
        /// Position of the instruction.
        at: usize,
        /// Its text.
        text: String,
        /// What depends on it.
        what: &'static str,
    },
    /// Everything waits for tokens that nobody posts.
    #[error("deadlock in cycle {cycle}: {}", waiting.join("; "))]
    Deadlock {
        /// When nothing happened any more.
        cycle: u64,
        /// Who waits for what.
        waiting: Vec<String>,
    },
    /// The run is longer or larger than allowed.
    #[error("instruction {at}: wanted at most {most} {limit}, found more")]
    Limit {
        /// Position of the instruction that was executed.
        at: usize,
        /// Of what.
        limit: Limit,
        /// How much is allowed.
        most: u64,
    },
}

/// A fault without its instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub what: String,
    pub wanted: String,
    pub found: String,
}

impl Wrong {
    pub(crate) fn new(what: impl Into<String>, wanted: impl ToString, found: impl ToString) -> Wrong {
        Wrong { what: what.into(), wanted: wanted.to_string(), found: found.to_string() }
    }
}

/// What can stop an instruction, before it is known which one it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Wrong(Wrong),
    Unknown(&'static str),
    Limit(Limit, u64),
}

impl From<Wrong> for Stop {
    fn from(wrong: Wrong) -> Stop {
        Stop::Wrong(wrong)
    }
}

impl Stop {
    /// The error of instruction `at`.
    pub(crate) fn of(self, at: usize, text: impl ToString) -> SimError {
        match self {
            Stop::Wrong(Wrong { what, wanted, found }) => {
                SimError::Fault(Fault { at, text: text.to_string(), what, wanted, found })
            }
            Stop::Unknown(what) => SimError::Unknown { at, text: text.to_string(), what },
            Stop::Limit(limit, most) => SimError::Limit { at, limit, most },
        }
    }
}
