//! The op table: one row per op, and everything that is known of an op in its row.
//!
//! The rows stand here; the shape rules (`*_types`) and reference evaluations (`*_eval`) that they
//! name live in one file per family. A rule sees a
//! node whose operands and attributes already fit the row ([`check_schema`]), so it speaks of shapes only.
//!
//! ```
//! use lapidary_compiler::ops::Op;
//! let row = Op::by_name("rms_norm").unwrap().row();
//! assert_eq!(row.operands[1].name, "w");
//! ```

mod attention;
mod elementwise;
mod eval;
mod expert;
mod linear;
mod norm;
mod route;
mod rows;
mod schema;

use crate::interp::Tensor;
use crate::ir::{AttrKind, KvStorage, TensorType};
pub use eval::{EvalCx, Matrix};
pub use route::{POLICIES, Policy, select_bound, select_capacity};
pub(crate) use schema::shortened;
pub use schema::{InferCx, check_schema, mismatch};

/// A shape rule: from a node's operands and attributes to the types of its results.
pub type InferFn = fn(&InferCx<'_>) -> Result<Vec<TensorType>, String>;

/// What may stand at an operand's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperandKind {
    /// A value.
    Value,
    /// A value or `_`.
    OptionalValue,
    /// A weight.
    Weight,
    /// A weight or `_`.
    OptionalWeight,
    /// One weight per module; always after all other operands. Several such groups follow each other, equally long.
    WeightPerModule,
}

/// An operand's place.
#[derive(Clone, Copy, Debug)]
pub struct OperandRow {
    /// Name in messages.
    pub name: &'static str,
    /// What may stand there.
    pub kind: OperandKind,
}

/// An attribute's place.
#[derive(Clone, Copy, Debug)]
pub struct AttrRow {
    /// Name in the text form.
    pub name: &'static str,
    /// Kind of its value.
    pub kind: AttrKind,
}

/// An evaluation of a node. Those of the table: plain loops, results in f32, sums in f64.
pub type EvalFn = fn(&EvalCx<'_>) -> Result<Vec<Tensor>, String>;

/// The bound of the symbol that a node brings in: its largest value per token.
pub type BoundFn = fn(&InferCx<'_>) -> Result<u64, String>;

/// One op.
#[derive(Clone, Copy, Debug)]
pub struct OpRow {
    /// The op.
    pub op: Op,
    /// Name in the text form.
    pub name: &'static str,
    /// Operands in order.
    pub operands: &'static [OperandRow],
    /// Attributes in order, all required.
    pub attrs: &'static [AttrRow],
    /// Names of the results.
    pub results: &'static [&'static str],
    /// What it computes, with shapes.
    pub doc: &'static str,
    /// Shape rule.
    pub infer: InferFn,
    /// Reference evaluation.
    pub eval: EvalFn,
    /// For an op whose results have a row count of their own: that symbol's bound.
    pub new_symbol: Option<BoundFn>,
}

macro_rules! op_table {
    ($( $(#[doc = $doc:literal])+ $op:ident = $name:literal
        ( $($operand:ident : $okind:ident),* ) { $($attr:ident : $akind:expr),* } -> ( $($result:ident),+ )
        : $infer:path, $eval:path $(, new symbol $bound:path)? ;)+) => {
        /// An operation; everything about it stands in its [`OpRow`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Op { $( $(#[doc = $doc])+ $op, )+ }

        /// All ops.
        pub const OPS: &[OpRow] = &[$( OpRow {
            op: Op::$op,
            name: $name,
            operands: &[$( OperandRow { name: stringify!($operand), kind: OperandKind::$okind } ),*],
            attrs: &[$( AttrRow { name: stringify!($attr), kind: $akind } ),*],
            results: &[$( stringify!($result) ),+],
            doc: concat!($($doc, "\n"),+),
            infer: $infer,
            eval: $eval,
            new_symbol: match &[$( $bound as BoundFn )?] as &[BoundFn] {
                [bound, ..] => Some(*bound),
                [] => None,
            },
        } ),+];
    };
}

use AttrKind::{Bool, Float, Int, Word};

op_table! {
    /// Rows of a table: `[T]` ids, `[V, d]` → `[T, d]`.
    Embed = "embed" (ids: Value, table: Weight) {} -> (y): rows::embed_types, rows::embed_eval;
    /// `x / sqrt(mean(x²) + eps) · w`, `[R, n]`, w `[n]` (absent: 1).
    RmsNorm = "rms_norm" (x: Value, w: OptionalWeight) { eps: Float } -> (y): norm::rms_norm_types, norm::rms_norm_eval;
    /// `act(x · wᵀ) + residual`: `[R, k]`, `[n, k]`, `[R, n]` → `[R, n]`.
    Linear = "linear" (x: Value, w: Weight, residual: OptionalValue) { act: Word(&["none", "silu", "gelu"]) } -> (y): linear::linear_types, linear::linear_eval;
    /// `silu(x · gateᵀ) ⊙ (x · upᵀ)`: `[R, k]`, `[f, k]`, `[f, k]` → `[R, f]`.
    LinearSwiglu = "linear.swiglu" (x: Value, gate: Weight, up: Weight) {} -> (y): linear::swiglu_types, linear::swiglu_eval;
    /// `a + b`, equal shapes.
    Add = "add" (a: Value, b: Value) {} -> (y): elementwise::binary_types, elementwise::add_eval;
    /// `a ⊙ b`, equal shapes.
    Mul = "mul" (a: Value, b: Value) {} -> (y): elementwise::binary_types, elementwise::mul_eval;
    /// `factor · x`.
    Scale = "scale" (x: Value) { factor: Float } -> (y): elementwise::unary_types, elementwise::scale_eval;
    /// `x / (1 + exp(−x))`.
    Silu = "silu" (x: Value) {} -> (y): elementwise::unary_types, elementwise::silu_eval;
    /// `x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
    Gelu = "gelu" (x: Value) {} -> (y): elementwise::unary_types, elementwise::gelu_eval;
    /// `exp(x) / Σ exp(x)` over each row.
    Softmax = "softmax" (x: Value) {} -> (y): norm::softmax_types, norm::softmax_eval;
    /// Columns `begin..end` of `[R, n]`: a view.
    Slice = "slice" (x: Value) { begin: Int, end: Int } -> (y): rows::slice_types, rows::slice_eval;
    /// Half rotation of each head, position = first position of the call + row: `[T, heads·head_dim]`.
    Rope = "rope" (x: Value) { heads: Int, head_dim: Int, theta: Float } -> (y): attention::rope_types, attention::rope_eval;
    /// Attention to a range of keys: q `[T, heads·head_dim]`, k and v `[T, kv_heads·head_dim]` → as q. Causal: the query
    /// at position t sees keys j ≤ t, and with `window` > 0 only t − j < window. Not causal: all keys, `window` is 0.
    /// `kv_cache` is how keys and values are kept between calls, and so what is read of them; f32 when not causal.
    AttnRange = "attn.range" (q: Value, k: Value, v: Value)
        { heads: Int, kv_heads: Int, head_dim: Int, scale: Float, causal: Bool, window: Int, kv_cache: Word(&KvStorage::NAMES) } -> (y): attention::range_types, attention::range_eval;
    /// Attention to window, sinks and the latest tokens of the query's own cluster (`[T]` u32): causal. `kv_cache` as above.
    AttnClustered = "attn.clustered" (q: Value, k: Value, v: Value, cluster: Value)
        { heads: Int, kv_heads: Int, head_dim: Int, scale: Float, window: Int, sinks: Int, cluster_cap: Int, num_clusters: Int, kv_cache: Word(&KvStorage::NAMES) } -> (y): attention::clustered_types, attention::clustered_eval;
    /// `softmax_c(scale·q·keys[c] + lambda·ln(domains[:, c mod D] + 1e-6))`: q `[T, d_s]`, domains `[T, D]` (absent:
    /// uniform), keys `[C, d_s]` → `[T, C]`.
    RouteScores = "route.scores" (q: Value, domains: OptionalValue, keys: Weight)
        { scale: Float, lambda: Float, num_domains: Int } -> (a): route::scores_types, route::scores_eval;
    /// `argmax_c`, lowest index on a tie: `[T, C]` → `[T]` u32.
    RouteCluster = "route.cluster" (a: Value) {} -> (cluster): route::cluster_types, route::cluster_eval;
    /// The token's set of modules: `[T, C]` → mask u8 `[T, C]`, gates `[T, C]` (0 where not selected).
    RouteSelect = "route.select" (a: Value)
        { policy: Word(POLICIES), k_min: Int, k_max: Int, p: Float, tau: Float, capacity_factor: Float, norm_gates: Bool }
        -> (mask, gates): route::select_types, route::select_eval;
    /// Counting sort of (token, module) pairs by module, tokens ascending: mask, gates `[T, C]` → offsets u32 `[C+1]`,
    /// tokens u32 `[N]`, token_gates `[N]`; N = Σ|R|.
    RouteGroup = "route.group" (mask: Value, gates: Value) {} -> (offsets, tokens, token_gates): route::group_types, route::group_eval, new symbol route::group_bound;
    /// `x[tokens[i]]`: `[T, d]`, `[N]` → `[N, d]`.
    RouteGather = "route.gather" (x: Value, tokens: Value) {} -> (rows): route::gather_types, route::gather_eval;
    /// Rows `offsets[c]..offsets[c+1]` times w_cᵀ: `[N, k]`, `[C+1]`, C weights `[n, k]` → `[N, n]`.
    ExpertLinear = "expert.linear" (rows: Value, offsets: Value, w: WeightPerModule) {} -> (y): expert::linear_types, expert::linear_eval;
    /// `residual[t] + Σ_{i: tokens[i] = t} token_gates[i]·rows[i]`, i ascending: `[N, d]` → `[T, d]` (residual absent: 0).
    RouteCombine = "route.combine" (rows: Value, tokens: Value, token_gates: Value, residual: OptionalValue) {} -> (y): route::combine_types, route::combine_eval;
    /// `Σ_{c ∈ R} g_c · down_c(silu(gate_c x) ⊙ up_c x)` token by token, as imported: x `[T, d]` → `[T, d]`.
    ExpertApply = "expert.apply" (x: Value, mask: Value, gates: Value, gate: WeightPerModule, up: WeightPerModule, down: WeightPerModule)
        {} -> (y): expert::apply_types, expert::apply_eval;
    /// The same over groups, one module after the other, plus residual: only rows that were routed, only weights of modules
    /// that somebody chose.
    ExpertFfn = "expert.ffn" (x: Value, offsets: Value, tokens: Value, token_gates: Value, residual: OptionalValue,
        gate: WeightPerModule, up: WeightPerModule, down: WeightPerModule) {} -> (y): expert::ffn_types, expert::ffn_eval;
    /// `Σ_{c ∈ R} g_c · values[c]`: mask, gates `[T, C]`, values `[C, d_s]` → `[T, d_s]`.
    RouteMemory = "route.memory" (mask: Value, gates: Value, values: Weight) {} -> (y): route::memory_types, route::memory_eval;
    /// The same `value` everywhere, as many rows as `like`: `[R, …]` → `[R, cols]`.
    Fill = "fill" (like: Value) { cols: Int, value: Float } -> (y): rows::fill_types, rows::fill_eval;
    /// The last S rows: `[T, d]` → `[S, d]`.
    LastRows = "last_rows" (x: Value) {} -> (y): rows::last_rows_types, rows::last_rows_eval;
    /// Mean over rows: `[T, d]` → `[1, d]`.
    MeanRows = "mean_rows" (x: Value) {} -> (y): rows::mean_rows_types, rows::mean_rows_eval;
    /// `x / max(‖x‖₂, 1e-12)` per row.
    L2Normalize = "l2_normalize" (x: Value) {} -> (y): norm::l2_normalize_types, norm::l2_normalize_eval;
}

impl Op {
    /// The op's row.
    pub fn row(self) -> &'static OpRow {
        &OPS[self as usize]
    }

    /// The op of that name.
    pub fn by_name(name: &str) -> Option<Op> {
        OPS.iter().find(|row| row.name == name).map(|row| row.op)
    }

    /// Whether the op multiplies by its weights as matrices or looks up their rows: such weights may be stored in
    /// integers. The others are read element by element.
    pub fn reads_matrices(self) -> bool {
        match self {
            Op::Embed | Op::Linear | Op::LinearSwiglu | Op::ExpertLinear | Op::ExpertApply | Op::ExpertFfn => true,
            Op::RmsNorm
            | Op::Add
            | Op::Mul
            | Op::Scale
            | Op::Silu
            | Op::Gelu
            | Op::Softmax
            | Op::Slice
            | Op::Rope
            | Op::AttnRange
            | Op::AttnClustered
            | Op::RouteScores
            | Op::RouteCluster
            | Op::RouteSelect
            | Op::RouteGroup
            | Op::RouteGather
            | Op::RouteCombine
            | Op::RouteMemory
            | Op::Fill
            | Op::LastRows
            | Op::MeanRows
            | Op::L2Normalize => false,
        }
    }

    /// Operands before the groups of one weight per module.
    pub fn num_fixed_operands(self) -> usize {
        self.row().operands.iter().take_while(|o| o.kind != OperandKind::WeightPerModule).count()
    }

    /// Groups of one weight per module.
    pub fn num_module_groups(self) -> usize {
        self.row().operands.len() - self.num_fixed_operands()
    }
}
