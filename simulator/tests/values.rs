//! Values of single instructions, worked out by hand.

mod common;

use common::{fails, ideal, program, see};
use lapidary_npu_isa::Machine;
use lapidary_simulator::{Options, Run, SimError, Simulator};

const NAN: u32 = 0x7fc0_0000;

/// Runs on a scratchpad that holds something.
fn on(scratchpad: &[(usize, Vec<u8>)], text: &str) -> Run {
    let (program, machine) = (program(text), ideal(&[]));
    let mut simulator = Simulator::new(&program, &machine, Options::default()).unwrap();
    for (at, bytes) in scratchpad {
        simulator.memories_mut().scratchpad[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    simulator.run().unwrap_or_else(|error| panic!("{error}"))
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn words_at(run: &Run, at: usize, count: usize) -> Vec<u32> {
    run.scratchpad()[at..at + 4 * count].as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

fn floats_at(run: &Run, at: usize, count: usize) -> Vec<f32> {
    words_at(run, at, count).into_iter().map(f32::from_bits).collect()
}

#[test]
fn scalar_arithmetic_wraps_and_shifts() {
    let text = "li r1, 0x7fffffffffffffff\nadd r2, r1, 1\nsub r3, r0, 5\nshr r4, r3, 1\nshl r5, r3, 65\nmul r6, r1, 2\n\
                min r7, r3, 2\nmax r8, r3, 2\nand r9, r3, 255\nhalt";
    let registers = see(text, &ideal(&[])).run.registers;
    let get = |n| registers.get(lapidary_npu_isa::Reg::new(n).unwrap());
    assert_eq!((2..10).map(get).collect::<Vec<_>>(), [i64::MIN, -5, -3, -10, -2, -5, 2, 251]);
}

#[test]
fn loops_leave_their_count() {
    let text =
        "li r5, -3\nloop r1, count=3\nadd r2, r2, r1\nend\nloop r3, count=r5, max=10\nadd r2, r2, 100\nend\nhalt";
    let registers = see(text, &ideal(&[])).run.registers;
    let get = |n| registers.get(lapidary_npu_isa::Reg::new(n).unwrap());
    assert_eq!((get(1), get(2), get(3)), (3, 3, 0));
}

#[test]
fn boxes_have_rows_planes_and_nibbles() {
    let (text, machine) = (
        // 2 planes of 2 rows of 2 bytes: rows 4 apart, planes 16.
        "li r1, 2\nli r2, 4\nli r3, 16\nload sp[0], dram[0], row_bytes=2, rows=r1, src_stride=r2, planes=r1, src_plane=r3\n\
         load sp[32], dram[0], row_bytes=2, unpack\nstore dram[64], sp[0], row_bytes=8\nhalt",
        ideal(&[]),
    );
    let program = program(text);
    let mut simulator = Simulator::new(&program, &machine, Options::default()).unwrap();
    let bytes: Vec<u8> = (0..32).map(|i| if i == 1 { 0x8f } else { i }).collect();
    simulator.write_dram(0, &bytes).unwrap();
    let run = simulator.run().unwrap();
    assert_eq!(run.scratchpad()[..8], [0, 0x8f, 4, 5, 16, 17, 20, 21]);
    // 0x00, 0x8f: 0, 0, −1, −8.
    assert_eq!(run.scratchpad()[32..36], [0, 0, 0xff, 0xf8]);
    assert_eq!(run.read_dram(64, 8), [0, 0x8f, 4, 5, 16, 17, 20, 21]);
}

#[test]
fn rows_by_list_are_read_as_they_are_moved() {
    let machine = ideal(&[]);
    // The first row lands on the list's second entry: 1 becomes 2.
    let text = "li r1, 3\nli r2, 2\nli r3, 4\nli r4, 4\n\
                load.rows sp[r4], dram[0], sp[0], bound=r1, row_bytes=4, rows=r2, dst_stride=r3\nhalt";
    let code = program(text);
    let mut simulator = Simulator::new(&code, &machine, Options::default()).unwrap();
    simulator.write_dram(0, &words(&[2, 7, 9])).unwrap();
    let run = simulator.run().unwrap();
    // Row index[0] = 0 of DRAM, which is 2, goes to byte 4, which is index[1]; row 2 of DRAM is 9.
    assert_eq!(words_at(&run, 0, 3), [0, 2, 9]);
    match fails("li r1, 1\nload.rows sp[64], dram[0], sp[0], bound=r0, row_bytes=4, rows=r1\nhalt", &machine) {
        SimError::Fault(fault) => assert_eq!(
            (fault.at, fault.what.as_str(), fault.wanted.as_str(), fault.found.as_str()),
            (1, "index[0]", "below bound = 0", "0")
        ),
        other => panic!("{other}"),
    }
}

#[test]
fn adding_rows_goes_row_by_row() {
    let machine = ideal(&[]);
    let text = "li r1, 2\nli r2, 3\nstore.add_rows dram[0], sp[32], sp[0], bound=r1, row_bytes=4, rows=r2\nhalt";
    let code = program(text);
    let mut simulator = Simulator::new(&code, &machine, Options::default()).unwrap();
    simulator.write_dram(0, &floats(&[1.0, 10.0])).unwrap();
    let scratchpad = &mut simulator.memories_mut().scratchpad;
    scratchpad[..12].copy_from_slice(&words(&[1, 0, 1]));
    scratchpad[32..44].copy_from_slice(&floats(&[0.5, 2.0, 0.25]));
    let run = simulator.run().unwrap();
    assert_eq!(run.read_dram(0, 8), floats(&[3.0, 10.75]));
}

#[test]
fn passes_accumulate_and_clear() {
    // A tile of 2 × 2: [[1, 2], [3, 4]]; inputs (1, 1) and (2, −1).
    let text = |flag: &str| format!("m.preload i8, w[0], k=2, n=2\nm.pass sp[0], acc[1], rows=2, k=2{flag}\nhalt");
    let machine = ideal(&[]);
    for (flag, expected) in [("", [[4, 6, 0], [-1, 0, 0]]), (", accumulate", [[14, 16, 30], [9, 10, 30]])] {
        let code = program(&text(flag));
        let mut simulator = Simulator::new(&code, &machine, Options::default()).unwrap();
        let memories = simulator.memories_mut();
        memories.weights[..4].copy_from_slice(&[1, 2, 3, 4]);
        memories.scratchpad[..4].copy_from_slice(&[1, 1, 2, 0xff]);
        for row in 1..3 {
            memories.accumulators[16 * row..][..3].copy_from_slice(&[10, 10, 30]);
        }
        let run = simulator.run().unwrap();
        for (row, expected) in expected.iter().enumerate() {
            let found: Vec<i32> = run.accumulators()[16 * (row + 1)..][..3].iter().map(|w| *w as i32).collect();
            assert_eq!(found, expected, "{flag}");
        }
    }
}

#[test]
fn scaled_passes_fold_integers_into_floats() {
    // i4 codes 0x71, 0x08: row 0 is (1, 7), row 1 is (−8, 0). f16 scales 0.5 and 2.
    let text = "m.preload_scaled i4, w[0], w[32], k=2, n=2\n\
                m.pass_scaled sp[0], acc[0], acc[1], rows=1, k=2, accumulate, append\nhalt";
    let (code, machine) = (program(text), ideal(&[]));
    let mut simulator = Simulator::new(&code, &machine, Options::default()).unwrap();
    let memories = simulator.memories_mut();
    memories.weights[..2].copy_from_slice(&[0x71, 0x08]);
    memories.weights[32..36].copy_from_slice(&[0x00, 0x38, 0x00, 0x40]);
    memories.scratchpad[..2].copy_from_slice(&[3, 1]);
    memories.accumulators[..2].copy_from_slice(&[100, 1]);
    memories.accumulators[16..18].copy_from_slice(&[0.25f32.to_bits(), 1.0f32.to_bits()]);
    let run = simulator.run().unwrap();
    // 3·1 − 8 = −5, + 100 = 95, ·0.5 + 0.25; 3·7 = 21, + 1 = 22, ·2 + 1.
    assert_eq!(run.accumulators()[16..18], [47.75f32.to_bits(), 45.0f32.to_bits()]);
    assert_eq!(run.accumulators()[0], 100);
}

#[test]
fn rescaling_is_two_products_in_order() {
    let text = "v.rescale sp[0], acc[0], sp[64], sp[128], cols=2\nhalt";
    let (code, machine) = (program(text), ideal(&[]));
    let mut simulator = Simulator::new(&code, &machine, Options::default()).unwrap();
    let memories = simulator.memories_mut();
    // 2²⁴ + 1 rounds to 2²⁴.
    memories.accumulators[..2].copy_from_slice(&[(1 << 24) + 1, (-3i32) as u32]);
    memories.scratchpad[64..72].copy_from_slice(&floats(&[0.5, 0.1]));
    memories.scratchpad[128..132].copy_from_slice(&floats(&[4.0]));
    let run = simulator.run().unwrap();
    assert_eq!(floats_at(&run, 0, 2), [16_777_216.0 * 2.0, (-3.0f32 * 0.1) * 4.0]);
}

#[test]
fn elements_widen_narrow_and_broadcast() {
    let run = on(
        &[(0, vec![0xff, 0x02]), (64, floats(&[0.5])), (128, floats(&[10.0, 20.0]))],
        "v.mul sp[192], sp[0], sp[64], cols=2, a_type=i8, broadcast=scalar\n\
         li r1, 2\nv.add sp[256], sp[128], sp[128], cols=1, rows=r1, broadcast=column, dst_type=i8\n\
         li r2, 0\nv.add sp[320], sp[128], sp[128], cols=2, rows=r1, a_stride=r2, broadcast=row, dst_type=f16\nhalt",
    );
    assert_eq!(floats_at(&run, 192, 2), [-0.5, 1.0]);
    assert_eq!(run.scratchpad()[256..258], [20, 40]);
    // 20 and 40 in f16: 0x4d00, 0x5100.
    assert_eq!(run.scratchpad()[320..328], [0x00, 0x4d, 0x00, 0x51, 0x00, 0x4d, 0x00, 0x51]);
}

#[test]
fn what_is_no_number_has_one_pattern() {
    let run = on(
        &[(0, words(&[0xffff_ffff, 0x7f80_0001]))],
        "v.copy sp[64], sp[0], cols=2\nv.copy sp[128], sp[0], cols=1, dst_type=f16\nv.copy sp[160], sp[0], cols=1, dst_type=i32\n\
         v.sqrt sp[192], sp[224], cols=1\nhalt",
    );
    assert_eq!(words_at(&run, 64, 2), [NAN, NAN]);
    assert_eq!(run.scratchpad()[128..130], [0x00, 0x7e]);
    assert_eq!(words_at(&run, 160, 1), [0]);
    // √0 = 0.
    assert_eq!(words_at(&run, 192, 1), [0]);
}

#[test]
fn reductions() {
    let run = on(
        &[(0, floats(&[1.0, -2.0, 3.0, f32::NAN, 5.0, 4.0]))],
        "li r1, 2\nv.row_sum sp[64], sp[0], cols=3\nv.row_sum_squares sp[96], sp[0], cols=3\nv.row_max sp[128], sp[0], cols=3, rows=r1\n\
         v.row_argmax sp[160], sp[0], cols=3, rows=r1\nv.column_sum sp[192], sp[0], cols=2\nv.row_max sp[224], sp[0], cols=0\nhalt",
    );
    assert_eq!(floats_at(&run, 64, 1), [2.0]);
    assert_eq!(floats_at(&run, 96, 1), [14.0]);
    assert_eq!(floats_at(&run, 128, 2), [3.0, 5.0]);
    assert_eq!(words_at(&run, 160, 2), [2, 1]);
    assert_eq!(floats_at(&run, 192, 2), [1.0, -2.0]);
    assert_eq!(floats_at(&run, 224, 1), [f32::NEG_INFINITY]);
}

#[test]
fn softmax_over_a_moving_range() {
    // Row i over the columns up to i.
    let run = on(
        &[(0, floats(&[1.0, 9.0, 2.0, 2.0]))],
        "li r1, 2\nli r2, 1\nv.softmax sp[64], sp[0], cols=2, rows=r1, end=r2\nli r3, 3\nv.softmax sp[96], sp[0], cols=2, begin=r3\nhalt",
    );
    assert_eq!(floats_at(&run, 64, 4), [1.0, 0.0, 0.5, 0.5]);
    assert_eq!(floats_at(&run, 96, 2), [0.0, 0.0]);
}

#[test]
fn norms_rotations_and_quantizing() {
    let run = on(
        &[
            (0, floats(&[3.0, -3.0, 3.0, 3.0])),
            (32, floats(&[1.0, 2.0, 0.5, 1.0])),
            (64, floats(&[1.0, 2.0])),
            (96, floats(&[0.0, 1.0])),
            (128, floats(&[1.0, -2.0, 0.5, 0.0])),
        ],
        "v.rms_norm sp[160], sp[0], sp[32], cols=4, eps=r0\nv.rope sp[192], sp[64], sp[96], half=1\n\
         v.quantize sp[224], sp[128], sp[256], cols=4\nhalt",
    );
    assert_eq!(floats_at(&run, 160, 4), [1.0, -2.0, 0.5, 1.0]);
    // Cosine 0, sine 1: (x, y) becomes (−y, x).
    assert_eq!(floats_at(&run, 192, 2), [-2.0, 1.0]);
    // 63.5 to even: 64; 31.75: 32.
    assert_eq!(run.scratchpad()[224..228], [64, 0x81, 32, 0]);
    assert_eq!(floats_at(&run, 256, 1), [2.0 / 127.0]);
}

#[test]
fn products_of_rows_and_rows_by_list() {
    let run = on(
        &[
            (0, floats(&[1.0, 2.0])),
            (32, floats(&[3.0, 4.0, 5.0, 6.0])),
            (64, floats(&[100.0, 200.0])),
            (96, words(&[1, 0, 1])),
            (128, floats(&[0.5, 1.0, 2.0])),
        ],
        "li r1, 2\nv.dot_rows sp[64], sp[0], sp[32], cols=2, b_rows=r1, accumulate\n\
         v.mix_rows sp[160], sp[0], sp[32], cols=2, b_rows=r1\nli r2, 3\n\
         v.gather sp[192], sp[32], sp[96], bound=r1, row_bytes=8, rows=r2\n\
         v.scatter_add sp[256], sp[32], sp[96], sp[128], bound=r1, cols=r1, rows=r1\nhalt",
    );
    assert_eq!(floats_at(&run, 64, 2), [111.0, 217.0]);
    assert_eq!(floats_at(&run, 160, 2), [13.0, 16.0]);
    assert_eq!(floats_at(&run, 192, 6), [5.0, 6.0, 3.0, 4.0, 5.0, 6.0]);
    // Row 1 gets half of (3, 4), row 0 (5, 6).
    assert_eq!(floats_at(&run, 256, 4), [5.0, 6.0, 1.5, 2.0]);
}

#[test]
fn selections() {
    let scores = floats(&[0.4, 0.3, 0.1, 0.2, 0.25, 0.25, 0.25, 0.25]);
    let mask = |text: &str| {
        let set_up = "li r1, 2\nli r2, 2\nli r3, 1\nli r4, 0.25f\nli r5, 0.5f\n";
        let run = on(&[(0, scores.clone())], &format!("{set_up}{text}\nhalt"));
        (run.scratchpad()[64..72].to_vec(), floats_at(&run, 96, 8))
    };
    let (chosen, gates) = mask("r.top_k sp[64], sp[96], sp[0], cols=4, k=r2, rows=r1, norm");
    assert_eq!(chosen, [1, 1, 0, 0, 1, 1, 0, 0]);
    let sum = 0.4f32 + 0.3;
    assert_eq!(gates, [0.4 / sum, 0.3 / sum, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0]);
    let (chosen, gates) = mask("r.threshold sp[64], sp[96], sp[0], cols=4, k=r2, tau=r4, rows=r1");
    assert_eq!(chosen, [1, 1, 0, 0, 1, 1, 0, 0]);
    assert_eq!(gates[..2], [0.4, 0.3]);
    // Best first until half of the mass: 0.4, then 0.3; 0.25, 0.25.
    assert_eq!(
        mask("r.top_p sp[64], sp[96], sp[0], cols=4, k_min=r3, k=r2, p=r5, rows=r1").0,
        [1, 1, 0, 0, 1, 1, 0, 0]
    );
    assert_eq!(
        mask("r.top_p sp[64], sp[96], sp[0], cols=4, k_min=r3, k=r2, p=r4, rows=r1").0,
        [1, 0, 0, 0, 1, 0, 0, 0]
    );
    assert_eq!(mask("r.expert_choice sp[64], sp[96], sp[0], cols=4, cap=r3, rows=r1").0, [1, 1, 0, 0, 0, 0, 1, 1]);
    assert_eq!(
        mask("r.bidirectional sp[64], sp[96], sp[0], cols=4, k=r2, cap=r3, rows=r1").0,
        [1, 1, 0, 0, 0, 0, 0, 0]
    );
}

#[test]
fn the_counting_sort_and_its_values() {
    let run = on(
        &[(0, vec![1, 0, 1, 0, 0, 1]), (32, floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))],
        "li r1, 2\nr.group sp[64], sp[128], sp[0], cols=3, rows=r1\nr.compact sp[160], sp[0], sp[32], cols=3, rows=r1\nhalt",
    );
    assert_eq!(words_at(&run, 64, 16), [0, 0, 1, 0, 1, 1, 0, 0, 2, 1, 2, 0, 3, 3, 0, 0]);
    assert_eq!(words_at(&run, 128, 3), [0, 0, 1]);
    assert_eq!(floats_at(&run, 160, 3), [1.0, 3.0, 6.0]);
    let error = fails(
        "li r1, 1\nli r2, 1\nr.iota sp[0], count=r1, start=r1\nli r3, 0\nr.group sp[64], sp[128], sp[0], cols=1, most=r3, rows=r2\nhalt",
        &ideal(&[]),
    );
    assert!(error.to_string().contains("set elements: wanted at most 0, found 1"), "{error}");
}

#[test]
fn rings_remember_the_latest() {
    let append = |tokens: &[u32], cap: u32| {
        let text: String = tokens.iter().map(|t| format!("li r1, {t}\nr.append sp[0], token=r1, cap=r2\n")).collect();
        format!("li r2, {cap}\n{text}")
    };
    let run = on(&[], &format!("{}halt", append(&[4, 9, 6], 2)));
    assert_eq!(words_at(&run, 0, 4), [3, 6, 9, 0]);
    assert_eq!(words_at(&on(&[], &format!("{}halt", append(&[4], 0))), 0, 2), [0, 0]);
    let admit =
        "li r3, 10\nli r4, 2\nli r5, 1\nr.admit sp[64], sp[128], sp[0], token=r3, window=r4, sinks=r5, cap=r2\nhalt";
    let run = on(&[], &format!("{}{admit}", append(&[4, 9, 6], 2)));
    // Sink 0, ring 6 and 9, window 9 and 10.
    assert_eq!((words_at(&run, 64, 4), words_at(&run, 128, 1)), (vec![0, 6, 9, 10], vec![4]));
}

#[test]
fn faults_say_where_what_wanted_found() {
    let machine = Machine::preset("edge-16").unwrap();
    let cases = [
        (
            "m.preload i8, w[0], k=17, n=1\nhalt",
            "instruction 0 (`m.preload i8, w[0], k=17, n=1`): k: wanted at most 16, found 17",
        ),
        (
            "m.pass sp[0], acc[0], rows=1, k=1\nhalt",
            "instruction 0 (`m.pass sp[0], acc[0], rows=1, k=1`): k: wanted the tile's 0, found 1",
        ),
        (
            "li r1, 262140\nlds r2, sp[r1], max=0\nadd r1, r1, 4\nlds r2, sp[r1], max=0\nhalt",
            "instruction 3 (`lds r2, sp[r1], max=0`): src reads sp: wanted bytes 0 to 262143, found bytes 262144 to 262147",
        ),
        (
            "li r1, -1\nv.copy sp[0], sp[0], cols=r1\nhalt",
            "instruction 1 (`v.copy sp[0], sp[0], cols=r1`): a: wanted 0 to 2^48, found -4",
        ),
        (
            "li r1, 2\nv.copy sp[r1], sp[0], cols=1\nhalt",
            "instruction 1 (`v.copy sp[r1], sp[0], cols=1`): dst: wanted a multiple of 4, found 2",
        ),
        (
            "v.rescale sp[0], acc[0], sp[0], sp[0], cols=17\nhalt",
            "instruction 0 (`v.rescale sp[0], acc[0], sp[0], sp[0], cols=17`): cols: wanted at most 16, found 17",
        ),
        (
            "li r1, 7\nr.iota sp[0], count=r1, start=r1\nlds r2, sp[0], max=6\nhalt",
            "instruction 2 (`lds r2, sp[0], max=6`): word: wanted at most max = 6, found 7",
        ),
        (
            "li r1, 7\nloop r2, count=r1, max=6\nend\nhalt",
            "instruction 1 (`loop r2, count=r1, max=6`): count: wanted at most max = 6, found 7",
        ),
        (
            "v.copy sp[0], sp[0], cols=1\nm.preload i8, w[0], k=1, n=1\nli r1, 1023\nm.pass sp[0], acc[r1], rows=1, k=1\nhalt",
            "instruction 3 (`m.pass sp[0], acc[r1], rows=1, k=1`): acc writes acc: wanted rows 0 to 255, found rows 1023 to 1023",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(fails(text, &machine).to_string(), expected);
    }
}

#[test]
fn without_values_what_cannot_be_known_is_refused() {
    let machine = ideal(&[]);
    let run = |text: &str| {
        Simulator::new(&program(text), &machine, Options::timing_only())
            .and_then(Simulator::run)
            .map(|run| run.report.cycles)
    };
    // A list from DRAM and a count that ROUTE made are known.
    run("li r1, 2\nload sp[0], dram[0], row_bytes=8\nload.rows sp[64], dram[0], sp[0], bound=r1, row_bytes=64, rows=r1\nhalt").unwrap();
    run("li r1, 2\nr.iota sp[0], count=r1\nlds r2, sp[0], max=9\nhalt").unwrap();
    // What the array computed is not.
    let product = "m.preload i8, w[0], k=1, n=1\nm.pass sp[0], acc[0], rows=1, k=1\nv.rescale sp[0], acc[0], sp[64], sp[64], cols=1\n";
    let error = run(&format!("{product}lds r1, sp[0], max=1\nhalt")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "instruction 3 (`lds r1, sp[0], max=1`): the word that it reads: wanted known data, found data that --timing-only did not \
         compute; simulate with values"
    );
    // Nor what was computed from it, through DRAM even; but once it is overwritten.
    let through =
        "v.exp sp[128], sp[0], cols=1\nstore dram[0], sp[128], row_bytes=4\nload sp[192], dram[0], row_bytes=4\n";
    assert!(matches!(run(&format!("{product}{through}lds r1, sp[192], max=1\nhalt")), Err(SimError::Unknown { .. })));
    run(&format!("{product}{through}v.fill sp[192], cols=1, value=r0\nlds r1, sp[192], max=1\nhalt")).unwrap();
    run(&format!("{product}{through}lds r1, sp[224], max=1\nhalt")).unwrap();
}
