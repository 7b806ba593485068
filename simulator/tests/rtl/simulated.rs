//! The same case on the simulator, watched.

use lapidary_npu_isa::{Instruction, Machine, Program, Queue};
use lapidary_simulator::observe::{Activity, Observer};
use lapidary_simulator::{Cause, Options, Simulator};

use crate::verilator::Case;

/// What the simulator says of a case: start and end of each matrix instruction, accumulators, cycles of the run.
pub struct Simulated {
    pub times: Vec<(u64, u64)>,
    /// When each `sync vector` started.
    pub witnesses: Vec<u64>,
    pub accumulators: Vec<u32>,
    pub total: u64,
}

struct Watcher(Vec<Activity>, Vec<Activity>);

impl Observer for Watcher {
    fn activity(&mut self, activity: Activity) {
        match activity.queue {
            Queue::Matrix => self.0.push(activity),
            _ => self.1.push(activity),
        }
    }
    fn spent(&mut self, _: Queue, _: Cause, _: u64, _: u64) {}
    fn burst(&mut self, _: Queue, _: u64, _: u64) {}
}

pub fn simulate(case: &Case, machine: &Machine) -> Simulated {
    let instructions = case.words.iter().map(|word| Instruction::decode(*word).expect("an instruction")).collect();
    let program = Program { instructions, ..Program::default() };
    let mut simulator = Simulator::new(&program, machine, Options::default()).expect("a program");
    let memories = simulator.memories_mut();
    memories.scratchpad.copy_from_slice(&case.memories.scratchpad);
    memories.weights.copy_from_slice(&case.memories.weights);
    memories.accumulators.copy_from_slice(&case.memories.accumulators);
    let mut watcher = Watcher(Vec::new(), Vec::new());
    let run = simulator.run_observed(&mut watcher).expect("no fault");
    for activities in [&mut watcher.0, &mut watcher.1] {
        activities.sort_by_key(|activity| activity.at);
    }
    Simulated {
        times: watcher.0.iter().map(|activity| (activity.begin, activity.end)).collect(),
        witnesses: watcher.1.iter().map(|activity| activity.begin).collect(),
        accumulators: run.accumulators().to_vec(),
        total: run.report.cycles,
    }
}
