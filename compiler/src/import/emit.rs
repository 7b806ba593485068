//! A GEM's config and tensors → the imported graph.

use std::collections::HashMap;

use super::config::GemConfig;
use super::tensors::TensorSpec;
use crate::ir::{
    AttrValue, Attrs, DType, Dim, Graph, HeadKind, KvStorage, ModelInfo, Op, Operand, Output, Storage, SymbolId,
    TensorType, ValueId, VerifyError, Weight, WeightDef, WeightId,
};

/// What the graph should have beyond the model itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ImportOptions {
    /// Outputs `scores.l`, the softmaxed scores `[T, C]` of each block: how near a routing decision was to another.
    pub scores: bool,
}

/// The graph of a model. `weight` gives each tensor's storage and definition; tensors that are kept in F32 become F32.
pub fn emit(
    config: &GemConfig,
    specs: &[TensorSpec],
    name: &str,
    options: &ImportOptions,
    mut weight: impl FnMut(usize, &TensorSpec) -> (Storage, WeightDef),
) -> Result<Graph, VerifyError> {
    let mut graph = Graph::new(info(config, name));
    let mut weights = HashMap::new();
    for (i, spec) in specs.iter().enumerate() {
        let (storage, def) = weight(i, spec);
        let storage = if spec.keeps_f32 { Storage::F32 } else { storage };
        let (shape, component) = (spec.shape.clone(), spec.component);
        let id = graph.add_weight(Weight { name: spec.name.clone(), storage, shape, def, component });
        weights.insert(spec.name.as_str(), id);
    }
    let mut emitter = Emitter { graph, weights, config, options };
    // A config and its own tensor list fit every shape rule; an error here names the node that does not.
    emitter.model().map_err(|message| VerifyError { place: "import".into(), message })?;
    emitter.graph.verify()?;
    Ok(emitter.graph)
}

fn info(config: &GemConfig, name: &str) -> ModelInfo {
    let why_no_decode = config.why_no_decode();
    ModelInfo {
        name: name.into(),
        head: config.head,
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        num_layers: config.num_hidden_layers,
        num_clusters: config.scar.num_clusters,
        domain_names: config.domain_names.clone(),
        num_labels: if config.head == HeadKind::SequenceClassification { config.num_labels } else { 0 },
        max_position_embeddings: config.max_position_embeddings,
        is_causal: why_no_decode.is_none(),
        why_no_decode,
        config_json: config.to_json(),
        source_digest: [0; 32],
    }
}

struct Emitter<'a> {
    graph: Graph,
    weights: HashMap<&'a str, WeightId>,
    config: &'a GemConfig,
    options: &'a ImportOptions,
}

/// What one block decided for each token.
struct Routing {
    scores: ValueId,
    mask: ValueId,
    gates: ValueId,
}

fn int(n: u64) -> AttrValue {
    AttrValue::Int(n)
}

fn float(x: f32) -> AttrValue {
    AttrValue::Float(x)
}

/// Keys and values are kept as they are until a recipe says otherwise.
fn kv_cache_f32() -> (&'static str, AttrValue) {
    ("kv_cache", AttrValue::Word(KvStorage::F32.name()))
}

/// `1/√n`, computed in f64.
fn inverse_sqrt(n: u64) -> f32 {
    (1.0 / (n as f64).sqrt()) as f32
}

impl Emitter<'_> {
    fn push(&mut self, op: Op, operands: &[Operand], attrs: &[(&'static str, AttrValue)], label: &str) -> Emitted {
        let made = self.graph.push1(op, operands.to_vec(), Attrs::of(attrs), label);
        made.map_err(|message| format!("{} ({label}): {message}", op.row().name))
    }

    fn w(&self, name: &str) -> Operand {
        Operand::Weight(*self.weights.get(name).expect("the tensor list names every weight of the model"))
    }

    fn norm(&mut self, x: ValueId, weight: &str, label: &str) -> Emitted {
        let eps = float(self.config.rms_norm_eps);
        let w = self.w(&format!("{weight}.weight"));
        self.push(Op::RmsNorm, &[Operand::Value(x), w], &[("eps", eps)], label)
    }

    fn linear(&mut self, x: ValueId, weight: &str, label: &str) -> Emitted {
        let w = self.w(&format!("{weight}.weight"));
        let operands = [Operand::Value(x), w, Operand::None];
        self.push(Op::Linear, &operands, &[("act", AttrValue::Word("none"))], label)
    }

    fn unary(&mut self, op: Op, x: ValueId, label: &str) -> Emitted {
        self.push(op, &[Operand::Value(x)], &[], label)
    }

    fn binary(&mut self, op: Op, a: ValueId, b: ValueId, label: &str) -> Emitted {
        self.push(op, &[Operand::Value(a), Operand::Value(b)], &[], label)
    }

    fn rope(&mut self, x: ValueId, heads: u64, head_dim: u64, label: &str) -> Emitted {
        let theta = float(self.config.rope_theta);
        let attrs = [("heads", int(heads)), ("head_dim", int(head_dim)), ("theta", theta)];
        self.push(Op::Rope, &[Operand::Value(x)], &attrs, label)
    }

    fn output(&mut self, name: impl Into<String>, value: ValueId) {
        self.graph.outputs.push(Output { name: name.into(), value });
    }

    fn model(&mut self) -> Result<(), String> {
        let ids = self.graph.add_value(TensorType::vector(DType::U32, Dim::Sym(SymbolId::TOKENS)));
        self.graph.inputs.push(("ids".into(), ids));
        let table = self.w("model.embed_tokens.weight");
        let mut x = self.push(Op::Embed, &[Operand::Value(ids), table], &[], "embed")?;
        let domains = self.token_router(ids)?;
        for l in 0..self.config.num_hidden_layers {
            x = self.block(l, x, domains)?;
        }
        self.head(x)
    }

    /// π and its output; `None` when it is uniform.
    fn token_router(&mut self, ids: ValueId) -> Result<Option<ValueId>, String> {
        let Some(t) = self.config.token_router.clone() else {
            let d = self.config.num_domains();
            let attrs = [("cols", int(d)), ("value", float((1.0 / d as f64) as f32))];
            let uniform = self.push(Op::Fill, &[Operand::Value(ids)], &attrs, "domains")?;
            self.output("domains", uniform);
            return Ok(None);
        };
        let (heads, head_dim) = (t.num_heads, t.hidden_size / t.num_heads);
        let table = self.w("model.token_router.embed.weight");
        let mut x = self.push(Op::Embed, &[Operand::Value(ids), table], &[], "token_router.embed")?;
        for i in 0..t.num_layers {
            let (at, label) = (format!("model.token_router.layers.{i}"), format!("token_router.layers.{i}"));
            let n = self.norm(x, &format!("{at}.attn_norm"), &format!("{label}.attn_norm"))?;
            let [q, k, v] = self.projections(n, &at, &label, (heads, heads), head_dim)?;
            let attrs = [
                ("heads", int(heads)),
                ("kv_heads", int(heads)),
                ("head_dim", int(head_dim)),
                ("scale", float(inverse_sqrt(head_dim))),
                ("causal", AttrValue::Bool(t.causal)),
                ("window", int(t.window)),
                kv_cache_f32(),
            ];
            let attended =
                self.push(Op::AttnRange, &[q, k, v].map(Operand::Value), &attrs, &format!("{label}.attn"))?;
            let o = self.linear(attended, &format!("{at}.attn.o_proj"), &format!("{label}.attn.o"))?;
            let h = self.binary(Op::Add, x, o, &format!("{label}.attn.add"))?;
            let m = self.norm(h, &format!("{at}.mlp_norm"), &format!("{label}.mlp_norm"))?;
            let up = self.linear(m, &format!("{at}.mlp.up_proj"), &format!("{label}.mlp.up"))?;
            let up = self.unary(Op::Gelu, up, &format!("{label}.mlp.gelu"))?;
            let down = self.linear(up, &format!("{at}.mlp.down_proj"), &format!("{label}.mlp.down"))?;
            x = self.binary(Op::Add, h, down, &format!("{label}.mlp.add"))?;
        }
        let n = self.norm(x, "model.token_router.norm", "token_router.norm")?;
        let logits = self.linear(n, "model.token_router.head", "token_router.head")?;
        let domains = self.unary(Op::Softmax, logits, "domains")?;
        self.output("domains", domains);
        Ok(Some(domains))
    }

    /// q, k (both rotated) and v of `heads` = (query heads, key/value heads).
    fn projections(
        &mut self,
        n: ValueId,
        at: &str,
        label: &str,
        heads: (u64, u64),
        head_dim: u64,
    ) -> Result<[ValueId; 3], String> {
        let [q, k, v] = ["q", "k", "v"]
            .map(|name| self.linear(n, &format!("{at}.attn.{name}_proj"), &format!("{label}.attn.{name}")));
        let q = self.rope(q?, heads.0, head_dim, &format!("{label}.attn.q.rope"))?;
        let k = self.rope(k?, heads.1, head_dim, &format!("{label}.attn.k.rope"))?;
        Ok([q, k, v?])
    }

    fn block(&mut self, l: u64, x: ValueId, domains: Option<ValueId>) -> Emitted {
        let (at, label) = (format!("model.layers.{l}"), format!("layers.{l}"));
        let n = self.norm(x, &format!("{at}.attn_norm"), &format!("{label}.attn_norm"))?;
        let routing = self.routing(n, &at, &label, domains)?;
        let attended = self.attention(n, &at, &label, routing.scores)?;
        let o = self.linear(attended, &format!("{at}.attn.o_proj"), &format!("{label}.attn.o"))?;
        let h = self.binary(Op::Add, x, o, &format!("{label}.attn.add"))?;
        let m = self.norm(h, &format!("{at}.mlp_norm"), &format!("{label}.mlp_norm"))?;

        let general = self.general(m, &at, &label)?;
        let mut x = self.binary(Op::Add, h, general, &format!("{label}.general.add"))?;
        let modules = self.modules(m, &routing, &at, &label)?;
        x = self.binary(Op::Add, x, modules, &format!("{label}.modules.add"))?;
        if self.config.scar.memory {
            let values = self.w(&format!("{at}.scar.values"));
            let operands = [Operand::Value(routing.mask), Operand::Value(routing.gates), values];
            let memory = self.push(Op::RouteMemory, &operands, &[], &format!("{label}.memory"))?;
            let memory = self.linear(memory, &format!("{at}.scar.memory_proj"), &format!("{label}.memory.proj"))?;
            x = self.binary(Op::Add, x, memory, &format!("{label}.memory.add"))?;
        }
        self.output(format!("modules.{l}"), routing.mask);
        self.output(format!("gates.{l}"), routing.gates);
        if self.options.scores {
            self.output(format!("scores.{l}"), routing.scores);
        }
        Ok(x)
    }

    fn routing(&mut self, n: ValueId, at: &str, label: &str, domains: Option<ValueId>) -> Result<Routing, String> {
        let s = self.config.scar.clone();
        let q = self.linear(n, &format!("{at}.scar.query"), &format!("{label}.scar.query"))?;
        let factor = [("factor", float(inverse_sqrt(s.dim)))];
        let q = self.push(Op::Scale, &[Operand::Value(q)], &factor, &format!("{label}.scar.scale"))?;
        let domains = domains.map_or(Operand::None, Operand::Value);
        let keys = self.w(&format!("{at}.scar.keys"));
        let attrs =
            [("scale", float(1.0)), ("lambda", float(s.lambda)), ("num_domains", int(self.config.num_domains()))];
        let operands = [Operand::Value(q), domains, keys];
        let scores = self.push(Op::RouteScores, &operands, &attrs, &format!("{label}.scar.scores"))?;
        let attrs = Attrs::of(&[
            ("policy", AttrValue::Word(s.policy.name())),
            ("k_min", int(s.k_min)),
            ("k_max", int(s.k_max)),
            ("p", float(s.p)),
            ("tau", float(s.tau)),
            ("capacity_factor", float(s.capacity_factor)),
            ("norm_gates", AttrValue::Bool(s.norm_gates)),
        ]);
        let selected =
            self.graph.push(Op::RouteSelect, vec![Operand::Value(scores)], attrs, format!("{label}.scar.select"))?;
        Ok(Routing { scores, mask: selected[0], gates: selected[1] })
    }

    fn attention(&mut self, n: ValueId, at: &str, label: &str, scores: ValueId) -> Emitted {
        let c = self.config;
        let (heads, kv_heads, a) = (c.num_attention_heads, c.num_key_value_heads, c.attention.clone());
        let [q, k, v] = self.projections(n, at, label, (heads, kv_heads), c.head_dim)?;
        let [q, k, v] = [q, k, v].map(Operand::Value);
        let shape = [
            ("heads", int(heads)),
            ("kv_heads", int(kv_heads)),
            ("head_dim", int(c.head_dim)),
            ("scale", float(inverse_sqrt(c.head_dim))),
        ];
        let label = format!("{label}.attn");
        if !a.clustered {
            let range = [("causal", AttrValue::Bool(c.is_causal)), ("window", int(0)), kv_cache_f32()];
            return self.push(Op::AttnRange, &[q, k, v], &[&shape[..], &range].concat(), &label);
        }
        let cluster = self.unary(Op::RouteCluster, scores, &format!("{label}.cluster"))?;
        let clustered = [
            ("window", int(a.window)),
            ("sinks", int(a.sinks)),
            ("cluster_cap", int(a.cluster_cap)),
            ("num_clusters", int(c.scar.num_clusters)),
            kv_cache_f32(),
        ];
        let operands = [q, k, v, Operand::Value(cluster)];
        self.push(Op::AttnClustered, &operands, &[&shape[..], &clustered].concat(), &label)
    }

    fn general(&mut self, m: ValueId, at: &str, label: &str) -> Emitted {
        let gate = self.linear(m, &format!("{at}.general.gate_proj"), &format!("{label}.general.gate"))?;
        let up = self.linear(m, &format!("{at}.general.up_proj"), &format!("{label}.general.up"))?;
        let gate = self.unary(Op::Silu, gate, &format!("{label}.general.silu"))?;
        let hidden = self.binary(Op::Mul, gate, up, &format!("{label}.general.mul"))?;
        self.linear(hidden, &format!("{at}.general.down_proj"), &format!("{label}.general.down"))
    }

    fn modules(&mut self, m: ValueId, routing: &Routing, at: &str, label: &str) -> Emitted {
        let mut operands = [m, routing.mask, routing.gates].map(Operand::Value).to_vec();
        for name in ["gate", "up", "down"] {
            let clusters = 0..self.config.scar.num_clusters;
            operands.extend(clusters.map(|c| self.w(&format!("{at}.modules.{c}.{name}_proj.weight"))));
        }
        self.push(Op::ExpertApply, &operands, &[], &format!("{label}.modules"))
    }

    fn head(&mut self, x: ValueId) -> Result<(), String> {
        match self.config.head {
            HeadKind::CausalLm => {
                let x = self.unary(Op::LastRows, x, "head.last_rows")?;
                let n = self.norm(x, "model.norm", "norm")?;
                let tied = self.config.tie_word_embeddings;
                let logits = self.linear(n, if tied { "model.embed_tokens" } else { "lm_head" }, "lm_head")?;
                self.output("logits", logits);
            }
            HeadKind::SequenceClassification => {
                let n = self.norm(x, "model.norm", "norm")?;
                let pooled = self.unary(Op::MeanRows, n, "head.mean")?;
                let scores = self.linear(pooled, "score", "score")?;
                self.output("output", scores);
            }
            HeadKind::Embedding => {
                let n = self.norm(x, "model.norm", "norm")?;
                let pooled = self.unary(Op::MeanRows, n, "head.mean")?;
                let unit = self.unary(Op::L2Normalize, pooled, "head.normalize")?;
                self.output("output", unit);
            }
        }
        Ok(())
    }
}

/// A value, or why its node could not be made.
type Emitted = Result<ValueId, String>;
