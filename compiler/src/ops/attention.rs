//! Rotary positions and attention.

use super::{InferCx, mismatch};
use crate::ir::{DType, Dim, TensorType};

/// `heads · head_dim`, if it is a width that exists.
fn width(cx: &InferCx<'_>, heads: &str) -> Result<u64, String> {
    let (heads_n, head_dim) = (cx.positive(heads)?, cx.positive("head_dim")?);
    heads_n.checked_mul(head_dim).ok_or_else(|| mismatch(heads, "heads · head_dim in 64 bits", heads_n))
}

/// `[T, heads·head_dim]` → the same; halves are rotated, so head_dim is even.
pub(super) fn rope_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let (rows, n) = cx.matrix(0, DType::F32)?;
    cx.want_tokens(0, rows)?;
    cx.positive_float("theta")?;
    let head_dim = cx.attrs.int("head_dim");
    if !head_dim.is_multiple_of(2) {
        return Err(mismatch("head_dim", "an even number", head_dim));
    }
    let wanted = width(cx, "heads")?;
    if n != wanted {
        return Err(mismatch("x", format!("heads · head_dim = {wanted} columns"), n));
    }
    Ok(vec![cx.value(0).clone()])
}

/// q `[T, heads·head_dim]`, k and v `[T, kv_heads·head_dim]` → as q.
fn attention_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let (rows, n) = cx.matrix(0, DType::F32)?;
    cx.want_tokens(0, rows)?;
    let (q, kv) = (width(cx, "heads")?, width(cx, "kv_heads")?);
    if n != q {
        return Err(mismatch("q", format!("heads · head_dim = {q} columns"), n));
    }
    let (heads, kv_heads) = (cx.attrs.int("heads"), cx.attrs.int("kv_heads"));
    if !heads.is_multiple_of(kv_heads) {
        return Err(mismatch("kv_heads", format!("a divisor of heads = {heads}"), kv_heads));
    }
    let kv = TensorType::matrix(DType::F32, rows, kv);
    cx.want(1, &kv)?;
    cx.want(2, &kv)?;
    Ok(vec![cx.value(0).clone()])
}

/// See [`attention_types`]; a window needs causality.
pub(super) fn range_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let window = cx.attrs.int("window");
    if window > 0 && !cx.attrs.flag("causal") {
        return Err(mismatch("window", "0 when not causal", window));
    }
    attention_types(cx)
}

/// See [`attention_types`]; every token sees itself at least, so the window is not empty.
pub(super) fn clustered_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    cx.positive("window")?;
    cx.positive("num_clusters")?;
    let tokens: Dim = cx.vector(3, DType::U32)?;
    cx.want_tokens(3, tokens)?;
    attention_types(cx)
}
