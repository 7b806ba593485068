//! Recorded decisions.

use std::collections::BTreeMap;

use super::{Call, Routing};

/// What was decided for a token in a layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// Its modules and their gates, by module.
    pub modules: Vec<(u32, f32)>,
    /// Its cluster; `None`: the module with the highest gate, of equal ones the lowest.
    pub cluster: Option<u32>,
}

/// The module with the highest gate, of equal ones the lowest.
fn first(modules: &[(u32, f32)]) -> Option<u32> {
    let best = |best: Option<(u32, f32)>, (module, gate): &(u32, f32)| match best {
        Some((m, g)) if g > *gate || (g == *gate && m < *module) => Some((m, g)),
        _ => Some((*module, *gate)),
    };
    modules.iter().fold(None, best).map(|(module, _)| module)
}

/// Decisions by layer and token. Rows are answered if all tokens of the call are there with modules that exist; otherwise the
/// instruction decides itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    modules: BTreeMap<(u64, u64), Vec<(u32, f32)>>,
    clusters: BTreeMap<(u64, u64), u32>,
}

impl Trace {
    /// Sets what is decided for a token, counted from the start of the sequence.
    pub fn insert(&mut self, layer: u64, token: u64, decision: Decision) {
        match decision.cluster {
            Some(cluster) => self.clusters.insert((layer, token), cluster),
            None => self.clusters.remove(&(layer, token)),
        };
        self.modules.insert((layer, token), decision.modules);
    }

    /// A token's modules with their gates.
    pub fn modules(&self, layer: u64, token: u64) -> Option<&[(u32, f32)]> {
        self.modules.get(&(layer, token)).map(Vec::as_slice)
    }

    /// A token's cluster.
    pub fn cluster(&self, layer: u64, token: u64) -> Option<u32> {
        let key = (layer, token);
        self.clusters.get(&key).copied().or_else(|| self.modules.get(&key).and_then(|modules| first(modules)))
    }

    /// Layer, token and modules of every decision about modules; by layer, then by token.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64, &[(u32, f32)])> {
        self.modules.iter().map(|((layer, token), modules)| (*layer, *token, modules.as_slice()))
    }

    /// Nothing is decided any more.
    pub fn clear(&mut self) {
        *self = Trace::default();
    }

    /// Visits by domain and module, over all layers: `domain(token)` says which of `domains` a token belongs to. Tokens of others
    /// and modules from `modules` on are left out.
    pub fn visits_by_domain(&self, domains: usize, modules: usize, domain: impl Fn(u64) -> usize) -> Vec<Vec<u64>> {
        let mut visits: Vec<Vec<u64>> = vec![vec![0; modules]; domains];
        for ((_, token), chosen) in &self.modules {
            let Some(row) = visits.get_mut(domain(*token)) else { continue };
            for (module, _) in chosen {
                row.get_mut(*module as usize).into_iter().for_each(|count| *count += 1);
            }
        }
        visits
    }

    /// What `of` gives for the tokens of a call, if it gives something for each.
    fn tokens<T>(call: &Call<'_>, of: impl Fn(u64, u64) -> Option<T>) -> Option<Vec<T>> {
        let layer = call.layer();
        (0..call.rows as u64).map(|row| of(layer, call.first.checked_add(row)?)).collect()
    }
}

impl Routing for Trace {
    fn select(&mut self, call: &Call<'_>, mask: &mut [u8], gates: &mut [f32]) -> bool {
        let exists = |(module, _): &(u32, f32)| (*module as usize) < call.cols;
        let tokens = Self::tokens(call, |layer, token| self.modules(layer, token));
        let Some(tokens) = tokens.filter(|tokens| tokens.iter().all(|modules| modules.iter().all(exists))) else {
            return false;
        };
        for (row, modules) in tokens.into_iter().enumerate() {
            for (module, gate) in modules {
                let place = row * call.cols + *module as usize;
                (mask[place], gates[place]) = (1, *gate);
            }
        }
        true
    }

    fn cluster(&mut self, call: &Call<'_>, best: &mut [u32]) -> bool {
        let clusters: Option<Vec<u32>> = match call.is_cluster() {
            true => Self::tokens(call, |layer, token| Trace::cluster(self, layer, token)),
            false => None,
        };
        match clusters {
            Some(clusters) if clusters.iter().all(|c| (*c as usize) < call.cols) => {
                best.copy_from_slice(&clusters);
                true
            }
            _ => false,
        }
    }
}

/// Records what is decided, by the program itself or by another routing.
#[derive(Default)]
pub struct Recorder<'r> {
    /// Who decides; nobody: the program.
    pub inner: Option<&'r mut dyn Routing>,
    /// What was decided.
    pub trace: Trace,
}

impl Routing for Recorder<'_> {
    fn begin(&mut self) {
        if let Some(inner) = &mut self.inner {
            inner.begin();
        }
    }

    fn select(&mut self, call: &Call<'_>, mask: &mut [u8], gates: &mut [f32]) -> bool {
        self.inner.as_mut().is_some_and(|inner| inner.select(call, mask, gates))
    }

    fn cluster(&mut self, call: &Call<'_>, best: &mut [u32]) -> bool {
        self.inner.as_mut().is_some_and(|inner| inner.cluster(call, best))
    }

    fn selected(&mut self, call: &Call<'_>, mask: &[u8], gates: &[f32]) {
        if let Some(inner) = &mut self.inner {
            inner.selected(call, mask, gates);
        }
        if call.cols == 0 {
            return;
        }
        let rows = mask.chunks_exact(call.cols).zip(gates.chunks_exact(call.cols));
        for ((mask, gates), row) in rows.zip(0u64..) {
            let chosen = mask.iter().zip(gates).zip(0u32..).filter(|((m, _), _)| **m != 0);
            let modules = chosen.map(|((_, gate), module)| (module, *gate)).collect();
            let key = (call.layer(), call.first.saturating_add(row));
            self.trace.modules.insert(key, modules);
        }
    }

    fn clustered(&mut self, call: &Call<'_>, best: &[u32]) {
        if let Some(inner) = &mut self.inner {
            inner.clustered(call, best);
        }
        if call.is_cluster() {
            for (cluster, row) in best.iter().zip(0u64..) {
                let key = (call.layer(), call.first.saturating_add(row));
                self.trace.clusters.insert(key, *cluster);
            }
        }
    }
}
