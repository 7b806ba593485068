//! Graph, nodes, values.

use super::{Attrs, Dim, Symbol, SymbolId, TensorType, Weight, WeightId};
use crate::ir::Op;

/// A value: a graph input or a result of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// Position of a node in [`Graph::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// An operand of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// A value.
    Value(ValueId),
    /// A weight.
    Weight(WeightId),
    /// An optional operand that is not given (`_` in the text form).
    None,
}

impl Operand {
    /// The value, if it is one.
    pub fn value(self) -> Option<ValueId> {
        match self {
            Operand::Value(v) => Some(v),
            Operand::Weight(_) | Operand::None => None,
        }
    }

    /// The weight, if it is one.
    pub fn weight(self) -> Option<WeightId> {
        match self {
            Operand::Weight(w) => Some(w),
            Operand::Value(_) | Operand::None => None,
        }
    }
}

/// What is known of a value.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueInfo {
    /// Type; symbolic row counts until run time.
    pub ty: TensorType,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Which.
    pub op: Op,
    /// In the order of the op's row; variadic operands last.
    pub operands: Vec<Operand>,
    /// Constants.
    pub attrs: Attrs,
    /// Results.
    pub results: Vec<ValueId>,
    /// Where in the model it comes from: `layers.0.attn`. Shown in profiles, never interpreted.
    pub label: String,
}

impl Node {
    /// Whether the node is attention that keeps keys and values between calls.
    pub fn keeps_keys(&self) -> bool {
        self.op == Op::AttnClustered || (self.op == Op::AttnRange && self.attrs.flag("causal"))
    }
}

/// A named result of the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// `logits`, `domains`, `modules.0`, `gates.0`, `output`.
    pub name: String,
    /// The value.
    pub value: ValueId,
}

/// How far a graph has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// As the importer made it.
    Imported,
    /// Shapes inferred, constants folded, dead code gone.
    Canonical,
    /// Every weight has the storage that it will have in the artifact.
    Quantized,
    /// Projections merged, tokens grouped, FFNs and tails fused.
    Fused,
    /// Every value has its place in memory.
    Planned,
    /// Target code exists.
    Lowered,
}

impl Phase {
    /// All phases, in order.
    pub const ALL: [Phase; 6] =
        [Phase::Imported, Phase::Canonical, Phase::Quantized, Phase::Fused, Phase::Planned, Phase::Lowered];

    /// Name in the text form and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Imported => "imported",
            Phase::Canonical => "canonical",
            Phase::Quantized => "quantized",
            Phase::Fused => "fused",
            Phase::Planned => "planned",
            Phase::Lowered => "lowered",
        }
    }

    /// The phase of that name.
    pub fn by_name(name: &str) -> Option<Phase> {
        Phase::ALL.into_iter().find(|p| p.name() == name)
    }
}

/// What the head computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// `GemForCausalLM`: logits per row.
    CausalLm,
    /// `GemForSequenceClassification`: one row of class scores.
    SequenceClassification,
    /// `GemModel`: one pooled, normalised row.
    Embedding,
}

impl HeadKind {
    /// All heads.
    pub const ALL: [HeadKind; 3] = [HeadKind::CausalLm, HeadKind::SequenceClassification, HeadKind::Embedding];

    /// Name in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            HeadKind::CausalLm => "causal_lm",
            HeadKind::SequenceClassification => "sequence_classification",
            HeadKind::Embedding => "embedding",
        }
    }

    /// The head of that name.
    pub fn by_name(name: &str) -> Option<HeadKind> {
        HeadKind::ALL.into_iter().find(|h| h.name() == name)
    }
}

/// What the artifact's manifest says of the model, beyond the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// `gem-mini`.
    pub name: String,
    /// Head.
    pub head: HeadKind,
    /// Vocabulary: every id is less.
    pub vocab_size: u64,
    /// Hidden size d.
    pub hidden_size: u64,
    /// Blocks L.
    pub num_layers: u64,
    /// Clusters C = modules of a layer.
    pub num_clusters: u64,
    /// Names of the D domains.
    pub domain_names: Vec<String>,
    /// Classes (classification), else 0.
    pub num_labels: u64,
    /// Longest sequence.
    pub max_position_embeddings: u64,
    /// Rows depend on earlier rows only: a sequence may come in pieces.
    pub is_causal: bool,
    /// Why tokens cannot be generated one at a time; `None` if they can.
    pub why_no_decode: Option<String>,
    /// The model's `config.json`, as read (or made up, for presets).
    pub config_json: String,
    /// Digest of config and weights, to find the model's reference outputs again.
    pub source_digest: [u8; 32],
}

impl Default for ModelInfo {
    /// Nothing known: a graph by itself, as in tests. The text form leaves out what equals this.
    fn default() -> Self {
        Self {
            name: String::new(),
            head: HeadKind::CausalLm,
            vocab_size: 0,
            hidden_size: 0,
            num_layers: 0,
            num_clusters: 0,
            domain_names: Vec::new(),
            num_labels: 0,
            max_position_embeddings: 0,
            is_causal: true,
            why_no_decode: None,
            config_json: String::new(),
            source_digest: [0; 32],
        }
    }
}

/// A model as a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// What the model is.
    pub info: ModelInfo,
    /// How far it has come.
    pub phase: Phase,
    /// Symbolic row counts; the first two are T and S.
    pub symbols: Vec<Symbol>,
    /// All values, by id. Ids of dead values stay unused until [`Graph::compact`].
    pub values: Vec<ValueInfo>,
    /// All weights, by id.
    pub weights: Vec<Weight>,
    /// Graph inputs with their names (`ids`).
    pub inputs: Vec<(String, ValueId)>,
    /// Nodes in program order.
    pub nodes: Vec<Node>,
    /// Results.
    pub outputs: Vec<Output>,
}

impl Graph {
    /// A graph with the symbols T and S and nothing else.
    pub fn new(info: ModelInfo) -> Self {
        let symbol = |name: &str| Symbol { name: name.into(), max_per_token: 1 };
        Self {
            info,
            phase: Phase::Imported,
            symbols: vec![symbol("T"), symbol("S")],
            values: Vec::new(),
            weights: Vec::new(),
            inputs: Vec::new(),
            nodes: Vec::new(),
            outputs: Vec::new(),
        }
    }

    /// A new value.
    pub fn add_value(&mut self, ty: TensorType) -> ValueId {
        self.values.push(ValueInfo { ty });
        ValueId(self.values.len() as u32 - 1)
    }

    /// A new symbol with the largest value `max_per_token · T`.
    pub fn add_symbol(&mut self, name: impl Into<String>, max_per_token: u64) -> SymbolId {
        self.symbols.push(Symbol { name: name.into(), max_per_token });
        SymbolId(self.symbols.len() as u32 - 1)
    }

    /// A new weight.
    pub fn add_weight(&mut self, weight: Weight) -> WeightId {
        self.weights.push(weight);
        WeightId(self.weights.len() as u32 - 1)
    }

    /// Type of a value.
    pub fn ty(&self, value: ValueId) -> &TensorType {
        &self.values[value.0 as usize].ty
    }

    /// A weight.
    pub fn weight(&self, id: WeightId) -> &Weight {
        &self.weights[id.0 as usize]
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// A type as the text form writes it: `f32[T, 192]`.
    pub fn show_type(&self, ty: &TensorType) -> String {
        let mut out = format!("{}[", ty.dtype);
        for (i, dim) in ty.shape.iter().enumerate() {
            out.push_str(if i == 0 { "" } else { ", " });
            match dim {
                Dim::Const(n) => out.push_str(&n.to_string()),
                Dim::Sym(s) => match self.symbols.get(s.0 as usize) {
                    Some(symbol) => out.push_str(&symbol.name),
                    None => out.push_str(&format!("symbol {}", s.0)),
                },
            }
        }
        out.push(']');
        out
    }

    /// Largest value of a dimension when T ≤ `max_tokens`.
    pub fn max_dim(&self, dim: Dim, max_tokens: u64) -> u64 {
        match dim {
            Dim::Const(n) => n,
            Dim::Sym(s) => self.symbols[s.0 as usize].max_per_token * max_tokens,
        }
    }

    /// Bytes of a value when T ≤ `max_tokens`, rows packed without gaps.
    pub fn max_bytes(&self, value: ValueId, max_tokens: u64) -> u64 {
        let ty = self.ty(value);
        self.max_dim(ty.rows(), max_tokens) * ty.cols() * ty.dtype.bytes()
    }

    /// The node that defines each value (`None`: a graph input), indexed by value id.
    pub fn definitions(&self) -> Vec<Option<NodeId>> {
        let mut out = vec![None; self.values.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            for r in &node.results {
                out[r.0 as usize] = Some(NodeId(i as u32));
            }
        }
        out
    }

    /// The nodes that use each value, in program order, once per node, indexed by value id.
    pub fn users(&self) -> Vec<Vec<NodeId>> {
        let mut out: Vec<Vec<NodeId>> = vec![Vec::new(); self.values.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            for v in node.operands.iter().filter_map(|o| o.value()) {
                let users = &mut out[v.0 as usize];
                if users.last() != Some(&NodeId(i as u32)) {
                    users.push(NodeId(i as u32));
                }
            }
        }
        out
    }

    /// Whether a value is a graph output.
    pub fn is_output(&self, value: ValueId) -> bool {
        self.outputs.iter().any(|o| o.value == value)
    }

    /// Makes every use of `old`, outputs included, a use of `new`.
    pub fn replace_uses(&mut self, old: ValueId, new: ValueId) {
        for operand in self.nodes.iter_mut().flat_map(|n| n.operands.iter_mut()) {
            if *operand == Operand::Value(old) {
                *operand = Operand::Value(new);
            }
        }
        for output in self.outputs.iter_mut().filter(|o| o.value == old) {
            output.value = new;
        }
    }
}
