//! DMA: boxes, rows by list, rows that are added to. Lists are read as the rows are moved.

use lapidary_npu_isa::Registers;
use lapidary_npu_isa::address::OnChip;
use lapidary_npu_isa::format::{AddIndexed, LoadBox, LoadIndexed, StoreBox, StoreIndexed};
use lapidary_npu_isa::operand::Maybe;

use crate::error::{Stop, Wrong};
use crate::memory::{Memories, word};
use crate::number::canonical;

/// Room that transfers reuse.
#[derive(Clone, Debug, Default)]
pub(crate) struct DmaBuffers {
    row: Vec<u8>,
    wide: Vec<u8>,
}

/// Rows and planes of one side.
#[derive(Clone, Copy, Debug)]
struct Strides {
    base: u64,
    row: u64,
    plane: u64,
}

impl Strides {
    fn new(regs: &Registers, base: i64, row_bytes: i64, rows: u64, stride: Maybe, plane: Maybe) -> Strides {
        let row = stride.value_or(regs, row_bytes) as u64;
        let dense = rows.saturating_mul(row).min(i64::MAX as u64) as i64;
        Strides { base: base as u64, row, plane: plane.value_or(regs, dense) as u64 }
    }

    fn at(&self, plane: u64, row: u64) -> u64 {
        self.base + plane * self.plane + row * self.row
    }
}

/// The number behind an entry of a list, which has to be below the bound.
pub(crate) fn index(scratchpad: &[u8], list: u64, i: u64, bound: i64) -> Result<u32, Wrong> {
    let found = word(scratchpad, list + 4 * i);
    match i64::from(found) < bound {
        true => Ok(found),
        false => Err(Wrong::new(format!("index[{i}]"), format!("below bound = {bound}"), found)),
    }
}

impl DmaBuffers {
    /// Moves the bytes in `row` to `at`, as they are or unpacked.
    fn put(&mut self, memories: &mut Memories, dst: OnChip, at: u64, unpack: bool) {
        let bytes = if unpack {
            self.wide.clear();
            self.wide.extend(self.row.iter().flat_map(|b| [((b << 4) as i8 >> 4) as u8, (*b as i8 >> 4) as u8]));
            &self.wide
        } else {
            &self.row
        };
        let memory = match dst {
            OnChip::Scratchpad(_) => &mut memories.scratchpad,
            OnChip::Weights(_) => &mut memories.weights,
        };
        memory[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    /// `load`.
    pub(crate) fn load(&mut self, memories: &mut Memories, regs: &Registers, f: &LoadBox) {
        let (rows, planes) = (f.rows.value_or(regs, 1) as u64, f.planes.value_or(regs, 1) as u64);
        let bytes = f.row_bytes.value(regs);
        let wide = if f.unpack.0 { 2 * bytes } else { bytes };
        let src = Strides::new(regs, f.src.value(regs), bytes, rows, f.src_stride, f.src_plane);
        let dst = Strides::new(regs, f.dst.value(regs), wide, rows, f.dst_stride, f.dst_plane);
        self.row.resize(bytes as usize, 0);
        for p in 0..planes {
            for r in 0..rows {
                memories.dram.read(src.at(p, r), &mut self.row);
                self.put(memories, f.dst, dst.at(p, r), f.unpack.0);
            }
        }
    }

    /// `load.rows`. Gives the list.
    pub(crate) fn load_rows(
        &mut self,
        memories: &mut Memories,
        regs: &Registers,
        f: &LoadIndexed,
    ) -> Result<Vec<u32>, Wrong> {
        let (rows, bytes) = (f.rows.value_or(regs, 1) as u64, f.row_bytes.value(regs));
        let wide = if f.unpack.0 { 2 * bytes } else { bytes };
        let src = Strides::new(regs, f.src.value(regs), bytes, 1, f.src_stride, Maybe(None));
        let dst = Strides::new(regs, f.dst.value(regs), wide, 1, f.dst_stride, Maybe(None));
        let (list, bound) = (f.index.value(regs) as u64, f.bound.value(regs));
        self.row.resize(bytes as usize, 0);
        let mut used = Vec::with_capacity(rows as usize);
        for i in 0..rows {
            let index = index(&memories.scratchpad, list, i, bound)?;
            used.push(index);
            memories.dram.read(src.at(0, index.into()), &mut self.row);
            self.put(memories, f.dst, dst.at(0, i), f.unpack.0);
        }
        Ok(used)
    }

    fn get(&mut self, memories: &Memories, at: u64, bytes: i64) {
        let at = at as usize;
        self.row.clear();
        self.row.extend_from_slice(&memories.scratchpad[at..at + bytes as usize]);
    }

    /// `store`.
    pub(crate) fn store(&mut self, memories: &mut Memories, regs: &Registers, f: &StoreBox) -> Result<(), Stop> {
        let (rows, planes) = (f.rows.value_or(regs, 1) as u64, f.planes.value_or(regs, 1) as u64);
        let bytes = f.row_bytes.value(regs);
        let src = Strides::new(regs, f.src.value(regs), bytes, rows, f.src_stride, f.src_plane);
        let dst = Strides::new(regs, f.dst.value(regs), bytes, rows, f.dst_stride, f.dst_plane);
        for p in 0..planes {
            for r in 0..rows {
                self.get(memories, src.at(p, r), bytes);
                memories.dram.write(dst.at(p, r), &self.row)?;
            }
        }
        Ok(())
    }

    /// `store.rows`. Gives the list.
    pub(crate) fn store_rows(
        &mut self,
        memories: &mut Memories,
        regs: &Registers,
        f: &StoreIndexed,
    ) -> Result<Vec<u32>, Stop> {
        let (rows, bytes) = (f.rows.value_or(regs, 1) as u64, f.row_bytes.value(regs));
        let src = Strides::new(regs, f.src.value(regs), bytes, 1, f.src_stride, Maybe(None));
        let dst = Strides::new(regs, f.dst.value(regs), bytes, 1, f.dst_stride, Maybe(None));
        let (list, bound) = (f.index.value(regs) as u64, f.bound.value(regs));
        let mut used = Vec::with_capacity(rows as usize);
        for i in 0..rows {
            let index = index(&memories.scratchpad, list, i, bound)?;
            used.push(index);
            self.get(memories, src.at(0, i), bytes);
            memories.dram.write(dst.at(0, index.into()), &self.row)?;
        }
        Ok(used)
    }

    /// `store.add_rows`. Gives the list.
    pub(crate) fn store_add_rows(
        &mut self,
        memories: &mut Memories,
        regs: &Registers,
        f: &AddIndexed,
    ) -> Result<Vec<u32>, Stop> {
        let (rows, bytes) = (f.rows.value_or(regs, 1) as u64, f.row_bytes.value(regs));
        let src = Strides::new(regs, f.src.value(regs), bytes, 1, f.src_stride, Maybe(None));
        let dst = Strides::new(regs, f.dst.value(regs), bytes, 1, f.dst_stride, Maybe(None));
        let (list, bound) = (f.index.value(regs) as u64, f.bound.value(regs));
        let mut used = Vec::with_capacity(rows as usize);
        for i in 0..rows {
            let index = index(&memories.scratchpad, list, i, bound)?;
            used.push(index);
            self.get(memories, src.at(0, i), bytes);
            let at = dst.at(0, index.into());
            self.wide.resize(self.row.len(), 0);
            memories.dram.read(at, &mut self.wide);
            for (sum, x) in self.wide.as_chunks_mut::<4>().0.iter_mut().zip(self.row.as_chunks::<4>().0) {
                *sum = canonical(f32::from_le_bytes(*sum) + f32::from_le_bytes(*x)).to_le_bytes();
            }
            memories.dram.write(at, &self.wide)?;
        }
        Ok(used)
    }
}

/// The list of an indexed instruction, where nothing is moved.
pub(crate) fn list(scratchpad: &[u8], at: i64, rows: i64, bound: i64) -> Result<Vec<u32>, Wrong> {
    (0..rows as u64).map(|i| index(scratchpad, at as u64, i, bound)).collect()
}
