//! What compiling a model for an NPU took and gave.

use std::time::Duration;

use lapidary_compiler::ir::Op;
use lapidary_compiler::plan::cost;
use lapidary_simulator::report::text;
use lapidary_target_cpu::component_name;
use serde_json::{Value, json};

use super::timing::Prediction;
use super::write::Lowered;
use crate::model::{Planned, range, storages};
use crate::ui::{bytes, count, table};

/// What there is to say.
pub struct Summary<'a> {
    /// The plan.
    pub planned: &'a Planned,
    /// The programs.
    pub lowered: &'a Lowered,
    /// How long they take.
    pub prediction: &'a Prediction,
    /// Size of the artifact; `None` for a dry run.
    pub artifact_bytes: Option<u64>,
    /// Time from reading the model to the finished file.
    pub elapsed: Duration,
}

impl Summary<'_> {
    /// Nodes that are computed; slices only say which columns are read.
    fn ops(&self) -> usize {
        self.planned.graph.nodes.iter().filter(|node| node.op != Op::Slice).count()
    }

    fn instructions(&self) -> Vec<String> {
        let text = |(name, program): (&str, &lapidary_npu_isa::Program)| {
            format!("{name} {}", count(program.instructions.len() as u64))
        };
        self.lowered.compiled.programs().map(text).collect()
    }

    /// For people.
    pub fn print_text(&self) {
        let (Planned { before, graph, .. }, compiled) = (self.planned, &self.lowered.compiled);
        let (machine, summary) = (&compiled.machine, &self.lowered.model.summary);
        let work = self.planned.work_per_token();
        println!(
            "{} for npu:{}: {} ops, all on the NPU: {} instructions",
            compiled.model,
            machine.name(),
            self.ops(),
            self.instructions().join(", ")
        );
        let stored = cost::weight_bytes(graph);
        let rows = before.iter().map(|c| {
            let stored = stored.iter().find(|s| s.component == c.component).map_or(0, |s| s.bytes);
            let name = component_name(Some(c.component)).to_string();
            vec![name, count(c.elems), bytes(c.bytes), bytes(stored), storages(graph, c.component)]
        });
        println!("{}", table(&["component", ">parameters", ">before", ">stored", "as"], rows));
        println!(
            "weights {} -> {} as laid out for the array",
            bytes(before.iter().map(|c| c.bytes).sum()),
            bytes(compiled.weight_bytes)
        );
        println!("scratchpad: {} of {} used", bytes(summary.scratchpad_bytes), bytes(machine.scratchpad.bytes));
        println!(
            "DRAM: {} of {}: weights {}, state {} (contexts of {}), arena {} (calls of {} tokens)",
            bytes(self.dram_bytes()),
            bytes(machine.dram.bytes),
            bytes(compiled.weight_bytes),
            bytes(summary.state_bytes),
            compiled.max_tokens,
            bytes(summary.arena_bytes),
            compiled.chunk_tokens
        );
        println!(
            "per {}: {} of weights and {} of keys and values touched, {} multiply-adds",
            if compiled.decode.is_some() { "decoded token at full context" } else { "token" },
            range(work.weight_bytes, bytes),
            bytes(work.kv_bytes),
            range(work.multiply_adds, count)
        );
        for line in &summary.reread {
            println!("moved more than once: {line}");
        }
        if let Some(line) = &summary.idle {
            println!("array: {line}");
        }
        if compiled.decode.is_none() {
            println!("prefill only: {}", compiled.cannot_decode);
        }
        let Prediction { entry, first, tokens, modules, report } = self.prediction;
        println!(
            "{entry} of {tokens} {} at position {first}: {:.3} ms, {:.1} tokens/s ({modules} modules per token, drawn uniformly)",
            if *tokens == 1 { "token" } else { "tokens" },
            report.latency_ms(),
            1e3 * *tokens as f64 / report.latency_ms()
        );
        println!("bound by {}", text::bound(report));
        match self.artifact_bytes {
            Some(size) => println!("artifact {} in {:.2} s", bytes(size), self.elapsed.as_secs_f64()),
            None => println!("dry run: nothing written, {:.2} s", self.elapsed.as_secs_f64()),
        }
    }

    /// End of the last segment.
    fn dram_bytes(&self) -> u64 {
        let segments = self.lowered.compiled.programs().flat_map(|(_, program)| &program.segments);
        segments.map(|s| s.address.saturating_add(s.len_bytes)).max().unwrap_or(0)
    }

    /// For programs.
    pub fn print_json(&self) {
        let (Planned { before, graph, options, .. }, compiled) = (self.planned, &self.lowered.compiled);
        let summary = &self.lowered.model.summary;
        let work = self.planned.work_per_token();
        let stored = cost::weight_bytes(graph);
        let components: Vec<Value> = before
            .iter()
            .map(|c| {
                let stored = stored.iter().find(|s| s.component == c.component).map_or(0, |s| s.bytes);
                json!({
                    "name": component_name(Some(c.component)),
                    "parameters": c.elems,
                    "bytes_before": c.bytes,
                    "bytes_stored": stored,
                    "stored_as": storages(graph, c.component),
                })
            })
            .collect();
        let instructions = compiled.programs().map(|(name, p)| (name.to_string(), p.instructions.len().into()));
        let Prediction { entry, first, tokens, modules, report } = self.prediction;
        let bound = report.bound();
        let result = json!({
            "schema": "lapidary.compile/1",
            "model": compiled.model,
            "target": format!("npu:{}", compiled.machine.name()),
            "quantization": options.recipe.name,
            "ops": { "npu": self.ops() },
            "parameters": self.planned.parameters(),
            "components": components,
            "weights_bytes_before": before.iter().map(|c| c.bytes).sum::<u64>(),
            "weights_bytes": compiled.weight_bytes,
            "instructions": instructions.collect::<serde_json::Map<String, Value>>(),
            "scratchpad_bytes": summary.scratchpad_bytes,
            "dram_bytes": self.dram_bytes(),
            "arena_bytes": summary.arena_bytes,
            "state_bytes": summary.state_bytes,
            "reread": summary.reread,
            "idle": summary.idle,
            "max_tokens": compiled.max_tokens,
            "chunk_tokens": compiled.chunk_tokens,
            "weight_bytes_per_token": { "min": work.weight_bytes.min, "max": work.weight_bytes.max },
            "kv_bytes_per_token": work.kv_bytes,
            "multiply_adds_per_token": { "min": work.multiply_adds.min, "max": work.multiply_adds.max },
            "predicted": {
                "entry": entry,
                "position": first,
                "tokens": tokens,
                "routing": "uniform",
                "modules_per_token": modules,
                "cycles": report.cycles,
                "latency_ms": report.latency_ms(),
                "bound": { "by": bound.by, "share": bound.share },
            },
            "artifact_bytes": self.artifact_bytes,
            "seconds": self.elapsed.as_secs_f64(),
        });
        println!("{result:#}");
    }
}
