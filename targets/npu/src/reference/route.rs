//! Routing: scores, each token's set of modules, and tokens grouped by module.

use lapidary_compiler::interp::{Data, Tensor};
use lapidary_compiler::ops::{EvalCx, Policy};

use super::numbers::{dot, fma, is_better, ln, order_of_scores, softmax};
use super::{Results, matrix};

/// `v.dot_rows` with the keys, times scale, plus `ln(π + 1e-6)·lambda` where domains are given, then `v.softmax`.
pub(super) fn scores(cx: &EvalCx<'_>) -> Results {
    let (q, domains, keys) = (cx.value(0), cx.optional(1), cx.weight(2)?);
    let (scale, lambda, num_domains) = (cx.float("scale"), cx.float("lambda"), cx.size("num_domains"));
    let num_clusters = cx.weight_shape(2).0;
    let mut a = Vec::with_capacity(q.rows() * num_clusters);
    for (t, q) in q.f32s().chunks_exact(q.cols()).enumerate() {
        let mut row: Vec<f32> = keys.chunks_exact(q.len()).map(|key| dot(q, key) * scale).collect();
        if let Some(domains) = domains {
            let pi = &domains.f32s()[t * num_domains..(t + 1) * num_domains];
            let prior: Vec<f32> = pi.iter().map(|pi| ln(pi + 1e-6) * lambda).collect();
            row.iter_mut().enumerate().for_each(|(c, s)| *s += prior[c % num_domains]);
        }
        softmax(&mut row);
        a.extend(row);
    }
    Ok(matrix(q.rows(), num_clusters, a))
}

/// `v.row_argmax`.
pub(super) fn cluster(cx: &EvalCx<'_>) -> Results {
    let a = cx.value(0);
    let best = |row: &[f32]| (1..row.len()).fold(0, |best, c| if is_better(row[c], row[best]) { c } else { best });
    Ok(vec![Tensor::indices(a.f32s().chunks_exact(a.cols()).map(|row| best(row) as u32).collect())])
}

/// min(T, ⌈capacity_factor · T · k_max / C⌉), in f64 from left to right.
fn capacity(factor: f32, tokens: usize, k_max: usize, num_clusters: usize) -> usize {
    let cap = (f64::from(factor) * tokens as f64 * k_max as f64 / num_clusters as f64).ceil();
    cap.min(tokens as f64) as usize
}

/// How many of a row's columns, best first, are taken.
fn count_taken(cx: &EvalCx<'_>, policy: Policy, row: &[f32], order: &[usize]) -> usize {
    let k = cx.size("k_max").min(row.len());
    match policy {
        // r.top_k
        Policy::TopK | Policy::Bidirectional => k,
        // r.top_p
        Policy::TopP => {
            let (k_min, p) = (cx.size("k_min"), cx.float("p"));
            let (mut taken, mut mass) = (0, 0.0f32);
            while taken < k && (taken < k_min || mass < p) {
                mass += row[order[taken]];
                taken += 1;
            }
            taken
        }
        // r.threshold
        Policy::Threshold => {
            let tau = cx.float("tau");
            order.iter().take(k).take_while(|c| row[**c] >= tau).count()
        }
        // r.expert_choice: columns choose.
        Policy::ExpertChoice => 0,
    }
}

/// The set of modules of each token by the policy's instruction, and their gates.
pub(super) fn select(cx: &EvalCx<'_>) -> Results {
    let a = cx.value(0);
    let (tokens, c_all, scores) = (a.rows(), a.cols(), a.f32s());
    let word = cx.word("policy");
    let policy = Policy::by_name(word).ok_or_else(|| format!("policy: wanted one of the table, found {word}"))?;
    let mut mask = vec![0u8; a.elems()];
    for (row, mask) in scores.chunks_exact(c_all).zip(mask.chunks_exact_mut(c_all)) {
        let order = order_of_scores(c_all, |c| row[c]);
        order[..count_taken(cx, policy, row, &order)].iter().for_each(|c| mask[*c] = 1);
    }
    if matches!(policy, Policy::ExpertChoice | Policy::Bidirectional) {
        let cap = capacity(cx.float("capacity_factor"), tokens, cx.size("k_max"), c_all);
        for c in 0..c_all {
            let order = order_of_scores(tokens, |t| scores[t * c_all + c]);
            if policy == Policy::ExpertChoice {
                order[..cap].iter().for_each(|t| mask[t * c_all + c] = 1);
            } else {
                order[cap..].iter().for_each(|t| mask[t * c_all + c] = 0);
            }
        }
    }
    let mut gates: Vec<f32> = scores.iter().zip(&mask).map(|(a, m)| if *m != 0 { *a } else { 0.0 }).collect();
    if cx.flag("norm_gates") && policy != Policy::ExpertChoice {
        for row in gates.chunks_exact_mut(c_all) {
            let mass = row.iter().fold(0.0f32, |mass, g| mass + g);
            if mass > 0.0 {
                row.iter_mut().for_each(|g| *g /= mass);
            }
        }
    }
    let mut results = vec![Tensor { shape: a.shape.clone(), data: Data::U8(mask) }];
    results.extend(matrix(tokens, c_all, gates));
    Ok(results)
}

/// `v.mix_rows` of all gates with all values: gates are 0 where nothing was selected.
pub(super) fn memory(cx: &EvalCx<'_>) -> Results {
    let (gates, values) = (cx.value(1), cx.weight(2)?);
    let (num_clusters, ds) = cx.weight_shape(2);
    let mut y = Vec::with_capacity(gates.rows() * ds);
    for gates in gates.f32s().chunks_exact(num_clusters) {
        let mut t = vec![0.0f32; ds];
        for (gate, value) in gates.iter().zip(values.chunks_exact(ds)) {
            t.iter_mut().zip(value).for_each(|(t, v)| *t = fma(*gate, *v, *t));
        }
        y.extend(t);
    }
    Ok(matrix(gates.rows(), ds, y))
}
