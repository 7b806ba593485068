//! Choosing a recipe from measurements: what each component loses in each format, what that saves, and the best choice
//! under a budget.
//!
//! Measuring is the caller's: for each [`Candidate`] of [`candidates`] it compiles the model with
//! [`Candidate::recipe`], runs text through it and the reference, and notes the damage (KL divergence of the next token's
//! distribution, in nats per token). Damages are taken to add up; [`choose`] then finds the choice of least total damage
//! whose bytes fit.
//!
//! ```
//! use lapidary_compiler::quant::calibrate::{Measurement, choose};
//! let m = |component, format: &str, bytes, damage| Measurement { component, format: format.into(), bytes, damage };
//! let table = [m(0, "int8", 100, 0.001), m(0, "int4", 50, 0.01), m(1, "int8", 100, 0.002), m(1, "int4", 50, 0.005)];
//! let chosen = choose(&table, 150).unwrap();
//! assert_eq!(chosen.picks, [0, 3]);
//! ```

use std::collections::BTreeMap;

use super::recipe::layer_of;
use super::{Builtin, Recipe, RecipeError, Rule, allowed, recipe_kv_name, recipe_name};
use crate::ir::{Component, Graph, KvStorage, Node, Storage, Weight};

/// States that [`choose`] keeps from one component to the next; beyond, states of nearly equal size share one.
const MAX_STATES: usize = 1 << 16;

/// What is chosen as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// Each component.
    Component,
    /// Attention, general path and domain modules of each layer; each other component.
    Layer,
}

/// What a candidate changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Storage of the weights that a recipe's pattern matches.
    Weights {
        /// A component, or `layers.L.COMPONENT`.
        pattern: String,
        /// Its storage.
        storage: Storage,
    },
    /// Storage of keys and values, measured but not chosen: its bytes are those of the state, which no budget of weights
    /// counts, so that the widest would always win.
    KvCache(KvStorage),
}

/// One recipe to measure: everything in f32 but one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What is not f32.
    pub change: Change,
    /// Bytes of the part's weights in this format; 0 for the KV cache.
    pub bytes: u64,
}

impl Candidate {
    /// The recipe to compile: `fp32` with this one change.
    pub fn recipe(&self) -> Recipe {
        let mut recipe = Recipe::from(Builtin::Fp32);
        recipe.name = format!("{} {}", self.part(), self.format());
        match &self.change {
            Change::Weights { pattern, storage } => recipe.with(pattern, *storage),
            Change::KvCache(storage) => Recipe { kv_cache: Some(*storage), ..recipe },
        }
    }

    /// The part's pattern in recipes; `kv_cache` for keys and values.
    pub fn part(&self) -> &str {
        match &self.change {
            Change::Weights { pattern, .. } => pattern,
            Change::KvCache(_) => "kv_cache",
        }
    }

    /// Name of the format in recipes.
    pub fn format(&self) -> &'static str {
        match self.change {
            Change::Weights { storage, .. } => recipe_name(storage),
            Change::KvCache(storage) => recipe_kv_name(storage),
        }
    }

    /// Whether this is the reference itself, whose damage is 0 without measuring.
    pub fn is_reference(&self) -> bool {
        matches!(self.change, Change::Weights { storage: Storage::F32, .. } | Change::KvCache(KvStorage::F32))
    }
}

/// Every part of a model in every format that is worth measuring, the f32 reference included; keys and values last.
/// Norms and routing are tiny and stay f32: they are listed for their bytes.
///
/// # Errors
/// None for a verified graph.
pub fn candidates(graph: &Graph, granularity: Granularity) -> Result<Vec<Candidate>, RecipeError> {
    let mut parts: BTreeMap<(Component, Option<u64>), Vec<&Weight>> = BTreeMap::new();
    for choice in Recipe::from(Builtin::Fp32).choices(graph)? {
        let weight = graph.weight(choice.weight);
        let by_layer = granularity == Granularity::Layer
            && matches!(weight.component, Component::Attention | Component::General | Component::Modules);
        let layer = if by_layer { layer_of(&weight.name) } else { None };
        parts.entry((weight.component, layer)).or_default().push(weight);
    }
    let mut out = Vec::new();
    for ((component, layer), weights) in parts {
        let pattern = match layer {
            Some(layer) => format!("layers.{layer}.{}", component.name()),
            None => component.name().into(),
        };
        let storages = match component {
            Component::Norm | Component::Routing => &[Storage::F32][..],
            Component::Embedding
            | Component::Head
            | Component::TokenRouter
            | Component::Attention
            | Component::General
            | Component::Modules => allowed(component),
        };
        for storage in storages.iter().copied() {
            let bytes = weights.iter().map(|w| storage.bytes(w.rows(), w.cols())).sum();
            out.push(Candidate { change: Change::Weights { pattern: pattern.clone(), storage }, bytes });
        }
    }
    if graph.nodes.iter().any(Node::keeps_keys) {
        out.extend(KvStorage::ALL.map(|storage| Candidate { change: Change::KvCache(storage), bytes: 0 }));
    }
    Ok(out)
}

/// What one format of one component costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// Which component, numbered from 0 without gaps.
    pub component: usize,
    /// The format's name, for tables.
    pub format: String,
    /// Bytes of the component's weights.
    pub bytes: u64,
    /// Damage of this format alone; finite.
    pub damage: f64,
}

/// The best choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// For each component the index of its measurement.
    pub picks: Vec<usize>,
    /// Sum of their bytes.
    pub bytes: u64,
    /// Sum of their damages.
    pub damage: f64,
}

/// Why nothing can be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    /// No choice is small enough.
    #[error(
        "budget: wanted at least {smallest_bytes} bytes, the smallest that the weights can be, found {budget_bytes}"
    )]
    Impossible {
        /// Asked for.
        budget_bytes: u64,
        /// Every component in its smallest format.
        smallest_bytes: u64,
    },
    /// A component without measurements, or a damage that is no number.
    #[error("measurements: {0}")]
    Measurements(String),
}

/// A choice for the components so far.
#[derive(Clone, Copy)]
struct State {
    bytes: u64,
    damage: f64,
    /// Index of the measurement taken last.
    pick: usize,
    /// Index of the state before, in the component before.
    before: usize,
}

/// One measurement per component such that the bytes fit and the sum of damages is the least (of equals, the one with
/// fewer bytes). Exact: keeps for each number of components every sum that no other beats in both bytes and damage,
/// up to 65,536 of them; past that, the total may be worse than the best by what sizes that near differ in damage.
///
/// # Errors
/// A budget that no choice meets; measurements with gaps.
pub fn choose(measurements: &[Measurement], budget_bytes: u64) -> Result<Chosen, ChooseError> {
    let components = measurements.iter().map(|m| m.component + 1).max().unwrap_or(0);
    let of = |component: usize| (0..measurements.len()).filter(move |i| measurements[*i].component == component);
    if let Some(m) = measurements.iter().find(|m| !m.damage.is_finite()) {
        let message =
            format!("damage of component {} in {}: wanted a number, found {}", m.component, m.format, m.damage);
        return Err(ChooseError::Measurements(message));
    }
    // Bytes that the components after each take at least.
    let mut rest = vec![0u64; components + 1];
    for component in (0..components).rev() {
        match of(component).map(|i| measurements[i].bytes).min() {
            Some(least) => rest[component] = rest[component + 1].saturating_add(least),
            None => return Err(ChooseError::Measurements(format!("component {component}: wanted some, found none"))),
        }
    }
    if rest[0] > budget_bytes {
        return Err(ChooseError::Impossible { budget_bytes, smallest_bytes: rest[0] });
    }
    let mut levels: Vec<Vec<State>> = vec![vec![State { bytes: 0, damage: 0.0, pick: 0, before: 0 }]];
    for component in 0..components {
        let mut next = Vec::new();
        for (before, state) in levels[component].iter().enumerate() {
            for pick in of(component) {
                let m = &measurements[pick];
                let bytes = state.bytes.saturating_add(m.bytes);
                if bytes.saturating_add(rest[component + 1]) <= budget_bytes {
                    next.push(State { bytes, damage: state.damage + m.damage, pick, before });
                }
            }
        }
        levels.push(frontier(next));
    }
    let last = levels.last().expect("one level more than components");
    // A frontier falls in damage as it rises in bytes.
    let mut at = last.len() - 1;
    let (bytes, damage) = (last[at].bytes, last[at].damage);
    let mut picks = vec![0; components];
    for component in (0..components).rev() {
        let state = levels[component + 1][at];
        picks[component] = state.pick;
        at = state.before;
    }
    Ok(Chosen { picks, bytes, damage })
}

/// The states that no other beats in both, ascending in bytes and so descending in damage; thinned to [`MAX_STATES`].
fn frontier(mut states: Vec<State>) -> Vec<State> {
    states.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.damage.total_cmp(&b.damage)));
    let mut out: Vec<State> = Vec::new();
    for state in states {
        if out.last().is_none_or(|last| state.damage < last.damage) {
            out.push(state);
        }
    }
    if out.len() > MAX_STATES {
        // The smallest stays: from it the rest can always be completed within the budget.
        let step = out.len().div_ceil(MAX_STATES);
        let last = out.len() - 1;
        let mut at = 0usize;
        out.retain(|_| {
            at += 1;
            (at - 1).is_multiple_of(step) || at - 1 == last
        });
    }
    out
}

/// Storage of keys and values in the recipes that are made here: that of the default recipe.
const KV_CACHE: KvStorage = Builtin::Hybrid.kv_cache();

/// The recipe of a choice: one rule per part. The measurements were those of `candidates`.
pub fn recipe(name: impl Into<String>, candidates: &[Candidate], chosen: &Chosen) -> Recipe {
    let mut out = Recipe { name: name.into(), base: Builtin::Fp32, rules: Vec::new(), kv_cache: Some(KV_CACHE) };
    for pick in &chosen.picks {
        if let Change::Weights { pattern, storage } = &candidates[*pick].change {
            out.rules.push(Rule { pattern: pattern.clone(), storage: *storage });
        }
    }
    out
}

/// Measurements of the weights, which come first, from candidates and their damages.
pub fn measurements(candidates: &[Candidate], damages: &[f64]) -> Vec<Measurement> {
    let mut parts: Vec<&str> = Vec::new();
    let mut out = Vec::with_capacity(candidates.len());
    let of_weights = |change: &Change| matches!(change, Change::Weights { .. });
    for (candidate, damage) in candidates.iter().zip(damages).take_while(|(c, _)| of_weights(&c.change)) {
        let component = parts.iter().position(|p| *p == candidate.part()).unwrap_or_else(|| {
            parts.push(candidate.part());
            parts.len() - 1
        });
        let (format, bytes) = (candidate.format().into(), candidate.bytes);
        out.push(Measurement { component, format, bytes, damage: *damage });
    }
    out
}

/// Candidates and their damages as lines of a table, `*` where one was chosen; comments of the recipe's file.
pub fn table(candidates: &[Candidate], damages: &[f64], chosen: &Chosen) -> Vec<String> {
    let mut out = vec![format!("  {:20} {:8} {:>14} {:>14}", "part", "format", "bytes", "damage")];
    for (i, (candidate, damage)) in candidates.iter().zip(damages).enumerate() {
        let is_chosen = chosen.picks.contains(&i) || candidate.change == Change::KvCache(KV_CACHE);
        let mark = if is_chosen { '*' } else { ' ' };
        let (part, format, bytes) = (candidate.part(), candidate.format(), candidate.bytes);
        out.push(format!("{mark} {part:20} {format:8} {bytes:>14} {damage:>14.6e}"));
    }
    out.push(format!("weights {} bytes, predicted damage {:.6e} nats per token", chosen.bytes, chosen.damage));
    out
}
