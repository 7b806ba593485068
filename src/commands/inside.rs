//! A self-contained executable: `run`, `bench` and `inspect` for the model inside.

use std::process::ExitCode;

use anyhow::bail;
use lapidary_format::{Head, Manifest};

use crate::cli::Executable;
use crate::commands::{bench, inspect};
use crate::executable::Carrier;
use crate::failure::{MISUSED, Usage};
use crate::ui::{Ui, count};

/// Does what the command line asks of the model that `carrier` carries.
pub fn run(carrier: Carrier, args: &Executable, ui: &Ui) -> anyhow::Result<ExitCode> {
    let artifact = carrier.open()?;
    if args.info {
        return inspect::show(&artifact, &args.inspect_options, args.format, ui);
    }
    if args.bench {
        return bench::run(vec![artifact], &args.bench_options, &args.threads, args.format, ui);
    }
    let run = &args.run;
    if run.prompt.is_none() && run.text.is_none() && run.input.is_none() {
        let target = artifact.artifact().target().iter().next().map_or("this CPU", |target| target.name);
        eprint!("{}", usage(artifact.artifact().manifest(), target));
        return Ok(ExitCode::from(MISUSED));
    }
    match *args.threads {
        [threads] => super::run::run(artifact, run, threads, ui),
        _ => bail!(Usage("--threads: wanted one number without --bench, found several".into())),
    }
}

/// What to do with this program, in a few lines.
fn usage(manifest: &Manifest<'_>, target: &str) -> String {
    let program = std::env::args().next().unwrap_or_default();
    let (does, example) = match manifest.head {
        Head::CausalLm => ("generates text", "--prompt TEXT [--max-new N] [--temperature X] [--threads N]"),
        Head::SequenceClassification => ("classifies text", "--text TEXT [--threads N]"),
        Head::Embedding => ("embeds text", "--text TEXT [--threads N]"),
    };
    format!(
        "{} ({} parameters) for {target}, {does}\n\
         usage: {program} {example}\n\
        \x20      {program} --bench [--tokens 1,128] [--threads 1,4]\n\
        \x20      {program} --info\n\
        \x20      {program} --help\n",
        manifest.model,
        count(manifest.parameters),
    )
}
