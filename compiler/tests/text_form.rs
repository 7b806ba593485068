//! The `.lir` text form: exact round trips, and errors that say where.

use lapidary_compiler::ir::{Graph, parse};

const ROUTED: &str = r#"lir 1

model {
  name = "two \"modules\"\n",
  vocab_size = 9,
  hidden_size = 4,
  num_clusters = 2,
  domain_names = ["code", "law"],
  is_causal = false,
  why_no_decode = "no reason",
  config_json = "{\"a\": 1}",
  source_digest = "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20",
}

phase canonical

symbol N0 <= 1

weight @embed: f16[9, 4] embedding = random(7, 0.02)
weight @norm: f32[4] norm = splat(1.0)
weight @keys: f32[2, 4] routing = stored
weight @"a name": f32[4, 4] attention = stored
weight @scaled: f32[4, 4] attention = scale_columns(@"a name", @norm)
weight @half: f32[4, 4] attention = scale(@scaled, 0.5)
weight @both: f32[8, 4] attention = concat(@half, @scaled)
weight @g: f16[3, 4] modules = splat(0.125)
weight @d: f16[4, 3] modules = splat(-1e-6)

input "ids" = %0: u32[T]

%1: f32[T, 4] = embed(%0, @embed) "embed"
%2: f32[T, 4] = rms_norm(%1, @norm) {eps = 1e-6} "layers.0.attn_norm"
%3: f32[T, 8] = linear(%2, @both, _) {act = silu}
%4: f32[T, 4] = slice(%3) {begin = 0, end = 4}
%5: f32[T, 2] = route.scores(%4, _, @keys) {scale = 0.70710677, lambda = 1.0, num_domains = 2}
%6: u8[T, 2], %7: f32[T, 2] = route.select(%5) {policy = top_p, k_min = 0, k_max = 1, p = 0.9, tau = 0.0, capacity_factor = 1.25, norm_gates = true}
%8: u32[3], %9: u32[N0], %10: f32[N0] = route.group(%6, %7) "layers.0.group"
%11: f32[T, 4] = expert.ffn(%2, %8, %9, %10, %2, @g, @g, @g, @g, @d, @d)
%12: f32[S, 4] = last_rows(%11)

output "modules.0" = %6
output "logits" = %12
"#;

fn parsed(text: &str) -> Graph {
    parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

#[test]
fn canonical_text_round_trips_exactly() {
    let graph = parsed(ROUTED);
    graph.verify().unwrap();
    assert_eq!(graph.to_string(), ROUTED);
    assert_eq!(parsed(&graph.to_string()), graph);
}
