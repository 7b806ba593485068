//! Embedding lookup: exact, because widening f16 is.

use crate::memory::{Expected, Guarded, Random, UNTOUCHED};
use crate::{Kernel, property};
use half::f16;
use lapidary_kernels::{KernelOp, WeightType, args::EmbedArgs};
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
