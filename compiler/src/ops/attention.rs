//! Rotary positions and attention.

use super::eval::{dot, softmax};
use super::{EvalCx, InferCx, mismatch};
use crate::interp::Tensor;
use crate::ir::{DType, Dim, KvStorage, TensorType};
use crate::quant::round_kv_row;

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
    let kv_cache = cx.attrs.word("kv_cache");
    if kv_cache != KvStorage::F32.name() && !cx.attrs.flag("causal") {
        return Err(mismatch("kv_cache", "f32 when not causal: nothing is kept", kv_cache));
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

/// Half rotation: entry i of a head pairs with entry i + head_dim/2, angle = position · theta^(−2i/head_dim). Cosine and
/// sine are computed in f64 and rounded to f32, as the PyTorch reference does.
pub(super) fn rope_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let (x, head_dim, theta) = (cx.value(0), cx.size("head_dim"), f64::from(cx.float("theta")));
    let half = head_dim / 2;
    let mut y = x.f32s().to_vec();
    for (position, row) in y.chunks_exact_mut(x.cols()).enumerate() {
        for head in row.chunks_exact_mut(head_dim) {
            for i in 0..half {
                let angle = position as f64 * theta.powf(-2.0 * i as f64 / head_dim as f64);
                let (cos, sin) = (f64::from(angle.cos() as f32), f64::from(angle.sin() as f32));
                let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
                head[i] = (a * cos - b * sin) as f32;
                head[i + half] = (b * cos + a * sin) as f32;
            }
        }
    }
    Ok(vec![Tensor::matrix(x.rows(), x.cols(), y)])
}

/// Keys and values as they are read back from the cache.
fn cached(cx: &EvalCx<'_>) -> [Vec<f32>; 2] {
    let storage = KvStorage::by_name(cx.word("kv_cache")).expect("the schema wants one of them");
    [1, 2].map(|operand| {
        let mut rows = cx.value(operand).f32s().to_vec();
        rows.chunks_exact_mut(cx.size("head_dim")).for_each(|row| round_kv_row(storage, row));
        rows
    })
}

/// Attention of each token to the keys that `seen` lists for it, ascending.
fn attend(cx: &EvalCx<'_>, seen: impl Fn(usize) -> Vec<usize>) -> Result<Vec<Tensor>, String> {
    let (q, [k, v]) = (cx.value(0), cached(cx));
    let (heads, kv_heads, head_dim) = (cx.size("heads"), cx.size("kv_heads"), cx.size("head_dim"));
    let scale = f64::from(cx.float("scale"));
    let mut y = Vec::with_capacity(q.elems());
    for (t, row) in q.f32s().chunks_exact(q.cols()).enumerate() {
        let keys = seen(t);
        for (h, q) in row.chunks_exact(head_dim).enumerate() {
            let at = |j: usize| {
                let begin = (j * kv_heads + h / (heads / kv_heads)) * head_dim;
                begin..begin + head_dim
            };
            let mut weights: Vec<f64> = keys.iter().map(|j| scale * dot(q, &k[at(*j)])).collect();
            softmax(&mut weights);
            let mut sum = vec![0.0f64; head_dim];
            for (j, w) in keys.iter().zip(&weights) {
                sum.iter_mut().zip(&v[at(*j)]).for_each(|(s, v)| *s += w * f64::from(*v));
            }
            y.extend(sum.into_iter().map(|s| s as f32));
        }
    }
    Ok(vec![Tensor::matrix(q.rows(), q.cols(), y)])
}

/// Causal: keys j ≤ t, and with a window t − j < window; otherwise all keys.
pub(super) fn range_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let (tokens, causal, window) = (cx.value(0).rows(), cx.flag("causal"), cx.size("window"));
    attend(cx, |t| match (causal, window) {
        (false, _) => (0..tokens).collect(),
        (true, 0) => (0..=t).collect(),
        (true, window) => ((t + 1).saturating_sub(window)..=t).collect(),
    })
}

/// Keys j ≤ t with t − j < window, or j < sinks, or j among the `cluster_cap` latest tokens of t's cluster, t included.
pub(super) fn clustered_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let (window, sinks, cap) = (cx.size("window"), cx.size("sinks"), cx.size("cluster_cap"));
    let clusters = cx.value(3).u32s();
    attend(cx, |t| {
        let mut of_cluster = 0;
        let mut keys = Vec::new();
        for j in (0..=t).rev() {
            let same = clusters[j] == clusters[t];
            of_cluster += usize::from(same);
            if t - j < window || j < sinks || (same && of_cluster <= cap) {
                keys.push(j);
            }
        }
        keys.reverse();
        keys
    })
}
