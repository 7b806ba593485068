//! Races: the program is executed on several ways through it, with vector clocks for what tokens order.
//!
//! On one way, every timing is covered at once: two accesses are in order only if tokens or the sequencer say so.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::vec::Vec;

use super::bounds::{State, branch, scalar, trips};
use super::ranges::{AGENTS, Event, Last, Ranges};
use super::value::Value;
use super::{Shape, Verified, VerifyError, error};
use crate::address::Memory;
use crate::choice::Queue;
use crate::instruction::Token;
use crate::operand::Reg;
use crate::program::Program;
use crate::table::Op;

/// Ways through a program that has choices.
const PATHS: u32 = 8;
/// Iterations of a loop that are executed, and the accesses of a way before fewer are tried.
const ITERATIONS: [(u32, u64); 4] = [(64, 400_000), (16, 400_000), (4, 400_000), (2, 1 << 24)];
/// Runs of an access that are looked at one by one; of more, the range from first to last.
const MAX_RUNS: u64 = 256;

/// Of each agent, how many of its events have completed.
type Clock = [u32; AGENTS];

fn join(clock: &mut Clock, other: &Clock) {
    clock.iter_mut().zip(other).for_each(|(a, b)| *a = (*a).max(*b));
}

/// Looks for races.
pub(super) fn check(program: &Program, shape: &Shape, exits: &[Option<State>]) -> Result<Verified, VerifyError> {
    for (iterations, most) in ITERATIONS {
        let mut paths = 0;
        let mut fits = true;
        while paths < PATHS {
            let mut path = Path::new(program, shape, exits, paths, (iterations, most));
            match path.run()? {
                Some(choices) => {
                    paths += 1;
                    if !choices {
                        break;
                    }
                }
                None => {
                    fits = false;
                    break;
                }
            }
        }
        if fits {
            return Ok(Verified { paths, iterations });
        }
    }
    let (iterations, most) = ITERATIONS[ITERATIONS.len() - 1];
    let wanted = format!("at most {most} accesses with {iterations} iterations of each loop");
    Err(error(program, 0, "size of the program", wanted, "more"))
}

struct Path<'a> {
    program: &'a Program,
    shape: &'a Shape,
    exits: &'a [Option<State>],
    number: u32,
    iterations: u32,
    most: u64,
    random: u64,
    /// Whether there was a choice.
    choices: bool,
    state: State,
    /// Loops that are open: head, iterations to do, whether these are all, and the only possible number.
    open: Vec<(usize, i64, bool)>,
    clocks: [Clock; AGENTS],
    events: [u32; AGENTS],
    tokens: Vec<VecDeque<Clock>>,
    memories: [Ranges; 4],
    accesses: u64,
}

impl<'a> Path<'a> {
    fn new(
        program: &'a Program,
        shape: &'a Shape,
        exits: &'a [Option<State>],
        number: u32,
        (iterations, most): (u32, u64),
    ) -> Self {
        Path {
            program,
            shape,
            exits,
            number,
            iterations,
            most,
            random: u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            choices: false,
            state: State::start(),
            open: Vec::new(),
            clocks: [[0; AGENTS]; AGENTS],
            events: [0; AGENTS],
            tokens: alloc::vec![VecDeque::new(); Token::COUNT],
            memories: Default::default(),
            accesses: 0,
        }
    }

    /// A number below `n`: the last on the first way, 0 on the second, 1 on the third, then anything.
    fn choose(&mut self, n: u64) -> u64 {
        if n <= 1 {
            return 0;
        }
        self.choices = true;
        match self.number {
            0 => n - 1,
            1 => 0,
            2 => 1,
            _ => {
                // xorshift64: any sequence will do, so long as it is the same every time.
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                self.random % n
            }
        }
    }

    /// To the end, and whether there were choices; `None` if that is too much.
    fn run(&mut self) -> Result<Option<bool>, VerifyError> {
        let mut at = 0;
        while let Some(instruction) = self.program.instructions.get(at) {
            self.accesses += 1;
            if self.accesses > self.most {
                return Ok(None);
            }
            self.effects(at)?;
            match instruction.op {
                Op::Halt(_) => break,
                Op::Loop(head) => at = self.enter(at, &head),
                Op::End(_) => at = self.next_iteration(at),
                Op::Branch(b) => at = self.take(at, b.target.0),
                Op::SkipIfZero(s) => at = self.take(at, s.target.0),
                ref other => {
                    scalar(&mut self.state, other);
                    at += 1;
                }
            }
        }
        Ok(Some(self.choices))
    }

    fn take(&mut self, at: usize, skipped: u32) -> usize {
        let ways = branch(&self.state, &self.program.instructions[at].op);
        let target = at + 1 + skipped as usize;
        match ways {
            Some([Some(taken), Some(not_taken)]) => {
                // The first way runs everything, the second skips everything.
                let skip = self.choose(2) == 0;
                self.state = if skip { taken } else { not_taken };
                if skip { target } else { at + 1 }
            }
            Some([Some(taken), None]) => {
                self.state = taken;
                target
            }
            Some([None, Some(not_taken)]) => {
                self.state = not_taken;
                at + 1
            }
            Some([None, None]) | None => at + 1,
        }
    }

    fn enter(&mut self, at: usize, head: &crate::format::LoopHead) -> usize {
        let (least, most) = trips(&self.state, head);
        let limit = i64::from(self.iterations);
        // Choices beyond what is executed make no difference.
        let span = (most.min(limit.max(least)) - least) as u64 + 1;
        let chosen = least + self.choose(span) as i64;
        // The first way takes a loop of an unknown count as long as it can be.
        let trips = if self.number == 0 { most } else { chosen };
        let exact = least == most && trips <= limit;
        self.state.set(head.rd.0, Value::exactly(0));
        if trips == 0 {
            self.leave(at, head.rd.0, 0, least == most);
            return self.shape.of_loop(at).0 + 1;
        }
        self.open.push((at, trips, exact));
        at + 1
    }

    fn next_iteration(&mut self, at: usize) -> usize {
        let Some((head_at, trips, exact)) = self.open.last().copied() else { return at + 1 };
        let Op::Loop(head) = self.program.instructions[head_at].op else { return at + 1 };
        let index = self.state.get(head.rd.0).and_then(|v| v.single()).unwrap_or(0) + 1;
        self.state.set(head.rd.0, Value::exactly(index));
        if index < trips.min(i64::from(self.iterations)) {
            return head_at + 1;
        }
        self.open.pop();
        self.leave(head_at, head.rd.0, trips, exact);
        at + 1
    }

    /// Behind a loop that ran another number of times than it could have, registers are what any number leaves behind.
    fn leave(&mut self, head: usize, index: Reg, trips: i64, exact: bool) {
        if exact {
            return;
        }
        self.state.set(index, Value::exactly(trips));
        if let Some(exit) = &self.exits[head] {
            let written = self.shape.of_loop(head).1 | 1 << index.number();
            for r in (1..32).filter(|r| written >> r & 1 == 1) {
                self.state.regs[r] = exit.regs[r];
            }
        }
    }

    /// Waits, touches and posts.
    fn effects(&mut self, at: usize) -> Result<(), VerifyError> {
        let instruction = self.program.instructions[at];
        let agent = instruction.queue().index();
        let issue = self.clocks[Queue::Sequencer.index()];
        let mut clock = self.clocks[agent];
        join(&mut clock, &issue);
        for token in instruction.tokens.waits() {
            match self.tokens[token.index()].pop_front() {
                Some(posted) => join(&mut clock, &posted),
                None => {
                    return Err(error(self.program, at, format!("{token}"), "a token that is posted further up", 0));
                }
            }
        }
        self.clocks[agent] = clock;
        let spans = self.state.spans(&instruction.op);
        self.events[agent] += 1;
        let event = Event { number: self.events[agent], at: at as u32 };
        for (access, begin, end) in spans {
            let runs = access.rows.saturating_mul(access.planes);
            let exact = end == access.end() && begin == access.begin && runs <= MAX_RUNS && runs > 1;
            let whole = [(begin, end)];
            let parts: Vec<(u64, u64)> = match exact {
                true => (0..runs)
                    .map(|i| access.begin + i / access.rows * access.plane_stride + i % access.rows * access.stride)
                    .map(|begin| (begin, begin + access.row_units))
                    .collect(),
                false => whole.to_vec(),
            };
            let memory = &mut self.memories[access.memory as usize];
            for (begin, end) in parts {
                self.accesses += 1;
                let unordered = |_: u64, last: &Last| conflict(agent, &clock, access.kind.writes(), last);
                let found = memory.touch(begin, end, (agent, event, access.kind.writes()), |part, last| {
                    unordered(part, last).map(|(event, wrote)| (part, event, wrote))
                });
                if let Some((part, other, wrote)) = found {
                    return Err(self.race(at, &access, part.max(begin), other, wrote));
                }
            }
        }
        let mut done = clock;
        done[agent] = self.events[agent];
        if agent == Queue::Sequencer.index() {
            self.clocks[agent] = done;
        }
        for token in instruction.tokens.posts() {
            self.tokens[token.index()].push_back(done);
        }
        Ok(())
    }

    fn race(&self, at: usize, access: &crate::access::Access, unit: u64, other: Event, wrote: bool) -> VerifyError {
        let code = &self.program.instructions;
        let verb = if wrote { "writes" } else { "reads" };
        let first = code.get(other.at as usize).map_or_else(Default::default, alloc::string::ToString::to_string);
        let memory: Memory = access.memory;
        let what = format!("operand {} {} {memory}[{unit}]", access.operand, access.kind.verb());
        let wanted = format!("tokens that order it behind instruction {}, `{first}`, which {verb} that", other.at);
        error(self.program, at, what, wanted, "none")
    }
}

/// An event that is not known to have completed, and whether it wrote.
fn conflict(agent: usize, clock: &Clock, writes: bool, last: &Last) -> Option<(Event, bool)> {
    let others = || (0..AGENTS).filter(|a| *a != agent);
    let wrote = others().find(|a| last.writes[*a].number > clock[*a]).map(|a| (last.writes[a], true));
    let read = || others().find(|a| writes && last.reads[*a].number > clock[*a]).map(|a| (last.reads[a], false));
    wrote.or_else(read)
}
