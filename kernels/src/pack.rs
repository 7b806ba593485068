//! Packing of float weights into the panels that `gemm_*` and `gemv_*` read.
//!
//! A matrix of `n` outputs (rows) and `k` inputs becomes ⌈n/NR⌉ panels of `[k][NR]`: for each input the weights of NR
//! consecutive outputs, so that one vector load gives the weights that one activation is multiplied by. The last
//! panel is padded with zeros. Everything is little-endian, on every host.
//!
//! Nothing is allocated and nothing needs the whole matrix: any run of outputs that begins at a multiple of NR can be
//! packed alone, into the bytes that begin at `packed_bytes(first_output, …)`.

use crate::table::WeightType;
use half::f16;

/// Why packing refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// The panel width or the number of inputs is 0, or the weights are not floats.
    #[error("cannot pack panels of width {nr} over {k} inputs as {weight:?}")]
    Shape {
        /// Panel width.
        nr: usize,
        /// Inputs.
        k: usize,
        /// Weight type.
        weight: WeightType,
    },
    /// The source is not a whole number of rows.
    #[error("{len} source elements are not whole rows of {k}")]
    Ragged {
        /// Elements of the source.
        len: usize,
        /// Inputs.
        k: usize,
    },
    /// Gate and up differ in size.
    #[error("gate has {gate} elements and up has {up}")]
    Pair {
        /// Elements of the gate.
        gate: usize,
        /// Elements of up.
        up: usize,
    },
    /// The destination has the wrong size.
    #[error("destination has {found} bytes, {wanted} needed")]
    Destination {
        /// Its bytes.
        found: usize,
        /// Bytes that [`packed_bytes`] asks for.
        wanted: usize,
    },
}

/// Row-major weights `[outputs, k]` to pack.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// f32 values; rounded to nearest even when packed as f16.
    F32(&'a [f32]),
    /// IEEE binary16 bits; packed as f16 they pass unchanged, packed as f32 they widen exactly.
    F16(&'a [u16]),
}

impl Source<'_> {
    fn len(self) -> usize {
        match self {
            Source::F32(values) => values.len(),
            Source::F16(bits) => bits.len(),
        }
    }

    fn as_f32(self, i: usize) -> f32 {
        match self {
            Source::F32(values) => values[i],
            Source::F16(bits) => f16::from_bits(bits[i]).to_f32(),
        }
    }

    fn as_f16_bits(self, i: usize) -> u16 {
        match self {
            Source::F32(values) => f16::from_f32(values[i]).to_bits(),
            Source::F16(bits) => bits[i],
        }
    }
}

/// Bytes of one panel.
pub const fn panel_bytes(k: usize, nr: usize, weight: WeightType) -> usize {
    k * nr * weight.bytes()
}

/// Bytes of `n` outputs packed, padding included: also where the panel of output `n` begins, for n a multiple of `nr`.
pub const fn packed_bytes(n: usize, k: usize, nr: usize, weight: WeightType) -> usize {
    n.div_ceil(nr) * panel_bytes(k, nr, weight)
}

/// Checks sizes; returns the number of outputs.
fn outputs(len: usize, k: usize, nr: usize, weight: WeightType) -> Result<usize, PackError> {
    if nr == 0 || k == 0 || weight.bytes() == 0 {
        return Err(PackError::Shape { nr, k, weight });
    }
    if !len.is_multiple_of(k) {
        return Err(PackError::Ragged { len, k });
    }
    Ok(len / k)
}

fn check_destination(found: usize, wanted: usize) -> Result<(), PackError> {
    if found == wanted { Ok(()) } else { Err(PackError::Destination { found, wanted }) }
}

/// Fills one panel with the outputs from `first` on, up to `n` of them.
fn fill_panel(source: Source<'_>, first: usize, n: usize, k: usize, nr: usize, weight: WeightType, panel: &mut [u8]) {
    let bytes = weight.bytes();
    let outputs = nr.min(n - first);
    for (input, row) in panel.chunks_exact_mut(nr * bytes).enumerate() {
        for (j, element) in row.chunks_exact_mut(bytes).enumerate() {
            let at = (first + j) * k + input;
            match weight {
                _ if j >= outputs => element.fill(0),
                WeightType::F32 => element.copy_from_slice(&source.as_f32(at).to_le_bytes()),
                WeightType::F16 => element.copy_from_slice(&source.as_f16_bits(at).to_le_bytes()),
                WeightType::None | WeightType::I8 | WeightType::I4 => {}
            }
        }
    }
}

/// Packs all rows of `source` into `out`, which has exactly [`packed_bytes`] bytes for them.
///
/// ```
/// use lapidary_kernels::{Source, WeightType, pack, packed_bytes};
/// // Three outputs of two inputs, in panels of two: the second panel is half padding.
/// let w = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
/// let mut out = vec![0; packed_bytes(3, 2, 2, WeightType::F32)];
/// pack(Source::F32(&w), 2, 2, WeightType::F32, &mut out).unwrap();
/// let packed: Vec<f32> = out.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
/// assert_eq!(packed, [1.0, 3.0, 2.0, 4.0, 5.0, 0.0, 6.0, 0.0]);
/// ```
pub fn pack(source: Source<'_>, k: usize, nr: usize, weight: WeightType, out: &mut [u8]) -> Result<(), PackError> {
    let n = outputs(source.len(), k, nr, weight)?;
    check_destination(out.len(), packed_bytes(n, k, nr, weight))?;
    for (panel, bytes) in out.chunks_exact_mut(panel_bytes(k, nr, weight)).enumerate() {
        fill_panel(source, panel * nr, n, k, nr, weight, bytes);
    }
    Ok(())
}

/// Packs gate and up projections for `gemm_swiglu` and `gemv_swiglu`: gate panel 0, up panel 0, gate panel 1, …; `out`
/// has exactly twice [`packed_bytes`] of one of them.
pub fn pack_swiglu(
    gate: Source<'_>,
    up: Source<'_>,
    k: usize,
    nr: usize,
    weight: WeightType,
    out: &mut [u8],
) -> Result<(), PackError> {
    let n = outputs(gate.len(), k, nr, weight)?;
    if up.len() != gate.len() {
        return Err(PackError::Pair { gate: gate.len(), up: up.len() });
    }
    check_destination(out.len(), 2 * packed_bytes(n, k, nr, weight))?;
    let bytes = panel_bytes(k, nr, weight);
    for (panel, pair) in out.chunks_exact_mut(2 * bytes).enumerate() {
        let (gate_panel, up_panel) = pair.split_at_mut(bytes);
        fill_panel(gate, panel * nr, n, k, nr, weight, gate_panel);
        fill_panel(up, panel * nr, n, k, nr, weight, up_panel);
    }
    Ok(())
}
