//! The oracle: a program's instructions one after the other, in the order of issue.

use crate::memory::{Checks, Faults, Kind, Memories, Place, Run};
use crate::spec::{Operands, entry_of};
use crate::{dma, matrix, route, vector};

/// Where a program stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    pub at: usize,
    pub faults: Faults,
}

/// Registers and memories while a program runs.
#[derive(Clone, Debug)]
pub struct Oracle {
    pub regs: [i64; 32],
    pub memories: Memories,
    pub tile: matrix::Tile,
    /// Queued instructions executed.
    pub executed: u64,
}

impl Oracle {
    pub fn new(memories: Memories) -> Self {
        Oracle { regs: [0; 32], memories, tile: matrix::Tile::default(), executed: 0 }
    }

    /// Runs a program to its `halt`.
    pub fn run(&mut self, words: &[u128]) -> Result<(), Stop> {
        // Register, count and first instruction of the body.
        let mut loops: Vec<(usize, i64, usize)> = Vec::new();
        let mut at = 0;
        loop {
            let entry = entry_of(words[at]);
            let regs = self.regs;
            let o = Operands { entry, word: words[at], regs: &regs };
            let stop = |faults: Faults| Stop { at, faults };
            let mut next = at + 1;
            match entry.mnemonic.as_str() {
                "halt" => return Ok(()),
                "li" => self.set(&o, o.bits("value") as i64),
                "add" => self.set(&o, o.reg("a").wrapping_add(o.term("b"))),
                "sub" => self.set(&o, o.reg("a").wrapping_sub(o.term("b"))),
                "mul" => self.set(&o, o.reg("a").wrapping_mul(o.term("b"))),
                "shl" => self.set(&o, o.reg("a") << o.term("b").rem_euclid(64)),
                "shr" => self.set(&o, o.reg("a") >> o.term("b").rem_euclid(64)),
                "min" => self.set(&o, o.reg("a").min(o.term("b"))),
                "max" => self.set(&o, o.reg("a").max(o.term("b"))),
                "and" => self.set(&o, o.reg("a") & o.term("b")),
                "loop" => {
                    let count = o.size("count");
                    if count > o.bits("max") as i64 {
                        return Err(stop(vec![Kind::Max]));
                    }
                    self.set(&o, 0);
                    if count > 0 {
                        loops.push((o.bits("rd") as usize, count, next));
                    } else {
                        next += o.bits("body") as usize + 1;
                    }
                }
                "end" => {
                    let (rd, count, body) = *loops.last().expect("a loop that `end` is of");
                    self.regs[rd] += 1;
                    if self.regs[rd] < count {
                        next = body;
                    } else {
                        loops.pop();
                    }
                }
                "branch" => {
                    let (a, b) = (o.reg("a"), o.term("b"));
                    let taken = match o.bits("condition") {
                        0 => a == b,
                        1 => a != b,
                        2 => a < b,
                        _ => a >= b,
                    };
                    if taken {
                        next += o.bits("target") as usize;
                    }
                }
                "skip_if_zero" => {
                    if o.reg("a") == 0 {
                        next += o.bits("target") as usize;
                    }
                }
                "lds" => {
                    let src = o.address("src");
                    let run = Run::flat(Place::Scratchpad, src, 4, 4);
                    Checks::default().run(run).finish(&self.memories).map_err(stop)?;
                    let value = self.memories.word(src);
                    if u64::from(value) > o.bits("max") {
                        return Err(stop(vec![Kind::Max]));
                    }
                    self.set(&o, i64::from(value));
                }
                "sync" => (),
                _ => {
                    self.executed += 1;
                    self.queued(&o).map_err(stop)?;
                }
            }
            at = next;
        }
    }

    fn set(&mut self, o: &Operands<'_>, value: i64) {
        self.regs[o.bits("rd") as usize] = value;
    }

    /// One instruction of a queue.
    pub fn queued(&mut self, o: &Operands<'_>) -> Result<(), Faults> {
        match o.entry.unit.as_str() {
            "LOAD" | "STORE" => dma::execute(&mut self.memories, o),
            "MATRIX" => matrix::execute(&mut self.memories, &mut self.tile, o),
            "VECTOR" => vector::execute(&mut self.memories, o),
            "ROUTE" => route::execute(&mut self.memories, o),
            unit => panic!("{unit} is no queue"),
        }
    }
}
