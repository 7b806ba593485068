//! Embedding, norms, projections, element-wise ops, rope, row selection and pooling.

use cranelift_codegen::ir::InstBuilder;
use lapidary_compiler::ir::{Dim, NodeId, SymbolId};
use lapidary_compiler::plan::ScratchRole;
use lapidary_kernels::{KernelOp, WeightType};

use super::gemm::{GemmCall, RowCount};
use super::quantize::{Rows, Source};
use super::{Lowering, Step, Units};
use crate::LowerError;
use crate::args;
use crate::emit::{Arg, context_field};
use crate::layout::Packing;

/// An element-wise op that needs no kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arithmetic {
    Add,
    Mul,
    Scale(f32),
}

type Done = Result<(), LowerError>;

impl<'a> Lowering<'a> {
    pub(super) fn embed(&'a self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Done {
        let node = self.graph.node(id);
        let (ids, y, table) = (self.value(node, 0), node.results[0], self.weight(node, 1));
        let dim = self.result_rows(node);
        let piece = self.layout.weight(self.graph, table)?;
        let (op, nr) = match piece.packing {
            Packing::Panels { nr } => (KernelOp::EmbedPanels, nr),
            Packing::Rows => (KernelOp::EmbedRows, 1),
            Packing::PanelPairs { .. } => return Err(LowerError::packing(node, "rows or panels")),
        };
        let n = self.graph.ty(y).cols();
        steps.push(Step {
            node: id,
            units: Units::Rows(dim),
            by_module: false,
            body: Box::new(move |e, begin, end| {
                let kernel = e.select(op, piece.format.weight)?;
                let ids = Arg::Value(self.row_address(e, ids, begin));
                let table = Arg::Value(e.weights(piece.offset_bytes));
                let out = Arg::Value(self.row_address(e, y, begin));
                let rows = self.row_count(e, dim, begin, end);
                let block = match piece.format.quant {
                    Some(layout) => args!(QEmbedArgs {
                        ids: ids,
                        table: table,
                        y: out,
                        ldy: self.ld(y),
                        rows: rows,
                        n: Arg::Int(n),
                        group: Arg::Int(layout.group() as u64),
                        nr: Arg::Int(layout.nr() as u64),
                        kr: Arg::Int(layout.kr() as u64),
                        code_offset: Arg::Int(u64::from(layout.code_offset())),
                    }),
                    None => args!(EmbedArgs {
                        ids: ids,
                        table: table,
                        y: out,
                        ldy: self.ld(y),
                        rows: rows,
                        n: Arg::Int(n),
                        nr: Arg::Int(nr),
                    }),
                };
                e.kernel(kernel, block);
                Ok(())
            }),
        });
        Ok(())
    }

    pub(super) fn rms_norm(&'a self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Done {
        let node = self.graph.node(id);
        let (x, y) = (self.value(node, 0), node.results[0]);
        let w = node.operands[1].weight().map(|w| self.layout.weight(self.graph, w)).transpose()?;
        let (dim, n, eps) = (self.result_rows(node), self.graph.ty(y).cols(), node.attrs.float("eps"));
        steps.push(Step {
            node: id,
            units: Units::Rows(dim),
            by_module: false,
            body: Box::new(move |e, begin, end| {
                let kernel = e.select(KernelOp::RmsNorm, WeightType::None)?;
                let block = args!(RmsNormArgs {
                    x: Arg::Value(self.row_address(e, x, begin)),
                    ldx: self.ld(x),
                    w: w.map_or(Arg::Int(0), |piece| Arg::Value(e.weights(piece.offset_bytes))),
                    y: Arg::Value(self.row_address(e, y, begin)),
                    ldy: self.ld(y),
                    rows: self.row_count(e, dim, begin, end),
                    n: Arg::Int(n),
                    eps: Arg::Float(eps),
                });
                e.kernel(kernel, block);
                Ok(())
            }),
        });
        Ok(())
    }

    /// A function of each row or element that is a kernel of its own.
    pub(super) fn unary(&'a self, id: NodeId, op: KernelOp, steps: &mut Vec<Step<'a>>) -> Done {
        let node = self.graph.node(id);
        let (x, y) = (self.value(node, 0), node.results[0]);
        self.expect_f32(node, x)?;
        let (dim, n) = (self.result_rows(node), self.graph.ty(y).cols());
        steps.push(Step {
            node: id,
            units: Units::Rows(dim),
            by_module: false,
            body: Box::new(move |e, begin, end| {
                let kernel = e.select(op, WeightType::None)?;
                let block = args!(UnaryArgs {
                    x: Arg::Value(self.row_address(e, x, begin)),
                    ldx: self.ld(x),
                    y: Arg::Value(self.row_address(e, y, begin)),
                    ldy: self.ld(y),
                    rows: self.row_count(e, dim, begin, end),
                    n: Arg::Int(n),
                });
                e.kernel(kernel, block);
                Ok(())
            }),
        });
        Ok(())
    }

    /// `add`, `mul`, `scale`: loops in the generated code.
    pub(super) fn arithmetic(&'a self, id: NodeId, op: Arithmetic, steps: &mut Vec<Step<'a>>) -> Done {
        let node = self.graph.node(id);
        let inputs: Vec<_> = node.operands.iter().filter_map(|o| o.value()).collect();
        for input in &inputs {
            self.expect_f32(node, *input)?;
        }
        let y = node.results[0];
        let (dim, n) = (self.result_rows(node), self.graph.ty(y).cols());
        steps.push(Step {
            node: id,
            units: Units::Rows(dim),
            by_module: false,
            body: Box::new(move |e, begin, end| {
                e.for_range(begin, end, 1, |e, row| {
                    let bases: Vec<_> = inputs.iter().map(|v| self.row_address(e, *v, row)).collect();
                    let out = self.row_address(e, y, row);
                    let cols = e.int(n);
                    e.elementwise(&bases, out, cols, |e, ty, x| match op {
                        Arithmetic::Add => e.b.ins().fadd(x[0], x[1]),
                        Arithmetic::Mul => e.b.ins().fmul(x[0], x[1]),
                        Arithmetic::Scale(factor) => {
                            let factor = e.float(ty, factor);
                            e.b.ins().fmul(x[0], factor)
                        }
                    })
                })
            }),
        });
        Ok(())
    }

    /// Every element one number: a loop in the generated code.
    pub(super) fn fill(&'a self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Done {
        let node = self.graph.node(id);
        let y = node.results[0];
        let (dim, n, value) = (self.result_rows(node), self.graph.ty(y).cols(), node.attrs.float("value"));
        steps.push(Step {
            node: id,
            units: Units::Rows(dim),
            by_module: false,
            body: Box::new(move |e, begin, end| {
                e.for_range(begin, end, 1, |e, row| {
                    let out = self.row_address(e, y, row);
                    let cols = e.int(n);
                    e.elementwise(&[], out, cols, |e, ty, _| e.float(ty, value))
                })
            }),
        });
        Ok(())
    }

    pub(super) fn linear(&'a self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Done {
        let node = self.graph.node(id);
        let (x, w, residual) = (self.value(node, 0), self.weight(node, 1), self.optional_value(node, 2));
        let y = node.results[0];
        let piece = self.layout.weight(self.graph, w)?;
        let Packing::Panels { nr } = piece.packing else {
            return Err(LowerError::packing(node, "panels"));
        };
        let (dim, n, k) = (self.result_rows(node), self.graph.ty(y).cols(), self.graph.ty(x).cols());
        let act = match node.attrs.word("act") {
            "silu" => Some(KernelOp::Silu),
            "gelu" => Some(KernelOp::Gelu),
            _ => None,
        };
        let in_place = residual.is_some_and(|r| self.same_place(r, y));
        if in_place && act.is_some() {
            return Err(LowerError::NotLowerable {
                node: node.label.clone(),
                op: "linear",
                hint: "an activated projection cannot take its residual's place; the memory plan is wrong",
            });
        }
        let rows_of_x = Rows {
            node: id,
            source: Source::Value(x),
            count: self.graph.ty(x).rows(),
            k,
            role: ScratchRole::QuantizedRows,
        };
        self.quantize(rows_of_x, &piece.format, steps);
        let panels = n.div_ceil(nr);
        let units = self.panel_units(panels, piece.size_bytes);
        steps.push(Step {
            node: id,
            units,
            by_module: false,
            body: Box::new(move |e, begin, end| {
                let (begin, end) = self.panel_range(e, units, panels, begin, end);
                let rows = self.rows(e, dim);
                let columns = self.columns(e, begin, end, nr, n);
                if let (Some(r), None, false) = (residual, act, in_place) {
                    self.tail(e, &[r], y, rows, columns, |_, _, v| v[0])?;
                }
                let zero = e.int(0);
                let call = GemmCall {
                    swiglu: false,
                    format: piece.format,
                    a: self.operand(e, rows_of_x, &piece.format, zero)?,
                    a_rows: None,
                    m: RowCount::of(self.constant_rows(dim), rows),
                    k,
                    w: e.weights(piece.offset_bytes),
                    n,
                    begin,
                    end,
                    c: self.address(e, y),
                    ldc: self.stride(y),
                    c_rows: None,
                    row_scale: None,
                    accumulate: residual.is_some() && act.is_none(),
                };
                call.emit(e, self.entry)?;
                let Some(op) = act else { return Ok(()) };
                let kernel = e.select(op, WeightType::None)?;
                let base = self.address(e, y);
                let at = e.index(base, columns.first, 4);
                let block = args!(UnaryArgs {
                    x: Arg::Value(at),
                    ldx: self.ld(y),
                    y: Arg::Value(at),
                    ldy: self.ld(y),
                    rows: Arg::Value(rows),
                    n: Arg::Value(columns.count),
                });
                e.kernel(kernel, block);
                match residual {
                    Some(r) => self.tail(e, &[y, r], y, rows, columns, |e, _, v| e.b.ins().fadd(v[0], v[1])),
                    None => Ok(()),
                }
            }),
        });
        Ok(())
    }

    pub(super) fn linear_swiglu(&'a self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Done {
        let node = self.graph.node(id);
        let (x, y) = (self.value(node, 0), node.results[0]);
        let piece = self.layout.pair(self.weight(node, 1), self.weight(node, 2))?;
        let Packing::PanelPairs { nr } = piece.packing else {
            return Err(LowerError::packing(node, "pairs of panels"));
        };
        let (dim, n, k) = (self.result_rows(node), self.graph.ty(y).cols(), self.graph.ty(x).cols());
        let rows_of_x = Rows {
            node: id,
            source: Source::Value(x),
            count: self.graph.ty(x).rows(),
            k,
            role: ScratchRole::QuantizedRows,
        };
        self.quantize(rows_of_x, &piece.format, steps);
        let panels = n.div_ceil(nr);
        let units = self.panel_units(panels, piece.size_bytes);
        steps.push(Step {
            node: id,
            units,
            by_module: false,
            body: Box::new(move |e, begin, end| {
                let (begin, end) = self.panel_range(e, units, panels, begin, end);
                let rows = self.rows(e, dim);
                let zero = e.int(0);
                let call = GemmCall {
                    swiglu: true,
                    format: piece.format,
                    a: self.operand(e, rows_of_x, &piece.format, zero)?,
                    a_rows: None,
                    m: RowCount::of(self.constant_rows(dim), rows),
                    k,
                    w: e.weights(piece.offset_bytes),
                    n,
                    begin,
                    end,
                    c: self.address(e, y),
                    ldc: self.stride(y),
                    c_rows: None,
                    row_scale: None,
                    accumulate: false,
                };
                call.emit(e, self.entry)
            }),
        });
        Ok(())
    }

    pub(super) fn rope(&'a self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Done {
        let node = self.graph.node(id);
        let (x, y) = (self.value(node, 0), node.results[0]);
        let (heads, head_dim) = (node.attrs.int("heads"), node.attrs.int("head_dim"));
        let table = self.layout.rope(head_dim, node.attrs.float("theta"))?;
        let dim = self.result_rows(node);
        steps.push(Step {
            node: id,
            units: Units::Rows(dim),
            by_module: false,
            body: Box::new(move |e, begin, end| {
                let kernel = e.select(KernelOp::Rope, WeightType::None)?;
                let start = e.context(context_field!(first_position));
                let block = args!(RopeArgs {
                    x: Arg::Value(self.row_address(e, x, begin)),
                    x_row_stride: self.ld(x),
                    x_head_stride: Arg::Int(head_dim),
                    y: Arg::Value(self.row_address(e, y, begin)),
                    y_row_stride: self.ld(y),
                    y_head_stride: Arg::Int(head_dim),
                    rows: self.row_count(e, dim, begin, end),
                    heads: Arg::Int(heads),
                    head_dim: Arg::Int(head_dim),
                    first_position: Arg::Value(e.b.ins().iadd(start, begin)),
                    cos_sin: Arg::Value(e.weights(table.offset_bytes)),
                });
                e.kernel(kernel, block);
                Ok(())
            }),
        });
        Ok(())
    }

    pub(super) fn last_rows(&'a self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Done {
        let node = self.graph.node(id);
        let (x, y) = (self.value(node, 0), node.results[0]);
        let (dim, n) = (self.result_rows(node), self.graph.ty(y).cols());
        steps.push(Step {
            node: id,
            units: Units::Rows(dim),
            by_module: false,
            body: Box::new(move |e, begin, end| {
                let kernel = e.select(KernelOp::CopyRows, WeightType::None)?;
                let tokens = self.rows(e, Dim::Sym(SymbolId::TOKENS));
                let outputs = self.rows(e, Dim::Sym(SymbolId::OUTPUT_ROWS));
                let skipped = e.b.ins().isub(tokens, outputs);
                let first = e.b.ins().iadd(skipped, begin);
                let block = args!(CopyRowsArgs {
                    x: Arg::Value(self.row_address(e, x, first)),
                    x_row_stride: self.ld(x),
                    x_head_stride: Arg::Int(n),
                    y: Arg::Value(self.row_address(e, y, begin)),
                    y_row_stride: self.ld(y),
                    y_head_stride: Arg::Int(n),
                    rows: self.row_count(e, dim, begin, end),
                    heads: Arg::Int(1),
                    n: Arg::Int(n),
                });
                e.kernel(kernel, block);
                Ok(())
            }),
        });
        Ok(())
    }

    pub(super) fn mean_rows(&'a self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Done {
        let node = self.graph.node(id);
        let (x, y) = (self.value(node, 0), node.results[0]);
        let n = self.graph.ty(y).cols();
        steps.push(Step {
            node: id,
            units: Units::Serial,
            by_module: false,
            body: Box::new(move |e, _, _| {
                let kernel = e.select(KernelOp::MeanRows, WeightType::None)?;
                let block = args!(MeanRowsArgs {
                    x: Arg::Value(self.address(e, x)),
                    ldx: self.ld(x),
                    y: Arg::Value(self.address(e, y)),
                    rows: Arg::Value(self.rows(e, self.graph.ty(x).rows())),
                    n: Arg::Int(n),
                });
                e.kernel(kernel, block);
                Ok(())
            }),
        });
        Ok(())
    }
}
