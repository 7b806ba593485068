//! Where tokens went, for the page: domains and modules, as the model's own outputs say.

use anyhow::Context;
use lapidary_runtime::{Tensor, TensorData, Tokenizer};
use lapidary_simulator::report::{DomainVisits, TokenModules};

use crate::npu::{Compiled, Session};

/// Tokens of all calls, and how often domains visited modules.
#[derive(Clone, Debug, Default)]
pub struct Visits {
    /// In the order of the calls.
    pub tokens: Vec<TokenModules>,
    /// By domain and module, over all layers.
    pub domains: DomainVisits,
}

/// Elements of a row, as numbers.
fn row(tensor: &Tensor, row: usize) -> Vec<f32> {
    let range = row * tensor.columns..(row + 1) * tensor.columns;
    match &tensor.data {
        TensorData::F32(data) => data.get(range).unwrap_or_default().to_vec(),
        TensorData::U8(data) => data.get(range).unwrap_or_default().iter().map(|x| f32::from(*x)).collect(),
        TensorData::U32(data) => data.get(range).unwrap_or_default().iter().map(|x| *x as f32).collect(),
    }
}

/// The place of the largest, of equal ones the first.
fn argmax(values: &[f32]) -> Option<usize> {
    let better = |best: Option<(usize, f32)>, (i, x): (usize, &f32)| match best {
        Some((_, most)) if *x <= most => best,
        _ => Some((i, *x)),
    };
    values.iter().enumerate().fold(None, better).map(|(i, _)| i)
}

impl Visits {
    /// Adds the tokens of the session's last call. A model without outputs on its routing has none.
    pub fn add(
        &mut self,
        session: &Session<'_>,
        compiled: &Compiled,
        tokenizer: Option<&Tokenizer>,
        ids: &[u32],
    ) -> anyhow::Result<()> {
        let names = (0..compiled.num_layers).map(|layer| format!("modules.{layer}"));
        let names: Vec<String> = names.filter(|name| compiled.output(name).is_some()).collect();
        if names.is_empty() {
            return Ok(());
        }
        let modules: Vec<Tensor> = names.iter().map(|name| session.output(name)).collect::<anyhow::Result<_>>()?;
        let domains = compiled.output("domains").map(|_| session.output("domains")).transpose()?;
        if self.domains.names.is_empty() {
            let count = domains.as_ref().map_or(0, |d| d.columns);
            let name = |i: usize| compiled.domain_names.get(i).cloned().unwrap_or_else(|| i.to_string());
            self.domains.names = (0..count).map(name).collect();
            self.domains.visits = vec![vec![0; compiled.num_clusters as usize]; count];
        }
        for (i, id) in ids.iter().enumerate() {
            let chosen = |tensor: &Tensor| {
                let mask = row(tensor, i);
                (0..).zip(mask).filter(|(_, m)| *m != 0.0).map(|(module, _)| module).collect::<Vec<u32>>()
            };
            let modules: Vec<Vec<u32>> = modules.iter().map(chosen).collect();
            let domain = domains.as_ref().and_then(|d| argmax(&row(d, i)));
            if let Some(visits) = domain.and_then(|d| self.domains.visits.get_mut(d)) {
                for module in modules.iter().flatten() {
                    if let Some(count) = visits.get_mut(*module as usize) {
                        *count += 1;
                    }
                }
            }
            let text = match tokenizer {
                Some(tokenizer) => tokenizer.decode(&[*id]).context("a token's text")?,
                None => id.to_string(),
            };
            let domain = domain.and_then(|d| self.domains.names.get(d)).cloned().unwrap_or_default();
            self.tokens.push(TokenModules { text, domain, modules });
        }
        Ok(())
    }
}
