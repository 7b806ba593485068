//! One thin file per command.

mod bench;
mod compare;
#[cfg(feature = "compiler")]
mod compile;
#[cfg(feature = "compiler")]
mod demo;
#[cfg(feature = "compiler")]
mod disasm;
mod inspect;
mod kernels;
mod kernels_bench;
#[cfg(feature = "compiler")]
mod passes;
#[cfg(feature = "profile")]
mod profile;
mod run;
#[cfg(feature = "compiler")]
mod targets;

use std::process::ExitCode;

use crate::cli::{Command, KernelsCommand};
use crate::ui::Ui;

/// Runs a command.
pub fn run(command: Command, ui: &Ui) -> anyhow::Result<ExitCode> {
    match command {
        #[cfg(feature = "compiler")]
        Command::Demo(args) => demo::run(&args, ui),
        #[cfg(feature = "compiler")]
        Command::Compile(args) => compile::run(&args, ui),
        Command::Run(args) => run::run(&args, ui),
        Command::Bench(args) => bench::run(&args, ui),
        #[cfg(feature = "profile")]
        Command::Profile(args) => profile::run(&args, ui),
        Command::Inspect(args) => inspect::run(&args, ui),
        #[cfg(feature = "compiler")]
        Command::Disasm(args) => disasm::run(&args),
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
