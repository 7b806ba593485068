//! What is counted: bytes, multiply-adds, energy, cycles, for the run, per cost class and per part of the program.

use std::collections::HashMap;

use lapidary_npu_isa::address::Memory;
use lapidary_npu_isa::{CostClass, Machine, Program, Queue, Registers};

use crate::stage::{RoutingStage, stages};
use crate::timing::requests::Counts;

/// Amounts that add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Instructions executed or issued.
    pub instructions: u64,
    /// Bytes on the DRAM's bus, whole bursts.
    pub dram_read_bytes: u128,
    /// Bytes on the DRAM's bus, whole bursts.
    pub dram_write_bytes: u128,
    /// Bytes that instructions asked DRAM for.
    pub dram_used_bytes: u128,
    /// Bytes read from the scratchpad.
    pub scratchpad_read_bytes: u128,
    /// Bytes written to the scratchpad.
    pub scratchpad_write_bytes: u128,
    /// Bytes read from the weight buffer.
    pub weights_read_bytes: u128,
    /// Bytes written to the weight buffer.
    pub weights_write_bytes: u128,
    /// Bytes read from the accumulators.
    pub accumulators_read_bytes: u128,
    /// Bytes written to the accumulators.
    pub accumulators_write_bytes: u128,
    /// Multiply-adds of passes.
    pub macs: u128,
    /// Energy, fJ.
    pub energy_fj: u128,
}

impl Amounts {
    pub(crate) fn add_bytes(&mut self, memory: Memory, reads: u128, writes: u128, machine: &Machine) {
        let energy = &machine.energy;
        match memory {
            // Whole bursts are counted, with their requests.
            Memory::Dram => self.dram_used_bytes += reads.max(writes),
            Memory::Scratchpad => {
                self.scratchpad_read_bytes += reads;
                self.scratchpad_write_bytes += writes;
                self.energy_fj += (reads + writes) * u128::from(energy.scratchpad_byte_fj);
            }
            Memory::Weights => {
                self.weights_read_bytes += reads;
                self.weights_write_bytes += writes;
                self.energy_fj += (reads + writes) * u128::from(energy.weights_byte_fj);
            }
            Memory::Accumulators => {
                let row_bytes = 4 * u128::from(machine.matrix.cols);
                self.accumulators_read_bytes += reads * row_bytes;
                self.accumulators_write_bytes += writes * row_bytes;
                self.energy_fj += (reads + writes) * row_bytes * u128::from(energy.accumulators_byte_fj);
            }
        }
    }

    pub(crate) fn add_requests(&mut self, counts: Counts, machine: &Machine) {
        let burst_bytes = u128::from(machine.dma.burst_bytes);
        self.dram_read_bytes += u128::from(counts.reads) * burst_bytes;
        self.dram_write_bytes += u128::from(counts.writes) * burst_bytes;
        let requests = u128::from(counts.reads) + u128::from(counts.writes);
        self.energy_fj += requests * burst_bytes * u128::from(machine.energy.dram_byte_fj);
    }

    pub(crate) fn add_macs(&mut self, macs: u128, is_i4: bool, machine: &Machine) {
        self.macs += macs;
        let each = if is_i4 { machine.energy.mac_i4_fj } else { machine.energy.mac_i8_fj };
        self.energy_fj += macs * u128::from(each);
    }

    /// `step_cycles`: s·c of rule V1.
    pub(crate) fn add_vector(&mut self, step_cycles: u128, machine: &Machine) {
        self.energy_fj += step_cycles * u128::from(machine.vector.lanes) * u128::from(machine.energy.vector_op_fj);
    }

    pub(crate) fn add_route(&mut self, cycles: u64, machine: &Machine) {
        let turns = cycles.saturating_sub(machine.route.startup_cycles);
        self.energy_fj += u128::from(turns) * u128::from(machine.route.lanes) * u128::from(machine.energy.route_op_fj);
    }

    pub(crate) fn add_instructions(&mut self, count: u64, machine: &Machine) {
        self.instructions += count;
        self.energy_fj += u128::from(count) * u128::from(machine.energy.instruction_fj);
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Amounts) {
        self.instructions += other.instructions;
        self.dram_read_bytes += other.dram_read_bytes;
        self.dram_write_bytes += other.dram_write_bytes;
        self.dram_used_bytes += other.dram_used_bytes;
        self.scratchpad_read_bytes += other.scratchpad_read_bytes;
        self.scratchpad_write_bytes += other.scratchpad_write_bytes;
        self.weights_read_bytes += other.weights_read_bytes;
        self.weights_write_bytes += other.weights_write_bytes;
        self.accumulators_read_bytes += other.accumulators_read_bytes;
        self.accumulators_write_bytes += other.accumulators_write_bytes;
        self.macs += other.macs;
        self.energy_fj += other.energy_fj;
    }
}

/// A part of the program, or a class of instructions: what it did and how long it took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// What it did.
    pub amounts: Amounts,
    /// Cycles from start to end of its instructions, summed, by unit ([`Queue::index`]).
    pub unit_cycles: [u64; 6],
    /// Cycles of the run in which one of its instructions was the next to complete. Of all parts together, and of all classes:
    /// the run. `halt` completes when the run ends; other instructions that the sequencer executes itself complete for this
    /// purpose only if they wait for tokens (`lds`, `sync sequencer`).
    pub cycles: u64,
    /// First start.
    pub begin: Option<u64>,
    /// Last completion.
    pub end: u64,
}

impl Share {
    fn started(&mut self, begin: u64) {
        self.begin = Some(self.begin.map_or(begin, |b| b.min(begin)));
    }

    /// Adds another's of the same run.
    pub fn add(&mut self, other: &Share) {
        self.add_after(0, other);
    }

    /// Adds that of a run that began `offset` cycles later.
    pub fn add_after(&mut self, offset: u64, other: &Share) {
        self.amounts.add(&other.amounts);
        for (mine, others) in self.unit_cycles.iter_mut().zip(other.unit_cycles) {
            *mine += others;
        }
        self.cycles += other.cycles;
        self.begin = match (self.begin, other.begin.map(|begin| begin + offset)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if other.end > 0 {
            self.end = self.end.max(other.end + offset);
        }
    }
}

/// A part of a program in a report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Name of its label; nothing: instructions before the first.
    pub name: String,
    /// The module's number, if its label says where that is.
    pub module: Option<i64>,
    /// What it did.
    pub share: Share,
}

/// What an instruction is counted with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    /// What reports call its part of the program.
    pub part: u32,
    pub class: CostClass,
    pub stage: Option<RoutingStage>,
}

/// Parts beyond this number are counted together.
const MOST_PARTS: usize = 1 << 16;

/// Counts.
pub(crate) struct Tally<'a> {
    machine: &'a Machine,
    program: &'a Program,
    pub parts: Vec<Part>,
    /// Of each label the first with its name.
    names: Vec<u32>,
    places: HashMap<(Option<u32>, Option<i64>), u32>,
    pub classes: Vec<(CostClass, Share)>,
    /// Stages of routing, all of them.
    pub routing: Vec<(RoutingStage, Share)>,
    /// Of each instruction.
    stages: Vec<Option<RoutingStage>>,
    latest_completion: u64,
}

impl<'a> Tally<'a> {
    pub(crate) fn new(program: &'a Program, machine: &'a Machine) -> Self {
        let mut first_of_name = HashMap::new();
        let names =
            program.op_labels.iter().zip(0..).map(|(l, i)| *first_of_name.entry(&l.name).or_insert(i)).collect();
        Tally {
            machine,
            program,
            parts: Vec::new(),
            names,
            places: HashMap::new(),
            classes: CostClass::ALL.iter().map(|class| (*class, Share::default())).collect(),
            routing: RoutingStage::ALL.iter().map(|stage| (*stage, Share::default())).collect(),
            stages: stages(program),
            latest_completion: 0,
        }
    }

    /// What an instruction is counted with when it is issued.
    pub(crate) fn account(&mut self, at: usize, class: CostClass, regs: &Registers) -> Account {
        Account { part: self.part(at, regs), class, stage: self.stages.get(at).copied().flatten() }
    }

    /// The part that an instruction belongs to when it is issued.
    fn part(&mut self, at: usize, regs: &Registers) -> u32 {
        let after = self.program.op_labels.partition_point(|label| label.at as usize <= at);
        let label = after.checked_sub(1).and_then(|i| Some((self.names.get(i)?, self.program.op_labels.get(i)?)));
        let label = label.filter(|(_, label)| !label.name.is_empty());
        let module = label.and_then(|(_, l)| l.module).map(|reg| regs.get(reg));
        let key = (label.map(|(name, _)| *name), module);
        if let Some(place) = self.places.get(&key) {
            return *place;
        }
        if self.parts.len() >= MOST_PARTS {
            return MOST_PARTS as u32 - 1;
        }
        let name = label.map_or(String::new(), |(_, l)| l.name.clone());
        self.parts.push(Part { name, module, share: Share::default() });
        let place = self.parts.len() as u32 - 1;
        self.places.insert(key, place);
        place
    }

    fn shares(&mut self, account: Account, mut each: impl FnMut(&mut Share)) {
        each(&mut self.parts[account.part as usize].share);
        each(&mut self.classes[account.class as usize].1);
        if let Some(stage) = account.stage {
            each(&mut self.routing[stage as usize].1);
        }
    }

    /// Instructions that the sequencer executed or issued, and what they did.
    pub(crate) fn issued(&mut self, account: Account, mut amounts: Amounts, count: u64) {
        amounts.add_instructions(count, self.machine);
        self.shares(account, |share| share.amounts.add(&amounts));
    }

    /// The sequencer works on an instruction that it executes itself.
    pub(crate) fn sequenced(&mut self, account: Account, cycles: u64) {
        self.shares(account, |share| share.unit_cycles[Queue::Sequencer.index()] += cycles);
    }

    /// An instruction takes its unit from `begin` to `end`.
    pub(crate) fn took(&mut self, account: Account, queue: Queue, begin: u64, end: u64) {
        self.shares(account, |share| {
            share.started(begin);
            share.unit_cycles[queue.index()] += end - begin;
        });
    }

    /// An instruction is complete; times ascend.
    pub(crate) fn completed(&mut self, account: Account, at: u64) {
        let since = at - self.latest_completion;
        self.latest_completion = at;
        self.shares(account, |share| {
            share.cycles += since;
            share.end = share.end.max(at);
        });
    }

    /// All of it.
    pub(crate) fn total(&self) -> Amounts {
        let mut total = Amounts::default();
        self.classes.iter().for_each(|(_, share)| total.add(&share.amounts));
        total
    }
}
