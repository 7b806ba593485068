//! Packing against its definition, element by element.

use crate::memory::Random;
use crate::property;
use half::f16;
use lapidary_kernels::{PackError, Source, WeightType, pack, pack_swiglu, packed_bytes, panel_bytes};
use proptest::prelude::*;

/// Element (output, input) of packed panels.
fn element(packed: &[u8], k: usize, nr: usize, weight: WeightType, output: usize, input: usize) -> u32 {
    let at = ((output / nr * k + input) * nr + output % nr) * weight.bytes();
    let bytes = &packed[at..at + weight.bytes()];
    match weight {
        WeightType::F16 => u32::from(u16::from_le_bytes(bytes.try_into().unwrap())),
        _ => u32::from_le_bytes(bytes.try_into().unwrap()),
    }
}

/// binary16 nearest to x, ties to even, by search: independent of the conversion under test.
fn nearest_f16(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) as u16 & 0x8000;
    let size = f64::from(x.abs());
    // Finite binary16 values ascend with their bits; overflow begins half a step above the largest.
    let value = |bits: u16| f16::from_bits(bits).to_f64();
    let above = (0..0x7c00u16).find(|&bits| value(bits) >= size).unwrap_or(0x7c00);
    if above == 0 {
        return sign;
    }
    let step_up = if above == 0x7c00 { 65536.0 } else { value(above) };
    let middle = (value(above - 1) + step_up) / 2.0;
    let below = above - 1;
    sign | if size < middle || size == middle && below % 2 == 0 { below } else { above }
}

#[test]
fn panels_are_the_definition() {
    property((1usize..40, 1usize..20, 1usize..34, any::<u64>()), |(n, k, nr, seed)| {
        let mut random = Random(seed);
        let w: Vec<f32> = (0..n * k).map(|_| random.unit()).collect();
        let bits: Vec<u16> = (0..n * k).map(|_| random.bits() as u16).collect();
        for weight in [WeightType::F32, WeightType::F16] {
            for source in [Source::F32(&w), Source::F16(&bits)] {
                let mut out = vec![0xaa; packed_bytes(n, k, nr, weight)];
                pack(source, k, nr, weight, &mut out).unwrap();
                for output in 0..n.next_multiple_of(nr) {
                    for input in 0..k {
                        let found = element(&out, k, nr, weight, output, input);
                        let at = output * k + input;
                        let wanted = match (source, weight) {
                            _ if output >= n => 0,
                            (Source::F32(w), WeightType::F16) => u32::from(nearest_f16(w[at])),
                            (Source::F32(w), _) => w[at].to_bits(),
                            (Source::F16(bits), WeightType::F16) => u32::from(bits[at]),
                            (Source::F16(bits), _) => {
                                let value = f16::from_bits(bits[at]);
                                if value.is_nan() {
                                    assert!(f32::from_bits(found).is_nan());
                                    continue;
                                }
                                value.to_f32().to_bits()
                            }
                        };
                        assert_eq!(found, wanted, "output {output} input {input} n={n} k={k} nr={nr}");
                    }
                }
            }
        }
    });
}

#[test]
fn parts_packed_alone_are_the_whole() {
    let (n, k, nr) = (21, 5, 8);
    let w: Vec<f32> = (0..n * k).map(|i| i as f32).collect();
    for weight in [WeightType::F32, WeightType::F16] {
        let mut whole = vec![0; packed_bytes(n, k, nr, weight)];
        pack(Source::F32(&w), k, nr, weight, &mut whole).unwrap();
        for split in [8, 16] {
            let mut first = vec![0; packed_bytes(split, k, nr, weight)];
            let mut second = vec![0; packed_bytes(n - split, k, nr, weight)];
            pack(Source::F32(&w[..split * k]), k, nr, weight, &mut first).unwrap();
            pack(Source::F32(&w[split * k..]), k, nr, weight, &mut second).unwrap();
            assert_eq!([first, second].concat(), whole);
        }
    }
}

#[test]
fn swiglu_alternates_panels() {
    let (n, k, nr, weight) = (5, 3, 2, WeightType::F32);
    let gate: Vec<f32> = (0..n * k).map(|i| i as f32).collect();
    let up: Vec<f32> = gate.iter().map(|x| -x).collect();
    let mut pair = vec![0; 2 * packed_bytes(n, k, nr, weight)];
    pack_swiglu(Source::F32(&gate), Source::F32(&up), k, nr, weight, &mut pair).unwrap();
    let alone = |w: &[f32]| {
        let mut out = vec![0; packed_bytes(n, k, nr, weight)];
        pack(Source::F32(w), k, nr, weight, &mut out).unwrap();
        out
    };
    let (gate, up) = (alone(&gate), alone(&up));
    let bytes = panel_bytes(k, nr, weight);
    for (i, panel) in pair.chunks(bytes).enumerate() {
        let source = if i % 2 == 0 { &gate } else { &up };
        assert_eq!(panel, &source[i / 2 * bytes..][..bytes], "panel {i}");
    }
}

#[test]
fn rounding_is_to_nearest_even() {
    let w = [
        1.0 + 1.0 / 2048.0,          // half way between two values: to the even one below
        1.0 + 3.0 / 2048.0,          // half way: to the even one above
        1.0 + 1.0 / 2048.0 + 1.0e-6, // just above half way
        65519.0,                     // rounds to the largest value
        65520.0,                     // half way to the next: infinity
        2.0f32.powi(-25),            // half the smallest: to 0
        2.0f32.powi(-25) * 1.0001,   // more: the smallest
        -2.0f32.powi(-24),           // the smallest, negative
        -0.0,
    ];
    let wanted = [0x3c00u16, 0x3c02, 0x3c01, 0x7bff, 0x7c00, 0x0000, 0x0001, 0x8001, 0x8000];
    let mut out = vec![0; 2 * w.len()];
    pack(Source::F32(&w), w.len(), 1, WeightType::F16, &mut out).unwrap();
    let found: Vec<u16> = out.chunks(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    assert_eq!(found, wanted);
}

#[test]
fn wrong_sizes_are_errors() {
    let w = [0.0; 6];
    let mut out = [0; 64];
    let source = Source::F32(&w);
    let weight = WeightType::F32;
    assert_eq!(pack(source, 0, 8, weight, &mut out), Err(PackError::Shape { nr: 8, k: 0, weight }));
    assert_eq!(pack(source, 2, 0, weight, &mut out), Err(PackError::Shape { nr: 0, k: 2, weight }));
    let none = WeightType::None;
    assert_eq!(pack(source, 2, 8, none, &mut out), Err(PackError::Shape { nr: 8, k: 2, weight: none }));
    assert_eq!(pack(source, 4, 8, weight, &mut out), Err(PackError::Ragged { len: 6, k: 4 }));
    assert_eq!(pack(source, 2, 8, weight, &mut out[..63]), Err(PackError::Destination { found: 63, wanted: 64 }));
    let up = Source::F32(&w[..4]);
    assert_eq!(pack_swiglu(source, up, 2, 8, weight, &mut out), Err(PackError::Pair { gate: 6, up: 4 }));
}
