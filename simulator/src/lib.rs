//! What an NPU program computes, bit for bit, and how long that takes, cycle for cycle: `ISA.md` as a simulator.
//!
//! * [`Simulator`] takes a program and a machine; inputs are written to DRAM, [`Simulator::run`] gives a [`Run`] with its
//!   [`Report`] and the memories, from which results are read.
//! * [`Device`] keeps memories over runs of several programs; [`routing`]: decisions from outside, for what-if runs.
//! * [`report`]: text, JSON, CSV, Chrome trace and HTML of a run; [`observe`]: how traces watch one.
//! * Inside, `sequencer` and `exec` are the functional model, `timing` the timing model, `ledger` and `tally` the accounts.
//!
//! Not here: the instruction set and machines (`lapidary-npu-isa`), checking a program without running it (its verifier), the
//! command line.
//!
//! ```
//! use lapidary_npu_isa::format::{Constant, Count, Nothing};
//! use lapidary_npu_isa::address::{Address, Sp};
//! use lapidary_npu_isa::operand::{Dest, Given, Maybe, Reg, Source, Wide};
//! use lapidary_npu_isa::{Machine, Op, Program};
//! use lapidary_simulator::{Options, Simulator};
//!
//! let r1 = Reg::new(1).unwrap();
//! let iota = Count { dst: Sp(Address { base: None, offset: 64 }), count: Given(Source(Some(r1))), start: Maybe(None) };
//! let ops = [Op::Li(Constant { rd: Dest(r1), value: Wide(40) }), Op::Iota(iota), Op::Halt(Nothing {})];
//! let program = Program { instructions: ops.map(Into::into).to_vec(), ..Program::default() };
//! let machine = Machine::preset("edge-16").unwrap();
//! let run = Simulator::new(&program, &machine, Options::default()).unwrap().run().unwrap();
//! assert_eq!(run.scratchpad()[64 + 4 * 39], 39);
//! // `li` in cycle 0, issued in 1; P + ⌈40/16⌉ = 7 cycles from 2 on.
//! assert_eq!(run.report.cycles, 9);
//! ```

mod cost;
pub mod device;
mod error;
mod exec;
mod ledger;
mod memory;
pub mod number;
pub mod observe;
pub mod report;
pub mod routing;
mod selections;
mod sequencer;
mod stage;
mod tally;
mod timing;
mod unknown;

use lapidary_npu_isa::{Machine, Program, Registers};

pub use device::Device;
pub use error::{Fault, Limit, SimError};
pub use ledger::Cause;
pub use memory::{DramContents, Memories};
use observe::Observer;
pub use report::Report;
use routing::Routed;
pub use selections::Selections;
pub use stage::RoutingStage;
pub use tally::{Amounts, Part, Share};
pub use timing::dram::DramCounts;

/// How much a run may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Cycles, at most 2⁴³.
    pub cycles: u64,
    /// Instructions, rows that are moved, and sixteenths of elements that are computed.
    pub steps: u64,
    /// DRAM with contents.
    pub dram_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { cycles: exec::MOST_CYCLES, steps: 1 << 40, dram_bytes: 16 << 30 }
    }
}

/// How to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether values are computed. Without, cycles are the same; programs whose course depends on values that only the array
    /// computes are refused.
    pub values: bool,
    /// How much it may take.
    pub limits: Limits,
    /// Makes DRAM requests one at a time where many could be made in a row. The same result, slower: for tests.
    pub one_by_one: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { values: true, limits: Limits::default(), one_by_one: false }
    }
}

impl Options {
    /// Cycles only.
    pub fn timing_only() -> Options {
        Options { values: false, ..Options::default() }
    }
}

/// A program on a machine, before it runs.
pub struct Simulator<'a> {
    program: &'a Program,
    machine: &'a Machine,
    options: Options,
    memories: Memories,
    routed: Option<Routed<'a>>,
}

/// A program that has run.
#[derive(Debug)]
pub struct Run {
    /// What happened.
    pub report: Report,
    /// What the memories hold. Without values, what the array would have computed is missing.
    pub memories: Memories,
    /// The registers at the end.
    pub registers: Registers,
}

impl<'a> Simulator<'a> {
    /// All memories are zero, but for the program's segments.
    pub fn new(program: &'a Program, machine: &'a Machine, options: Options) -> Result<Self, SimError> {
        let memories = Memories::new(machine, options.values, options.limits.dram_bytes);
        Simulator::with_memories(program, machine, options, memories)
    }

    /// Memories are as another run on the same machine with the same options left them; the program's segments are written anew.
    pub fn with_memories(
        program: &'a Program,
        machine: &'a Machine,
        options: Options,
        memories: Memories,
    ) -> Result<Self, SimError> {
        program.check_structure()?;
        memories.check(machine, options.values)?;
        let mut simulator = Simulator { program, machine, options, memories, routed: None };
        simulator.write_segments()?;
        Ok(simulator)
    }

    fn write_segments(&mut self) -> Result<(), SimError> {
        let program = self.program;
        let segments = program.segments.iter();
        segments
            .map(|s| (format!("segment {:?}", s.name), s))
            .try_for_each(|(n, s)| self.write(&n, s.address, &s.bytes))
    }

    fn write(&mut self, what: &str, address: u64, bytes: &[u8]) -> Result<(), SimError> {
        let (dram_bytes, end) = (self.machine.dram.bytes, address.saturating_add(bytes.len() as u64));
        if end > dram_bytes {
            return Err(SimError::OutsideDram { what: what.into(), dram_bytes, begin: address, end });
        }
        self.memories.write_dram(address, bytes).map_err(|stop| stop.of(0, what))
    }

    /// Writes an input to DRAM.
    pub fn write_dram(&mut self, address: u64, bytes: &[u8]) -> Result<(), SimError> {
        self.write("input", address, bytes)
    }

    /// Memories before the run, to set up anything.
    pub fn memories_mut(&mut self) -> &mut Memories {
        &mut self.memories
    }

    /// Lets a routing decide where tokens go, or watch.
    pub fn routed(mut self, routed: Routed<'a>) -> Self {
        self.routed = Some(routed);
        self
    }

    /// Runs the program.
    pub fn run(self) -> Result<Run, SimError> {
        self.run_observed(&mut ())
    }

    /// Runs the program and shows an observer what happens.
    pub fn run_observed(self, observer: &mut impl Observer) -> Result<Run, SimError> {
        let (memories, ended) = self.run_to_end(observer);
        let (report, registers) = ended?;
        Ok(Run { report, memories, registers })
    }

    /// Runs the program; gives the memories back however it ends.
    fn run_to_end(self, observer: &mut impl Observer) -> (Memories, Result<(Report, Registers), SimError>) {
        let Simulator { program, machine, options, memories, routed } = self;
        let limits = options.limits;
        let executor = exec::Executor::new(program, machine, memories, routed, options.values, limits.steps);
        let sequencer = sequencer::Sequencer::new(program, machine, executor);
        let most_cycles = limits.cycles.min(exec::MOST_CYCLES);
        let mut engine =
            timing::engine::Engine::new(program, machine, sequencer, most_cycles, options.one_by_one, observer);
        let ended = engine.run();
        let cycles_by_cause = engine.ledgers.each_ref().map(|ledger| *ledger.cycles());
        let dram = engine.dram_counts();
        let exec::Executor { memories, decisions, .. } = engine.sequencer.executor;
        let registers = engine.sequencer.registers;
        let tally = engine.tally;
        let ended = ended.map(|cycles| {
            let selections = decisions.selections;
            let report = Report::new(machine, options.values, cycles, cycles_by_cause, dram, tally, selections);
            (report, registers)
        });
        (memories, ended)
    }
}

impl Run {
    /// Bytes of DRAM; what lies beyond its end is 0.
    pub fn read_dram(&self, address: u64, len_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0; len_bytes];
        self.memories.dram.read(address, &mut bytes);
        bytes
    }

    /// The scratchpad.
    pub fn scratchpad(&self) -> &[u8] {
        &self.memories.scratchpad
    }

    /// The weight buffer; empty without values.
    pub fn weights(&self) -> &[u8] {
        &self.memories.weights
    }

    /// The accumulators, row by row; empty without values.
    pub fn accumulators(&self) -> &[u32] {
        &self.memories.accumulators
    }
}
