//! Rules M1 to M4, S1 to S3, V1 and R1 with the cost classes, at both sides of their boundaries.

mod common;

use common::{ideal, see};
use lapidary_npu_isa::{Machine, Queue};
use lapidary_simulator::Cause;

const TILE: &str = "m.preload i8, w[0], k=16, n=16\n";

#[test]
fn m1_m2_times_do_not_depend_on_k_and_n() {
    let machine = ideal(&[]);
    for (k, n, rows) in [(16, 16, 1), (1, 1, 1), (16, 1, 7), (3, 16, 256), (0, 0, 2)] {
        let text = format!("m.preload i8, w[0], k={k}, n={n}\nm.pass sp[0], acc[0], rows={rows}, k={k}\nhalt");
        let seen = see(&text, &machine);
        // R = C = 16.
        assert_eq!((seen.at(0), seen.at(1)), ((1, 17), (17, 17 + rows + 30)), "k={k} n={n}");
    }
    // An array of one multiplier: a pass of one row takes a cycle.
    let machine = ideal(&[("matrix.rows", "1"), ("matrix.cols", "1")]);
    let seen = see("m.preload i8, w[0], k=1, n=1\nm.pass sp[0], acc[0], rows=1, k=1\nhalt", &machine);
    assert_eq!((seen.at(0), seen.at(1)), ((1, 2), (2, 3)));
}

#[test]
fn m3_without_overlap_one_after_the_other() {
    let machine = ideal(&[]);
    let pass = "m.pass sp[0], acc[0], rows=10, k=16\n";
    let seen = see(&format!("{TILE}{pass}{pass}{TILE}halt"), &machine);
    let ends = [(1, 17), (17, 57), (57, 97), (97, 113)];
    ends.iter().enumerate().for_each(|(i, expected)| assert_eq!(seen.at(i as u32), *expected));
    // Waiting for the unit's own previous instruction is busy time.
    assert_eq!(seen.busy(Queue::Matrix), 112);
}

#[test]
fn m4_with_overlap_at_both_sides() {
    let machine = ideal(&[("matrix.weight_overlap", "true")]);
    for rows in [1, 15, 16, 17, 100] {
        let pass = format!("m.pass sp[0], acc[0], rows={rows}, k=16\n");
        let seen = see(&format!("{TILE}{pass}{TILE}{pass}{TILE}{pass}halt"), &machine);
        // A preload starts with the pass before it, no earlier than the preload before it ends; the sequencer issues one
        // instruction per cycle, which is faster. A pass starts behind its tile and behind the rows of the pass before it.
        let period = rows.max(16);
        for tile in 0..3u64 {
            let begin = 17 + tile * period;
            assert_eq!(seen.at(2 * tile as u32 + 1), (begin, begin + rows + 30), "rows={rows}");
            let preload = if tile == 0 { 1 } else { begin - period };
            assert_eq!(seen.at(2 * tile as u32), (preload, preload + 16), "rows={rows}");
        }
    }
    // Two passes of one tile: the second M cycles behind the first.
    let seen =
        see(&format!("{TILE}m.pass sp[0], acc[0], rows=9, k=16\nm.pass sp[0], acc[0], rows=5, k=16\nhalt"), &machine);
    assert_eq!((seen.at(1), seen.at(2)), ((17, 56), (26, 61)));
    // It completes in order, so a token of the tile's successor comes with the pass before it.
    let text = format!(
        "{TILE}m.pass sp[0], acc[0], rows=100, k=16\n{}sync vector wait(t1)\nhalt",
        TILE.trim_end().to_owned() + " post(t1)\n"
    );
    let seen = see(&text, &machine);
    assert_eq!((seen.at(1), seen.at(2), seen.at(3)), ((17, 147), (17, 33), (147, 148)));
}

/// `edge-16` has 8 banks of 32 KiB.
const BANK: u64 = 32768;

#[test]
fn s2_a_pass_holds_its_banks_while_its_rows_stream() {
    let machine = ideal(&[]);
    // VECTOR is at something else in bank 3 when the pass begins, then copies into bank 0, or not.
    let late = |address: u64, machine: &Machine| {
        see(
            &format!(
                "li r1, {address}\n{TILE}m.pass sp[0], acc[0], rows=50, k=16\n\
                 v.fill sp[98304], cols=416, value=r0\nv.copy sp[r1], sp[65536], cols=16\nhalt"
            ),
            machine,
        )
    };
    // v.fill: 4 + 26 = 30 cycles from 4 to 34. The pass holds bank 0 from 18 to 68.
    let inside = late(BANK - 64, &machine);
    assert_eq!((inside.at(3), inside.at(4).0), ((4, 34), 68));
    assert_eq!(inside.spent(Queue::Vector, Cause::BankConflict), 68 - 34);
    // The last byte of bank 0, and the first of bank 1.
    assert_eq!(late(BANK - 32, &machine).at(4).0, 68);
    let outside = late(BANK, &machine);
    assert_eq!(outside.at(4).0, 34);
    assert_eq!(outside.spent(Queue::Vector, Cause::BankConflict), 0);
    // With two ports, two units can hold a bank; streams of the copy then need one turn.
    let two = ideal(&[("scratchpad.ports", "2")]);
    assert_eq!(late(BANK - 64, &two).at(4).0, 34);
}

#[test]
fn s2_two_ports_let_two_units_in_and_not_three() {
    let machine = ideal(&[("scratchpad.ports", "2")]);
    // ROUTE is at something else in bank 2, then wants bank 0, which MATRIX and VECTOR hold: it waits for the first to leave.
    let text = format!(
        "li r2, 16\nli r3, 480\nli r4, 65536\n{TILE}m.pass sp[0], acc[0], rows=100, k=16\n\
         v.fill sp[64], cols=1600, value=r0\nr.iota sp[r4], count=r3\nr.iota sp[0], count=r2\nhalt"
    );
    let seen = see(&text, &machine);
    // P + 480/16 = 34 cycles from 7 to 41; VECTOR holds from 6 to 110, the pass from 20 to 120.
    assert_eq!((seen.at(5), seen.at(4).0, seen.at(6)), ((6, 110), 20, (7, 41)));
    assert_eq!(seen.at(7).0, 110);
    assert_eq!(seen.spent(Queue::Route, Cause::BankConflict), 110 - 41);
}

#[test]
fn s3_streams_of_a_bank_take_turns() {
    let machine = ideal(&[]);
    let cycles = |a: u64, b: u64, dst: u64, machine: &Machine| {
        let text = format!("li r1, {a}\nli r2, {b}\nli r3, {dst}\nv.add sp[r3], sp[r1], sp[r2], cols=160\nhalt");
        let seen = see(&text, machine);
        let (begin, end) = seen.at(3);
        assert_eq!(seen.busy(Queue::Vector) + seen.spent(Queue::Vector, Cause::BankConflict), end - begin);
        (end - begin, seen.spent(Queue::Vector, Cause::BankConflict))
    };
    // 10 steps of 1 cycle behind a startup of 4.
    assert_eq!(cycles(0, BANK, 2 * BANK, &machine), (14, 0));
    assert_eq!(cycles(0, 1024, 2 * BANK, &machine), (24, 10));
    assert_eq!(cycles(0, 1024, 0, &machine), (34, 20));
    // 640 bytes end in bank 0, or reach into bank 1.
    assert_eq!(cycles(BANK - 640, BANK, 2 * BANK, &machine), (14, 0));
    assert_eq!(cycles(BANK - 608, BANK, 2 * BANK, &machine), (24, 10));
    let two = ideal(&[("scratchpad.ports", "2")]);
    assert_eq!(cycles(0, 1024, 2 * BANK, &two), (14, 0));
    assert_eq!(cycles(0, 1024, 0, &two), (24, 10));
    // A step that takes 2 cycles anyway has room for two streams: v.quantize, rows = 1: 10·2 + tree 4 + 2·8.
    let text = "v.quantize sp[0], sp[2048], sp[8192], cols=160\nhalt";
    let seen = see(text, &machine);
    assert_eq!(seen.at(0), (1, 1 + 4 + 20 + 4 + 16));
    assert_eq!(seen.spent(Queue::Vector, Cause::BankConflict), 0);
}

#[test]
fn v1_every_class_of_vector() {
    let m = ideal(&[]);
    // Operands in banks of their own, so f is 1 unless c says more.
    let (div, exp, ln, tree, lanes, startup) = (8, 8, 15, 4, 16, 4);
    let rows = 3;
    for cols in [1u64, 15, 16, 17, 40] {
        let s = rows * cols.div_ceil(lanes);
        let cases = [
            ("v.copy sp[0], sp[r5], cols={c}, rows=r1", s, 1, 0),
            ("v.reciprocal sp[0], sp[r5], cols={c}, rows=r1", s, div, 0),
            ("v.exp sp[0], sp[r5], cols={c}, rows=r1", s, exp, 0),
            ("v.ln sp[0], sp[r5], cols={c}, rows=r1", s, ln, 0),
            ("v.silu sp[0], sp[r5], cols={c}, rows=r1", s, exp + div + 1, 0),
            ("v.div sp[0], sp[r5], sp[r6], cols={c}, rows=r1", s, div, 0),
            ("v.row_sum sp[0], sp[r5], cols={c}, rows=r1", s, 1, tree),
            ("v.column_sum sp[0], sp[r5], cols={c}, rows=r1", s, 1, tree),
            ("v.softmax sp[0], sp[r5], cols={c}, rows=r1", s, exp + div + 3, 2 * tree),
            ("v.rms_norm sp[0], sp[r5], sp[r6], cols={c}, eps=r0, rows=r1", s, 3, tree + 2 * div * rows),
            ("v.quantize sp[0], sp[r5], sp[r6], cols={c}, rows=r1", s, 2, tree + 2 * div * rows),
            ("v.rope sp[0], sp[r5], sp[r6], half={c}, heads=r2, rows=r1", rows * 2 * cols.div_ceil(lanes), 4, 0),
            ("v.dot_rows sp[0], sp[r5], sp[r6], cols={c}, rows=r1, b_rows=r2", s * 2, 1, tree),
            ("v.mix_rows sp[0], sp[r5], sp[r6], cols={c}, rows=r1, b_rows=r2", s * 2, 1, 0),
            ("v.scatter_add sp[0], sp[r5], sp[r6], sp[r7], bound=r2, cols=r3, rows=r1", s, 1, 0),
        ];
        for (text, s, c, e) in cases {
            let text = format!(
                "li r1, {rows}\nli r2, 2\nli r3, {cols}\nli r5, 32768\nli r6, 65536\nli r7, 98304\n{}\nhalt",
                text.replace("{c}", &cols.to_string())
            );
            let (begin, end) = see(&text, &m).at(6);
            assert_eq!((begin, end - begin), (7, startup + s * c + e), "cols={cols}: {text}");
        }
    }
    // Rows by a list: 64 bytes per step.
    for (bytes, steps) in [(1, 1), (64, 1), (65, 2), (128, 2)] {
        let text = format!(
            "li r1, 3\nli r5, 32768\nv.gather sp[0], sp[r5], sp[65536], bound=r1, row_bytes={bytes}, rows=r1\nhalt"
        );
        assert_eq!(see(&text, &m).at(2), (3, 3 + 4 + 3 * steps));
    }
    // Accumulators are no stream, scales are none.
    let seen = see("li r1, 5\nv.rescale sp[0], acc[0], sp[0], sp[64], cols=16, rows=r1\nhalt", &m);
    assert_eq!(seen.at(1), (2, 2 + 4 + 5));
}

#[test]
fn r1_every_class_of_route() {
    let m = ideal(&[]);
    let (q, p) = (16u64, 4u64);
    for (rows, cols, k, cap) in
        [(8u64, 4u64, 2u64, 3u64), (16, 16, 1, 1), (17, 17, 40, 40), (3, 33, 31, 32), (1, 1, 32, 33)]
    {
        let set_up = format!("li r1, {rows}\nli r2, {k}\nli r3, {cap}\nli r4, 65536\nli r5, 32768\n");
        let row_turns = rows * cols.div_ceil(q) * (k.min(32) + 1);
        let column_turns = cols * rows.div_ceil(q) * (cap.min(32) + 1);
        // Zeros: each row takes its first columns.
        let chosen = rows * k.min(cols);
        let all = (rows * cols).div_ceil(q);
        let cases = [
            (format!("r.top_k sp[0], sp[r4], sp[r5], cols={cols}, k=r2, rows=r1"), row_turns),
            (format!("r.threshold sp[0], sp[r4], sp[r5], cols={cols}, k=r2, tau=r0, rows=r1"), row_turns),
            (format!("r.top_p sp[0], sp[r4], sp[r5], cols={cols}, k_min=r2, k=r2, p=r0, rows=r1"), row_turns),
            (format!("r.expert_choice sp[0], sp[r4], sp[r5], cols={cols}, cap=r3, rows=r1"), column_turns),
            (
                format!("r.bidirectional sp[0], sp[r4], sp[r5], cols={cols}, k=r2, cap=r3, rows=r1"),
                row_turns + column_turns,
            ),
        ];
        for (text, turns) in cases {
            let seen = see(&format!("{set_up}{text}\nhalt"), &m);
            assert_eq!(seen.at(5), (6, 6 + p + turns), "{text}");
        }
        let choose = format!("{set_up}r.top_k sp[0], sp[r4], sp[r5], cols={cols}, k=r2, rows=r1\n");
        let group = see(&format!("{choose}r.group sp[98304], sp[131072], sp[0], cols={cols}, rows=r1\nhalt"), &m);
        let (begin, end) = group.at(6);
        assert_eq!(end - begin, p + 2 * all + cols + chosen);
        let compact = see(&format!("{choose}r.compact sp[98304], sp[0], sp[r4], cols={cols}, rows=r1\nhalt"), &m);
        let (begin, end) = compact.at(6);
        assert_eq!(end - begin, p + all + chosen);
    }
    for count in [1, 16, 17, 32, 33u64] {
        assert_eq!(
            see(&format!("li r1, {count}\nr.iota sp[0], count=r1\nhalt"), &m).at(1),
            (2, 2 + p + count.div_ceil(q))
        );
    }
    assert_eq!(see("li r1, 5\nr.append sp[0], token=r1, cap=r1\nhalt", &m).at(1), (2, 2 + p + 2));
    // Token 9, a window of 3, 2 sinks, an empty ring: 0, 1, 7, 8, 9.
    let text = "li r1, 9\nli r2, 3\nli r3, 2\nli r4, 4\nr.admit sp[0], sp[64], sp[128], token=r1, window=r2, sinks=r3, cap=r4\nhalt";
    assert_eq!(see(text, &m).at(4), (5, 5 + p + 1 + 5));
}

#[test]
fn no_instruction_takes_less_than_a_cycle() {
    let machine = ideal(&[("vector.startup_cycles", "0"), ("vector.tree_cycles", "0")]);
    assert_eq!(see("v.row_sum sp[0], sp[64], cols=0\nhalt", &machine).at(0), (1, 2));
}
