//! `lapidary inspect`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use lapidary_format::{Artifact, ManifestFlags, NO_INDEX};
use lapidary_runtime::ArtifactFile;
use serde_json::json;

use crate::cli::{Format, InspectArgs, InspectOptions};
use crate::engine;
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
    match format {
        Format::Text => print_text(file, options.check),
        Format::Json => print_json(file, options.check),
    }
    Ok(ExitCode::SUCCESS)
}

fn features<'a>(artifact: &Artifact<'a>) -> Vec<&'a str> {
    artifact.features().iter().map(|f| f.name).collect()
}

fn print_text(file: &ArtifactFile, checked: bool) {
    let artifact = file.artifact();
    let m = artifact.manifest();
    let plan = artifact.plan();
    println!("model         {} ({}, {} parameters)", m.model, m.head, count(m.parameters));
    println!("made by       {}, weights {}", m.producer, m.quantization);
    for target in artifact.target().iter() {
        println!("target        {} ({}), needs {}", target.name, m.isa, features(artifact).join(" "));
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
        "memory        weights {}, arena {}, state {}",
        bytes(plan.weights_bytes),
        bytes(plan.arena_bytes),
        bytes(plan.state_bytes)
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
    println!(
        "kernels       {}",
        artifact.kernels().iter().map(|k| k.name).collect::<Vec<_>>().join("\n              ")
    );
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
    println!("{}", modules(artifact));
    let rows = artifact
        .ports()
        .iter()
        .map(|p| vec![p.direction.to_string(), p.name.into(), format!("{} [{}, {}]", p.dtype, p.rows, p.columns)]);
    println!("{}", table(&["", "tensor", "type"], rows));
    if checked {
        println!("\nall checksums and bounds hold");
    }
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

fn print_json(file: &ArtifactFile, checked: bool) {
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
    let result = json!({
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
        "checked": checked,
    });
    println!("{result:#}");
}
