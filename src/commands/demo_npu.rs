//! The part of `lapidary demo` that is about NPUs: the same model, compiled for one and simulated, beside this CPU.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use lapidary_compiler::import::ImportedModel;
use lapidary_runtime::{Model, Tokenizer, greedy};
use lapidary_simulator::Options as SimulatorOptions;
use lapidary_simulator::report::{summary::Summary, text};

use crate::cli::DemoArgs;
use crate::engine;
use crate::model::{self, Options, Planned};
use crate::npu;
use crate::ui::{Ui, bytes, table};

/// The machine that is simulated.
const MACHINE: &str = "edge-32";
/// How weights are stored, on both.
const RECIPE: &str = "hybrid";

/// What a run of a prompt gave.
struct Run {
    tokens: Vec<u32>,
    prefill_ms: f64,
    /// Of each token but the last, which is not run.
    decode_ms: f64,
    decoded: usize,
}

impl Run {
    fn row(&self, name: String) -> Vec<String> {
        let each = self.decode_ms / self.decoded.max(1) as f64;
        let rate = if each > 0.0 { format!("{:.0}", 1e3 / each) } else { "-".into() };
        vec![name, format!("{:.2}", self.prefill_ms), format!("{each:.3}"), rate]
    }
}

/// Compiles the model for both in one recipe, continues the prompt on both, and shows them side by side.
pub fn run(imported: &Arc<ImportedModel>, prompt: &str, args: &DemoArgs, ui: &Ui) -> anyhow::Result<()> {
    println!("\n3. compile it for an NPU ({RECIPE}, npu:{MACHINE}) and simulate the first prompt");
    let planned = model::plan(Arc::clone(imported), Options::new(Some(RECIPE), None, None, None)?, ui)?;
    let machine = npu::machine("--machine", MACHINE, &[])?;
    let lowered = npu::lower(&planned, &machine, ui)?;
    let json = planned.model.tokenizer.as_deref().context("the bundled model has no tokenizer")?;
    let tokenizer = Tokenizer::from_json(json)?;
    let ids = tokenizer.encode(prompt)?;
    let (npu, simulated) = on_npu(&planned, &lowered, &ids, &tokenizer, args, ui)?;
    let cpu = on_cpu(&planned, &ids, &tokenizer, args, ui)?;
    println!("\n   {prompt}\u{2502}{}\n", tokenizer.decode(&npu.tokens)?.replace('\n', "\n   "));
    let rows =
        [npu.row(format!("  npu:{MACHINE}, {} MHz, simulated", machine.clock_mhz)), cpu.row("  this CPU".into())];
    let prefill = format!(">ms to read {} tokens", ids.len());
    println!("{}", table(&["", &prefill, ">ms per decoded token", ">tokens/s"], rows));
    if let Some(sum) = simulated.report() {
        println!("   bound by {}", text::bound(sum));
    }
    let same = npu.tokens.iter().zip(&cpu.tokens).take_while(|(a, b)| a == b).count();
    match npu.tokens == cpu.tokens {
        true => println!("   both generate the same {same} tokens"),
        false => println!("   both generate the same first {same} of {} tokens", npu.tokens.len()),
    }
    let summary = &lowered.model.summary;
    println!(
        "   memory: weights {}, state {}, arena {} of DRAM; scratchpad {}",
        bytes(lowered.compiled.weight_bytes),
        bytes(summary.state_bytes),
        bytes(summary.arena_bytes),
        bytes(summary.scratchpad_bytes)
    );
    Ok(())
}

fn on_npu(
    planned: &Planned,
    lowered: &npu::Lowered,
    ids: &[u32],
    tokenizer: &Tokenizer,
    args: &DemoArgs,
    ui: &Ui,
) -> anyhow::Result<(Run, Summary)> {
    let mut session = npu::Session::new(&lowered.compiled, SimulatorOptions::default(), None)?;
    session.load(|out| npu::write_weights(planned, lowered, out, ui))?;
    let bar = ui.count_bar("simulating", (ids.len() + args.max_new) as u64);
    let mut run = Run { tokens: Vec::new(), prefill_ms: 0.0, decode_ms: 0.0, decoded: 0 };
    let mut summary = Summary::default();
    let tokens = session.continuation(ids, args.max_new, tokenizer.end_token(), &mut |call| {
        summary.add(call.entry, call.tokens, &call.report)?;
        match call.entry {
            lapidary_format::ENTRY_PREFILL => run.prefill_ms += call.report.latency_ms(),
            _ => {
                run.decode_ms += call.report.latency_ms();
                run.decoded += 1;
            }
        }
        bar.inc(call.tokens);
        Ok(())
    })?;
    bar.finish_and_clear();
    run.tokens = tokens;
    Ok((run, summary))
}

fn on_cpu(planned: &Planned, ids: &[u32], tokenizer: &Tokenizer, args: &DemoArgs, ui: &Ui) -> anyhow::Result<Run> {
    let folder = tempfile::tempdir().context("a temporary folder cannot be created")?;
    let artifact = folder.path().join("hybrid.lapis");
    planned.write(&planned.lower(&model::cpu_target("native")?)?, &artifact, ui)?;
    let mut session = engine::session(Arc::new(Model::open(&artifact)?), args.threads)?;
    // Once for the caches of the machine, then timed.
    session.prefill(ids)?;
    session.reset();
    let begin = Instant::now();
    session.prefill(ids)?;
    let prefill_ms = begin.elapsed().as_secs_f64() * 1e3;
    let limit = session.model().manifest().max_tokens as usize;
    let (mut tokens, mut decoded, begin) = (Vec::new(), 0, Instant::now());
    while tokens.len() < args.max_new {
        let token = greedy(session.logits().context("the model has no logits")?);
        if tokenizer.end_token() == Some(token) {
            break;
        }
        tokens.push(token);
        if tokens.len() == args.max_new || ids.len() + decoded >= limit {
            break;
        }
        session.decode(token)?;
        decoded += 1;
    }
    Ok(Run { tokens, prefill_ms, decode_ms: begin.elapsed().as_secs_f64() * 1e3, decoded })
}
