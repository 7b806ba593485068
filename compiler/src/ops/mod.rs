//! The op table: one row per op, and everything that is known of an op in its row.
//!
//! The rows' schema stands here; shape rules and reference evaluations live in one file per family.

use crate::ir::AttrKind;

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
}

/// Words of `route.select`'s `policy`.
pub const POLICIES: &[&str] = &["top_k", "top_p", "threshold", "expert_choice", "bidirectional"];

macro_rules! op_table {
    ($( $(#[doc = $doc:literal])+ $op:ident = $name:literal
        ( $($operand:ident : $okind:ident),* ) { $($attr:ident : $akind:expr),* } -> ( $($result:ident),+ ) ;)+) => {
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
        } ),+];
    };
}

use AttrKind::{Bool, Float, Int, Word};

op_table! {
    /// Rows of a table: `[T]` ids, `[V, d]` → `[T, d]`.
    Embed = "embed" (ids: Value, table: Weight) {} -> (y);
    /// `x / sqrt(mean(x²) + eps) · w`, `[R, n]`, w `[n]` (absent: 1).
    RmsNorm = "rms_norm" (x: Value, w: OptionalWeight) { eps: Float } -> (y);
    /// `act(x · wᵀ) + residual`: `[R, k]`, `[n, k]`, `[R, n]` → `[R, n]`.
    Linear = "linear" (x: Value, w: Weight, residual: OptionalValue) { act: Word(&["none", "silu", "gelu"]) } -> (y);
    /// `silu(x · gateᵀ) ⊙ (x · upᵀ)`: `[R, k]`, `[f, k]`, `[f, k]` → `[R, f]`.
    LinearSwiglu = "linear.swiglu" (x: Value, gate: Weight, up: Weight) {} -> (y);
    /// `a + b`, equal shapes.
    Add = "add" (a: Value, b: Value) {} -> (y);
    /// `a ⊙ b`, equal shapes.
    Mul = "mul" (a: Value, b: Value) {} -> (y);
    /// `factor · x`.
    Scale = "scale" (x: Value) { factor: Float } -> (y);
    /// `x / (1 + exp(−x))`.
    Silu = "silu" (x: Value) {} -> (y);
    /// `x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
    Gelu = "gelu" (x: Value) {} -> (y);
    /// `exp(x) / Σ exp(x)` over each row.
    Softmax = "softmax" (x: Value) {} -> (y);
    /// Columns `begin..end` of `[R, n]`: a view.
    Slice = "slice" (x: Value) { begin: Int, end: Int } -> (y);
    /// Half rotation of each head, position = first position of the call + row: `[T, heads·head_dim]`.
    Rope = "rope" (x: Value) { heads: Int, head_dim: Int, theta: Float } -> (y);
    /// Attention to a range of keys: q `[T, heads·head_dim]`, k and v `[T, kv_heads·head_dim]` → as q. Causal: the query
    /// at position t sees keys j ≤ t, and with `window` > 0 only t − j < window. Not causal: all keys, `window` is 0.
    AttnRange = "attn.range" (q: Value, k: Value, v: Value)
        { heads: Int, kv_heads: Int, head_dim: Int, scale: Float, causal: Bool, window: Int } -> (y);
    /// Attention to window, sinks and the latest tokens of the query's own cluster (`[T]` u32): causal.
    AttnClustered = "attn.clustered" (q: Value, k: Value, v: Value, cluster: Value)
        { heads: Int, kv_heads: Int, head_dim: Int, scale: Float, window: Int, sinks: Int, cluster_cap: Int, num_clusters: Int } -> (y);
    /// `softmax_c(scale·q·keys[c] + lambda·ln(domains[:, c mod D] + 1e-6))`: q `[T, d_s]`, domains `[T, D]` (absent:
    /// uniform), keys `[C, d_s]` → `[T, C]`.
    RouteScores = "route.scores" (q: Value, domains: OptionalValue, keys: Weight)
        { scale: Float, lambda: Float, num_domains: Int } -> (a);
    /// `argmax_c`, lowest index on a tie: `[T, C]` → `[T]` u32.
    RouteCluster = "route.cluster" (a: Value) {} -> (cluster);
    /// The token's set of modules: `[T, C]` → mask u8 `[T, C]`, gates `[T, C]` (0 where not selected).
    RouteSelect = "route.select" (a: Value)
        { policy: Word(POLICIES), k_min: Int, k_max: Int, p: Float, tau: Float, capacity_factor: Float, norm_gates: Bool }
        -> (mask, gates);
    /// Counting sort of (token, module) pairs by module, tokens ascending: mask, gates `[T, C]` → offsets u32 `[C+1]`,
    /// tokens u32 `[N]`, token_gates `[N]`; N = Σ|R|.
    RouteGroup = "route.group" (mask: Value, gates: Value) {} -> (offsets, tokens, token_gates);
    /// `x[tokens[i]]`: `[T, d]`, `[N]` → `[N, d]`.
    RouteGather = "route.gather" (x: Value, tokens: Value) {} -> (rows);
    /// Rows `offsets[c]..offsets[c+1]` times w_cᵀ: `[N, k]`, `[C+1]`, C weights `[n, k]` → `[N, n]`.
    ExpertLinear = "expert.linear" (rows: Value, offsets: Value, w: WeightPerModule) {} -> (y);
    /// `residual[t] + Σ_{i: tokens[i] = t} token_gates[i]·rows[i]`, i ascending: `[N, d]` → `[T, d]` (residual absent: 0).
    RouteCombine = "route.combine" (rows: Value, tokens: Value, token_gates: Value, residual: OptionalValue) {} -> (y);
    /// `Σ_{c ∈ R} g_c · down_c(silu(gate_c x) ⊙ up_c x)` token by token, as imported: x `[T, d]` → `[T, d]`.
    ExpertApply = "expert.apply" (x: Value, mask: Value, gates: Value, gate: WeightPerModule, up: WeightPerModule, down: WeightPerModule)
        {} -> (y);
    /// The same over groups, one module after the other, plus residual: only rows that were routed, only weights of modules
    /// that somebody chose.
    ExpertFfn = "expert.ffn" (x: Value, offsets: Value, tokens: Value, token_gates: Value, residual: OptionalValue,
        gate: WeightPerModule, up: WeightPerModule, down: WeightPerModule) {} -> (y);
    /// `Σ_{c ∈ R} g_c · values[c]`: mask, gates `[T, C]`, values `[C, d_s]` → `[T, d_s]`.
    RouteMemory = "route.memory" (mask: Value, gates: Value, values: Weight) {} -> (y);
    /// The last S rows: `[T, d]` → `[S, d]`.
    LastRows = "last_rows" (x: Value) {} -> (y);
    /// Mean over rows: `[T, d]` → `[1, d]`.
    MeanRows = "mean_rows" (x: Value) {} -> (y);
    /// `x / max(‖x‖₂, 1e-12)` per row.
    L2Normalize = "l2_normalize" (x: Value) {} -> (y);
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
}
