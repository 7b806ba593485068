//! What has to hold whatever the program: accounts, determinism, batches of requests, more of everything, routing.

mod common;

use common::gemm::{Gemm, product};
use common::program;
use lapidary_npu_isa::{Machine, Program, Queue};
use lapidary_simulator::{Options, Run, Simulator};
use proptest::prelude::*;

fn run(program: &Program, machine: &Machine, options: Options) -> Run {
    Simulator::new(program, machine, options).unwrap().run().unwrap()
}

fn example(name: &str) -> Program {
    let path = format!("{}/../examples/npu/{name}.s", env!("CARGO_MANIFEST_DIR"));
    program(&std::fs::read_to_string(path).unwrap())
}

fn address(program: &Program, name: &str) -> u64 {
    program.segments.iter().find(|segment| segment.name == name).unwrap().address
}

/// Transfers of all kinds in both queues, on several channels, with the clock, banks and refresh that the numbers say.
fn transfers(numbers: &[u64]) -> (String, Machine) {
    let mut text =
        String::from("li r9, 8\nr.iota sp[0], count=r9 post(t1)\nsync load wait(t1) post(t2)\nsync store wait(t2)\n");
    for (i, n) in numbers.iter().enumerate() {
        let (rows, bytes, stride) = (1 + n % 7, 4 * (1 + n / 7 % 100), n / 700 % 5000 + 400);
        let (dram, chip) = ((n / 11 % 4096) * 64, 2048 + 2048 * (i as u64 % 32));
        text += &format!("li r1, {rows}\nli r2, {stride}\nli r3, {dram}\nli r4, {chip}\nli r6, {}\n", stride / 4 * 4);
        text += &match n % 5 {
            0 => format!("load sp[r4], dram[r3], row_bytes={bytes}, rows=r1, src_stride=r2\n"),
            1 => format!("load.rows sp[r4], dram[r3], sp[0], bound=r9, row_bytes={bytes}, rows=r1, src_stride=r2\n"),
            2 => format!("store dram[r3], sp[r4], row_bytes={bytes}, rows=r1, dst_stride=r2\n"),
            3 => format!("store.rows dram[r3], sp[r4], sp[0], bound=r9, row_bytes={bytes}, rows=r1, dst_stride=r2\n"),
            _ => {
                format!("store.add_rows dram[r3], sp[r4], sp[0], bound=r9, row_bytes={bytes}, rows=r1, dst_stride=r6\n")
            }
        };
    }
    let pick = |shift: u64, values: &[&str]| values[(numbers[0] >> shift) as usize % values.len()].to_string();
    let settings = [
        ("clock_mhz", pick(0, &["1000", "333", "7"])),
        ("dma.channels", pick(3, &["1", "2", "3", "8"])),
        ("dma.outstanding", pick(5, &["1", "2", "16", "64"])),
        ("dma.setup_cycles", pick(7, &["0", "1", "8"])),
        ("dma.burst_bytes", pick(9, &["32", "64", "128"])),
        ("dram.channels", pick(11, &["1", "2", "3"])),
        ("dram.banks", pick(13, &["1", "3", "8"])),
        ("dram.trefi_ps", pick(15, &["0", "600000", "3904000"])),
    ];
    let mut machine = Machine::preset("edge-16").unwrap();
    machine.set_all(settings.iter().map(|(key, value)| (*key, value.as_str()))).unwrap();
    (text + "halt", machine)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Requests made in a row are the requests made one at a time; another run is the same run.
    #[test]
    fn batches_of_requests_are_their_requests(numbers in prop::collection::vec(0u64..1 << 24, 1..24)) {
        let (text, machine) = transfers(&numbers);
        let program = program(&text);
        let batched = run(&program, &machine, Options::default());
        let one_by_one = run(&program, &machine, Options { one_by_one: true, ..Options::default() });
        prop_assert_eq!(&batched.report, &one_by_one.report);
        let again = run(&program, &machine, Options::default());
        prop_assert_eq!(&batched.report, &again.report);
        prop_assert_eq!(batched.scratchpad(), again.scratchpad());
        let timing = run(&program, &machine, Options::timing_only());
        prop_assert_eq!(batched.report.cycles_by_cause, timing.report.cycles_by_cause);
        let dram = batched.report.dram;
        prop_assert_eq!(dram.requests, dram.hits + dram.empties + dram.misses);
        let moved = batched.report.total.dram_read_bytes + batched.report.total.dram_write_bytes;
        prop_assert_eq!(moved, u128::from(dram.requests * machine.dma.burst_bytes));
    }

    /// More lanes, ports, places, channels, or overlap never make a product slower with ideal DRAM, and ideal DRAM is never slower than
    /// another. (Smaller banks can: an instruction of VECTOR that starts sooner may hold a bank that MATRIX wants next.)
    ///
    /// With timed DRAM there is no such law for all programs: what is done sooner on chip asks DRAM sooner, and then comes between two
    /// requests of the same row, or closes a row that others are about to use. The report shows it as row misses and bandwidth.
    #[test]
    fn more_on_chip_costs_no_cycles(m in 1u64..60, n in 1u64..100, k in 1u64..100, overlap: bool) {
        let more = [
            ("vector.lanes", "32"),
            ("scratchpad.ports", "2"),
            ("queue.depth", "64"),
            ("dma.channels", "8"),
            ("matrix.weight_overlap", "true"),
        ];
        let mut timed = Machine::preset("edge-16").unwrap();
        timed.set("matrix.weight_overlap", if overlap { "true" } else { "false" }).unwrap();
        let mut ideal = timed.clone();
        ideal.set("dram.preset", "ideal").unwrap();
        let program = product(Gemm { m, n, k }, &timed);
        let cycles = |machine: &Machine| run(&program, machine, Options::timing_only()).report.cycles;
        let before = cycles(&ideal);
        prop_assert!(before <= cycles(&timed));
        for (key, value) in more {
            let mut better = ideal.clone();
            better.set(key, value).unwrap();
            prop_assert!(cycles(&better) <= before, "{} {}: {} after {}", key, value, cycles(&better), before);
        }
    }

    /// Where the order of requests is given, as in one queue on one channel, and nothing is refreshed, better DRAM is never slower.
    #[test]
    fn better_dram_costs_a_stream_no_cycles(numbers in prop::collection::vec(0u64..1 << 24, 1..24)) {
        let loads: Vec<u64> = numbers.iter().map(|n| n / 5 * 5 + n % 2).collect();
        let (text, mut machine) = transfers(&loads);
        machine.set_all([("dma.channels", "1"), ("dram.trefi_ps", "0")]).unwrap();
        let program = program(&text);
        let cycles = |machine: &Machine| run(&program, machine, Options::timing_only()).report.cycles;
        let before = cycles(&machine);
        let more = [
            ("dram.rate_mts", "4266"),
            ("dram.bus_bits", "32"),
            ("dram.trcd_ps", "9000"),
            ("dram.trp_ps", "9000"),
            ("dram.tras_ps", "20000"),
            ("dram.tcl_ps", "9000"),
            ("dma.outstanding", "65"),
            ("dma.setup_cycles", "0"),
            ("dram.preset", "ideal"),
        ];
        for (key, value) in more {
            let mut better = machine.clone();
            better.set(key, value).unwrap();
            prop_assert!(cycles(&better) <= before, "{} {}: {} after {}", key, value, cycles(&better), before);
        }
    }

    /// What is chosen is what is counted is what is listed, once each.
    #[test]
    fn tokens_are_conserved(rows in 1usize..20, cols in 1usize..12, k in 0usize..14, scores in prop::collection::vec(-4i8..4, 240)) {
        let text = format!(
            "li r1, {rows}\nli r2, {k}\nli r3, 4096\nli r4, 8192\nli r5, 12288\n\
             r.top_k sp[r3], sp[r4], sp[0], cols={cols}, k=r2, rows=r1\n\
             r.group sp[r5], sp[16384], sp[r3], cols={cols}, rows=r1\nhalt"
        );
        let (program, machine) = (program(&text), Machine::preset("edge-16").unwrap());
        let mut simulator = Simulator::new(&program, &machine, Options::default()).unwrap();
        for (place, score) in scores.iter().take(rows * cols).enumerate() {
            simulator.memories_mut().scratchpad[4 * place..4 * place + 4].copy_from_slice(&f32::from(*score).to_le_bytes());
        }
        let run = simulator.run().unwrap();
        let word = |at: usize| u32::from_le_bytes(run.scratchpad()[at..at + 4].try_into().unwrap()) as usize;
        let counts: Vec<usize> = (0..cols).map(|c| word(12288 + 16 * c + 8)).collect();
        let chosen = rows * k.min(cols);
        prop_assert_eq!(counts.iter().sum::<usize>(), chosen);
        prop_assert_eq!(word(12288 + 16 * cols + 4), chosen);
        let mut seen = vec![0; rows];
        (0..chosen).for_each(|i| seen[word(16384 + 4 * i)] += 1);
        prop_assert!(seen.iter().all(|times| *times == k.min(cols)));
    }
}

/// The routed example with other scores.
fn routed(scores: &[[f32; 4]; 8], machine: &Machine) -> Run {
    routed_to(2, scores, machine)
}

/// The routed example with other scores, every token to `k` modules.
fn routed_to(k: usize, scores: &[[f32; 4]; 8], machine: &Machine) -> Run {
    let path = format!("{}/../examples/npu/routed_ffn.s", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let program = program(&text.replace(".equ K_MAX, 2 ", &format!(".equ K_MAX, {k} ")));
    let mut simulator = Simulator::new(&program, machine, Options::default()).unwrap();
    let bytes: Vec<u8> = scores.iter().flatten().flat_map(|s| s.to_le_bytes()).collect();
    simulator.write_dram(address(&program, "scores"), &bytes).unwrap();
    simulator.run().unwrap()
}

#[test]
fn a_module_that_nobody_chose_costs_a_skip() {
    let machine = Machine::preset("edge-16").unwrap();
    // Everybody takes modules 0 and 1; of 2 and 3 nothing is fetched, nothing computed.
    let run = routed(&[[0.4, 0.3, 0.1, 0.2]; 8], &machine);
    let modules = run.report.modules();
    let of = |number: i64| &modules.iter().find(|(module, _)| *module == number).unwrap().1;
    for number in [0, 1] {
        assert_eq!(of(number).amounts.dram_used_bytes, 3 * (4 * 128 + 64), "{number}");
        assert!(of(number).amounts.macs > 0);
    }
    for number in [2, 3] {
        let share = of(number);
        assert_eq!((share.amounts.dram_read_bytes, share.amounts.macs), (0, 0));
        // lds, add, lds, skip_if_zero; add, add, end.
        assert_eq!(share.amounts.instructions, 7);
        let loads = 2 * machine.sequencer.load_cycles;
        assert_eq!(share.unit_cycles[Queue::Sequencer.index()], loads + 5);
    }
    // The same number of instructions whichever two are chosen, if they are chosen by the same tokens.
    let others = routed(&[[0.1, 0.2, 0.4, 0.3]; 8], &machine);
    assert_eq!(others.report.total.instructions, run.report.total.instructions);
    assert_eq!(others.report.total.macs, run.report.total.macs);
    assert_eq!(others.report.total.dram_used_bytes, run.report.total.dram_used_bytes);
}

/// Cycles of the array for a dense FFN of so many rows, in blocks of 4: gate, up and down of 4 tiles each, rule M3.
fn dense_ffn_cycles(rows: u64, machine: &Machine) -> u64 {
    let tile = |m: u64| 2 * machine.matrix.rows + machine.matrix.cols + m - 2;
    (0..rows.div_ceil(4)).map(|block| 3 * 4 * tile((rows - 4 * block).min(4))).sum()
}

#[test]
fn routed_work_is_the_dense_work_of_what_was_chosen() {
    let machine = common::ideal(&[]);
    let even = [[0.4, 0.3, 0.1, 0.2]; 8];
    let uneven = [
        [0.4, 0.3, 0.1, 0.2],
        [0.1, 0.6, 0.1, 0.2],
        [0.5, 0.2, 0.0, 0.3],
        [0.3, 0.3, 0.1, 0.3],
        [0.2, 0.4, 0.1, 0.3],
        [0.7, 0.1, 0.0, 0.2],
        [0.6, 0.3, 0.0, 0.1],
        [0.1, 0.4, 0.0, 0.5],
    ];
    // Tokens of each module: all to one; as the scores say; k = all is every module on every token.
    for (k, scores, counts) in
        [(1, even, [8, 0, 0, 0]), (1, uneven, [5, 2, 0, 1]), (2, uneven, [5, 6, 0, 5]), (4, uneven, [8; 4])]
    {
        let report = routed_to(k, &scores, &machine).report;
        assert_eq!(counts.iter().sum::<u64>(), 8 * k as u64, "tokens in, tokens out");
        let dense: u64 = counts.iter().map(|rows| dense_ffn_cycles(*rows, &machine)).sum();
        assert_eq!(report.busy_cycles(Queue::Matrix), dense, "{k}: {counts:?}");
        assert_eq!(report.total.macs, u128::from(counts.iter().sum::<u64>() * 3 * 32 * 32));
        let fetched = counts.iter().filter(|rows| **rows > 0).count() as u128 * 3 * (4 * 128 + 64);
        // Besides modules: 8 tokens of 32 floats, and scores.
        assert_eq!(report.total.dram_read_bytes, fetched + 8 * 32 * 4 + 8 * 4 * 4, "{k}: {counts:?}");
        let modules = report.modules();
        for (module, rows) in counts.iter().enumerate() {
            let share = &modules.iter().find(|(number, _)| *number == module as i64).unwrap().1;
            assert_eq!(share.amounts.macs, u128::from(rows * 3 * 32 * 32));
        }
    }
}

#[test]
fn permuted_modules_cost_the_same_without_dram() {
    let machine = common::ideal(&[]);
    let scores = [
        [0.4, 0.3, 0.1, 0.2],
        [0.1, 0.6, 0.1, 0.2],
        [0.5, 0.2, 0.0, 0.3],
        [0.7, 0.1, 0.0, 0.2],
        [0.2, 0.4, 0.1, 0.3],
        [0.7, 0.1, 0.0, 0.2],
        [0.6, 0.3, 0.0, 0.1],
        [0.1, 0.4, 0.0, 0.5],
    ];
    let base = routed(&scores, &machine).report;
    let permuted = scores.map(|[a, b, c, d]| [b, a, c, d]);
    let other = routed(&permuted, &machine).report;
    assert_eq!(base.total, other.total);
    assert_eq!(base.busy_cycles(Queue::Matrix), other.busy_cycles(Queue::Matrix));
    assert_eq!(base.busy_cycles(Queue::Vector), other.busy_cycles(Queue::Vector));
}

#[test]
fn examples_run_and_their_accounts_close() {
    for name in ["matmul_double_buffered", "routed_ffn", "top_k_sort"] {
        let program = example(name);
        for preset in ["edge-16", "edge-32", "mobile-64"] {
            let run = run(&program, &Machine::preset(preset).unwrap(), Options::default());
            let report = &run.report;
            for cycles in report.cycles_by_cause {
                assert_eq!(cycles.iter().sum::<u64>(), report.cycles, "{name} on {preset}");
            }
            let of_parts: u128 = report.parts.iter().map(|part| part.share.amounts.energy_fj).sum();
            assert_eq!(of_parts, report.total.energy_fj);
            let attributed: u64 = report.parts.iter().map(|part| part.share.cycles).sum();
            let last = report.parts.iter().map(|part| part.share.end).max().unwrap();
            assert_eq!((attributed, last), (report.cycles, report.cycles));
            let of_classes: u64 = report.classes.iter().map(|(_, share)| share.cycles).sum();
            let of_ops: u64 = report.ops().iter().map(|(_, share)| share.cycles).sum();
            assert_eq!((of_classes, of_ops), (report.cycles, report.cycles));
        }
    }
}

/// Rule of attribution, by hand: a cycle belongs to the instruction that completes next.
#[test]
fn each_cycle_belongs_to_what_completes_next() {
    let text = format!(
        ".op \"a\"\nli r1, 40\nr.iota sp[64], count=r1 post(t1)\n.op \"b\"\nv.fill sp[4096], cols=16, value=r0\n\
         .op \"c\"\nsync sequencer wait(t1)\n.op \"d\"\n{}.op \"e\"\nhalt",
        "add r2, r2, 1\n".repeat(20)
    );
    let machine = common::ideal(&[("vector.startup_cycles", "10"), ("route.startup_cycles", "4")]);
    let seen = common::see(&text, &machine);
    let cycles = |name: &str| seen.run.report.ops().iter().find(|(n, _)| *n == name).unwrap().1.cycles;
    // `r.iota` is in ROUTE in cycles 2 to 8, `sync` has its token in 9, `v.fill` its bank, in which it is up to cycle 19. Twenty
    // `add` and `halt` follow `sync`, from cycle 10 on.
    assert_eq!((seen.at(1), seen.at(2), seen.cycles()), ((2, 9), (9, 20), 31));
    assert_eq!(["a", "c", "b", "d", "e"].map(cycles), [9, 1, 10, 0, 11]);
}

#[test]
fn memories_go_on_where_they_were_left() {
    let machine = Machine::preset("edge-16").unwrap();
    let first =
        program("li r1, 3\nli r2, 4\nr.append sp[0], token=r1, cap=r2\nstore dram[64], sp[0], row_bytes=8\nhalt");
    let second =
        program("li r1, 9\nli r2, 4\nr.append sp[0], token=r1, cap=r2\nload sp[64], dram[64], row_bytes=8\nhalt");
    let memories = run(&first, &machine, Options::default()).memories;
    let go_on = |machine: &Machine, options| {
        Simulator::with_memories(&second, machine, options, memories.clone()).and_then(Simulator::run)
    };
    let after = go_on(&machine, Options::default()).unwrap();
    let word = |at: usize| u32::from_le_bytes(after.scratchpad()[at..at + 4].try_into().unwrap());
    assert_eq!([0, 4, 8, 64, 68].map(word), [2, 3, 9, 1, 3]);
    let error = go_on(&Machine::preset("edge-32").unwrap(), Options::default()).unwrap_err();
    assert!(error.to_string().starts_with("sp: wanted 524288 bytes"), "{error}");
    assert!(go_on(&machine, Options::timing_only()).is_err());
}
