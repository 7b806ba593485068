//! `lapidary calibrate`.
//!
//! Runs text through the model as it is and with one part in another format at a time, takes the KL divergence of the next
//! token's distribution as the damage of that format, and writes the recipe of least total damage under a budget.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use lapidary_compiler::import::ImportedModel;
use lapidary_compiler::quant::calibrate::{
    Candidate, ChooseError, Granularity, candidates, choose, measurements, recipe, table,
};
use lapidary_compiler::quant::{Builtin, Recipe, fit_budget, parse_bytes};
use lapidary_format::{Head, replace_file};
use lapidary_runtime::{ArtifactFile, Session, TensorData, Tokenizer};

use crate::cli::CalibrateArgs;
use crate::divergence::{Divergence, log_softmax};
use crate::engine;
use crate::failure::{Missed, Unsupported, Usage};
use crate::model::{self, Options};
use crate::ui::{self, Ui, bytes};

/// Longest file of text.
const MAX_TEXT_BYTES: u64 = 64 << 20;
/// Log-probabilities of the reference that are kept: tokens × vocabulary × 4 bytes.
const MAX_KEPT_BYTES: usize = 2 << 30;

/// Measures, chooses, writes.
pub fn run(args: &CalibrateArgs, ui: &Ui) -> anyhow::Result<ExitCode> {
    let budget = match &args.budget {
        Some(text) => parse_bytes(text).map_err(|e| anyhow::Error::new(Usage(format!("--budget: {e}"))))?,
        None => u64::MAX,
    };
    ensure!(args.tokens >= 2, Usage(format!("--tokens: wanted at least 2, found {}", args.tokens)));
    let model = Arc::new(model::load(&args.model)?);
    let workshop = Workshop::new(model, args.sequence, args.threads)?;
    let sequences = workshop.sequences(&args.text, args.tokens)?;
    let granularity = if args.by_layer { Granularity::Layer } else { Granularity::Component };
    let candidates = candidates(&workshop.model.graph, granularity)?;
    let damages = measure(&workshop, &candidates, &sequences, ui)?;
    let measurements = measurements(&candidates, &damages);
    let (chosen, missed) = match choose(&measurements, budget) {
        Ok(chosen) => (chosen, None),
        // The smallest there is, so that a user sees how far it is from what was asked for.
        Err(ChooseError::Impossible { smallest_bytes, .. }) => {
            (choose(&measurements, smallest_bytes)?, Some(smallest_bytes))
        }
        Err(error) => return Err(error.into()),
    };
    let name = args.output.file_stem().unwrap_or_default().to_string_lossy();
    let recipe = recipe(name, &candidates, &chosen);
    let lines = table(&candidates, &damages, &chosen);
    model::create_folder_of(&args.output)?;
    replace_file(&args.output, |file| file.write_all(recipe.to_toml(&lines).as_bytes()))
        .with_context(|| format!("{}: cannot be written", args.output.display()))?;
    for line in &lines {
        println!("{line}");
    }
    if !args.evaluate.is_empty() {
        evaluate(&workshop, &recipe, budget, args, ui)?;
    }
    let Some(smallest_bytes) = missed else { return Ok(ExitCode::SUCCESS) };
    bail!(Missed(format!(
        "--budget: wanted at least {} ({smallest_bytes} bytes), the smallest that the weights can be, found {}\nhint: {} has the \
         recipe of that size",
        bytes(smallest_bytes),
        bytes(budget),
        args.output.display()
    )))
}

/// A model and what runs it in any recipe.
struct Workshop {
    model: Arc<ImportedModel>,
    tokenizer: Tokenizer,
    sequence: u64,
    threads: usize,
}

/// What a text gives under a recipe.
#[derive(Clone, Copy, Debug, Default)]
struct Score {
    /// Sum of the negative log-likelihoods of the next tokens, in nats.
    loss: f64,
    /// Predicted tokens.
    tokens: usize,
    /// From the reference.
    divergence: Divergence,
}

impl Workshop {
    fn new(model: Arc<ImportedModel>, sequence: u64, threads: usize) -> anyhow::Result<Self> {
        let json =
            model.tokenizer.as_ref().context("the model has no tokenizer.json, wanted one to read --text with")?;
        let tokenizer = Tokenizer::from_json(json)?;
        let sequence = sequence.min(model.graph.info.max_position_embeddings);
        ensure!(sequence >= 2, Usage(format!("--sequence: wanted at least 2, found {sequence}")));
        Ok(Workshop { model, tokenizer, sequence, threads })
    }

    /// The first `tokens` tokens of the files, the same number of each, in sequences.
    fn sequences(&self, files: &[PathBuf], tokens: usize) -> anyhow::Result<Vec<Vec<u32>>> {
        let per_file = tokens.div_ceil(files.len().max(1));
        let mut out = Vec::new();
        for file in files {
            let text = ui::read_text(file, MAX_TEXT_BYTES)?;
            let ids = self.tokenizer.encode(&text).with_context(|| file.display().to_string())?;
            let ids = &ids[..ids.len().min(per_file)];
            out.extend(ids.chunks(self.sequence as usize).filter(|c| c.len() >= 2).map(<[u32]>::to_vec));
        }
        ensure!(!out.is_empty(), "--text: wanted at least 2 tokens, found fewer");
        Ok(out)
    }

    /// The model in a recipe, ready to run on this machine.
    fn session(&self, recipe: &Recipe, quiet: &Ui) -> anyhow::Result<Session> {
        let mut options = Options::new(None, None, Some(self.sequence), None)?;
        options.recipe = recipe.clone();
        let planned = model::plan(Arc::clone(&self.model), options, quiet)?;
        let folder = tempfile::tempdir().context("a temporary folder cannot be created")?;
        let path = folder.path().join("candidate.lapis");
        planned.write(&planned.lower(&model::cpu_target("native")?)?, &path, quiet)?;
        // Mapped: it may go on without its name.
        let session = engine::open(ArtifactFile::open(&path)?, self.threads)?;
        if session.model().manifest().head != Head::CausalLm {
            bail!(Unsupported(
                "calibrate: wanted a model that predicts tokens, found one that classifies or embeds".into()
            ));
        }
        Ok(session)
    }
}

/// Logits `[T, V]` of a sequence.
fn logits(session: &mut Session, ids: &[u32]) -> anyhow::Result<Vec<f32>> {
    let outputs = session.forward_all(ids)?;
    let logits = outputs.into_iter().find(|tensor| tensor.name == "logits").map(|tensor| tensor.data);
    match logits {
        Some(TensorData::F32(logits)) => Ok(logits),
        _ => bail!("the artifact has no f32 output named `logits`"),
    }
}

/// Adds what one sequence gives: `found` and `wanted` are log-probabilities `[T, V]`.
fn add(score: &mut Score, ids: &[u32], found: &[f32], wanted: &[f32], vocab: usize) {
    score.divergence.add(wanted, found, vocab);
    for (found, next) in found.chunks_exact(vocab).zip(&ids[1..]) {
        score.loss -= f64::from(found[*next as usize]);
        score.tokens += 1;
    }
}

/// Log-probabilities of the model as it is.
fn reference(workshop: &Workshop, sequences: &[Vec<u32>], ui: &Ui) -> anyhow::Result<Vec<Vec<f32>>> {
    let mut session = workshop.session(&Builtin::Fp32.into(), ui)?;
    let vocab = session.model().manifest().vocab_size as usize;
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    let kept = tokens.saturating_mul(vocab).saturating_mul(4);
    ensure!(
        kept <= MAX_KEPT_BYTES,
        Usage(format!(
            "--tokens: wanted at most {} with a vocabulary of {vocab}, found {tokens}",
            MAX_KEPT_BYTES / 4 / vocab
        ))
    );
    let each = sequences.iter().map(|ids| {
        let mut rows = logits(&mut session, ids)?;
        log_softmax(&mut rows, vocab);
        Ok(rows)
    });
    each.collect()
}

/// The score of a recipe over sequences whose reference is known.
fn score(
    workshop: &Workshop,
    recipe: &Recipe,
    sequences: &[Vec<u32>],
    wanted: &[Vec<f32>],
    ui: &Ui,
) -> anyhow::Result<Score> {
    let mut session = workshop.session(recipe, ui)?;
    let vocab = session.model().manifest().vocab_size as usize;
    let mut score = Score::default();
    for (ids, wanted) in sequences.iter().zip(wanted) {
        let mut found = logits(&mut session, ids)?;
        log_softmax(&mut found, vocab);
        add(&mut score, ids, &found, wanted, vocab);
    }
    Ok(score)
}

/// KL divergence per token of each candidate.
fn measure(workshop: &Workshop, candidates: &[Candidate], sequences: &[Vec<u32>], ui: &Ui) -> anyhow::Result<Vec<f64>> {
    let wanted = reference(workshop, sequences, ui)?;
    let bar = ui.count_bar("recipes", candidates.len() as u64);
    let mut damages = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        let damage = if candidate.is_reference() {
            0.0
        } else {
            score(workshop, &candidate.recipe(), sequences, &wanted, ui)?.divergence.nats_per_row()
        };
        damages.push(damage);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(damages)
}

/// Perplexity, divergence and agreement on other texts: for the built-in recipes, for what the default recipe becomes under
/// the budget without calibration, and for the chosen one.
fn evaluate(workshop: &Workshop, chosen: &Recipe, budget: u64, args: &CalibrateArgs, ui: &Ui) -> anyhow::Result<()> {
    let graph = &workshop.model.graph;
    let mut recipes: Vec<Recipe> = Builtin::ALL.into_iter().filter(|b| *b != Builtin::None).map(Recipe::from).collect();
    if let Ok(mut lowered) = fit_budget(graph, &Builtin::Hybrid.into(), budget)
        && !lowered.rules.is_empty()
    {
        lowered.name = "hybrid, lowered".into();
        recipes.push(lowered);
    }
    recipes.push(chosen.clone());
    let mut header = vec!["recipe".to_string(), ">weights".into(), ">KL".into(), ">same best".into()];
    let mut texts = Vec::new();
    for file in &args.evaluate {
        let sequences = workshop.sequences(std::slice::from_ref(file), args.tokens)?;
        let wanted = reference(workshop, &sequences, ui)?;
        texts.push((sequences, wanted));
        header.push(format!(">{}", file.file_name().unwrap_or_default().to_string_lossy()));
    }
    let bar = ui.count_bar("evaluating", recipes.len() as u64);
    let mut rows = Vec::new();
    for recipe in &recipes {
        let scores = texts.iter().map(|(sequences, wanted)| score(workshop, recipe, sequences, wanted, ui));
        let scores = scores.collect::<anyhow::Result<Vec<_>>>()?;
        let mut divergence = Divergence::default();
        scores.iter().for_each(|s| divergence.merge(&s.divergence));
        let mut row = vec![
            recipe.name.clone(),
            bytes(recipe.weight_bytes(graph)?),
            format!("{:.5}", divergence.nats_per_row()),
            format!("{:.1} %", divergence.same_best_percent()),
        ];
        row.extend(scores.iter().map(|s| format!("{:.3}", (s.loss / s.tokens as f64).exp())));
        rows.push(row);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    println!("\nperplexity per text\n\n{}", ui::table(&header, rows));
    Ok(())
}
