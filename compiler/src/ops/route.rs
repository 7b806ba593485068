//! Routing: scores, each token's set of modules, and tokens grouped by module.

use super::{InferCx, Op, mismatch};
use crate::ir::{Attrs, DType, Dim, SymbolId, TensorType};

/// Most modules that `route.select` gives one token, averaged over the tokens of a call: the bound of `route.group`'s N.
pub fn select_bound(attrs: &Attrs, num_clusters: u64) -> u64 {
    match attrs.word("policy") {
        // A module takes its best tokens; nothing keeps all modules from taking the same one.
        "expert_choice" => num_clusters,
        _ => attrs.int("k_max").min(num_clusters),
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
