//! Working memory of ops in the scratchpad, handed out in turn, so that an op can begin to load while the one before it still
//! computes.

use lapidary_npu_isa::address::Memory;

use super::order::{Area, Space};
use crate::error::LowerError;

/// All pieces begin at multiples of it: constants of addresses do.
const ALIGN: u64 = 32;

/// A ring of bytes.
#[derive(Clone, Debug)]
pub struct Scratch {
    begin: u64,
    end: u64,
    /// Where the next piece begins.
    next: u64,
    /// Where the op's first piece begins.
    first: u64,
    /// Whether the op's pieces go on at the begin.
    wrapped: bool,
    /// Whether ops follow each other; otherwise each has all of it.
    turns: bool,
    what: String,
}

impl Scratch {
    /// The bytes from `begin` to `end`; with `turns` each op's pieces come behind those of the op before.
    pub fn new(begin: u64, end: u64, turns: bool) -> Scratch {
        let begin = begin.next_multiple_of(ALIGN).min(end);
        Scratch { begin, end, next: begin, first: begin, wrapped: false, turns, what: String::new() }
    }

    /// The pieces of an op begin.
    pub fn begin_op(&mut self, what: &str) {
        if !self.turns {
            self.next = self.begin;
        }
        (self.first, self.wrapped, self.what) = (self.next, false, what.to_owned());
    }

    /// Whose pieces they are.
    pub fn op(&self) -> &str {
        &self.what
    }

    /// The op takes all of it: its pieces begin where there is most room, behind those of nobody else.
    pub fn take_all(&mut self) {
        (self.next, self.first, self.wrapped) = (self.begin, self.begin, false);
    }

    /// The largest piece that there still is.
    pub fn largest(&self) -> u64 {
        let (ahead, begin) = self.free();
        ahead.max(begin)
    }

    /// What is free from `next` on, and at the begin.
    fn free(&self) -> (u64, u64) {
        match self.wrapped {
            true => (self.first - self.next, 0),
            false => (self.end - self.next, self.first - self.begin),
        }
    }

    /// A piece.
    ///
    /// # Errors
    /// There is not enough.
    pub fn take(&mut self, bytes: u64) -> Result<Area, LowerError> {
        let rounded = bytes.max(1).next_multiple_of(ALIGN);
        let (ahead, begin) = self.free();
        if rounded > ahead {
            if rounded > begin {
                let used =
                    if self.wrapped { self.end - self.first + self.next - self.begin } else { self.next - self.first };
                return Err(LowerError::TooSmall {
                    what: format!("{}: working memory", self.what),
                    memory: Memory::Scratchpad,
                    wanted: (used + rounded).max(self.end - self.begin + 1),
                    found: self.end - self.begin,
                });
            }
            (self.next, self.wrapped) = (self.begin, true);
        }
        let area = Area::new(Space::Scratchpad, self.next, bytes.max(1));
        self.next += rounded;
        Ok(area)
    }

    /// Where the op is, to come back to.
    pub fn mark(&self) -> (u64, bool) {
        (self.next, self.wrapped)
    }

    /// Gives back what was taken since then.
    pub fn back_to(&mut self, (next, wrapped): (u64, bool)) {
        (self.next, self.wrapped) = (next, wrapped);
    }
}
