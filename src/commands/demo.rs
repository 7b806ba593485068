//! `lapidary demo`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use lapidary_runtime::{Model, Session, Tokenizer, greedy};

use crate::cli::DemoArgs;
#[cfg(feature = "npu")]
use crate::commands::demo_npu;
use crate::engine;
use crate::model::{self, Options, Summary};
use crate::routing::{Recording, Visit, visits};
use crate::ui::{Ui, bytes, table};

/// The bundled model.
const MODEL: &str = "tests/models/gem-mini";
/// Prompts that belong to different domains.
const PROMPTS: &[&str] = &["The patient should", "The Board of Governors", "Les fonctions sont"];

/// One token as it is shown.
struct Shown {
    text: String,
    generated: bool,
    visit: Visit,
}

/// Compiles the bundled model, generates, shows the routing.
pub fn run(args: &DemoArgs, ui: &Ui) -> anyhow::Result<ExitCode> {
    let folder = bundled_model()?;
    let start = Summary::start();
    println!("1. compile {MODEL} for this machine\n");
    let options = Options::new(None, None, None, None)?;
    let target = model::cpu_target("native")?;
    let imported = Arc::new(model::load(&folder.to_string_lossy())?);
    let planned = model::plan(Arc::clone(&imported), options, ui)?;
    let lowered = planned.lower(&target)?;
    let temporary = tempfile::tempdir().context("a temporary folder cannot be created")?;
    let artifact = temporary.path().join("gem-mini.lapis");
    let size = planned.write(&lowered, &artifact, ui)?;
    Summary {
        planned: &planned,
        target: &target,
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
    for prompt in &prompts {
        let begin = Instant::now();
        let (tokens, decoding) = generate(&mut session, &tokenizer, prompt, args.max_new)?;
        let text: String = tokens.iter().filter(|t| t.generated).map(|t| t.text.as_str()).collect();
        println!("\n   {prompt}\u{2502}{}\n", text.replace('\n', "\n   "));
        show(&tokens, &domains);
        println!(
            "   {} tokens in {:.1} ms; decoding {:.0} tokens/s",
            tokens.len(),
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
    #[cfg(feature = "npu")]
    if let Some(prompt) = prompts.first() {
        demo_npu::run(&imported, prompt, args, ui)?;
    }
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
) -> anyhow::Result<(Vec<Shown>, f64)> {
    let limit = session.model().manifest().max_tokens as usize;
    let ids = tokenizer.encode(prompt)?;
    let mut stream = tokenizer.stream();
    let mut shown = Vec::new();
    let mut recording = Recording::default();
    session.reset();
    session.prefill_with(&ids, None, &mut |session, ids| recording.add(session, ids))?;
    for visit in recording.finish()? {
        shown.push(Shown { text: stream.push(visit.id)?, generated: false, visit });
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
        for visit in visits(session, &[token])? {
            shown.push(Shown { text: stream.push(token)?, generated: true, visit });
        }
    }
    Ok((shown, f64::from(decoded) / begin.elapsed().as_secs_f64()))
}

/// One line per token: domain of the token router, modules per layer.
fn show(tokens: &[Shown], domains: &[String]) {
    let layers = tokens.first().map_or(0, |t| t.visit.modules.len());
    let mut header = vec!["  token".to_string(), "domain".into(), ">prob.".into()];
    header.extend((0..layers).map(|l| format!("layer {l}")));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let rows = tokens.iter().map(|token| {
        let mark = if token.generated { "+" } else { " " };
        let visit = &token.visit;
        let mut row = vec![
            format!(" {mark} {:?}", token.text),
            domains.get(visit.domain).cloned().unwrap_or_default(),
            format!("{:.2}", visit.probability),
        ];
        row.extend(visit.modules.iter().map(|set| {
            let names: Vec<String> = set.iter().map(usize::to_string).collect();
            if names.is_empty() { "-".into() } else { names.join(" ") }
        }));
        row
    });
    println!("{}", table(&header, rows));
    let visited: usize = tokens.iter().flat_map(|t| &t.visit.modules).map(Vec::len).sum();
    let slots = tokens.len() * layers;
    if slots > 0 {
        println!("   {:.2} modules per token and layer", visited as f64 / slots as f64);
    }
}
