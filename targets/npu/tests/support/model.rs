//! Models to lower: those of `tests/models`, and made-up ones of any config.
#![allow(dead_code, reason = "each suite uses its part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lapidary_compiler::import::{
    AttentionConfig, GemConfig, ImportOptions, ScarConfig, TokenRouterConfig, emit, load_gem, tensors,
};
use lapidary_compiler::ir::{DType, Graph, HeadKind, Storage, WeightDef, WeightSource};
use lapidary_compiler::ops::Policy;
use lapidary_compiler::passes::{PassContext, run_pipeline};
use lapidary_compiler::quant::Builtin;

/// A stream of numbers (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 to n − 1.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.bits() >> 11) % n
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// Within ±1.
    fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Ids of a vocabulary.
    pub fn ids(&mut self, count: usize, vocab_size: u64) -> Vec<u32> {
        (0..count).map(|_| self.below(vocab_size) as u32).collect()
    }
}

/// Tensors by name: columns and elements.
#[derive(Clone, Default)]
pub struct Numbers(pub BTreeMap<String, (usize, Vec<f32>)>);

impl Numbers {
    /// Numbers for all tensors of a config, of the sizes that fresh models have; norms are near 1.
    pub fn random(config: &GemConfig, seed: u64) -> Numbers {
        let mut random = Random::new(seed);
        let mut out = Numbers::default();
        for spec in tensors(config).expect("a config") {
            let cols = *spec.shape.last().expect("a shape") as usize;
            let (mean, size) = match spec.name.as_str() {
                name if name.ends_with("norm.weight") => (1.0, 0.2),
                name if name.ends_with("scar.keys") || name.ends_with("scar.values") => (0.0, 1.7),
                name if name.contains("embed") => (0.0, 0.5),
                _ => (0.0, 1.7 / (cols as f32).sqrt()),
            };
            let elems = (0..spec.elems()).map(|_| mean + size * random.float()).collect();
            out.0.insert(spec.name, (cols, elems));
        }
        out
    }

    /// Makes module `order[c]` module c, of every layer: its matrices, its key and its value.
    pub fn permute_modules(&self, order: &[usize]) -> Numbers {
        let mut out = self.clone();
        for (name, (cols, elems)) in &mut out.0 {
            if name.ends_with("scar.keys") || name.ends_with("scar.values") {
                let old = &self.0[name].1;
                *elems = order.iter().flat_map(|c| &old[c * *cols..(c + 1) * *cols]).copied().collect();
            } else if let Some((layer, rest)) = name.split_once(".modules.") {
                let (c, rest) = rest.split_once('.').expect("modules.c.…");
                let from = order[c.parse::<usize>().expect("a module's number")];
                elems.clone_from(&self.0[&format!("{layer}.modules.{from}.{rest}")].1);
            }
        }
        out
    }
}

impl WeightSource for Numbers {
    fn read_rows(&self, name: &str, first_row: u64, out: &mut [f32]) -> Result<(), String> {
        let (cols, elems) = self.0.get(name).ok_or("no such tensor")?;
        let begin = first_row as usize * cols;
        out.copy_from_slice(elems.get(begin..begin + out.len()).ok_or("rows out of range")?);
        Ok(())
    }

    fn stored_dtype(&self, name: &str) -> Option<DType> {
        self.0.get(name).map(|_| DType::F32)
    }
}

/// An imported model.
#[derive(Clone)]
pub struct Model {
    pub graph: Graph,
    pub source: Arc<dyn WeightSource>,
}

impl Model {
    /// Of a folder with `config.json` and tensors.
    pub fn of_folder(folder: &Path) -> Model {
        let model = load_gem(folder, &ImportOptions { scores: true }).unwrap_or_else(|e| panic!("{e}"));
        Model { graph: model.graph, source: model.source }
    }

    /// Of a config and numbers.
    pub fn made_up(config: &GemConfig, numbers: Numbers) -> Model {
        let specs = tensors(config).expect("a config");
        let options = ImportOptions { scores: true };
        let graph = emit(config, &specs, "made-up", &options, |_, _| (Storage::F32, WeightDef::Stored));
        Model { graph: graph.expect("a graph"), source: Arc::new(numbers) }
    }

    /// The graph that all passes have been through.
    pub fn fused(&self, recipe: Builtin, max_tokens: u64) -> Graph {
        let mut graph = self.graph.clone();
        let ctx = PassContext::new(&graph, recipe, max_tokens);
        run_pipeline(&mut graph, &ctx, None, &mut |_, _, _| {}).unwrap_or_else(|e| panic!("{e}"));
        graph
    }
}

/// Sizes that are multiples of nothing.
pub fn odd_config(policy: Policy, clustered: bool, memory: bool, router: bool) -> GemConfig {
    GemConfig {
        head: HeadKind::CausalLm,
        is_causal: true,
        vocab_size: 61,
        hidden_size: 44,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 20,
        intermediate_size: 70,
        module_intermediate_size: 52,
        domain_names: ["a", "b", "c"].map(String::from).to_vec(),
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        max_position_embeddings: 64,
        tie_word_embeddings: true,
        num_labels: 0,
        scar: ScarConfig {
            num_clusters: 7,
            dim: 9,
            lambda: 0.7,
            policy,
            k_min: 1,
            k_max: 3,
            p: 0.5,
            tau: 0.15,
            capacity_factor: 1.25,
            norm_gates: true,
            memory,
        },
        attention: AttentionConfig { clustered, window: 3, sinks: 1, cluster_cap: 2 },
        token_router: router.then_some(TokenRouterConfig {
            hidden_size: 24,
            num_layers: 1,
            num_heads: 2,
            intermediate_size: 37,
            causal: true,
            window: 5,
        }),
    }
}

/// `tests/models` of the repository.
pub fn models_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models")
}

/// Folders of the random models, by name.
pub fn random_models() -> Vec<PathBuf> {
    let dir = models_dir().join("random");
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut out: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).filter(|p| p.is_dir()).collect();
    out.sort();
    out
}

/// Whether the slow suites run: `LAPIDARY_TEST=full`, or any other value.
pub fn full() -> bool {
    std::env::var_os("LAPIDARY_TEST").is_some()
}
