//! `lapidary simulate`: assembled programs, matrix multiplications, and models compiled for an NPU.

mod gemm;
mod model;
mod print;
mod source;
mod visits;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use lapidary_format::replace_file;
use lapidary_npu_isa::verify::verify;
use lapidary_npu_isa::{Machine, Program};
use lapidary_simulator::observe::Observer;
use lapidary_simulator::report::timeline::Timeline;
use lapidary_simulator::report::trace::ChromeTrace;
use lapidary_simulator::report::{Report, csv, html, json, text};
use lapidary_simulator::{Options, Run, Simulator};

use crate::cli::{Format, ModelRun, SimulateArgs};
use crate::failure::Usage;
use crate::model::create_folder_of;
use crate::npu;
use crate::ui::Ui;

/// Runs a program, a model, a matrix multiplication, or a list of them.
pub fn run(args: &SimulateArgs, ui: &Ui) -> anyhow::Result<ExitCode> {
    let options = Options { values: !args.timing_only, ..Options::default() };
    match (&args.artifact, &args.gemm, &args.gemm_csv) {
        (Some(name), None, None) => {
            let program = if source::is_model(name) { None } else { npu::program(Path::new(name))? };
            match program {
                Some(program) => assembled(args, name, &program, options)?,
                None => model::run(args, name, options, ui)?,
            }
        }
        (None, Some(shape), None) => gemm::one(args, *shape, &source::machine(args)?, options)?,
        (None, None, Some(path)) => gemm::list(args, path, &source::machine(args)?, options, ui)?,
        _ => bail!(Usage(
            "simulate: wanted one of an artifact, a program, a model, --gemm and --gemm-csv, found none or several"
                .into()
        )),
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs an assembled program.
fn assembled(args: &SimulateArgs, name: &str, program: &Program, options: Options) -> anyhow::Result<()> {
    if let Some(option) = first_option(&args.model) {
        bail!(Usage(format!(
            "{option}: wanted an artifact or a model to run it with, found {name}, an assembled program"
        )));
    }
    let machine = source::machine(args)?;
    verify(program, &machine).with_context(|| name.to_string())?;
    let run = observed(args, program, &machine, name, || Simulator::new(program, &machine, options))?;
    print_report(args, &run.report);
    Ok(())
}

/// An option that only models have.
fn first_option(run: &ModelRun) -> Option<&'static str> {
    [
        ("--prompt", run.prompt.is_some()),
        ("--prompts", run.prompts.is_some()),
        ("--tokens", run.tokens.is_some()),
        ("--input", run.input.is_some()),
        ("--output", run.output.is_some()),
        ("--max-new", run.max_new.is_some()),
        ("--ignore-eos", run.ignore_eos),
        ("--routing", run.routing.is_some()),
        ("--observe", run.observe.is_some()),
        ("--quant", run.quant.is_some()),
        ("--max-tokens", run.max_tokens.is_some()),
        ("--chunk-tokens", run.chunk_tokens.is_some()),
    ]
    .into_iter()
    .find_map(|(name, is_there)| is_there.then_some(name))
}

/// Runs what `simulator` makes, with the trace and the page that were asked for.
fn observed<'p>(
    args: &SimulateArgs,
    program: &'p Program,
    machine: &'p Machine,
    title: &str,
    simulator: impl FnOnce() -> Result<Simulator<'p>, lapidary_simulator::SimError>,
) -> anyhow::Result<Run> {
    let place = || title.to_string();
    let mut timeline = args.report.is_some().then(Timeline::default);
    let run = match &args.trace {
        None => watched(simulator().with_context(place)?, &mut timeline).with_context(place)?,
        Some(path) => {
            let mut run = None;
            write(path, |out| {
                let mut trace = ChromeTrace::new(out, program, machine);
                run = Some(watched(simulator()?, &mut (&mut trace, &mut timeline))?);
                trace.finish()?;
                anyhow::Ok(())
            })?;
            run.context("a run")?
        }
    };
    if let (Some(path), Some(timeline)) = (&args.report, &timeline) {
        let page = html::page(&run.report, timeline, title)?;
        write(path, |out| Ok(out.write_all(page.as_bytes())?))?;
    }
    if let Some(path) = &args.csv {
        write(path, |out| Ok(out.write_all(csv::by_class(&run.report).as_bytes())?))?;
    }
    Ok(run)
}

fn watched(simulator: Simulator<'_>, observer: &mut impl Observer) -> Result<Run, lapidary_simulator::SimError> {
    simulator.run_observed(observer)
}

/// A file that appears under its name when it is complete.
fn write(path: &Path, content: impl FnOnce(&mut BufWriter<&mut File>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    create_folder_of(path)?;
    let written = replace_file(path, |file| {
        let mut out = BufWriter::new(file);
        content(&mut out)?;
        Ok::<(), anyhow::Error>(out.flush()?)
    });
    written.with_context(|| format!("{}: cannot be written", path.display()))
}

fn print_report(args: &SimulateArgs, report: &Report) {
    match args.format {
        Format::Json => println!("{:#}", json::to_json(report)),
        Format::Text => print!("{}", text::summary(report)),
    }
}
