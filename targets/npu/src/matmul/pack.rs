//! Weights in the order in which the array takes them.

use half::f16;

use super::tiling::{Tiling, WeightFormat};

/// Packs weights: `code(k, n)` is the code of input k and output n, `scale(g, n)` the scale of group g of output n (int4 only).
/// [`Tiling`] says what lies where.
pub fn pack(tiling: &Tiling, code: impl Fn(u32, u32) -> i8, scale: impl Fn(u32, u32) -> f16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(tiling.packed_bytes() as usize);
    for strip in 0..tiling.strips {
        bytes.resize((u64::from(strip) * tiling.strip_stride()) as usize, 0);
        let first = strip * tiling.array_cols;
        let cols = first..first + tiling.cols_of(strip);
        for unit in 0..tiling.units {
            match tiling.format {
                WeightFormat::Int8 => (),
                WeightFormat::Int4 { .. } => bytes.extend(cols.clone().flat_map(|n| scale(unit, n).to_le_bytes())),
            }
            let begin = unit * tiling.unit_rows;
            for k in begin..begin + tiling.rows_of(unit) {
                match tiling.format {
                    WeightFormat::Int8 => bytes.extend(cols.clone().map(|n| code(k, n) as u8)),
                    WeightFormat::Int4 { .. } => bytes.extend(cols.clone().step_by(2).map(|n| {
                        let high = if n + 1 < cols.end { code(k, n + 1) } else { 0 };
                        (code(k, n) as u8 & 15) | (high as u8 & 15) << 4
                    })),
                }
            }
        }
    }
    bytes
}
