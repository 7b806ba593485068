//! Rows that pass through the scratchpad: whatever an op reads and writes is there block by block, wherever its home is.

use lapidary_npu_isa::Op;

use super::context::Rows;
use super::flow::{Flow, Matrix};
use crate::builder::{Place, Value};
use crate::error::LowerError;

/// A block of rows.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Which.
    pub index: Value,
    /// Rows of every block but the last.
    pub size: u64,
    /// Rows of this one.
    pub rows: Value,
}

/// Rows that an op reads or writes, `cols` elements of each.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// Where they are.
    pub home: Matrix,
    /// Elements of a row.
    pub cols: u64,
}

impl Stream {
    /// Bytes of a row.
    const fn row_bytes(&self) -> u64 {
        self.cols * self.home.element.bytes() as u64
    }
}

/// A stream, and where its blocks pass if its home is in DRAM.
#[derive(Clone, Copy, Debug)]
struct Staged {
    stream: Stream,
    staging: Option<Matrix>,
}

impl Flow<'_> {
    /// Executes the body for blocks of `size` rows, a power of two.
    pub fn blocks(
        &mut self,
        rows: Rows,
        size: u64,
        body: impl Fn(&mut Self, Block) -> Result<(), LowerError>,
    ) -> Result<(), LowerError> {
        if size >= rows.most {
            return body(self, Block { index: Value::ZERO, size, rows: rows.count });
        }
        let block = size as i64;
        self.scope(|this| {
            let count = match rows.count {
                Value::Const(n) => Value::Const((n + block - 1) / block),
                Value::Reg(reg) => {
                    let count = this.b.reg("number of blocks")?;
                    this.b.arithmetic(Op::Add, count, reg, Value::Const(block - 1))?;
                    this.b.arithmetic(Op::Shr, count, count, Value::Const(size.ilog2().into()))?;
                    Value::Reg(count)
                }
            };
            this.repeat("block", count, rows.most.div_ceil(size), |this, index| {
                let left = this.b.reg("rows of a block")?;
                this.b.sum(left, Place::of(rows.count), &[(index, -block)])?;
                this.b.arithmetic(Op::Min, left, left, Value::Const(block))?;
                this.b.arithmetic(Op::Max, left, left, Value::Const(0))?;
                body(this, Block { index, size, rows: Value::Reg(left) })
            })
        })
    }

    /// The largest power of two of rows, at most `rows.room`, of which `row_bytes` each are within `bytes`; at least 1.
    pub fn block_size(rows: Rows, row_bytes: u64, bytes: u64) -> u64 {
        let fit = (bytes / row_bytes.max(1)).clamp(1, rows.room.max(1));
        let size = 1 << fit.ilog2();
        if size >= rows.most { rows.room.max(size) } else { size }
    }

    /// Executes the body for blocks of rows that are in the scratchpad: what it reads is loaded before it, what it writes is stored
    /// behind it, unless their homes are there. Half of the working memory is left to the body.
    pub fn by_rows(
        &mut self,
        rows: Rows,
        reads: &[Stream],
        writes: &[Stream],
        body: impl Fn(&mut Self, Block, &[Matrix], &[Matrix]) -> Result<(), LowerError>,
    ) -> Result<(), LowerError> {
        let passing = |s: &&Stream| !s.home.on_chip();
        let all = || reads.iter().chain(writes);
        // Pieces begin at multiples of 32 bytes.
        let pieces = all().filter(passing).count() as u64;
        let row_bytes: u64 = all().filter(passing).map(Stream::row_bytes).sum();
        let size = match pieces {
            0 => rows.room,
            _ => Self::block_size(rows, row_bytes, (self.scratch.largest() / 2).saturating_sub(32 * pieces)),
        };
        let stage = |this: &mut Self, list: &[Stream]| {
            list.iter()
                .map(|stream| {
                    let staging = match stream.home.on_chip() {
                        true => None,
                        false => {
                            let area = this.scratch.take(size.min(rows.room) * stream.row_bytes())?;
                            Some(Matrix::dense(area, stream.cols, stream.home.element))
                        }
                    };
                    Ok(Staged { stream: *stream, staging })
                })
                .collect::<Result<Vec<_>, LowerError>>()
        };
        let (reads, writes) = (stage(self, reads)?, stage(self, writes)?);
        self.blocks(rows, size, |this, block| {
            let mut inputs = Vec::new();
            for staged in &reads {
                inputs.push(this.arrive(staged, block, true)?);
            }
            let mut outputs = Vec::new();
            for staged in &writes {
                outputs.push(this.arrive(staged, block, false)?);
            }
            body(this, block, &inputs, &outputs)?;
            for (staged, output) in writes.iter().zip(&outputs) {
                if staged.staging.is_some() {
                    this.scope(|this| {
                        let home = this.at_row(&staged.stream.home, block.index, block.size)?;
                        this.store(&home, output, Value::Const(staged.stream.cols as i64), block.rows)
                    })?;
                }
            }
            Ok(())
        })
    }

    /// The block's rows in the scratchpad.
    fn arrive(&mut self, staged: &Staged, block: Block, load: bool) -> Result<Matrix, LowerError> {
        match staged.staging {
            None => self.at_row(&staged.stream.home, block.index, block.size),
            Some(staging) => {
                if load {
                    self.scope(|this| {
                        let home = this.at_row(&staged.stream.home, block.index, block.size)?;
                        this.load(&staging, &home, Value::Const(staged.stream.cols as i64), block.rows)
                    })?;
                }
                Ok(staging)
            }
        }
    }
}
