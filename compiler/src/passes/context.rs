//! What a pass may know besides the graph.

use core::fmt;
use core::str::FromStr;

use crate::ir::Graph;
use crate::plan::default_chunk;

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
