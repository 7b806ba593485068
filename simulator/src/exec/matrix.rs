//! The array: tiles of weights, and passes of rows through them.
//!
//! Products of codes are at most 2¹⁴ and a tile has at most 256 rows, so a sum is at most 2²² and every partial sum is exact in f32:
//! the inner loop multiplies and adds f32, which every x86-64 and Arm does four and more at a time.

use lapidary_npu_isa::Registers;
use lapidary_npu_isa::choice::Codes;
use lapidary_npu_isa::format::{Pass, ScaledPass, ScaledTile, Tile};

use crate::memory::Memories;
use crate::number::{canonical, f32_of_f16};

/// Columns whose sums are kept in registers.
const BLOCK: usize = 16;
/// 1.5·2²³: added to an integer of at most 22 bits, it leaves that integer in the low bits of the pattern.
const ROUNDER: f32 = 12_582_912.0;

/// The array's weights.
#[derive(Clone, Debug, Default)]
pub(crate) struct ArrayTile {
    /// Inputs.
    pub k: usize,
    /// Outputs.
    pub n: usize,
    /// How they were stored.
    pub is_i4: bool,
    /// By blocks of [`BLOCK`] columns, then by row; columns beyond n are 0. Empty without values.
    weights: Vec<f32>,
    /// One per column; empty: all 1.
    scales: Vec<f32>,
}

impl ArrayTile {
    /// Only its size: without values.
    pub(crate) fn size_only(codes: Codes, k: usize, n: usize) -> ArrayTile {
        ArrayTile { k, n, is_i4: codes == Codes::I4, weights: Vec::new(), scales: Vec::new() }
    }

    fn read(&mut self, memories: &Memories, codes: Codes, at: usize, k: usize, n: usize) {
        (self.k, self.n, self.is_i4) = (k, n, codes == Codes::I4);
        let row_bytes = codes.row_bytes(n as i64) as usize;
        let blocks = n.div_ceil(BLOCK);
        self.weights.clear();
        self.weights.resize(blocks * k * BLOCK, 0.0);
        self.scales.clear();
        if n == 0 {
            return;
        }
        for r in 0..k {
            let row = &memories.weights[at + r * row_bytes..at + (r + 1) * row_bytes];
            for (block, out) in self.weights.chunks_exact_mut(k * BLOCK).enumerate() {
                let out = &mut out[r * BLOCK..(r + 1) * BLOCK];
                let width = BLOCK.min(n - block * BLOCK);
                match codes {
                    Codes::I8 => {
                        for (w, b) in out[..width].iter_mut().zip(&row[block * BLOCK..]) {
                            *w = f32::from(*b as i8);
                        }
                    }
                    Codes::I4 => {
                        for (i, w) in out[..width].iter_mut().enumerate() {
                            let byte = row[block * BLOCK / 2 + i / 2];
                            *w = f32::from(if i % 2 == 0 { (byte << 4) as i8 >> 4 } else { byte as i8 >> 4 });
                        }
                    }
                }
            }
        }
    }

    /// `m.preload`.
    pub(crate) fn preload(&mut self, memories: &Memories, regs: &Registers, f: &Tile) {
        self.read(memories, f.codes, f.tile.value(regs) as usize, f.k.value(regs) as usize, f.n.value(regs) as usize);
    }

    /// `m.preload_scaled`.
    pub(crate) fn preload_scaled(&mut self, memories: &Memories, regs: &Registers, f: &ScaledTile) {
        self.read(memories, f.codes, f.tile.value(regs) as usize, f.k.value(regs) as usize, f.n.value(regs) as usize);
        if self.n == 0 {
            return;
        }
        let at = f.scales.value(regs) as usize;
        let bytes = &memories.weights[at..at + 2 * self.n];
        self.scales.extend(bytes.as_chunks::<2>().0.iter().map(|b| f32_of_f16(u16::from_le_bytes(*b))));
    }

    fn scale(&self, column: usize) -> f32 {
        self.scales.get(column).copied().unwrap_or(1.0)
    }

    /// Σ a·w of one row of inputs, for the columns of one block.
    #[inline]
    fn block_sums(&self, block: usize, inputs: &[f32]) -> [f32; BLOCK] {
        let weights = &self.weights[block * self.k * BLOCK..(block + 1) * self.k * BLOCK];
        let mut sums = [0.0f32; BLOCK];
        for (a, w) in inputs.iter().zip(weights.as_chunks::<BLOCK>().0) {
            for (s, w) in sums.iter_mut().zip(w) {
                *s += a * w;
            }
        }
        sums
    }

    /// Sums of two rows of inputs: twice the work per weight that is loaded.
    #[inline]
    fn block_sums_of_two(&self, block: usize, first: &[f32], second: &[f32]) -> [[f32; BLOCK]; 2] {
        let weights = &self.weights[block * self.k * BLOCK..(block + 1) * self.k * BLOCK];
        let (mut one, mut two) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
        for ((a, b), w) in first.iter().zip(second).zip(weights.as_chunks::<BLOCK>().0) {
            for c in 0..BLOCK {
                one[c] += a * w[c];
                two[c] += b * w[c];
            }
        }
        [one, two]
    }
}

/// Integers of exact sums.
#[inline]
fn integers(sums: &[f32; BLOCK]) -> [i32; BLOCK] {
    sums.map(|s| ((s + ROUNDER).to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32))
}

/// Rows whose sums are computed before any is used: their operands stay in the cache.
const ROWS: usize = 64;

/// Room that passes reuse.
#[derive(Clone, Debug, Default)]
pub(crate) struct PassBuffers {
    inputs: Vec<f32>,
    sums: Vec<i32>,
    before: Vec<u32>,
}

/// Rows of inputs in the scratchpad.
#[derive(Clone, Copy, Debug)]
struct Inputs {
    at: usize,
    stride: usize,
}

impl PassBuffers {
    /// Sums of some rows, `width` for each: `tile.n` rounded up to blocks.
    fn multiply(&mut self, tile: &ArrayTile, scratchpad: &[u8], inputs: Inputs, begin: usize, rows: usize) {
        let (k, width) = (tile.k, width(tile));
        self.inputs.clear();
        // Rows of no inputs have no place.
        for i in if k == 0 { 0..0 } else { begin..begin + rows } {
            let at = inputs.at + i * inputs.stride;
            self.inputs.extend(scratchpad[at..at + k].iter().map(|b| f32::from(*b as i8)));
        }
        self.sums.clear();
        self.sums.resize(rows * width, 0);
        for block in 0..width / BLOCK {
            let mut i = 0;
            while i < rows {
                let first = &self.inputs[i * k..(i + 1) * k];
                let at = i * width + block * BLOCK;
                if i + 1 < rows {
                    let second = &self.inputs[(i + 1) * k..(i + 2) * k];
                    let [one, two] = tile.block_sums_of_two(block, first, second);
                    self.sums[at..at + BLOCK].copy_from_slice(&integers(&one));
                    self.sums[at + width..at + width + BLOCK].copy_from_slice(&integers(&two));
                } else {
                    self.sums[at..at + BLOCK].copy_from_slice(&integers(&tile.block_sums(block, first)));
                }
                i += 2;
            }
        }
    }

    /// `m.pass`, of a tile with its k.
    pub(crate) fn pass(&mut self, memories: &mut Memories, tile: &ArrayTile, cols: usize, regs: &Registers, f: &Pass) {
        let (rows, k) = (f.rows.value(regs) as usize, f.k.value(regs));
        let inputs = Inputs { at: f.a.value(regs) as usize, stride: f.a_stride.value_or(regs, k) as usize };
        let first = f.acc.value(regs) as usize;
        let width = width(tile);
        for begin in (0..rows).step_by(ROWS) {
            let some = ROWS.min(rows - begin);
            self.multiply(tile, &memories.scratchpad, inputs, begin, some);
            let out = &mut memories.accumulators[(first + begin) * cols..(first + begin + some) * cols];
            for (i, out) in out.chunks_exact_mut(cols).enumerate() {
                let sums = &self.sums[i * width..i * width + tile.n];
                if f.accumulate.0 {
                    for (word, p) in out.iter_mut().zip(sums) {
                        *word = word.wrapping_add(*p as u32);
                    }
                } else {
                    for (word, p) in out.iter_mut().zip(sums) {
                        *word = *p as u32;
                    }
                    out[tile.n..].fill(0);
                }
            }
        }
    }

    /// `m.pass_scaled`, of a tile with its k.
    pub(crate) fn pass_scaled(
        &mut self,
        memories: &mut Memories,
        tile: &ArrayTile,
        cols: usize,
        regs: &Registers,
        f: &ScaledPass,
    ) {
        let (rows, k, n) = (f.rows.value(regs) as usize, f.k.value(regs), tile.n);
        let inputs = Inputs { at: f.a.value(regs) as usize, stride: f.a_stride.value_or(regs, k) as usize };
        let (first, width) = (f.acc.value(regs) as usize, width(tile));
        self.before.clear();
        if f.accumulate.0 {
            // All of them are read before any row is written, which may be one of theirs.
            let at = f.sums.value(regs) as usize;
            self.before.extend_from_slice(&memories.accumulators[at * cols..(at + rows) * cols]);
        }
        for begin in (0..rows).step_by(ROWS) {
            let some = ROWS.min(rows - begin);
            self.multiply(tile, &memories.scratchpad, inputs, begin, some);
            let out = &mut memories.accumulators[(first + begin) * cols..(first + begin + some) * cols];
            for (i, out) in out.chunks_exact_mut(cols).enumerate() {
                let sums = &mut self.sums[i * width..i * width + n];
                if f.accumulate.0 {
                    for (p, word) in sums.iter_mut().zip(&self.before[(begin + i) * cols..]) {
                        *p = p.wrapping_add(*word as i32);
                    }
                }
                for (c, (word, p)) in out.iter_mut().zip(sums).enumerate() {
                    let before = if f.append.0 { f32::from_bits(*word) } else { 0.0 };
                    *word = canonical((*p as f32).mul_add(tile.scale(c), before)).to_bits();
                }
                if !f.append.0 {
                    out[n..].fill(0);
                }
            }
        }
    }
}

/// Columns of whole blocks.
fn width(tile: &ArrayTile) -> usize {
    tile.n.next_multiple_of(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_sums_are_exact() {
        // 256 inputs of −128 times −128: 2²², the largest; of −128 times 127 the smallest.
        for (code, sum) in [(-128i8, 1 << 22), (127, -256 * 128 * 127)] {
            let mut tile =
                ArrayTile { k: 256, n: 1, is_i4: false, weights: vec![0.0; 256 * BLOCK], scales: Vec::new() };
            tile.weights.iter_mut().step_by(BLOCK).for_each(|w| *w = f32::from(code));
            let inputs = vec![-128.0f32; 256];
            assert_eq!(integers(&tile.block_sums(0, &inputs))[0], sum);
            let both = tile.block_sums_of_two(0, &inputs, &inputs);
            assert_eq!(both.map(|s| integers(&s)[0]), [sum, sum]);
        }
        assert_eq!(integers(&[0.0; BLOCK]), [0; BLOCK]);
        assert_eq!(integers(&[-1.0; BLOCK]), [-1; BLOCK]);
    }
}
