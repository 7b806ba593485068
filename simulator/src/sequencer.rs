//! The sequencer: scalar registers, loops, branches. It executes until something concerns the rest of the machine.

use lapidary_npu_isa::choice::Condition;
use lapidary_npu_isa::instruction::Tokens;
use lapidary_npu_isa::operand::{Reg, Source};
use lapidary_npu_isa::program::MAX_LOOP_DEPTH;
use lapidary_npu_isa::{CostClass, Instruction, Machine, Op, Program, Queue, Registers};

use crate::error::{SimError, Stop, Wrong};
use crate::exec::Executor;
use crate::tally::{Account, Amounts, Tally};
use crate::timing::work::Issued;

/// What the sequencer comes to, behind some scalar instructions.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// An instruction for a queue.
    Issue(Issued),
    /// `lds` or `sync sequencer`: takes tokens, and so many cycles.
    Wait { at: u32, account: Account, tokens: Tokens, cycles: u64 },
    /// The end; its account, if there is a `halt`.
    Halt(Option<Account>),
}

/// A loop that is being executed.
#[derive(Clone, Copy)]
struct Loop {
    counter: Reg,
    count: i64,
}

/// Executes a program.
pub(crate) struct Sequencer<'a> {
    program: &'a Program,
    machine: &'a Machine,
    pub registers: Registers,
    at: usize,
    loops: Vec<Loop>,
    pub executor: Executor<'a>,
}

impl<'a> Sequencer<'a> {
    pub(crate) fn new(program: &'a Program, machine: &'a Machine, executor: Executor<'a>) -> Self {
        let loops = Vec::with_capacity(MAX_LOOP_DEPTH);
        Sequencer { program, machine, registers: Registers::default(), at: 0, loops, executor }
    }

    /// Position of the instruction that is executed next.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// Executes up to the next instruction that is not scalar; gives how many were.
    pub(crate) fn advance(&mut self, tally: &mut Tally<'_>) -> Result<(u64, Step), SimError> {
        let mut scalars = 0;
        loop {
            let at = self.at;
            let Some(instruction) = self.program.instructions.get(at).copied() else {
                return Ok((scalars, Step::Halt(None)));
            };
            let account = tally.account(at, instruction.op.row().class, &self.registers);
            let mut amounts = Amounts::default();
            let step =
                self.execute(at, &instruction, account, &mut amounts).map_err(|stop| stop.of(at, instruction))?;
            tally.issued(account, amounts, 1);
            match step {
                None => {
                    tally.sequenced(account, 1);
                    scalars += 1;
                }
                Some(step) => {
                    let cycles = match &step {
                        Step::Issue(_) | Step::Halt(_) => 1,
                        Step::Wait { cycles, .. } => *cycles,
                    };
                    tally.sequenced(account, cycles);
                    return Ok((scalars, step));
                }
            }
        }
    }

    fn execute(
        &mut self,
        at: usize,
        instruction: &Instruction,
        account: Account,
        amounts: &mut Amounts,
    ) -> Result<Option<Step>, Stop> {
        self.executor.spend(1)?;
        self.at = at + 1;
        let wait = |cycles| Some(Step::Wait { at: at as u32, account, tokens: instruction.tokens, cycles });
        if instruction.queue() != Queue::Sequencer {
            let work = self.executor.issue(at, instruction, &self.registers, amounts)?;
            let (queue, tokens) = (instruction.queue(), instruction.tokens);
            return Ok(Some(Step::Issue(Issued { at: at as u32, queue, account, tokens, work })));
        }
        match &instruction.op {
            Op::Halt(_) => return Ok(Some(Step::Halt(Some(account)))),
            Op::Sync(_) => return Ok(wait(1)),
            Op::Lds(f) => {
                let found = self.executor.load_word(&instruction.op, &self.registers)?;
                if found > f.max.0 {
                    return Err(Wrong::new("word", format!("at most max = {}", f.max.0), found).into());
                }
                self.registers.set(f.rd.0, found.into());
                amounts.add_bytes(lapidary_npu_isa::address::Memory::Scratchpad, 4, 0, self.machine);
                return Ok(wait(self.machine.sequencer.load_cycles));
            }
            op => self.scalar(op)?,
        }
        Ok(None)
    }

    /// Executes a scalar instruction, behind which `self.at` already stands.
    fn scalar(&mut self, op: &Op) -> Result<(), Stop> {
        let regs = &mut self.registers;
        let get = |source: Source, regs: &Registers| source.value(regs);
        match op {
            Op::Li(f) => regs.set(f.rd.0, f.value.0),
            Op::Add(f) => regs.set(f.rd.0, get(f.a, regs).wrapping_add(f.b.value(regs))),
            Op::Sub(f) => regs.set(f.rd.0, get(f.a, regs).wrapping_sub(f.b.value(regs))),
            Op::Mul(f) => regs.set(f.rd.0, get(f.a, regs).wrapping_mul(f.b.value(regs))),
            Op::Shl(f) => regs.set(f.rd.0, get(f.a, regs).wrapping_shl(f.b.value(regs) as u32)),
            Op::Shr(f) => regs.set(f.rd.0, get(f.a, regs).wrapping_shr(f.b.value(regs) as u32)),
            Op::Min(f) => regs.set(f.rd.0, get(f.a, regs).min(f.b.value(regs))),
            Op::Max(f) => regs.set(f.rd.0, get(f.a, regs).max(f.b.value(regs))),
            Op::And(f) => regs.set(f.rd.0, get(f.a, regs) & f.b.value(regs)),
            Op::Loop(f) => {
                let count = f.count.value(regs);
                if count > f.max.0.into() {
                    return Err(Wrong::new("count", format!("at most max = {}", f.max.0), count).into());
                }
                regs.set(f.rd.0, 0);
                match count > 0 {
                    true => self.loops.push(Loop { counter: f.rd.0, count }),
                    false => self.at += f.body.0 as usize + 1,
                }
            }
            Op::End(f) => {
                if let Some(Loop { counter, count }) = self.loops.last().copied() {
                    let done = regs.get(counter).wrapping_add(1);
                    regs.set(counter, done);
                    match done < count {
                        true => self.at -= f.body.0 as usize + 1,
                        false => drop(self.loops.pop()),
                    }
                }
            }
            Op::Branch(f) => {
                let (a, b) = (f.a.value(regs), f.b.value(regs));
                let holds = match f.condition {
                    Condition::Eq => a == b,
                    Condition::Ne => a != b,
                    Condition::Lt => a < b,
                    Condition::Ge => a >= b,
                };
                self.at += if holds { f.target.0 as usize } else { 0 };
            }
            Op::SkipIfZero(f) => self.at += if f.a.value(regs) == 0 { f.target.0 as usize } else { 0 },
            _ => unreachable!("{op:?} is not scalar: {}", CostClass::Scalar.name()),
        }
        Ok(())
    }
}
