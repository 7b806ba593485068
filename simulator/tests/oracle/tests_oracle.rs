//! The oracle on its own: words, and that it gets through random cases.

use lapidary_npu_isa::{Instruction, Machine, Program};

use crate::cases::{case, queued};
use crate::dice::Dice;
use crate::memory::Memories;
use crate::programs::program;
use crate::sequencer::Oracle;
use crate::spec::{Operands, entries};

/// A small machine with an array of `rows` × `cols`.
pub fn machine(rows: u64, cols: u64, overlap: bool) -> Machine {
    let mut machine = Machine::preset("edge-16").expect("a machine");
    let settings = [
        ("weights.bytes", (2 * rows * cols).max(4096).to_string()),
        ("matrix.rows", rows.to_string()),
        ("accumulators.bytes", (4 * 16 * 200 * cols).to_string()),
        ("matrix.cols", cols.to_string()),
        ("accumulators.bytes", (4 * 200 * cols).to_string()),
        ("matrix.weight_overlap", overlap.to_string()),
        ("scratchpad.bytes", 16384.to_string()),
        ("dram.preset", "ideal".into()),
        ("dram.bytes", 262_144.to_string()),
    ];
    for (key, value) in settings {
        machine.set(key, &value).expect(key);
    }
    machine
}

#[test]
fn reference_has_the_instructions_of_the_crate() {
    let ours: Vec<(&str, u8)> = entries().iter().map(|e| (e.mnemonic.as_str(), e.opcode)).collect();
    let theirs: Vec<(&str, u8)> = lapidary_npu_isa::ROWS.iter().map(|r| (r.mnemonic, r.opcode)).collect();
    assert_eq!(ours, theirs);
    for (entry, row) in entries().iter().zip(lapidary_npu_isa::ROWS) {
        let mut at = 27;
        assert_eq!(entry.fields.len(), row.fields.len(), "{}", entry.mnemonic);
        for (ours, theirs) in entry.fields.iter().zip(row.fields) {
            let bits = (ours.name.as_str(), ours.at, ours.bits);
            assert_eq!(bits, (theirs.name, at, theirs.bits), "{}", entry.mnemonic);
            at += ours.bits;
        }
    }
}

/// Words that are built from ISA.md's bits are instructions, the same ones.
#[test]
fn random_cases_are_instructions_and_run() {
    let mut dice = Dice::new(1);
    let (mut ran, mut faulted) = (0, 0);
    for (rows, cols) in [(16, 16), (8, 8), (5, 7), (1, 1), (64, 40)] {
        let memories = Memories::new(&machine(rows, cols, false));
        for mnemonic in queued() {
            for _ in 0..40 {
                let mut oracle = Oracle::new(memories.clone());
                dice.fill(&mut oracle.memories.scratchpad);
                dice.fill(&mut oracle.memories.weights);
                let draft = case(mnemonic, &mut dice, &memories, 0, true);
                let instruction = Instruction::decode(draft.word).expect(mnemonic);
                assert_eq!(instruction.encode(), Ok(draft.word));
                for (at, bytes) in &draft.pokes {
                    oracle.memories.scratchpad[*at as usize..][..bytes.len()].copy_from_slice(bytes);
                }
                let mut regs = [0; 32];
                draft.sets.iter().for_each(|s| regs[usize::from(s.register)] = s.value);
                match oracle.queued(&Operands { entry: draft.entry, word: draft.word, regs: &regs }) {
                    Ok(()) => ran += 1,
                    Err(_) => faulted += 1,
                }
            }
        }
    }
    println!("{ran} cases ran, {faulted} faulted");
    assert!(ran > 9 * faulted);
}

/// What the generator of programs makes is well formed, and does without faults.
#[test]
fn random_programs_are_programs() {
    let mut dice = Dice::new(2);
    let (mut executed, mut words) = (0, 0);
    for round in 0..60 {
        let (rows, cols) = dice.of(&[(16, 16), (8, 8), (5, 7)]);
        let memories = Memories::new(&machine(rows, cols, false));
        let generated = program(&mut dice, &memories, 30);
        let instructions: Vec<Instruction> =
            generated.words.iter().map(|w| Instruction::decode(*w).expect("an instruction")).collect();
        let structure = Program { instructions, ..Program::default() };
        structure.check_structure().expect("a program");
        let mut oracle = Oracle::new(memories);
        oracle.memories.dram[..generated.dram.len()].copy_from_slice(&generated.dram);
        if let Err(stop) = oracle.run(&generated.words) {
            panic!("round {round}: {stop:?}, {}", structure.instructions[stop.at]);
        }
        executed += oracle.executed;
        words += generated.words.len();
    }
    println!("{words} words, {executed} queued instructions executed");
}
