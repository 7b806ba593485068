//! `--routing`: who decides which modules tokens visit.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use lapidary_simulator::routing::{Decision, Drawn, ModulesPerToken, Popularity, Routing, Trace};
use serde_json::Value;

use super::compiled::Compiled;
use super::timing::SEED;
use crate::failure::Usage;
use crate::ui;

/// Longest routing trace.
const MAX_TRACE_BYTES: u64 = 256 << 20;

/// What a routing trace says of a token: per layer its modules.
type Visits = Vec<Decision>;

/// Who decides.
#[derive(Clone, Debug)]
pub enum Choice {
    /// Modules by lot, so many per token.
    Drawn(Popularity, u32),
    /// Recorded sequences: of each its tokens.
    Recorded(Vec<Vec<Visits>>),
}

impl Choice {
    /// Reads `uniform`, `zipf:S` or `trace=F`.
    pub fn parse(text: &str, modules_per_token: Option<u32>, compiled: &Compiled) -> anyhow::Result<Choice> {
        if let Some(path) = text.strip_prefix("trace=") {
            if modules_per_token.is_some() {
                bail!(Usage(
                    "--modules-per-token: wanted it with uniform or zipf:S, found a trace, which says it itself".into()
                ));
            }
            let place = || format!("--routing trace={path}");
            let text = ui::read_text(Path::new(path), MAX_TRACE_BYTES).with_context(place)?;
            return Ok(Choice::Recorded(sequences(&text, compiled).with_context(place)?));
        }
        let popularity: Popularity = text.parse().map_err(|_| {
            anyhow::Error::new(Usage(format!(
                "--routing: wanted uniform, zipf:S with S from 0 to 16, or trace=FILE, found `{text}`\nhint: `lapidary run … \
                 --record-routing FILE` records a trace"
            )))
        })?;
        // Programs have no room for more.
        let most = compiled.most_modules();
        let modules = modules_per_token.unwrap_or(most);
        if modules > most {
            bail!(Usage(format!(
                "--modules-per-token: wanted at most {most}, what the policy of {} gives, found {modules}",
                compiled.model
            )));
        }
        Ok(Choice::Drawn(popularity, modules))
    }

    /// The routing of a sequence of `tokens` tokens; one that is longer than its record goes on with the record's beginning.
    pub fn routing(&self, sequence: usize, tokens: u64) -> Box<dyn Routing> {
        match self {
            Choice::Drawn(popularity, modules) => {
                let seed = SEED.wrapping_add(sequence as u64);
                Box::new(Drawn::new(*popularity, ModulesPerToken::Exactly(*modules), seed))
            }
            Choice::Recorded(sequences) => {
                let mut trace = Trace::default();
                let recorded = sequence.checked_rem(sequences.len()).and_then(|i| sequences.get(i));
                let visits = recorded.into_iter().flatten().cycle();
                for (token, visits) in (0..tokens).zip(visits) {
                    for (layer, decision) in (0..).zip(visits) {
                        trace.insert(layer, token, decision.clone());
                    }
                }
                Box::new(trace)
            }
        }
    }
}

/// The sequences of a routing trace: a new one begins where the position is 0.
fn sequences(text: &str, compiled: &Compiled) -> anyhow::Result<Vec<Vec<Visits>>> {
    let mut lines = text.lines().zip(1..);
    let parse = |(line, number): (&str, usize)| -> anyhow::Result<Value> {
        serde_json::from_str(line).with_context(|| format!("line {number}"))
    };
    let head = parse(lines.next().context("wanted a routing trace, found an empty file")?)?;
    let wanted = "lapidary.routing/1";
    ensure!(head["schema"] == wanted, "line 1: schema, wanted {wanted}, found {}", head["schema"]);
    for (key, wanted) in [("layers", compiled.num_layers), ("clusters", compiled.num_clusters)] {
        ensure!(head[key] == wanted, "line 1: {key}, wanted {wanted} (of {}), found {}", compiled.model, head[key]);
    }
    let mut sequences: Vec<Vec<Visits>> = Vec::new();
    for (line, number) in lines {
        let token = parse((line, number))?;
        let place = || format!("line {number}");
        if token["position"] == 0 || sequences.is_empty() {
            sequences.push(Vec::new());
        }
        let visits = visits(&token, compiled).with_context(place)?;
        if let Some(sequence) = sequences.last_mut() {
            let (wanted, found) = (sequence.len(), &token["position"]);
            ensure!(*found == wanted, "line {number}: position, wanted {wanted}, found {found}");
            sequence.push(visits);
        }
    }
    ensure!(!sequences.is_empty(), "wanted at least one token, found none");
    Ok(sequences)
}

/// A token's modules and gates, layer by layer. Traces of older versions have no gates: they are equal then.
fn visits(token: &Value, compiled: &Compiled) -> anyhow::Result<Visits> {
    let list = |value: &Value, what: &str| -> anyhow::Result<Vec<Value>> {
        value.as_array().cloned().with_context(|| format!("{what}: wanted a list, found another value"))
    };
    let layers = list(&token["modules"], "modules")?;
    let (wanted, found) = (compiled.num_layers as usize, layers.len());
    ensure!(found == wanted, "modules: wanted lists of {wanted} layers, found {found}");
    let gates = &token["gates"];
    let visit = |(layer, modules): (usize, &Value)| {
        let modules = list(modules, "modules of a layer")?;
        let gates = match gates.is_null() {
            true => vec![Value::from(1.0 / modules.len().max(1) as f64); modules.len()],
            false => list(gates.get(layer).unwrap_or(&Value::Null), "gates of a layer")?,
        };
        let (wanted, found) = (modules.len(), gates.len());
        ensure!(wanted == found, "gates of layer {layer}: wanted {wanted}, one per module, found {found}");
        let pair = |(module, gate): (&Value, &Value)| {
            let number = module.as_u64().and_then(|m| u32::try_from(m).ok()).filter(|m| *m < compiled.num_clusters);
            let number = number.with_context(|| {
                format!("module of layer {layer}: wanted a number below {}, found {module}", compiled.num_clusters)
            })?;
            let gate =
                gate.as_f64().with_context(|| format!("gate of layer {layer}: wanted a number, found {gate}"))?;
            Ok((number, gate as f32))
        };
        let modules: Vec<_> = modules.iter().zip(&gates).map(pair).collect::<anyhow::Result<_>>()?;
        Ok(Decision { modules, cluster: None })
    };
    layers.iter().enumerate().map(visit).collect()
}
