//! The numbers of a graph's weights, row range by row range.

use half::{bf16, f16};

use super::{DType, Graph, Storage, Weight, WeightDef, WeightId, WeightSource, limits};
use crate::quant::QuantizedRows;

/// Why a weight could not be read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WeightError {
    /// The source has no such tensor, or not of this shape.
    #[error("weight @{name}: {message}")]
    Source {
        /// The weight.
        name: String,
        /// The source's message.
        message: String,
    },
    /// Rows that the weight does not have, or a part of a row.
    #[error(
        "weight @{name}: rows: wanted whole rows of {cols} within 0..{rows}, found {elems} elements from row {first_row}"
    )]
    Range {
        /// The weight.
        name: String,
        /// Its rows.
        rows: u64,
        /// Its columns.
        cols: u64,
        /// Asked for.
        first_row: u64,
        /// Asked for.
        elems: u64,
    },
    /// A number that integers cannot stand for.
    #[error("weight @{name}: row {row}: wanted finite numbers to store as {storage}, found {found}")]
    NotFinite {
        /// The weight.
        name: String,
        /// How it is stored.
        storage: Storage,
        /// The row.
        row: u64,
        /// Infinity or NaN.
        found: f32,
    },
    /// Codes of a weight that is stored in floats.
    #[error("weight @{name}: storage: wanted int8 or int4, found {storage}")]
    NoCodes {
        /// The weight.
        name: String,
        /// How it is stored.
        storage: Storage,
    },
    /// More derivations than the verifier allows.
    #[error("weight @{name}: definition: wanted at most {} derivations deep, found more", limits::MAX_WEIGHT_DEPTH)]
    Depth {
        /// The weight.
        name: String,
    },
}

/// Resolves weights to numbers. Reads nothing ahead and keeps nothing; may be shared between threads.
#[derive(Clone, Copy)]
pub struct WeightReader<'a> {
    graph: &'a Graph,
    source: &'a dyn WeightSource,
}

impl<'a> WeightReader<'a> {
    /// A reader of a verified graph's weights.
    pub fn new(graph: &'a Graph, source: &'a dyn WeightSource) -> Self {
        Self { graph, source }
    }

    /// Writes rows `first_row ..` as they are defined, before any rounding of the storage, into `out`, which is a whole number of rows. A vector is one row.
    pub fn read_rows(&self, weight: WeightId, first_row: u64, out: &mut [f32]) -> Result<(), WeightError> {
        self.read_level(weight, first_row, out, 0)
    }

    /// Codes and scales of `rows` rows from `first_row` of a weight that is stored in integers. They depend on nothing but
    /// each row's own numbers, so any run of rows gives the same.
    ///
    /// # Errors
    /// Also when the weight is stored in floats, or a number is not finite.
    pub fn read_codes(&self, weight: WeightId, first_row: u64, rows: u64) -> Result<QuantizedRows, WeightError> {
        let w = self.graph.weight(weight);
        if !w.storage.is_integer() {
            return Err(WeightError::NoCodes { name: w.name.clone(), storage: w.storage });
        }
        let (elems, cols) = (rows.checked_mul(w.cols()), w.cols() as usize);
        let Some(elems) = elems.filter(|_| first_row.checked_add(rows).is_some_and(|end| end <= w.rows())) else {
            let elems = rows.saturating_mul(w.cols());
            return Err(WeightError::Range { name: w.name.clone(), rows: w.rows(), cols: w.cols(), first_row, elems });
        };
        let mut x = vec![0.0; elems as usize];
        self.read_rows(weight, first_row, &mut x)?;
        if let Some(i) = x.iter().position(|x| !x.is_finite()) {
            let row = first_row + (i / cols) as u64;
            return Err(WeightError::NotFinite { name: w.name.clone(), storage: w.storage, row, found: x[i] });
        }
        Ok(QuantizedRows::quantize(w.storage, &x, cols, None).expect("integer storage has codes"))
    }

    /// All codes and scales.
    pub fn read_all_codes(&self, weight: WeightId) -> Result<QuantizedRows, WeightError> {
        self.read_codes(weight, 0, self.graph.weight(weight).rows())
    }

    /// Like [`Self::read_rows`], rounded as the weight is stored: the numbers that kernels read, or that codes and scales
    /// stand for.
    pub fn read_stored_rows(&self, weight: WeightId, first_row: u64, out: &mut [f32]) -> Result<(), WeightError> {
        let w = self.graph.weight(weight);
        match w.storage {
            Storage::F32 => self.read_rows(weight, first_row, out),
            Storage::F16 => {
                self.read_rows(weight, first_row, out)?;
                out.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
                Ok(())
            }
            Storage::Bf16 => {
                self.read_rows(weight, first_row, out)?;
                out.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
                Ok(())
            }
            Storage::Int8 | Storage::Int4(_) => {
                let rows = self.check_range(w, first_row, out.len(), 0)?;
                self.read_codes(weight, first_row, rows)?.dequantize(out);
                Ok(())
            }
        }
    }

    /// All elements, rounded as the weight is stored.
    pub fn read_all_stored(&self, weight: WeightId) -> Result<Vec<f32>, WeightError> {
        let mut out = vec![0.0; self.graph.weight(weight).elems() as usize];
        self.read_stored_rows(weight, 0, &mut out)?;
        Ok(out)
    }

    /// All elements.
    pub fn read_all(&self, weight: WeightId) -> Result<Vec<f32>, WeightError> {
        let mut out = vec![0.0; self.graph.weight(weight).elems() as usize];
        self.read_rows(weight, 0, &mut out)?;
        Ok(out)
    }

    fn read_level(&self, id: WeightId, first_row: u64, out: &mut [f32], depth: u32) -> Result<(), WeightError> {
        let weight = self.graph.weight(id);
        let rows = self.check_range(weight, first_row, out.len(), depth)?;
        match &weight.def {
            WeightDef::Stored => {
                self.source.read_rows(&weight.name, first_row, out).map_err(|m| source_error(weight, m))
            }
            WeightDef::Splat(x) => {
                out.fill(*x);
                Ok(())
            }
            WeightDef::Random { seed, std } => {
                fill_random(*seed, *std, first_row * weight.cols(), out);
                Ok(())
            }
            WeightDef::Concat(parts) => self.each_part(parts, first_row, rows, |part, first, at| {
                let cols = weight.cols() as usize;
                let (begin, end) = (at.start as usize * cols, at.end as usize * cols);
                self.read_level(part, first, &mut out[begin..end], depth + 1)
            }),
            WeightDef::ScaleColumns { base, columns } => {
                self.read_level(*base, first_row, out, depth + 1)?;
                let mut factors = vec![0.0; weight.cols() as usize];
                self.read_level(*columns, 0, &mut factors, depth + 1)?;
                for row in out.chunks_exact_mut(factors.len()) {
                    row.iter_mut().zip(&factors).for_each(|(x, f)| *x *= f);
                }
                Ok(())
            }
            WeightDef::Scale { base, factor } => {
                self.read_level(*base, first_row, out, depth + 1)?;
                out.iter_mut().for_each(|x| *x *= factor);
                Ok(())
            }
        }
    }

    /// Writes the bits of rows `first_row ..` when they are stored as F16 and pass through unchanged. `false`: they are
    /// not, and `out` holds nothing useful.
    pub fn read_f16_bits(&self, weight: WeightId, first_row: u64, out: &mut [u16]) -> Result<bool, WeightError> {
        match self.is_stored_f16(weight, 0) {
            true => self.read_bits_level(weight, first_row, out, 0).map(|()| true),
            false => Ok(false),
        }
    }

    fn is_stored_f16(&self, id: WeightId, depth: u32) -> bool {
        let weight = self.graph.weight(id);
        match &weight.def {
            WeightDef::Stored => self.source.stored_dtype(&weight.name) == Some(DType::F16),
            WeightDef::Concat(parts) => {
                depth <= limits::MAX_WEIGHT_DEPTH && parts.iter().all(|p| self.is_stored_f16(*p, depth + 1))
            }
            WeightDef::Splat(_)
            | WeightDef::Random { .. }
            | WeightDef::ScaleColumns { .. }
            | WeightDef::Scale { .. } => false,
        }
    }

    fn read_bits_level(&self, id: WeightId, first_row: u64, out: &mut [u16], depth: u32) -> Result<(), WeightError> {
        let weight = self.graph.weight(id);
        let rows = self.check_range(weight, first_row, out.len(), depth)?;
        match &weight.def {
            WeightDef::Concat(parts) => self.each_part(parts, first_row, rows, |part, first, at| {
                let cols = weight.cols() as usize;
                let (begin, end) = (at.start as usize * cols, at.end as usize * cols);
                self.read_bits_level(part, first, &mut out[begin..end], depth + 1)
            }),
            WeightDef::Stored
            | WeightDef::Splat(_)
            | WeightDef::Random { .. }
            | WeightDef::ScaleColumns { .. }
            | WeightDef::Scale { .. } => match self.source.read_f16_bits(&weight.name, first_row, out) {
                Ok(true) => Ok(()),
                Ok(false) => Err(source_error(weight, "element type: wanted F16, found another".into())),
                Err(message) => Err(source_error(weight, message)),
            },
        }
    }

    /// Calls `read(part, first row in the part, rows of the result)` for the parts that rows `first_row .. + rows` lie in.
    fn each_part(
        &self,
        parts: &[WeightId],
        first_row: u64,
        rows: u64,
        mut read: impl FnMut(WeightId, u64, std::ops::Range<u64>) -> Result<(), WeightError>,
    ) -> Result<(), WeightError> {
        let mut begin = 0;
        for part in parts {
            let end = begin + self.graph.weight(*part).rows();
            let (from, to) = (first_row.max(begin), (first_row + rows).min(end));
            if from < to {
                read(*part, from - begin, from - first_row..to - first_row)?;
            }
            begin = end;
        }
        Ok(())
    }

    /// How many rows `elems` elements are, if the weight has these rows.
    fn check_range(&self, weight: &Weight, first_row: u64, elems: usize, depth: u32) -> Result<u64, WeightError> {
        if depth > limits::MAX_WEIGHT_DEPTH {
            return Err(WeightError::Depth { name: weight.name.clone() });
        }
        let (rows, cols, elems) = (weight.rows(), weight.cols(), elems as u64);
        let wanted = elems / cols.max(1);
        match first_row.checked_add(wanted) {
            Some(end) if end <= rows && wanted * cols == elems => Ok(wanted),
            Some(_) | None => Err(WeightError::Range { name: weight.name.clone(), rows, cols, first_row, elems }),
        }
    }
}

fn source_error(weight: &Weight, message: String) -> WeightError {
    WeightError::Source { name: weight.name.clone(), message }
}

/// Elements `first ..` of [`WeightDef::Random`]: a counter-based generator (SplitMix64's output function, of the seed
/// and i/2), two elements from each 64 bits, uniform in ±std·√3, rounded to F16's precision.
fn fill_random(seed: u64, std: f32, first: u64, out: &mut [f32]) {
    let base = mix(seed ^ 0x6c61_7069_6461_7279);
    let scale = std * 3f32.sqrt() / (1 << 23) as f32;
    let at = |pair: u64| mix(base.wrapping_add(pair.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let low = |bits: u64| uniform(bits as u32, scale);
    let high = |bits: u64| uniform((bits >> 32) as u32, scale);
    let (head, rest) = out.split_at_mut(((first % 2) as usize).min(out.len()));
    if let [x] = head {
        *x = high(at(first / 2));
    }
    let first_pair = first.div_ceil(2);
    let mut pairs = rest.chunks_exact_mut(2);
    for (i, pair) in (&mut pairs).enumerate() {
        let bits = at(first_pair + i as u64);
        pair[0] = low(bits);
        pair[1] = high(bits);
    }
    let done = rest.len() as u64 / 2;
    if let [x] = rest.chunks_exact_mut(2).into_remainder() {
        *x = low(at(first_pair + done));
    }
}

/// SplitMix64's output function (Steele, Lea, Flood 2014).
#[inline]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// 24 of the bits as a number in ±2^23 around 0, scaled and rounded.
#[inline]
fn uniform(bits: u32, scale: f32) -> f32 {
    round_to_f16(((bits >> 8) as i32 - (1 << 23)) as f32 * scale + 0.5 * scale)
}

/// The nearest number of F16's precision: 11 bits by Dekker's splitting, and multiples of 2^-24 below 2^-14, where F16
/// is subnormal (adding 0.75 leaves no finer bits).
#[inline]
fn round_to_f16(x: f32) -> f32 {
    let c = x * 8193.0;
    let normal = c - (c - x);
    let subnormal = (x + 0.75) - 0.75;
    if x.abs() < 6.103_515_6e-5 { subnormal } else { normal }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn random_elements_do_not_depend_on_the_range_they_are_read_in() {
        let mut whole = vec![0.0; 1001];
        fill_random(42, 0.05, 0, &mut whole);
        for (first, len) in [(0, 1), (1, 1), (1, 2), (3, 500), (500, 501), (1000, 1)] {
            let mut part = vec![0.0; len];
            fill_random(42, 0.05, first as u64, &mut part);
            assert_eq!(part, whole[first..first + len], "{first}..+{len}");
        }
    }

    #[test]
    fn random_elements_have_the_given_deviation_and_fit_f16() {
        for std in [1e-5f32, 0.02, 1.0] {
            let mut x = vec![0.0; 200_000];
            fill_random(7, std, 0, &mut x);
            assert!(x.iter().all(|v| f16::from_f32(*v).to_f32() == *v), "std {std}");
            let n = x.len() as f64;
            let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
            let found = (x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n).sqrt();
            assert!((found / f64::from(std) - 1.0).abs() < 0.01, "std {std}, found {found}");
            assert!(mean.abs() < 0.02 * f64::from(std), "mean {mean}");
        }
    }

    #[test]
    fn streams_of_different_seeds_differ() {
        let (mut a, mut b) = ([0.0; 64], [0.0; 64]);
        fill_random(1, 1.0, 0, &mut a);
        fill_random(2, 1.0, 0, &mut b);
        assert!(a.iter().zip(&b).filter(|(x, y)| x == y).count() < 3);
    }
}
