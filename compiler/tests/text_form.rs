//! The `.lir` text form: exact round trips, errors that say where, and no panic whatever the text.

#[path = "support/random_graph.rs"]
mod random_graph;

use lapidary_compiler::import::{ImportOptions, PRESETS, load};
use lapidary_compiler::ir::{Graph, limits, parse};
use lapidary_compiler::ops::OPS;
use proptest::prelude::*;
use random_graph::random_graph;

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

#[test]
#[cfg_attr(miri, ignore = "too slow there")]
fn presets_round_trip() {
    for preset in PRESETS {
        let graph = load(&format!("preset:{}", preset.name), &ImportOptions { scores: true }).unwrap().graph;
        let text = graph.to_string();
        assert!(parsed(&text) == graph, "{}", preset.name);
        assert!(parsed(&text).to_string() == text, "{}", preset.name);
    }
}

#[test]
fn names_types_and_order_are_free_when_written_by_hand() {
    let text = "; a comment\nlir 1 phase imported output_first_is_not_possible";
    assert!(parse(text).is_err());
    let text = r#"lir 1
        input "x" = %x: f32[T, 4]   ; inputs may come before weights
        weight @w: f32[2, 4] general = splat(0.5)
        %m, %g = route.select(%x) {norm_gates = true, policy = top_k, k_max = 2, k_min = 0, p = 1, tau = 0,
                                   capacity_factor = 1}
        %o, %t, %tg = route.group(%m, %g)
        %y = linear(%x, @w, _) {act = none}
        output "y" = %y"#;
    let graph = parsed(text);
    graph.verify().unwrap();
    assert_eq!(graph.symbols[2].name, "N0");
    assert_eq!(graph.symbols[2].max_per_token, 2);
    assert_eq!(parsed(&graph.to_string()), graph);
}

#[test]
fn errors_say_where_what_wanted_and_found() {
    let cases = [
        ("", "1:1: file: wanted a word, found the end of the text"),
        ("lir 2", "1:1: file: wanted lir 1, found another first line"),
        (
            "lir 1\nphase fuzed",
            "2:7: phase: wanted one of imported, canonical, quantized, fused, planned, lowered, found fuzed",
        ),
        (
            "lir 1\n  nonsense",
            "2:3: line: wanted model, phase, symbol, weight, input, output or a value, found nonsense",
        ),
        ("lir 1\nsymbol T <= 2", "2:8: symbol: wanted a new name of letters, digits and _, found T"),
        ("lir 1\nsymbol N 2", "2:10: symbol: wanted <=, found 2"),
        ("lir 1\nweight w", "2:8: weight: wanted a name like @w, found w"),
        (
            "lir 1\nweight @w: f33[1] norm = stored",
            "2:12: storage: wanted one of f32, f16, bf16, int8, int4:32, int4:64, int4:128, found f33",
        ),
        (
            "lir 1\nweight @w: f32[1] norms = stored",
            "2:19: component: wanted one of embedding, head, norm, token_router, routing, attention, general, modules, found norms",
        ),
        ("lir 1\nweight @w: f32[1] norm = splat(1e99)", "2:32: value: wanted a finite number, found 1e99"),
        ("lir 1\nweight @w: f32[1] norm = splat(-inf)", "2:32: value: wanted a finite number, found -inf"),
        (
            "lir 1\nweight @w: f32[4294967296, 4294967296] norm = stored",
            "2:8: shape: wanted 1 to 68719476736 elements, found f32[4294967296, 4294967296]",
        ),
        ("lir 1\nweight @w: f32[0] norm = stored", "2:8: shape: wanted 1 to 68719476736 elements, found f32[0]"),
        (
            "lir 1\nweight @w: f32[99999999999999999999] norm = stored",
            "2:16: shape: wanted an integer of at most 64 bits, found 99999999999999999999",
        ),
        ("lir 1\nweight @w: f32[1] norm = scale(@v, 1)", "2:32: weight: wanted one that was declared before, found @v"),
        ("lir 1\ninput \"x\" = %x: f32[N]", "2:21: dimension: wanted a declared symbol, found N"),
        ("lir 1\ninput \"x\" = %x: f32[T, 0]", "2:24: dimension: wanted 1 to 16777216, found 0"),
        ("lir 1\ninput \"ä\" = %x: f33[T]", "2:17: element type: wanted one of f32, f16, bf16, u32, u8, found f33"),
        ("lir 1\ninput \"x", "2:7: string: wanted a closing quote, found the end of the text"),
        ("lir 1\ninput \"\\q\"", "2:8: escape: wanted \\n, \\r, \\t, \\\", \\\\ or \\u{hex}, found another"),
        ("lir 1\n%1 = linaer(%0)", "2:6: op: wanted a known op, found linaer"),
        ("lir 1\n%1 = silu(%0)", "2:11: value: wanted one that was defined before, found %0"),
        ("lir 1\ninput \"x\" = %x: f32[T, 4]\n%x = silu(%x)", "3:1: value: wanted a new name, found %x"),
        (
            "lir 1\ninput \"x\" = %x: f32[T, 4]\n%y, %y = route.select(%x)",
            "3:1: route.select: policy: wanted one value, found 0 values",
        ),
        ("lir 1\ninput \"x\" = %x: f32[T, 4]\n%y, %z = silu(%x)", "3:1: results: wanted 1, found 2"),
        ("lir 1\ninput \"x\" = %x: f32[T, 4]\n%y = silu(%x, %x)", "3:1: silu: operands: wanted 1, found 2 operands"),
        (
            "lir 1\ninput \"x\" = %x: f32[T, 4]\n%y = scale(%x) {factor = 1, factor = 2}",
            "3:29: attribute: wanted each once, found factor",
        ),
        (
            "lir 1\ninput \"x\" = %x: f32[T, 4]\n%y = scale(%x) {faktor = 1}",
            "3:17: attribute: wanted one of [factor], found faktor",
        ),
        (
            "lir 1\ninput \"x\" = %x: f32[T, 4]\n%y = slice(%x) {begin = 2, end = 5}",
            "3:1: slice: columns: wanted a range within 0..4, found 2..5",
        ),
        ("lir 1\n#", "2:1: character: wanted one of the text form, found '#'"),
        ("lir 1\nmodel { source_digest = \"00\" }", "2:25: source_digest: wanted 64 hexadecimal digits, found 2"),
        ("lir 1\nmodel { size = 3 }", "2:9: key of model: wanted a known one, found size"),
    ];
    for (text, wanted) in cases {
        assert_eq!(parse(text).map(|g| g.to_string()).unwrap_err().to_string(), wanted, "{text}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "too slow there")]
fn deep_long_and_repetitive_texts_end_in_errors_or_graphs() {
    let many = |s: &str| format!("lir 1\n{}", s.repeat(200_000));
    for text in
        [many("("), many("{"), many("["), many("%a = silu("), many("model {"), many("\""), many("\\"), many(",")]
    {
        assert!(parse(&text).is_err());
    }
    // A chain of derivations as long as the text lets it be is for the verifier to refuse.
    let mut text = "lir 1\nweight @w0: f32[1] norm = splat(1.0)\n".to_string();
    for i in 1..10_000 {
        text.push_str(&format!("weight @w{i}: f32[1] norm = scale(@w{}, 0.5)\n", i - 1));
    }
    let error = parsed(&text).verify().unwrap_err().to_string();
    assert_eq!(error, "weight 9 (@w9): definition: wanted at most 8 derivations deep, found 9");
    let long = " ".repeat(limits::MAX_TEXT_BYTES + 1);
    assert!(parse(&long).unwrap_err().to_string().starts_with("1:1: text: wanted at most"));
}

/// Pieces that mutations put into texts.
const PIECES: &[&str] = &[
    "%0",
    "%1",
    "%",
    "@w",
    "@",
    "@\"",
    "\"",
    "\\",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "=",
    "<=",
    "_",
    ";",
    "\n",
    "0",
    "-1",
    "18446744073709551615",
    "18446744073709551616",
    "1e39",
    "NaN",
    "T",
    "S",
    "N0",
    "f32",
    "u8",
    "stored",
    "concat(",
    "splat(",
    "route.group",
    "expert.ffn",
    "linear",
    "output",
    "weight ",
    "symbol ",
    "input ",
    "model {",
    "phase ",
    "ü",
    "\u{0}",
];

/// One change of a text: at a place, drop some characters and put a piece or a part of the text itself there.
fn mutated(text: &str, (at, drop, piece): (usize, usize, usize)) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = at % (chars.len() + 1);
    let end = (at + drop).min(chars.len());
    let middle: String = match PIECES.get(piece) {
        Some(piece) => (*piece).to_string(),
        None => chars[piece % chars.len().max(1)..].iter().take(60).collect(),
    };
    chars[..at].iter().collect::<String>() + &middle + &chars[end..].iter().collect::<String>()
}

#[test]
#[cfg_attr(miri, ignore = "too slow there")]
fn random_graphs_have_every_op() {
    let nodes: Vec<_> = (0..600).flat_map(|seed| random_graph(seed).nodes).collect();
    for row in OPS {
        assert!(nodes.iter().any(|n| n.op == row.op), "{} is in no random graph", row.name);
    }
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "too slow there")]
    fn random_graphs_round_trip_exactly(seed: u64) {
        let graph = random_graph(seed);
        if let Err(error) = graph.verify() {
            panic!("{error}\n{graph}");
        }
        let text = graph.to_string();
        let read = parsed(&text);
        prop_assert_eq!(&read, &graph, "{}", text);
        prop_assert_eq!(read.to_string(), text);
    }

    #[test]
    #[cfg_attr(miri, ignore = "too slow there")]
    fn mutated_texts_never_panic(
        seed: u64,
        changes in prop::collection::vec((any::<usize>(), 0usize..30, 0usize..4000), 1..6),
    ) {
        let text = if seed % 2 == 0 { ROUTED.to_string() } else { random_graph(seed).to_string() };
        let text = changes.into_iter().fold(text, |text, change| mutated(&text, change));
        if let Ok(graph) = parse(&text) {
            let valid = graph.verify().is_ok();
            let printed = graph.to_string();
            if valid {
                prop_assert_eq!(parsed(&printed), graph);
            }
        }
    }

    #[test]
    fn any_text_never_panics(text in "(lir 1\n)?\\PC{0,200}") {
        let _ = parse(&text);
    }
}

#[test]
fn compact_drops_what_nothing_uses_and_numbers_in_order() {
    let mut graph = parsed(ROUTED);
    let text = graph.to_string();
    // Weights that nothing reaches go: @norm and the chain to @both stay, for a linear reads it.
    let used = graph.weights.len();
    graph.compact();
    assert_eq!(graph.weights.len(), used);
    assert_eq!(graph.to_string(), text);
    graph.nodes.truncate(2);
    graph.outputs.clear();
    graph.compact();
    graph.verify().unwrap();
    assert_eq!(graph.weights.iter().map(|w| w.name.as_str()).collect::<Vec<_>>(), ["embed", "norm"]);
    assert_eq!((graph.values.len(), graph.symbols.len()), (3, 2));
}

#[test]
fn dot_names_ops_and_types() {
    let dot = parsed(ROUTED).to_dot();
    assert!(dot.starts_with("digraph {") && dot.contains("route.select") && dot.contains("f32[N0]"), "{dot}");
}
