//! `lapidary compile`.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
#[cfg(feature = "npu")]
use std::time::Instant;

use anyhow::{Context, bail};
use lapidary_compiler::ir::Phase;
use lapidary_compiler::passes::{self, StopAfter};
use lapidary_compiler::plan::render;
use lapidary_format::replace_file;
#[cfg(feature = "npu")]
use lapidary_npu_isa::Machine;
use lapidary_target_cpu::CpuTarget;

use crate::cli::{CompileArgs, Format};
use crate::failure::{Unsupported, Usage};
use crate::model::{self, Options, Summary};
#[cfg(feature = "npu")]
use crate::npu;
use crate::runner;
use crate::ui::Ui;

/// Compiles a model, or stops at a phase and prints the graph.
pub fn run(args: &CompileArgs, ui: &Ui) -> anyhow::Result<ExitCode> {
    let start = Summary::start();
    let target = Target::parse(&args.target, &args.set)?;
    let quant = args.quant.as_deref().or(match target {
        Target::Cpu(_) => None,
        // An array multiplies codes.
        Target::Npu(_) => Some("hybrid"),
    });
    let options = Options::new(quant, args.budget.as_deref(), args.max_tokens, args.chunk_tokens)?;
    match args.emit.as_str() {
        "exe" | "object" | "image" if matches!(target, Target::Npu(_)) => bail!(Unsupported(format!(
            "--emit {}: wanted lapis or ir for an NPU, which runs no program of an operating system\nhint: `lapidary simulate` runs the \
             artifact",
            args.emit
        ))),
        "lapis" | "exe" | "ir" => {}
        "object" | "image" | "asm" => {
            bail!(Unsupported(format!("--emit {}: not in this build yet; wanted lapis, exe or ir", args.emit)))
        }
        other => bail!(Usage(format!("--emit: wanted lapis, exe or ir, found `{other}`"))),
    }
    if let Some(pass) = &args.why_not {
        return why_not(args, &options, pass);
    }
    if let Some(names) = &args.passes {
        return passes_alone(args, &options, names);
    }
    if let Some(stop) = &args.dump_ir {
        return dump(args, &options, stop);
    }
    if args.emit == "ir" {
        return dump(args, &options, "planned");
    }
    let target = match target {
        Target::Cpu(target) => target,
        #[cfg(feature = "npu")]
        Target::Npu(machine) => return for_npu(args, options, &machine, start, ui),
        #[cfg(not(feature = "npu"))]
        Target::Npu(name) => bail!(Unsupported(format!("--target {name}: wanted a CPU, NPUs are not in this build"))),
    };
    let triple = target.architecture.static_triple();
    let runner = match args.emit.as_str() {
        "exe" if !args.dry_run => Some(runner::find_or_build(&target, ui.is_quiet())?),
        _ => None,
    };
    let planned = model::plan(model::load(&args.model)?, options, ui)?;
    let lowered = planned.lower(&target)?;
    let name = Path::new(&planned.graph.info.name);
    let (artifact_bytes, executable_bytes) = match runner {
        _ if args.dry_run => (None, None),
        None => {
            let output = args.output.clone().unwrap_or_else(|| name.with_extension("lapis"));
            (Some(planned.write(&lowered, &output, ui)?), None)
        }
        Some(runner) => {
            let output = args.output.as_deref().unwrap_or(name);
            if output.is_dir() {
                bail!(Usage(format!(
                    "{}: wanted a file to write, found a folder\nhint: name a file with -o",
                    output.display()
                )));
            }
            let (artifact, all) = planned.write_executable(&lowered, (&runner, triple), output, ui)?;
            (Some(artifact), Some(all))
        }
    };
    let elapsed = start.elapsed();
    let summary =
        Summary { planned: &planned, target: &target, lowered: &lowered, artifact_bytes, executable_bytes, elapsed };
    match args.format {
        Format::Text => summary.print_text(),
        Format::Json => summary.print_json(),
    }
    Ok(ExitCode::SUCCESS)
}

/// What to compile for.
enum Target {
    Cpu(CpuTarget),
    #[cfg(feature = "npu")]
    Npu(Box<Machine>),
    #[cfg(not(feature = "npu"))]
    Npu(String),
}

impl Target {
    /// A CPU's name, or `npu:` and a machine with what is set of it.
    fn parse(name: &str, overrides: &[String]) -> anyhow::Result<Target> {
        let Some(machine) = name.strip_prefix("npu").filter(|rest| rest.is_empty() || rest.starts_with(':')) else {
            if !overrides.is_empty() {
                bail!(Usage(format!("--set: wanted it with a machine, --target npu:MACHINE, found --target {name}")));
            }
            return Ok(Target::Cpu(model::cpu_target(name)?));
        };
        #[cfg(feature = "npu")]
        return Ok(Target::Npu(Box::new(npu::machine(
            "--target npu:MACHINE",
            machine.trim_start_matches(':'),
            overrides,
        )?)));
        #[cfg(not(feature = "npu"))]
        return Ok(Target::Npu(format!("npu{machine}")));
    }
}

/// Compiles a model for an NPU.
#[cfg(feature = "npu")]
fn for_npu(
    args: &CompileArgs,
    options: Options,
    machine: &Machine,
    start: Instant,
    ui: &Ui,
) -> anyhow::Result<ExitCode> {
    let planned = model::plan(model::load(&args.model)?, options, ui)?;
    let lowered = npu::lower(&planned, machine, ui)?;
    let artifact_bytes = match args.dry_run {
        true => None,
        false => {
            let name = Path::new(&planned.graph.info.name);
            let output = args.output.clone().unwrap_or_else(|| name.with_extension("lapis"));
            Some(npu::write(&planned, &lowered, &output, ui)?)
        }
    };
    let prediction = npu::predict(&lowered.compiled, ui)?;
    let summary = npu::Summary {
        planned: &planned,
        lowered: &lowered,
        prediction: &prediction,
        artifact_bytes,
        elapsed: start.elapsed(),
    };
    match args.format {
        Format::Text => summary.print_text(),
        Format::Json => summary.print_json(),
    }
    Ok(ExitCode::SUCCESS)
}

fn unknown_stop(found: &str) -> anyhow::Error {
    let phases = Phase::ALL.map(Phase::name).join(", ");
    anyhow::Error::new(Usage(format!(
        "wanted a phase ({phases}) or a pass, found `{found}`\nhint: `lapidary passes` lists the passes"
    )))
}

/// The graph after a phase or pass as `.lir` text on stdout, or in `--output`; the memory plan as comments below it.
fn dump(args: &CompileArgs, options: &Options, stop: &str) -> anyhow::Result<ExitCode> {
    let stop_after = StopAfter::parse(stop).ok_or_else(|| unknown_stop(stop))?;
    let mut graph = model::load(&args.model)?.graph;
    let plan = match stop_after {
        StopAfter::Phase(Phase::Lowered) => bail!(Unsupported("--dump-ir lowered: code is not printed yet".into())),
        StopAfter::Phase(Phase::Imported) => None,
        StopAfter::Phase(_) | StopAfter::Pass(_) => {
            model::run_passes(&mut graph, options, Some(stop_after), &mut |_, _, _| ())?
        }
    };
    let mut text = graph.to_string();
    if let Some(plan) = plan {
        for line in render(&plan, &graph).lines() {
            text.push_str(&format!("; {line}\n"));
        }
    }
    match &args.output {
        Some(path) if args.emit == "ir" => write_text(path, &text)?,
        Some(_) | None => print!("{text}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The graph after some passes and no others.
fn passes_alone(args: &CompileArgs, options: &Options, names: &[String]) -> anyhow::Result<ExitCode> {
    let rows = names
        .iter()
        .map(|name| passes::by_name(name).ok_or_else(|| unknown_stop(name)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut graph = model::load(&args.model)?.graph;
    let context = model::context(&graph, options)?;
    for row in rows {
        passes::run_pass(row, &mut graph, &context)?;
    }
    print!("{graph}");
    Ok(ExitCode::SUCCESS)
}

/// Writes text under another name and renames it.
fn write_text(path: &Path, text: &str) -> anyhow::Result<()> {
    model::create_folder_of(path)?;
    let written: io::Result<()> = replace_file(path, |file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("{}: cannot be written", path.display()))
}

/// Where a pass fired, and why it did not where it might have.
fn why_not(args: &CompileArgs, options: &Options, pass: &str) -> anyhow::Result<ExitCode> {
    let row = passes::by_name(pass).ok_or_else(|| unknown_stop(pass))?;
    let mut graph = model::load(&args.model)?.graph;
    let stop = StopAfter::Pass(row.name);
    model::run_passes(&mut graph, options, Some(stop), &mut |ran, _, report| {
        if ran.name == row.name {
            for fired in &report.fired {
                println!("fired  {}: {}", fired.label, fired.what);
            }
            for missed in &report.missed {
                println!("not    {}: {}", missed.label, missed.reason);
            }
            if report.fired.is_empty() && report.missed.is_empty() {
                println!("{pass}: nothing in this graph that it could change");
            }
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
