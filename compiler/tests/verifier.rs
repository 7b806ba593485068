//! What the verifier refuses, and how it says so: *where: what: wanted, found*.

use lapidary_compiler::ir::{
    AttrValue, Component, DType, Dim, Graph, Int4Group, Operand, Phase, Storage, SymbolId, TensorType, ValueId,
    WeightId, parse,
};

const TEXT: &str = r#"lir 1
phase imported
weight @w: f32[2, 3] general = splat(0.5)
weight @v: f32[3] norm = splat(1.0)
weight @c: f32[4, 3] general = concat(@w, @w)
weight @s: f32[2, 3] general = scale(@w, 2.0)
weight @g: f16[2, 3] modules = splat(0.5)
weight @d: f16[3, 2] modules = splat(0.5)
input "x" = %x: f32[T, 3]
%n = rms_norm(%x, @v) {eps = 1e-6} "norm"
%y = linear(%n, @w, _) {act = none} "project"
%m, %gates = route.select(%y) {policy = top_k, k_min = 0, k_max = 1, p = 1.0, tau = 0.0, capacity_factor = 1.0, norm_gates = true} "select"
%o, %t, %tg = route.group(%m, %gates) "group"
%o2, %t2, %tg2 = route.group(%m, %gates) "again"
%e = expert.apply(%n, %m, %gates, @g, @g, @g, @g, @d, @d) "modules"
%f = expert.ffn(%n, %o, %t, %tg, %n, @g, @g, @g, @g, @d, @d) "grouped"
%l = last_rows(%f) "head"
output "y" = %l
"#;

fn valid() -> Graph {
    let graph = parse(TEXT).unwrap();
    graph.verify().unwrap();
    graph
}

fn attr(graph: &mut Graph, node: usize, name: &'static str, value: AttrValue) {
    graph.nodes[node].attrs.set(name, value);
}

#[test]
fn broken_graphs_are_refused_with_place_and_reason() {
    type Break = fn(&mut Graph);
    let cases: &[(Break, &str)] = &[
        // Operands and attributes against the row.
        (|g| g.nodes[1].operands.truncate(2), "node 1 (linear, project): operands: wanted 3, found 2 operands"),
        (
            |g| g.nodes[1].operands[1] = Operand::Value(ValueId(0)),
            "node 1 (linear, project): operand 1 (w): wanted a weight, found a value",
        ),
        (
            |g| g.nodes[1].operands[0] = Operand::None,
            "node 1 (linear, project): operand 0 (x): wanted a value, found _",
        ),
        (
            |g| g.nodes[1].operands[1] = Operand::Weight(WeightId(99)),
            "node 1 (linear, project): operand 1 (w): wanted an id below 6, found 99",
        ),
        (
            |g| g.nodes[5].operands.truncate(8),
            "node 5 (expert.apply, modules): operands: wanted 3 and then 3 times one weight per module, found 8 operands",
        ),
        (|g| g.nodes[0].attrs.0.clear(), "node 0 (rms_norm, norm): eps: wanted one value, found 0 values"),
        (|g| attr(g, 0, "eps", AttrValue::Int(1)), "node 0 (rms_norm, norm): eps: wanted a finite number, found 1"),
        (
            |g| attr(g, 0, "eps", AttrValue::Float(f32::NAN)),
            "node 0 (rms_norm, norm): eps: wanted a finite number, found NaN",
        ),
        (
            |g| attr(g, 0, "epsilon", AttrValue::Float(1.0)),
            "node 0 (rms_norm, norm): attributes: wanted only eps, found epsilon",
        ),
        (
            |g| attr(g, 1, "act", AttrValue::Word("tanh")),
            "node 1 (linear, project): act: wanted one of none, silu, gelu, found tanh",
        ),
        // Shape rules.
        (
            |g| g.nodes[1].operands[1] = Operand::Weight(WeightId(5)),
            "node 1 (linear, project): w: wanted 3 columns as x has, found [3, 2]",
        ),
        (|g| attr(g, 0, "eps", AttrValue::Float(0.0)), "node 0 (rms_norm, norm): eps: wanted more than 0, found 0"),
        (
            |g| attr(g, 2, "k_max", AttrValue::Int(3)),
            "node 2 (route.select, select): k_max: wanted at most the 2 clusters, found 3",
        ),
        (
            |g| attr(g, 2, "k_min", AttrValue::Int(2)),
            "node 2 (route.select, select): k_min: wanted at most k_max = 1, found 2",
        ),
        (
            |g| attr(g, 2, "policy", AttrValue::Word("expert_choice")),
            "node 3 (route.group, group): bound of the symbol: wanted 2 per token, found N0 <= 1",
        ),
        (
            |g| g.nodes[5].operands[7] = Operand::Weight(WeightId(4)),
            "node 5 (expert.apply, modules): down of module 0: wanted a matrix [3, 2], found @g f16[2, 3]",
        ),
        (
            |g| g.nodes[6].operands[3] = Operand::Value(ValueId(1)),
            "node 6 (expert.ffn, grouped): token_gates: wanted f32[N0], found f32[T, 3]",
        ),
        // Types of results.
        (
            |g| g.values[2].ty = TensorType::matrix(DType::F32, Dim::Sym(SymbolId::TOKENS), 9),
            "node 1 (linear, project): y: wanted f32[T, 2], found f32[T, 9]",
        ),
        (
            |g| g.values[2].ty.shape.reverse(),
            "value %2: type: wanted rank 1 or 2, a symbol only first, found f32[2, T]",
        ),
        (|g| g.values[2].ty.shape.clear(), "value %2: type: wanted rank 1 or 2, a symbol only first, found f32[]"),
        (|g| g.values[2].ty.dtype = DType::F16, "value %2: type: wanted f32, u32 or u8, found f16[T, 2]"),
        (
            |g| g.values[2].ty.shape[0] = Dim::Sym(SymbolId(77)),
            "value %2: type: wanted a symbol of the graph, found f32[symbol 77, 2]",
        ),
        // Symbols.
        (
            |g| {
                let n0 = g.values[6].ty.clone();
                g.values[9].ty = n0;
                let gates = g.values[7].ty.clone();
                g.values[10].ty = gates;
            },
            "node 4 (route.group, again): symbol: wanted one of the node's own, found N0, another node's",
        ),
        (|g| g.symbols[2].name = "N1".into(), "symbol 3 (N1): name: wanted one of its own, found another symbol's"),
        (|g| g.symbols[2].name = "a b".into(), "symbol 2 (a b): name: wanted letters, digits and _, found a b"),
        (|g| g.symbols[2].max_per_token = 0, "symbol 2 (N0): bound: wanted 1 to 4096 per token, found 0"),
        (|g| g.symbols[0].max_per_token = 2, "symbol 0 (T): symbol: wanted T <= 1, found T <= 2"),
        // Order.
        (
            |g| g.nodes.swap(0, 1),
            "node 0 (linear, project): operand 0: wanted a value defined before, found %1, defined later",
        ),
        (
            |g| g.nodes[0].operands[0] = Operand::Value(ValueId(12)),
            "node 0 (rms_norm, norm): operand 0: wanted a value defined before, found %12, in a cycle through node",
        ),
        (
            |g| {
                let ty = g.values[0].ty.clone();
                let v = g.add_value(ty);
                g.nodes[0].operands[0] = Operand::Value(v);
            },
            "node 0 (rms_norm, norm): operand 0: wanted a value defined before, found %14, which nothing defines",
        ),
        (|g| g.nodes[7].results[0] = ValueId(1), "node 7 (last_rows, head): y: wanted f32[S, 3], found f32[T, 3]"),
        (
            |g| g.nodes[6].results[0] = ValueId(11),
            "node 6 (expert.ffn, grouped): y: wanted a value of its own, found %11, defined before",
        ),
        (|g| g.nodes[0].results.clear(), "node 0 (rms_norm, norm): results: wanted 1, found 0"),
        (|g| g.nodes[0].results[0] = ValueId(50), "node 0 (rms_norm, norm): results: wanted ids below 14, found 50"),
        // Weights.
        (|g| g.weights[1].name = "w".into(), "weight 1 (@w): name: wanted one of its own, found another weight's"),
        (|g| g.weights[0].shape = vec![2, 3, 4], "weight 0 (@w): shape: wanted rank 1 or 2, found f32[2, 3, 4]"),
        (
            |g| {
                g.weights[0].storage = Storage::Int8;
                g.weights[0].component = Component::Routing;
            },
            "weight 0 (@w): storage: wanted f32, f16 or bf16 in component routing, found int8[2, 3]",
        ),
        (
            |g| {
                g.weights[0].storage = Storage::Int4(Int4Group::G64);
                g.weights[0].shape = vec![2, 1 << 18];
            },
            "weight 0 (@w): shape: wanted at most 131072 columns of int4:64, found int4:64[2, 262144]",
        ),
        (|g| g.weights[2].shape[0] = 5, "weight 2 (@c): concat: wanted 4 rows in all, found @c [5, 3]"),
        (|g| g.weights[2].shape[1] = 2, "weight 2 (@c): concat: wanted matrices of 2 columns, found @w [2, 3]"),
        (|g| g.weights[3].shape[0] = 3, "weight 3 (@s): scale: wanted shape [3, 3], found @w [2, 3]"),
        (|g| g.weights.swap(0, 3), "weight 0 (@s): definition: wanted earlier weights, found weight 0"),
        // Outputs and inputs.
        (|g| g.outputs[0].value = ValueId(40), "output 0 (y): value: wanted a defined value, found %40"),
        (|g| g.outputs.push(g.outputs[0].clone()), "output 1 (y): name: wanted one of its own, found another output's"),
        (|g| g.inputs.push(g.inputs[0].clone()), "input x: value: wanted one of its own, found %0"),
        // Phases and sizes.
        (
            |g| g.phase = Phase::Fused,
            "node 5 (expert.apply, modules): op: wanted no expert.apply from phase fused on, found one in phase fused",
        ),
        (
            |g| {
                g.phase = Phase::Quantized;
                g.weights[0].storage = Storage::Bf16;
            },
            "weight 0 (@w): storage: wanted f32, f16, int8 or int4 once quantized, found bf16",
        ),
        (|g| g.info.num_clusters = 5000, "model: num_clusters: wanted at most 4096, found 5000"),
    ];
    // Miri, some thousand times slower, takes some.
    for (i, (change, wanted)) in cases.iter().enumerate().step_by(if cfg!(miri) { 9 } else { 1 }) {
        let mut graph = valid();
        change(&mut graph);
        let error = graph.verify().expect_err(wanted).to_string();
        assert!(error.starts_with(wanted), "case {i}: wanted `{wanted}`, found `{error}`");
    }
}

#[test]
fn nodes_that_do_not_fit_are_not_made() {
    let mut graph = valid();
    let before = graph.clone();
    let x = graph.inputs[0].1;
    let operands = vec![Operand::Value(x), Operand::Value(x)];
    let error = graph.make_node(lapidary_compiler::ir::Op::RouteGroup, operands, Default::default(), "").unwrap_err();
    assert_eq!(error, "mask: wanted u8 of rank 2, found f32[T, 3]");
    assert_eq!(graph, before);
}
