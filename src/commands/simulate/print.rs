//! What `simulate` of a model shows: text and JSON. The tables are the simulator's own.

use lapidary_simulator::Report;
use lapidary_simulator::report::{json, text};
use serde_json::{Value, json};

use super::model::{Outcome, Sequence};
use crate::cli::{Format, SimulateArgs};
use crate::npu::Compiled;

/// Ops and modules that the text form lists.
const LONGEST: usize = 16;

/// Shows all.
pub fn outcome(args: &SimulateArgs, compiled: &Compiled, outcome: &Outcome) {
    match args.format {
        Format::Json => println!("{:#}", to_json(args, compiled, outcome)),
        Format::Text => print_text(args, compiled, outcome),
    }
}

/// The value that a share of `percent` does not exceed, by nearest rank.
fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0.0)
}

/// Name of an op without its layer.
fn family(name: &str) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    name.split('.').map(|part| if is_number(part) { "*" } else { part }).collect::<Vec<_>>().join(".")
}

/// The same with the ops of all layers together.
fn by_family(report: &Report) -> Report {
    let mut report = report.clone();
    report.parts.iter_mut().for_each(|part| part.name = family(&part.name));
    report
}

fn print_text(args: &SimulateArgs, compiled: &Compiled, outcome: &Outcome) {
    for sequence in &outcome.sequences {
        if let Some(prompt) = &sequence.prompt {
            println!("{prompt}{}", sequence.text.as_deref().unwrap_or_default());
        }
    }
    if outcome.sequences.iter().any(|sequence| sequence.prompt.is_some()) {
        println!();
    }
    let machine = &compiled.machine;
    println!(
        "{} on npu:{}: {} × {} array, {} MHz, {}; routing: {}{}",
        compiled.model,
        machine.name(),
        machine.matrix.rows,
        machine.matrix.cols,
        machine.clock_mhz,
        machine.dram.preset.name(),
        args.model.routing.as_deref().unwrap_or("the model's own"),
        if args.timing_only { "; no values computed" } else { "" }
    );
    print!("\n{}", text::phases(&outcome.summary));
    for (name, sum) in outcome.by_phase() {
        println!("{name} bound by {}", text::bound(sum));
    }
    if outcome.sequences.len() > 1 {
        let all: Vec<f64> = outcome.sequences.iter().map(Sequence::latency_ms).collect();
        let [p50, p95, most] = [50, 95, 100].map(|percent| percentile(&all, percent));
        println!("latency per input: median {p50:.4} ms, p95 {p95:.4} ms, longest {most:.4} ms");
    }
    if let Some(sum) = outcome.summary.report() {
        println!(
            "DRAM {} B read, {} B written; energy {:.1} µJ\n",
            text::grouped(sum.total.dram_read_bytes),
            text::grouped(sum.total.dram_write_bytes),
            sum.energy_uj()
        );
        print!("{}", text::tables(&by_family(sum), LONGEST));
    }
}

impl Sequence {
    fn latency_ms(&self) -> f64 {
        self.prefill_ms + self.decode_ms
    }

    fn to_json(&self) -> Value {
        json!({
            "prompt": self.prompt,
            "prompt_tokens": self.prompt_tokens,
            "generated": self.new,
            "text": self.text,
            "stop": self.stop,
            "prefill_ms": self.prefill_ms,
            "decode_ms": self.decode_ms,
            "latency_ms": self.latency_ms(),
        })
    }
}

/// `lapidary.sim/1` of all calls together, and what a model adds.
fn to_json(args: &SimulateArgs, compiled: &Compiled, outcome: &Outcome) -> Value {
    let mut value = json::summary_to_json(&outcome.summary);
    for phase in value["phases"].as_array_mut().into_iter().flatten() {
        let sum = outcome.by_phase().find(|(name, _)| phase["phase"] == *name).map(|(_, sum)| sum);
        if let (Some(sum), Value::Object(fields)) = (sum, phase) {
            let bound = sum.bound();
            fields.insert("bound".into(), json!({ "by": bound.by, "share": bound.share }));
            let read = u64::try_from(sum.total.dram_read_bytes).unwrap_or(u64::MAX);
            fields.insert("dram_read".into(), read.into());
            fields.insert("energy_uj".into(), sum.energy_uj().into());
        }
    }
    let all: Vec<f64> = outcome.sequences.iter().map(Sequence::latency_ms).collect();
    let more = json!({
        "model": compiled.model,
        "values": !args.timing_only,
        "routed_by": args.model.routing.as_deref().unwrap_or("model"),
        "inputs": {
            "count": all.len(),
            "p50_ms": percentile(&all, 50),
            "p95_ms": percentile(&all, 95),
            "max_ms": percentile(&all, 100),
        },
        "sequences": outcome.sequences.iter().map(Sequence::to_json).collect::<Vec<_>>(),
    });
    if let (Value::Object(fields), Value::Object(more)) = (&mut value, more) {
        fields.extend(more);
    }
    value
}
