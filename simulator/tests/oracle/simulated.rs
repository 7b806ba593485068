//! Programs and single instructions on the simulator.

use lapidary_npu_isa::{Instruction, Machine, Program};
use lapidary_simulator::{Options, SimError, Simulator};

use crate::memory::{Kind, Memories};

/// How the simulator ended.
#[derive(Debug)]
pub enum Ending {
    /// Registers and memories.
    Done(Box<([i64; 32], Memories)>),
    /// Position, and what the fault is about.
    Fault(usize, Kind, String),
    /// What no program here does: stopping for good, or going on for too long.
    Other(String),
}

/// The program of words.
pub fn program(words: &[u128]) -> Program {
    let instructions = words.iter().map(|word| Instruction::decode(*word).expect("an instruction")).collect();
    Program { instructions, ..Program::default() }
}

/// Runs words from these memories.
pub fn run(words: &[u128], machine: &Machine, start: &Memories) -> Ending {
    let program = program(words);
    let mut simulator = Simulator::new(&program, machine, Options::default()).expect("a program");
    simulator.write_dram(0, &start.dram).expect("DRAM");
    let memories = simulator.memories_mut();
    memories.scratchpad.copy_from_slice(&start.scratchpad);
    memories.weights.copy_from_slice(&start.weights);
    memories.accumulators.copy_from_slice(&start.accumulators);
    match simulator.run() {
        Ok(run) => {
            let mut registers = [0; 32];
            for (number, value) in registers.iter_mut().enumerate().skip(1) {
                let register = lapidary_npu_isa::Reg::new(number as u8).expect("a register");
                *value = run.registers.get(register);
            }
            let memories = Memories {
                dram: run.read_dram(0, start.dram.len()),
                scratchpad: run.scratchpad().to_vec(),
                weights: run.weights().to_vec(),
                accumulators: run.accumulators().to_vec(),
                ..*start
            };
            Ending::Done(Box::new((registers, memories)))
        }
        Err(SimError::Fault(fault)) => Ending::Fault(fault.at, kind(&fault.what, &fault.wanted), fault.to_string()),
        Err(other) => Ending::Other(other.to_string()),
    }
}

/// What a fault is about, by its text.
fn kind(what: &str, wanted: &str) -> Kind {
    match (what, wanted) {
        (what, _) if what.starts_with("index[") => Kind::Index,
        ("set elements", _) => Kind::Most,
        (_, wanted) if wanted.starts_with("at most max") => Kind::Max,
        (_, wanted) if wanted.starts_with("bytes 0 to") || wanted.starts_with("rows 0 to") => Kind::Outside,
        (_, wanted) if wanted.starts_with("a multiple of") || wanted.starts_with("0 to 2^48") => Kind::Operand,
        (_, wanted) if wanted.ends_with(" tokens") => Kind::Post,
        ("token" | "window" | "sinks", _) => Kind::Operand,
        ("k" | "n" | "cols", _) => Kind::Limit,
        other => panic!("a fault of an unknown kind: {other:?}"),
    }
}
