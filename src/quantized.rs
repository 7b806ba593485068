//! How a quantized artifact is held to its definition.
//!
//! Node by node ([`lockstep`](crate::lockstep)), where it runs on this machine: that finds what is wrong. End to end its outputs drift
//! from the reference interpreter's, since a float that differs in its last bit may turn the rounding of a code. Drift is held to
//! what the recipe costs by itself: the distance of the interpreter in the recipe from the checkpoint in f32.

use std::fmt::Write;

use anyhow::{Context, ensure};
use lapidary_compiler::interp::Interpreter;
use serde_json::{Value, json};

use crate::divergence::{Divergence, best, log_softmax};
use crate::lockstep::{Differences, TOLERANCE};
use crate::oracle::outputs;
use crate::reference::{Prompt, Rows};
use crate::ui::table;

/// Drift that is never held against an artifact, in nats per token; of other outputs, squares relative to squares.
const NO_DRIFT: f64 = 1e-4;

/// Sums of squares over outputs that are no logits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Squares {
    difference: f64,
    size: f64,
}

impl Squares {
    fn add(&mut self, wanted: &[f32], found: &[f32]) {
        self.difference += wanted.iter().zip(found).map(|(w, f)| f64::from(w - f).powi(2)).sum::<f64>();
        self.size += wanted.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
    }

    fn relative(&self) -> f64 {
        if self.size > 0.0 { self.difference / self.size } else { self.difference }
    }
}

/// A distance between two sets of outputs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Distance {
    /// Of the logits.
    pub logits: Divergence,
    /// Of `output`, in models without logits.
    pub output: Squares,
}

impl Distance {
    /// Adds logits, or `output`, of one prompt; rows that both have.
    fn add(&mut self, wanted: &Rows, found: &Rows, is_logits: bool) -> anyhow::Result<()> {
        let same = (wanted.cols, wanted.data.len()) == (found.cols, found.data.len());
        ensure!(same, "wanted {} rows of {}, found {} of {}", wanted.rows(), wanted.cols, found.rows(), found.cols);
        if is_logits {
            let log = |rows: &Rows| {
                let mut data = rows.data.clone();
                log_softmax(&mut data, rows.cols);
                data
            };
            self.logits.add(&log(wanted), &log(found), wanted.cols);
        } else {
            self.output.add(&wanted.data, &found.data);
        }
        Ok(())
    }

    /// Nats per token, or relative squares where there are no logits.
    fn size(&self) -> f64 {
        if self.logits.rows > 0 { self.logits.nats_per_row() } else { self.output.relative() }
    }
}

/// What was found over all prompts.
#[derive(Clone, Debug, Default)]
pub struct QuantizedComparison {
    /// Prompts.
    pub prompts: usize,
    /// Node by node; empty where the outputs came from elsewhere.
    pub ops: Differences,
    /// Of the artifact from the interpreter in its recipe.
    pub drift: Distance,
    /// Of that interpreter from the checkpoint in f32.
    pub cost: Distance,
    /// Tokens that the artifact generated.
    pub generated: usize,
    /// Those that are the interpreter's best after the same tokens.
    pub generated_best: usize,
}

impl QuantizedComparison {
    /// Whether no node is wrong and the outputs drift less than the recipe costs.
    pub fn agrees(&self) -> bool {
        let bound = self.drift_bound();
        self.prompts > 0 && self.ops.values().all(|op| op.wrong == 0) && self.drift.size() <= bound
    }

    fn drift_bound(&self) -> f64 {
        self.cost.size().max(NO_DRIFT)
    }

    /// For people.
    pub fn text(&self, source: &str) -> String {
        let mut out = format!("with {source}: {} prompts\n", self.prompts);
        let mut line = |text: String| writeln!(out, "{text}").expect("writing to a string");
        if !self.ops.is_empty() {
            line("\nnode by node, each on the artifact's own operands".into());
            let rows = self.ops.iter().map(|(op, d)| {
                let verdict = if d.wrong == 0 { "agrees".into() } else { format!("{} wrong", d.wrong) };
                let (nodes, elements) = (d.nodes.len().to_string(), d.elements.to_string());
                vec![
                    (*op).into(),
                    nodes,
                    elements,
                    format!("{:.1e}", d.max_relative),
                    d.turned_rows.to_string(),
                    verdict,
                    d.worst.clone(),
                ]
            });
            let header = ["op", ">nodes", ">elements", ">max |Δ|/|row|", ">turned rows", "", "largest at"];
            line(table(&header, rows).to_string());
        }
        line("\nend to end".into());
        let row = |what: &str, distance: &Distance| match distance.logits.rows {
            0 => vec![what.to_string(), format!("{:.2e} of its squares", distance.output.relative()), String::new()],
            _ => vec![
                what.to_string(),
                format!("{:.2e} nats", distance.logits.nats_per_row()),
                format!("{:.2} %", distance.logits.same_best_percent()),
            ],
        };
        let rows =
            [row("artifact from its recipe's definition", &self.drift), row("that definition from f32", &self.cost)];
        line(table(&["distance", ">KL per token", ">same best"], rows).to_string());
        if self.generated > 0 {
            line(format!(
                "generated tokens that are the definition's best: {} of {}",
                self.generated_best, self.generated
            ));
        }
        line(if self.agrees() {
            "agrees".into()
        } else {
            format!(
                "DIFFERS (tolerances: {TOLERANCE:.0e} of a row node by node, {:.1e} end to end)",
                self.drift_bound()
            )
        });
        out
    }

    /// For programs.
    pub fn json(&self, source: &str) -> Value {
        let ops: Vec<_> = self
            .ops
            .iter()
            .map(|(op, d)| {
                json!({
                    "op": op,
                    "nodes": d.nodes.len(),
                    "elements": d.elements,
                    "max_relative": d.max_relative,
                    "turned_rows": d.turned_rows,
                    "wrong": d.wrong,
                    "worst": d.worst,
                })
            })
            .collect();
        let distance = |d: &Distance| match d.logits.rows {
            0 => json!({ "relative_squares": d.output.relative() }),
            _ => {
                json!({ "nats_per_token": d.logits.nats_per_row(), "same_best_percent": d.logits.same_best_percent() })
            }
        };
        json!({
            "schema": "lapidary.compare-quantized/1",
            "with": source,
            "agrees": self.agrees(),
            "prompts": self.prompts,
            "ops": ops,
            "drift": distance(&self.drift),
            "recipe_cost": distance(&self.cost),
            "drift_bound": self.drift_bound(),
            "generated": self.generated,
            "generated_best": self.generated_best,
        })
    }
}

/// Holds outputs to the interpreter in the recipe, and that to the checkpoint in f32.
pub struct Judge<'a> {
    quantized: Interpreter<'a>,
    exact: Interpreter<'a>,
}

impl<'a> Judge<'a> {
    /// From the interpreter of the recipe's graph and that of the imported graph.
    pub fn new(quantized: Interpreter<'a>, exact: Interpreter<'a>) -> Self {
        Judge { quantized, exact }
    }

    /// Adds a prompt: `known` has its ids and, where there are any, outputs of the checkpoint.
    pub fn add(&self, known: &Prompt, found: &Prompt, sum: &mut QuantizedComparison) -> anyhow::Result<()> {
        let mut all = known.ids.clone();
        // Nothing follows the last token.
        all.extend(found.greedy.iter().take(found.greedy.len().saturating_sub(1)));
        let mut wanted = outputs(&self.quantized, &all)?;
        if let Some(logits) = wanted.get("logits") {
            sum.generated += found.greedy.len();
            let rows = known.ids.len() - 1..all.len();
            let same = rows.zip(&found.greedy).filter(|(row, token)| best(logits.row(*row)) == **token as usize);
            sum.generated_best += same.count();
        }
        if found.outputs.is_empty() {
            return Ok(());
        }
        let is_logits = wanted.contains_key("logits");
        let name = if is_logits { "logits" } else { "output" };
        let mut wanted = wanted.remove(name).with_context(|| format!("wanted an output {name}, found none"))?;
        // A model that goes on is causal: what comes later changes no earlier row.
        if is_logits {
            wanted.data.truncate(known.ids.len() * wanted.cols);
        }
        let output = found.outputs.get(name).with_context(|| format!("wanted an output {name}, found none"))?;
        sum.drift.add(&wanted, output, is_logits).with_context(|| name.to_string())?;
        match (known.outputs.get(name), &known.logits_rows) {
            (Some(exact), Some(rows)) => sum.cost.add(exact, &chosen(&wanted, rows), is_logits),
            (Some(exact), None) => sum.cost.add(exact, &wanted, is_logits),
            (None, _) => {
                let exact = outputs(&self.exact, &known.ids)?.remove(name).context("the same outputs")?;
                sum.cost.add(&exact, &wanted, is_logits)
            }
        }
    }
}

/// Some rows of a value.
fn chosen(value: &Rows, rows: &[usize]) -> Rows {
    Rows { cols: value.cols, data: rows.iter().flat_map(|row| value.row(*row).to_vec()).collect() }
}
