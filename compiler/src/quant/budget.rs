//! Recipes under a memory budget, without measurements: components give up bytes in a fixed order.

use super::{Recipe, RecipeError};
use crate::ir::{Component, Graph, Int4Group, Storage};

/// Components in the order in which they are lowered. Domain modules and the general path are the largest and, being
/// averaged over many products, bear coarse weights best; embedding and head touch every logit and come last.
pub const BUDGET_ORDER: [Component; 6] = [
    Component::Modules,
    Component::General,
    Component::Attention,
    Component::TokenRouter,
    Component::Embedding,
    Component::Head,
];

/// Storages in the order in which all components go through them.
pub const BUDGET_STORAGES: [Storage; 4] =
    [Storage::Int8, Storage::Int4(Int4Group::G32), Storage::Int4(Int4Group::G64), Storage::Int4(Int4Group::G128)];

/// Why there is no recipe for a budget.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// Nothing is small enough.
    #[error(
        "budget: wanted at least {smallest_bytes} bytes, the smallest that the weights can be, found {budget_bytes}"
    )]
    Impossible {
        /// Asked for.
        budget_bytes: u64,
        /// All components as small as they get.
        smallest_bytes: u64,
    },
    /// The recipe to start from does not fit the model.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
}

/// The recipe itself if its weights fit `budget_bytes`, or else with components lowered until they do: for each of
/// [`BUDGET_STORAGES`], each of [`BUDGET_ORDER`]. A step that saves nothing is left out. The budget is for weights, as
/// [`Recipe::weight_bytes`] counts them.
///
/// # Errors
/// A budget below the smallest that the weights can be.
pub fn fit_budget(graph: &Graph, recipe: &Recipe, budget_bytes: u64) -> Result<Recipe, BudgetError> {
    let present: Vec<Component> = recipe.sizes(graph)?.iter().map(|s| s.component).collect();
    let mut best = recipe.clone();
    let mut bytes = best.weight_bytes(graph)?;
    let steps = BUDGET_STORAGES.into_iter().flat_map(|s| BUDGET_ORDER.map(|component| (component, s)));
    for (component, storage) in steps.filter(|(component, _)| present.contains(component)) {
        if bytes <= budget_bytes {
            break;
        }
        let mut lowered = best.clone();
        lowered.rules.retain(|rule| rule.pattern != component.name());
        let lowered = lowered.with(component.name(), storage);
        let lowered_bytes = lowered.weight_bytes(graph)?;
        if lowered_bytes < bytes {
            (best, bytes) = (lowered, lowered_bytes);
        }
    }
    match bytes <= budget_bytes {
        true => Ok(best),
        false => Err(BudgetError::Impossible { budget_bytes, smallest_bytes: bytes }),
    }
}

/// A size as people write it: `900MB`, `1.5GiB`, `3000000`. kB, MB, GB are powers of 1000, KiB, MiB, GiB of 1024.
///
/// # Errors
/// What is wanted, and the text.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 8] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
        ("", 1),
    ];
    let (number, unit) =
        UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit))).expect("the last");
    let number = number.trim_end();
    let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let bytes = number.parse::<f64>().ok().filter(|_| plain).map(|n| n * unit as f64);
    match bytes {
        // Up to here every integer is a double.
        Some(bytes) if bytes >= 1.0 && bytes <= (1u64 << 53) as f64 => Ok(bytes as u64),
        Some(_) | None => Err(format!("size: wanted a number of bytes such as 900MB or 1.5GiB, found {text}")),
    }
}
