//! When the instructions of an assembled program started and ended.
//!
//! `cargo run -p lapidary-simulator --example activities -- examples/npu/top_k_sort.s [MACHINE]`

use lapidary_npu_isa::asm::assemble;
use lapidary_npu_isa::{Machine, Queue};
use lapidary_simulator::observe::{Activity, Observer};
use lapidary_simulator::{Cause, Options, Simulator};

struct Recorder(Vec<Activity>);

impl Observer for Recorder {
    fn activity(&mut self, activity: Activity) {
        self.0.push(activity);
    }
    fn spent(&mut self, _: Queue, _: Cause, _: u64, _: u64) {}
    fn burst(&mut self, _: Queue, _: u64, _: u64) {}
}

#[allow(clippy::print_stdout)]
fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().expect("a file of assembly");
    let program = assemble(&std::fs::read_to_string(path).expect("its text")).expect("a program");
    let machine = Machine::preset(&arguments.next().unwrap_or("edge-16".into())).expect("a preset");
    let mut recorder = Recorder(Vec::new());
    let simulator = Simulator::new(&program, &machine, Options::default()).expect("a program that fits");
    let run = simulator.run_observed(&mut recorder).expect("a run");
    recorder.0.sort_by_key(|activity| (activity.begin, activity.at));
    for Activity { queue, at, begin, end, .. } in recorder.0 {
        println!("{begin:>7} {end:>7}  {:<9} {}", queue.name(), program.instructions[at as usize]);
    }
    println!("{:>7} cycles", run.report.cycles);
}
