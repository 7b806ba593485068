//! Each op's reference evaluation against a closed form, numbers worked out by hand, or the definition written anew.

#[path = "support/source.rs"]
mod source;

use lapidary_compiler::interp::Tensor;
use lapidary_compiler::ops::{OPS, Op};
use source::{Numbers, eval, mask, noise};

fn m(cols: usize, data: &[f32]) -> Tensor {
    Tensor::matrix(data.len() / cols, cols, data.to_vec())
}

fn close(found: &Tensor, wanted: &[f64]) {
    let found = found.f32s();
    assert_eq!(found.len(), wanted.len());
    for (i, (f, w)) in found.iter().zip(wanted).enumerate() {
        assert!((f64::from(*f) - w).abs() <= 2e-6 * w.abs().max(1.0), "element {i}: wanted {w}, found {f}");
    }
}

/// One op with operands `x`, no weights.
fn unary(op: &str, x: &Tensor) -> Tensor {
    let ty = format!("f32[T, {}]", x.cols());
    eval("", &[("x", &ty, x.clone())], &format!("%y = {op}"), &Numbers::default())
}

#[test]
fn every_op_has_an_evaluation_test_here_or_below() {
    // The names of the ops that the tests of this file run; a new op has to be added with its test.
    let tested = [
        "embed",
        "rms_norm",
        "linear",
        "linear.swiglu",
        "add",
        "mul",
        "scale",
        "silu",
        "gelu",
        "softmax",
        "slice",
        "rope",
        "attn.range",
        "attn.clustered",
        "route.scores",
        "route.cluster",
        "route.select",
        "route.group",
        "route.gather",
        "expert.linear",
        "route.combine",
        "expert.apply",
        "expert.ffn",
        "route.memory",
        "fill",
        "last_rows",
        "mean_rows",
        "l2_normalize",
    ];
    let known: Vec<&str> = OPS.iter().map(|row| row.name).collect();
    assert_eq!(tested.to_vec(), known);
    let source = include_str!("op_evals.rs");
    for name in tested {
        assert!(source.contains(&format!("{name}(")), "{name} is not evaluated");
    }
    assert_eq!(Op::by_name("expert.ffn").map(|op| op.row().name), Some("expert.ffn"));
}

#[test]
fn elementwise_ops_have_their_closed_forms() {
    let x = [-3.0f32, -0.5, 0.0, 0.25, 2.0, 10.0];
    let each = |f: fn(f64) -> f64| x.iter().map(|v| f(f64::from(*v))).collect::<Vec<_>>();
    close(&unary("silu(%x)", &m(3, &x)), &each(|v| v / (1.0 + (-v).exp())));
    let gelu = |v: f64| 0.5 * v * (1.0 + (0.797_884_560_802_865_4 * (v + 0.044715 * v.powi(3))).tanh());
    close(&unary("gelu(%x)", &m(3, &x)), &each(gelu));
    close(&unary("scale(%x) {factor = -0.5}", &m(3, &x)), &each(|v| v * -0.5));
    close(&unary("add(%x, %x)", &m(3, &x)), &each(|v| v + v));
    close(&unary("mul(%x, %x)", &m(3, &x)), &each(|v| v * v));
    close(&unary("fill(%x) {cols = 2, value = 0.125}", &m(3, &x)), &[0.125; 4]);
}

#[test]
fn row_ops_have_their_closed_forms() {
    let x = m(2, &[3.0, 4.0, 0.0, 0.0, 1000.0, 1000.0]);
    close(&unary("softmax(%x)", &x), &[0.268_941_421_4, 0.731_058_578_6, 0.5, 0.5, 0.5, 0.5]);
    close(&unary("l2_normalize(%x)", &x), &[0.6, 0.8, 0.0, 0.0, 0.5f64.sqrt(), 0.5f64.sqrt()]);
    close(&unary("mean_rows(%x)", &x), &[1003.0 / 3.0, 1004.0 / 3.0]);
    close(&unary("last_rows(%x)", &x), &[1000.0, 1000.0]);
    close(&unary("slice(%x) {begin = 1, end = 2}", &x), &[4.0, 0.0, 1000.0]);
    let rms = 1.0 / (12.5f64 + 0.5).sqrt();
    let first = m(2, &[3.0, 4.0]);
    close(&unary("rms_norm(%x, _) {eps = 0.5}", &first), &[3.0 * rms, 4.0 * rms]);
    let numbers = Numbers::default().with("w", 2, &[2.0, -1.0]);
    let head = "weight @w: f32[2] norm = stored";
    let y = eval(head, &[("x", "f32[T, 2]", first)], "%y = rms_norm(%x, @w) {eps = 0.5}", &numbers);
    close(&y, &[6.0 * rms, -4.0 * rms]);
}

#[test]
fn products_with_weights_are_sums_of_products() {
    let (x, w, u) = (noise(1, 3 * 11), noise(2, 5 * 11), noise(3, 5 * 11));
    let numbers = Numbers::default().with("w", 11, &w).with("u", 11, &u);
    let head = "weight @w: f32[5, 11] general = stored\nweight @u: f32[5, 11] general = stored";
    let inputs = [("x", "f32[T, 11]", m(11, &x)), ("r", "f32[T, 5]", m(5, &noise(4, 15)))];
    let product = |w: &[f32]| -> Vec<f64> {
        let cell = |i: usize| (0..11).map(|k| f64::from(x[i / 5 * 11 + k]) * f64::from(w[i % 5 * 11 + k])).sum();
        (0..15).map(cell).collect()
    };
    let silu = |v: f64| v / (1.0 + (-v).exp());
    close(&eval(head, &inputs, "%y = linear(%x, @w, _) {act = none}", &numbers), &product(&w));
    let residual = noise(4, 15);
    let wanted: Vec<f64> = product(&w).iter().zip(&residual).map(|(p, r)| silu(*p) + f64::from(*r)).collect();
    close(&eval(head, &inputs, "%y = linear(%x, @w, %r) {act = silu}", &numbers), &wanted);
    let wanted: Vec<f64> = product(&w).iter().zip(product(&u)).map(|(g, u)| silu(*g) * u).collect();
    close(&eval(head, &inputs, "%y = linear.swiglu(%x, @w, @u)", &numbers), &wanted);
    let ids = Tensor::indices(vec![4, 0]);
    let y = eval(head, &[("x", "u32[T]", ids)], "%y = embed(%x, @w)", &numbers);
    assert_eq!(y.f32s(), [&w[44..55], &w[..11]].concat());
}

#[test]
fn rope_turns_pairs_by_position_times_frequency() {
    let x: Vec<f32> = noise(5, 3 * 8);
    let y = unary("rope(%x) {heads = 2, head_dim = 4, theta = 100.0}", &m(8, &x));
    let mut wanted = Vec::new();
    for (i, v) in x.iter().enumerate() {
        let (t, j) = (i / 8, i % 4);
        let angle = t as f64 * [1.0, 0.1][j % 2];
        let partner = f64::from(x[if j < 2 { i + 2 } else { i - 2 }]);
        let sign = if j < 2 { -1.0 } else { 1.0 };
        wanted.push(f64::from(*v) * angle.cos() + sign * partner * angle.sin());
    }
    close(&y, &wanted);
}

/// Attention written anew over a mask `sees(t, j)`: 4 query heads, 2 key/value heads of 2.
fn attention(q: &[f32], k: &[f32], v: &[f32], tokens: usize, sees: impl Fn(usize, usize) -> bool) -> Vec<f64> {
    let mut out = Vec::new();
    for t in 0..tokens {
        for h in 0..4 {
            let key = |j: usize, e: usize| f64::from(k[j * 4 + h / 2 * 2 + e]);
            let score = |j: usize| 0.5 * (0..2).map(|e| f64::from(q[t * 8 + h * 2 + e]) * key(j, e)).sum::<f64>();
            let weights: Vec<f64> = (0..tokens).map(|j| if sees(t, j) { score(j).exp() } else { 0.0 }).collect();
            let sum: f64 = weights.iter().sum();
            for e in 0..2 {
                let value = |j: usize| f64::from(v[j * 4 + h / 2 * 2 + e]);
                out.push((0..tokens).map(|j| weights[j] / sum * value(j)).sum());
            }
        }
    }
    out
}

#[test]
fn attention_sees_exactly_its_keys() {
    let t = 9;
    let (q, k, v) = (noise(6, t * 8), noise(7, t * 4), noise(8, t * 4));
    let clusters = [0u32, 1, 0, 0, 2, 0, 1, 0, 0];
    let inputs = [
        ("q", "f32[T, 8]", m(8, &q)),
        ("k", "f32[T, 4]", m(4, &k)),
        ("v", "f32[T, 4]", m(4, &v)),
        ("c", "u32[T]", Tensor::indices(clusters.to_vec())),
    ];
    let shape = "heads = 4, kv_heads = 2, head_dim = 2, scale = 0.5";
    let range = |rest: &str| {
        let body = format!("%y = attn.range(%q, %k, %v) {{{shape}, {rest}, kv_cache = f32}}");
        eval("", &inputs, &body, &Numbers::default())
    };
    close(&range("causal = false, window = 0"), &attention(&q, &k, &v, t, |_, _| true));
    close(&range("causal = true, window = 0"), &attention(&q, &k, &v, t, |t, j| j <= t));
    close(&range("causal = true, window = 3"), &attention(&q, &k, &v, t, |t, j| j <= t && t - j < 3));
    for (window, sinks, cap) in [(1, 0, 0), (2, 1, 2), (1, 0, 3), (1, 3, 1), (9, 0, 0)] {
        let attrs = format!("window = {window}, sinks = {sinks}, cluster_cap = {cap}, num_clusters = 3");
        let body = format!("%y = attn.clustered(%q, %k, %v, %c) {{{shape}, {attrs}, kv_cache = f32}}");
        let wanted = attention(&q, &k, &v, t, |t, j| {
            let later_of_cluster = (j + 1..=t).filter(|i| clusters[*i] == clusters[t]).count();
            let same = clusters[j] == clusters[t] && later_of_cluster < cap;
            j <= t && (t - j < window || j < sinks || same)
        });
        close(&eval("", &inputs, &body, &Numbers::default()), &wanted);
    }
}

#[test]
fn route_scores_add_the_domains_prior() {
    let numbers = Numbers::default().with("keys", 2, &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    let head = "weight @keys: f32[3, 2] routing = stored";
    let inputs = [("q", "f32[T, 2]", m(2, &[0.5, -1.0])), ("pi", "f32[T, 2]", m(2, &[0.75, 0.25]))];
    let attrs = "{scale = 2.0, lambda = 0.5, num_domains = 2}";
    let softmax = |s: [f64; 3]| {
        let sum: f64 = s.iter().map(|v| v.exp()).sum();
        s.map(|v| v.exp() / sum)
    };
    let prior = |p: f64| 0.5 * (p + 1e-6f64).ln();
    let wanted = softmax([1.0 + prior(0.75), -2.0 + prior(0.25), -1.0 + prior(0.75)]);
    close(&eval(head, &inputs, &format!("%y = route.scores(%q, %pi, @keys) {attrs}"), &numbers), &wanted);
    let uniform = softmax([1.0, -2.0, -1.0]);
    close(&eval(head, &inputs, &format!("%y = route.scores(%q, _, @keys) {attrs}"), &numbers), &uniform);
}

#[test]
fn route_cluster_takes_the_lowest_index_of_a_tie() {
    let a = m(3, &[0.2, 0.4, 0.4, 0.5, 0.1, 0.4, 0.3, 0.3, 0.4, 0.0, 0.0, 0.0]);
    let y = eval("", &[("a", "f32[T, 3]", a)], "%y = route.cluster(%a)", &Numbers::default());
    assert_eq!(y.u32s(), [1, 0, 2, 0]);
}

/// Mask and gates of scores `[T, 4]`.
fn select(a: &[f32], attrs: &str) -> (Vec<u8>, Vec<f32>) {
    let inputs = [("a", "f32[T, 4]", m(4, a))];
    let run = |results: &str| {
        let body = format!("{results} = route.select(%a) {{{attrs}}}");
        eval("", &inputs, &body, &Numbers::default())
    };
    (run("%y, %g").u8s().to_vec(), run("%m, %y").f32s().to_vec())
}

fn attrs(policy: &str, k_min: u64, k_max: u64, p: f32, tau: f32, factor: f32, norm: bool) -> String {
    format!(
        "policy = {policy}, k_min = {k_min}, k_max = {k_max}, p = {p:?}, tau = {tau:?}, capacity_factor = {factor:?}, \
         norm_gates = {norm}"
    )
}

#[test]
fn token_policies_select_their_modules() {
    let a = [0.5, 0.25, 0.125, 0.125, 0.25, 0.25, 0.25, 0.25];
    let mask = |attrs: String| select(&a, &attrs).0;
    assert_eq!(mask(attrs("top_k", 0, 2, 1.0, 0.0, 1.0, false)), [1, 1, 0, 0, 1, 1, 0, 0]);
    assert_eq!(mask(attrs("top_p", 0, 4, 0.5, 0.0, 1.0, false)), [1, 0, 0, 0, 1, 1, 0, 0]);
    assert_eq!(mask(attrs("top_p", 2, 4, 0.5, 0.0, 1.0, false)), [1, 1, 0, 0, 1, 1, 0, 0]);
    assert_eq!(mask(attrs("top_p", 0, 2, 0.9, 0.0, 1.0, false)), [1, 1, 0, 0, 1, 1, 0, 0]);
    assert_eq!(mask(attrs("top_p", 0, 4, 1.0, 0.0, 1.0, false)), [1, 1, 1, 1, 1, 1, 1, 1]);
    assert_eq!(mask(attrs("threshold", 0, 4, 1.0, 0.25, 1.0, false)), [1, 1, 0, 0, 1, 1, 1, 1]);
    assert_eq!(mask(attrs("threshold", 0, 3, 1.0, 0.25, 1.0, false)), [1, 1, 0, 0, 1, 1, 1, 0]);
    assert_eq!(mask(attrs("threshold", 0, 4, 1.0, 0.5, 1.0, true)), [1, 0, 0, 0, 0, 0, 0, 0]);
    // Gates: as they are, renormalised, and of an empty set.
    assert_eq!(select(&a, &attrs("top_k", 0, 2, 1.0, 0.0, 1.0, false)).1[..4], [0.5, 0.25, 0.0, 0.0]);
    assert_eq!(select(&a, &attrs("top_k", 0, 2, 1.0, 0.0, 1.0, true)).1[..4], [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
    assert_eq!(select(&a, &attrs("threshold", 0, 4, 1.0, 0.5, 1.0, true)).1[4..], [0.0; 4]);
}

#[test]
fn module_policies_select_their_tokens() {
    // 4 tokens, 4 modules; capacity ⌈factor · 4 · k_max / 4⌉.
    let a = [
        0.4, 0.3, 0.2, 0.1, //
        0.4, 0.1, 0.3, 0.2, //
        0.1, 0.2, 0.3, 0.4, //
        0.25, 0.25, 0.25, 0.25,
    ];
    let (mask, gates) = select(&a, &attrs("expert_choice", 0, 2, 1.0, 0.0, 1.0, true));
    assert_eq!(mask, [1, 1, 0, 0, 1, 0, 1, 0, 0, 0, 1, 1, 0, 1, 0, 1]);
    assert_eq!(gates[..4], [0.4, 0.3, 0.0, 0.0], "expert_choice never renormalises");
    let (mask, gates) = select(&a, &attrs("bidirectional", 0, 2, 1.0, 0.0, 0.5, true));
    // Module 0's best is token 0 (tie with 1), 1's is 0, 2's is 1 (tie with 2), 3's is 2.
    assert_eq!(mask, [1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
    assert_eq!(gates[6], 1.0);
    // A capacity beyond T is T.
    assert_eq!(select(&a, &attrs("expert_choice", 0, 4, 1.0, 0.0, 9.0, false)).0, [1; 16]);
}

const FFN: &str = "weight @g0: f32[3, 2] modules = stored\nweight @g1: f32[3, 2] modules = stored\n\
     weight @u0: f32[3, 2] modules = stored\nweight @u1: f32[3, 2] modules = stored\n\
     weight @d0: f32[2, 3] modules = stored\nweight @d1: f32[2, 3] modules = stored";

fn ffn_numbers() -> Numbers {
    let names = ["g0", "g1", "u0", "u1"].into_iter().zip(20..);
    let numbers = names.fold(Numbers::default(), |n, (name, seed)| n.with(name, 2, &noise(seed, 6)));
    numbers.with("d0", 3, &noise(24, 6)).with("d1", 3, &noise(25, 6))
}

/// The definition: Σ over chosen modules of gate · W_down(silu(W_gate x) ⊙ W_up x).
fn modules(x: &[f32], mask: &[u8], gates: &[f32]) -> Vec<f64> {
    let n = ffn_numbers();
    let w = |name: String| n.0[&name].1.clone();
    let mut y = vec![0.0; x.len()];
    for (i, _) in mask.iter().enumerate().filter(|(_, m)| **m != 0) {
        let (t, c) = (i / 2, i % 2);
        let (g, u, d) = (w(format!("g{c}")), w(format!("u{c}")), w(format!("d{c}")));
        let dot = |w: &[f32], h: usize| (0..2).map(|k| f64::from(w[h * 2 + k]) * f64::from(x[t * 2 + k])).sum::<f64>();
        let hidden: Vec<f64> = (0..3).map(|h| dot(&g, h) / (1.0 + (-dot(&g, h)).exp()) * dot(&u, h)).collect();
        for o in 0..2 {
            let down: f64 = (0..3).map(|h| f64::from(d[o * 3 + h]) * hidden[h]).sum();
            y[t * 2 + o] += f64::from(gates[i]) * down;
        }
    }
    y
}

#[test]
fn all_forms_of_the_modules_agree_with_the_definition() {
    let x = noise(30, 10);
    for chosen in [[1u8, 0, 0, 1, 1, 1, 0, 0, 0, 1], [0; 10], [1; 10], [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]] {
        let gates: Vec<f32> = noise(31, 10).iter().zip(chosen).map(|(g, m)| g * f32::from(m)).collect();
        let inputs =
            [("x", "f32[T, 2]", m(2, &x)), ("m", "u8[T, 2]", mask(2, &chosen)), ("g", "f32[T, 2]", m(2, &gates))];
        let run = |body: &str| eval(FFN, &inputs, body, &ffn_numbers());
        let wanted = modules(&x, &chosen, &gates);
        close(&run("%y = expert.apply(%x, %m, %g, @g0, @g1, @u0, @u1, @d0, @d1)"), &wanted);
        let group = "%o, %t, %tg = route.group(%m, %g)\n";
        let ffn = "%y = expert.ffn(%x, %o, %t, %tg, _, @g0, @g1, @u0, @u1, @d0, @d1)";
        close(&run(&format!("{group}{ffn}")), &wanted);
        let pieces = "%r = route.gather(%x, %t)\n%a = expert.linear(%r, %o, @g0, @g1)\n%s = silu(%a)\n\
             %b = expert.linear(%r, %o, @u0, @u1)\n%h = mul(%s, %b)\n%d = expert.linear(%h, %o, @d0, @d1)\n\
             %y = route.combine(%d, %t, %tg, _)";
        close(&run(&format!("{group}{pieces}")), &wanted);
        let with_residual: Vec<f64> = wanted.iter().zip(&x).map(|(y, x)| y + f64::from(*x)).collect();
        close(&run(&format!("{group}{}", ffn.replace("_", "%x"))), &with_residual);
        close(&run(&format!("{group}{}", pieces.replace("%tg, _", "%tg, %x"))), &with_residual);
    }
}

#[test]
fn route_group_sorts_pairs_by_module_then_token() {
    let inputs = [
        ("m", "u8[T, 3]", mask(3, &[1, 0, 1, 0, 0, 1, 1, 0, 0])),
        ("g", "f32[T, 3]", m(3, &[0.1, 0.0, 0.2, 0.0, 0.0, 0.3, 0.4, 0.0, 0.0])),
    ];
    let run = |results: &str| eval("", &inputs, &format!("{results} = route.group(%m, %g)"), &Numbers::default());
    assert_eq!(run("%y, %b, %c").u32s(), [0, 2, 2, 4]);
    assert_eq!(run("%a, %y, %c").u32s(), [0, 2, 0, 1]);
    assert_eq!(run("%a, %b, %y").f32s(), [0.1, 0.4, 0.2, 0.3]);
}

#[test]
fn route_memory_sums_the_chosen_values() {
    let numbers = Numbers::default().with("v", 2, &[1.0, 2.0, 3.0, 4.0]);
    let inputs =
        [("m", "u8[T, 2]", mask(2, &[1, 1, 0, 0, 0, 1])), ("g", "f32[T, 2]", m(2, &[0.5, 0.25, 0.0, 0.0, 0.0, 2.0]))];
    let y = eval("weight @v: f32[2, 2] routing = stored", &inputs, "%y = route.memory(%m, %g, @v)", &numbers);
    assert_eq!(y.f32s(), [1.25, 2.0, 0.0, 0.0, 6.0, 8.0]);
}
