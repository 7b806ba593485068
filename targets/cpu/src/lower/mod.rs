//! From a planned graph to steps: which function computes a node, over which units, and in which order.
//!
//! Every node becomes zero, one or two [`Step`]s. A step's function computes units `begin..end`: rows of its result,
//! weight panels, attention blocks; all shapes, strides and offsets are constants of the code.

mod attention;
mod dense;
mod expert;
mod gemm;
mod join;
mod quantize;
mod route;

use cranelift_codegen::ir::{InstBuilder, Value};
use lapidary_compiler::ir::{DType, Dim, Graph, Node, NodeId, Op, Operand, SymbolId, ValueId, WeightId};
use lapidary_compiler::plan::{Plan, Region, ScratchRole};

use lapidary_format::{ENTRY_DECODE, ENTRY_DECODE_PROFILE, ENTRY_PREFILL, ENTRY_PREFILL_PROFILE};
use lapidary_kernels::KernelOp;

use self::dense::Arithmetic;
use crate::LowerError;
use crate::emit::{Arg, Emit, FunctionId, context_field};
use crate::layout::WeightLayout;

/// Which entry point is being lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// One token: T = S = 1 are constants of the code.
    Decode,
    /// Any T up to the chunk.
    Prefill,
}

impl Entry {
    /// Name in the artifact.
    pub const fn name(self) -> &'static str {
        match self {
            Entry::Decode => ENTRY_DECODE,
            Entry::Prefill => ENTRY_PREFILL,
        }
    }

    /// Name of its twin that reports the end of each step.
    pub const fn profile_name(self) -> &'static str {
        match self {
            Entry::Decode => ENTRY_DECODE_PROFILE,
            Entry::Prefill => ENTRY_PREFILL_PROFILE,
        }
    }
}

/// How a step may be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Units {
    /// Not at all.
    Serial,
    /// By rows of this dimension.
    Rows(Dim),
    /// Into this many pieces.
    Pieces(u64),
    /// Into pieces of `block` rows of T, times `heads`.
    QueryBlocks {
        /// Rows of a block.
        block: u64,
        /// Key/value heads.
        heads: u64,
    },
}

/// What emits the code of a step: `(emit, begin, end)`.
pub type Body<'a> = Box<dyn Fn(&mut Emit, Value, Value) -> Result<(), LowerError> + 'a>;

/// A piece of a node's work.
pub struct Step<'a> {
    /// The node it belongs to.
    pub node: NodeId,
    /// How it may be split.
    pub units: Units,
    /// Whether it works module by module, and reports so to a profiler.
    pub by_module: bool,
    /// Its code; emitted a second time where a profiler wants reports.
    pub body: Body<'a>,
}

/// What lowering a node needs to know.
pub struct Lowering<'a> {
    /// The fused graph.
    pub graph: &'a Graph,
    /// Its memory plan.
    pub plan: &'a Plan,
    /// Where its weights lie.
    pub layout: &'a WeightLayout,
    /// Entry point.
    pub entry: Entry,
    definitions: Vec<Option<NodeId>>,
}

/// Work below this many bytes of weights is not worth waking a thread for: about two microseconds of one core.
const SERIAL_WEIGHT_BYTES: u64 = 48 << 10;

impl<'a> Lowering<'a> {
    /// Prepares the lowering of one entry point.
    pub fn new(graph: &'a Graph, plan: &'a Plan, layout: &'a WeightLayout, entry: Entry) -> Self {
        Lowering { graph, plan, layout, entry, definitions: graph.definitions() }
    }

    /// All steps of the entry point, in order.
    pub fn steps(&'a self) -> Result<Vec<Step<'a>>, LowerError> {
        let mut steps = Vec::new();
        for i in 0..self.graph.nodes.len() {
            self.node(NodeId(i as u32), &mut steps)?;
        }
        for step in &mut steps {
            if self.is_single(step.units) {
                step.units = Units::Serial;
            }
        }
        Ok(steps)
    }

    fn is_single(&self, units: Units) -> bool {
        match units {
            Units::Serial => true,
            Units::Rows(dim) => self.constant_rows(dim) == Some(1),
            Units::Pieces(n) => n == 1,
            Units::QueryBlocks { heads, .. } => heads == 1 && self.entry == Entry::Decode,
        }
    }

    fn node(&'a self, id: NodeId, steps: &mut Vec<Step<'a>>) -> Result<(), LowerError> {
        let node = self.graph.node(id);
        match node.op {
            Op::Embed => self.embed(id, steps),
            Op::RmsNorm => self.rms_norm(id, steps),
            Op::Linear => self.linear(id, steps),
            Op::LinearSwiglu => self.linear_swiglu(id, steps),
            Op::Add => self.arithmetic(id, Arithmetic::Add, steps),
            Op::Mul => self.arithmetic(id, Arithmetic::Mul, steps),
            Op::Scale => self.arithmetic(id, Arithmetic::Scale(node.attrs.float("factor")), steps),
            Op::Silu => self.unary(id, KernelOp::Silu, steps),
            Op::Gelu => self.unary(id, KernelOp::Gelu, steps),
            Op::Softmax => self.unary(id, KernelOp::Softmax, steps),
            Op::L2Normalize => self.unary(id, KernelOp::L2Normalize, steps),
            Op::Fill => self.fill(id, steps),
            Op::Slice => Ok(()),
            Op::Rope => self.rope(id, steps),
            Op::AttnRange | Op::AttnClustered => self.attention(id, steps),
            Op::RouteScores => self.route_scores(id, steps),
            Op::RouteCluster => self.route_cluster(id, steps),
            Op::RouteSelect => self.route_select(id, steps),
            Op::RouteGroup => self.route_group(id, steps),
            Op::RouteGather => self.route_gather(id, steps),
            Op::RouteCombine => self.route_combine(id, steps),
            Op::RouteMemory => self.route_memory(id, steps),
            Op::ExpertLinear => self.expert_linear(id, steps),
            Op::ExpertFfn => self.expert_ffn(id, steps),
            Op::ExpertApply => Err(LowerError::NotLowerable {
                node: node.label.clone(),
                op: node.op.row().name,
                hint: "run pass group-tokens-by-module first",
            }),
            Op::LastRows => self.last_rows(id, steps),
            Op::MeanRows => self.mean_rows(id, steps),
        }
    }

    /// The number of rows if the entry point fixes it.
    pub fn constant_rows(&self, dim: Dim) -> Option<u64> {
        match (dim, self.entry) {
            (Dim::Const(n), _) => Some(n),
            (Dim::Sym(SymbolId::TOKENS | SymbolId::OUTPUT_ROWS), Entry::Decode) => Some(1),
            (Dim::Sym(_), _) => None,
        }
    }

    /// The number of rows, as code.
    pub fn rows(&self, e: &mut Emit, dim: Dim) -> Value {
        if let Some(n) = self.constant_rows(dim) {
            return e.int(n);
        }
        match dim {
            Dim::Const(n) => e.int(n),
            Dim::Sym(SymbolId::TOKENS) => e.context(context_field!(tokens)),
            Dim::Sym(SymbolId::OUTPUT_ROWS) => e.context(context_field!(output_rows)),
            Dim::Sym(symbol) => {
                let (offsets, modules) = self.group_of(symbol);
                let base = self.address(e, offsets);
                e.load_u32(base, 4 * modules as i32)
            }
        }
    }

    /// The `offsets` value of the `route.group` that defines a routed row count, and its number of modules.
    fn group_of(&self, symbol: SymbolId) -> (ValueId, u64) {
        let node = self
            .graph
            .nodes
            .iter()
            .find(|n| n.op == Op::RouteGroup && self.graph.ty(n.results[1]).rows() == Dim::Sym(symbol))
            .expect("the verifier wants a route.group for every routed row count");
        let modules = self.graph.ty(node.operands[0].value().expect("mask")).cols();
        (node.results[0], modules)
    }

    /// The number of units, as code.
    pub fn unit_count(&self, e: &mut Emit, units: Units) -> Value {
        match units {
            Units::Serial => e.int(1),
            Units::Rows(dim) => self.rows(e, dim),
            Units::Pieces(n) => e.int(n),
            Units::QueryBlocks { block, heads } => {
                let tokens = self.rows(e, Dim::Sym(SymbolId::TOKENS));
                let blocks = e.ceil_div(tokens, block);
                e.times(blocks, heads)
            }
        }
    }

    /// Calls a step for all its units, on the runtime's threads where it can be split.
    pub fn run_step(&self, e: &mut Emit, id: FunctionId, units: Units) {
        let count = self.unit_count(e, units);
        match units {
            Units::Serial => e.call_step(id, count),
            Units::Rows(_) | Units::Pieces(_) | Units::QueryBlocks { .. } => e.parallel_step(id, count),
        }
    }

    /// Address of row 0 of a value.
    pub fn address(&self, e: &mut Emit, value: ValueId) -> Value {
        if self.definitions[value.0 as usize].is_none() {
            return e.context(context_field!(ids));
        }
        e.arena(self.plan.place(value).offset_bytes)
    }

    /// Address of row `row` of a value.
    pub fn row_address(&self, e: &mut Emit, value: ValueId, row: Value) -> Value {
        let base = self.address(e, value);
        let stride = self.stride(value);
        let bytes = self.graph.ty(value).dtype.bytes();
        e.index(base, row, stride * bytes)
    }

    /// Elements from row to row of a value.
    pub fn stride(&self, value: ValueId) -> u64 {
        if self.definitions[value.0 as usize].is_none() {
            return 1;
        }
        self.plan.place(value).row_stride
    }

    /// `stride` as an argument.
    pub fn ld(&self, value: ValueId) -> Arg {
        Arg::Int(self.stride(value))
    }

    /// Whether two values start at the same place with the same stride.
    pub fn same_place(&self, a: ValueId, b: ValueId) -> bool {
        let (a, b) = (self.plan.place(a), self.plan.place(b));
        a.offset_bytes == b.offset_bytes && a.row_stride == b.row_stride
    }

    /// Address of a node's working memory.
    pub fn scratch(&self, e: &mut Emit, node: NodeId, role: ScratchRole) -> Result<Value, LowerError> {
        let scratch = self.plan.scratch(node, role).ok_or_else(|| LowerError::MissingScratch {
            node: self.graph.node(node).label.clone(),
            role: format!("{role:?}"),
        })?;
        Ok(match scratch.region {
            Region::Arena => e.arena(scratch.offset_bytes),
            Region::State => e.state(scratch.offset_bytes),
        })
    }

    /// Operand `i` of a node, which the op's row says is a value.
    pub fn value(&self, node: &Node, i: usize) -> ValueId {
        node.operands[i].value().expect("the verifier wants a value here")
    }

    /// Operand `i` of a node, which the op's row says is a weight.
    pub fn weight(&self, node: &Node, i: usize) -> WeightId {
        node.operands[i].weight().expect("the verifier wants a weight here")
    }

    /// Optional value operand `i`.
    pub fn optional_value(&self, node: &Node, i: usize) -> Option<ValueId> {
        match node.operands[i] {
            Operand::Value(v) => Some(v),
            Operand::Weight(_) | Operand::None => None,
        }
    }

    /// Address of an optional f32 value's row, or null.
    pub fn optional_row(&self, e: &mut Emit, value: Option<ValueId>, row: Value) -> Arg {
        match value {
            Some(v) => Arg::Value(self.row_address(e, v, row)),
            None => Arg::Int(0),
        }
    }

    /// Units for panels of a weight: pieces, or serial where the work is too little to share.
    pub fn panel_units(&self, panels: u64, weight_bytes: u64) -> Units {
        if self.entry == Entry::Decode && weight_bytes < SERIAL_WEIGHT_BYTES {
            Units::Serial
        } else {
            Units::Pieces(panels)
        }
    }

    /// `begin..end` of a step's panels: all of them when it is serial.
    pub fn panel_range(&self, e: &mut Emit, units: Units, panels: u64, begin: Value, end: Value) -> (Value, Value) {
        match units {
            Units::Pieces(n) if n > 1 => (begin, end),
            Units::Pieces(_) | Units::Serial | Units::Rows(_) | Units::QueryBlocks { .. } => (e.int(0), e.int(panels)),
        }
    }

    /// Number of rows `end − begin`, the constant 1 where it is known.
    pub fn row_count(&self, e: &mut Emit, dim: Dim, begin: Value, end: Value) -> Arg {
        match self.constant_rows(dim) {
            Some(1) => Arg::Int(1),
            _ => Arg::Value(e.b.ins().isub(end, begin)),
        }
    }

    /// The rows of a node's first result.
    pub fn result_rows(&self, node: &Node) -> Dim {
        self.graph.ty(node.results[0]).rows()
    }

    /// Checks that a value has the element type that a kernel takes.
    pub fn expect_f32(&self, node: &Node, value: ValueId) -> Result<(), LowerError> {
        let found = self.graph.ty(value).dtype;
        if found == DType::F32 {
            return Ok(());
        }
        Err(LowerError::ActivationType { node: node.label.clone(), op: node.op.row().name, found: found.name() })
    }
}
