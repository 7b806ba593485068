//! The closed forms of the array, with zero tolerance, over random shapes and arrays.

mod common;

use common::gemm::{Gemm, array_only, cuts, product};
use common::ideal;
use lapidary_npu_isa::{Machine, Queue};
use lapidary_simulator::{Cause, Options, Report, Simulator};
use proptest::prelude::*;

fn array(rows: u64, cols: u64, overlap: bool) -> Machine {
    let (rows, cols) = (rows.to_string(), cols.to_string());
    let accumulators = (1024 * 4 * cols.parse::<u64>().unwrap()).to_string();
    ideal(&[
        ("matrix.rows", &rows),
        ("matrix.cols", &cols),
        ("matrix.weight_overlap", if overlap { "true" } else { "false" }),
        ("accumulators.bytes", &accumulators),
        ("weights.bytes", "262144"),
        ("scratchpad.bytes", "1048576"),
    ])
}

fn report(gemm: Gemm, machine: &Machine, options: Options) -> Report {
    Simulator::new(&array_only(gemm, machine), machine, options).unwrap().run().unwrap().report
}

fn tiles(gemm: Gemm, machine: &Machine) -> u64 {
    gemm.k.div_ceil(machine.matrix.rows) * gemm.n.div_ceil(machine.matrix.cols)
}

/// ⌈K/R⌉⌈N/C⌉(2R + C + M − 2).
fn without_overlap(gemm: Gemm, machine: &Machine) -> u64 {
    let (r, c) = (machine.matrix.rows, machine.matrix.cols);
    tiles(gemm, machine) * (2 * r + c + gemm.m - 2)
}

/// R + (P − 1)·max(M, R) + M + R + C − 2.
fn with_overlap(gemm: Gemm, machine: &Machine) -> u64 {
    let (r, c) = (machine.matrix.rows, machine.matrix.cols);
    r + (tiles(gemm, machine) - 1) * gemm.m.max(r) + gemm.m + r + c - 2
}

/// The first instruction is issued in cycle 0 and starts in 1.
const ISSUE: u64 = 1;

fn check(gemm: Gemm, rows: u64, cols: u64) {
    let machine = array(rows, cols, false);
    let seen = report(gemm, &machine, Options::timing_only());
    let expected = without_overlap(gemm, &machine);
    assert_eq!((seen.cycles, seen.busy_cycles(Queue::Matrix)), (expected + ISSUE, expected), "{gemm:?} {rows}×{cols}");
    let machine = array(rows, cols, true);
    let seen = report(gemm, &machine, Options::timing_only());
    // Two instructions per tile are issued in two cycles; where a tile takes one, the sequencer is the limit.
    if gemm.m.max(rows) >= 2 {
        let expected = with_overlap(gemm, &machine);
        assert_eq!(
            (seen.cycles, seen.busy_cycles(Queue::Matrix)),
            (expected + ISSUE, expected),
            "{gemm:?} {rows}×{cols}"
        );
    }
    assert_eq!(seen.total.macs, u128::from(gemm.m * gemm.n * gemm.k));
}

#[test]
fn shapes_that_other_simulators_were_measured_with() {
    // Cycles of an RTL array without overlap, from the table of peers: M, N, K, array of 16, array of 32.
    let measured = [
        (128, 384, 384, 100_224, 31_968),
        (256, 256, 256, 77_312, 22_400),
        (64, 1536, 384, 253_440, 91_008),
        (1, 384, 1536, 108_288, 54_720),
        (100, 100, 100, 7_154, 3_104),
    ];
    for (m, n, k, small, large) in measured {
        for (size, cycles) in [(16, small), (32, large)] {
            let gemm = Gemm { m, n, k };
            let machine = array(size, size, false);
            assert_eq!(report(gemm, &machine, Options::timing_only()).busy_cycles(Queue::Matrix), cycles);
            check(gemm, size, size);
        }
    }
}

#[test]
fn a_minilm_forward_takes_what_scale_sim_says() {
    // 180 products, of each of which SCALE-Sim reports one cycle less: 2,429,388 and 7,616,844.
    let block = [(4, 128, 384, 384), (12, 128, 128, 32), (12, 128, 32, 128), (1, 128, 1536, 384), (1, 128, 384, 1536)];
    for (size, less_one_each) in [(32, 2_429_388), (16, 7_616_844)] {
        let machine = array(size, size, false);
        let cycles = |(count, m, n, k)| {
            count * report(Gemm { m, n, k }, &machine, Options::timing_only()).busy_cycles(Queue::Matrix)
        };
        assert_eq!(6 * block.into_iter().map(cycles).sum::<u64>(), less_one_each + 180);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn closed_forms_hold(m in 1u64..300, n in 1u64..100, k in 1u64..100, rows in 1u64..40, cols in 1u64..40) {
        check(Gemm { m, n, k }, rows, cols);
    }

    #[test]
    fn tiles_cover_an_axis(length in 1u64..1000, tile in 1u64..100) {
        prop_assert_eq!(cuts(length, tile).sum::<u64>(), length);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// From DRAM to DRAM: values are those of integers, cycles are the same without them, bytes are the compulsory ones.
    #[test]
    fn products_are_exact(m in 1u64..40, n in 1u64..70, k in 1u64..70, size in 0usize..3, overlap: bool, seed: u32) {
        let gemm = Gemm { m, n, k };
        let mut machine = Machine::preset(["edge-16", "edge-32", "mobile-64"][size]).unwrap();
        machine.set("matrix.weight_overlap", if overlap { "true" } else { "false" }).unwrap();
        let program = product(gemm, &machine);
        let at = common::gemm::layout(gemm);
        let mut state = seed;
        let mut code = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8 as i8
        };
        let inputs: Vec<i8> = (0..m * k).map(|_| code()).collect();
        let weights: Vec<i8> = (0..k * n).map(|_| code()).collect();
        let mut simulator = Simulator::new(&program, &machine, Options::default()).unwrap();
        let bytes = |codes: &[i8]| codes.iter().map(|c| *c as u8).collect::<Vec<u8>>();
        simulator.write_dram(at.inputs, &bytes(&inputs)).unwrap();
        let (mut packed, mut column) = (Vec::new(), 0);
        for width in cuts(n, machine.matrix.cols) {
            for row in 0..k {
                packed.extend_from_slice(&weights[(row * n + column) as usize..][..width as usize]);
            }
            column += width;
        }
        simulator.write_dram(at.weights, &bytes(&packed)).unwrap();
        let ones = |count: u64| (0..count).flat_map(|_| 1.0f32.to_le_bytes()).collect::<Vec<u8>>();
        simulator.write_dram(at.channels, &ones(n)).unwrap();
        simulator.write_dram(at.tokens, &ones(m)).unwrap();
        let run = simulator.run().unwrap();
        let results = run.read_dram(at.results, (4 * m * n) as usize);
        for i in 0..m {
            for j in 0..n {
                let sum: i32 = (0..k).map(|r| i32::from(inputs[(i * k + r) as usize]) * i32::from(weights[(r * n + j) as usize])).sum();
                let place = 4 * (i * n + j) as usize;
                let found = f32::from_le_bytes(results[place..place + 4].try_into().unwrap());
                prop_assert_eq!(found, sum as f32, "{} {}", i, j);
            }
        }
        let timing = Simulator::new(&program, &machine, Options::timing_only()).unwrap().run().unwrap();
        prop_assert_eq!(timing.report.cycles_by_cause, run.report.cycles_by_cause);
        prop_assert_eq!(&timing.report.parts, &run.report.parts);
        let total = run.report.total;
        prop_assert_eq!(total.dram_used_bytes, u128::from(m * k + k * n + 4 * (n + m) + 4 * m * n));
        prop_assert!(total.dram_read_bytes + total.dram_write_bytes >= total.dram_used_bytes);
        prop_assert!(run.report.spent_cycles(Queue::Sequencer, Cause::Busy) > 0);
    }
}
