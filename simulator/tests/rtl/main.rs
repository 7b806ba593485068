//! Co-simulation: the matrix unit in SystemVerilog (`simulator/rtl`, built by Verilator) against ISA.md's rules, the oracle and the
//! simulator, on the same encoded words. docs/co-simulation.md says what it models. `LAPIDARY_TEST=full` runs more programs.

#![allow(dead_code, reason = "of the oracle only some is needed here")]

#[path = "../oracle/builder.rs"]
mod builder;
#[path = "../oracle/cases.rs"]
mod cases;
#[path = "../oracle/dice.rs"]
mod dice;
#[path = "../oracle/dma.rs"]
mod dma;
#[path = "../oracle/matrix.rs"]
mod matrix;
#[path = "../oracle/memory.rs"]
mod memory;
#[path = "../oracle/numbers.rs"]
mod numbers;
#[path = "../oracle/programs.rs"]
mod programs;
#[path = "../oracle/route.rs"]
mod route;
mod rules;
#[path = "../oracle/sequencer.rs"]
mod sequencer;
mod simulated;
#[path = "../oracle/spec.rs"]
mod spec;
#[path = "../oracle/vector.rs"]
mod vector;
mod verilator;

use std::io::Write as _;

use lapidary_npu_isa::Machine;

use crate::cases::case;
use crate::dice::Dice;
use crate::memory::Memories;
use crate::programs::word;
use crate::rules::Ruled;
use crate::sequencer::Oracle;
use crate::simulated::simulate;
use crate::spec::Operands;
use crate::verilator::{Case, Unit, version};

/// Rows, columns, overlap, places of the queue.
type Array = (u64, u64, bool, u64);

const ARRAYS: [Array; 4] = [(8, 8, false, 16), (8, 8, true, 3), (16, 16, false, 2), (16, 16, true, 16)];
/// What only `LAPIDARY_TEST=full` builds.
const MORE_ARRAYS: [Array; 6] =
    [(1, 1, false, 1), (1, 1, true, 4), (3, 7, false, 16), (3, 7, true, 16), (7, 3, false, 1), (7, 3, true, 2)];

fn machine((rows, cols, overlap, depth): Array) -> Machine {
    let mut machine = Machine::preset("edge-16").expect("a machine");
    let settings = [
        ("matrix.rows", rows.to_string()),
        ("accumulators.bytes", (4 * 16 * cols * 128).to_string()),
        ("matrix.cols", cols.to_string()),
        ("accumulators.bytes", (4 * cols * 128).to_string()),
        ("matrix.weight_overlap", overlap.to_string()),
        ("queue.depth", depth.to_string()),
        ("scratchpad.bytes", 8192.to_string()),
        ("weights.bytes", 2048.to_string()),
        ("dram.preset", "ideal".into()),
        ("dram.bytes", 65536.to_string()),
    ];
    for (key, value) in settings {
        machine.set(key, &value).expect(key);
    }
    machine
}

/// A random program of matrix instructions, with the registers that they read set before them. With `witnessed` each posts a token
/// that a `sync vector` takes: as many instructions as a queue holds.
fn program(dice: &mut Dice, empty: &Memories, witnessed: Option<u64>) -> Case {
    let mut memories = empty.clone();
    for bytes in [&mut memories.scratchpad, &mut memories.weights] {
        bytes.iter_mut().for_each(|byte| *byte = dice.bits() as u8);
    }
    // Half of the accumulators are sums, half of them floats.
    memories.accumulators.iter_mut().for_each(|word| {
        *word = if dice.once_in(2) { dice.within(-100_000, 100_000) as u32 } else { dice.float() };
    });
    let mut words = Vec::new();
    let mut tile_k = 0;
    let mut left = witnessed.map_or(dice.within(2, 24), |depth| dice.within(1, depth as i64));
    let kinds: &[&str] = match dice.below(3) {
        0 => &["m.preload", "m.pass"],
        1 => &["m.preload", "m.preload_scaled", "m.pass", "m.pass_scaled"],
        _ => &["m.preload", "m.pass", "m.pass", "m.pass_scaled", "m.preload_scaled", "m.pass"],
    };
    while left > 0 {
        let mnemonic = if tile_k == 0 { "m.preload" } else { dice.of(kinds) };
        let draft = case(mnemonic, dice, empty, tile_k, false);
        let mut regs = [0; 32];
        draft.sets.iter().for_each(|set| regs[usize::from(set.register)] = set.value);
        let o = Operands { entry: draft.entry, word: draft.word, regs: &regs };
        if mnemonic.starts_with("m.preload") {
            tile_k = o.size("k");
        } else if o.size("rows") == 0 || (mnemonic == "m.pass_scaled" && reads_what_it_wrote(&o)) {
            continue;
        }
        for set in &draft.sets {
            words.push(word("li", &[("rd", set.register.into()), ("value", set.value as u64)]));
        }
        left -= 1;
        if witnessed.is_some() {
            words.extend([draft.word | 1 << 17, word("sync", &[("queue", 4)]) | 1 << 7]);
        } else {
            words.push(draft.word);
        }
    }
    words.push(word("halt", &[]));
    Case { words, memories }
}

/// Sums that begin below `acc` and reach into it: an array that works row by row reads there what it has written itself.
fn reads_what_it_wrote(o: &Operands<'_>) -> bool {
    let (sums, acc) = (o.address("sums"), o.address("acc"));
    o.flag("accumulate") && sums < acc && acc < sums + o.size("rows")
}

/// Times and values of random programs on an array.
fn compare(version: &str, array: Array, programs: usize, dice: &mut Dice) {
    let (rows, cols, overlap, depth) = array;
    let machine = machine(array);
    let empty = Memories::new(&machine);
    let unit = Unit::build(version, rows, cols, overlap, depth, &empty);
    let case = |number: usize| program(dice, &empty, (number % 2 == 1).then_some(depth));
    let cases: Vec<Case> = (0..programs).map(case).collect();
    let (mut instructions, mut cycles) = (0, 0);
    for (number, (case, outcome)) in cases.iter().zip(unit.run(&cases)).enumerate() {
        let name = format!("{rows}×{cols}, overlap {overlap}, program {number}");
        let Ruled { times, issues, total } = rules::times(&case.words, rows, cols, overlap, depth as usize);
        let simulated = simulate(case, &machine);
        for (i, (found, wanted)) in outcome.times.iter().zip(&times).enumerate() {
            assert_eq!(found, wanted, "{name}: matrix instruction {i} of hardware, by the rules");
            let (start, end) = simulated.times[i];
            assert_eq!(
                (start, end),
                (found.start, found.end),
                "{name}: matrix instruction {i}, simulator and hardware"
            );
        }
        // A `sync vector` starts in the cycle of the completion, if it has been issued by then, and ends in the next.
        let mut witnessed = 0;
        for (i, start) in simulated.witnesses.iter().enumerate() {
            witnessed = witnessed.max(outcome.times[i].completion).max(issues[i] + 2);
            assert_eq!(*start, witnessed, "{name}: completion of matrix instruction {i}, simulator and hardware");
        }
        let lengths = (outcome.times.len(), outcome.total);
        assert_eq!(lengths, (times.len(), total), "{name}, by the rules");
        let total = if witnessed > 0 { outcome.total.max(witnessed + 1) } else { outcome.total };
        assert_eq!(
            (outcome.times.len(), total),
            (simulated.times.len(), simulated.total),
            "{name}, simulator and hardware"
        );
        assert!(outcome.accumulators == simulated.accumulators, "{name}: accumulators of simulator and hardware");
        let mut oracle = Oracle::new(case.memories.clone());
        oracle.run(&case.words).expect("no fault");
        for (i, (found, wanted)) in outcome.accumulators.iter().zip(&oracle.memories.accumulators).enumerate() {
            assert_eq!(found, wanted, "{name}: acc[{}], word {}", i as u64 / cols, i as u64 % cols);
        }
        instructions += times.len();
        cycles += total;
    }
    let done = format!("{programs} programs, {instructions} instructions, {cycles} cycles");
    writeln!(std::io::stderr().lock(), "{rows}×{cols}, overlap {overlap}, queue of {depth}: {done}").unwrap();
}

#[test]
fn matrix_unit_in_hardware() {
    let Some(version) = version() else { return };
    let full = std::env::var_os("LAPIDARY_TEST").is_some();
    let mut dice = Dice::new(11);
    for array in ARRAYS {
        compare(&version, array, if full { 1000 } else { 60 }, &mut dice);
    }
    for array in MORE_ARRAYS.into_iter().filter(|_| full) {
        compare(&version, array, 300, &mut dice);
    }
}
