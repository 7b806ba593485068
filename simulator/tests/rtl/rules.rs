//! ISA.md's rules Q1 to Q3 and M1 to M4 for programs of `li`, matrix instructions with work and without tokens, and `halt`.

use crate::spec::{Operands, entry_of};
use crate::verilator::Times;

/// What the rules say.
pub struct Ruled {
    /// Of each matrix instruction.
    pub times: Vec<Times>,
    /// When it was issued.
    pub issues: Vec<u64>,
    /// The first cycle in which nothing is left to do.
    pub total: u64,
}

/// The rules for a program on an array.
pub fn times(words: &[u128], rows: u64, cols: u64, overlap: bool, depth: usize) -> Ruled {
    let mut regs = [0i64; 32];
    let mut found: Vec<Times> = Vec::new();
    let mut issues = Vec::new();
    // Of the latest preload and pass: when it started, when the next of its kind can start.
    let mut cycle = 0;
    let (mut preload_end, mut pass_start, mut pass_fed) = (0, 0, 0);
    for word in words {
        let o = Operands { entry: entry_of(*word), word: *word, regs: &regs.clone() };
        match o.entry.mnemonic.as_str() {
            "li" => regs[o.bits("rd") as usize] = o.bits("value") as i64,
            // Of another queue: only its issue takes the sequencer's time.
            "halt" | "sync" => (),
            mnemonic => {
                // Q2: the queue has a place when the instruction `depth` before this one has started.
                let issue = cycle.max(found.len().checked_sub(depth).map_or(0, |before| found[before].start));
                cycle = issue;
                issues.push(issue);
                let pass = mnemonic.starts_with("m.pass");
                let m = if pass { o.size("rows") as u64 } else { 0 };
                let length = if pass { m + rows + cols - 2 } else { rows };
                let before = found.last().copied().unwrap_or(Times { start: 0, end: 0, completion: 0 });
                let free = match (overlap, pass) {
                    (false, _) => before.end,
                    (true, false) => preload_end.max(pass_start),
                    (true, true) => preload_end.max(pass_fed),
                };
                let start = (issue + 1).max(before.start).max(free);
                let end = start + length;
                if pass {
                    (pass_start, pass_fed) = (start, start + m);
                } else {
                    preload_end = end;
                }
                found.push(Times { start, end, completion: end.max(before.completion) });
            }
        }
        cycle += 1;
    }
    let total = cycle.max(found.last().map_or(0, |last| last.completion));
    Ruled { times: found, issues, total }
}
