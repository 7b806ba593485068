//! What a pass may know besides the graph.

use core::fmt;
use core::str::FromStr;

use crate::ir::{Graph, Op};

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Recipe {
    /// As in the checkpoint; bf16 becomes f32, which is exact.
    #[default]
    None,
    /// All f32.
    Fp32,
    /// Matrices f16; norms, cluster keys and values and the router's head f32.
    Fp16,
}

impl Recipe {
    /// All recipes.
    pub const ALL: [Recipe; 3] = [Recipe::None, Recipe::Fp32, Recipe::Fp16];

    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Recipe::None => "none",
            Recipe::Fp32 => "fp32",
            Recipe::Fp16 => "fp16",
        }
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no recipe's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("recipe: found `{found}`, wanted one of none, fp32, fp16")]
pub struct UnknownRecipe {
    /// The name.
    pub found: String,
}

impl FromStr for Recipe {
    type Err = UnknownRecipe;

    fn from_str(name: &str) -> Result<Self, UnknownRecipe> {
        Recipe::ALL.into_iter().find(|r| r.name() == name).ok_or_else(|| UnknownRecipe { found: name.into() })
    }
}

/// Parameters of a compilation that passes read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassContext {
    /// Storage of weights.
    pub recipe: Recipe,
    /// Longest sequence.
    pub max_tokens: u64,
    /// Most tokens of one call.
    pub chunk_tokens: u64,
}

impl PassContext {
    /// With the default chunk of this graph.
    pub fn new(graph: &Graph, recipe: Recipe, max_tokens: u64) -> Self {
        Self { recipe, max_tokens, chunk_tokens: default_chunk(graph, max_tokens) }
    }
}

/// Tokens of a chunk when nothing needs the whole sequence.
pub const DEFAULT_CHUNK_TOKENS: u64 = 128;

/// Why every call must hold its whole sequence; `None` if a sequence may come in pieces.
pub fn why_whole_sequence(graph: &Graph) -> Option<String> {
    if !graph.info.is_causal {
        return Some("the model is not causal".into());
    }
    graph.nodes.iter().find_map(|node| {
        if node.op == Op::RouteSelect && matches!(node.attrs.word("policy"), "expert_choice" | "bidirectional") {
            return Some(format!("{}: policy {} looks across tokens", node.label, node.attrs.word("policy")));
        }
        (node.op == Op::AttnRange && !node.attrs.flag("causal"))
            .then(|| format!("{}: attention is not causal", node.label))
    })
}

/// Most tokens of one call, unless the user says otherwise: all of them when the graph needs whole sequences, else 128.
pub fn default_chunk(graph: &Graph, max_tokens: u64) -> u64 {
    match why_whole_sequence(graph) {
        Some(_) => max_tokens,
        None => max_tokens.min(DEFAULT_CHUNK_TOKENS),
    }
}
