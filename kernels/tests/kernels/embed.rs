//! Embedding lookup: exact, because widening f16 is, and a code times its scale is one product.

use crate::memory::{Expected, Guarded, Random, UNTOUCHED};
use crate::quant::{Codes, Weights, groups, panels};
use crate::{Kernel, property};
use half::f16;
use lapidary_kernels::args::{EmbedArgs, QEmbedArgs};
use lapidary_kernels::{KernelOp, QuantLayout, WeightType, kernels};
use proptest::prelude::*;

pub fn check(kernels: &[Kernel]) {
    let sizes = (0usize..6, 1usize..20, 1usize..70, 1usize..9, any::<u64>());
    property(sizes, |(rows, vocab, n, nr, seed)| {
        let random = &mut Random(seed);
        let ids = Guarded::from_fn(rows, |_| random.below(vocab) as u32);
        for kernel in kernels {
            let panels = kernel.row.op == KernelOp::EmbedPanels;
            let table: Vec<f32> = (0..vocab * n).map(|_| f16::from_f32(random.unit()).to_f32()).collect();
            let stored = if panels { vocab.div_ceil(nr) * nr * n } else { vocab * n };
            let mut places = vec![0.0; stored];
            for id in 0..vocab {
                for i in 0..n {
                    let at = if panels { (id / nr * n + i) * nr + id % nr } else { id * n + i };
                    places[at] = table[id * n + i];
                }
            }
            let bytes: Vec<u8> = match kernel.row.weight {
                WeightType::F16 => places.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
                _ => places.iter().flat_map(|x| x.to_le_bytes()).collect(),
            };
            let bytes = Guarded::of(&bytes);
            let ldy = n + random.below(3);
            let mut y = Guarded::filled((rows * ldy).saturating_sub(ldy - n), UNTOUCHED);
            let mut expected = Expected::untouched(y.len());
            for r in 0..rows {
                for i in 0..n {
                    expected.set(r * ldy + i, f64::from(table[ids[r] as usize * n + i]), 0.0);
                }
            }
            kernel.run(&EmbedArgs {
                ids: ids.as_ptr(),
                table: bytes.as_ptr(),
                y: y.as_mut_ptr(),
                ldy: ldy as u64,
                rows: rows as u64,
                n: n as u64,
                nr: nr as u64,
            });
            expected.check(&y, || format!("{} vocab={vocab} n={n} nr={nr}", kernel.row.name));
        }
    });
}

/// Each table in the layout of each kernel that could be the head's; for `embed_rows` in its own.
pub fn check_quantized(table_kernels: &[Kernel]) {
    for kernel in table_kernels {
        let rows = kernels().iter().filter(|row| match kernel.row.op {
            KernelOp::EmbedRows => row.name == kernel.row.name,
            _ => row.op == KernelOp::Gemm && row.weight == kernel.row.weight,
        });
        let layouts: Vec<QuantLayout> =
            rows.flat_map(|row| [0, 32, 64, 128].into_iter().filter_map(|group| row.quant_layout(group))).collect();
        assert!(!layouts.is_empty(), "{} has no table to read", kernel.row.name);
        for layout in layouts {
            for (vocab, n) in [(1, 1), (5, 31), (40, 32), (70, 33), (33, 64), (9, 130), (20, 300)] {
                let random = &mut Random((vocab * n) as u64);
                let ids = Guarded::from_fn(6, |i| if i == 0 { vocab as u32 - 1 } else { random.below(vocab) as u32 });
                let w = Weights::new(random, &layout, vocab, n, Codes::Random);
                let table = Guarded::of(&panels(&w, &layout, vocab, n).concat());
                let ldy = n + random.below(3);
                let mut y = Guarded::filled(6 * ldy - (ldy - n), UNTOUCHED);
                let mut expected = Expected::untouched(y.len());
                let scales = groups(&layout, n);
                for (r, &id) in ids.iter().enumerate() {
                    for i in 0..n {
                        let group = if layout.group() == 0 { 0 } else { i / layout.group() };
                        let value = f32::from(w.codes[id as usize * n + i]) * w.scales[id as usize * scales + group];
                        expected.set(r * ldy + i, f64::from(value), 0.0);
                    }
                }
                kernel.run(&QEmbedArgs {
                    ids: ids.as_ptr(),
                    table: table.as_ptr(),
                    y: y.as_mut_ptr(),
                    ldy: ldy as u64,
                    rows: 6,
                    n: n as u64,
                    group: layout.group() as u64,
                    nr: layout.nr() as u64,
                    kr: layout.kr() as u64,
                    code_offset: u64::from(layout.code_offset()),
                });
                expected.check(&y, || format!("{} {layout:?} vocab={vocab} n={n}", kernel.row.name));
            }
        }
    }
}
