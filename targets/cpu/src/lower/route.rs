//! Routing: scores, clusters, selection, grouping, gather and combine, cluster memory.

use cranelift_codegen::ir::InstBuilder;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types;
use lapidary_compiler::ir::NodeId;
use lapidary_compiler::plan::ScratchRole;
use lapidary_format::abi::Counter;
use lapidary_kernels::{KernelOp, WeightType};

use super::gemm::Columns;
use super::{Lowering, Step, Units};
use crate::LowerError;
use crate::args;
use crate::emit::Arg;

/// Columns of one unit of `route.combine`: a cache line or two of every row.
const COMBINE_COLUMNS: u64 = 64;

type Done = Result<(), LowerError>;

impl<'a> Lowering<'a> {
    pub(super) fn route_scores(&'a self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Done {
        let node = self.graph.node(id);
        let (q, domains, a) = (self.value(node, 0), self.optional_value(node, 1), node.results[0]);
        let keys = self.layout.weight(self.graph, self.weight(node, 2))?;
        let dim = self.result_rows(node);
        steps.push(Step {
            node: id,
            units: Units::Rows(dim),
            by_module: false,
            body: Box::new(move |e, begin, end| {
                let kernel = e.select(KernelOp::RouteScores, WeightType::None)?;
                let block = args!(RouteScoresArgs {
                    q: Arg::Value(self.row_address(e, q, begin)),
                    ldq: self.ld(q),
                    keys: Arg::Value(e.weights(keys.offset_bytes)),
                    domains: self.optional_row(e, domains, begin),
                    a: Arg::Value(self.row_address(e, a, begin)),
                    rows: self.row_count(e, dim, begin, end),
                    dim: Arg::Int(self.graph.ty(q).cols()),
                    num_clusters: Arg::Int(self.graph.ty(a).cols()),
                    num_domains: Arg::Int(node.attrs.int("num_domains")),
                    scale: Arg::Float(node.attrs.float("scale")),
                    lambda: Arg::Float(node.attrs.float("lambda")),
                });
                e.kernel(kernel, block);
                Ok(())
            }),
        });
        Ok(())
    }

    pub(super) fn route_cluster(&'a self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Done {
        let node = self.graph.node(id);
        let (a, cluster) = (self.value(node, 0), node.results[0]);
        let dim = self.result_rows(node);
        steps.push(Step {
            node: id,
            units: Units::Rows(dim),
            by_module: false,
            body: Box::new(move |e, begin, end| {
                let kernel = e.select(KernelOp::RouteCluster, WeightType::None)?;
                let block = args!(RouteClusterArgs {
                    a: Arg::Value(self.row_address(e, a, begin)),
                    rows: self.row_count(e, dim, begin, end),
                    num_clusters: Arg::Int(self.graph.ty(a).cols()),
                    cluster: Arg::Value(self.row_address(e, cluster, begin)),
                });
                e.kernel(kernel, block);
                Ok(())
            }),
        });
        Ok(())
    }

    pub(super) fn route_select(&'a self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Done {
        let node = self.graph.node(id);
        let (a, mask, gates) = (self.value(node, 0), node.results[0], node.results[1]);
        let dim = self.result_rows(node);
        let (op, across_tokens) = match node.attrs.word("policy") {
            "top_k" => (KernelOp::SelectTopK, false),
            "top_p" => (KernelOp::SelectTopP, false),
            "threshold" => (KernelOp::SelectThreshold, false),
            "expert_choice" => (KernelOp::SelectExpertChoice, true),
            "bidirectional" => (KernelOp::SelectBidirectional, true),
            other => return Err(LowerError::Policy { node: node.label.clone(), found: other }),
        };
        let units = if across_tokens { Units::Serial } else { Units::Rows(dim) };
        steps.push(Step {
            node: id,
            units,
            by_module: false,
            body: Box::new(move |e, begin, end| {
                let kernel = e.select(op, WeightType::None)?;
                let (begin, rows) = if across_tokens {
                    (e.int(0), Arg::Value(self.rows(e, dim)))
                } else {
                    (begin, self.row_count(e, dim, begin, end))
                };
                let ranking =
                    if across_tokens { Arg::Value(self.scratch(e, id, ScratchRole::Ranking)?) } else { Arg::Int(0) };
                let block = args!(RouteSelectArgs {
                    a: Arg::Value(self.row_address(e, a, begin)),
                    rows: rows,
                    num_clusters: Arg::Int(self.graph.ty(a).cols()),
                    mask: Arg::Value(self.row_address(e, mask, begin)),
                    gates: Arg::Value(self.row_address(e, gates, begin)),
                    k_min: Arg::Int(node.attrs.int("k_min")),
                    k_max: Arg::Int(node.attrs.int("k_max")),
                    p: Arg::Float(node.attrs.float("p")),
                    tau: Arg::Float(node.attrs.float("tau")),
                    capacity_factor: Arg::Float(node.attrs.float("capacity_factor")),
                    norm_gates: Arg::Int(u64::from(node.attrs.flag("norm_gates"))),
                    scratch: ranking,
                });
                e.kernel(kernel, block);
                Ok(())
            }),
        });
        Ok(())
    }

    pub(super) fn route_group(&'a self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Done {
        let node = self.graph.node(id);
        let (mask, gates) = (self.value(node, 0), self.value(node, 1));
        let modules = self.graph.ty(mask).cols();
        steps.push(Step {
            node: id,
            units: Units::Serial,
            by_module: false,
            body: Box::new(move |e, _, _| {
                let kernel = e.select(KernelOp::RouteGroup, WeightType::None)?;
                let offsets = self.address(e, node.results[0]);
                let block = args!(RouteGroupArgs {
                    mask: Arg::Value(self.address(e, mask)),
                    gates: Arg::Value(self.address(e, gates)),
                    rows: Arg::Value(self.rows(e, self.graph.ty(mask).rows())),
                    num_modules: Arg::Int(modules),
                    offsets: Arg::Value(offsets),
                    tokens: Arg::Value(self.address(e, node.results[1])),
                    token_gates: Arg::Value(self.address(e, node.results[2])),
                    rows_routed: Arg::Value(e.counter(Counter::RowsRouted)),
                });
                e.kernel(kernel, block);
                let (zero, last) = (e.int(0), e.int(modules));
                e.for_range(zero, last, 1, |e, module| {
                    let entry = e.index(offsets, module, 4);
                    let first = e.load_u32(entry, 0);
                    let next = e.load_u32(entry, 4);
                    let read = e.b.ins().icmp(IntCC::NotEqual, first, next);
                    let read = e.b.ins().uextend(types::I64, read);
                    e.count(Counter::ModulesRead, read);
                    Ok(())
                })
            }),
        });
        Ok(())
    }

    pub(super) fn route_gather(&'a self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Done {
        let node = self.graph.node(id);
        let (x, tokens, y) = (self.value(node, 0), self.value(node, 1), node.results[0]);
        let dim = self.result_rows(node);
        steps.push(Step {
            node: id,
            units: Units::Rows(dim),
            by_module: false,
            body: Box::new(move |e, begin, end| {
                let kernel = e.select(KernelOp::GatherRows, WeightType::None)?;
                let block = args!(IndexedRowsArgs {
                    x: Arg::Value(self.address(e, x)),
                    ldx: self.ld(x),
                    y: Arg::Value(self.row_address(e, y, begin)),
                    ldy: self.ld(y),
                    index: Arg::Value(self.row_address(e, tokens, begin)),
                    gate: Arg::Int(0),
                    rows: self.row_count(e, dim, begin, end),
                    n: Arg::Int(self.graph.ty(x).cols()),
                });
                e.kernel(kernel, block);
                Ok(())
            }),
        });
        Ok(())
    }

    /// Split by columns: several entries may add to one token, so rows cannot be shared out.
    pub(super) fn route_combine(&'a self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Done {
        let node = self.graph.node(id);
        let (x, tokens, token_gates) = (self.value(node, 0), self.value(node, 1), self.value(node, 2));
        let (residual, y) = (self.optional_value(node, 3), node.results[0]);
        let n = self.graph.ty(y).cols();
        let pieces = n.div_ceil(COMBINE_COLUMNS);
        let units = Units::Pieces(pieces);
        steps.push(Step {
            node: id,
            units,
            by_module: false,
            body: Box::new(move |e, begin, end| {
                let kernel = e.select(KernelOp::ScatterAdd, WeightType::None)?;
                let (begin, end) = self.panel_range(e, units, pieces, begin, end);
                let columns = self.columns(e, begin, end, COMBINE_COLUMNS, n);
                self.start_sum(e, residual, y, columns)?;
                let from = self.address(e, x);
                let into = self.address(e, y);
                let block = args!(IndexedRowsArgs {
                    x: Arg::Value(e.index(from, columns.first, 4)),
                    ldx: self.ld(x),
                    y: Arg::Value(e.index(into, columns.first, 4)),
                    ldy: self.ld(y),
                    index: Arg::Value(self.address(e, tokens)),
                    gate: Arg::Value(self.address(e, token_gates)),
                    rows: Arg::Value(self.rows(e, self.graph.ty(x).rows())),
                    n: Arg::Value(columns.count),
                });
                e.kernel(kernel, block);
                Ok(())
            }),
        });
        Ok(())
    }

    /// Puts what a sum starts from, the residual or zero, into a block of columns of `y`, unless it is already there.
    pub(super) fn start_sum(
        &self,
        e: &mut crate::emit::Emit,
        residual: Option<lapidary_compiler::ir::ValueId>,
        y: lapidary_compiler::ir::ValueId,
        columns: Columns,
    ) -> Done {
        let rows = self.rows(e, self.graph.ty(y).rows());
        match residual {
            Some(r) if self.same_place(r, y) => Ok(()),
            Some(r) => self.tail(e, &[r], y, rows, columns, |_, _, v| v[0]),
            None => self.tail(e, &[], y, rows, columns, |e, ty, _| e.float(ty, 0.0)),
        }
    }

    pub(super) fn route_memory(&'a self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Done {
        let node = self.graph.node(id);
        let (mask, gates, y) = (self.value(node, 0), self.value(node, 1), node.results[0]);
        let values = self.layout.weight(self.graph, self.weight(node, 2))?;
        let dim = self.result_rows(node);
        steps.push(Step {
            node: id,
            units: Units::Rows(dim),
            by_module: false,
            body: Box::new(move |e, begin, end| {
                let kernel = e.select(KernelOp::RouteMemory, WeightType::None)?;
                let block = args!(RouteMemoryArgs {
                    mask: Arg::Value(self.row_address(e, mask, begin)),
                    gates: Arg::Value(self.row_address(e, gates, begin)),
                    values: Arg::Value(e.weights(values.offset_bytes)),
                    y: Arg::Value(self.row_address(e, y, begin)),
                    ldy: self.ld(y),
                    rows: self.row_count(e, dim, begin, end),
                    num_clusters: Arg::Int(self.graph.ty(mask).cols()),
                    dim: Arg::Int(self.graph.ty(y).cols()),
                });
                e.kernel(kernel, block);
                Ok(())
            }),
        });
        Ok(())
    }
}
