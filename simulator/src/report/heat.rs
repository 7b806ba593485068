//! Heat maps of the page: who went where, as tables whose cells have colours.

use serde::Serialize;

use super::text::grouped;
use crate::selections::Selections;

/// Maps with more columns have colours alone.
const MOST_NUMBERED_COLUMNS: usize = 24;

/// A table of counts.
#[derive(Serialize)]
pub(super) struct Heat {
    columns: Vec<usize>,
    rows: Vec<HeatRow>,
    is_numbered: bool,
}

#[derive(Serialize)]
struct HeatRow {
    name: String,
    cells: Vec<HeatCell>,
    sum: String,
}

#[derive(Serialize)]
struct HeatCell {
    text: String,
    /// From 0 to 1, of the highest count of the map.
    alpha: f64,
    title: String,
}

impl Heat {
    /// Of counts by row and module. Nothing without a count.
    fn new<'a>(rows: impl Iterator<Item = (&'a str, &'a [u64])>) -> Option<Heat> {
        let rows: Vec<(&str, &[u64])> = rows.collect();
        let most = rows.iter().flat_map(|(_, counts)| counts.iter()).max().copied().filter(|most| *most > 0)?;
        let columns = rows.iter().map(|(_, counts)| counts.len()).max().unwrap_or(0);
        let row = |(name, counts): (&str, &[u64])| {
            let sum: u64 = counts.iter().sum();
            let cell = |module: usize| {
                let count = counts.get(module).copied().unwrap_or(0);
                let share = count as f64 / sum.max(1) as f64 * 100.0;
                HeatCell {
                    text: grouped(count.into()),
                    alpha: count as f64 / most as f64,
                    title: format!("{name}, module {module}: {count}, {share:.1} %"),
                }
            };
            HeatRow { name: name.into(), cells: (0..columns).map(cell).collect(), sum: grouped(sum.into()) }
        };
        Some(Heat {
            columns: (0..columns).collect(),
            is_numbered: columns <= MOST_NUMBERED_COLUMNS,
            rows: rows.into_iter().map(row).collect(),
        })
    }

    /// Of selections: layers by modules.
    pub(super) fn of_selections(selections: &[Selections]) -> Option<Heat> {
        let name = |s: &Selections| match s.name.strip_suffix(".scar.select") {
            Some(layer) => layer.to_string(),
            None if s.name.is_empty() => "(no label)".into(),
            None => s.name.clone(),
        };
        let names: Vec<String> = selections.iter().map(name).collect();
        Heat::new(names.iter().map(String::as_str).zip(selections.iter().map(|s| s.visits.as_slice())))
    }

    /// Of domains by modules.
    pub(super) fn of_domains(domains: &DomainVisits) -> Option<Heat> {
        let visits = domains.visits.iter().map(Vec::as_slice);
        Heat::new(domains.names.iter().map(String::as_str).zip(visits))
    }
}

/// How often tokens of a domain went to a module, over all layers: [`crate::routing::Trace::visits_by_domain`] counts them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainVisits {
    /// Names of the domains.
    pub names: Vec<String>,
    /// By domain and module.
    pub visits: Vec<Vec<u64>>,
}

/// Where a token went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TokenModules {
    /// Its text.
    pub text: String,
    /// Its domain, or nothing.
    pub domain: String,
    /// Its modules by layer.
    pub modules: Vec<Vec<u32>>,
}
