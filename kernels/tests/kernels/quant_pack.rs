//! Packing of quantized weights against its definition.

use crate::memory::Random;
use crate::quant::{Codes, Weights, groups, panels};
use lapidary_kernels::{
    QuantLayout, QuantPackError, QuantSource, WeightType, find, kernels, pack_quantized, pack_quantized_swiglu,
};
use std::collections::BTreeSet;

/// Every layout that a kernel has.
fn layouts() -> Vec<QuantLayout> {
    let groups = [0].into_iter().chain(QuantLayout::GROUPS);
    let all = kernels().iter().flat_map(|row| groups.clone().filter_map(|group| row.quant_layout(group)));
    let mut seen = BTreeSet::new();
    all.filter(|l| seen.insert((l.weight(), l.group(), l.nr(), l.kr(), l.code_offset()))).collect()
}

fn packed(w: &Weights, layout: &QuantLayout, n: usize, k: usize) -> Vec<u8> {
    let mut out = vec![0xaa; layout.packed_bytes(n, k)];
    pack_quantized(w.source(layout), k, layout, &mut out).unwrap();
    out
}

#[test]
fn panels_are_the_definition() {
    let layouts = layouts();
    assert!(layouts.len() >= 4);
    let random = &mut Random(1);
    for layout in &layouts {
        for k in [1, 4, 5, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 200, 256, 300] {
            for n in [1, layout.nr() - 1, layout.nr(), layout.nr() + 1, 3 * layout.nr()] {
                let w = Weights::new(random, layout, n, k, Codes::Random);
                assert_eq!(packed(&w, layout, n, k), panels(&w, layout, n, k).concat(), "{layout:?} n={n} k={k}");
            }
        }
    }
}

/// Nothing but codes and scales is stored when sizes are whole tiles.
#[test]
fn sizes_are_codes_and_scales() {
    for layout in layouts() {
        let (n, k) = (4 * layout.nr(), 768);
        let wanted = match layout.weight() {
            WeightType::I8 => n * k + 4 * n,
            _ => n * k / 2 + 2 * n * groups(&layout, k),
        };
        assert_eq!(layout.packed_bytes(n, k), wanted, "{layout:?}");
    }
}

#[test]
fn parts_packed_alone_are_the_whole() {
    let random = &mut Random(2);
    for layout in layouts() {
        let (n, k, split) = (2 * layout.nr() + 3, 70, layout.nr());
        let w = Weights::new(random, &layout, n, k, Codes::Random);
        let scales = split * groups(&layout, k);
        let first = Weights::of(w.codes[..split * k].into(), w.scales[..scales].into());
        let second = Weights::of(w.codes[split * k..].into(), w.scales[scales..].into());
        let parts = [packed(&first, &layout, split, k), packed(&second, &layout, n - split, k)].concat();
        assert_eq!(parts, packed(&w, &layout, n, k), "{layout:?}");
    }
}

#[test]
fn swiglu_alternates_panels() {
    let random = &mut Random(3);
    for layout in layouts() {
        let (n, k) = (layout.nr() + 1, 40);
        let gate = &Weights::new(random, &layout, n, k, Codes::Random);
        let up = &Weights::new(random, &layout, n, k, Codes::Random);
        let mut pair = vec![0; 2 * layout.packed_bytes(n, k)];
        pack_quantized_swiglu(gate.source(&layout), up.source(&layout), k, &layout, &mut pair).unwrap();
        let both = panels(gate, &layout, n, k).into_iter().zip(panels(up, &layout, n, k));
        let wanted: Vec<u8> = both.flat_map(|(gate, up)| [gate, up]).flatten().collect();
        assert_eq!(pair, wanted, "{layout:?}");
    }
}

#[test]
fn wrong_sources_are_errors() {
    let i8_layout = find("gemm_i8_i8_4x8_scalar").unwrap().quant_layout(0).unwrap();
    let i4_layout = find("gemm_i8_i4_4x8_scalar").unwrap().quant_layout(32).unwrap();
    let row = |name: &str| find(name).unwrap();
    assert!(row("gemm_i8_i8_4x8_scalar").quant_layout(32).is_none());
    assert!(row("gemm_i8_i4_4x8_scalar").quant_layout(0).is_none());
    assert!(row("gemm_i8_i4_4x8_scalar").quant_layout(48).is_none());
    assert!(row("gemm_f32_f32_4x8_scalar").quant_layout(0).is_none());

    let out = &mut [0; 1024];
    let codes = &[0i8, 1, -127, 127, 5, 6];
    let good = QuantSource::I8 { codes, scales: &[1.0; 2] };
    let bytes = i8_layout.packed_bytes(2, 3);
    assert_eq!(pack_quantized(good, 3, &i8_layout, &mut out[..bytes]), Ok(()));
    fn error(source: QuantSource<'_>, k: usize, layout: &QuantLayout, bytes: usize) -> QuantPackError {
        pack_quantized(source, k, layout, &mut [0; 1024][..bytes]).unwrap_err()
    }
    assert_eq!(error(good, 0, &i8_layout, bytes), QuantPackError::Inputs { k: 0 });
    let k = QuantLayout::MOST_INPUTS + 1;
    assert_eq!(error(good, k, &i8_layout, bytes), QuantPackError::Inputs { k });
    assert_eq!(error(good, 4, &i8_layout, bytes), QuantPackError::Ragged { len: 6, k: 4 });
    assert_eq!(error(good, 2, &i8_layout, bytes), QuantPackError::Scales { found: 2, wanted: 3 });
    let found = bytes - 1;
    assert_eq!(error(good, 3, &i8_layout, found), QuantPackError::Destination { found, wanted: bytes });
    let wanted = WeightType::I4;
    assert_eq!(error(good, 3, &i4_layout, bytes), QuantPackError::Type { found: WeightType::I8, wanted });
    let bad = QuantSource::I8 { codes: &[1, 2, 3, 4, -128, 6], scales: &[1.0; 2] };
    let code = QuantPackError::Code { code: -128, output: 1, input: 1, least: -127, most: 127 };
    assert_eq!(error(bad, 3, &i8_layout, bytes), code);
    for code in [8, -9] {
        let codes = [-8, 7, 0, 0, 0, code];
        let found =
            error(QuantSource::I4 { codes: &codes, scales: &[0; 2] }, 3, &i4_layout, i4_layout.packed_bytes(2, 3));
        assert_eq!(found, QuantPackError::Code { code, output: 1, input: 2, least: -8, most: 7 });
    }
    let up = QuantSource::I8 { codes: &codes[..3], scales: &[1.0] };
    assert_eq!(pack_quantized_swiglu(good, up, 3, &i8_layout, out), Err(QuantPackError::Pair { gate: 6, up: 3 }));
}
