//! What the search for scales gains on the weights of gem-mini, against plain max-abs scales. Prints the table of
//! `docs/quantization.md`: `cargo test -p lapidary-compiler --test quantizer_gains -- --nocapture`.

mod support;

use std::collections::BTreeMap;

use half::f16;
use lapidary_compiler::import::{ImportOptions, load_gem};
use lapidary_compiler::ir::{Component, Int4Group, Storage, WeightId, WeightReader};
use lapidary_compiler::quant::QuantizedRows;
use support::models_dir;

/// Squared error of a run of numbers with the scale that maps the largest magnitude to the largest code.
fn max_abs_error(x: &[f32], largest: f32, round: impl Fn(f32) -> f32) -> f64 {
    let amax = x.iter().fold(0f32, |m, x| m.max(x.abs()));
    let scale = round(amax / largest);
    let error = |x: &f32| match scale {
        0.0 => f64::from(*x),
        s => f64::from(*x) - f64::from((x / s).round_ties_even().clamp(-largest, largest)) * f64::from(s),
    };
    x.iter().map(|x| error(x).powi(2)).sum()
}

fn max_abs(storage: Storage, x: &[f32], cols: usize) -> f64 {
    match storage {
        Storage::Int8 => x.chunks(cols).map(|row| max_abs_error(row, 127.0, |s| s)).sum(),
        Storage::Int4(group) => {
            let half = |s| f16::from_f32(s).to_f32();
            let groups = x.chunks(cols).flat_map(|row| row.chunks(group.elems() as usize));
            groups.map(|g| max_abs_error(g, 7.0, half)).sum()
        }
        Storage::F32 | Storage::F16 | Storage::Bf16 => unreachable!("only integers are compared"),
    }
}

fn searched(storage: Storage, x: &[f32], cols: usize) -> f64 {
    let rows = QuantizedRows::quantize(storage, x, cols, None).expect("integers");
    let mut y = vec![0.0; x.len()];
    rows.dequantize(&mut y);
    x.iter().zip(&y).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum()
}

#[test]
fn searched_scales_lose_less_than_max_abs() {
    let model = load_gem(&models_dir().join("gem-mini"), &ImportOptions::default()).expect("the bundled model");
    let reader = WeightReader::new(&model.graph, &*model.source);
    let storages =
        [Storage::Int8, Storage::Int4(Int4Group::G32), Storage::Int4(Int4Group::G64), Storage::Int4(Int4Group::G128)];
    // Component and storage: squares of the weights, error of max-abs scales, error of searched scales.
    let mut sums: BTreeMap<(Component, Storage), [f64; 3]> = BTreeMap::new();
    for (i, weight) in model.graph.weights.iter().enumerate() {
        if weight.shape.len() != 2 || matches!(weight.component, Component::Norm | Component::Routing) {
            continue;
        }
        let (x, cols) = (reader.read_all(WeightId(i as u32)).expect("stored"), weight.cols() as usize);
        let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
        for storage in storages {
            let sum = sums.entry((weight.component, storage)).or_default();
            let found = [squares, max_abs(storage, &x, cols), searched(storage, &x, cols)];
            sum.iter_mut().zip(found).for_each(|(s, x)| *s += x);
        }
    }
    println!("relative squared error: component, storage, max-abs, searched, ratio");
    for ((component, storage), [squares, plain, searched]) in sums {
        let (plain, searched) = (plain / squares, searched / squares);
        println!("{:12} {:8} {plain:.3e} {searched:.3e} {:.3}", component.name(), storage.name(), searched / plain);
        assert!(searched < plain, "{} {storage}", component.name());
    }
}
