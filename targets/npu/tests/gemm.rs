//! Programs of whole multiplications: large ones stay small and pass the verifier, small memories are named.

mod support;

use lapidary_npu_isa::address::{Address, Memory, Sp};
use lapidary_npu_isa::choice::Type;
use lapidary_npu_isa::format::ScalarLoad;
use lapidary_npu_isa::operand::{Bound, Dest};
use lapidary_npu_isa::verify::verify;
use lapidary_npu_isa::{Machine, Op};
use lapidary_target_npu::gemm::{Codes, MINILM_128, gemm_program};
use lapidary_target_npu::matmul::{
    Activations, Destination, Matmul, Output, Rows, Scales, Scratch, WeightFormat, matmul,
};
use lapidary_target_npu::{Builder, LowerError, Place};
use support::executor::Executor;

fn machine(preset: &str, settings: &[(&str, &str)]) -> Machine {
    let mut machine = Machine::preset(preset).expect("a preset");
    machine.set_all(settings.iter().copied()).expect("settings");
    machine
}

#[test]
fn programs_are_small_whatever_they_multiply() {
    for preset in ["edge-16", "edge-32", "mobile-64"] {
        let machine = machine(preset, &[]);
        for (m, n, k) in [
            (1, 1, 1),
            (1, 4096, 4096),
            (128, 1536, 384),
            (512, 384, 1536),
            (4096, 4096, 4096),
            (8191, 1000, 999),
            (100_000, 64, 64),
            (3, 50_000, 17),
            (17, 3, 100_000),
        ] {
            let gemm = gemm_program(&machine, m, n, k).expect("a program");
            let count = gemm.program.instructions.len();
            assert!(count <= 600, "{preset} {m},{n},{k}: {count} instructions");
            verify(&gemm.program, &machine).unwrap_or_else(|e| panic!("{preset} {m},{n},{k}: {e}\n{:#?}", gemm.plan));
        }
    }
}

#[test]
fn what_is_read_more_than_once_is_said() {
    let machine = machine("edge-16", &[]);
    let gemm = gemm_program(&machine, 128, 384, 384).expect("a program");
    assert_eq!(gemm.summary.moved_bytes(), 128 * 384 + 384 * 384 + 4 * 128 * 384);
    assert!(gemm.summary.moved.iter().all(|m| m.why.is_empty()));
    // 512 rows do not fit the accumulators, but a strip of weights stays for all of them.
    let gemm = gemm_program(&machine, 512, 384, 384).expect("a program");
    assert_eq!(gemm.summary.moved_bytes(), gemm.summary.compulsory_bytes());
    // Nor do they fit the scratchpad.
    let gemm = gemm_program(&machine, 512, 384, 1536).expect("a program");
    let weights = gemm.summary.moved.iter().find(|m| m.what == "weights").expect("weights");
    assert!(weights.moved > weights.compulsory && weights.why.starts_with("read for each of "), "{weights:?}");
}

#[test]
fn result_is_read_back() {
    let machine = machine("edge-16", &[]);
    for (m, n, k) in [(5, 40, 70), (33, 16, 1), (300, 20, 50)] {
        let mut gemm = gemm_program(&machine, m, n, k).expect("a program");
        let (activations, weights) = gemm.operands(3);
        gemm.set_operands(&activations, &weights);
        let mut executor = Executor::new(&machine, &gemm.program, gemm.layout.end);
        executor.run(&gemm.program);
        let got = gemm.result(&executor.dram[gemm.layout.output as usize..]);
        assert_eq!(got, gemm.expected(&activations, &weights));
        assert_eq!(executor.loaded + executor.stored, gemm.summary.moved_bytes());
    }
}

#[test]
fn a_memory_that_is_too_small_is_named() {
    let small = machine("edge-16", &[("scratchpad.bytes", "1024"), ("scratchpad.banks", "1")]);
    let error = gemm_program(&small, 8, 8, 8).map(|_| ());
    assert_eq!(error, Ok(()));
    let small = machine("edge-16", &[("dram.bytes", "4096")]);
    let error = gemm_program(&small, 100, 100, 100).map(|_| ()).expect_err("60000 bytes");
    assert_eq!(
        error.to_string(),
        "operands and result of 100×100×100: wanted 60048 bytes of the DRAM at least, found 4096: 55952 too few"
    );
    // A tile fits the weight buffer always; a row of C results and ones need not fit the scratchpad.
    let wide = [("matrix.cols", "256"), ("matrix.rows", "1"), ("scratchpad.bytes", "1024"), ("scratchpad.banks", "1")];
    let error = gemm_program(&machine("edge-16", &wide), 1, 256, 1).map(|_| ()).expect_err("1 KiB of results");
    let LowerError::TooSmall { memory, wanted, found, .. } = error else { panic!("{error}") };
    assert_eq!((memory, found), (Memory::Scratchpad, 1024));
    let enough = wanted.next_multiple_of(32).to_string();
    let wide = [wide[0], wide[1], ("scratchpad.bytes", enough.as_str()), wide[3]];
    assert!(gemm_program(&machine("edge-16", &wide), 1, 256, 1).is_ok());
    assert!(gemm_program(&machine("edge-16", &[]), 0, 1, 1).is_err());
}

#[test]
fn a_list_of_multiplications() {
    let mut lines = MINILM_128.lines();
    assert_eq!(lines.next(), Some("M,N,K"));
    assert_eq!(lines.count(), 180);
    let codes: Vec<i8> = Codes::new(1).take(2000).collect();
    assert!(codes.iter().all(|code| *code >= -127) && codes.contains(&127) && codes.contains(&-127));
}

/// Loops of which the verifier follows some iterations only.
#[test]
fn large_programs_of_every_kind_are_verified() {
    let formats = [WeightFormat::Int8, WeightFormat::Int4 { group: 32 }, WeightFormat::Int4 { group: 128 }];
    let full = std::env::var_os("LAPIDARY_TEST").is_some();
    let machines = [("edge-16", "false"), ("mobile-64", "true"), ("edge-32", "false"), ("edge-16", "true")];
    for (preset, overlap) in &machines[..if full { 4 } else { 1 }] {
        let machine = machine(preset, &[("matrix.weight_overlap", overlap)]);
        let shapes = [(700, 1000, 2999), (2048, 384, 384), (1, 32_000, 512), (64, 77, 16_000), (5000, 100, 65)];
        for (m, n, k) in shapes.into_iter().take(if full { 5 } else { 2 }) {
            for format in formats {
                for at_run_time in [false, true] {
                    let mut b = Builder::new();
                    let rows = match at_run_time {
                        false => Rows::Const(m),
                        true => {
                            let reg = b.reg("M").expect("a register");
                            let src = Sp(Address { base: None, offset: 0 });
                            b.push(Op::Lds(ScalarLoad { rd: Dest(reg), src, max: Bound(m) }));
                            Rows::Register { reg, most: m }
                        }
                    };
                    let int8 = format == WeightFormat::Int8;
                    let dram = |at: u64| Place::at(at << 28);
                    let op = Matmul {
                        rows,
                        k,
                        n,
                        format,
                        weights: dram(4),
                        activations: Activations::Dram { at: dram(0), stride: u64::from(k).next_multiple_of(64) },
                        output: Output {
                            element: if int8 { Type::F16 } else { Type::F32 },
                            tokens: Scales::Dram(dram(2)),
                            channels: if int8 { Scales::Dram(dram(3)) } else { Scales::One },
                            to: Destination::Dram { at: dram(1), stride: 4 * u64::from(n) },
                        },
                        scratch: Scratch { begin: 32, bytes: machine.scratchpad.bytes - 32 },
                    };
                    let emitted = matmul(&mut b, &machine, &op, None).expect("it fits");
                    let plan = emitted.plan.clone();
                    emitted.release(&mut b, None);
                    let program = b.finish().expect("a program");
                    let count = program.instructions.len();
                    assert!(count <= 900, "{preset} {op:?}: {count} instructions");
                    verify(&program, &machine).unwrap_or_else(|e| panic!("{preset} {op:?}: {e}\n{plan:#?}"));
                }
            }
        }
    }
}
