//! Recipes: which storage each weight gets, by component and by name.

use core::fmt;
use core::str::FromStr;

use crate::ir::{Component, Graph, Int4Group, KvStorage, Storage, WeightId};

/// A recipe that has a name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Builtin {
    /// As in the checkpoint; bf16 becomes f32, which is exact.
    #[default]
    None,
    /// All f32.
    Fp32,
    /// Matrices f16; norms, cluster keys and values and the router's head f32.
    Fp16,
    /// Matrices int8; KV cache f16.
    Int8,
    /// Matrices int4 in groups of 32; KV cache f16.
    Int4,
    /// Domain modules int4 in groups of 32, other matrices int8; KV cache f16.
    Hybrid,
}

impl Builtin {
    /// All of them.
    pub const ALL: [Builtin; 6] =
        [Builtin::None, Builtin::Fp32, Builtin::Fp16, Builtin::Int8, Builtin::Int4, Builtin::Hybrid];

    /// Name on the command line and in TOML.
    pub const fn name(self) -> &'static str {
        match self {
            Builtin::None => "none",
            Builtin::Fp32 => "fp32",
            Builtin::Fp16 => "fp16",
            Builtin::Int8 => "int8",
            Builtin::Int4 => "int4",
            Builtin::Hybrid => "hybrid",
        }
    }

    /// The recipe of that name.
    pub fn by_name(name: &str) -> Option<Builtin> {
        Builtin::ALL.into_iter().find(|b| b.name() == name)
    }

    /// Storage of a component's weights; `None`: as in the checkpoint.
    pub const fn storage(self, component: Component) -> Option<Storage> {
        match self {
            Builtin::None => None,
            Builtin::Fp32 => Some(Storage::F32),
            Builtin::Fp16 | Builtin::Int8 | Builtin::Int4 | Builtin::Hybrid => Some(match component {
                // Few numbers that decide much: they stay exact.
                Component::Norm | Component::Routing => Storage::F32,
                Component::Modules => match self {
                    Builtin::Int4 | Builtin::Hybrid => Storage::Int4(Int4Group::G32),
                    Builtin::Int8 => Storage::Int8,
                    Builtin::None | Builtin::Fp32 | Builtin::Fp16 => Storage::F16,
                },
                Component::Embedding
                | Component::Head
                | Component::TokenRouter
                | Component::Attention
                | Component::General => match self {
                    Builtin::Int4 => Storage::Int4(Int4Group::G32),
                    Builtin::Int8 | Builtin::Hybrid => Storage::Int8,
                    Builtin::None | Builtin::Fp32 | Builtin::Fp16 => Storage::F16,
                },
            }),
        }
    }

    /// How keys and values are kept.
    pub const fn kv_cache(self) -> KvStorage {
        match self {
            Builtin::None | Builtin::Fp32 | Builtin::Fp16 => KvStorage::F32,
            Builtin::Int8 | Builtin::Int4 | Builtin::Hybrid => KvStorage::F16,
        }
    }
}

/// One line of a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// A component's name or a tensor's, `*` for any characters.
    pub pattern: String,
    /// Storage of what it matches.
    pub storage: Storage,
}

/// How weights, keys and values are stored: a built-in recipe, and rules that change it. The last rule that matches a
/// weight decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// What artifacts and listings call it.
    pub name: String,
    /// What holds where no rule matches.
    pub base: Builtin,
    /// In order.
    pub rules: Vec<Rule>,
    /// How keys and values are kept; `None`: as in the base.
    pub kv_cache: Option<KvStorage>,
}

/// A name that is no built-in recipe's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("recipe: found `{found}`, wanted one of {}", Builtin::ALL.map(Builtin::name).join(", "))]
pub struct UnknownRecipe {
    /// The name.
    pub found: String,
}

impl Default for Recipe {
    /// `none`.
    fn default() -> Self {
        Builtin::None.into()
    }
}

impl From<Builtin> for Recipe {
    fn from(base: Builtin) -> Self {
        Self { name: base.name().into(), base, rules: Vec::new(), kv_cache: None }
    }
}

impl FromStr for Recipe {
    type Err = UnknownRecipe;

    fn from_str(name: &str) -> Result<Self, UnknownRecipe> {
        Builtin::by_name(name).map(Recipe::from).ok_or_else(|| UnknownRecipe { found: name.into() })
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// What a recipe says of one weight that nodes read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The weight.
    pub weight: WeightId,
    /// How it will be stored.
    pub storage: Storage,
    /// Why that is not what the recipe says, if it is not.
    pub why_not: Option<String>,
}

impl Recipe {
    /// How keys and values of causal attention are kept.
    pub fn kv_cache(&self) -> KvStorage {
        self.kv_cache.unwrap_or(self.base.kv_cache())
    }

    /// The storage of every weight that nodes of a graph read, by id.
    pub fn choices(&self, graph: &Graph) -> Vec<Choice> {
        let mut readers = vec![(false, true); graph.weights.len()];
        for node in &graph.nodes {
            for w in node.operands.iter().filter_map(|o| o.weight()) {
                let (read, as_matrix) = &mut readers[w.0 as usize];
                (*read, *as_matrix) = (true, *as_matrix && node.op.reads_matrices());
            }
        }
        let read = readers.iter().enumerate().filter(|(_, (read, _))| *read);
        read.map(|(i, (_, as_matrix))| self.choice(graph, WeightId(i as u32), *as_matrix)).collect()
    }

    fn choice(&self, graph: &Graph, id: WeightId, as_matrix: bool) -> Choice {
        let weight = graph.weight(id);
        let own = if weight.storage == Storage::Bf16 { Storage::F32 } else { weight.storage };
        let wanted = self.base.storage(weight.component).unwrap_or(own);
        // What is not a matrix product is read element by element by kernels that know f32 only.
        if !as_matrix {
            let why_not = (wanted != Storage::F32 && wanted != own)
                .then(|| format!("@{} is read element by element: it stays f32", weight.name));
            return Choice { weight: id, storage: Storage::F32, why_not };
        }
        Choice { weight: id, storage: wanted, why_not: None }
    }
}
