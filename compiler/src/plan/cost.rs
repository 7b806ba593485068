//! What a call moves and multiplies: the figures of the compile summary.
//!
//! Counted are the weights that a call reads, the keys and values that attention reads and writes, and multiply-adds of
//! matrix products, attention and routing scores. Norms, activations and copies are not: they are a few per cent.
//! Where the number of modules of a token is decided at run time, a figure is a [`Range`] from `k_min` to `k_max`.

use crate::ir::{Component, Graph, KvStorage, Node, NodeId, Op, Operand, SymbolId, WeightDef, WeightId};
use crate::ops::Policy;

/// The least and the most that a figure can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Range {
    /// Every token takes as few modules as its policy allows.
    pub min: u64,
    /// Every token takes as many as its policy allows.
    pub max: u64,
}

impl Range {
    /// A figure that does not depend on routing.
    pub const fn exact(n: u64) -> Self {
        Self { min: n, max: n }
    }

    fn plus(self, other: Range) -> Range {
        Range { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    fn times(self, n: u64) -> Range {
        Range { min: self.min.saturating_mul(n), max: self.max.saturating_mul(n) }
    }
}

/// Weights of one component, each counted once however often it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComponentBytes {
    /// Which.
    pub component: Component,
    /// Parameters.
    pub elems: u64,
    /// Bytes as they are stored, codes and scales, packed without gaps.
    pub bytes: u64,
    /// Those of them that are one repeated value and so take no storage.
    pub splat_bytes: u64,
}

/// Work of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Work {
    /// Bytes of weights read, each matrix once per call.
    pub weight_bytes: Range,
    /// Bytes of keys and values read and written.
    pub kv_bytes: u64,
    /// Multiply-adds.
    pub multiply_adds: Range,
}

/// Sizes of what the artifact stores: the weights that nodes read, by component, in the order of [`Component::ALL`].
pub fn weight_bytes(graph: &Graph) -> Vec<ComponentBytes> {
    let mut read = vec![false; graph.weights.len()];
    for w in graph.nodes.iter().flat_map(|n| n.operands.iter()).filter_map(|o| o.weight()) {
        read[w.0 as usize] = true;
    }
    let empty = |component| ComponentBytes { component, elems: 0, bytes: 0, splat_bytes: 0 };
    let mut out: Vec<ComponentBytes> = Component::ALL.into_iter().map(empty).collect();
    for i in (0..graph.weights.len()).filter(|i| read[*i]) {
        let id = WeightId(i as u32);
        let storage = graph.weight(id).storage;
        for (component, rows, cols) in parts(graph, id) {
            let (elems, bytes) = (rows * cols, storage.bytes(rows, cols));
            let sum = out.iter_mut().find(|c| c.component == component).expect("all components are listed");
            sum.elems += elems;
            sum.bytes += bytes;
            if matches!(graph.weight(id).def, WeightDef::Splat(_)) {
                sum.splat_bytes += bytes;
            }
        }
    }
    out.retain(|c| c.elems > 0);
    out
}

/// Rows and columns of a weight by component: those of a merged weight belong to its parts' components.
fn parts(graph: &Graph, id: WeightId) -> Vec<(Component, u64, u64)> {
    let weight = graph.weight(id);
    match &weight.def {
        WeightDef::Concat(ids) => ids.iter().flat_map(|part| parts(graph, *part)).collect(),
        WeightDef::Stored
        | WeightDef::Splat(_)
        | WeightDef::Random { .. }
        | WeightDef::ScaleColumns { .. }
        | WeightDef::Scale { .. } => vec![(weight.component, weight.rows(), weight.cols())],
    }
}

/// Work of decoding one token at position `context` (so many tokens are cached); `None` for models that cannot.
pub fn decode_work(graph: &Graph, context: u64) -> Option<Work> {
    graph.info.why_no_decode.is_none().then(|| work(graph, 1, context))
}

/// Work of one call of `tokens` tokens from the beginning of a sequence, one row through the head.
pub fn prefill_work(graph: &Graph, tokens: u64) -> Work {
    work(graph, tokens, 0)
}

/// Work of a call of `tokens` tokens after `context` others.
fn work(graph: &Graph, tokens: u64, context: u64) -> Work {
    let mut sum = Work::default();
    let definitions = graph.definitions();
    for node in &graph.nodes {
        let one = Call { graph, definitions: &definitions, node, tokens, context }.work();
        sum.weight_bytes = sum.weight_bytes.plus(one.weight_bytes);
        sum.kv_bytes = sum.kv_bytes.saturating_add(one.kv_bytes);
        sum.multiply_adds = sum.multiply_adds.plus(one.multiply_adds);
    }
    sum
}

/// One node of one call.
struct Call<'g> {
    graph: &'g Graph,
    definitions: &'g [Option<NodeId>],
    node: &'g Node,
    tokens: u64,
    context: u64,
}

impl Call<'_> {
    fn work(&self) -> Work {
        match self.node.op {
            Op::Embed => {
                let table = self.graph.weight(self.weight(1));
                let rows = self.tokens.min(table.rows());
                Work { weight_bytes: Range::exact(table.storage.bytes(rows, table.cols())), ..Work::default() }
            }
            Op::RmsNorm => Work { weight_bytes: Range::exact(self.all_weight_bytes()), ..Work::default() },
            Op::Linear | Op::LinearSwiglu | Op::RouteScores => Work {
                weight_bytes: Range::exact(self.all_weight_bytes()),
                multiply_adds: Range::exact(self.all_weight_elems().saturating_mul(self.rows())),
                ..Work::default()
            },
            Op::AttnRange | Op::AttnClustered => self.attention(),
            Op::ExpertApply | Op::ExpertLinear | Op::ExpertFfn => self.modules(),
            Op::RouteMemory => {
                let values = self.graph.weight(self.weight(2));
                let row_bytes = values.storage.row_bytes(values.cols());
                let routed = self.routed(self.node.operands[0], values.rows());
                Work {
                    weight_bytes: routed.modules.times(row_bytes),
                    multiply_adds: routed.rows.times(values.cols()),
                    ..Work::default()
                }
            }
            Op::Add
            | Op::Mul
            | Op::Scale
            | Op::Silu
            | Op::Gelu
            | Op::Softmax
            | Op::Slice
            | Op::Rope
            | Op::RouteCluster
            | Op::RouteSelect
            | Op::RouteGroup
            | Op::RouteGather
            | Op::RouteCombine
            | Op::Fill
            | Op::LastRows
            | Op::MeanRows
            | Op::L2Normalize => Work::default(),
        }
    }

    fn weight(&self, place: usize) -> WeightId {
        self.node.operands[place].weight().expect("a verified graph has a weight here")
    }

    fn weights(&self) -> impl Iterator<Item = WeightId> {
        self.node.operands.iter().filter_map(|o| o.weight())
    }

    fn all_weight_bytes(&self) -> u64 {
        self.weights().map(|w| self.graph.weight(w).bytes()).sum()
    }

    fn all_weight_elems(&self) -> u64 {
        self.weights().map(|w| self.graph.weight(w).elems()).sum()
    }

    /// Rows of the result in this call; the head sees one row.
    fn rows(&self) -> u64 {
        let rows = self.graph.ty(self.node.results[0]).rows();
        match rows.as_symbol() {
            Some(SymbolId::OUTPUT_ROWS) => 1,
            Some(_) => self.tokens,
            None => rows.as_const().unwrap_or(1),
        }
    }

    /// Every query row reads its keys and values; every new row is written once.
    fn attention(&self) -> Work {
        let int = |name: &str| self.node.attrs.int(name);
        let (heads, kv_heads, head_dim) = (int("heads"), int("kv_heads"), int("head_dim"));
        let keys: u64 = (0..self.tokens).map(|row| self.keys_read(self.context + row)).sum();
        let storage = KvStorage::by_name(self.node.attrs.word("kv_cache")).expect("the schema wants one of them");
        let row_bytes = storage.row_bytes(head_dim).unwrap_or(u64::MAX).saturating_mul(2 * kv_heads);
        Work {
            kv_bytes: keys.saturating_add(self.tokens).saturating_mul(row_bytes),
            multiply_adds: Range::exact(keys.saturating_mul(2 * heads * head_dim)),
            ..Work::default()
        }
    }

    /// Most keys that a query at `position` reads.
    fn keys_read(&self, position: u64) -> u64 {
        let int = |name: &str| self.node.attrs.int(name);
        let before = position + 1;
        if self.node.op == Op::AttnClustered {
            return before.min(int("window").saturating_add(int("sinks")).saturating_add(int("cluster_cap")));
        }
        match (self.node.attrs.flag("causal"), int("window")) {
            (false, _) => self.context + self.tokens,
            (true, 0) => before,
            (true, window) => before.min(window),
        }
    }

    /// The weights of modules that somebody chose, and the rows routed to them.
    fn modules(&self) -> Work {
        let (groups, fixed) = (self.node.op.num_module_groups() as u64, self.node.op.num_fixed_operands());
        let modules = (self.node.operands.len() - fixed) as u64 / groups;
        let mask = if self.node.op == Op::ExpertApply { self.node.operands[1] } else { self.group_mask() };
        let routed = self.routed(mask, modules);
        Work {
            // All modules of a layer have the same shape.
            weight_bytes: routed.modules.times(self.all_weight_bytes() / modules),
            multiply_adds: routed.rows.times(self.all_weight_elems() / modules),
            ..Work::default()
        }
    }

    /// The mask that the node's offsets were sorted by.
    fn group_mask(&self) -> Operand {
        let group = self.definition(self.node.operands[1]).filter(|n| n.op == Op::RouteGroup);
        group.map_or(Operand::None, |n| n.operands[0])
    }

    fn definition(&self, operand: Operand) -> Option<&Node> {
        self.definitions[operand.value()?.0 as usize].map(|id| self.graph.node(id))
    }

    /// What the `route.select` that made a mask lets a call choose among `modules`; anything if nothing is known of it.
    fn routed(&self, mask: Operand, modules: u64) -> Routed {
        let per_token = |min: u64, max: u64| Routed {
            rows: Range { min, max }.times(self.tokens),
            // All tokens choose the same modules, or each one others.
            modules: Range { min: min.min(modules), max: max.saturating_mul(self.tokens).min(modules) },
        };
        let Some(select) = self.definition(mask).filter(|n| n.op == Op::RouteSelect) else {
            return per_token(0, modules);
        };
        let int = |name: &str| select.attrs.int(name);
        match Policy::of(&select.attrs) {
            Policy::TopK => per_token(int("k_max"), int("k_max")),
            Policy::TopP => per_token(int("k_min").max(1), int("k_max")),
            Policy::Threshold | Policy::Bidirectional => per_token(0, int("k_max")),
            Policy::ExpertChoice => {
                let factor = f64::from(select.attrs.float("capacity_factor"));
                let capacity = (factor * self.tokens as f64 * int("k_max") as f64 / modules as f64).ceil();
                let rows = modules.saturating_mul((capacity as u64).min(self.tokens));
                Routed { rows: Range::exact(rows), modules: Range::exact(modules) }
            }
        }
    }
}

/// Rows that modules compute in a call, and modules that compute any.
#[derive(Clone, Copy)]
struct Routed {
    rows: Range,
    modules: Range,
}
