//! `lapidary demo`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use lapidary_runtime::{Model, Session, Tokenizer, greedy};

use crate::cli::DemoArgs;
use crate::engine;
use crate::model::{self, Options, Summary};
use crate::ui::{Ui, bytes, table};

/// The bundled model.
const MODEL: &str = "tests/models/gem-mini";
/// Prompts that belong to different domains.
const PROMPTS: &[&str] = &["The patient should", "The Board of Governors", "Les fonctions sont"];

/// One token and where it went.
struct Visit {
    text: String,
    generated: bool,
    domain: usize,
    probability: f32,
    modules: Vec<Vec<usize>>,
}

/// Compiles the bundled model, generates, shows the routing.
pub fn run(args: &DemoArgs, ui: &Ui) -> anyhow::Result<ExitCode> {
    let folder = bundled_model()?;
    let start = Summary::start();
    println!("1. compile {MODEL} for this machine\n");
    let options = Options::new("native", "none", None, None)?;
    let planned = model::plan(model::load(&folder.to_string_lossy())?, options, ui)?;
    let lowered = planned.lower()?;
    let temporary = tempfile::tempdir().context("a temporary folder cannot be created")?;
    let artifact = temporary.path().join("gem-mini.lapis");
    let size = planned.write(&lowered, &artifact, ui)?;
    Summary {
        planned: &planned,
        lowered: &lowered,
        artifact_bytes: Some(size),
        executable_bytes: None,
        elapsed: start.elapsed(),
    }
    .print_text();

    let opening = Instant::now();
    let opened = Arc::new(Model::open(&artifact)?);
    let load_ms = opening.elapsed().as_secs_f64() * 1e3;
    let domains: Vec<String> = opened.artifact().domain_names().iter().map(|d| d.name.to_string()).collect();
    let tokenizer = Tokenizer::of(opened.artifact())?;
    let mut session = engine::session(Arc::clone(&opened), args.threads)?;
    println!("\n2. generate, greedily (loaded in {load_ms:.1} ms)");
    let prompts: Vec<&str> = match &args.prompt {
        Some(prompt) => vec![prompt],
        None => PROMPTS.to_vec(),
    };
    for prompt in prompts {
        let begin = Instant::now();
        let (visits, decoding) = generate(&mut session, &tokenizer, prompt, args.max_new)?;
        let text: String = visits.iter().filter(|v| v.generated).map(|v| v.text.as_str()).collect();
        println!("\n   {prompt}\u{2502}{}\n", text.replace('\n', "\n   "));
        show(&visits, &domains);
        println!(
            "   {} tokens in {:.1} ms; decoding {:.0} tokens/s",
            visits.len(),
            begin.elapsed().as_secs_f64() * 1e3,
            decoding
        );
    }
    let plan = opened.artifact().plan();
    println!(
        "\nmemory: weights {} mapped from the file, arena {}, state {}",
        bytes(plan.weights_bytes),
        bytes(plan.arena_bytes),
        bytes(plan.state_bytes)
    );
    Ok(ExitCode::SUCCESS)
}

/// The bundled model's folder: from here, or from where the command was built.
fn bundled_model() -> anyhow::Result<PathBuf> {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/gem-mini");
    let places = [Path::new(MODEL), Path::new(built)];
    match places.into_iter().find(|p| p.join("config.json").is_file()) {
        Some(folder) => Ok(folder.to_path_buf()),
        None => {
            bail!("demo: wanted the bundled model in {MODEL}, found none\nhint: run it from a clone of the project")
        }
    }
}

/// Greedy generation, token by token, so that every token's routing can be shown; also decoded tokens per second.
fn generate(
    session: &mut Session,
    tokenizer: &Tokenizer,
    prompt: &str,
    max_new: usize,
) -> anyhow::Result<(Vec<Visit>, f64)> {
    let layers = session.model().manifest().num_layers as usize;
    let limit = session.model().manifest().max_tokens as usize;
    let ids = tokenizer.encode(prompt)?;
    let mut stream = tokenizer.stream();
    let mut visits = Vec::new();
    session.reset();
    session.prefill(&ids)?;
    // A prompt longer than one call shows the routing of its last call.
    let rows = session.output("domains").map_or(0, |v| v.rows());
    for (row, id) in ids[ids.len() - rows..].iter().enumerate() {
        visits.push(visit(session, row, layers, stream.push(*id)?, false)?);
    }
    let mut decoded = 0;
    let begin = Instant::now();
    for _ in 0..max_new.min(limit - ids.len().min(limit)) {
        let token = greedy(session.logits().context("the model has no logits")?);
        if tokenizer.end_token() == Some(token) {
            break;
        }
        session.decode(token)?;
        decoded += 1;
        visits.push(visit(session, 0, layers, stream.push(token)?, true)?);
    }
    Ok((visits, f64::from(decoded) / begin.elapsed().as_secs_f64()))
}

/// Routing of one row of the last call.
fn visit(session: &Session, row: usize, layers: usize, text: String, generated: bool) -> anyhow::Result<Visit> {
    let domains = session.output("domains").and_then(|v| v.row_f32(row)).context("no output named domains")?;
    let best = domains.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).context("no domains")?;
    let modules = (0..layers)
        .map(|layer| {
            let name = format!("modules.{layer}");
            let view = session.output(&name).with_context(|| format!("no output named {name}"))?;
            let mask = view.row_u8(row).with_context(|| format!("{name}: wanted u8"))?;
            Ok(mask.iter().enumerate().filter(|(_, m)| **m != 0).map(|(c, _)| c).collect())
        })
        .collect::<anyhow::Result<_>>()?;
    Ok(Visit { text, generated, domain: best.0, probability: *best.1, modules })
}

/// One line per token: domain of the token router, modules per layer.
fn show(visits: &[Visit], domains: &[String]) {
    let layers = visits.first().map_or(0, |v| v.modules.len());
    let mut header = vec!["  token".to_string(), "domain".into(), ">prob.".into()];
    header.extend((0..layers).map(|l| format!("layer {l}")));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let rows = visits.iter().map(|v| {
        let mark = if v.generated { "+" } else { " " };
        let mut row = vec![
            format!(" {mark} {:?}", v.text),
            domains.get(v.domain).cloned().unwrap_or_default(),
            format!("{:.2}", v.probability),
        ];
        row.extend(v.modules.iter().map(|set| {
            let names: Vec<String> = set.iter().map(usize::to_string).collect();
            if names.is_empty() { "-".into() } else { names.join(" ") }
        }));
        row
    });
    println!("{}", table(&header, rows));
    let visited: usize = visits.iter().flat_map(|v| &v.modules).map(Vec::len).sum();
    let slots = visits.len() * layers;
    if slots > 0 {
        println!("   {:.2} modules per token and layer", visited as f64 / slots as f64);
    }
}
