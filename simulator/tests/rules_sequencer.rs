//! Rules Q1 to Q5 and tokens, at both sides of their boundaries. Positions in comments are those of instructions.

mod common;

use common::{fails, ideal, see};
use lapidary_npu_isa::Queue;
use lapidary_simulator::{Cause, SimError};

#[test]
fn q1_scalar_instructions_take_a_cycle() {
    let machine = ideal(&[]);
    assert_eq!(see("halt", &machine).cycles(), 1);
    assert_eq!(see("li r1, 1\nadd r1, r1, 1\nhalt", &machine).cycles(), 3);
    // Taken: li, branch, halt. Not taken: li, branch, two adds, halt.
    assert_eq!(see("li r1, 0\nskip_if_zero r1, .+2\nadd r1, r1, 1\nadd r1, r1, 1\nhalt", &machine).cycles(), 3);
    assert_eq!(see("li r1, 1\nskip_if_zero r1, .+2\nadd r1, r1, 1\nadd r1, r1, 1\nhalt", &machine).cycles(), 5);
    // loop once, body and end per iteration.
    for count in [1, 2, 7] {
        let seen = see(&format!("loop r1, count={count}\nadd r2, r2, r1\nend\nhalt"), &machine);
        assert_eq!(seen.cycles(), 1 + 2 * count + 1);
        assert_eq!(seen.busy(Queue::Sequencer), seen.cycles());
    }
    // A loop of no iterations is its head alone.
    assert_eq!(see("loop r1, count=0\nadd r2, r2, r1\nend\nhalt", &machine).cycles(), 2);
}

#[test]
fn q1_lds_takes_its_cycles_behind_its_tokens() {
    for cycles in [1, 4] {
        let machine = ideal(&[("sequencer.load_cycles", &cycles.to_string())]);
        assert_eq!(see("lds r1, sp[0], max=1\nhalt", &machine).cycles(), cycles + 1);
        // iota of 1: issued in cycle 1, from 2 to 2 + P + 1 = 7. lds takes its token in 7.
        let text = "li r1, 1\nr.iota sp[0], count=r1 post(t1)\nlds r2, sp[0], max=9 wait(t1)\nhalt";
        let seen = see(text, &machine);
        assert_eq!(seen.at(1), (2, 7));
        assert_eq!(seen.cycles(), 7 + cycles + 1);
        assert_eq!(seen.spent(Queue::Sequencer, Cause::TokenWait), 5);
        // What lds posts is there when it is done, and no earlier.
        let text = "lds r1, sp[0], max=1 post(t1)\nsync vector wait(t1)\nhalt";
        assert_eq!(see(text, &machine).at(1), (cycles + 1, cycles + 2));
        let text = "sync vector wait(t1)\nlds r1, sp[0], max=1 post(t1)\nhalt";
        assert_eq!(see(text, &machine).at(0), (1 + cycles, 2 + cycles));
    }
}

#[test]
fn q1_sync_sequencer_takes_one_cycle_once_tokens_are_there() {
    let machine = ideal(&[]);
    assert_eq!(see("sync sequencer\nhalt", &machine).cycles(), 2);
    let seen = see("li r1, 1\nr.iota sp[0], count=r1 post(t1)\nsync sequencer wait(t1)\nhalt", &machine);
    assert_eq!(seen.cycles(), 7 + 2);
}

#[test]
fn q2_an_instruction_can_start_in_the_cycle_behind_its_issue() {
    let machine = ideal(&[]);
    // Issued in cycles 0 and 1, to different units.
    let seen = see("sync vector\nsync route\nhalt", &machine);
    assert_eq!((seen.at(0), seen.at(1)), ((1, 2), (2, 3)));
}

#[test]
fn q2_a_full_queue_holds_up_the_sequencer() {
    // v.copy of 16 on 16 lanes: startup 4 + 1 step of max(1, f = 2 streams in a bank) = 6 cycles.
    let copy = "v.copy sp[0], sp[64], cols=16\n";
    for depth in 1..=3u64 {
        let machine = ideal(&[("queue.depth", &depth.to_string())]);
        // The first starts in cycle 1 and leaves its place then. Up to `depth` more are issued at once.
        let fits = see(&format!("{}halt", copy.repeat(depth as usize + 1)), &machine);
        assert_eq!(fits.spent(Queue::Sequencer, Cause::QueueFull), 0);
        // One more is issued in the cycle in which the second starts, 7: the sequencer was there in cycle depth + 1.
        let full = see(&format!("{}halt", copy.repeat(depth as usize + 2)), &machine);
        assert_eq!(full.spent(Queue::Sequencer, Cause::QueueFull), 7 - (depth + 1));
        for i in 0..depth + 2 {
            assert_eq!(full.at(i as u32), (1 + 6 * i, 7 + 6 * i));
        }
        assert_eq!(full.cycles(), 1 + 6 * (depth + 2));
    }
}

#[test]
fn q3_a_waiting_instruction_starts_in_the_cycle_of_the_post() {
    let machine = ideal(&[]);
    let seen = see("v.copy sp[0], sp[64], cols=16 post(t1)\nsync route wait(t1)\nhalt", &machine);
    assert_eq!((seen.at(0), seen.at(1)), ((1, 7), (7, 8)));
    // Issued in cycle 1, so it is there from 2 on.
    assert_eq!(seen.spent(Queue::Route, Cause::QueueEmpty), 2);
    assert_eq!(seen.spent(Queue::Route, Cause::TokenWait), 5);
    // Two tokens of one counter.
    let two =
        "v.copy sp[0], sp[64], cols=16 post(t1)\nv.copy sp[0], sp[64], cols=16 post(t1)\nsync route wait(t1, t1)\nhalt";
    assert_eq!(see(two, &machine).at(2), (13, 14));
    let twice = "v.copy sp[0], sp[64], cols=16 post(t1, t1)\nsync route wait(t1, t1)\nhalt";
    assert_eq!(see(twice, &machine).at(1), (7, 8));
}

#[test]
fn q3_units_act_in_order_on_the_same_token() {
    let machine = ideal(&[]);
    // One token in cycle 7, and MATRIX, VECTOR wait for it: MATRIX takes it, VECTOR the second, 6 cycles later.
    let text = "r.iota sp[0], count=r0 wait(t9)\nhalt";
    assert!(matches!(fails(text, &machine), SimError::Deadlock { .. }));
    let text = "li r1, 1\nsync vector wait(t1)\nsync matrix wait(t1)\n\
                r.iota sp[0], count=r1 post(t1)\nr.iota sp[0], count=r1 post(t1)\nhalt";
    let seen = see(text, &machine);
    assert_eq!((seen.at(3), seen.at(4)), ((4, 9), (9, 14)));
    assert_eq!((seen.at(2), seen.at(1)), ((9, 10), (14, 15)));
}

#[test]
fn q3_completion_is_in_order() {
    // Two transfers in two channels; the second is done first, what it posts comes with the first.
    let mut machine = lapidary_npu_isa::Machine::preset("edge-16").unwrap();
    machine.set("dma.channels", "2").unwrap();
    let text = "li r1, 8\nload sp[0], dram[0], row_bytes=8192, rows=r1\nload sp[131072], dram[1048576], row_bytes=64 post(t1)\n\
                sync vector wait(t1)\nhalt";
    let seen = see(text, &machine);
    let (first, second) = (seen.at(1), seen.at(2));
    assert!(second.1 < first.1, "{first:?} {second:?}");
    assert_eq!(seen.at(3).0, first.1);
}

#[test]
fn q4_without_work_and_sync_pass_by() {
    let machine = ideal(&[]);
    let shorts = [
        "v.copy sp[0], sp[64], cols=16, rows=r1",
        "v.copy sp[0], sp[64], cols=0",
        "r.iota sp[0], count=r1",
        "m.pass sp[0], acc[0], rows=0, k=9",
        "load sp[0], dram[0], row_bytes=64, rows=r1",
        "load.rows sp[0], dram[0], sp[64], bound=r1, row_bytes=64, rows=r1",
        "v.scatter_add sp[0], sp[64], sp[128], sp[160], bound=r2, cols=r2, rows=r1",
        "sync store",
    ];
    for text in shorts {
        let seen = see(&format!("li r1, 0\nli r2, 2\n{text}\n{text}\nhalt"), &machine);
        assert_eq!((seen.at(2), seen.at(3)), ((3, 4), (4, 5)), "{text}");
        assert_eq!(seen.cycles(), 5, "{text}");
    }
    // They do not wait for the unit and take no cycle of it; they complete in order.
    let text =
        "v.copy sp[0], sp[64], cols=16\nsync vector post(t1)\nv.copy sp[0], sp[64], cols=16\nsync route wait(t1)\nhalt";
    let seen = see(text, &machine);
    assert_eq!((seen.at(0), seen.at(1), seen.at(2), seen.at(3)), ((1, 7), (2, 3), (7, 13), (7, 8)));
    assert_eq!(seen.busy(Queue::Vector) + seen.spent(Queue::Vector, Cause::BankConflict), 12);
    assert_eq!(seen.busy(Queue::Route), 0);
    // What is behind them starts in the same cycle.
    let text =
        "sync vector wait(t1)\nsync vector wait(t1)\nv.copy sp[0], sp[64], cols=16\nsync route post(t1, t1)\nhalt";
    let seen = see(text, &machine);
    assert_eq!((seen.at(0), seen.at(1), seen.at(2).0), ((5, 6), (5, 6), 5));
    // With work, though of nothing: the sum of no columns is written. Startup 4 + tree 4.
    assert_eq!(see("v.row_sum sp[0], sp[64], cols=0\nhalt", &machine).at(0), (1, 9));
}

#[test]
fn the_total_is_the_latest_of_halt_and_completions() {
    let machine = ideal(&[]);
    assert_eq!(see("sync vector\nhalt", &machine).cycles(), 2);
    assert_eq!(see("sync vector\nli r1, 1\nhalt", &machine).cycles(), 3);
    assert_eq!(see("v.copy sp[0], sp[64], cols=16\nhalt", &machine).cycles(), 7);
}

#[test]
fn counters_overflow_at_4096() {
    let machine = ideal(&[]);
    let text = |count| format!("loop r1, count={count}\nsync vector post(t1)\nend\nhalt");
    assert_eq!(see(&text(4095), &machine).cycles(), 1 + 2 * 4095 + 1);
    match fails(&text(4096), &machine) {
        SimError::Fault(fault) => assert_eq!(
            fault.to_string(),
            "instruction 1 (`sync vector post(t1)`): t1: wanted at most 4095 tokens, found 4096"
        ),
        other => panic!("{other}"),
    }
}

#[test]
fn a_deadlock_says_who_waits() {
    let machine = ideal(&[]);
    let error = fails("sync vector wait(t1)\nsync sequencer wait(t2)\nhalt", &machine);
    assert_eq!(
        error.to_string(),
        "deadlock in cycle 1: vector: instruction 0 (`sync vector wait(t1)`); sequencer: instruction 1 (`sync sequencer wait(t2)`)"
    );
}
