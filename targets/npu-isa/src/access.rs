//! What an instruction reads and writes, as functions of its operands and the registers.
//!
//! Formats ([`crate::format`]) say it once; the verifier, the timing rules (banks, interlock) and a simulator ask here.

use alloc::vec::Vec;
use core::fmt;

use crate::address::Memory;

/// Sizes and addresses end here: products of two stay in 128 bits, sums in 64.
const LARGEST: u64 = 1 << 48;

/// Reading, writing, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessKind {
    /// Only read.
    Read,
    /// Only written.
    Write,
    /// Read and written.
    Update,
}

impl AccessKind {
    /// Whether memory changes.
    pub const fn writes(self) -> bool {
        match self {
            AccessKind::Read => false,
            AccessKind::Write | AccessKind::Update => true,
        }
    }

    /// As in "…s byte 64".
    pub const fn verb(self) -> &'static str {
        match self {
            AccessKind::Read => "reads",
            AccessKind::Write => "writes",
            AccessKind::Update => "updates",
        }
    }
}

/// One operand's part of a memory: `planes` × `rows` runs of `row_units` units each (bytes; rows of accumulators).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Name of the operand.
    pub operand: &'static str,
    /// Where.
    pub memory: Memory,
    /// How.
    pub kind: AccessKind,
    /// First unit.
    pub begin: u64,
    /// Units of a run.
    pub row_units: u64,
    /// Runs of a plane.
    pub rows: u64,
    /// From one run to the next.
    pub stride: u64,
    /// Planes.
    pub planes: u64,
    /// From one plane to the next.
    pub plane_stride: u64,
    /// Alignment of `begin` and strides, in units.
    pub align: u64,
    /// Whether it takes a turn at a scratchpad port in every step of the vector unit.
    pub streams: bool,
}

impl Access {
    /// No unit at all.
    pub const fn is_empty(&self) -> bool {
        self.row_units == 0 || self.rows == 0 || self.planes == 0
    }

    /// One past the last unit that it can touch. Everything in between counts as touched, gaps of strides too.
    pub const fn end(&self) -> u64 {
        if self.is_empty() {
            return self.begin;
        }
        self.begin + (self.planes - 1) * self.plane_stride + (self.rows - 1) * self.stride + self.row_units
    }

    /// Whether both touch a unit and one of them changes it.
    pub const fn conflicts_with(&self, other: &Access) -> bool {
        self.memory as u8 == other.memory as u8
            && (self.kind.writes() || other.kind.writes())
            && !self.is_empty()
            && !other.is_empty()
            && self.begin < other.end()
            && other.begin < self.end()
    }
}

/// Whether an instruction with these accesses does anything: rule Q4 of `ISA.md`. What writes no memory does.
pub fn has_work(accesses: &[Access]) -> bool {
    let no_list = accesses.iter().any(|a| a.operand == "index" && a.is_empty());
    let mut writes = accesses.iter().filter(|a| a.kind.writes()).peekable();
    !no_list && (writes.peek().is_none() || writes.any(|a| !a.is_empty()))
}

/// A register's value that an operand cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperandFault {
    /// Name of the operand.
    pub operand: &'static str,
    /// What it can have.
    pub wanted: Wanted,
    /// What the registers give.
    pub found: i64,
}

/// What an operand can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Not negative, and not absurdly large.
    Size,
    /// A multiple.
    MultipleOf(u64),
    /// No more than.
    AtMost(u64),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wanted::Size => f.write_str("0 to 2^48"),
            Wanted::MultipleOf(n) => write!(f, "a multiple of {n}"),
            Wanted::AtMost(n) => write!(f, "at most {n}"),
        }
    }
}

/// Rows of an operand in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub rows: i64,
    pub row_units: i64,
    pub stride: i64,
    pub planes: i64,
    pub plane_stride: i64,
    pub align: u64,
    pub streams: bool,
}

impl Shape {
    /// One run.
    pub(crate) const fn flat(units: i64, align: u64) -> Shape {
        Shape { rows: 1, row_units: units, stride: 0, planes: 1, plane_stride: 0, align, streams: false }
    }

    /// Runs at a distance.
    pub(crate) const fn rows(rows: i64, row_units: i64, stride: i64, align: u64) -> Shape {
        Shape { rows, row_units, stride, planes: 1, plane_stride: 0, align, streams: false }
    }

    /// Takes a port in every step.
    pub(crate) const fn streamed(mut self) -> Shape {
        self.streams = true;
        self
    }
}

/// Collects accesses, and the first fault.
#[derive(Debug, Default)]
pub(crate) struct Touches {
    list: Vec<Access>,
    fault: Option<OperandFault>,
}

impl Touches {
    fn size(&mut self, operand: &'static str, value: i64) -> u64 {
        match u64::try_from(value) {
            Ok(v) if v <= LARGEST => v,
            Ok(_) | Err(_) => {
                self.fault.get_or_insert(OperandFault { operand, wanted: Wanted::Size, found: value });
                0
            }
        }
    }

    /// A count, by itself: products and sums with other counts may hide what it is.
    pub(crate) fn count(&mut self, operand: &'static str, value: i64) {
        self.size(operand, value);
    }

    /// A register's value that has to be at most `most`.
    pub(crate) fn at_most(&mut self, operand: &'static str, value: i64, most: u64) {
        if self.size(operand, value) > most {
            self.fault.get_or_insert(OperandFault { operand, wanted: Wanted::AtMost(most), found: value });
        }
    }

    /// A register's value that has to be a multiple of `of`.
    pub(crate) fn multiple(&mut self, operand: &'static str, value: i64, of: u64) {
        if !self.size(operand, value).is_multiple_of(of) {
            self.fault.get_or_insert(OperandFault { operand, wanted: Wanted::MultipleOf(of), found: value });
        }
    }

    fn add(&mut self, kind: AccessKind, operand: &'static str, memory: Memory, begin: i64, shape: Shape) {
        let align = shape.align;
        let mut access = Access {
            operand,
            memory,
            kind,
            begin: self.size(operand, begin),
            row_units: self.size(operand, shape.row_units),
            rows: self.size(operand, shape.rows),
            stride: self.size(operand, shape.stride),
            planes: self.size(operand, shape.planes),
            plane_stride: self.size(operand, shape.plane_stride),
            align,
            streams: shape.streams,
        };
        let span = u128::from(access.rows.saturating_sub(1)) * u128::from(access.stride)
            + u128::from(access.planes.saturating_sub(1)) * u128::from(access.plane_stride)
            + u128::from(access.row_units);
        if span > u128::from(LARGEST) && !access.is_empty() {
            let found = i64::try_from(span).unwrap_or(i64::MAX);
            self.fault.get_or_insert(OperandFault { operand, wanted: Wanted::Size, found });
            access.rows = 0;
        }
        let mut aligned = |count: u64, value: u64| {
            if count > 0 && !value.is_multiple_of(align) {
                let wanted = Wanted::MultipleOf(align);
                self.fault.get_or_insert(OperandFault { operand, wanted, found: value as i64 });
            }
        };
        if !access.is_empty() {
            aligned(1, access.begin);
            aligned(access.rows - 1, access.stride);
            aligned(access.planes - 1, access.plane_stride);
        }
        self.list.push(access);
    }

    pub(crate) fn read(&mut self, operand: &'static str, memory: Memory, begin: i64, shape: Shape) {
        self.add(AccessKind::Read, operand, memory, begin, shape);
    }

    pub(crate) fn write(&mut self, operand: &'static str, memory: Memory, begin: i64, shape: Shape) {
        self.add(AccessKind::Write, operand, memory, begin, shape);
    }

    pub(crate) fn update(&mut self, operand: &'static str, memory: Memory, begin: i64, shape: Shape) {
        self.add(AccessKind::Update, operand, memory, begin, shape);
    }

    pub(crate) fn finish(self) -> Result<Vec<Access>, OperandFault> {
        match self.fault {
            Some(fault) => Err(fault),
            None => Ok(self.list),
        }
    }
}
