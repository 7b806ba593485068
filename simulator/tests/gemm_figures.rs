//! Matrix multiplications from the NPU target's lowering, as `lapidary simulate --gemm` times them, against closed forms and
//! against the figures of other simulators (docs/npu-figures.md).

use lapidary_npu_isa::verify::verify;
use lapidary_npu_isa::{CostClass, Machine, Queue};
use lapidary_simulator::{Cause, Options, Report, Simulator};
use lapidary_target_npu::gemm::{Gemm, MINILM_128, gemm_program};
use lapidary_target_npu::matmul::plan::{Plan, Staging};
use proptest::prelude::*;

type Shape = (u32, u32, u32);

/// M×N×K; cycles without overlap on arrays of 16 and 32, as an RTL array takes them; SCALE-Sim says one less each.
const FIGURES: [(Shape, u64, u64); 5] = [
    ((128, 384, 384), 100_224, 31_968),
    ((256, 256, 256), 77_312, 22_400),
    ((64, 1536, 384), 253_440, 91_008),
    ((1, 384, 1536), 108_288, 54_720),
    ((100, 100, 100), 7_154, 3_104),
];

fn machine(preset: &str, settings: &[&str]) -> Machine {
    let mut machine = Machine::preset(preset).expect("a preset");
    let pairs: Vec<(&str, &str)> = settings.iter().map(|s| s.split_once('=').expect("a pair")).collect();
    machine.set_all(pairs).expect("settings");
    machine
}

fn run(machine: &Machine, (m, n, k): Shape) -> (Gemm, Report) {
    let gemm = gemm_program(machine, m, n, k).expect("a program");
    let simulator = Simulator::new(&gemm.program, machine, Options::timing_only()).expect("a simulator");
    let report = simulator.run().expect("a run").report;
    (gemm, report)
}

/// Cycles in which the array is taken up by tiles and passes: not those of `sync`.
fn matrix_cycles(report: &Report) -> u64 {
    let syncs = report.classes.iter().find(|(class, _)| *class == CostClass::Sync);
    report.busy_cycles(Queue::Matrix) - syncs.map_or(0, |(_, share)| share.unit_cycles[Queue::Matrix.index()])
}

/// Rule M3, and rule M4, for M rows that fit the accumulators.
fn closed_form(machine: &Machine, (m, n, k): Shape) -> u64 {
    let (m, n, k) = (u64::from(m), u64::from(n), u64::from(k));
    let (r, c) = (machine.matrix.rows, machine.matrix.cols);
    let tiles = k.div_ceil(r) * n.div_ceil(c);
    match machine.matrix.weight_overlap {
        false => tiles * (2 * r + c + m - 2),
        true => r + (tiles - 1) * m.max(r) + m + r + c - 2,
    }
}

/// Cycles of the whole program behind those of the array, with `dram.preset = "ideal"`: rescaling the last strip and storing it.
fn tail(machine: &Machine, gemm: &Gemm) -> u64 {
    let n = u64::from(gemm.layout.n);
    let m = u64::from(gemm.layout.m - (gemm.plan.blocks - 1) * gemm.plan.block_rows);
    let last = (n - 1) % machine.matrix.cols + 1;
    machine.vector.startup_cycles + m * last.div_ceil(machine.vector.lanes) + 1
}

#[test]
fn ten_shapes() {
    for (shape, edge16, edge32) in FIGURES {
        for (preset, figure) in [("edge-16", edge16), ("edge-32", edge32)] {
            let plain = machine(preset, &["dram.preset=ideal"]);
            assert_eq!(closed_form(&plain, shape), figure);
            let (gemm, report) = run(&plain, shape);
            verify(&gemm.program, &plain).expect("verified");
            assert_eq!((gemm.summary.matrix_cycles, matrix_cycles(&report)), (figure, figure), "{preset} {shape:?}");
            let macs = u64::from(shape.0) * u64::from(shape.1) * u64::from(shape.2);
            assert_eq!(gemm.summary.ideal_cycles, macs.div_ceil(plain.matrix.rows * plain.matrix.cols));
            // 256 rows fill the accumulators of edge-16: the array waits while the vector unit empties them, but for a preload.
            let whole = preset == "edge-16" && shape.0 == 256;
            let stalls = report.cycles_by_cause[Queue::Matrix.index()][Cause::TokenWait as usize];
            assert_eq!(stalls, if whole { 15 * (4 + 256 - 16) } else { 0 }, "{preset} {shape:?}");
            let head = report.cycles - stalls - figure - tail(&plain, &gemm);
            assert!(head <= 20, "{preset} {shape:?}: {head} cycles before the first tile");

            let overlap = machine(preset, &["dram.preset=ideal", "matrix.weight_overlap=true"]);
            let (gemm, report) = run(&overlap, shape);
            assert_eq!(gemm.summary.matrix_cycles, closed_form(&overlap, shape));
            // Two blocks of 128 rows take as many cycles as 256, and leave room for two sets of accumulators.
            assert_eq!(gemm.plan.blocks, if whole { 2 } else { 1 });
            assert_eq!(matrix_cycles(&report), closed_form(&overlap, shape), "{preset} {shape:?}");
            let stalls = report.cycles_by_cause[Queue::Matrix.index()][Cause::TokenWait as usize];
            assert_eq!(stalls, 0, "{preset} {shape:?}");
        }
    }
}

/// The matrix work of a MiniLM forward at 128 tokens: SCALE-Sim's figure, and one cycle more for each of 180.
#[test]
fn minilm() {
    let lines: Vec<Shape> = MINILM_128
        .lines()
        .skip(1)
        .map(|line| {
            let numbers: Vec<u32> = line.split(',').map(|n| n.parse().expect("a number")).collect();
            (numbers[0], numbers[1], numbers[2])
        })
        .collect();
    assert_eq!(lines.len(), 180);
    let macs: u64 = lines.iter().map(|(m, n, k)| u64::from(*m) * u64::from(*n) * u64::from(*k)).sum();
    assert_eq!(macs, 1_434_451_968);
    for (preset, scale_sim) in [("edge-32", 2_429_388), ("edge-16", 7_616_844)] {
        let machine = machine(preset, &["dram.preset=ideal"]);
        let mut known: Vec<(Shape, u64)> = Vec::new();
        let mut total = 0;
        for shape in &lines {
            let cycles = match known.iter().find(|(s, _)| s == shape) {
                Some((_, cycles)) => *cycles,
                None => {
                    let cycles = matrix_cycles(&run(&machine, *shape).1);
                    known.push((*shape, cycles));
                    cycles
                }
            };
            total += cycles;
        }
        assert_eq!(total, scale_sim + 180, "{preset}");
    }
}

/// `PROPTEST_CASES`, or more with `LAPIDARY_TEST=full`.
fn case_count() -> u32 {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    cases.unwrap_or(if std::env::var_os("LAPIDARY_TEST").is_some() { 4000 } else { 150 })
}

/// 1 to 5 tiles, often just as many, or one element more or less.
fn extent(tile: u32) -> impl Strategy<Value = u32> {
    prop_oneof![1..=5 * tile, (1u32..=5, 0u32..=2).prop_map(move |(n, d)| (n * tile + d).saturating_sub(1).max(1))]
}

/// A machine with an array of any size, ideal DRAM and room for 300 rows of sums.
fn arrays() -> impl Strategy<Value = (Machine, Shape)> {
    (1u32..=40, 1u32..=40, any::<bool>()).prop_flat_map(|(r, c, overlap)| {
        let settings = [
            "dram.preset=ideal".to_string(),
            format!("matrix.rows={r}"),
            format!("matrix.cols={c}"),
            format!("matrix.weight_overlap={overlap}"),
            format!("accumulators.bytes={}", 300 * 4 * c),
            format!("vector.lanes={c}"),
        ];
        let machine = machine("edge-16", &settings.each_ref().map(String::as_str));
        (Just(machine), 1u32..=300, extent(c), extent(r)).prop_map(|(machine, m, n, k)| (machine, (m, n, k)))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: case_count(), failure_persistence: None, ..ProptestConfig::default() })]

    /// Without overlap always; with overlap while nothing else is slower than the array: the sequencer that
    /// issues it, the vector unit that empties accumulators.
    #[test]
    fn closed_forms((machine, shape) in arrays()) {
        let (gemm, report) = run(&machine, shape);
        let form = closed_form(&machine, shape);
        prop_assert_eq!(gemm.summary.matrix_cycles, form);
        let (m, r) = (u64::from(shape.0), machine.matrix.rows);
        let tiles = u64::from(gemm.plan.tiling.tiles_of_strip());
        // The array is at the strip after the next when a strip's last pass has come through and is emptied; and the
        // sequencer has issued a strip while the array is at one.
        let emptied = m + r + machine.matrix.cols - 2 + machine.vector.startup_cycles + m;
        let issued = 70 + 12 * u64::from(gemm.plan.chunks.count()) + 6 * tiles;
        let each = m.max(r);
        let hidden = gemm.plan.blocks == 1 && gemm.plan.accumulators == 2 && each >= 24 && (tiles + 1) * each >= emptied && tiles * each >= issued;
        let whole = matches!(gemm.plan.staging, Staging::Whole { .. });
        if !machine.matrix.weight_overlap {
            prop_assert_eq!(matrix_cycles(&report), form);
        } else if hidden {
            prop_assert_eq!(matrix_cycles(&report), form, "{}×{}, {:?}", r, machine.matrix.cols, gemm.plan);
            if !whole {
                let head = report.cycles - form - tail(&machine, &gemm);
                prop_assert!(head <= 22, "{} cycles before the first tile", head);
            }
        }
    }
}

fn shapes() -> impl Strategy<Value = Shape> {
    (1u32..=300, 1u32..=300, 1u32..=300)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: case_count() / 3, failure_persistence: None, ..ProptestConfig::default() })]

    /// DRAM of twice the rate and a scratchpad of twice the size do not cost cycles, with one reservation: the plan is chosen anew.
    /// It is chosen by an estimate, and rows that fit at once are not cut, so that closed forms hold, though blocks of rows, some
    /// loaded and stored while others are computed, are quicker where DRAM takes more time than the array. While the plan
    /// stays the same nothing is lost but by DRAM itself: two transfers at a time, at another pace, may meet in the same banks and
    /// close each other's rows, or meet a refresh.
    #[test]
    fn more_is_never_slower(shape in shapes(), preset in prop::sample::select(vec!["edge-16", "edge-32"]), overlap in any::<bool>()) {
        let overlap = format!("matrix.weight_overlap={overlap}");
        let timed = |settings: [&str; 2]| {
            let settings: Vec<&str> = settings.into_iter().chain([overlap.as_str()]).collect();
            let (gemm, report) = run(&machine(preset, &settings), shape);
            let Plan { block_rows, nest, staging, operand, chunks, weights, .. } = gemm.plan;
            let of = |queue: Queue, cause: Cause| report.cycles_by_cause[queue.index()][cause as usize];
            let rows = of(Queue::Load, Cause::RowMiss) + of(Queue::Store, Cause::RowMiss);
            let refreshes = of(Queue::Load, Cause::Refresh) + of(Queue::Store, Cause::Refresh);
            (report.cycles, rows + refreshes, (block_rows, nest, staging, operand, chunks, weights))
        };
        let check = |what: &str, runs: &[(u64, u64, _)], other_plan: u64| {
            let fine = |a: &(u64, u64, _), b: &(u64, u64, _)| b.0 <= a.0 + b.1 + if a.2 == b.2 { 0 } else { other_plan };
            let cycles: Vec<u64> = runs.iter().map(|r| r.0).collect();
            prop_assert!(runs.is_sorted_by(fine), "cycles by {}: {:?}", what, cycles);
            Ok(())
        };
        let rates = ["533", "1066", "2133", "4266", "8532"];
        let mut rates = rates.map(|rate| timed([&format!("dram.rate_mts={rate}"), "dram.channels=1"])).to_vec();
        rates.push(timed(["dram.preset=ideal", "dram.channels=1"]));
        let third = rates[2].0 / 3;
        check("rate", &rates, third)?;
        let sizes = ["32768", "65536", "131072", "262144", "524288", "1048576"];
        let by_size = |dram| sizes.map(|bytes| timed([&format!("scratchpad.bytes={bytes}"), dram]));
        let real = by_size("dram.preset=lpddr4");
        check("scratchpad", &real, real[5].0)?;
        // Without DRAM blocks of rows can still be quicker than rows that fill the accumulators, and the last is emptied sooner.
        let ideal = by_size("dram.preset=ideal");
        check("scratchpad, ideal DRAM", &ideal, 5 + u64::from(shape.0) + ideal[5].0 / 3)?;
    }
}
