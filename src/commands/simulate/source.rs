//! Where the model that is simulated comes from.

use std::path::Path;

use anyhow::{Context, bail};
use lapidary_format::Isa;
use lapidary_npu_isa::Machine;
use lapidary_runtime::ArtifactFile;

use crate::cli::SimulateArgs;
use crate::engine;
use crate::failure::{Unsupported, Usage};
use crate::model::{self, Options, Planned};
use crate::npu::{self, Compiled, Lowered, Session};
use crate::ui::Ui;

/// The machine of programs that name none.
pub const DEFAULT_MACHINE: &str = "edge-32";

/// A compiled model, and where its weights are.
pub struct Source {
    /// The programs, for the machine that they will run on.
    pub compiled: Compiled,
    weights: Weights,
}

enum Weights {
    /// In an artifact.
    File(Box<ArtifactFile>),
    /// In the model that was compiled on the way.
    Model(Box<(Planned, Lowered)>),
}

/// Whether a name is that of a model and not of a file that was compiled.
pub fn is_model(name: &str) -> bool {
    let path = Path::new(name);
    name.starts_with("preset:") || path.is_dir() || path.extension().is_some_and(|e| e == "lir")
}

/// The machine that stands on the command line, otherwise the default one.
pub fn machine(args: &SimulateArgs) -> anyhow::Result<Machine> {
    npu::machine("--machine", args.machine.as_deref().unwrap_or(DEFAULT_MACHINE), &args.set)
}

impl Source {
    /// From an artifact, or compiled in memory from a model.
    pub fn open(args: &SimulateArgs, name: &str, ui: &Ui) -> anyhow::Result<Source> {
        if is_model(name) {
            return Self::compile(args, name, ui);
        }
        let run = &args.model;
        if run.quant.is_some() || run.max_tokens.is_some() || run.chunk_tokens.is_some() {
            bail!(Usage(format!(
                "--quant, --max-tokens, --chunk-tokens: wanted them with a model, which is compiled on the way, found {name}\nhint: they \
                 are options of `lapidary compile`"
            )));
        }
        Self::artifact(args, Path::new(name), ui)
    }

    fn artifact(args: &SimulateArgs, path: &Path, ui: &Ui) -> anyhow::Result<Source> {
        let place = || path.display().to_string();
        let file = engine::artifact(path)?;
        if file.artifact().manifest().isa != Isa::Npu {
            bail!(Unsupported(format!(
                "{}: wanted a program or an artifact for the NPU, found an artifact for a CPU\nhint: `lapidary bench` and `lapidary \
                 profile` time it here; `lapidary compile … --target npu:{DEFAULT_MACHINE}` compiles it for an NPU",
                path.display()
            )));
        }
        let mut compiled = Compiled::parse(file.artifact()).with_context(place)?;
        let mut machine = match &args.machine {
            Some(name) => npu::machine("--machine", name, &[])?,
            None => compiled.machine.clone(),
        };
        npu::set(&mut machine, &args.set)?;
        let spinner = ui.spinner("verifying");
        compiled.move_to(machine).with_context(place)?;
        spinner.finish_and_clear();
        Ok(Source { compiled, weights: Weights::File(Box::new(file)) })
    }

    fn compile(args: &SimulateArgs, name: &str, ui: &Ui) -> anyhow::Result<Source> {
        let run = &args.model;
        let options =
            Options::new(Some(run.quant.as_deref().unwrap_or("hybrid")), None, run.max_tokens, run.chunk_tokens)?;
        let planned = model::plan(model::load(name)?, options, ui)?;
        let lowered = npu::lower(&planned, &machine(args)?, ui)?;
        Ok(Source { compiled: lowered.compiled.clone(), weights: Weights::Model(Box::new((planned, lowered))) })
    }

    /// Writes the weights to the DRAM of a session.
    pub fn load(&self, session: &mut Session<'_>, ui: &Ui) -> anyhow::Result<()> {
        session.load(|out| match &self.weights {
            Weights::File(file) => Ok(out.write_all(file.artifact().weights())?),
            Weights::Model(model) => npu::write_weights(&model.0, &model.1, out, ui),
        })
    }
}
