//! The sequencer of the simulator against the oracle: scalar work on registers with values at the ends of their range, and its faults.

use crate::dice::Dice;
use crate::memory::{Kind, Memories};
use crate::programs::{constant, word};
use crate::sequencer::{Oracle, Stop};
use crate::simulated::{Ending, run};
use crate::tests_oracle::machine;

fn number(dice: &mut Dice) -> u64 {
    let edges = [0, 1, -1, 2, 63, 64, 65, i64::MAX, i64::MIN, i64::MIN + 1, 1 << 31, 1 << 32, -1 << 31];
    if dice.once_in(2) { dice.of(&edges) as u64 } else { dice.bits() >> dice.below(64) }
}

#[test]
fn scalar_work() {
    let machine = machine(8, 8, false);
    let start = Memories::new(&machine);
    let mut dice = Dice::new(31);
    for round in 0..300 {
        let mut words: Vec<u128> = (1..32).map(|rd| word("li", &[("rd", rd), ("value", number(&mut dice))])).collect();
        for _ in 0..dice.within(1, 120) {
            let (rd, a) = (dice.within(1, 31) as u64, dice.below(32) as u64);
            let b = match dice.below(3) {
                0 => 1 << 32 | dice.below(32) as u64,
                1 => constant(dice.of(&[0, 1, -1, 63, 64, i32::MAX, i32::MIN]).into()),
                _ => constant(i64::from(dice.bits() as i32)),
            };
            let mnemonic = dice.of(&["add", "sub", "mul", "shl", "shr", "min", "max", "and", "branch", "skip_if_zero"]);
            words.push(match mnemonic {
                // Over the next instruction.
                "branch" => word(mnemonic, &[("condition", dice.below(4) as u64), ("a", a), ("b", b), ("target", 1)]),
                "skip_if_zero" => word(mnemonic, &[("a", a), ("target", 1)]),
                _ => word(mnemonic, &[("rd", rd), ("a", a), ("b", b)]),
            });
        }
        // What a branch in the last place skips.
        words.push(word("li", &[("rd", 1), ("value", 1)]));
        words.push(word("halt", &[]));
        let mut oracle = Oracle::new(start.clone());
        oracle.run(&words).expect("no fault");
        match run(&words, &machine, &start) {
            Ending::Done(done) => assert_eq!(done.0, oracle.regs, "{round}"),
            Ending::Fault(_, _, text) | Ending::Other(text) => panic!("{round}: {text}"),
        }
    }
}

/// What both say of words that are at fault at `at`.
fn faults(words: &[u128], at: usize, wanted: Kind) {
    let machine = machine(8, 8, false);
    let start = Memories::new(&machine);
    assert_eq!(Oracle::new(start.clone()).run(words), Err(Stop { at, faults: vec![wanted] }));
    match run(words, &machine, &start) {
        Ending::Fault(found_at, kind, _) => assert_eq!((found_at, kind), (at, wanted)),
        Ending::Done(_) | Ending::Other(_) => panic!("no fault"),
    }
}

#[test]
fn sequencer_at_fault() {
    let halt = word("halt", &[]);
    let li = |rd: u64, value: i64| word("li", &[("rd", rd), ("value", value as u64)]);
    let head = |count: u64| word("loop", &[("rd", 4), ("count", count), ("max", 9), ("body", 0)]);
    let end = word("end", &[]);
    faults(&[head(10), end, halt], 0, Kind::Max);
    faults(&[li(1, i64::MAX), head(1 << 24 | 1), end, halt], 1, Kind::Max);
    let lds = |src: u64, max: u64| word("lds", &[("rd", 2), ("src", src), ("max", max)]);
    faults(&[li(1, 16384), lds(1, 5), halt], 1, Kind::Outside);
    faults(&[li(1, -4), lds(1, 5), halt], 1, Kind::Operand);
    faults(&[li(1, 2), lds(1, 5), halt], 1, Kind::Operand);
    let iota = word("r.iota", &[("dst", 0), ("count", 1), ("start", 3)]) | 1 << 17;
    let wait = word("sync", &[]) | 1 << 7;
    for (value, max, fine) in
        [(7, 7, true), (8, 7, false), (0xffff_ffff, 0xffff_fffe, false), (0xffff_ffff, 0xffff_ffff, true)]
    {
        let words = [li(1, 1), li(3, value), iota, wait, lds(0, max), halt];
        if fine {
            let machine = machine(8, 8, false);
            let Ending::Done(done) = run(&words, &machine, &Memories::new(&machine)) else {
                panic!("{value} > {max}?")
            };
            assert_eq!(done.0[2], value);
        } else {
            faults(&words, 4, Kind::Max);
        }
    }
}

/// 4095 tokens are room enough, one more is a fault of the instruction that posts it.
#[test]
fn counters_end_at_4095() {
    let machine = machine(8, 8, false);
    let start = Memories::new(&machine);
    for (posts, fine) in [(4095, true), (4096, false)] {
        let sync = word("sync", &[("queue", 4)]) | 9 << 17;
        let head = word("loop", &[("rd", 4), ("count", posts), ("max", posts), ("body", 1)]);
        let words = [head, sync, word("end", &[("body", 1)]), word("halt", &[])];
        match run(&words, &machine, &start) {
            Ending::Done(_) => assert!(fine, "{posts}"),
            Ending::Other(text) => panic!("{text}"),
            Ending::Fault(at, kind, _) => assert_eq!((fine, at, kind), (false, 1, Kind::Post)),
        }
    }
}
