//! One thin file per command.

#[cfg(feature = "npu")]
mod asm;
mod bench;
#[cfg(feature = "compiler")]
mod calibrate;
#[cfg(feature = "compiler")]
mod compare;
#[cfg(feature = "compiler")]
mod compile;
#[cfg(feature = "compiler")]
mod demo;
#[cfg(feature = "npu")]
mod demo_npu;
#[cfg(feature = "compiler")]
mod disasm;
mod inside;
mod inspect;
#[cfg(feature = "npu")]
mod inspect_npu;
mod kernels;
mod kernels_bench;
#[cfg(feature = "compiler")]
mod passes;
#[cfg(feature = "profile")]
mod profile;
mod run;
#[cfg(feature = "npu")]
mod simulate;
#[cfg(feature = "compiler")]
mod targets;

use std::process::ExitCode;

use crate::cli::{Command, KernelsCommand};
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
        #[cfg(feature = "profile")]
        Command::Profile(args) => profile::run(&args, ui),
        Command::Inspect(args) => inspect::run(&args, ui),
        #[cfg(feature = "compiler")]
        Command::Disasm(args) => disasm::run(&args),
        #[cfg(feature = "npu")]
        Command::Asm(args) => asm::run(&args),
        #[cfg(feature = "npu")]
        Command::Simulate(args) => simulate::run(&args, ui),
        #[cfg(feature = "compiler")]
        Command::Calibrate(args) => calibrate::run(&args, ui),
        #[cfg(feature = "compiler")]
        Command::Compare(args) => compare::run(&args, ui),
        #[cfg(feature = "compiler")]
        Command::Targets(args) => targets::run(&args),
        Command::Kernels(args) => match args.command {
            Some(KernelsCommand::Bench(args)) => kernels_bench::run(&args),
            None => kernels::run(&args.list),
        },
        #[cfg(feature = "compiler")]
        Command::Passes(args) => passes::run(&args),
    }
}
