//! Routing: scores, each token's set of modules, and tokens grouped by module.

use super::eval::{dot, softmax};
use super::{EvalCx, InferCx, Op, mismatch};
use crate::interp::{Data, Tensor};
use crate::ir::{Attrs, DType, Dim, SymbolId, TensorType};

/// Words of `route.select`'s `policy`, in the order of [`Policy`].
pub const POLICIES: &[&str] = &["top_k", "top_p", "threshold", "expert_choice", "bidirectional"];

/// How a token's set of modules is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The `k_max` largest.
    TopK,
    /// The smallest prefix of the descending order whose mass is at least `p`, `k_min` to `k_max` long.
    TopP,
    /// All that are at least `tau`, at most `k_max`, perhaps none.
    Threshold,
    /// Each module takes its `cap` best tokens.
    ExpertChoice,
    /// Top-k and among the module's `cap` best tokens.
    Bidirectional,
}

impl Policy {
    /// All policies.
    pub const ALL: [Policy; 5] =
        [Policy::TopK, Policy::TopP, Policy::Threshold, Policy::ExpertChoice, Policy::Bidirectional];

    /// Its word.
    pub fn name(self) -> &'static str {
        POLICIES[self as usize]
    }

    /// The policy of that name.
    pub fn by_name(name: &str) -> Option<Policy> {
        Policy::ALL.into_iter().find(|p| p.name() == name)
    }

    /// The policy of a `route.select` that fits its row.
    pub fn of(attrs: &Attrs) -> Policy {
        Policy::by_name(attrs.word("policy")).expect("the schema wants a policy")
    }

    /// Whether a token's modules depend on other tokens, later ones included.
    pub fn looks_across_tokens(self) -> bool {
        match self {
            Policy::TopK | Policy::TopP | Policy::Threshold => false,
            Policy::ExpertChoice | Policy::Bidirectional => true,
        }
    }
}

/// Most modules that `route.select` gives one token, averaged over the tokens of a call: the bound of `route.group`'s N.
pub fn select_bound(attrs: &Attrs, num_clusters: u64) -> u64 {
    match Policy::of(attrs) {
        // A module takes its best tokens; nothing keeps all modules from taking the same one.
        Policy::ExpertChoice => num_clusters,
        Policy::TopK | Policy::TopP | Policy::Threshold | Policy::Bidirectional => attrs.int("k_max").min(num_clusters),
    }
}

/// q `[T, d_s]`, domains `[T, D]`, keys `[C, d_s]` → `[T, C]`.
pub(super) fn scores_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let (rows, ds) = cx.matrix(0, DType::F32)?;
    let (c, k) = cx.weight_matrix(2)?;
    if k != ds {
        return Err(mismatch("keys", format!("{ds} columns as q has"), format!("[{c}, {k}]")));
    }
    let domains = cx.positive("num_domains")?;
    if domains > c {
        return Err(mismatch("num_domains", format!("at most the {c} clusters"), domains));
    }
    cx.want(1, &TensorType::matrix(DType::F32, rows, domains))?;
    Ok(vec![TensorType::matrix(DType::F32, rows, c)])
}

/// `[T, C]` → `[T]` u32.
pub(super) fn cluster_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let (rows, _) = cx.matrix(0, DType::F32)?;
    Ok(vec![TensorType::vector(DType::U32, rows)])
}

/// `[T, C]` → mask u8 and gates, `[T, C]`.
pub(super) fn select_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let (rows, c) = cx.matrix(0, DType::F32)?;
    cx.want_tokens(0, rows)?;
    let (k_min, k_max) = (cx.attrs.int("k_min"), cx.positive("k_max")?);
    if k_max > c {
        return Err(mismatch("k_max", format!("at most the {c} clusters"), k_max));
    }
    if k_min > k_max {
        return Err(mismatch("k_min", format!("at most k_max = {k_max}"), k_min));
    }
    let (p, tau) = (cx.positive_float("p")?, cx.attrs.float("tau"));
    if p > 1.0 {
        return Err(mismatch("p", "at most 1", p));
    }
    if !(0.0..=1.0).contains(&tau) {
        return Err(mismatch("tau", "0 to 1", tau));
    }
    cx.positive_float("capacity_factor")?;
    Ok(vec![TensorType::matrix(DType::U8, rows, c), TensorType::matrix(DType::F32, rows, c)])
}

/// Largest N per token of a `route.group`, from the `route.select` that made its mask; C if something else did.
pub(crate) fn group_bound(cx: &InferCx<'_>) -> Result<u64, String> {
    let (_, c) = cx.matrix(0, DType::U8)?;
    let mask = cx.operands[0].value().expect("the schema wants a value");
    let definition = match cx.definitions {
        Some(definitions) => definitions[mask.0 as usize].map(|id| cx.graph.node(id)),
        None => cx.graph.nodes.iter().rev().find(|n| n.results.contains(&mask)),
    };
    Ok(match definition {
        Some(node) if node.op == Op::RouteSelect && node.attrs.get("policy").is_some() => select_bound(&node.attrs, c),
        Some(_) | None => c,
    })
}

/// mask and gates `[T, C]` → offsets `[C+1]`, tokens `[N]`, gates `[N]`, N a symbol of the node's own.
pub(super) fn group_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let (rows, c) = cx.matrix(0, DType::U8)?;
    cx.want_tokens(0, rows)?;
    cx.want(1, &TensorType::matrix(DType::F32, rows, c))?;
    let bound = group_bound(cx)?;
    let n = match cx.symbol {
        Some(s) if s != SymbolId::TOKENS && s != SymbolId::OUTPUT_ROWS => s,
        Some(_) | None => return Err(mismatch("tokens", "a symbol of the node's own", "none")),
    };
    let symbol = &cx.graph.symbols[n.0 as usize];
    if symbol.max_per_token != bound {
        let found = format!("{} <= {}", symbol.name, symbol.max_per_token);
        return Err(mismatch("bound of the symbol", format!("{bound} per token"), found));
    }
    let vector = |dtype, dim| TensorType::vector(dtype, dim);
    let n = Dim::Sym(n);
    Ok(vec![vector(DType::U32, Dim::Const(c + 1)), vector(DType::U32, n), vector(DType::F32, n)])
}

/// x `[T, d]`, tokens `[N]` → `[N, d]`.
pub(super) fn gather_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let (_, d) = cx.matrix(0, DType::F32)?;
    let n = cx.vector(1, DType::U32)?;
    Ok(vec![TensorType::matrix(DType::F32, n, d)])
}

/// rows `[N, d]`, tokens and gates `[N]`, residual `[T, d]` → `[T, d]`.
pub(super) fn combine_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let (n, d) = cx.matrix(0, DType::F32)?;
    cx.want(1, &TensorType::vector(DType::U32, n))?;
    cx.want(2, &TensorType::vector(DType::F32, n))?;
    let y = TensorType::matrix(DType::F32, Dim::Sym(SymbolId::TOKENS), d);
    cx.want(3, &y)?;
    Ok(vec![y])
}

/// mask and gates `[T, C]`, values `[C, d_s]` → `[T, d_s]`.
pub(super) fn memory_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let (rows, c) = cx.matrix(0, DType::U8)?;
    cx.want(1, &TensorType::matrix(DType::F32, rows, c))?;
    let (n, ds) = cx.weight_matrix(2)?;
    if n != c {
        return Err(mismatch("values", format!("one row for each of {c} clusters"), format!("[{n}, {ds}]")));
    }
    Ok(vec![TensorType::matrix(DType::F32, rows, ds)])
}

/// `softmax_c(scale·q·keys[c] + lambda·ln(domains[:, c mod D] + 1e-6))`.
pub(super) fn scores_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let (q, domains, keys) = (cx.value(0), cx.optional(1).map(Tensor::f32s), cx.weight(2)?);
    let (scale, lambda) = (f64::from(cx.float("scale")), f64::from(cx.float("lambda")));
    let num_domains = cx.size("num_domains");
    let c_all = cx.weight_shape(2).0;
    let mut a = Vec::with_capacity(q.rows() * c_all);
    for (t, q) in q.f32s().chunks_exact(q.cols()).enumerate() {
        let domain = |c: usize| match domains {
            Some(pi) => f64::from(pi[t * num_domains + c % num_domains]),
            None => 1.0 / num_domains as f64,
        };
        let score = |(c, key)| scale * dot(q, key) + lambda * (domain(c) + 1e-6).ln();
        let mut row: Vec<f64> = keys.chunks_exact(q.len()).enumerate().map(score).collect();
        softmax(&mut row);
        a.extend(row.into_iter().map(|v| v as f32));
    }
    Ok(vec![Tensor::matrix(q.rows(), c_all, a)])
}

/// Indices of the largest first, the lower index on a tie.
fn descending(n: usize, score: impl Fn(usize) -> f32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
    order
}

/// `argmax_c`, lowest index on a tie.
pub(super) fn cluster_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let a = cx.value(0);
    let best = |row: &[f32]| (1..row.len()).fold(0, |best, c| if row[c] > row[best] { c } else { best }) as u32;
    Ok(vec![Tensor::indices(a.f32s().chunks_exact(a.cols()).map(best).collect())])
}

/// How many tokens of a call a module takes at most: ⌈capacity_factor · T · k_max / C⌉ and at most T, in f64, from left
/// to right, of the factor as f32.
pub fn select_capacity(capacity_factor: f32, tokens: usize, k_max: usize, num_clusters: usize) -> usize {
    let cap = (f64::from(capacity_factor) * tokens as f64 * k_max as f64 / num_clusters as f64).ceil();
    if cap >= tokens as f64 { tokens } else { cap as usize }
}

/// How many modules, from the best on, a token takes under `top_p`: the mass is summed in f32, in descending order.
fn prefix_length(a: &[f32], order: &[usize], p: f32) -> usize {
    let mut mass = 0.0f32;
    for (i, c) in order.iter().enumerate() {
        mass += a[*c];
        if mass >= p {
            return i + 1;
        }
    }
    order.len()
}

/// The token's set of modules by the policy.
pub(super) fn select_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let a = cx.value(0);
    let (tokens, c_all) = (a.rows(), a.cols());
    let (k_min, k_max) = (cx.size("k_min"), cx.size("k_max"));
    let (p, tau) = (cx.float("p"), cx.float("tau"));
    let policy = Policy::by_name(cx.word("policy")).expect("the schema wants a policy");
    let mut mask = vec![0u8; a.elems()];
    for (row, mask) in a.f32s().chunks_exact(c_all).zip(mask.chunks_exact_mut(c_all)) {
        let order = descending(c_all, |c| row[c]);
        let taken = match policy {
            Policy::TopP => prefix_length(row, &order, p).clamp(k_min, k_max),
            Policy::Threshold => order.iter().take_while(|c| row[**c] >= tau).count().min(k_max),
            Policy::ExpertChoice => 0,
            Policy::TopK | Policy::Bidirectional => k_max,
        };
        order[..taken].iter().for_each(|c| mask[*c] = 1);
    }
    if policy.looks_across_tokens() {
        let cap = select_capacity(cx.float("capacity_factor"), tokens, k_max, c_all);
        for c in 0..c_all {
            for (place, t) in descending(tokens, |t| a.f32s()[t * c_all + c]).into_iter().enumerate() {
                let of_token = policy == Policy::ExpertChoice || mask[t * c_all + c] != 0;
                mask[t * c_all + c] = u8::from(of_token && place < cap);
            }
        }
    }
    let gates = gates(a.f32s(), &mask, c_all, cx.flag("norm_gates") && policy != Policy::ExpertChoice);
    Ok(vec![Tensor { shape: a.shape.clone(), data: Data::U8(mask) }, Tensor::matrix(tokens, c_all, gates)])
}

/// a where selected, 0 elsewhere, divided by the row's sum when `norm`; an empty set stays empty.
fn gates(a: &[f32], mask: &[u8], c_all: usize, norm: bool) -> Vec<f32> {
    let mut out = Vec::with_capacity(a.len());
    for (a, mask) in a.chunks_exact(c_all).zip(mask.chunks_exact(c_all)) {
        let gate = |(a, m): (&f32, &u8)| if *m != 0 { f64::from(*a) } else { 0.0 };
        let mass: f64 = a.iter().zip(mask).map(gate).sum();
        let scale = if norm && mass > 0.0 { 1.0 / mass } else { 1.0 };
        out.extend(a.iter().zip(mask).map(gate).map(|g| (g * scale) as f32));
    }
    out
}

/// Counting sort of (token, module) pairs by module.
pub(super) fn group_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let (mask, gates) = (cx.value(0), cx.value(1).f32s());
    let c_all = mask.cols();
    let (mut offsets, mut tokens, mut token_gates) = (vec![0u32], Vec::new(), Vec::new());
    for c in 0..c_all {
        for t in (0..mask.rows()).filter(|t| mask.u8s()[t * c_all + c] != 0) {
            tokens.push(t as u32);
            token_gates.push(gates[t * c_all + c]);
        }
        offsets.push(tokens.len() as u32);
    }
    let token_gates = Tensor { shape: vec![token_gates.len()], data: Data::F32(token_gates) };
    Ok(vec![Tensor::indices(offsets), Tensor::indices(tokens), token_gates])
}

/// `x[tokens[i]]`.
pub(super) fn gather_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let (x, tokens) = (cx.value(0), cx.value(1).u32s());
    let d = x.cols();
    let rows = tokens.iter().flat_map(|t| x.f32s()[*t as usize * d..(*t as usize + 1) * d].iter().copied());
    Ok(vec![Tensor::matrix(tokens.len(), d, rows.collect())])
}

/// `residual[t] + Σ_{i: tokens[i] = t} token_gates[i]·rows[i]`.
pub(super) fn combine_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let (rows, tokens, gates) = (cx.value(0), cx.value(1).u32s(), cx.value(2).f32s());
    let d = rows.cols();
    let mut y = match cx.optional(3) {
        Some(residual) => residual.f32s().iter().copied().map(f64::from).collect(),
        None => vec![0.0; cx.tokens() * d],
    };
    for ((row, t), g) in rows.f32s().chunks_exact(d).zip(tokens).zip(gates) {
        let t = *t as usize;
        y[t * d..(t + 1) * d].iter_mut().zip(row).for_each(|(y, x)| *y += f64::from(*g) * f64::from(*x));
    }
    Ok(vec![Tensor::matrix(y.len() / d, d, y.into_iter().map(|v| v as f32).collect())])
}

/// `Σ_{c ∈ R} g_c · values[c]`.
pub(super) fn memory_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let (mask, gates, values) = (cx.value(0), cx.value(1).f32s(), cx.weight(2)?);
    let (c_all, ds) = cx.weight_shape(2);
    let mut y = Vec::with_capacity(mask.rows() * ds);
    for (mask, gates) in mask.u8s().chunks_exact(c_all).zip(gates.chunks_exact(c_all)) {
        let mut sum = vec![0.0f64; ds];
        for c in (0..c_all).filter(|c| mask[*c] != 0) {
            let value = &values[c * ds..(c + 1) * ds];
            sum.iter_mut().zip(value).for_each(|(s, v)| *s += f64::from(gates[c]) * f64::from(*v));
        }
        y.extend(sum.into_iter().map(|s| s as f32));
    }
    Ok(vec![Tensor::matrix(mask.rows(), ds, y)])
}
