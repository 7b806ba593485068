//! Recipes: which storage each weight gets, by component and by name.

use core::fmt;
use core::str::FromStr;

use crate::ir::{Component, Graph, Int4Group, KvStorage, Storage, Weight, WeightId, limits};

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

/// Why a recipe cannot be applied to a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    /// A rule that no weight has to do with.
    #[error("recipe {recipe}: pattern `{pattern}`: wanted a component's or a tensor's name, found no match{}", near_text(.near))]
    NoMatch {
        /// The recipe.
        recipe: String,
        /// The pattern.
        pattern: String,
        /// Names that are near it.
        near: Vec<String>,
    },
    /// A storage that nothing that the rule matches can have.
    #[error("recipe {recipe}: `{pattern}` = {found}: wanted {} for {component}, found {found}", recipe_names(.wanted))]
    NotAllowed {
        /// The recipe.
        recipe: String,
        /// The pattern.
        pattern: String,
        /// The part of the model that it matches.
        component: &'static str,
        /// What that can be stored in.
        wanted: &'static [Storage],
        /// The rule's name of the storage.
        found: &'static str,
    },
}

fn near_text(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!("\nhint: did you mean {}?", near.join(" or ")) }
}

fn recipe_names(storages: &[Storage]) -> String {
    storages.iter().map(|s| recipe_name(*s)).collect::<Vec<_>>().join(", ")
}

/// What recipes call a storage.
pub const fn recipe_name(storage: Storage) -> &'static str {
    match storage {
        Storage::F32 => "fp32",
        Storage::F16 => "fp16",
        Storage::Bf16 | Storage::Int8 | Storage::Int4(_) => storage.name(),
    }
}

/// What recipes call a storage of keys and values.
pub const fn recipe_kv_name(storage: KvStorage) -> &'static str {
    match storage {
        KvStorage::F32 => "fp32",
        KvStorage::F16 => "fp16",
        KvStorage::Int8 => "int8",
    }
}

const FLOATS: &[Storage] = &[Storage::F32, Storage::F16];
const FLOATS_AND_INTEGERS: &[Storage] = &[
    Storage::F32,
    Storage::F16,
    Storage::Int8,
    Storage::Int4(Int4Group::G32),
    Storage::Int4(Int4Group::G64),
    Storage::Int4(Int4Group::G128),
];

/// What a component's weights may be stored in: gem.md §4, and f32 everywhere. From the most bytes to the least.
pub const fn allowed(component: Component) -> &'static [Storage] {
    match component {
        Component::Norm | Component::Routing => FLOATS,
        Component::Embedding
        | Component::Head
        | Component::TokenRouter
        | Component::Attention
        | Component::General
        | Component::Modules => FLOATS_AND_INTEGERS,
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

/// Bytes of weights of one component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComponentSize {
    /// Which.
    pub component: Component,
    /// Parameters.
    pub elems: u64,
    /// Codes and scales, rows packed without gaps.
    pub bytes: u64,
}

impl Recipe {
    /// How keys and values of causal attention are kept.
    pub fn kv_cache(&self) -> KvStorage {
        self.kv_cache.unwrap_or(self.base.kv_cache())
    }

    /// The recipe with one more rule, which the ones before give way to.
    pub fn with(mut self, pattern: impl Into<String>, storage: Storage) -> Self {
        self.rules.push(Rule { pattern: pattern.into(), storage });
        self
    }

    /// The storage of every weight that nodes of a graph read, by id.
    ///
    /// # Errors
    /// A rule that matches no weight, or none that may be stored so.
    pub fn choices(&self, graph: &Graph) -> Result<Vec<Choice>, RecipeError> {
        let mut readers = vec![(false, true); graph.weights.len()];
        for node in &graph.nodes {
            for w in node.operands.iter().filter_map(|o| o.weight()) {
                let (read, as_matrix) = &mut readers[w.0 as usize];
                (*read, *as_matrix) = (true, *as_matrix && node.op.reads_matrices());
            }
        }
        let read = || (0..graph.weights.len()).filter(|i| readers[*i].0);
        for rule in &self.rules {
            self.check(rule, read().map(|i| &graph.weights[i]))?;
        }
        Ok(read().map(|i| self.choice(&graph.weights[i], WeightId(i as u32), readers[i].1)).collect())
    }

    fn check<'g>(&self, rule: &Rule, weights: impl Iterator<Item = &'g Weight> + Clone) -> Result<(), RecipeError> {
        let pattern = Pattern::new(&rule.pattern);
        let matched: Vec<&Weight> = weights.clone().filter(|w| pattern.matches(w)).collect();
        let Some(first) = matched.first() else {
            let near = near_names(&rule.pattern, weights);
            return Err(RecipeError::NoMatch { recipe: self.name.clone(), pattern: rule.pattern.clone(), near });
        };
        match matched.iter().any(|w| allowed(w.component).contains(&rule.storage)) {
            true => Ok(()),
            false => Err(RecipeError::NotAllowed {
                recipe: self.name.clone(),
                pattern: rule.pattern.clone(),
                component: first.component.name(),
                wanted: allowed(first.component),
                found: recipe_name(rule.storage),
            }),
        }
    }

    fn choice(&self, weight: &Weight, id: WeightId, as_matrix: bool) -> Choice {
        let mut why_not = None;
        let rules = self.rules.iter().rev().filter(|rule| Pattern::new(&rule.pattern).matches(weight));
        for rule in rules {
            let found = recipe_name(rule.storage);
            let reason = if !allowed(weight.component).contains(&rule.storage) {
                format!("@{} is of {}, which is not stored in {found}", weight.name, weight.component.name())
            } else if let Some(reason) = why_not_codes(weight, rule.storage, as_matrix) {
                reason
            } else {
                return Choice { weight: id, storage: rule.storage, why_not };
            };
            why_not.get_or_insert(reason);
        }
        let own = if weight.storage == Storage::Bf16 { Storage::F32 } else { weight.storage };
        // What is not a matrix product is read element by element, by kernels that know f32 only.
        if !as_matrix {
            let wanted = self.base.storage(weight.component).filter(|wanted| *wanted != Storage::F32);
            let reason = wanted.map(|wanted| format!("@{} is read element by element: not {wanted}", weight.name));
            return Choice { weight: id, storage: Storage::F32, why_not: why_not.or(reason) };
        }
        let wanted = self.base.storage(weight.component).unwrap_or(own);
        match why_not_codes(weight, wanted, as_matrix) {
            None => Choice { weight: id, storage: wanted, why_not },
            Some(reason) => Choice { weight: id, storage: Storage::F16, why_not: why_not.or(Some(reason)) },
        }
    }

    /// Bytes of the weights of a graph when they are stored by this recipe, by component, in the order of
    /// [`Component::ALL`]. The arithmetic of the artifact: each weight once, codes and scales, no padding.
    pub fn sizes(&self, graph: &Graph) -> Result<Vec<ComponentSize>, RecipeError> {
        let mut out: Vec<ComponentSize> = Vec::new();
        for choice in self.choices(graph)? {
            let weight = graph.weight(choice.weight);
            let bytes = choice.storage.bytes(weight.rows(), weight.cols());
            match out.iter_mut().find(|s| s.component == weight.component) {
                Some(sum) => (sum.elems, sum.bytes) = (sum.elems + weight.elems(), sum.bytes + bytes),
                None => out.push(ComponentSize { component: weight.component, elems: weight.elems(), bytes }),
            }
        }
        out.sort_by_key(|s| s.component);
        Ok(out)
    }

    /// Bytes of all weights of a graph, the sum of [`Self::sizes`].
    pub fn weight_bytes(&self, graph: &Graph) -> Result<u64, RecipeError> {
        Ok(self.sizes(graph)?.iter().map(|s| s.bytes).sum())
    }
}

/// Why a weight cannot be stored as codes; `None` if it can, or if the storage has none.
fn why_not_codes(weight: &Weight, storage: Storage, as_matrix: bool) -> Option<String> {
    if !storage.is_integer() {
        return None;
    }
    let (name, max) = (&weight.name, limits::MAX_QUANTIZED_COLS);
    if !as_matrix || weight.shape.len() != 2 {
        return Some(format!("@{name} is read element by element: not {storage}"));
    }
    (weight.cols() > max).then(|| format!("@{name} has {} columns, {storage} at most {max}", weight.cols()))
}

/// A rule's pattern: a component's name, `layers.L.` and a component's name, or a tensor's name with or without `model.`
/// before and `.weight` after it; `*` stands for any characters in all of them.
struct Pattern<'a>(&'a str);

impl<'a> Pattern<'a> {
    fn new(text: &'a str) -> Self {
        Self(text)
    }

    fn matches(&self, weight: &Weight) -> bool {
        let component = weight.component.name();
        self.fits(component)
            || tensor_names(&weight.name).into_iter().any(|name| self.fits(name))
            || layer_of(&weight.name).is_some_and(|layer| self.fits(&format!("layers.{layer}.{component}")))
    }

    /// Whether the whole text fits: each piece between stars is taken where it first occurs, the last at the end.
    fn fits(&self, text: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else { return self.0 == text };
        let Some(mut text) = text.strip_prefix(first) else { return false };
        let mut pieces = rest.split('*').peekable();
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_none() {
                return text.ends_with(piece);
            }
            match text.find(piece) {
                Some(at) => text = &text[at + piece.len()..],
                None => return false,
            }
        }
        true
    }
}

/// The block that a tensor is of: `model.layers.L.…`.
pub(super) fn layer_of(name: &str) -> Option<u64> {
    let [_, short, ..] = tensor_names(name);
    short.strip_prefix("layers.")?.split('.').next()?.parse().ok()
}

/// The names that a tensor answers to.
fn tensor_names(name: &str) -> [&str; 4] {
    let short = name.strip_prefix("model.").unwrap_or(name);
    let stem = |name| str::strip_suffix(name, ".weight").unwrap_or(name);
    [name, short, stem(name), stem(short)]
}

/// Up to three names that a pattern may have meant, the nearest first.
fn near_names<'g>(pattern: &str, weights: impl Iterator<Item = &'g Weight>) -> Vec<String> {
    const ENOUGH_ALIKE: f64 = 0.6;
    let literal: String = pattern.chars().filter(|c| *c != '*').take(200).collect();
    let components = Component::ALL.iter().map(|c| c.name());
    let mut scored: Vec<(f64, &str)> =
        components.map(|name| (strsim::normalized_levenshtein(&literal, name), name)).collect();
    for weight in weights {
        let [_, _, _, name] = tensor_names(&weight.name);
        scored.push((strsim::normalized_levenshtein(&literal, name), name));
    }
    scored.retain(|(alike, _)| *alike >= ENOUGH_ALIKE);
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.iter().take(3).map(|(_, name)| format!("`{name}`")).collect()
}
