//! Random valid graphs: every op may appear, names and labels are arbitrary.

use lapidary_compiler::ir::{
    AttrKind, AttrValue, Attrs, Component, DType, Dim, Graph, HeadKind, ModelInfo, Op, Operand, Output, Phase, Storage,
    SymbolId, TensorType, ValueId, Weight, WeightDef, WeightId,
};
use lapidary_compiler::ops::{OPS, OpRow, OperandKind, Policy};

/// A stream of numbers (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.bits() >> 11) % n
    }

    fn pick<'t, T>(&mut self, of: &'t [T]) -> &'t T {
        &of[self.below(of.len() as u64) as usize]
    }

    /// Any finite float, often a plain one.
    fn float(&mut self) -> f32 {
        match self.below(3) {
            0 => self.below(1000) as f32 / 16.0,
            _ => Some(f32::from_bits(self.bits() as u32)).filter(|x| x.is_finite()).unwrap_or(0.5),
        }
    }

    fn text(&mut self) -> String {
        let alphabet: Vec<char> = "abcXYZ019_.-/ \"\\\n\t\r{}%@;üé\u{1}\u{7f}\u{2028}日".chars().collect();
        (0..self.below(12)).map(|_| *self.pick(&alphabet)).collect()
    }
}

const COLS: [u64; 3] = [2, 4, 6];

/// A valid graph that depends on the seed alone.
pub fn random_graph(seed: u64) -> Graph {
    let mut r = Random::new(seed);
    let mut graph = Graph::new(info(&mut r));
    graph.phase = *r.pick(&[Phase::Imported, Phase::Canonical]);
    for (name, dtype) in [("ids", DType::U32), ("x", DType::F32)] {
        let ty = match dtype {
            DType::U32 => TensorType::vector(dtype, Dim::Sym(SymbolId::TOKENS)),
            _ => TensorType::matrix(dtype, Dim::Sym(SymbolId::TOKENS), *r.pick(&COLS)),
        };
        let value = graph.add_value(ty);
        graph.inputs.push((name.into(), value));
    }
    if r.below(3) == 0 {
        routed(&mut r, &mut graph);
    }
    for _ in 0..r.below(40) {
        let row = r.pick(OPS);
        // Most random choices fit no shape rule; what fits is a node.
        for _ in 0..20 {
            let (operands, attrs) = guess(&mut r, &mut graph, row);
            if graph.push(row.op, operands, attrs, r.text()).is_ok() {
                break;
            }
        }
    }
    for i in 0..r.below(4) {
        let value = ValueId(r.below(graph.values.len() as u64) as u32);
        graph.outputs.push(Output { name: format!("{}#{i}", r.text()), value });
    }
    graph
}

/// Tokens grouped, gathered and combined: what random choices hardly ever put together.
fn routed(r: &mut Random, graph: &mut Graph) {
    let x = graph.inputs[1].1;
    let c = graph.ty(x).cols();
    let attrs = [
        ("policy", AttrValue::Word(r.pick(&Policy::ALL).name())),
        ("k_min", AttrValue::Int(0)),
        ("k_max", AttrValue::Int(1 + r.below(c))),
        ("p", AttrValue::Float(0.5)),
        ("tau", AttrValue::Float(0.25)),
        ("capacity_factor", AttrValue::Float(1.0)),
        ("norm_gates", AttrValue::Bool(true)),
    ];
    let mut module =
        |shape: [u64; 2]| -> Vec<Operand> { (0..c).map(|_| Operand::Weight(weight(r, graph, &shape))).collect() };
    let (gate, up, down) = (module([2, c]), module([2, c]), module([c, 2]));
    let mut push = |op, operands: &[ValueId], attrs: &[_], more: &[Operand]| {
        let operands = operands.iter().copied().map(Operand::Value).chain(more.iter().copied()).collect();
        graph.push(op, operands, Attrs::of(attrs), "routed").unwrap()
    };
    let selected = push(Op::RouteSelect, &[x], &attrs, &[]);
    let group = push(Op::RouteGroup, &selected, &[], &[]);
    let rows = push(Op::RouteGather, &[x, group[1]], &[], &[])[0];
    push(Op::ExpertLinear, &[rows, group[0]], &[], &gate);
    push(Op::RouteCombine, &[rows, group[1], group[2]], &[], &[Operand::None]);
    let weights = [gate, up, down].concat();
    push(Op::ExpertFfn, &[x, group[0], group[1], group[2], x], &[], &weights);
    push(Op::ExpertApply, &[x, selected[0], selected[1]], &[], &weights);
}

fn info(r: &mut Random) -> ModelInfo {
    if r.below(4) == 0 {
        return ModelInfo::default();
    }
    let mut info = ModelInfo {
        name: r.text(),
        head: *r.pick(&HeadKind::ALL),
        vocab_size: r.below(1000),
        hidden_size: r.below(1000),
        num_layers: r.below(10),
        num_clusters: r.below(10),
        domain_names: (0..r.below(3)).map(|_| r.text()).collect(),
        num_labels: r.below(3),
        max_position_embeddings: r.below(1000),
        is_causal: r.below(2) == 0,
        why_no_decode: None,
        config_json: r.text(),
        source_digest: [0; 32],
    };
    if r.below(2) == 0 {
        info.why_no_decode = Some(r.text());
        info.source_digest = std::array::from_fn(|_| r.bits() as u8);
    }
    info
}

/// Operands and attributes that fit the row; perhaps they fit the shape rule too.
fn guess(r: &mut Random, graph: &mut Graph, row: &OpRow) -> (Vec<Operand>, Attrs) {
    let mut operands = Vec::new();
    let modules = 1 + r.below(3);
    let (n, k) = (*r.pick(&COLS), *r.pick(&COLS));
    for (i, o) in row.operands.iter().enumerate() {
        match o.kind {
            OperandKind::Value => operands.push(Operand::Value(value(r, graph))),
            OperandKind::OptionalValue if r.below(2) == 0 => operands.push(Operand::Value(value(r, graph))),
            OperandKind::OptionalWeight if r.below(2) == 0 => {
                operands.push(Operand::Weight(weight(r, graph, &[n])));
            }
            OperandKind::OptionalValue | OperandKind::OptionalWeight => operands.push(Operand::None),
            OperandKind::Weight => operands.push(Operand::Weight(weight(r, graph, &[n, k]))),
            OperandKind::WeightPerModule => {
                let down = row.operands.len() - row.op.num_fixed_operands() == 3 && i + 1 == row.operands.len();
                let shape = if down { [k, n] } else { [n, k] };
                operands.extend((0..modules).map(|_| Operand::Weight(weight(r, graph, &shape))));
            }
        }
    }
    let attr = |r: &mut Random, name: &str, kind: AttrKind| match kind {
        AttrKind::Int => AttrValue::Int(if name == "head_dim" { 2 } else { r.below(4) }),
        AttrKind::Float => AttrValue::Float(if name == "p" || name == "tau" { 0.3 } else { r.float() }),
        AttrKind::Bool => AttrValue::Bool(r.below(2) == 0),
        AttrKind::Word(words) => AttrValue::Word(words[r.below(words.len() as u64) as usize]),
    };
    let attrs = row.attrs.iter().map(|a| (a.name, attr(r, a.name, a.kind))).collect();
    (operands, Attrs(attrs))
}

fn value(r: &mut Random, graph: &Graph) -> ValueId {
    ValueId(r.below(graph.values.len() as u64) as u32)
}

/// A weight of this shape: one that exists, or a new one.
fn weight(r: &mut Random, graph: &mut Graph, shape: &[u64]) -> WeightId {
    let same: Vec<u32> =
        (0..graph.weights.len() as u32).filter(|i| graph.weights[*i as usize].shape == shape).collect();
    if !same.is_empty() && r.below(3) > 0 {
        return WeightId(*r.pick(&same));
    }
    // Only plain weights are bases, so no chain of definitions grows too long.
    let plain = |i: &&u32| graph.weights[**i as usize].def.bases().is_empty();
    let base = same.iter().find(plain).map(|i| WeightId(*i));
    let vector = (0..graph.weights.len() as u32)
        .filter(|i| graph.weights[*i as usize].def.bases().is_empty())
        .find(|i| Some(&graph.weights[*i as usize].shape[..]) == shape.get(1..))
        .map(WeightId);
    let halves: Vec<WeightId> = (0..graph.weights.len() as u32)
        .filter(|i| graph.weights[*i as usize].def.bases().is_empty())
        .filter(|i| shape.len() == 2 && graph.weights[*i as usize].shape == [shape[0] / 2, shape[1]])
        .map(WeightId)
        .take(2)
        .collect();
    let def = match (r.below(6), base, vector) {
        (0, ..) => WeightDef::Splat(r.float()),
        (1, ..) => WeightDef::Random { seed: r.bits(), std: r.float().abs() },
        (2, Some(base), _) => WeightDef::Scale { base, factor: r.float() },
        (3, Some(base), Some(columns)) if shape.len() == 2 => WeightDef::ScaleColumns { base, columns },
        (4, ..) if halves.len() == 2 => WeightDef::Concat(halves),
        _ => WeightDef::Stored,
    };
    let name = format!("{}#{}", r.text(), graph.weights.len());
    let component = *r.pick(&Component::ALL);
    let integers = shape.len() == 2 && !matches!(component, Component::Norm | Component::Routing);
    let storages = if integers { &Storage::ALL[..] } else { &[Storage::F32, Storage::F16, Storage::Bf16] };
    let storage = *r.pick(storages);
    graph.add_weight(Weight { name, storage, shape: shape.to_vec(), def, component })
}
