//! Models that are made up on the spot: tests, benchmarks, and shapes too large to store.

use std::path::PathBuf;
use std::sync::Arc;

use super::config::{AttentionConfig, GemConfig, ScarConfig, TokenRouterConfig};
use super::tensors::{TensorSpec, tensors};
use super::{Digest, ImportError, ImportOptions, ImportedModel, emit};
use crate::ir::{HeadKind, NoSource, Storage, WeightDef};
use crate::ops::Policy;

/// What a preset's weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PresetWeights {
    /// Seeded random, as a freshly initialised model: activations stay sane, routing varies.
    Random,
    /// One repeated value: compiled, planned and simulated, never run for its values.
    Splat,
}

/// One preset.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// `gem-tiny`.
    pub name: &'static str,
    /// What it is for.
    pub doc: &'static str,
    /// Its weights.
    pub weights: PresetWeights,
    /// Storage of its matrices.
    pub storage: Storage,
    /// Its sizes.
    pub sizes: Sizes,
}

/// What distinguishes the presets; the rest of their configs is the same.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "named as the config's keys")]
pub struct Sizes {
    pub vocab_size: u64,
    pub hidden_size: u64,
    pub num_hidden_layers: u64,
    pub num_attention_heads: u64,
    pub num_key_value_heads: u64,
    pub head_dim: u64,
    pub intermediate_size: u64,
    pub module_intermediate_size: u64,
    pub num_domains: u64,
    pub max_position_embeddings: u64,
    pub num_clusters: u64,
    pub scar_dim: u64,
    pub k_max: u64,
    /// window, sinks, cluster_cap
    pub attention: [u64; 3],
    /// hidden_size, num_layers, num_heads, intermediate_size, window
    pub token_router: [u64; 5],
}

/// All presets.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "gem-tiny",
        doc: "unit tests: 0.3 M parameters, random weights",
        weights: PresetWeights::Random,
        storage: Storage::F32,
        sizes: Sizes {
            vocab_size: 512,
            hidden_size: 64,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 16,
            intermediate_size: 128,
            module_intermediate_size: 64,
            num_domains: 4,
            max_position_embeddings: 256,
            num_clusters: 8,
            scar_dim: 32,
            k_max: 3,
            attention: [16, 2, 8],
            token_router: [32, 1, 2, 64, 16],
        },
    },
    Preset {
        name: "gem-small",
        doc: "benchmarks against peers: 205 M parameters, random weights",
        weights: PresetWeights::Random,
        storage: Storage::F16,
        sizes: Sizes {
            vocab_size: 32000,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_key_value_heads: 4,
            head_dim: 64,
            intermediate_size: 1536,
            module_intermediate_size: 256,
            num_domains: 8,
            max_position_embeddings: 2048,
            num_clusters: 16,
            scar_dim: 64,
            k_max: 4,
            attention: [128, 4, 64],
            token_router: [128, 2, 4, 512, 64],
        },
    },
    Preset {
        name: "gem-paper",
        doc: "the paper's footprint: 2.8 G parameters, about 1800 MB in hybrid quantization, shapes only",
        weights: PresetWeights::Splat,
        storage: Storage::F16,
        sizes: Sizes {
            vocab_size: 64000,
            hidden_size: 2048,
            num_hidden_layers: 20,
            num_attention_heads: 16,
            num_key_value_heads: 4,
            head_dim: 128,
            intermediate_size: 1408,
            module_intermediate_size: 576,
            num_domains: 8,
            max_position_embeddings: 2048,
            num_clusters: 32,
            scar_dim: 64,
            k_max: 4,
            attention: [256, 4, 128],
            token_router: [256, 2, 4, 1024, 128],
        },
    },
    Preset {
        name: "gem-50ms",
        doc: "under 900 MB, at most 200 MB of weights touched per generated token, shapes only",
        weights: PresetWeights::Splat,
        storage: Storage::F16,
        sizes: Sizes {
            vocab_size: 32000,
            hidden_size: 1024,
            num_hidden_layers: 20,
            num_attention_heads: 8,
            num_key_value_heads: 2,
            head_dim: 128,
            intermediate_size: 1024,
            module_intermediate_size: 512,
            num_domains: 8,
            max_position_embeddings: 2048,
            num_clusters: 40,
            scar_dim: 64,
            k_max: 2,
            attention: [256, 4, 128],
            token_router: [192, 2, 3, 768, 128],
        },
    },
];

/// Names of the domains; a preset takes as many as it has.
const DOMAINS: [&str; 8] = ["code", "mathematics", "medicine", "law", "finance", "science", "news", "dialogue"];

/// What every element of a splat preset's matrices is: 2^-7, exact in F16.
const SPLAT: f32 = 0.0078125;

impl Preset {
    /// Its config.
    pub fn config(&self) -> GemConfig {
        let s = &self.sizes;
        let [window, sinks, cluster_cap] = s.attention;
        let [hidden_size, num_layers, num_heads, intermediate_size, router_window] = s.token_router;
        GemConfig {
            head: HeadKind::CausalLm,
            is_causal: true,
            vocab_size: s.vocab_size,
            hidden_size: s.hidden_size,
            num_hidden_layers: s.num_hidden_layers,
            num_attention_heads: s.num_attention_heads,
            num_key_value_heads: s.num_key_value_heads,
            head_dim: s.head_dim,
            intermediate_size: s.intermediate_size,
            module_intermediate_size: s.module_intermediate_size,
            domain_names: DOMAINS.iter().take(s.num_domains as usize).map(|d| d.to_string()).collect(),
            rms_norm_eps: 1e-6,
            rope_theta: 10000.0,
            max_position_embeddings: s.max_position_embeddings,
            tie_word_embeddings: true,
            num_labels: 0,
            scar: ScarConfig {
                num_clusters: s.num_clusters,
                dim: s.scar_dim,
                lambda: 1.0,
                policy: Policy::TopP,
                k_min: 1,
                k_max: s.k_max,
                p: 0.5,
                tau: 0.1,
                capacity_factor: 1.25,
                norm_gates: true,
                memory: true,
            },
            attention: AttentionConfig { clustered: true, window, sinks, cluster_cap },
            token_router: Some(TokenRouterConfig {
                hidden_size,
                num_layers,
                num_heads,
                intermediate_size,
                causal: true,
                window: router_window,
            }),
        }
    }

    /// The definition of tensor number `i`.
    fn weight(&self, config: &GemConfig, i: usize, spec: &TensorSpec) -> WeightDef {
        if spec.name.ends_with("norm.weight") {
            return WeightDef::Splat(1.0);
        }
        match self.weights {
            PresetWeights::Splat => WeightDef::Splat(SPLAT),
            PresetWeights::Random => WeightDef::Random { seed: i as u64, std: initial_std(config, spec) },
        }
    }
}

/// Standard deviation of a fresh model's tensor, as the PyTorch trainer initialises it: 0.02 for embeddings, 1 for SCAR's
/// keys and values, else 1/√inputs; what adds to the residual stream is scaled by 1/√(2L).
fn initial_std(config: &GemConfig, spec: &TensorSpec) -> f32 {
    let ends = |suffixes: &[&str]| suffixes.iter().any(|s| spec.name.ends_with(s));
    if ends(&["embed_tokens.weight", "embed.weight"]) {
        return 0.02;
    }
    if ends(&["scar.keys", "scar.values"]) {
        return 1.0;
    }
    let inputs = spec.shape.last().copied().unwrap_or(1) as f64;
    let into_residual = ends(&["o_proj.weight", "down_proj.weight", "memory_proj.weight"]);
    let residual = if into_residual { 2.0 * config.num_hidden_layers as f64 } else { 1.0 };
    (1.0 / (inputs * residual).sqrt()) as f32
}

/// The row of that name.
fn row(name: &str) -> Result<&'static Preset, ImportError> {
    PRESETS.iter().find(|p| p.name == name).ok_or_else(|| ImportError::UnknownPreset {
        name: name.chars().take(80).collect(),
        known: PRESETS.iter().map(|p| p.name).collect::<Vec<_>>().join(", "),
    })
}

/// The config of a preset.
pub fn preset_config(name: &str) -> Result<GemConfig, ImportError> {
    Ok(row(name)?.config())
}

/// Makes a preset's model.
pub fn preset(name: &str, options: &ImportOptions) -> Result<ImportedModel, ImportError> {
    let preset = row(name)?;
    let config = preset.config();
    let path = || PathBuf::from(format!("preset:{name}"));
    let specs = tensors(&config).map_err(|error| ImportError::Config { path: path(), error })?;
    let mut graph = emit(&config, &specs, name, options, |i, spec| (preset.storage, preset.weight(&config, i, spec)))
        .map_err(|error| ImportError::Graph { path: path(), error })?;
    let mut digest = Digest::default();
    digest.add(graph.info.config_json.as_bytes());
    for w in &graph.weights {
        digest.add(format!("{} {:?}", w.name, w.def).as_bytes());
    }
    graph.info.source_digest = digest.finish();
    Ok(ImportedModel { graph, source: Arc::new(NoSource), tokenizer: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Component;

    fn specs(name: &str) -> Vec<TensorSpec> {
        tensors(&preset_config(name).unwrap()).unwrap()
    }

    fn parameters(name: &str) -> u64 {
        specs(name).iter().map(TensorSpec::elems).sum()
    }

    /// Bytes in hybrid quantization, gem.md §4: what is kept in F32; int8 with an F32 scale per row; modules in int4 with
    /// an F16 scale per 32 inputs.
    fn hybrid_bytes(spec: &TensorSpec) -> u64 {
        if spec.keeps_f32 {
            return 4 * spec.elems();
        }
        match spec.component {
            Component::Modules => spec.elems() / 2 + 2 * (spec.elems() / 32),
            Component::Embedding
            | Component::Head
            | Component::Norm
            | Component::TokenRouter
            | Component::Routing
            | Component::Attention
            | Component::General => spec.elems() + 4 * spec.shape[0],
        }
    }

    /// Bytes that one generated token reads: of the router's embedding one row, of each layer's modules the most that a
    /// token visits, all of everything else (the tied embedding is the LM head).
    fn touched_bytes(name: &str) -> u64 {
        let config = preset_config(name).unwrap();
        let touched = |spec: &TensorSpec| match spec.component {
            Component::TokenRouter if spec.name.ends_with("embed.weight") => hybrid_bytes(spec) / config.vocab_size,
            Component::Modules => hybrid_bytes(spec) * config.scar.k_max / config.scar.num_clusters,
            Component::Embedding
            | Component::Head
            | Component::Norm
            | Component::TokenRouter
            | Component::Routing
            | Component::Attention
            | Component::General => hybrid_bytes(spec),
        };
        specs(name).iter().map(touched).sum()
    }

    fn hybrid_total(name: &str) -> u64 {
        specs(name).iter().map(hybrid_bytes).sum()
    }

    #[test]
    fn tiny_and_small_have_their_sizes() {
        assert!(parameters("gem-tiny") < 1_000_000, "{}", parameters("gem-tiny"));
        let small = parameters("gem-small");
        assert!((150_000_000..=250_000_000).contains(&small), "{small}");
    }

    #[test]
    fn paper_preset_has_the_papers_footprint() {
        let (params, bytes) = (parameters("gem-paper"), hybrid_total("gem-paper"));
        assert!((2_000_000_000..=4_000_000_000).contains(&params), "{params}");
        assert!((1_780_000_000..=1_820_000_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn fifty_ms_preset_touches_at_most_200_mb_per_token() {
        let (bytes, touched) = (hybrid_total("gem-50ms"), touched_bytes("gem-50ms"));
        assert!(bytes < 900_000_000, "{bytes}");
        assert!(touched <= 200_000_000, "{touched}");
    }

    #[test]
    fn module_inputs_are_whole_groups_of_32() {
        for p in PRESETS {
            for s in specs(p.name).iter().filter(|s| s.component == Component::Modules) {
                assert!(s.shape[1].is_multiple_of(32), "{} {}", p.name, s.name);
            }
        }
    }

    #[test]
    fn configs_survive_their_json() {
        for p in PRESETS {
            assert_eq!(GemConfig::parse(&p.config().to_json()).unwrap(), p.config(), "{}", p.name);
        }
    }
}
