//! Rotary positions and attention.

use lapidary_compiler::interp::Tensor;
use lapidary_compiler::ir::KvStorage;
use lapidary_compiler::ops::EvalCx;
use lapidary_compiler::quant::round_kv_row;

use super::numbers::{dot, fma, softmax};
use super::{Results, matrix};

/// `v.rope` with cosines and sines of position · theta^(−2i/head_dim), which are made in f64 and rounded.
pub(super) fn rope(cx: &EvalCx<'_>) -> Results {
    let (x, head_dim, theta) = (cx.value(0), cx.size("head_dim"), f64::from(cx.float("theta")));
    let half = head_dim / 2;
    let mut y = Vec::with_capacity(x.elems());
    for (position, row) in x.f32s().chunks_exact(x.cols()).enumerate() {
        let angle = |i: usize| position as f64 * theta.powf(-2.0 * i as f64 / head_dim as f64);
        let table: Vec<(f32, f32)> = (0..half).map(|i| (angle(i).cos() as f32, angle(i).sin() as f32)).collect();
        for head in row.chunks_exact(head_dim) {
            let (first, second) = head.split_at(half);
            let pairs = || first.iter().zip(second).zip(&table);
            y.extend(pairs().map(|((x, y), (c, s))| fma(*x, *c, -(y * s))));
            y.extend(pairs().map(|((x, y), (c, s))| fma(*y, *c, x * s)));
        }
    }
    Ok(matrix(x.rows(), x.cols(), y))
}

/// An operand's rows as they are read back from what is kept of them, each head on its own.
fn kept(cx: &EvalCx<'_>, operand: usize, head_dim: usize) -> Result<Vec<f32>, String> {
    let word = cx.word("kv_cache");
    let storage = KvStorage::by_name(word).ok_or_else(|| format!("kv_cache: wanted a storage, found {word}"))?;
    let mut rows = cx.value(operand).f32s().to_vec();
    rows.chunks_exact_mut(head_dim).for_each(|row| round_kv_row(storage, row));
    Ok(rows)
}

/// Attention of each token to the keys that `admitted` lists for it, ascending: `v.dot_rows`, `v.softmax` with a scale over
/// exactly these keys, `v.mix_rows`.
fn attend(cx: &EvalCx<'_>, admitted: impl Fn(usize) -> Vec<usize>) -> Results {
    let (heads, kv_heads, head_dim) = (cx.size("heads"), cx.size("kv_heads"), cx.size("head_dim"));
    let (q, keys, values) = (cx.value(0), kept(cx, 1, head_dim)?, kept(cx, 2, head_dim)?);
    let scale = cx.float("scale");
    let mut y = Vec::with_capacity(q.elems());
    for (token, row) in q.f32s().chunks_exact(q.cols()).enumerate() {
        let admitted = admitted(token);
        for (h, q) in row.chunks_exact(head_dim).enumerate() {
            let row_of = |j: usize| {
                let begin = (j * kv_heads + h / (heads / kv_heads)) * head_dim;
                begin..begin + head_dim
            };
            let mut w: Vec<f32> = admitted.iter().map(|j| dot(q, &keys[row_of(*j)]) * scale).collect();
            softmax(&mut w);
            let mut t = vec![0.0f32; head_dim];
            for (j, w) in admitted.iter().zip(w) {
                t.iter_mut().zip(&values[row_of(*j)]).for_each(|(t, v)| *t = fma(w, *v, *t));
            }
            y.extend(t);
        }
    }
    Ok(matrix(q.rows(), q.cols(), y))
}

/// Causal: keys j ≤ t, of them those with t − j < window if there is one. Otherwise all keys.
pub(super) fn range(cx: &EvalCx<'_>) -> Results {
    let (tokens, causal, window) = (cx.value(0).rows(), cx.flag("causal"), cx.size("window"));
    attend(cx, |t| {
        let sees = |j: &usize| !causal || (*j <= t && (window == 0 || t - j < window));
        (0..tokens).filter(sees).collect()
    })
}

/// Keys j ≤ t with t − j < window, or j < sinks, or j among the `cluster_cap` latest tokens of t's cluster, t included: what
/// `r.admit` lists after `r.append` of t to its cluster's ring.
pub(super) fn clustered(cx: &EvalCx<'_>) -> Results {
    let (window, sinks, cap) = (cx.size("window"), cx.size("sinks"), cx.size("cluster_cap"));
    let clusters = Tensor::u32s(cx.value(3));
    attend(cx, |t| {
        let ring: Vec<usize> = (0..=t).filter(|j| clusters[*j] == clusters[t]).collect();
        let latest = &ring[ring.len().saturating_sub(cap)..];
        (0..=t).filter(|j| t - j < window || *j < sinks || latest.contains(j)).collect()
    })
}
