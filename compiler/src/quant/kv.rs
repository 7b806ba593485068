//! Cached keys and values.

use half::f16;

use super::quantize_row;
use crate::ir::KvStorage;

/// What attention reads back of one token's key (or value) of one head, `[head_dim]`: itself; rounded to the nearest f16;
/// or, for int8, f32(q_i) · scale with codes and scale of [`quantize_row`].
pub fn round_kv_row(storage: KvStorage, row: &mut [f32]) {
    match storage {
        KvStorage::F32 => {}
        KvStorage::F16 => row.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()),
        KvStorage::Int8 => {
            let q = quantize_row(row);
            row.iter_mut().zip(&q.codes).for_each(|(x, code)| *x = f32::from(*code) * q.scale);
        }
    }
}
