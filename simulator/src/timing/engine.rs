//! The clock and everything that acts on it.
//!
//! In each cycle in which something can happen: completions with their posts, then LOAD, STORE, MATRIX, VECTOR, ROUTE start what
//! they can, then the sequencer has its turn. Between such cycles nothing changes but the DMA's requests, which
//! [`Dma::advance`] makes in a loop of its own.

use std::collections::VecDeque;

use lapidary_npu_isa::instruction::{Token, Tokens};
use lapidary_npu_isa::{Machine, Program, Queue};

use super::banks::BankSet;
use super::dma::Dma;
use super::dram::DramCounts;
use super::work::{Issued, Range, Work};
use crate::error::{Limit, SimError, Stop, Wrong};
use crate::ledger::{Cause, Ledger};
use crate::observe::{Activity, Observer};
use crate::sequencer::{Sequencer, Step};
use crate::tally::{Account, Tally};

/// Units with queues, in the order in which they act.
const UNITS: [Queue; 5] = [Queue::Load, Queue::Store, Queue::Matrix, Queue::Vector, Queue::Route];
const NEVER: u64 = u64::MAX;

/// An instruction that has started.
#[derive(Clone, Debug)]
struct Flight {
    at: u32,
    account: Account,
    /// Passes by the unit (rule Q4).
    is_short: bool,
    post: [Option<Token>; 2],
    begin: u64,
    /// Its own end; `NEVER` while it is not known.
    end: u64,
    ranges: [Range; 3],
}

/// A unit and its queue.
#[derive(Debug)]
struct Unit {
    queue: VecDeque<Issued>,
    flights: VecDeque<Flight>,
    /// Number of the first of `flights`, counted from the start of the run.
    first_number: u64,
    /// When its previous instruction ends.
    free_at: u64,
    /// When the banks are free that its instruction holds.
    held_until: u64,
    held: Box<BankSet>,
    /// When the first instruction of the queue can start at the earliest, as far as that is known.
    wake_at: u64,
}

/// With weight overlap: rule M4.
#[derive(Clone, Copy, Debug, Default)]
struct Array {
    preload_end: u64,
    pass_begin: u64,
    /// `pass_begin` + its rows.
    pass_streamed: u64,
}

/// Where the sequencer is.
#[derive(Debug)]
enum Turn {
    /// Executes the next instruction at `next_at`.
    Fetch,
    /// Has come to this, behind scalar instructions.
    Act(Step),
    Halted,
}

pub(crate) struct Engine<'a, 'o, O: Observer> {
    machine: &'a Machine,
    program: &'a Program,
    observer: &'o mut O,
    pub sequencer: Sequencer<'a>,
    pub tally: Tally<'a>,
    pub ledgers: [Ledger; 6],
    units: [Unit; 5],
    array: Array,
    dma: Dma,
    tokens: [u32; Token::COUNT],
    turn: Turn,
    next_at: u64,
    /// When `lds` or `sync sequencer` is done, and what it posts.
    waited: Option<(u64, u32, Account, Tokens)>,
    /// Of `halt`, when it has been executed.
    halt: Option<Account>,
    total: u64,
    most_cycles: u64,
}

impl<'a, 'o, O: Observer> Engine<'a, 'o, O> {
    pub(crate) fn new(
        program: &'a Program,
        machine: &'a Machine,
        sequencer: Sequencer<'a>,
        most_cycles: u64,
        one_by_one: bool,
        observer: &'o mut O,
    ) -> Self {
        let unit = || Unit {
            queue: VecDeque::new(),
            flights: VecDeque::new(),
            first_number: 0,
            free_at: 0,
            held_until: 0,
            held: Box::default(),
            wake_at: NEVER,
        };
        let queues = [Queue::Sequencer, Queue::Load, Queue::Store, Queue::Matrix, Queue::Vector, Queue::Route];
        Engine {
            machine,
            program,
            observer,
            sequencer,
            tally: Tally::new(program, machine),
            ledgers: queues.map(Ledger::new),
            units: std::array::from_fn(|_| unit()),
            array: Array::default(),
            dma: Dma::new(machine, one_by_one),
            tokens: [0; Token::COUNT],
            turn: Turn::Fetch,
            next_at: 0,
            waited: None,
            halt: None,
            total: 0,
            most_cycles,
        }
    }

    /// Runs to the end; gives the total of cycles.
    pub(crate) fn run(&mut self) -> Result<u64, SimError> {
        let mut t = 0;
        loop {
            self.complete(t)?;
            for unit in 0..UNITS.len() {
                self.start(unit, t);
            }
            self.take_turn(t)?;
            match self.next_event(t) {
                Some(next) => t = next,
                None if self.is_done() => break,
                None => return Err(self.deadlock(t)),
            }
            if t > self.most_cycles {
                let at = self.sequencer.position();
                return Err(SimError::Limit { at, limit: Limit::Cycles, most: self.most_cycles });
            }
        }
        for ledger in &mut self.ledgers {
            ledger.idle_cause = Cause::NothingLeft;
            ledger.idle_until(self.total, self.observer);
            // Every cycle of every unit is accounted for, once.
            assert_eq!(ledger.cycles().iter().sum::<u64>(), self.total, "{ledger:?}");
        }
        // What follows the last completion is `halt`'s.
        if let Some(halt) = self.halt {
            self.tally.completed(halt, self.total);
        }
        Ok(self.total)
    }

    pub(crate) fn dram_counts(&self) -> DramCounts {
        self.dma.counts()
    }

    fn is_done(&self) -> bool {
        let idle = |unit: &Unit| unit.queue.is_empty() && unit.flights.is_empty();
        matches!(self.turn, Turn::Halted) && self.units.iter().all(idle)
    }

    fn post(&mut self, at: u32, post: [Option<Token>; 2]) -> Result<(), SimError> {
        for token in post.into_iter().flatten() {
            let count = &mut self.tokens[token.index()];
            *count += 1;
            if *count > Token::MAX {
                let wrong = Wrong::new(token.to_string(), format!("at most {} tokens", Token::MAX), *count);
                return Err(self.fault(at, wrong.into()));
            }
        }
        Ok(())
    }

    fn fault(&self, at: u32, stop: Stop) -> SimError {
        let text = self.program.instructions.get(at as usize).map_or(String::new(), ToString::to_string);
        stop.of(at as usize, text)
    }

    /// Takes tokens if all are there.
    fn take(tokens: &mut [u32; Token::COUNT], wanted: &Tokens) -> bool {
        let there = match wanted.wait {
            [Some(a), Some(b)] if a == b => tokens[a.index()] >= 2,
            [a, b] => [a, b].into_iter().flatten().all(|token| tokens[token.index()] >= 1),
        };
        if there {
            wanted.waits().for_each(|token| tokens[token.index()] -= 1);
        }
        there
    }

    fn complete(&mut self, t: u64) -> Result<(), SimError> {
        for index in 0..UNITS.len() {
            while self.units[index].flights.front().is_some_and(|flight| flight.end <= t) {
                let Some(flight) = self.units[index].flights.pop_front() else { break };
                self.units[index].first_number += 1;
                self.tally.completed(flight.account, t);
                self.total = self.total.max(t);
                self.post(flight.at, flight.post)?;
            }
        }
        if let Some((_, at, account, tokens)) = self.waited.take_if(|(when, ..)| *when <= t) {
            self.tally.completed(account, t);
            self.post(at, tokens.post)?;
        }
        Ok(())
    }

    /// Starts what the unit can start at `t`.
    fn start(&mut self, index: usize, t: u64) {
        let is_halted = matches!(self.turn, Turn::Halted);
        if !self.has_transfers(index, t) {
            self.ledgers[index + 1].idle_until(t, self.observer);
        }
        self.units[index].wake_at = NEVER;
        while let Some(head) = self.units[index].queue.front() {
            let cause = match self.obstacle(index, head, t) {
                None if Self::take(&mut self.tokens, &head.tokens) => {
                    self.begin(index, t);
                    continue;
                }
                None => Cause::TokenWait,
                // Tokens are what is named if they are missing too.
                Some((cause, wake_at)) => {
                    let mut tokens = self.tokens;
                    let waits = !Self::take(&mut tokens, &head.tokens);
                    self.units[index].wake_at = wake_at;
                    if waits { Cause::TokenWait } else { cause }
                }
            };
            self.ledgers[index + 1].idle_cause = cause;
            return;
        }
        self.ledgers[index + 1].idle_cause = if is_halted { Cause::NothingLeft } else { Cause::QueueEmpty };
    }

    /// Whether transfers of the unit are under way: their completions account for its cycles.
    fn has_transfers(&self, index: usize, t: u64) -> bool {
        index < 2 && self.units[index].flights.iter().any(|flight| flight.end > t && !flight.is_short)
    }

    /// Why an instruction cannot start at `t`, tokens apart, and when that may change; `NEVER`: with another event.
    fn obstacle(&self, index: usize, head: &Issued, t: u64) -> Option<(Cause, u64)> {
        let unit = &self.units[index];
        let free_at = match (&head.work, UNITS[index]) {
            (Work::Short, _) => 0,
            (_, Queue::Matrix) if self.machine.matrix.weight_overlap => {
                let array = &self.array;
                match head.work {
                    Work::Preload => array.preload_end.max(array.pass_begin),
                    Work::Pass { .. } => array.preload_end.max(array.pass_streamed),
                    Work::Short | Work::Fixed { .. } | Work::Transfer(_) => 0,
                }
            }
            _ => unit.free_at,
        };
        if free_at > t {
            return Some((Cause::Busy, free_at));
        }
        match &head.work {
            Work::Short | Work::Preload => None,
            Work::Pass { banks, .. } | Work::Fixed { banks, .. } => {
                self.bank_conflict(index, banks, t).map(|until| (Cause::BankConflict, until))
            }
            Work::Transfer(transfer) => {
                let conflicts =
                    |flight: &Flight| flight.ranges.iter().any(|a| transfer.ranges.iter().any(|b| a.conflicts_with(b)));
                if unit.flights.iter().any(conflicts) {
                    return Some((Cause::DmaBusy, NEVER));
                }
                match self.dma.free_channel(t) {
                    Some(_) => None,
                    None => Some((Cause::DmaBusy, self.dma.next_free(t))),
                }
            }
        }
    }

    /// Until when too many units hold a bank that is needed (rule S2).
    fn bank_conflict(&self, index: usize, banks: &BankSet, t: u64) -> Option<u64> {
        let ports = self.machine.scratchpad.ports;
        let holders = || self.units.iter().enumerate().filter(|(i, u)| *i != index && *i >= 2 && u.held_until > t);
        let earliest = || holders().map(|(_, u)| u.held_until).min();
        match ports {
            1 => holders().any(|(_, u)| !u.held.and(banks).is_empty()).then(earliest)?,
            // Three units: both of the others have to hold the same bank.
            2 => {
                let mut common = *banks;
                holders().for_each(|(_, u)| common = common.and(&u.held));
                (holders().count() == 2 && !common.is_empty()).then(earliest)?
            }
            _ => None,
        }
    }

    /// The first instruction of a queue starts.
    fn begin(&mut self, index: usize, t: u64) {
        let Some(head) = self.units[index].queue.pop_front() else { return };
        let queue = UNITS[index];
        let number = self.units[index].first_number + self.units[index].flights.len() as u64;
        let mut ranges = [Range::default(); 3];
        let (rows, cols) = (self.machine.matrix.rows, self.machine.matrix.cols);
        let (mut conflict_cycles, mut held) = (0, None);
        let is_short = matches!(head.work, Work::Short);
        // What passes by takes no cycle of the unit; transfers under way account for all cycles up to their end.
        let is_covered = is_short || self.has_transfers(index, t);
        let end = match head.work {
            Work::Short => t + 1,
            Work::Preload => {
                self.array.preload_end = t + rows;
                t + rows
            }
            Work::Pass { rows: streamed, banks } => {
                (self.array.pass_begin, self.array.pass_streamed) = (t, t + streamed);
                held = Some((t + streamed, banks));
                t + (streamed + rows + cols - 2).max(1)
            }
            Work::Fixed { cycles, conflict_cycles: some, banks } => {
                conflict_cycles = some;
                held = Some((t + cycles, banks));
                t + cycles
            }
            Work::Transfer(transfer) => {
                ranges = transfer.ranges;
                match self.dma.free_channel(t) {
                    Some(channel) => self.dma.start(channel, queue, number, t, *transfer).unwrap_or(NEVER),
                    None => NEVER,
                }
            }
        };
        let unit = &mut self.units[index];
        if let Some((until, banks)) = held {
            (unit.held_until, unit.held) = (until, banks);
        }
        // LOAD and STORE have channels instead.
        if index >= 2 && !is_short {
            unit.free_at = end;
        }
        let Issued { at, account, tokens, .. } = head;
        unit.flights.push_back(Flight { at, account, is_short, post: tokens.post, begin: t, end, ranges });
        if end != NEVER {
            if !is_covered {
                let ledger = &mut self.ledgers[index + 1];
                ledger.spend_until(Cause::Busy, end - conflict_cycles, self.observer);
                ledger.spend_until(Cause::BankConflict, end, self.observer);
            }
            self.ended(index, number);
        }
    }

    /// The end of an instruction is known.
    fn ended(&mut self, index: usize, number: u64) {
        let place = (number - self.units[index].first_number) as usize;
        if let Some(flight) = self.units[index].flights.get(place) {
            let Flight { at, account, is_short, begin, end, .. } = *flight;
            let (queue, part) = (UNITS[index], account.part);
            self.tally.took(account, queue, begin, if is_short { begin } else { end });
            self.observer.activity(Activity { queue, at, part, begin, end });
        }
    }

    fn take_turn(&mut self, t: u64) -> Result<(), SimError> {
        if self.next_at > t {
            return Ok(());
        }
        if matches!(self.turn, Turn::Fetch) {
            let (scalars, step) = self.sequencer.advance(&mut self.tally)?;
            self.turn = Turn::Act(step);
            self.ledgers[0].spend(Cause::Busy, scalars, self.observer);
            self.next_at = t + scalars;
            if scalars > 0 {
                return Ok(());
            }
        }
        let turn = std::mem::replace(&mut self.turn, Turn::Fetch);
        match turn {
            Turn::Fetch => (),
            Turn::Halted => self.turn = Turn::Halted,
            Turn::Act(Step::Issue(issued)) => {
                let index = issued.queue.index() - 1;
                self.ledgers[0].idle_until(t, self.observer);
                if self.units[index].queue.len() as u64 >= self.machine.queue.depth {
                    self.ledgers[0].idle_cause = Cause::QueueFull;
                    self.turn = Turn::Act(Step::Issue(issued));
                } else {
                    self.units[index].queue.push_back(issued);
                    self.units[index].wake_at = t + 1;
                    self.ledgers[0].spend(Cause::Busy, 1, self.observer);
                    self.next_at = t + 1;
                }
            }
            Turn::Act(Step::Wait { at, account, tokens, cycles }) => {
                self.ledgers[0].idle_until(t, self.observer);
                if Self::take(&mut self.tokens, &tokens) {
                    self.ledgers[0].spend(Cause::Busy, cycles, self.observer);
                    self.next_at = t + cycles;
                    self.waited = Some((t + cycles, at, account, tokens));
                } else {
                    self.ledgers[0].idle_cause = Cause::TokenWait;
                    self.turn = Turn::Act(Step::Wait { at, account, tokens, cycles });
                }
            }
            Turn::Act(Step::Halt(halt)) => {
                self.halt = halt;
                self.ledgers[0].idle_until(t, self.observer);
                self.ledgers[0].spend(Cause::Busy, 1, self.observer);
                self.ledgers[0].idle_cause = Cause::NothingLeft;
                self.turn = Turn::Halted;
                self.next_at = t + 1;
                self.total = self.total.max(t + 1);
            }
        }
        Ok(())
    }

    /// The next cycle after `t` in which something can happen. Requests before it have been made then.
    fn next_event(&mut self, t: u64) -> Option<u64> {
        let mut next = NEVER;
        if self.next_at > t {
            next = self.next_at;
        }
        if let Some((when, ..)) = self.waited {
            next = next.min(when);
        }
        for unit in &self.units {
            next = next.min(unit.flights.front().map_or(NEVER, |flight| flight.end));
            next = next.min(if unit.wake_at > t { unit.wake_at } else { NEVER });
        }
        next = next.min(self.dma.next_free(t));
        // A cycle beyond the limit is as good as none.
        let limit = self.most_cycles.saturating_add(1);
        while self.dma.is_active() {
            let Some(finished) = self.dma.advance(next.min(limit), &mut self.ledgers, self.observer) else { break };
            let index = finished.queue.index() - 1;
            let place = (finished.number - self.units[index].first_number) as usize;
            if let Some(flight) = self.units[index].flights.get_mut(place) {
                flight.end = finished.end;
            }
            self.ended(index, finished.number);
            next = next.min(finished.end);
        }
        if self.dma.is_active() {
            next = next.min(limit);
        }
        (next != NEVER).then_some(next)
    }

    fn deadlock(&self, t: u64) -> SimError {
        let name = |at: u32| self.program.instructions.get(at as usize).map_or(String::new(), ToString::to_string);
        let heads = self.units.iter().zip(UNITS).filter_map(|(unit, queue)| Some((queue, unit.queue.front()?)));
        let mut waiting: Vec<String> =
            heads.map(|(queue, head)| format!("{queue}: instruction {} (`{}`)", head.at, name(head.at))).collect();
        match &self.turn {
            Turn::Act(Step::Wait { at, .. }) => waiting.push(format!("sequencer: instruction {at} (`{}`)", name(*at))),
            Turn::Act(Step::Issue(issued)) => {
                waiting.push(format!(
                    "sequencer: instruction {} (`{}`), whose queue is full",
                    issued.at,
                    name(issued.at)
                ));
            }
            Turn::Act(Step::Halt(_)) | Turn::Fetch | Turn::Halted => (),
        }
        SimError::Deadlock { cycle: t, waiting }
    }
}
