//! Running pieces of assembly, and seeing when what started and ended.
#![allow(dead_code)]

pub mod gemm;

use lapidary_npu_isa::asm::assemble;
use lapidary_npu_isa::{Machine, Program, Queue};
use lapidary_simulator::observe::{Activity, Observer};
use lapidary_simulator::{Cause, Options, Run, SimError, Simulator};

/// `edge-16` with ideal DRAM and some keys of the test's own.
pub fn ideal(settings: &[(&str, &str)]) -> Machine {
    let mut machine = Machine::preset("edge-16").unwrap();
    machine.set("dram.preset", "ideal").unwrap();
    machine.set_all(settings.iter().copied()).unwrap();
    machine
}

/// Keeps every activity.
#[derive(Default)]
pub struct Recorder(pub Vec<Activity>);

impl Observer for Recorder {
    fn activity(&mut self, activity: Activity) {
        self.0.push(activity);
    }
    fn spent(&mut self, _: Queue, _: Cause, _: u64, _: u64) {}
    fn burst(&mut self, _: Queue, _: u64, _: u64) {}
}

/// A program that has run, with what was seen.
pub struct Seen {
    pub run: Run,
    pub activities: Vec<Activity>,
}

impl Seen {
    /// First cycle and end of the only execution of an instruction.
    pub fn at(&self, at: u32) -> (u64, u64) {
        let mut found = self.activities.iter().filter(|a| a.at == at);
        let activity = found.next().unwrap_or_else(|| panic!("instruction {at} was not executed"));
        assert!(found.next().is_none(), "instruction {at} was executed again");
        (activity.begin, activity.end)
    }

    pub fn spent(&self, queue: Queue, cause: Cause) -> u64 {
        self.run.report.spent_cycles(queue, cause)
    }

    pub fn busy(&self, queue: Queue) -> u64 {
        self.spent(queue, Cause::Busy)
    }

    pub fn cycles(&self) -> u64 {
        self.run.report.cycles
    }
}

pub fn program(text: &str) -> Program {
    assemble(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Runs with values, and checks that without them it takes as long.
pub fn see(text: &str, machine: &Machine) -> Seen {
    let program = program(text);
    let mut recorder = Recorder::default();
    let simulator = Simulator::new(&program, machine, Options::default()).unwrap();
    let run = simulator.run_observed(&mut recorder).unwrap_or_else(|error| panic!("{error}\n{text}"));
    match Simulator::new(&program, machine, Options::timing_only()).unwrap().run() {
        Ok(other) => assert_eq!(other.report.cycles_by_cause, run.report.cycles_by_cause),
        Err(SimError::Unknown { .. }) => (),
        Err(error) => panic!("{error}"),
    }
    Seen { run, activities: recorder.0 }
}

/// Why it does not run.
pub fn fails(text: &str, machine: &Machine) -> SimError {
    Simulator::new(&program(text), machine, Options::default()).and_then(Simulator::run).unwrap_err()
}
