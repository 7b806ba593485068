//! What becomes of a strip's sums: factors of its columns, rescaling, storing.

use lapidary_npu_isa::address::Acc;
use lapidary_npu_isa::format::{Rescale, RescaleFloats};
use lapidary_npu_isa::operand::Maybe;
use lapidary_npu_isa::{Op, Queue};

use super::emit::{Emitter, load_words};
use super::plan::{Channels, Staging};
use super::strip::{Columns, Strip};
use super::tiling::WeightFormat;
use super::{Destination, Scales};
use crate::builder::{Builder, Place, Value, maybe, sp};
use crate::error::LowerError;

impl Emitter<'_> {
    /// Loads factors of a strip's columns.
    pub(super) fn load_channels(&self, b: &mut Builder, s: &Strip, n: Value) -> Result<(), LowerError> {
        let (Scales::Dram(at), Some(ring)) = (self.op.output.channels, self.channels) else { return Ok(()) };
        let cols = i64::from(4 * self.plan.tiling.array_cols);
        b.scope(|b| {
            let (src, dst) = (b.reg("factors in DRAM")?, b.reg("factors")?);
            b.sum(src, at.plus(s.offset * cols), &[(s.index, cols)])?;
            b.sum(dst, self.channel_slot(), &[(s.turn, self.plan.buffers.channels_slot as i64)])?;
            let count = b.in_register("number of factors", n)?;
            b.push_with(load_words(dst, src, count), &[ring.free], &[ring.full]);
            Ok(())
        })
    }

    fn channel_slot(&self) -> Place {
        Place::at(self.plan.buffers.channels)
    }

    /// Rescales the strip's sums, and stores them.
    pub(super) fn drain(&self, b: &mut Builder, s: &Strip, columns: &Columns, sums: Acc) -> Result<(), LowerError> {
        let (plan, t, output) = (self.plan, &self.plan.tiling, &self.op.output);
        let element = i64::from(output.element.bytes());
        let width = i64::from(t.array_cols) * element;
        let (place, term, stride) = match (plan.staging, output.to) {
            (Staging::Given, Destination::Scratchpad { at, stride }) => {
                let rows = i64::from(plan.block_rows) * stride as i64;
                (at.plus(s.offset * width), [(s.block, rows), (s.index, width)], Some(stride as i64))
            }
            (Staging::Whole { .. }, _) => {
                let stride = i64::from(t.n) * element;
                (s.staging.plus(s.offset * width), [(s.index, width), (Value::ZERO, 0)], Some(stride))
            }
            (Staging::Strip { slots }, _) => {
                let turn = if slots == 2 { s.turn } else { Value::ZERO };
                let slot = plan.buffers.staging_slot as i64;
                (Place::at(plan.buffers.staging), [(turn, slot), (Value::ZERO, 0)], None)
            }
            (Staging::Given, Destination::Dram { .. }) => return Ok(()),
        };
        let ring = self.results.filter(|_| matches!(plan.staging, Staging::Strip { .. }));
        let mut waits = vec![self.sums.full];
        let mut posts = vec![self.sums.free];
        if let Some(ring) = ring {
            waits.push(ring.free);
            posts.push(ring.full);
        }
        let channels = self.channels.filter(|_| plan.channels == Channels::Strip);
        if let Some(ring) = channels {
            b.sync(Queue::Vector, &[ring.full], &[]);
        }
        b.scope(|b| {
            let dst = b.reg("results")?;
            b.sum(dst, place, &term)?;
            let dst_stride = match stride {
                Some(stride) => maybe(b.constant("stride of results", stride)?),
                None => Maybe(None),
            };
            let tokens = b.reg("factors of rows")?;
            b.sum(tokens, s.tokens, &[])?;
            let cols = b.size("columns", columns.n)?;
            let (rows, dst_type) = (maybe(self.rows), output.element);
            let op = match t.format {
                WeightFormat::Int4 { .. } => Op::RescaleFloats(RescaleFloats {
                    dst: sp(dst),
                    acc: sums,
                    tokens: sp(tokens),
                    cols,
                    rows,
                    dst_stride,
                    dst_type,
                }),
                WeightFormat::Int8 => {
                    let factors = b.reg("factors of columns")?;
                    let four = 4 * i64::from(t.array_cols);
                    match (plan.channels, output.channels) {
                        (Channels::Given, Scales::Scratchpad(at)) => {
                            b.sum(factors, at.plus(s.offset * four), &[(s.index, four)])?;
                        }
                        (Channels::Whole, _) => {
                            b.sum(factors, self.channel_slot().plus(s.offset * four), &[(s.index, four)])?;
                        }
                        (Channels::Strip, _) => {
                            let slot = plan.buffers.channels_slot as i64;
                            b.sum(factors, self.channel_slot(), &[(s.turn, slot)])?;
                        }
                        (Channels::One | Channels::None | Channels::Given, _) => {
                            b.li(factors, plan.buffers.ones as i64)
                        }
                    }
                    Op::Rescale(Rescale {
                        dst: sp(dst),
                        acc: sums,
                        channels: sp(factors),
                        tokens: sp(tokens),
                        cols,
                        rows,
                        dst_stride,
                        dst_type,
                    })
                }
            };
            b.push_with(op, &waits, &posts);
            Ok(())
        })?;
        if let Some(ring) = channels {
            b.sync(Queue::Vector, &[], &[ring.free]);
        }
        if ring.is_some() {
            b.scope(|b| {
                let row_bytes = b.product("bytes of a row", columns.n, element)?;
                let staging = self.place(b, "results", place, term[0].0, term[0].1)?;
                self.store(b, staging, s.block, (s.index, s.offset), row_bytes)
            })?;
        }
        Ok(())
    }
}
