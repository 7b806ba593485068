//! Packing of quantized weights: codes and scales in one stream.
//!
//! A matrix of `n` outputs (rows) and `k` inputs becomes ⌈n/nr⌉ panels of nr outputs; a panel is one run of bytes.
//! * int8: for every kr inputs, the nr outputs' kr codes each: `[⌈k/kr⌉][nr][kr]` bytes; then `[nr]` f32 scales.
//! * int4: group by group `[nr]` binary16 scales, then for every 2·kr inputs of the group `[nr][kr]` bytes. A byte holds
//!   code + 8 of input i of the first kr in its low half, and of input kr + i in its high half.
//!
//! Int8 codes are stored plus the layout's offset. Padding (outputs up to nr, inputs up to kr or 2·kr) are codes of value
//! 0 and scales of 0. Everything is little-endian, on every host.

use crate::table::WeightType;

/// Why packing of quantized weights refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantPackError {
    /// There are no inputs, or more than sums in i32 have room for.
    #[error("{k} inputs: wanted 1 to {}", QuantLayout::MOST_INPUTS)]
    Inputs {
        /// Inputs.
        k: usize,
    },
    /// The source's codes are not those of the layout.
    #[error("a layout of {wanted:?} weights, a source of {found:?}")]
    Type {
        /// The source's weight type.
        found: WeightType,
        /// The layout's.
        wanted: WeightType,
    },
    /// The source is not a whole number of rows.
    #[error("{len} codes are not whole rows of {k}")]
    Ragged {
        /// Codes of the source.
        len: usize,
        /// Inputs.
        k: usize,
    },
    /// The number of scales does not fit the codes.
    #[error("{found} scales, {wanted} needed")]
    Scales {
        /// Scales of the source.
        found: usize,
        /// Scales for its codes.
        wanted: usize,
    },
    /// A code that the weight type does not have.
    #[error("code {code} of output {output}, input {input}: wanted {least} to {most}")]
    Code {
        /// The code.
        code: i8,
        /// Its row.
        output: usize,
        /// Its column.
        input: usize,
        /// Smallest code.
        least: i8,
        /// Largest code.
        most: i8,
    },
    /// Gate and up differ in size.
    #[error("gate has {gate} codes and up has {up}")]
    Pair {
        /// Codes of the gate.
        gate: usize,
        /// Codes of up.
        up: usize,
    },
    /// The destination has the wrong size.
    #[error("destination has {found} bytes, {wanted} needed")]
    Destination {
        /// Its bytes.
        found: usize,
        /// Bytes that the layout asks for.
        wanted: usize,
    },
}

/// Quantized weights `[outputs, k]`, codes row-major.
#[derive(Clone, Copy, Debug)]
pub enum QuantSource<'a> {
    /// Codes in −127..=127, one scale per output.
    I8 {
        /// `[outputs, k]`.
        codes: &'a [i8],
        /// `[outputs]`.
        scales: &'a [f32],
    },
    /// Codes in −8..=7, one scale per output and group.
    I4 {
        /// `[outputs, k]`.
        codes: &'a [i8],
        /// IEEE binary16 bits `[outputs, ⌈k/group⌉]`.
        scales: &'a [u16],
    },
}

impl<'a> QuantSource<'a> {
    fn codes(self) -> &'a [i8] {
        match self {
            QuantSource::I8 { codes, .. } | QuantSource::I4 { codes, .. } => codes,
        }
    }
}

/// Bytes of a group of `inputs` inputs: its scales and its codes.
pub(crate) const fn group_bytes(inputs: usize, nr: usize, kr: usize) -> usize {
    nr * 2 + inputs.next_multiple_of(2 * kr) / 2 * nr
}

/// Bytes of a panel, int8 if `group` is 0.
pub(crate) const fn panel_bytes(group: usize, nr: usize, kr: usize, k: usize) -> usize {
    if group == 0 {
        return k.next_multiple_of(kr) * nr + 4 * nr;
    }
    let rest = k % group;
    k / group * group_bytes(group, nr, kr) + if rest > 0 { group_bytes(rest, nr, kr) } else { 0 }
}

/// How one kernel wants its quantized weights; had from [`crate::KernelRow::quant_layout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantLayout {
    weight: WeightType,
    group: usize,
    nr: usize,
    kr: usize,
    code_offset: u8,
}

impl QuantLayout {
    /// Most inputs: the sum of as many products of −127..=127 fits i32.
    pub const MOST_INPUTS: usize = 131_072;

    /// Sizes of groups that int4 weights can have.
    pub const GROUPS: [usize; 3] = [32, 64, 128];

    pub(crate) fn new(weight: WeightType, group: usize, nr: usize, kr: usize, code_offset: u8) -> Option<Self> {
        let fits = match weight {
            _ if nr == 0 => false,
            WeightType::I8 => group == 0,
            WeightType::I4 => Self::GROUPS.contains(&group),
            WeightType::None | WeightType::F32 | WeightType::F16 => false,
        };
        let code_offset = if weight == WeightType::I8 { code_offset } else { 0 };
        fits.then_some(Self { weight, group, nr, kr, code_offset })
    }

    /// I8 or I4.
    pub const fn weight(&self) -> WeightType {
        self.weight
    }

    /// Inputs that share a scale; 0 for int8.
    pub const fn group(&self) -> usize {
        self.group
    }

    /// Outputs of a panel.
    pub const fn nr(&self) -> usize {
        self.nr
    }

    /// Inputs of one output that lie together.
    pub const fn kr(&self) -> usize {
        self.kr
    }

    /// What is added to int8 codes, 0 or 128.
    pub const fn code_offset(&self) -> u8 {
        self.code_offset
    }

    /// Bytes of one panel.
    pub const fn panel_bytes(&self, k: usize) -> usize {
        panel_bytes(self.group, self.nr, self.kr, k)
    }

    /// Bytes of `n` outputs packed, padding included: also where the panel of output `n` begins, for n a multiple of
    /// nr.
    pub const fn packed_bytes(&self, n: usize, k: usize) -> usize {
        n.div_ceil(self.nr) * self.panel_bytes(k)
    }

    /// Scales of an output.
    pub const fn scales(&self, k: usize) -> usize {
        if self.group == 0 { 1 } else { k.div_ceil(self.group) }
    }

    /// Where a panel keeps the code of (output, input): the byte, and whether it is the byte's high half.
    pub(crate) const fn code_at(&self, output: usize, input: usize) -> (usize, bool) {
        let (nr, kr) = (self.nr, self.kr);
        if self.group == 0 {
            return ((input / kr * nr + output) * kr + input % kr, false);
        }
        let (group, input) = (input / self.group, input % self.group);
        let codes = group * group_bytes(self.group, nr, kr) + 2 * nr;
        let half = input % (2 * kr);
        (codes + (input / (2 * kr) * nr + output) * kr + half % kr, half >= kr)
    }

    /// Where a panel keeps the scale of an output (and group).
    pub(crate) const fn scale_at(&self, output: usize, group: usize, k: usize) -> usize {
        if self.group == 0 {
            return k.next_multiple_of(self.kr) * self.nr + 4 * output;
        }
        group * group_bytes(self.group, self.nr, self.kr) + 2 * output
    }

    /// Checks a source; returns its outputs.
    fn outputs(&self, source: QuantSource<'_>, k: usize) -> Result<usize, QuantPackError> {
        if k == 0 || k > Self::MOST_INPUTS {
            return Err(QuantPackError::Inputs { k });
        }
        let (codes, found, (least, most), weight) = match source {
            QuantSource::I8 { codes, scales } => (codes, scales.len(), (-127, 127), WeightType::I8),
            QuantSource::I4 { codes, scales } => (codes, scales.len(), (-8, 7), WeightType::I4),
        };
        if weight != self.weight {
            return Err(QuantPackError::Type { found: weight, wanted: self.weight });
        }
        if !codes.len().is_multiple_of(k) {
            return Err(QuantPackError::Ragged { len: codes.len(), k });
        }
        let outputs = codes.len() / k;
        let wanted = outputs * self.scales(k);
        if found != wanted {
            return Err(QuantPackError::Scales { found, wanted });
        }
        match codes.iter().position(|code| !(least..=most).contains(code)) {
            Some(at) => Err(QuantPackError::Code { code: codes[at], output: at / k, input: at % k, least, most }),
            None => Ok(outputs),
        }
    }

    /// Fills one panel with the outputs from `first` on, up to `n` of them.
    fn fill_panel(&self, source: QuantSource<'_>, first: usize, n: usize, k: usize, panel: &mut [u8]) {
        let groups = self.scales(k);
        // Everything becomes padding first: scales of 0, codes of value 0.
        panel.fill(if self.group == 0 { self.code_offset } else { 0x88 });
        for j in 0..self.nr {
            let output = first + j;
            for group in 0..groups {
                let at = self.scale_at(j, group, k);
                match source {
                    _ if output >= n => panel[at..at + if self.group == 0 { 4 } else { 2 }].fill(0),
                    QuantSource::I8 { scales, .. } => {
                        panel[at..at + 4].copy_from_slice(&scales[output].to_le_bytes());
                    }
                    QuantSource::I4 { scales, .. } => {
                        panel[at..at + 2].copy_from_slice(&scales[output * groups + group].to_le_bytes());
                    }
                }
            }
            if output >= n {
                continue;
            }
            for (input, &code) in source.codes()[output * k..][..k].iter().enumerate() {
                let (at, high) = self.code_at(j, input);
                if self.group == 0 {
                    panel[at] = (code as u8).wrapping_add(self.code_offset);
                } else if high {
                    panel[at] = (panel[at] & 0x0f) | ((code + 8) as u8 * 16);
                } else {
                    panel[at] = (panel[at] & 0xf0) | (code + 8) as u8;
                }
            }
        }
    }
}

fn check_destination(found: usize, wanted: usize) -> Result<(), QuantPackError> {
    if found == wanted { Ok(()) } else { Err(QuantPackError::Destination { found, wanted }) }
}

/// Packs all rows of `source` into `out`, which has exactly [`QuantLayout::packed_bytes`] bytes for them. As with
/// [`crate::pack()`], runs of outputs that begin at a multiple of nr can be packed alone.
///
/// ```
/// use lapidary_kernels::{QuantSource, find, pack_quantized};
/// // One output of three inputs, in a panel of 8 whose inputs lie together in fours.
/// let layout = find("gemm_i8_i8_4x8_scalar").unwrap().quant_layout(0).unwrap();
/// let mut out = vec![0; layout.packed_bytes(1, 3)];
/// pack_quantized(QuantSource::I8 { codes: &[1, -2, 3], scales: &[0.5] }, 3, &layout, &mut out).unwrap();
/// assert_eq!(out[..8], [1, 254, 3, 0, 0, 0, 0, 0]);
/// assert_eq!(out[32..40], [0, 0, 0, 0x3f, 0, 0, 0, 0]);
/// ```
pub fn pack_quantized(
    source: QuantSource<'_>,
    k: usize,
    layout: &QuantLayout,
    out: &mut [u8],
) -> Result<(), QuantPackError> {
    let n = layout.outputs(source, k)?;
    check_destination(out.len(), layout.packed_bytes(n, k))?;
    for (panel, bytes) in out.chunks_exact_mut(layout.panel_bytes(k)).enumerate() {
        layout.fill_panel(source, panel * layout.nr, n, k, bytes);
    }
    Ok(())
}

/// Packs gate and up projections for `gemm_swiglu` and `gemv_swiglu`: gate panel 0, up panel 0, gate panel 1, …; `out`
/// has exactly twice [`QuantLayout::packed_bytes`] of one of them.
pub fn pack_quantized_swiglu(
    gate: QuantSource<'_>,
    up: QuantSource<'_>,
    k: usize,
    layout: &QuantLayout,
    out: &mut [u8],
) -> Result<(), QuantPackError> {
    let n = layout.outputs(gate, k)?;
    layout.outputs(up, k)?;
    let (gate_len, up_len) = (gate.codes().len(), up.codes().len());
    if up_len != gate_len {
        return Err(QuantPackError::Pair { gate: gate_len, up: up_len });
    }
    check_destination(out.len(), 2 * layout.packed_bytes(n, k))?;
    let bytes = layout.panel_bytes(k);
    for (panel, pair) in out.chunks_exact_mut(2 * bytes).enumerate() {
        let (gate_panel, up_panel) = pair.split_at_mut(bytes);
        layout.fill_panel(gate, panel * layout.nr, n, k, gate_panel);
        layout.fill_panel(up, panel * layout.nr, n, k, up_panel);
    }
    Ok(())
}
