//! One thin file per command.

mod bench;
#[cfg(feature = "compiler")]
mod compare;
#[cfg(feature = "compiler")]
mod compile;
#[cfg(feature = "compiler")]
mod demo;
mod inside;
mod inspect;
mod kernels;
#[cfg(feature = "compiler")]
mod passes;
mod run;
#[cfg(feature = "compiler")]
mod targets;

use std::process::ExitCode;

use crate::cli::Command;
use crate::engine;
use crate::ui::Ui;

pub use inside::run as run_inside;

/// Runs a command.
pub fn run(command: Command, ui: &Ui) -> anyhow::Result<ExitCode> {
    match command {
        #[cfg(feature = "compiler")]
        Command::Demo(args) => demo::run(&args, ui),
        #[cfg(feature = "compiler")]
        Command::Compile(args) => compile::run(&args, ui),
        Command::Run(args) => run::run(engine::artifact(&args.artifact)?, &args.options, args.threads, ui),
        Command::Bench(args) => {
            let artifacts = args.artifacts.iter().map(|path| engine::artifact(path)).collect::<Result<_, _>>()?;
            bench::run(artifacts, &args.options, &args.threads, args.format, ui)
        }
        Command::Inspect(args) => inspect::run(&args, ui),
        #[cfg(feature = "compiler")]
        Command::Compare(args) => compare::run(&args, ui),
        #[cfg(feature = "compiler")]
        Command::Targets(args) => targets::run(&args),
        Command::Kernels(args) => kernels::run(&args),
        #[cfg(feature = "compiler")]
        Command::Passes(args) => passes::run(&args),
    }
}
