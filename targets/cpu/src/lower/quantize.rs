//! Rows of activations for products with integer weights.
//!
//! A node whose weights are integers gets a step before its product that writes each row, as int8 codes with a scale, into
//! the node's working memory; the product reads them there. See `docs/quantization.md`.

use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_compiler::ir::{Dim, NodeId, ValueId};
use lapidary_compiler::plan::ScratchRole;
use lapidary_kernels::{KernelOp, WeightType, quantized_row_bytes};

use super::gemm::Operand;
use super::{Entry, Lowering, Step, Units};
use crate::LowerError;
use crate::args;
use crate::emit::{Arg, Emit};
use crate::layout::Format;

/// Rows of floats.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// A value.
    Value(ValueId),
    /// Dense rows in a node's working memory.
    Scratch(ScratchRole),
}

/// Rows that a product reads: floats, and where they are put when they are quantized.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    /// The product's node.
    pub node: NodeId,
    /// Where the floats are.
    pub source: Source,
    /// How many.
    pub count: Dim,
    /// Columns.
    pub k: u64,
    /// Working memory for the quantized rows.
    pub role: ScratchRole,
}

impl<'a> Lowering<'a> {
    /// Adds the step that quantizes, where the weights' format wants it.
    pub(super) fn quantize(&'a self, rows: Rows, format: &Format, steps: &mut Vec<Step<'a>>) {
        if format.quant.is_none() {
            return;
        }
        // One token routed to a few modules is no work to share.
        let units = if self.entry == Entry::Decode { Units::Serial } else { Units::Rows(rows.count) };
        steps.push(Step {
            node: rows.node,
            units,
            by_module: false,
            body: Box::new(move |e, begin, end| {
                let (begin, end) = match units {
                    Units::Rows(_) => (begin, end),
                    Units::Serial | Units::Pieces(_) | Units::QueryBlocks { .. } => {
                        (e.int(0), self.rows(e, rows.count))
                    }
                };
                let kernel = e.select(KernelOp::QuantizeRows, WeightType::None)?;
                let from = self.floats(e, rows, begin)?;
                let to = self.quantized(e, rows, begin)?;
                let block = args!(QuantizeRowsArgs {
                    x: Arg::Value(from.base),
                    ldx: Arg::Int(from.stride),
                    x_rows: Arg::Int(0),
                    y: Arg::Value(to.base),
                    ldy_bytes: Arg::Int(to.stride),
                    rows: Arg::Value(e.b.ins().isub(end, begin)),
                    k: Arg::Int(rows.k),
                });
                e.kernel(kernel, block);
                Ok(())
            }),
        });
    }

    /// The rows as a product with weights of that format reads them, from row `first` on.
    pub(super) fn operand(
        &self,
        e: &mut Emit,
        rows: Rows,
        format: &Format,
        first: Value,
    ) -> Result<Operand, LowerError> {
        if format.quant.is_some() { self.quantized(e, rows, first) } else { self.floats(e, rows, first) }
    }

    fn floats(&self, e: &mut Emit, rows: Rows, first: Value) -> Result<Operand, LowerError> {
        Ok(match rows.source {
            Source::Value(x) => Operand { base: self.row_address(e, x, first), stride: self.stride(x) },
            Source::Scratch(role) => {
                let base = self.scratch(e, rows.node, role)?;
                Operand { base: e.index(base, first, rows.k * 4), stride: rows.k }
            }
        })
    }

    fn quantized(&self, e: &mut Emit, rows: Rows, first: Value) -> Result<Operand, LowerError> {
        let stride = quantized_row_bytes(rows.k as usize) as u64;
        let base = self.scratch(e, rows.node, rows.role)?;
        Ok(Operand { base: e.index(base, first, stride), stride })
    }
}
