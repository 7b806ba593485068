//! The simulator against the oracle: single instructions from random memories, whole programs, products.

use std::io::Write as _;

use lapidary_npu_isa::{Instruction, Machine};

use crate::builder::Draft;
use crate::cases::{case, queued};
use crate::dice::Dice;
use crate::memory::Memories;
use crate::products::{product, shape};
use crate::programs::{self, word};
use crate::sequencer::Oracle;
use crate::simulated::{Ending, run};
use crate::spec::Operands;
use crate::tests_oracle::machine;

fn full() -> bool {
    std::env::var_os("LAPIDARY_TEST").is_some()
}

/// Text of words, as a report of what goes wrong needs it.
fn text(words: &[u128]) -> String {
    words.iter().map(|word| format!("    {}\n", Instruction::decode(*word).expect("an instruction"))).collect()
}

/// Where two memories differ first.
fn difference(found: &Memories, wanted: &Memories) -> Option<String> {
    let bytes = |name: &str, found: &[u8], wanted: &[u8]| {
        let at = (0..wanted.len()).find(|at| found.get(*at) != wanted.get(*at))?;
        let first = at / 4 * 4;
        Some(format!(
            "{name}[{at}]: bytes from {first} are {:02x?}, not {:02x?}",
            &found[first..first + 4],
            &wanted[first..first + 4]
        ))
    };
    let words = || {
        let at = (0..wanted.accumulators.len()).find(|at| found.accumulators[*at] != wanted.accumulators[*at])?;
        let (row, column) = (at / wanted.array_cols, at % wanted.array_cols);
        Some(format!("acc[{row}] word {column}: {:#x}, not {:#x}", found.accumulators[at], wanted.accumulators[at]))
    };
    bytes("sp", &found.scratchpad, &wanted.scratchpad)
        .or_else(|| bytes("w", &found.weights, &wanted.weights))
        .or_else(|| bytes("dram", &found.dram, &wanted.dram))
        .or_else(words)
}

/// Both, from the same memories; what they disagree about, and whether there was a fault.
fn compare(words: &[u128], machine: &Machine, start: &Memories) -> (Option<String>, bool) {
    let mut oracle = Oracle::new(start.clone());
    let wanted = oracle.run(words);
    match (wanted, run(words, machine, start)) {
        (Ok(()), Ending::Done(done)) => {
            let registers = (done.0 != oracle.regs).then(|| format!("registers {:?}, not {:?}", done.0, oracle.regs));
            (registers.or_else(|| difference(&done.1, &oracle.memories)), false)
        }
        (Err(stop), Ending::Fault(at, kind, _)) if stop.at == at && stop.faults.contains(&kind) => (None, true),
        (Err(stop), Ending::Fault(at, kind, text)) => {
            (Some(format!("wanted {:?} at {}, found {kind:?} at {at}: {text}", stop.faults, stop.at)), true)
        }
        (Ok(()), Ending::Fault(_, _, text)) => (Some(format!("wanted no fault, found {text}")), true),
        (wanted, Ending::Other(text)) => (Some(format!("wanted {wanted:?}, found {text}")), true),
        (Err(stop), Ending::Done(_)) => {
            (Some(format!("wanted {:?} at {}, found no fault", stop.faults, stop.at)), true)
        }
    }
}

/// Words that set the registers of an instruction, and the instruction.
fn with_registers(draft: &Draft) -> Vec<u128> {
    let sets = draft.sets.iter().map(|s| word("li", &[("rd", s.register.into()), ("value", s.value as u64)]));
    sets.chain([draft.word]).collect()
}

/// `LAPIDARY_ORACLE_ONLY=v.exp` takes one instruction.
fn mnemonics() -> Vec<&'static str> {
    let only = std::env::var("LAPIDARY_ORACLE_ONLY").ok();
    queued().into_iter().filter(|m| only.as_ref().is_none_or(|only| only == m)).collect()
}

#[test]
fn single_instructions() {
    let rounds = if full() { 2400 } else { 30 };
    let machines: Vec<(Machine, Memories)> = [(16, 16), (8, 8), (5, 7), (1, 1), (64, 40), (256, 24)]
        .map(|(rows, cols)| {
            let mut machine = machine(rows, cols, false);
            machine.set("dram.bytes", "65536").expect("a smaller DRAM");
            let memories = Memories::new(&machine);
            (machine, memories)
        })
        .into();
    let (mut cases, mut faults, mut wrong) = (0, 0, Vec::new());
    for mnemonic in mnemonics() {
        let mut dice = Dice::new(mnemonic.bytes().fold(17, |seed: u64, byte| seed.wrapping_mul(31) ^ u64::from(byte)));
        for round in 0..rounds {
            let (machine, empty) = &machines[round % machines.len()];
            let mut start = empty.clone();
            dice.fill(&mut start.scratchpad);
            dice.fill(&mut start.weights);
            dice.fill(&mut start.dram);
            start.accumulators.iter_mut().for_each(|word| *word = dice.float());
            let (mut words, mut tile_k) = (Vec::new(), 0);
            if mnemonic.starts_with("m.pass") {
                let preload = case("m.preload_scaled", &mut dice, empty, 0, false);
                let mut regs = [0; 32];
                preload.sets.iter().for_each(|s| regs[usize::from(s.register)] = s.value);
                tile_k = Operands { entry: preload.entry, word: preload.word, regs: &regs }.size("k");
                words = with_registers(&preload);
            }
            let draft = case(mnemonic, &mut dice, empty, tile_k, true);
            for (at, bytes) in &draft.pokes {
                start.scratchpad[*at as usize..][..bytes.len()].copy_from_slice(bytes);
            }
            words.extend(with_registers(&draft));
            if mnemonic.starts_with("m.preload") {
                // What the array holds shows in a pass.
                words.push(word("m.pass", &[("rows", 1), ("k", 1), ("acc", 1 << 5)]));
            }
            words.push(word("halt", &[]));
            let (problem, fault) = compare(&words, machine, &start);
            cases += 1;
            faults += usize::from(fault);
            if let Some(problem) = problem {
                wrong.push(format!("{mnemonic}, case {round}: {problem}\n{}", text(&words)));
                if wrong.len() == 10 {
                    break;
                }
            }
        }
    }
    writeln!(std::io::stderr().lock(), "{cases} instructions, {faults} of them with faults").unwrap();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn whole_programs() {
    let rounds = if full() { 4000 } else { 60 };
    let mut dice = Dice::new(23);
    let (mut words, mut executed) = (0, 0);
    for round in 0..rounds {
        let (rows, cols) = dice.of(&[(16, 16), (8, 8), (5, 7), (16, 8), (40, 33)]);
        let mut machine = machine(rows, cols, dice.once_in(2));
        // Time has no part in values: whatever it is, they are the same.
        for (key, values) in [
            ("dram.preset", ["ideal", "lpddr4", "ddr4"]),
            ("queue.depth", ["1", "3", "16"]),
            ("dma.channels", ["1", "2", "5"]),
            ("scratchpad.ports", ["1", "1", "2"]),
            ("scratchpad.banks", ["1", "8", "32"]),
        ] {
            machine.set(key, dice.of(&values)).expect(key);
        }
        machine.set("dram.bytes", "262144").expect("a small DRAM");
        let mut start = Memories::new(&machine);
        let generated = programs::program(&mut dice, &start, 30);
        start.dram[..generated.dram.len()].copy_from_slice(&generated.dram);
        let (problem, _) = compare(&generated.words, &machine, &start);
        if let Some(problem) = problem {
            panic!("program {round}: {problem}\n{}", text(&generated.words));
        }
        let mut oracle = Oracle::new(start);
        oracle.run(&generated.words).expect("compared");
        words += generated.words.len();
        executed += oracle.executed;
    }
    let done = format!("{rounds} programs, {words} words, {executed} queued instructions executed");
    writeln!(std::io::stderr().lock(), "{done}").unwrap();
}

#[test]
fn products() {
    let mut dice = Dice::new(29);
    for round in 0..if full() { 2000 } else { 60 } {
        let (rows, cols) = dice.of(&[(16, 16), (8, 8), (32, 16)]);
        let shape = shape(&mut dice, rows, cols);
        let product = product(&mut dice, shape);
        let machine = machine(rows as u64, cols as u64, dice.once_in(2));
        let mut start = Memories::new(&machine);
        start.dram[..product.dram.len()].copy_from_slice(&product.dram);
        match run(&product.words, &machine, &start) {
            Ending::Done(done) => {
                for (i, wanted) in product.wanted.iter().enumerate() {
                    let found = done.1.float(4 * i as i64);
                    assert_eq!(found.to_bits(), wanted.to_bits(), "{round}, {shape:?}: number {i}");
                }
            }
            Ending::Fault(_, _, text) | Ending::Other(text) => panic!("{round}, {shape:?}: {text}"),
        }
    }
}

/// Sums of the largest products: −128 · −128 by as many rows as an array can have, and their neighbours.
#[test]
fn largest_sums() {
    let machine = machine(256, 24, false);
    for (a, w) in [(0x80, 0x80), (0x80, 0x7f), (0x7f, 0x7f), (0x7f, 0x80), (0x80, 0x81)] {
        let mut start = Memories::new(&machine);
        start.scratchpad.fill(a);
        start.weights.fill(w);
        start.accumulators.fill(0x7fff_0000);
        for k in [255, 256] {
            let preload = word("m.preload", &[("k", k), ("n", 24)]);
            let pass = word("m.pass", &[("rows", 40), ("k", k), ("accumulate", 1)]);
            let over = word("m.pass", &[("rows", 3), ("k", k), ("acc", 50 << 5)]);
            let (problem, _) = compare(&[preload, pass, pass, over, word("halt", &[])], &machine, &start);
            assert_eq!(problem, None, "{a:#x} · {w:#x}, k = {k}");
        }
    }
}
