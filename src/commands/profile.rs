//! `lapidary profile`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use lapidary_format::replace_file;
use lapidary_runtime::Tokenizer;

use crate::cli::{Format, ProfileArgs};
use crate::engine;
use crate::failure::Usage;
use crate::profile::{self, Measured, Phase, Workload};
use crate::tensors;
use crate::ui::{Ui, table};

/// Steps that the text form lists.
const LONGEST_STEPS: usize = 10;

/// Measures, then prints and writes what was asked for.
pub fn run(args: &ProfileArgs, ui: &Ui) -> anyhow::Result<ExitCode> {
    if args.reps == 0 {
        bail!(Usage("--reps: wanted at least 1, found 0".into()));
    }
    let threads = engine::threads(args.threads);
    let mut session = engine::open(engine::artifact(&args.artifact)?, threads)?;
    let model = session.model().clone();
    let ids = match (args.prompt.as_ref().or(args.text.as_ref()), &args.input) {
        (Some(text), _) => Tokenizer::of(model.artifact())?.encode(text)?,
        (None, Some(input)) => read_ids(input)?,
        (None, None) => bail!(Usage("profile: wanted --prompt, --text or --input, found none of them".into())),
    };
    let spinner = ui.spinner("profiling");
    let workload = Workload { ids, max_new: args.max_new, reps: args.reps };
    let measured = profile::measure(&mut session, threads, &workload)?;
    spinner.finish_and_clear();
    if let Some(path) = &args.trace {
        write(path, |out| profile::trace::write(out, model.artifact(), &measured.timeline))?;
    }
    if let Some(path) = &args.report {
        let page = profile::report::render(model.artifact(), &measured)?;
        write(path, |out| out.write_all(page.as_bytes()))?;
    }
    match args.format {
        Format::Json => println!("{:#}", serde_json::to_value(&measured.profile)?),
        Format::Text => print_text(&measured),
    }
    Ok(ExitCode::SUCCESS)
}

/// One sequence of token ids from `ids=@FILE`.
fn read_ids(input: &str) -> anyhow::Result<Vec<u32>> {
    let Some(("ids", file)) = input.split_once("=@") else {
        bail!(Usage(format!("--input: wanted ids=@FILE.npy, found `{input}`")));
    };
    tensors::read_one(Path::new(file))
}

/// A file that appears under its name when it is complete.
fn write(path: &Path, content: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>) -> anyhow::Result<()> {
    let place = || format!("{}: cannot be written", path.display());
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(place)?;
    let written = replace_file(path, |file| {
        let mut out = BufWriter::new(file);
        content(&mut out)?;
        out.flush()
    });
    written.with_context(place)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn print_text(measured: &Measured) {
    let profile = &measured.profile;
    println!(
        "{} on {}, {} threads, medians of {} rounds",
        profile.model, profile.target, profile.threads, profile.reps
    );
    for phase in &profile.phases {
        print_phase(phase);
    }
    println!("\n{:.2} modules per token and layer", profile.routing.modules_per_token);
}

fn print_phase(phase: &Phase) {
    let tokens = phase.tokens as f64;
    println!(
        "\n{}: {} tokens in {} calls, {:.4} ms per token (whole calls: {:.4} observed, {:.4} not observed)\n",
        phase.name,
        phase.tokens,
        phase.calls,
        phase.steps_ms / tokens,
        phase.calls_ms / tokens,
        phase.plain_ms / tokens
    );
    let us = |ms: f64| format!("{:.2}", ms * 1e3 / tokens);
    let rows = phase.components.iter().map(|g| vec![g.name.clone(), us(g.ms), percent(g.share)]);
    println!("{}\n", table(&["component", ">µs/token", ">share"], rows));
    let rows = phase.ops.iter().map(|g| vec![g.name.clone(), g.steps.to_string(), us(g.ms), percent(g.share)]);
    println!("{}\n", table(&["op", ">steps", ">µs/token", ">share"], rows));
    let mut longest: Vec<_> = phase.steps.iter().collect();
    longest.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    let rows =
        longest.iter().take(LONGEST_STEPS).map(|s| vec![s.label.clone(), s.op.clone(), us(s.ms), percent(s.share)]);
    println!("{}\n", table(&["longest steps", "op", ">µs/token", ">share"], rows));
    if !phase.modules.is_empty() {
        let mut longest: Vec<_> = phase.modules.iter().collect();
        longest.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        let rows = longest.iter().take(LONGEST_STEPS).map(|m| {
            let per_visit = if m.tokens > 0 { format!("{:.2}", m.ms * 1e3 / m.tokens as f64) } else { String::new() };
            vec![format!("layer {} module {}", m.layer, m.module), m.domain.clone(), m.tokens.to_string(), per_visit]
        });
        println!("{}\n", table(&["longest modules", "domain", ">visits", ">µs/visit"], rows));
    }
    let r = &phase.router;
    println!(
        "routing       {} of the time: token router {} µs, scores, selection, grouping and memory {} µs, query projection \
         {} µs (its columns of a merged product) per token",
        percent(r.share),
        us(r.token_router_ms),
        us(r.scar_ms),
        us(r.scar_query_ms)
    );
}
