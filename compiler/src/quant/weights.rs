//! Weight rows: which codes and scales stand for a row of floats.
//!
//! Codes and scale of an int8 row, or of an int4 group, are those of least squared error among a fixed list of scales
//! around the one that maps the largest magnitude to the largest code, improved by least squares. Everything depends on
//! the row alone, so merged weights quantize as their parts do, and every operation is one f32 operation in a fixed
//! order, so every machine finds the same.

use half::f16;

use super::SMALLEST_AMAX;
use crate::ir::{Int4Group, Storage};

/// Adding and subtracting this rounds numbers below 2^22 in magnitude to integers, half to even.
const ROUND: f32 = 12_582_912.0;

/// The scales of an int8 row that are tried are `(1 − i/64) · amax / 127`, i from 0 to this.
const INT8_STEPS: u32 = 4;
/// The scales of an int4 group that are tried are `±amax / (10 − i/2)`, so many i from 0: down to 6, up to 10, where what
/// is beyond −8..=7 is cut off.
const INT4_STEPS: u32 = 9;
/// Rounds of least squares after the list.
const REFINEMENTS: u32 = 4;

/// An int8 row: w_i ≈ codes_i · scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Int8Row {
    /// `[k]`, each in −127..=127.
    pub codes: Vec<i8>,
    /// Not negative; 0 for a row of zeros.
    pub scale: f32,
}

/// An int4 row: w_i ≈ codes_i · scales_{i / group}.
#[derive(Clone, Debug, PartialEq)]
pub struct Int4Row {
    /// `[k]`, each in −8..=7.
    pub codes: Vec<i8>,
    /// `[⌈k / group⌉]`. A scale may be negative: codes reach one further down than up.
    pub scales: Vec<f16>,
}

/// Scales of [`QuantizedRows`].
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// int8: `[rows]`.
    PerRow(Vec<f32>),
    /// int4: `[rows, ⌈k / group⌉]`.
    PerGroup {
        /// Inputs that share a scale.
        group: Int4Group,
        /// Row by row.
        scales: Vec<f16>,
    },
}

/// Rows of a quantized weight.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedRows {
    /// Inputs k.
    pub cols: usize,
    /// `[rows, k]`.
    pub codes: Vec<i8>,
    /// One per row, or one per row and group.
    pub scales: Scales,
}

impl QuantizedRows {
    /// Quantizes whole rows of `cols` finite floats. `None` if the storage has no codes. `importance`, `[cols]` and not
    /// negative, weighs the squared error of each column (1 where absent).
    pub fn quantize(storage: Storage, x: &[f32], cols: usize, importance: Option<&[f32]>) -> Option<Self> {
        let mut codes = Vec::with_capacity(x.len());
        let rows = x.chunks_exact(cols);
        let scales = match storage {
            Storage::F32 | Storage::F16 | Storage::Bf16 => return None,
            Storage::Int8 => Scales::PerRow(
                rows.map(|row| {
                    let row = quantize_int8(row, importance);
                    codes.extend(row.codes);
                    row.scale
                })
                .collect(),
            ),
            Storage::Int4(group) => {
                let mut scales = Vec::with_capacity(x.len().div_ceil(group.elems() as usize));
                for row in rows {
                    let row = quantize_int4(row, group, importance);
                    codes.extend(row.codes);
                    scales.extend(row.scales);
                }
                Scales::PerGroup { group, scales }
            }
        };
        Some(Self { cols, codes, scales })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.codes.len() / self.cols
    }

    /// Codes of a row.
    pub fn row_codes(&self, row: usize) -> &[i8] {
        &self.codes[row * self.cols..(row + 1) * self.cols]
    }

    /// `y = x · w_rowᵀ`, see [`int8_dot`](super::int8_dot) and [`int4_dot`](super::int4_dot).
    pub fn dot(&self, row: usize, x: &super::QuantizedRow) -> f32 {
        match &self.scales {
            Scales::PerRow(scales) => super::int8_dot(x, self.row_codes(row), scales[row]),
            Scales::PerGroup { group, scales } => {
                let group = group.elems() as usize;
                let groups = self.cols.div_ceil(group);
                super::int4_dot(x, self.row_codes(row), &scales[row * groups..(row + 1) * groups], group)
            }
        }
    }

    /// The numbers that the rows stand for: f32(q) · f32(s), row by row.
    pub fn dequantize(&self, out: &mut [f32]) {
        let rows = out.chunks_exact_mut(self.cols).zip(self.codes.chunks_exact(self.cols));
        match &self.scales {
            Scales::PerRow(scales) => {
                rows.zip(scales).for_each(|((out, codes), s)| dequantize(codes, *s, out));
            }
            Scales::PerGroup { group, scales } => {
                let group = group.elems() as usize;
                for ((out, codes), scales) in rows.zip(scales.chunks_exact(self.cols.div_ceil(group))) {
                    let groups = out.chunks_mut(group).zip(codes.chunks(group));
                    groups.zip(scales).for_each(|((out, codes), s)| dequantize(codes, s.to_f32(), out));
                }
            }
        }
    }
}

fn dequantize(codes: &[i8], scale: f32, out: &mut [f32]) {
    out.iter_mut().zip(codes).for_each(|(x, q)| *x = f32::from(*q) * scale);
}

/// Codes and scale of a row of finite floats.
pub fn quantize_int8(x: &[f32], importance: Option<&[f32]>) -> Int8Row {
    let amax = max_abs(x);
    if amax < SMALLEST_AMAX {
        return Int8Row { codes: vec![0; x.len()], scale: 0.0 };
    }
    let range = Range { low: -127.0, high: 127.0, importance };
    let steps = (0..=INT8_STEPS).map(|i| amax * ((64 - i) as f32 / 64.0) / 127.0);
    let scale = range.search(x, amax, steps, |s| s);
    Int8Row { codes: range.codes(x, scale), scale }
}

/// Codes and scales of a row of finite floats.
pub fn quantize_int4(x: &[f32], group: Int4Group, importance: Option<&[f32]>) -> Int4Row {
    let group = group.elems() as usize;
    let mut out = Int4Row { codes: Vec::with_capacity(x.len()), scales: Vec::with_capacity(x.len().div_ceil(group)) };
    for (g, x) in x.chunks(group).enumerate() {
        let importance = importance.map(|w| &w[g * group..g * group + x.len()]);
        let range = Range { low: -8.0, high: 7.0, importance };
        let amax = max_abs(x);
        if amax < SMALLEST_AMAX {
            out.scales.push(f16::ZERO);
            out.codes.resize(out.codes.len() + x.len(), 0);
            continue;
        }
        let steps = (0..INT4_STEPS).flat_map(|i| {
            let scale = amax / (10.0 - i as f32 / 2.0);
            [scale, -scale]
        });
        let scale = range.search(x, amax, steps, round_scale);
        out.scales.push(f16::from_f32(scale));
        out.codes.extend(range.codes(x, scale));
    }
    out
}

fn max_abs(x: &[f32]) -> f32 {
    x.iter().fold(0f32, |max, x| max.max(x.abs()))
}

/// The nearest scale that an f16 holds; the largest finite one instead of an infinity.
fn round_scale(scale: f32) -> f32 {
    f16::from_f32(scale).clamp(f16::MIN, f16::MAX).to_f32()
}

/// The codes that a scale may use, and what an error weighs.
struct Range<'a> {
    low: f32,
    high: f32,
    importance: Option<&'a [f32]>,
}

impl Range<'_> {
    /// The scale of least error among `steps`, rounded, and 0; then improved by least squares. The first of equals.
    fn search(&self, x: &[f32], amax: f32, steps: impl Iterator<Item = f32>, round: impl Fn(f32) -> f32) -> f32 {
        let mut best = (self.error(x, amax, 0.0), 0.0);
        for scale in steps.map(&round) {
            let error = self.error(x, amax, scale);
            if error < best.0 {
                best = (error, scale);
            }
        }
        for _ in 0..REFINEMENTS {
            let scale = round(self.least_squares(x, best.1));
            let error = self.error(x, amax, scale);
            if error >= best.0 {
                break;
            }
            best = (error, scale);
        }
        best.1
    }

    /// `round_half_to_even(x / s)` within the range, as x · (1/s).
    fn code(&self, x: f32, inv: f32) -> f32 {
        let q = (x * inv).clamp(self.low, self.high);
        (q + ROUND) - ROUND
    }

    fn codes(&self, x: &[f32], scale: f32) -> Vec<i8> {
        let inv = inverse(scale);
        x.iter().map(|x| self.code(*x, inv) as i8).collect()
    }

    /// `Σ w_i · (x_i/s − q_i)² · (s/amax)²`: the squared error in units of amax², which neither over- nor underflows.
    fn error(&self, x: &[f32], amax: f32, scale: f32) -> f32 {
        let inv = inverse(scale);
        if inv == 0.0 {
            let inv = 1.0 / amax;
            return self.sum(x, |x| (x * inv) * (x * inv));
        }
        let unit = scale / amax;
        let squares = self.sum(x, |x| {
            let e = x * inv - self.code(x, inv);
            e * e
        });
        squares * (unit * unit)
    }

    /// The scale that fits the codes of `scale` best: Σ w·(x/s)·q / Σ w·q² times s.
    fn least_squares(&self, x: &[f32], scale: f32) -> f32 {
        let inv = inverse(scale);
        let fit = self.sum(x, |x| (x * inv) * self.code(x, inv));
        let norm = self.sum(x, |x| {
            let q = self.code(x, inv);
            q * q
        });
        if norm > 0.0 { fit / norm * scale } else { 0.0 }
    }

    #[inline(always)]
    fn sum(&self, x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
        let mut sums = [0f32; 8];
        match self.importance {
            None => {
                let chunks = x.chunks_exact(8);
                let rest = chunks.remainder();
                for x in chunks {
                    for i in 0..8 {
                        sums[i] += term(x[i]);
                    }
                }
                rest.iter().zip(&mut sums).for_each(|(x, s)| *s += term(*x));
            }
            Some(w) => {
                let (chunks, weights) = (x.chunks_exact(8), w.chunks_exact(8));
                let rest = chunks.remainder().iter().zip(weights.remainder());
                for (x, w) in chunks.zip(weights) {
                    for i in 0..8 {
                        sums[i] += w[i] * term(x[i]);
                    }
                }
                rest.zip(&mut sums).for_each(|((x, w), s)| *s += w * term(*x));
            }
        }
        ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]))
    }
}

/// 1/s; 0 for a scale of 0 and for one whose inverse is no f32, whose codes are then 0.
fn inverse(scale: f32) -> f32 {
    let inv = 1.0 / scale;
    if inv.is_finite() { inv } else { 0.0 }
}
