//! The tensors of a checkpoint: names, shapes, and what part of the model each is.

use super::config::{ConfigError, GemConfig};
use crate::ir::{Component, HeadKind, limits};

/// One tensor that a checkpoint has to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the file.
    pub name: String,
    /// `[n, k]` rows = outputs, or `[n]`.
    pub shape: Vec<u64>,
    /// Part of the model.
    pub component: Component,
    /// Kept as F32 whatever the checkpoint's type is: norms, SCAR keys and values, the router's head.
    pub keeps_f32: bool,
}

impl TensorSpec {
    /// Elements; no overflow, because [`tensors`] checked.
    pub fn elems(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// How many tensors a model has.
pub fn tensor_count(config: &GemConfig) -> u64 {
    // Two norms, SCAR's query and keys, four of attention, the general path's three; values and their projection.
    let memory = if config.scar.memory { 2 } else { 0 };
    let per_layer = 11 + memory + 3 * config.scar.num_clusters;
    let router = config.token_router.as_ref().map_or(0, |t| 3 + 8 * t.num_layers);
    let head = match config.head {
        HeadKind::CausalLm => u64::from(!config.tie_word_embeddings),
        HeadKind::SequenceClassification => 1,
        HeadKind::Embedding => 0,
    };
    // Every factor is bounded by the config's checks, so these products fit 64 bits.
    2 + router + per_layer * config.num_hidden_layers + head
}

/// All tensors of a model, in the order of the graph.
///
/// # Errors
/// Sizes whose product is beyond what the compiler takes.
pub fn tensors(config: &GemConfig) -> Result<Vec<TensorSpec>, ConfigError> {
    let too_large =
        |key: &str, wanted: String, found: u64| Err(ConfigError { key: key.into(), wanted, found: found.to_string() });
    let count = tensor_count(config);
    if count > limits::MAX_ENTITIES as u64 / 2 {
        let wanted = format!("layers and clusters of at most {} tensors", limits::MAX_ENTITIES / 2);
        return too_large("num_hidden_layers", wanted, count);
    }
    // Queries, keys, values and SCAR's query may become one projection, whose columns have a bound.
    let (width, max_width) = (config.num_attention_heads * config.head_dim, limits::MAX_COLS / 4);
    if width > max_width {
        return too_large("num_attention_heads", format!("heads · head_dim of at most {max_width}"), width);
    }
    let mut list = List { out: Vec::new() };
    list.model(config);
    let mut total = 0;
    for spec in &list.out {
        // No tensor has more than 2^44 elements, and the loop ends when the total passes its bound.
        total += spec.elems();
        if spec.elems() > limits::MAX_WEIGHT_ELEMS || total > limits::MAX_TOTAL_WEIGHT_ELEMS {
            let wanted = format!(
                "tensors of at most {} elements, {} in all",
                limits::MAX_WEIGHT_ELEMS,
                limits::MAX_TOTAL_WEIGHT_ELEMS
            );
            return too_large(&format!("sizes of {}", spec.name), wanted, total);
        }
    }
    debug_assert_eq!(list.out.len() as u64, count);
    Ok(list.out)
}

struct List {
    out: Vec<TensorSpec>,
}

impl List {
    fn add(&mut self, name: String, shape: &[u64], component: Component) {
        self.out.push(TensorSpec { name, shape: shape.to_vec(), component, keeps_f32: false });
    }

    fn add_f32(&mut self, name: String, shape: &[u64], component: Component) {
        self.out.push(TensorSpec { name, shape: shape.to_vec(), component, keeps_f32: true });
    }

    fn model(&mut self, config: &GemConfig) {
        let (d, v) = (config.hidden_size, config.vocab_size);
        self.add("model.embed_tokens.weight".into(), &[v, d], Component::Embedding);
        self.token_router(config);
        for l in 0..config.num_hidden_layers {
            self.layer(config, &format!("model.layers.{l}"));
        }
        self.add_f32("model.norm.weight".into(), &[d], Component::Norm);
        match config.head {
            HeadKind::CausalLm if config.tie_word_embeddings => {}
            HeadKind::CausalLm => self.add("lm_head.weight".into(), &[v, d], Component::Head),
            HeadKind::SequenceClassification => {
                self.add("score.weight".into(), &[config.num_labels, d], Component::Head);
            }
            HeadKind::Embedding => {}
        }
    }

    fn token_router(&mut self, config: &GemConfig) {
        let Some(t) = &config.token_router else { return };
        let (r, f, at) = (t.hidden_size, t.intermediate_size, "model.token_router");
        let part = Component::TokenRouter;
        self.add(format!("{at}.embed.weight"), &[config.vocab_size, r], part);
        for i in 0..t.num_layers {
            let at = format!("{at}.layers.{i}");
            self.add_f32(format!("{at}.attn_norm.weight"), &[r], Component::Norm);
            for name in ["q", "k", "v", "o"] {
                self.add(format!("{at}.attn.{name}_proj.weight"), &[r, r], part);
            }
            self.add_f32(format!("{at}.mlp_norm.weight"), &[r], Component::Norm);
            self.add(format!("{at}.mlp.up_proj.weight"), &[f, r], part);
            self.add(format!("{at}.mlp.down_proj.weight"), &[r, f], part);
        }
        self.add_f32(format!("{at}.norm.weight"), &[r], Component::Norm);
        self.add_f32(format!("{at}.head.weight"), &[config.num_domains(), r], Component::Routing);
    }

    fn layer(&mut self, config: &GemConfig, at: &str) {
        let (d, hd, scar) = (config.hidden_size, config.head_dim, &config.scar);
        let (q, kv) = (config.num_attention_heads * hd, config.num_key_value_heads * hd);
        self.add_f32(format!("{at}.attn_norm.weight"), &[d], Component::Norm);
        // SCAR's query is a projection of the attention half, and stored like the others.
        self.add(format!("{at}.scar.query.weight"), &[scar.dim, d], Component::Attention);
        self.add_f32(format!("{at}.scar.keys"), &[scar.num_clusters, scar.dim], Component::Routing);
        for (name, shape) in [("q", [q, d]), ("k", [kv, d]), ("v", [kv, d]), ("o", [d, q])] {
            self.add(format!("{at}.attn.{name}_proj.weight"), &shape, Component::Attention);
        }
        self.add_f32(format!("{at}.mlp_norm.weight"), &[d], Component::Norm);
        self.ffn(&format!("{at}.general"), config.intermediate_size, d, Component::General);
        for c in 0..scar.num_clusters {
            self.ffn(&format!("{at}.modules.{c}"), config.module_intermediate_size, d, Component::Modules);
        }
        if scar.memory {
            self.add_f32(format!("{at}.scar.values"), &[scar.num_clusters, scar.dim], Component::Routing);
            self.add(format!("{at}.scar.memory_proj.weight"), &[d, scar.dim], Component::General);
        }
    }

    fn ffn(&mut self, at: &str, f: u64, d: u64, component: Component) {
        for name in ["gate", "up"] {
            self.add(format!("{at}.{name}_proj.weight"), &[f, d], component);
        }
        self.add(format!("{at}.down_proj.weight"), &[d, f], component);
    }
}
