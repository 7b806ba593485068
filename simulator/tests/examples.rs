//! What the example programs compute, worked out by hand.

mod common;

use common::program;
use lapidary_npu_isa::verify::verify;
use lapidary_npu_isa::{Machine, Program, Reg};
use lapidary_simulator::{Options, Run, Simulator};

fn run(name: &str, machine: &Machine) -> (Program, Run) {
    let path = format!("{}/../examples/npu/{name}.s", env!("CARGO_MANIFEST_DIR"));
    let program = program(&std::fs::read_to_string(path).unwrap());
    verify(&program, machine).unwrap();
    let run = Simulator::new(&program, machine, Options::default()).unwrap().run().unwrap();
    (program, run)
}

fn segment(program: &Program, run: &Run, name: &str) -> Vec<u32> {
    let segment = program.segments.iter().find(|segment| segment.name == name).unwrap();
    let bytes = run.read_dram(segment.address, segment.len_bytes as usize);
    bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

#[test]
fn the_product() {
    for preset in ["edge-16", "edge-32", "mobile-64"] {
        let (program, run) = run("matmul_double_buffered", &Machine::preset(preset).unwrap());
        for (i, word) in segment(&program, &run, "y").into_iter().enumerate() {
            let expected = if i % 32 < 16 { 64.0 * 3.0 * 0.25 * 0.5 } else { -2.0 * 64.0 * 3.0 * 0.25 * 0.5 };
            assert_eq!(f32::from_bits(word), expected, "{preset} {i}");
        }
    }
}

#[test]
fn the_counting_sort() {
    let (program, run) = run("top_k_sort", &Machine::preset("edge-16").unwrap());
    assert_eq!(segment(&program, &run, "table"), [0, 0, 5, 0, 1, 5, 6, 0, 2, 11, 0, 0, 3, 11, 5, 0, 4, 16, 0, 0]);
    assert_eq!(segment(&program, &run, "list"), [0, 2, 3, 5, 6, 0, 1, 3, 4, 6, 7, 1, 2, 4, 5, 7]);
    let gates: Vec<f32> = segment(&program, &run, "list_gates").into_iter().map(f32::from_bits).collect();
    // Token 0 took 0.4 and 0.3; token 3 took 0.3 twice.
    assert_eq!((gates[0], gates[5]), (0.4 / (0.4 + 0.3), 0.3 / (0.4f32 + 0.3)));
    assert_eq!((gates[2], gates[7]), (0.5, 0.5));
    assert_eq!(run.registers.get(Reg::new(10).unwrap()), 3);
}

#[test]
fn the_routed_ffn() {
    let (program, run) = run("routed_ffn", &Machine::preset("edge-16").unwrap());
    let y: Vec<f32> = segment(&program, &run, "y").into_iter().map(f32::from_bits).collect();
    // Module 0, all of x being 0.5: codes 127, scale 0.5/127; gate 32·127·1·0.01, up 32·127·2·0.02, each times the scale.
    let f16 = |x: f32| lapidary_simulator::number::f32_of_f16(lapidary_simulator::number::f16_of_f32(x));
    let scale = 0.5f32 / 127.0;
    let gate = (32.0 * 127.0) * f16(0.01) * scale;
    let up = (2.0 * 32.0 * 127.0) * f16(0.02) * scale;
    let hidden = gate / (1.0 + (-gate).exp()) * up;
    let down = (-32.0 * 127.0) * f16(0.03) * (hidden / 127.0);
    // The other modules' bytes are all 0x21: codes 1 and 2 in turn, scales of 0x2121.
    let other_scale = f16(lapidary_simulator::number::f32_of_f16(0x2121));
    let projected = |even: bool| (32.0 * 127.0) * if even { 1.0 } else { 2.0 } * other_scale * scale;
    let hidden_other = |even: bool| projected(even) / (1.0 + (-projected(even)).exp()) * projected(even);
    let largest = hidden_other(false);
    let sum = 16.0 * 127.0 + 16.0 * (hidden_other(true) * 127.0 / largest).round();
    let down_other = |even: bool| sum * if even { 1.0 } else { 2.0 } * other_scale * (largest / 127.0);
    // Token 0: modules 0 and 1, gates 4/7 and 3/7. Token 1: modules 1 and 3, whose weights are the same.
    for j in 0..32 {
        let even = j % 2 == 0;
        let expected = 4.0 / 7.0 * down + 3.0 / 7.0 * down_other(even);
        assert!((y[j] - expected).abs() < 1e-4 * expected.abs().max(1.0), "{j}: {} {expected}", y[j]);
        let expected = down_other(even);
        assert!((y[32 + j] - expected).abs() < 1e-4 * expected.abs().max(1e-3), "{j}: {} {expected}", y[32 + j]);
    }
}
