//! `lapidary inspect`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use lapidary_format::{Artifact, ENTRY_PREFILL, Isa, ManifestFlags, NO_INDEX, Packing, Step};
use lapidary_runtime::ArtifactFile;
use serde_json::json;

use crate::cli::{Format, InspectArgs, InspectOptions};
#[cfg(feature = "npu")]
use crate::commands::inspect_npu;
use crate::engine;
use crate::memory_picture::{self, Buffer, Picture};
#[cfg(feature = "npu")]
use crate::npu::Compiled;
use crate::ui::{Ui, bytes, count, table};

/// Shows an artifact, or a model before it is compiled.
pub fn run(args: &InspectArgs, ui: &Ui) -> anyhow::Result<ExitCode> {
    let path = Path::new(&args.file);
    #[cfg(feature = "compiler")]
    if args.file.starts_with("preset:") || path.is_dir() || path.extension().is_some_and(|e| e == "lir") {
        return crate::model::inspect(&args.file, args.format);
    }
    show(&engine::artifact(path)?, &args.options, args.format, ui)
}

/// Shows an artifact.
pub fn show(file: &ArtifactFile, options: &InspectOptions, format: Format, ui: &Ui) -> anyhow::Result<ExitCode> {
    if options.check {
        let spinner = ui.spinner("checking");
        file.check().with_context(|| file.path().display().to_string())?;
        spinner.finish_and_clear();
    }
    #[cfg(feature = "npu")]
    let npu = (file.artifact().manifest().isa == Isa::Npu)
        .then(|| Compiled::parse(file.artifact()).with_context(|| file.path().display().to_string()))
        .transpose()?;
    #[cfg(feature = "npu")]
    if let (Some(compiled), true) = (&npu, options.check) {
        compiled.verify(&compiled.machine).with_context(|| file.path().display().to_string())?;
    }
    match format {
        Format::Text => print_text(file, options),
        Format::Json => print_json(file, options),
    }
    #[cfg(feature = "npu")]
    if let (Some(compiled), Format::Text) = (&npu, format) {
        inspect_npu::print_text(compiled);
    }
    Ok(ExitCode::SUCCESS)
}

fn features<'a>(artifact: &Artifact<'a>) -> Vec<&'a str> {
    artifact.features().iter().map(|f| f.name).collect()
}

fn print_text(file: &ArtifactFile, args: &InspectOptions) {
    let artifact = file.artifact();
    let is_npu = artifact.manifest().isa == Isa::Npu;
    let m = artifact.manifest();
    let plan = artifact.plan();
    println!("model         {} ({}, {} parameters)", m.model, m.head, count(m.parameters));
    println!("made by       {}, weights {}", m.producer, m.quantization);
    println!("target        {} ({})", artifact.target().map_or("unnamed", |t| t.name), m.isa);
    if !is_npu {
        println!("CPU features  {}", features(artifact).join(" "));
    }
    println!(
        "shape         vocabulary {}, hidden {}, layers {}, clusters {}, domains {}",
        m.vocab_size, m.hidden_size, m.num_layers, m.num_clusters, m.num_domains
    );
    let chunk = if m.flags.contains(ManifestFlags::WHOLE_SEQUENCE) {
        "whole sequences".into()
    } else {
        format!("prefill in chunks of {}", m.max_chunk_tokens)
    };
    println!("context       {} tokens, {chunk}", m.max_tokens);
    if !m.cannot_decode.is_empty() {
        println!("no decoding   {}", m.cannot_decode);
    }
    println!(
        "memory        weights {}, arena {}, state {}, stack {}",
        bytes(plan.weights_bytes),
        bytes(plan.arena_bytes),
        bytes(plan.state_bytes),
        bytes(plan.stack_bytes)
    );
    println!(
        "per token     {} touched, {} multiply-adds (at most, decoding)",
        bytes(m.bytes_touched_per_token),
        count(m.macs_per_token)
    );
    let range = file.range();
    if range.start > 0 {
        let (runner, inside) = (bytes(range.start), bytes(range.end - range.start));
        println!("executable    runner {runner} (padded), artifact {inside}");
    }
    if !is_npu {
        let kernels: Vec<_> = artifact.kernels().iter().map(|k| k.name).collect();
        println!("kernels       {}", kernels.join("\n              "));
    }
    println!();
    let rows = artifact.sections().map(|s| {
        let kind = s.kind.map_or_else(|| format!("kind {}", s.kind_code), |k| k.name().to_string());
        vec![kind, s.offset.to_string(), s.bytes.to_string(), format!("{:08x}", s.crc32)]
    });
    println!("{}\n", table(&["section", ">offset", ">bytes", ">crc32"], rows));
    let rows = artifact
        .components()
        .iter()
        .map(|c| vec![c.name.into(), c.quantization.into(), count(c.parameters), bytes(c.bytes)]);
    println!("{}\n", table(&["component", "stored as", ">parameters", ">size"], rows));
    if !is_npu {
        println!("{}", modules(artifact));
        print!("{}", memory(artifact));
    }
    if args.tensors {
        println!("\n{}", tensors(artifact));
    }
    println!(
        "\ncode: {} in {} {}; `lapidary disasm` shows them",
        bytes(code_bytes(artifact)),
        artifact.steps().len(),
        if is_npu { "runs of instructions by op" } else { "functions" }
    );
    let rows = artifact.entries().iter().enumerate().map(|(i, entry)| {
        let steps = artifact.steps().iter().filter(|s| is_step_of(s, i)).count();
        vec![entry.name.into(), format!("{:#x}", entry.offset), steps.to_string()]
    });
    println!("{}\n", table(&["entry", ">offset", ">steps"], rows));
    let rows = artifact
        .ports()
        .iter()
        .map(|p| vec![p.direction.to_string(), p.name.into(), format!("{} [{}, {}]", p.dtype, p.rows, p.columns)]);
    println!("{}", table(&["", "tensor", "type"], rows));
    if args.check {
        println!("\nall checksums and bounds hold");
    }
}

fn code_bytes(artifact: &Artifact<'_>) -> u64 {
    artifact.code().len() as u64
}

/// Whether a function is a step that this entry point computes: it has an op, and is no second version for profiling.
fn is_step_of(step: &Step<'_>, entry: usize) -> bool {
    step.entry as usize == entry && !step.op.is_empty() && !step.name.ends_with(" by module")
}

/// Records of the step table that are positions of the picture's time axis: what `prefill` computes, in order.
fn time_axis(artifact: &Artifact<'_>) -> Vec<u32> {
    let prefill = artifact.entries().iter().position(|e| e.name == ENTRY_PREFILL).unwrap_or(usize::MAX);
    (0..).zip(artifact.steps().iter()).filter(|(_, step)| is_step_of(step, prefill)).map(|(i, _)| i).collect()
}

/// The memory plan: the arena as a picture, the state as bars.
fn memory(artifact: &Artifact<'_>) -> String {
    let axis = time_axis(artifact);
    let position = |step: u32| axis.partition_point(|at| *at < step).min(axis.len().saturating_sub(1));
    let buffers = artifact.buffers().iter().map(|b| Buffer {
        name: b.name,
        offset: b.offset,
        bytes: b.bytes,
        first: position(b.first_step),
        last: position(b.last_step),
    });
    let buffers: Vec<_> = buffers.collect();
    let picture = Picture::draw(&buffers, axis.len());
    let step = |at: Option<&u32>| at.and_then(|i| artifact.steps().get(*i as usize)).map_or("", |step| step.name);
    let plan = artifact.plan();
    let (arena, state) = (bytes(plan.arena_bytes), bytes(plan.state_bytes));
    let mut out = format!(
        "arena: {arena}, at most {} in use at once; {} buffers over {} steps\n{}\nstate: {state}\n",
        bytes(picture.live_bytes),
        buffers.len(),
        axis.len(),
        picture.render(step(axis.first()), step(axis.last()))
    );
    let (families, _) = memory_picture::families(artifact.state_buffers().iter().map(|b| (b.name, b.bytes)));
    for family in families {
        // A character is a thirtieth of the state; what is there has at least one.
        let total = u128::from(family.most_bytes) * family.count as u128;
        let bar = (30 * total).div_ceil(u128::from(plan.state_bytes.max(1))).min(30) as usize;
        out.push_str(&format!("  {:<30}  {}\n", "#".repeat(bar), memory_picture::legend(&family)));
    }
    out
}

fn tensors(artifact: &Artifact<'_>) -> comfy_table::Table {
    let rows = artifact.tensors().iter().map(|t| {
        let packing = match t.packing {
            Packing::RowMajor => String::new(),
            Packing::Panels => format!("panels of {}", t.panel_width),
        };
        vec![
            t.name.into(),
            t.component.into(),
            format!("{} [{}, {}]", t.dtype, t.rows, t.cols),
            packing,
            t.offset.to_string(),
            t.bytes.to_string(),
        ]
    });
    table(&["tensor", "component", "type", "packing", ">offset", ">bytes"], rows)
}

/// One line on module extents.
fn modules(artifact: &Artifact<'_>) -> String {
    let mut extents = artifact.extents().iter().filter(|e| e.module != NO_INDEX);
    match extents.next() {
        None => "no modules\n".into(),
        Some(first) => format!(
            "modules: {} extents of {} each, the first at offset {} of the weights\n",
            1 + extents.count(),
            bytes(first.bytes),
            first.offset
        ),
    }
}

/// The memory plan, the code map and the layout of the weights, for programs.
fn details(artifact: &Artifact<'_>, with_tensors: bool) -> serde_json::Map<String, serde_json::Value> {
    let entries: Vec<_> = artifact.entries().iter().map(|e| json!({ "name": e.name, "offset": e.offset })).collect();
    let entry = |index: u32| artifact.entries().get(index as usize).map(|e| e.name);
    let steps = artifact
        .steps()
        .iter()
        .map(|s| json!({ "name": s.name, "op": s.op, "entry": entry(s.entry), "offset": s.offset, "bytes": s.bytes }));
    let buffers = artifact.buffers().iter().map(|b| {
        json!({
            "name": b.name,
            "offset": b.offset,
            "bytes": b.bytes,
            "first_step": b.first_step,
            "last_step": b.last_step,
        })
    });
    let state = artifact.state_buffers();
    let state = state.iter().map(|b| json!({ "name": b.name, "offset": b.offset, "bytes": b.bytes }));
    let modules = || artifact.extents().iter().filter(|e| e.module != NO_INDEX).map(|e| e.bytes);
    let extents = json!({
        "count": artifact.extents().len(),
        "modules": modules().count(),
        "module_bytes_min": modules().min(),
        "module_bytes_max": modules().max(),
        "shared_bytes": artifact.extents().iter().filter(|e| e.module == NO_INDEX).map(|e| e.bytes).sum::<u64>(),
    });
    let mut details = serde_json::Map::new();
    let mut add = |name: &str, value: serde_json::Value| details.insert(name.into(), value);
    add("stack_bytes", json!(artifact.plan().stack_bytes));
    add("buffers", buffers.collect());
    add("state_buffers", state.collect());
    add("entries", json!(entries));
    add("steps", steps.collect());
    add("extents", extents);
    if with_tensors {
        let tensors = artifact.tensors().iter().map(|t| {
            json!({
                "name": t.name,
                "component": t.component,
                "dtype": t.dtype.to_string(),
                "packing": t.packing.to_string(),
                "panel_width": t.panel_width,
                "rows": t.rows,
                "cols": t.cols,
                "offset": t.offset,
                "bytes": t.bytes,
            })
        });
        add("tensors", tensors.collect());
    }
    details
}

fn print_json(file: &ArtifactFile, args: &InspectOptions) {
    let artifact = file.artifact();
    let m = artifact.manifest();
    let plan = artifact.plan();
    let sections: Vec<_> = artifact
        .sections()
        .map(|s| {
            json!({
                "kind": s.kind.map_or("unknown", |k| k.name()),
                "offset": s.offset,
                "bytes": s.bytes,
                "crc32": format!("{:08x}", s.crc32),
            })
        })
        .collect();
    let components: Vec<_> = artifact
        .components()
        .iter()
        .map(|c| json!({ "name": c.name, "stored_as": c.quantization, "parameters": c.parameters, "bytes": c.bytes }))
        .collect();
    let ports: Vec<_> = artifact
        .ports()
        .iter()
        .map(|p| {
            json!({
                "name": p.name,
                "direction": p.direction.to_string(),
                "dtype": p.dtype.to_string(),
                "rows": p.rows.to_string(),
                "columns": p.columns,
            })
        })
        .collect();
    let config: serde_json::Value = serde_json::from_str(m.source_config).unwrap_or_default();
    let mut result = json!({
        "schema": "lapidary.inspect/1",
        "model": m.model,
        "head": m.head.to_string(),
        "producer": m.producer,
        "quantization": m.quantization,
        "parameters": m.parameters,
        "target": artifact.target().iter().next().map(|t| t.name),
        "isa": m.isa.to_string(),
        "features": features(artifact),
        "kernels": artifact.kernels().iter().map(|k| k.name).collect::<Vec<_>>(),
        "max_tokens": m.max_tokens,
        "max_chunk_tokens": m.max_chunk_tokens,
        "can_decode": m.flags.contains(ManifestFlags::CAN_DECODE),
        "cannot_decode": m.cannot_decode,
        "domain_names": artifact.domain_names().iter().map(|d| d.name).collect::<Vec<_>>(),
        "runner_bytes": file.range().start,
        "artifact_bytes": file.range().end - file.range().start,
        "weights_bytes": plan.weights_bytes,
        "arena_bytes": plan.arena_bytes,
        "state_bytes": plan.state_bytes,
        "bytes_touched_per_token": m.bytes_touched_per_token,
        "macs_per_token": m.macs_per_token,
        "sections": sections,
        "components": components,
        "ports": ports,
        "config": config,
        "checked": args.check,
    });
    if let Some(object) = result.as_object_mut() {
        object.extend(details(artifact, args.tensors));
        #[cfg(feature = "npu")]
        if let (Isa::Npu, Ok(compiled)) = (m.isa, Compiled::parse(artifact)) {
            object.insert("npu".into(), inspect_npu::to_json(&compiled));
        }
    }
    println!("{result:#}");
}
