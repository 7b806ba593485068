//! Which registers hold the execution context, its fields, kernels: a forward data-flow analysis of one function.
//!
//! A register, or a place of the function's own stack, holds a known value only if it does on every path. Calls keep what the
//! calling convention says, and do not write the stack that the function spilled to. Where control may go anywhere, or
//! into the middle of an instruction, nothing is known in the whole function.

use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};

use lapidary_format::abi::ExecContext;

use super::{Callee, Code, Convention, Decoded, Effect, Flow, Note, Place, Register};

/// Fields of the execution context, by offset.
macro_rules! fields {
    ($($name:ident)*) => {
        const FIELDS: &[(i64, &str)] = &[$((offset_of!(ExecContext, $name) as i64, stringify!($name))),*];
    };
}

fields! {
    weights arena state kernels parallel_for tokens first_position output_rows ids counters mark runtime
}

const _: () = assert!(FIELDS.len() * 8 == size_of::<ExecContext>(), "a field of ExecContext has no name here");

/// Registers of either instruction set.
const REGISTERS: usize = 32;

/// Most places of the stack that are followed.
const MOST_SLOTS: usize = 256;

/// A function is given up when its instructions were visited this often on average: only code that no compiler makes.
const MOST_VISITS: usize = 64;

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Unknown,
    Context,
    /// A field of the context.
    Field(&'static str),
    /// A kernel, by index.
    Kernel(u64),
    /// An offset of the code section.
    Code(u64),
    /// The stack pointer at the function's begin, plus this.
    Stack(i64),
}

#[derive(Clone, Debug, PartialEq)]
struct State {
    registers: [Value; REGISTERS],
    /// By offset from the stack pointer at the function's begin; what is not here is unknown.
    slots: BTreeMap<i64, Value>,
}

impl State {
    fn unknown() -> Self {
        State { registers: [Value::Unknown; REGISTERS], slots: BTreeMap::new() }
    }

    fn at_begin(convention: &Convention) -> Self {
        let mut state = Self::unknown();
        state.set(convention.context, Value::Context);
        state.set(convention.stack, Value::Stack(0));
        state
    }

    fn get(&self, register: Register) -> Value {
        self.registers.get(usize::from(register)).copied().unwrap_or(Value::Unknown)
    }

    fn set(&mut self, register: Register, value: Value) {
        if let Some(slot) = self.registers.get_mut(usize::from(register)) {
            *slot = value;
        }
    }

    fn loaded(&self, at: Place) -> Value {
        match self.get(at.base) {
            Value::Context => field(at.offset).map_or(Value::Unknown, Value::Field),
            Value::Field("kernels") if at.offset >= 0 && at.offset % 8 == 0 => Value::Kernel(at.offset as u64 / 8),
            Value::Stack(base) => self.slots.get(&base.wrapping_add(at.offset)).copied().unwrap_or(Value::Unknown),
            Value::Unknown | Value::Field(_) | Value::Kernel(_) | Value::Code(_) => Value::Unknown,
        }
    }

    /// Forgets what overlaps so many bytes at a place of the stack; stores elsewhere change nothing that is followed.
    fn spoil(&mut self, at: Place, bytes: u64) {
        if let Value::Stack(base) = self.get(at.base) {
            let begin = base.wrapping_add(at.offset);
            let end = begin.saturating_add(bytes.min(1 << 20) as i64);
            let hit: Vec<_> = self.slots.range(begin.saturating_sub(7)..end).map(|(slot, _)| *slot).collect();
            hit.iter().for_each(|slot| {
                self.slots.remove(slot);
            });
        }
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Copy { to, from } => self.set(to, self.get(from)),
            Effect::Offset { to, from, add } => {
                let value = match self.get(from) {
                    Value::Stack(offset) => Value::Stack(offset.wrapping_add(add)),
                    Value::Code(offset) => Value::Code(offset.wrapping_add_signed(add)),
                    value if add == 0 => value,
                    Value::Unknown | Value::Context | Value::Field(_) | Value::Kernel(_) => Value::Unknown,
                };
                self.set(to, value);
            }
            Effect::Address { to, target } | Effect::Page { to, target } => self.set(to, Value::Code(target)),
            Effect::Load { to, at } => self.set(to, self.loaded(at)),
            Effect::Store { at, from } => {
                let value = self.get(from);
                self.spoil(at, 8);
                if let Value::Stack(base) = self.get(at.base)
                    && value != Value::Unknown
                    && self.slots.len() < MOST_SLOTS
                {
                    self.slots.insert(base.wrapping_add(at.offset), value);
                }
            }
            Effect::Clobber(register) => self.set(register, Value::Unknown),
            Effect::Spoil { at, bytes } => self.spoil(at, bytes),
            Effect::SpoilAll { base } => {
                if matches!(self.get(base), Value::Stack(_)) {
                    self.slots.clear();
                }
            }
            Effect::Forget => *self = Self::unknown(),
        }
    }

    /// Does what an instruction does; gives the offset of the code section that it computes.
    fn step(&mut self, one: &Decoded, convention: &Convention) -> Option<u64> {
        let mut computed = None;
        for effect in &one.effects {
            self.apply(*effect);
            if let Effect::Address { to, .. } | Effect::Offset { to, .. } = *effect
                && let Value::Code(target) = self.get(to)
            {
                computed = Some(target);
            }
        }
        if matches!(one.flow, Flow::Call { .. } | Flow::CallIndirect(_)) {
            convention.changed_by_calls.iter().for_each(|register| self.set(*register, Value::Unknown));
        }
        computed
    }

    /// Keeps what `other` holds too; whether something was lost.
    fn meet(&mut self, other: &State) -> bool {
        let before = self.clone();
        for (mine, other) in self.registers.iter_mut().zip(&other.registers) {
            if *mine != *other {
                *mine = Value::Unknown;
            }
        }
        self.slots.retain(|slot, value| other.slots.get(slot) == Some(value));
        *self != before
    }
}

fn field(offset: i64) -> Option<&'static str> {
    FIELDS.iter().find(|(at, _)| *at == offset).map(|(_, name)| *name)
}

/// What each instruction of a function calls or reads; without `from_begin`, as far as one instruction alone says it.
pub(super) fn notes<'a>(
    code: &Code<'a>,
    decoded: &[Decoded],
    convention: &Convention,
    from_begin: bool,
) -> Vec<Option<Note<'a>>> {
    let begins = if from_begin { states(decoded, convention) } else { BTreeMap::new() };
    let mut known: Option<State> = None;
    let mut notes = Vec::with_capacity(decoded.len());
    for (i, one) in decoded.iter().enumerate() {
        if let Some(state) = begins.get(&i) {
            known = Some(state.clone());
        }
        // What comes after an end, without being jumped to, nothing runs: nothing is known there.
        let mut state = known.take().unwrap_or_else(State::unknown);
        let named = note(code, one, &state, convention);
        let computed = state.step(one, convention);
        notes.push(named.or_else(|| code.function_at(computed?).map(Note::Function)));
        known = (falls_through(one) && !begins.is_empty()).then_some(state);
    }
    notes
}

fn falls_through(one: &Decoded) -> bool {
    match one.flow {
        Flow::Next | Flow::Call { .. } | Flow::CallIndirect(_) | Flow::Jump { conditional: true, .. } => true,
        Flow::Jump { conditional: false, .. } | Flow::JumpAnywhere | Flow::End => false,
    }
}

/// What is known where control comes from more than the instruction before; empty where nothing is.
fn states(decoded: &[Decoded], convention: &Convention) -> BTreeMap<usize, State> {
    let (Some(first), Some(last)) = (decoded.first(), decoded.last()) else { return BTreeMap::new() };
    let inside = first.offset as u64..(last.offset + last.length) as u64;
    let mut targets = BTreeMap::new();
    for one in decoded {
        match one.flow {
            Flow::JumpAnywhere => return BTreeMap::new(),
            Flow::Jump { target, .. } | Flow::Call { target } if inside.contains(&target) => {
                let Ok(at) = decoded.binary_search_by_key(&target, |d| d.offset as u64) else {
                    return BTreeMap::new();
                };
                targets.insert(target, at);
            }
            Flow::Next | Flow::Jump { .. } | Flow::Call { .. } | Flow::CallIndirect(_) | Flow::End => {}
        }
    }
    let mut states = BTreeMap::from([(0, State::at_begin(convention))]);
    let leaders: std::collections::BTreeSet<usize> = targets.values().copied().collect();
    let mut work = vec![0];
    let mut visits = 0;
    while let Some(leader) = work.pop() {
        let mut state = states[&leader].clone();
        for (i, one) in decoded.iter().enumerate().skip(leader) {
            visits += 1;
            if visits > MOST_VISITS * decoded.len() {
                return BTreeMap::new();
            }
            state.step(one, convention);
            let next = falls_through(one).then_some(i + 1).filter(|next| leaders.contains(next));
            let target = match one.flow {
                // A call of the function itself begins it anew, with the state that it begins with.
                Flow::Jump { target, .. } => targets.get(&target).copied(),
                Flow::Next | Flow::JumpAnywhere | Flow::Call { .. } | Flow::CallIndirect(_) | Flow::End => None,
            };
            for successor in [next, target].into_iter().flatten() {
                let changed = match states.get_mut(&successor) {
                    Some(known) => known.meet(&state),
                    None => states.insert(successor, state.clone()).is_none(),
                };
                if changed {
                    work.push(successor);
                }
            }
            if next.is_some() || !falls_through(one) {
                break;
            }
        }
    }
    states
}

fn note<'a>(code: &Code<'a>, one: &Decoded, before: &State, convention: &Convention) -> Option<Note<'a>> {
    match one.flow {
        Flow::Call { target } | Flow::Jump { target, .. } => return code.function_at(target).map(Note::Function),
        Flow::CallIndirect(callee) => return called(code, callee, before, convention),
        Flow::Next | Flow::JumpAnywhere | Flow::End => {}
    }
    let memory = one.memory?;
    match (before.get(memory.base), before.loaded(memory)) {
        (Value::Context, Value::Field(name)) => Some(Note::Field(name)),
        (Value::Field(_), Value::Kernel(index)) => Some(Note::KernelSlot(index)),
        _ => None,
    }
}

fn called<'a>(code: &Code<'a>, callee: Callee, state: &State, convention: &Convention) -> Option<Note<'a>> {
    let value = match callee {
        Callee::Register(register) => state.get(register),
        Callee::Memory(place) => state.loaded(place),
        Callee::Unknown => Value::Unknown,
    };
    match value {
        Value::Kernel(index) => {
            let name = code.kernels.get(usize::try_from(index).ok()?)?;
            Some(Note::Kernel(name))
        }
        Value::Field("parallel_for") => Some(Note::ParallelFor(match state.get(convention.second) {
            Value::Code(target) => code.function_at(target),
            Value::Unknown | Value::Context | Value::Field(_) | Value::Kernel(_) | Value::Stack(_) => None,
        })),
        Value::Field(name) => Some(Note::Runtime(name)),
        Value::Code(target) => code.function_at(target).map(Note::Function),
        Value::Unknown | Value::Context | Value::Stack(_) => None,
    }
}
