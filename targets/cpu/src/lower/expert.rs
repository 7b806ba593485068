//! Domain modules: loops over ragged groups. A module that no token chose costs a comparison; its weights are not read.

use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_compiler::ir::{NodeId, ValueId};
use lapidary_compiler::plan::ScratchRole;

use super::gemm::{GemmCall, RowCount};
use super::quantize::{Rows, Source};
use super::{Lowering, Step};
use crate::LowerError;
use crate::emit::Emit;
use crate::layout::Packing;

type Done = Result<(), LowerError>;

impl<'a> Lowering<'a> {
    /// `for c in 0..modules { if rows of c { body(c, first entry, rows) } }`.
    fn for_modules(
        &self,
        e: &mut Emit,
        offsets: ValueId,
        modules: u64,
        body: impl FnOnce(&mut Emit, Value, Value, Value) -> Done,
    ) -> Done {
        let base = self.address(e, offsets);
        let (zero, last) = (e.int(0), e.int(modules));
        e.for_range(zero, last, 1, |e, module| {
            let entry = e.index(base, module, 4);
            let first = e.load_u32(entry, 0);
            let next = e.load_u32(entry, 4);
            let rows = e.b.ins().isub(next, first);
            e.if_else(
                rows,
                |e| {
                    body(e, module, first, rows)?;
                    if let Some(step) = e.report_modules {
                        e.mark(step, Some(module));
                    }
                    Ok(())
                },
                |_| Ok(()),
            )
        })
    }

    /// The rows of a value that modules multiply.
    fn rows_of(&self, node: NodeId, x: ValueId) -> Rows {
        let ty = self.graph.ty(x);
        Rows { node, source: Source::Value(x), count: ty.rows(), k: ty.cols(), role: ScratchRole::QuantizedRows }
    }

    pub(super) fn expert_linear(&'a self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Done {
        let node = self.graph.node(id);
        let (x, offsets, y) = (self.value(node, 0), self.value(node, 1), node.results[0]);
        let modules = self.layout.modules(node, 0)?;
        let Packing::Panels { nr } = modules.packing else {
            return Err(LowerError::packing(node, "panels"));
        };
        let (n, k) = (self.graph.ty(y).cols(), self.graph.ty(x).cols());
        let rows_of_x = self.rows_of(id, x);
        self.quantize(rows_of_x, &modules.format, steps);
        let panels = n.div_ceil(nr);
        let units = self.panel_units(panels, modules.size_bytes);
        steps.push(Step {
            node: id,
            units,
            by_module: true,
            body: Box::new(move |e, begin, end| {
                let (begin, end) = self.panel_range(e, units, panels, begin, end);
                self.for_modules(e, offsets, modules.count, |e, module, first, rows| {
                    let base = e.weights(modules.offset_bytes);
                    let call = GemmCall {
                        swiglu: false,
                        format: modules.format,
                        a: self.operand(e, rows_of_x, &modules.format, first)?,
                        a_rows: None,
                        m: RowCount::Runtime(rows),
                        k,
                        w: e.index(base, module, modules.stride_bytes),
                        n,
                        begin,
                        end,
                        c: self.row_address(e, y, first),
                        ldc: self.stride(y),
                        c_rows: None,
                        row_scale: None,
                        accumulate: false,
                    };
                    call.emit(e, self.entry)
                })
            }),
        });
        Ok(())
    }

    /// Two steps: hidden rows (gather on the way in), then the sum into each token's row (scatter on the way out), split
    /// by columns so that no two threads add to one element.
    pub(super) fn expert_ffn(&'a self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Done {
        let node = self.graph.node(id);
        let (x, offsets, tokens) = (self.value(node, 0), self.value(node, 1), self.value(node, 2));
        let (token_gates, residual, y) = (self.value(node, 3), self.optional_value(node, 4), node.results[0]);
        let gate_up = self.layout.modules(node, 0)?;
        let down = self.layout.modules(node, 1)?;
        let (Packing::PanelPairs { nr: hidden_nr }, Packing::Panels { nr }) = (gate_up.packing, down.packing) else {
            return Err(LowerError::packing(node, "pairs of panels and panels"));
        };
        let (n, hidden) = (self.graph.ty(y).cols(), gate_up.rows);
        let rows_of_x = self.rows_of(id, x);
        self.quantize(rows_of_x, &gate_up.format, steps);
        let hidden_panels = hidden.div_ceil(hidden_nr);
        let hidden_units = self.panel_units(hidden_panels, gate_up.size_bytes);
        steps.push(Step {
            node: id,
            units: hidden_units,
            by_module: true,
            body: Box::new(move |e, begin, end| {
                let (begin, end) = self.panel_range(e, hidden_units, hidden_panels, begin, end);
                self.for_modules(e, offsets, gate_up.count, |e, module, first, rows| {
                    let base = e.weights(gate_up.offset_bytes);
                    let out = self.scratch(e, id, ScratchRole::Hidden)?;
                    let zero = e.int(0);
                    let call = GemmCall {
                        swiglu: true,
                        format: gate_up.format,
                        a: self.operand(e, rows_of_x, &gate_up.format, zero)?,
                        a_rows: Some(self.row_address(e, tokens, first)),
                        m: RowCount::Runtime(rows),
                        k: self.graph.ty(x).cols(),
                        w: e.index(base, module, gate_up.stride_bytes),
                        n: hidden,
                        begin,
                        end,
                        c: e.index(out, first, hidden * 4),
                        ldc: hidden,
                        c_rows: None,
                        row_scale: None,
                        accumulate: false,
                    };
                    call.emit(e, self.entry)
                })
            }),
        });

        let rows_of_hidden = Rows {
            node: id,
            source: Source::Scratch(ScratchRole::Hidden),
            count: self.graph.ty(tokens).rows(),
            k: hidden,
            role: ScratchRole::QuantizedHidden,
        };
        self.quantize(rows_of_hidden, &down.format, steps);
        let panels = n.div_ceil(nr);
        let units = self.panel_units(panels, down.size_bytes);
        steps.push(Step {
            node: id,
            units,
            by_module: true,
            body: Box::new(move |e, begin, end| {
                let (begin, end) = self.panel_range(e, units, panels, begin, end);
                let columns = self.columns(e, begin, end, nr, n);
                self.start_sum(e, residual, y, columns)?;
                self.for_modules(e, offsets, down.count, |e, module, first, rows| {
                    let base = e.weights(down.offset_bytes);
                    let call = GemmCall {
                        swiglu: false,
                        format: down.format,
                        a: self.operand(e, rows_of_hidden, &down.format, first)?,
                        a_rows: None,
                        m: RowCount::Runtime(rows),
                        k: hidden,
                        w: e.index(base, module, down.stride_bytes),
                        n,
                        begin,
                        end,
                        c: self.address(e, y),
                        ldc: self.stride(y),
                        c_rows: Some(self.row_address(e, tokens, first)),
                        row_scale: Some(self.row_address(e, token_gates, first)),
                        accumulate: true,
                    };
                    call.emit(e, self.entry)
                })
            }),
        });
        Ok(())
    }
}
