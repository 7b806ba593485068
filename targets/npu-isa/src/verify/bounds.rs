//! All ways through the program at once: registers as sets of numbers, tokens counted, every access within its memory.
//!
//! A loop is looked at with symbols for what its registers hold at the head. A register that then ends an iteration as its
//! own symbol plus a constant is an induction variable, and its values are known in closed form; others are iterated until they
//! stay. Then the body is checked once, with all values that an iteration can see.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::value::{Value, arithmetic};
use super::{Shape, VerifyError, error};
use crate::access::{Access, Wanted};
use crate::address::Memory;
use crate::choice::Condition;
use crate::format::{LoopHead, OperandVisitor};
use crate::instruction::Token;
use crate::machine::Machine;
use crate::operand::{Operand, Reg, Registers, Size, Source, Term};
use crate::program::Program;
use crate::table::Op;

/// Abstract steps before the verifier gives up.
const MAX_STEPS: u64 = 20_000_000;
/// Rounds of iterating what is no induction variable.
const ROUNDS: usize = 4;

/// What is known at an instruction. Registers that may be unset are `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub regs: [Option<Value>; 32],
    tokens: [i64; Token::COUNT],
    /// k of the tile in the array.
    tile: Option<Value>,
}

impl State {
    pub(super) fn start() -> State {
        State { regs: [None; 32], tokens: [0; Token::COUNT], tile: None }
    }

    pub(super) fn get(&self, reg: Reg) -> Option<Value> {
        self.regs[reg.index()]
    }

    pub(super) fn set(&mut self, reg: Reg, value: Value) {
        self.regs[reg.index()] = Some(value);
    }

    pub(super) fn source(&self, source: Source) -> Option<Value> {
        source.0.map_or(Some(Value::exactly(0)), |r| self.get(r))
    }

    pub(super) fn term(&self, term: Term) -> Option<Value> {
        match term {
            Term::Imm(n) => Some(Value::exactly(n.into())),
            Term::Reg(r) => self.source(r),
        }
    }

    pub(super) fn size<const N: u32>(&self, size: Size<N>) -> Option<Value> {
        match size {
            Size::Imm(n) => Some(Value::exactly(n.into())),
            Size::Reg(r) => self.get(r),
        }
    }

    fn join_registers(&mut self, other: &State) {
        for (a, b) in self.regs.iter_mut().zip(&other.regs) {
            *a = a.and_then(|a| b.map(|b| a.hull(b)));
        }
        self.tile = self.tile.and_then(|a| other.tile.map(|b| a.hull(b)));
    }

    /// Smallest, or largest, values of all registers. Unset ones are 0: who reads them is rejected.
    fn registers(&self, largest: bool) -> Registers {
        let mut regs = Registers::default();
        for number in 1..32 {
            if let (Some(reg), Some(value)) = (Reg::new(number), self.regs[usize::from(number)]) {
                let (lo, hi) = value.bounds();
                regs.set(reg, if largest { hi } else { lo });
            }
        }
        regs
    }

    /// Accesses of an instruction, each from the least to the largest that it can be.
    pub(super) fn spans(&self, op: &Op) -> Vec<(Access, u64, u64)> {
        let low = op.accesses(&self.registers(false)).unwrap_or_default();
        let high = op.accesses(&self.registers(true)).unwrap_or_default();
        let pairs = low.iter().zip(&high);
        pairs.filter(|(_, h)| !h.is_empty()).map(|(l, h)| (*h, l.begin, h.end())).collect()
    }
}

/// The two ways on from a branch, each with what is then known; `None` is a way that is never taken.
pub(super) fn branch(state: &State, op: &Op) -> Option<[Option<State>; 2]> {
    let (condition, a, b) = match op {
        Op::SkipIfZero(skip) => (Condition::Eq, skip.a, Term::Imm(0)),
        Op::Branch(branch) => (branch.condition, branch.a, branch.b),
        _ => return None,
    };
    let (x, y) = (state.source(a).unwrap_or(Value::ANY), state.term(b).unwrap_or(Value::ANY));
    let (equal, less) = match condition {
        Condition::Eq => (Some(true), None),
        Condition::Ne => (Some(false), None),
        Condition::Lt => (None, Some(true)),
        Condition::Ge => (None, Some(false)),
    };
    let refine = |equal: Option<bool>, less: Option<bool>| -> Option<State> {
        let ((x_lo, x_hi), (y_lo, y_hi)) = (x.bounds(), y.bounds());
        let (new_x, new_y) = match (equal, less) {
            (Some(true), _) => {
                (x.at_least(y_lo).and_then(|x| x.at_most(y_hi))?, y.at_least(x_lo).and_then(|y| y.at_most(x_hi))?)
            }
            (Some(false), _) => match y.single() {
                Some(n) if x.single() == Some(n) => return None,
                Some(n) if n == x_lo && n < i64::MAX => (x.at_least(n + 1)?, y),
                Some(n) if n == x_hi && n > i64::MIN => (x.at_most(n - 1)?, y),
                Some(_) | None => (x, y),
            },
            (None, Some(true)) => (x.at_most(y_hi.checked_sub(1)?)?, y.at_least(x_lo.checked_add(1)?)?),
            (None, _) => (x.at_least(y_lo)?, y.at_most(x_hi)?),
        };
        let mut next = state.clone();
        if let Some(r) = a.0.filter(|r| next.get(*r).is_some()) {
            next.set(r, new_x);
        }
        if let Term::Reg(Source(Some(r))) = b
            && next.get(r).is_some()
            && Some(r) != a.0
        {
            next.set(r, new_y);
        }
        Some(next)
    };
    Some([refine(equal, less), refine(equal.map(|e| !e), less.map(|l| !l))])
}

/// Scalar instructions that write a register.
pub(super) fn scalar(state: &mut State, op: &Op) {
    let any = |v: Option<Value>| v.unwrap_or(Value::ANY);
    match op {
        Op::Li(constant) => state.set(constant.rd.0, Value::exactly(constant.value.0)),
        Op::Lds(load) => state.set(load.rd.0, Value::range(0, load.max.0.into())),
        Op::Add(f) | Op::Sub(f) | Op::Mul(f) | Op::Shl(f) | Op::Shr(f) | Op::Min(f) | Op::Max(f) | Op::And(f) => {
            let value = arithmetic(op, any(state.source(f.a)), any(state.term(f.b)));
            state.set(f.rd.0, value);
        }
        _ => (),
    }
}

/// How often a loop runs: at least, at most.
pub(super) fn trips(state: &State, head: &LoopHead) -> (i64, i64) {
    let (lo, hi) = state.size(head.count).unwrap_or(Value::ANY).bounds();
    let max = i64::from(head.max.0);
    (lo.clamp(0, max), hi.clamp(0, max))
}

/// Checks all that a single way through the program can do wrong. For each loop's head: what is known behind the loop.
pub(super) fn check(program: &Program, machine: &Machine, shape: &Shape) -> Result<Vec<Option<State>>, VerifyError> {
    let exits = alloc::vec![None; program.instructions.len()];
    let mut bounds = Bounds { program, machine, shape, exits, steps: 0 };
    bounds.region(0, program.instructions.len(), State::start(), 0, true)?;
    Ok(bounds.exits)
}

struct Bounds<'a> {
    program: &'a Program,
    machine: &'a Machine,
    shape: &'a Shape,
    exits: Vec<Option<State>>,
    steps: u64,
}

impl Bounds<'_> {
    fn error(
        &self,
        at: usize,
        what: impl Into<String>,
        wanted: impl Into<String>,
        found: impl ToString,
    ) -> VerifyError {
        error(self.program, at, what, wanted, found)
    }

    /// From `begin` to `end`, which are in the same loop; `check` is false while values are still being found.
    fn region(
        &mut self,
        begin: usize,
        end: usize,
        state: State,
        depth: u8,
        check: bool,
    ) -> Result<Option<State>, VerifyError> {
        let mut current = Some(state);
        let mut coming: BTreeMap<usize, State> = BTreeMap::new();
        let mut at = begin;
        while at < end {
            if let Some(other) = coming.remove(&at) {
                current = Some(self.join(at, current, other, check)?);
            }
            let Some(state) = &mut current else {
                at += 1;
                continue;
            };
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(self.error(at, "steps", format!("at most {MAX_STEPS} to verify the program"), "more"));
            }
            let instruction = self.program.instructions[at];
            if check {
                self.instruction(at, state)?;
            }
            match instruction.op {
                Op::Loop(head) => {
                    *state = self.loop_at(at, state, &head, depth, check)?;
                    at = self.shape.of_loop(at).0;
                }
                Op::Branch(_) | Op::SkipIfZero(_) => {
                    let skipped = match instruction.op {
                        Op::Branch(b) => b.target.0,
                        Op::SkipIfZero(s) => s.target.0,
                        _ => 0,
                    };
                    let target = at + 1 + skipped as usize;
                    if let Some([taken, not_taken]) = branch(state, &instruction.op) {
                        if let Some(taken) = taken {
                            let taken = self.join(target, coming.remove(&target), taken, check)?;
                            coming.insert(target, taken);
                        }
                        current = not_taken;
                    }
                }
                Op::Preload(tile) => state.tile = Some(state.size(tile.k).unwrap_or(Value::ANY)),
                Op::PreloadScaled(tile) => state.tile = Some(state.size(tile.k).unwrap_or(Value::ANY)),
                _ => scalar(state, &instruction.op),
            }
            at += 1;
        }
        match coming.remove(&end) {
            Some(other) => self.join(end, current, other, check).map(Some),
            None => Ok(current),
        }
    }

    fn join(&self, at: usize, current: Option<State>, other: State, check: bool) -> Result<State, VerifyError> {
        let Some(mut state) = current else { return Ok(other) };
        if let Some(t) = (0..Token::COUNT).find(|t| check && state.tokens[*t] != other.tokens[*t]) {
            let (what, wanted) = (format!("t{t}"), "as many tokens on all ways here".to_string());
            let at = at.min(self.program.instructions.len() - 1);
            return Err(self.error(at, what, wanted, format!("{} or {}", state.tokens[t], other.tokens[t])));
        }
        state.join_registers(&other);
        Ok(state)
    }

    fn loop_at(
        &mut self,
        at: usize,
        entry: &State,
        head: &LoopHead,
        depth: u8,
        check: bool,
    ) -> Result<State, VerifyError> {
        let (end, written) = self.shape.of_loop(at);
        let (least, most) = trips(entry, head);
        let index = head.rd.0;
        let mut exit = entry.clone();
        exit.set(index, Value::range(least, most));
        if most == 0 {
            self.leave(at, &exit, check);
            return Ok(exit);
        }
        let written: Vec<usize> = (1..32).filter(|r| written >> r & 1 == 1).collect();
        let mut symbols = entry.clone();
        symbols.set(index, Value::range(0, most - 1));
        for r in &written {
            symbols.regs[*r] = Some(Value::symbol((depth, *r as u8)));
        }
        let inside = |this: &mut Self, state: &State, check| {
            let out = this.region(at + 1, end, state.clone(), depth + 1, check)?;
            out.ok_or_else(|| this.error(at, "body", "a way to its `end`", "none"))
        };
        let after = inside(self, &symbols, false)?;
        let step =
            |r: usize| after.regs[r].filter(|v| v.base == Some((depth, r as u8))).map(|v| Value { base: None, ..v });
        let mut first = entry.clone();
        first.set(index, Value::range(0, most - 1));
        for r in &written {
            if let (Some(step), Some(value)) = (step(*r), entry.regs[*r]) {
                first.regs[*r] = Some(value.add(step.times(0, most - 1)));
            }
        }
        let others: Vec<usize> = written.iter().copied().filter(|r| step(*r).is_none()).collect();
        let mut out = None;
        for round in 0..=ROUNDS {
            let after = inside(self, &first, false)?;
            let mut stays = true;
            for r in &others {
                // What no iteration but the first sees may be unset at the head.
                let joined = first.regs[*r].and_then(|a| after.regs[*r].map(|b| a.hull(b)));
                let joined = if round == ROUNDS { joined.map(|_| Value::ANY) } else { joined };
                stays &= joined == first.regs[*r];
                first.regs[*r] = joined;
            }
            let tile = first.tile.and_then(|a| after.tile.map(|b| a.hull(b)));
            stays &= tile == first.tile;
            first.tile = tile;
            out = Some(after);
            if stays {
                break;
            }
        }
        if check {
            let after = inside(self, &first, true)?;
            if let Some(t) = (0..Token::COUNT).find(|t| after.tokens[*t] != entry.tokens[*t]) {
                let found = after.tokens[t] - entry.tokens[t];
                let wanted = "as many posts as waits in the body of a loop";
                return Err(self.error(at, format!("t{t}"), wanted, format!("{found:+} per iteration")));
            }
            out = Some(after);
        }
        let out = out.unwrap_or_else(|| first.clone());
        for r in &written {
            exit.regs[*r] = match (step(*r), entry.regs[*r]) {
                (Some(step), Some(value)) => Some(value.add(step.times(least, most))),
                (Some(_), None) => None,
                (None, _) if least >= 1 => out.regs[*r],
                (None, value) => value.and_then(|a| out.regs[*r].map(|b| a.hull(b))),
            };
        }
        exit.tile = match least {
            0 => entry.tile.and_then(|a| out.tile.map(|b| a.hull(b))),
            _ => out.tile,
        };
        self.leave(at, &exit, check);
        Ok(exit)
    }

    /// Remembers what is known behind the loop, of all times that it is reached.
    fn leave(&mut self, at: usize, exit: &State, check: bool) {
        if check {
            match &mut self.exits[at] {
                Some(known) => known.join_registers(exit),
                none => *none = Some(exit.clone()),
            }
        }
    }

    fn instruction(&self, at: usize, state: &mut State) -> Result<(), VerifyError> {
        let instruction = self.program.instructions[at];
        for (operand, reg) in instruction.registers().reads {
            if state.get(reg).is_none() {
                let wanted = format!("{reg} set on all ways here");
                return Err(self.error(at, format!("operand {operand}"), wanted, "a register that may be unset"));
            }
        }
        for token in instruction.tokens.waits() {
            let count = &mut state.tokens[token.index()];
            if *count < 1 {
                let found = format!("{count} on the way here");
                return Err(self.error(at, token.to_string(), "a token that is posted further up", found));
            }
            *count -= 1;
        }
        self.operands(at, state)?;
        for token in instruction.tokens.posts() {
            let count = &mut state.tokens[token.index()];
            *count += 1;
            if *count > Token::VERIFIED_MAX.into() {
                let wanted = format!("at most {} tokens that nobody took", Token::VERIFIED_MAX);
                return Err(self.error(at, token.to_string(), wanted, *count));
            }
        }
        Ok(())
    }

    fn operands(&self, at: usize, state: &State) -> Result<(), VerifyError> {
        let op = &self.program.instructions[at].op;
        let (low, high) = (state.registers(false), state.registers(true));
        let fault = |regs: &Registers| {
            op.accesses(regs).map_err(|f| {
                let what = format!("operand {}", f.operand);
                let wanted = match f.wanted {
                    Wanted::Size => "0 to 2^48 on all ways here".into(),
                    Wanted::MultipleOf(_) | Wanted::AtMost(_) => f.wanted.to_string(),
                };
                self.error(at, what, wanted, f.found)
            })
        };
        fault(&low)?;
        let accesses = fault(&high)?;
        // The value before the largest of each register on its own shows whether all are aligned.
        for (_, reg) in self.program.instructions[at].registers().reads {
            if let Some(v) = state.get(reg).filter(|v| v.base.is_none() && v.stride > 0) {
                let mut previous = high;
                previous.set(reg, v.hi.saturating_sub_unsigned(v.stride));
                fault(&previous)?;
            }
        }
        for access in accesses {
            let size = match access.memory {
                Memory::Dram => self.machine.dram.bytes,
                Memory::Scratchpad => self.machine.scratchpad.bytes,
                Memory::Weights => self.machine.weights.bytes,
                Memory::Accumulators => self.machine.accumulator_rows(),
            };
            if !access.is_empty() && access.end() > size {
                let what = format!(
                    "operand {} {} {}[{}]",
                    access.operand,
                    access.kind.verb(),
                    access.memory,
                    access.end() - 1
                );
                let wanted = format!("below {}[{size}] on {}", access.memory, self.machine.name());
                return Err(self.error(at, what, wanted, format!("{}s up to {}", access.memory.unit(), access.end())));
            }
        }
        self.limits(at, state)
    }

    /// Limits that are of the array or of the machine and not of a memory.
    fn limits(&self, at: usize, state: &State) -> Result<(), VerifyError> {
        let op = &self.program.instructions[at].op;
        let mut sizes = Sizes { state, list: Vec::new() };
        op.visit(&mut sizes);
        let (rows, cols) = (self.machine.matrix.rows as i64, self.machine.matrix.cols as i64);
        let limit = |name: &str| match (op, name) {
            (Op::Preload(_) | Op::PreloadScaled(_) | Op::Pass(_) | Op::PassScaled(_), "k") => Some(("R", rows)),
            (Op::Preload(_) | Op::PreloadScaled(_), "n") => Some(("C", cols)),
            (Op::Rescale(_) | Op::RescaleFloats(_), "cols") => Some(("C", cols)),
            _ => None,
        };
        for (name, value) in &sizes.list {
            let (_, hi) = value.bounds();
            if let Some((what, most)) = limit(name).filter(|(_, most)| hi > *most) {
                let wanted = format!("at most {what} = {most} on {}", self.machine.name());
                return Err(self.error(at, format!("operand {name}"), wanted, hi));
            }
        }
        if let Op::Loop(head) = op {
            let lo = state.size(head.count).map_or(0, |v| v.bounds().0);
            if lo > head.max.0.into() {
                return Err(self.error(at, "operand count", format!("at most max = {}", head.max.0), lo));
            }
        }
        if let Op::Pass(_) | Op::PassScaled(_) = op {
            let k = sizes.list.iter().find(|(name, _)| *name == "k").map_or(Value::ANY, |(_, v)| *v);
            let Some(tile) = state.tile else {
                return Err(self.error(at, "array", "a tile of weights on all ways here", "none"));
            };
            let ((lo, hi), (tile_lo, tile_hi)) = (k.bounds(), tile.bounds());
            if hi < tile_lo || tile_hi < lo {
                return Err(self.error(at, "operand k", format!("k of the tile, {tile_lo}"), lo));
            }
        }
        Ok(())
    }
}

/// Values of the operands that are sizes or registers.
struct Sizes<'a> {
    state: &'a State,
    list: Vec<(&'static str, Value)>,
}

impl OperandVisitor for Sizes<'_> {
    fn operand<T: Operand>(&mut self, name: &'static str, value: &T) {
        let known = match value.register() {
            Some(reg) => self.state.get(reg),
            None => value.encode().ok().and_then(|bits| i64::try_from(bits).ok()).map(Value::exactly),
        };
        self.list.extend(known.map(|v| (name, v)));
    }
}
