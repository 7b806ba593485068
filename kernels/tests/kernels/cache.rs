//! How a KV cache stores rows, by the definition.

use crate::quant::quantize;
use half::f16;
use lapidary_kernels::WeightType;

/// Bytes of the element that strides count.
pub fn element_bytes(cache: WeightType) -> usize {
    match cache {
        WeightType::None | WeightType::F32 => 4,
        WeightType::F16 => 2,
        WeightType::I8 | WeightType::I4 => 1,
    }
}

/// Elements of a row of `n` values.
pub fn row_elements(cache: WeightType, n: usize) -> usize {
    if cache == WeightType::I8 { n.next_multiple_of(4) + 4 } else { n }
}

/// Bytes of a row, and the values that are read from them.
pub fn store(cache: WeightType, x: &[f32]) -> (Vec<u8>, Vec<f64>) {
    match cache {
        WeightType::F16 => {
            let halves: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
            let bytes = halves.iter().flat_map(|x| x.to_le_bytes()).collect();
            (bytes, halves.iter().map(|x| x.to_f64()).collect())
        }
        WeightType::I8 => {
            let row = quantize(x);
            let mut bytes: Vec<u8> = row.codes.iter().map(|&q| q as u8).collect();
            bytes.resize(x.len().next_multiple_of(4), 0);
            bytes.extend(row.scale.to_le_bytes());
            (bytes, row.codes.iter().map(|&q| f64::from(q) * f64::from(row.scale)).collect())
        }
        WeightType::None | WeightType::F32 | WeightType::I4 => {
            (x.iter().flat_map(|x| x.to_le_bytes()).collect(), x.iter().map(|&x| f64::from(x)).collect())
        }
    }
}
