//! `lapidary disasm`.

use std::fmt::Write;
use std::process::ExitCode;

#[cfg(feature = "npu")]
use anyhow::Context;
use anyhow::bail;
use lapidary_format::{Artifact, Isa};
#[cfg(feature = "npu")]
use lapidary_npu_isa::{Program, disasm::disassemble};
use lapidary_runtime::ArtifactFile;
use lapidary_target_cpu::disasm::{Code, Function, Line, Step};
use serde_json::json;

use crate::cli::{DisasmArgs, Format};
use crate::failure::{Unsupported, Usage};
#[cfg(feature = "npu")]
use crate::npu;
use crate::ui;

/// Columns of the instructions' text.
const TEXT_WIDTH: usize = 40;

/// Shows an artifact's code.
pub fn run(args: &DisasmArgs) -> anyhow::Result<ExitCode> {
    #[cfg(feature = "npu")]
    if let Some(program) = npu::program(&args.artifact)? {
        return npu_program(args, &program);
    }
    let file = ArtifactFile::open(&args.artifact)?;
    let artifact = file.artifact();
    #[cfg(feature = "npu")]
    if artifact.manifest().isa == Isa::Npu {
        return npu_artifact(args, artifact);
    }
    let Some(code) = Code::of(artifact) else {
        bail!(Unsupported(format!(
            "{}: wanted code of a CPU (x86-64, aarch64), found isa {}, which this build does not read",
            args.artifact.display(),
            artifact.manifest().isa
        )));
    };
    let functions = chosen(args, artifact, &code)?;
    match args.format {
        Format::Text => print_text(artifact, &functions),
        Format::Json => print_json(artifact, &functions),
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows an NPU program as text that assembles to the same bytes.
#[cfg(feature = "npu")]
fn npu_program(args: &DisasmArgs, program: &Program) -> anyhow::Result<ExitCode> {
    if args.entry.is_some() || args.step.is_some() || args.format == Format::Json {
        bail!(Usage("--entry, --step, --format: wanted none of them for an NPU program, found one".into()));
    }
    print!("{}", disassemble(program, true));
    Ok(ExitCode::SUCCESS)
}

/// Shows the programs of an artifact for an NPU; one of them alone assembles to the same bytes.
#[cfg(feature = "npu")]
fn npu_artifact(args: &DisasmArgs, artifact: &Artifact<'_>) -> anyhow::Result<ExitCode> {
    if args.step.is_some() || args.format == Format::Json {
        bail!(Usage("--step, --format: wanted neither of them for an NPU's programs, found one\nhint: --entry".into()));
    }
    let compiled = npu::Compiled::parse(artifact).with_context(|| args.artifact.display().to_string())?;
    let names: Vec<&str> = compiled.programs().map(|(name, _)| name).collect();
    if let Some(entry) = args.entry.as_deref().filter(|entry| !names.contains(entry)) {
        bail!(Usage(format!("--entry: wanted one of {}, found `{entry}`", names.join(", "))));
    }
    for (name, program) in compiled.programs().filter(|(name, _)| args.entry.as_ref().is_none_or(|e| e == name)) {
        println!("; {} for npu:{}: {name}", compiled.model, compiled.machine.name());
        print!("{}", disassemble(program, true));
    }
    Ok(ExitCode::SUCCESS)
}

/// The functions that were asked for.
fn chosen<'c>(args: &DisasmArgs, artifact: &Artifact<'_>, code: &'c Code<'c>) -> anyhow::Result<Vec<Function<'c>>> {
    // The twin of an entry point for profiling runs the same steps, and is a function of its own.
    let of_entry = |step: &Step<'_>, entry: &String| step.entry == entry || step.name == entry;
    let has_text = |step: &Step<'_>, text: &String| step.name.contains(text) || step.op.contains(text);
    let all = code.functions();
    if let Some(entry) = &args.entry
        && !artifact.entries().iter().any(|e| e.name == entry)
    {
        let names: Vec<_> = artifact.entries().iter().map(|e| e.name).collect();
        bail!(Usage(format!("--entry: wanted one of {}, found `{entry}`", names.join(", "))));
    }
    let wanted = |step: &Step<'_>| {
        args.entry.as_ref().is_none_or(|entry| of_entry(step, entry))
            && args.step.as_ref().is_none_or(|text| has_text(step, text))
    };
    let is_all = args.entry.is_none() && args.step.is_none();
    let chosen: Vec<_> = all.into_iter().filter(|f| is_all || f.steps().iter().any(wanted)).collect();
    if chosen.is_empty() && !is_all {
        bail!(Usage(
            "--step: wanted a part of a function's name or op, found in none\nhint: `lapidary inspect --format json` lists all steps"
                .into()
        ));
    }
    Ok(chosen)
}

fn print_text(artifact: &Artifact<'_>, functions: &[Function<'_>]) {
    let m = artifact.manifest();
    let target = artifact.target().map_or("an unnamed target", |t| t.name);
    // Ten bytes of x86-64, which few instructions exceed.
    let bytes_width = if m.isa == Isa::X86_64 { 29 } else { 11 };
    let bytes: u64 = functions.iter().map(Function::bytes).sum();
    println!("{} for {target}: {}, {} functions, {bytes} bytes of code", m.model, m.isa, functions.len());
    for function in functions {
        if ui::is_out_closed() {
            break;
        }
        let mut text = String::from("\n");
        let size = format!("offset {:#x}, {} bytes", function.offset(), function.bytes());
        if function.steps().is_empty() {
            line(&mut text, format_args!("(of no step)  {size}"));
        }
        for step in function.steps() {
            let op = if step.op.is_empty() { "calls others" } else { step.op };
            line(&mut text, format_args!("{}  {op}  {size}", step.name));
        }
        for one in function.lines() {
            let note = one.note.as_ref().map(|note| format!("; {note}")).unwrap_or_default();
            let row =
                format!("{:>8x}  {:<bytes_width$}  {:<TEXT_WIDTH$}  {note}", one.offset, hex(one.bytes, " "), one.text);
            line(&mut text, format_args!("{}", row.trim_end()));
        }
        print!("{text}");
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("writing to a string");
}

fn hex(bytes: &[u8], between: &str) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(between)
}

/// One function at a time, so that code of any size takes little memory.
fn print_json(artifact: &Artifact<'_>, functions: &[Function<'_>]) {
    let m = artifact.manifest();
    let head = json!({
        "schema": "lapidary.disasm/1",
        "model": m.model,
        "target": artifact.target().map(|t| t.name),
        "isa": m.isa.to_string(),
        "code_bytes": artifact.code().len(),
        "kernels": artifact.kernels().iter().map(|k| k.name).collect::<Vec<_>>(),
    })
    .to_string();
    print!("{},\"functions\":[", head.trim_end_matches('}'));
    for (i, function) in functions.iter().enumerate() {
        if ui::is_out_closed() {
            break;
        }
        let comma = if i == 0 { "" } else { "," };
        print!("{comma}\n{}", function_json(function));
    }
    println!("\n]}}");
}

fn function_json(function: &Function<'_>) -> serde_json::Value {
    let step = |step: &Step<'_>| json!({ "name": step.name, "op": step.op, "entry": step.entry });
    let line = |line: &Line<'_>| {
        let mut row = json!({ "offset": line.offset, "bytes": hex(line.bytes, ""), "text": line.text });
        if let Some(note) = &line.note {
            row["note"] = json!({ "kind": note.kind(), "text": note.to_string() });
        }
        row
    };
    json!({
        "steps": function.steps().iter().map(step).collect::<Vec<_>>(),
        "offset": function.offset(),
        "bytes": function.bytes(),
        "lines": function.lines().iter().map(line).collect::<Vec<_>>(),
    })
}
