//! Attention: keys and values into their cache, then blocks of queries against it.

use cranelift_codegen::ir::InstBuilder;
use lapidary_compiler::ir::{Dim, KvStorage, NodeId, Op, SymbolId};
use lapidary_compiler::plan::{Region, ScratchRole};
use lapidary_format::abi::Counter;
use lapidary_kernels::{KernelOp, WeightType, kv_row_bytes};

use super::{Lowering, Step, Units};
use crate::LowerError;
use crate::args;
use crate::emit::{Arg, context_field};

/// Query rows of one unit of prefill attention: enough work to hide the hand-out, enough units to share.
const QUERY_BLOCK: u64 = 16;

/// What differs between the two kinds.
struct Mask {
    op: KernelOp,
    causal: bool,
    window: u64,
    sinks: u64,
    cluster_cap: u64,
    keys: Counter,
    queries: Counter,
}

impl<'a> Lowering<'a> {
    pub(super) fn attention(&'a self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Result<(), LowerError> {
        let node = self.graph.node(id);
        let (q, k, v, y) = (self.value(node, 0), self.value(node, 1), self.value(node, 2), node.results[0]);
        let attr = |name: &str| node.attrs.int(name);
        let (heads, kv_heads, head_dim) = (attr("heads"), attr("kv_heads"), attr("head_dim"));
        let scale = node.attrs.float("scale");
        let storage = KvStorage::by_name(node.attrs.word("kv_cache")).expect("the schema wants one of them");
        // What a stored element is, for strides, and how many of them a head's row has.
        let (cached, row_elems, element_bytes) = match storage {
            KvStorage::F32 => (WeightType::None, head_dim, 4),
            KvStorage::F16 => (WeightType::F16, head_dim, 2),
            KvStorage::Int8 => (WeightType::I8, kv_row_bytes(head_dim as usize) as u64, 1),
        };
        let row_bytes = row_elems * element_bytes;
        let clustered = node.op == Op::AttnClustered;
        let mask = if clustered {
            Mask {
                op: KernelOp::AttendClustered,
                causal: true,
                window: attr("window"),
                sinks: attr("sinks"),
                cluster_cap: attr("cluster_cap"),
                keys: Counter::ClusteredKeysRead,
                queries: Counter::ClusteredQueries,
            }
        } else {
            Mask {
                op: KernelOp::AttendRange,
                causal: node.attrs.flag("causal"),
                window: attr("window"),
                sinks: 0,
                cluster_cap: 0,
                keys: Counter::RangeKeysRead,
                queries: Counter::RangeQueries,
            }
        };
        let keys = self.plan.scratch(id, ScratchRole::Keys);
        let positions = match keys.map(|s| s.region) {
            Some(Region::Arena) => self.plan.chunk_tokens,
            Some(Region::State) | None => self.plan.max_tokens,
        };
        let head_bytes = positions * row_bytes;
        let dim = Dim::Sym(SymbolId::TOKENS);

        steps.push(Step {
            node: id,
            units: Units::Rows(dim),
            by_module: false,
            body: Box::new(move |e, begin, end| {
                let kernel = e.select(KernelOp::CopyRows, cached)?;
                let start = e.context(context_field!(first_position));
                let position = e.b.ins().iadd(start, begin);
                for (value, role) in [(k, ScratchRole::Keys), (v, ScratchRole::Values)] {
                    let cache = self.scratch(e, id, role)?;
                    let block = args!(CopyRowsArgs {
                        x: Arg::Value(self.row_address(e, value, begin)),
                        x_row_stride: self.ld(value),
                        x_head_stride: Arg::Int(head_dim),
                        y: Arg::Value(e.index(cache, position, row_bytes)),
                        y_row_stride: Arg::Int(row_elems),
                        y_head_stride: Arg::Int(positions * row_elems),
                        rows: self.row_count(e, dim, begin, end),
                        heads: Arg::Int(kv_heads),
                        n: Arg::Int(head_dim),
                    });
                    e.kernel(kernel, block);
                }
                Ok(())
            }),
        });

        steps.push(Step {
            node: id,
            units: Units::Serial,
            by_module: false,
            body: Box::new(move |e, _, _| {
                let tokens = self.rows(e, dim);
                let queries = e.times(tokens, kv_heads);
                e.count(mask.queries, queries);
                if !clustered {
                    return Ok(());
                }
                let kernel = e.select(KernelOp::ClusterAppend, WeightType::None)?;
                let cluster = self.value(node, 3);
                let block = args!(ClusterAppendArgs {
                    cluster: Arg::Value(self.address(e, cluster)),
                    rows: Arg::Value(tokens),
                    first_position: Arg::Value(e.context(context_field!(first_position))),
                    num_clusters: Arg::Int(node.attrs.int("num_clusters")),
                    previous: Arg::Value(self.scratch(e, id, ScratchRole::Previous)?),
                    last: Arg::Value(self.scratch(e, id, ScratchRole::Last)?),
                });
                e.kernel(kernel, block);
                Ok(())
            }),
        });

        let block = if self.constant_rows(dim) == Some(1) { 1 } else { QUERY_BLOCK };
        let units = Units::QueryBlocks { block, heads: kv_heads };
        steps.push(Step {
            node: id,
            units,
            by_module: false,
            body: Box::new(move |e, begin, end| {
                let kernel = e.select(mask.op, cached)?;
                let tokens = self.rows(e, dim);
                let blocks = e.ceil_div(tokens, block);
                e.for_range(begin, end, 1, |e, unit| {
                    let group = e.b.ins().udiv(unit, blocks);
                    let block_index = e.b.ins().urem(unit, blocks);
                    let row = e.times(block_index, block);
                    let left = e.b.ins().isub(tokens, row);
                    let most = e.int(block);
                    let rows = e.min(left, most);
                    let group_bytes = heads / kv_heads * head_dim * 4;
                    let q_row = self.row_address(e, q, row);
                    let y_row = self.row_address(e, y, row);
                    let key_cache = self.scratch(e, id, ScratchRole::Keys)?;
                    let value_cache = self.scratch(e, id, ScratchRole::Values)?;
                    let start = e.context(context_field!(first_position));
                    let previous =
                        if clustered { Arg::Value(self.scratch(e, id, ScratchRole::Previous)?) } else { Arg::Int(0) };
                    let arguments = args!(AttendArgs {
                        q: Arg::Value(e.index(q_row, group, group_bytes)),
                        ldq: self.ld(q),
                        k: Arg::Value(e.index(key_cache, group, head_bytes)),
                        v: Arg::Value(e.index(value_cache, group, head_bytes)),
                        ld_kv: Arg::Int(row_elems),
                        y: Arg::Value(e.index(y_row, group, group_bytes)),
                        ldy: self.ld(y),
                        rows: Arg::Value(rows),
                        first_position: Arg::Value(e.b.ins().iadd(start, row)),
                        num_keys: Arg::Value(tokens),
                        heads_per_group: Arg::Int(heads / kv_heads),
                        head_dim: Arg::Int(head_dim),
                        causal: Arg::Int(u64::from(mask.causal)),
                        window: Arg::Int(mask.window),
                        sinks: Arg::Int(mask.sinks),
                        cluster_cap: Arg::Int(mask.cluster_cap),
                        previous: previous,
                        scale: Arg::Float(scale),
                        keys_read: Arg::Value(e.counter(mask.keys)),
                    });
                    e.kernel(kernel, arguments);
                    Ok(())
                })
            }),
        });
        Ok(())
    }
}
