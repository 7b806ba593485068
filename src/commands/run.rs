//! `lapidary run`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use lapidary_format::{Head, Manifest, NO_INDEX, abi::Counter};
use lapidary_runtime::{
    ArtifactFile, GenerateOptions, Progress, RunError, Sampler, Session, Stop, TensorData, TextError, Tokenizer,
    generate,
};

use crate::cli::RunOptions;
use crate::engine;
use crate::failure::{Unsupported, Usage};
use crate::routing::{self, Recording};
use crate::tensors::{self, Ids};
use crate::ui::{self, Ui};

/// Tokens to generate when none are asked for.
const DEFAULT_MAX_NEW: usize = 64;

/// Generates, classifies, embeds, or runs plain tensors.
pub fn run(artifact: ArtifactFile, args: &RunOptions, threads: usize, ui: &Ui) -> anyhow::Result<ExitCode> {
    if !(args.temperature.is_finite() && args.temperature >= 0.0) {
        bail!(Usage(format!("--temperature: wanted a number from 0 on, found {}", args.temperature)));
    }
    if !(args.top_p > 0.0 && args.top_p <= 1.0) {
        bail!(Usage(format!("--top-p: wanted a number above 0, at most 1, found {}", args.top_p)));
    }
    let mut session = engine::open(artifact, threads)?;
    let mut recording = args.record_routing.is_some().then(Recording::default);
    let record = &mut |session: &Session, ids: &[u32]| {
        if let Some(recording) = &mut recording {
            recording.add(session, ids);
        }
    };
    match (&args.prompt, &args.text, &args.input, &args.output) {
        (Some(prompt), ..) => continue_text(&mut session, args, prompt, ui, record)?,
        (None, Some(text), ..) => pool_text(&mut session, text, record)?,
        (None, None, Some(input), Some(output)) => plain_tensors(&mut session, args, (input, output), ui, record)?,
        _ => bail!(Usage("run: wanted --prompt, --text, or --input with --output, found none of them".into())),
    }
    if let (Some(path), Some(recording)) = (&args.record_routing, recording) {
        routing::write_trace(path, session.model().artifact(), &recording.finish()?)?;
    }
    if args.counters {
        for (name, counter) in [
            ("rows routed to modules", Counter::RowsRouted),
            ("modules read", Counter::ModulesRead),
            ("keys read by clustered attention", Counter::ClusteredKeysRead),
            ("queries of clustered attention", Counter::ClusteredQueries),
            ("keys read by range attention", Counter::RangeKeysRead),
            ("queries of range attention", Counter::RangeQueries),
        ] {
            eprintln!("{name}: {}", session.counter(counter));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What cannot be done by this model at all is [`Unsupported`].
fn text_error(error: TextError) -> anyhow::Error {
    match &error {
        TextError::Run(RunError::CannotDecode { .. }) | TextError::NoLogits { .. } => {
            anyhow::Error::new(Unsupported(error.to_string()))
        }
        _ => anyhow::Error::new(error),
    }
}

/// Sees the session after each call, with the tokens of the call.
type AfterCall<'a> = &'a mut dyn FnMut(&Session, &[u32]);

fn continue_text(
    session: &mut Session,
    args: &RunOptions,
    prompt: &str,
    ui: &Ui,
    after_call: AfterCall<'_>,
) -> anyhow::Result<()> {
    let model = session.model().clone();
    let tokenizer = Tokenizer::of(model.artifact())?;
    let mut sampler = Sampler::new(args.sampling());
    let options = GenerateOptions { max_new: args.max_new.unwrap_or(DEFAULT_MAX_NEW), stop_at_end: !args.ignore_eos };
    print!("{prompt}");
    ui::flush_out();
    let start = Instant::now();
    let mut first = None;
    let generated = generate(session, &tokenizer, &mut sampler, prompt, options, &mut |progress| match progress {
        Progress::Called { session, ids } => after_call(session, ids),
        Progress::Text { text, .. } => {
            first.get_or_insert_with(|| start.elapsed());
            print!("{text}");
            ui::flush_out();
        }
    })
    .map_err(text_error)?;
    println!();
    let total = start.elapsed().as_secs_f64();
    let first = first.map_or(total, |f| f.as_secs_f64());
    let later = generated.tokens.len().saturating_sub(1);
    let rate = if later > 0 { later as f64 / (total - first) } else { 0.0 };
    let why = match generated.stop {
        Stop::EndOfText => "end of text",
        Stop::MaxNew => "--max-new",
        Stop::ContextLength => "the context is full",
    };
    ui.note(format!(
        "{} prompt tokens in {:.1} ms, {} new tokens ({why}), {rate:.1} tokens/s",
        generated.prompt_tokens,
        first * 1e3,
        generated.tokens.len(),
    ));
    Ok(())
}

/// Classes or an embedding of a text.
fn pool_text(session: &mut Session, text: &str, after_call: AfterCall<'_>) -> anyhow::Result<()> {
    let model = session.model().clone();
    let manifest: Manifest<'_> = *model.manifest();
    if manifest.head == Head::CausalLm {
        bail!(Unsupported(
            "--text: wanted a model that classifies or embeds, found one that generates\nhint: use --prompt".into()
        ));
    }
    let ids = Tokenizer::of(model.artifact())?.encode(text)?;
    let outputs = session.forward_all_with(&ids, after_call)?;
    let output = outputs.into_iter().find(|tensor| tensor.name == "output").map(|tensor| tensor.data);
    let Some(TensorData::F32(output)) = output else { bail!("the artifact has no f32 output named `output`") };
    match manifest.head {
        Head::SequenceClassification => {
            for (label, score) in output.iter().enumerate() {
                println!("{label}\t{score}");
            }
        }
        Head::Embedding | Head::CausalLm => {
            let numbers: Vec<String> = output.iter().map(f32::to_string).collect();
            println!("[{}]", numbers.join(", "));
        }
    }
    Ok(())
}

/// `ids=@FILE` → every output of each sequence, or with `--max-new` how it goes on, into an `.npz`.
fn plain_tensors(
    session: &mut Session,
    args: &RunOptions,
    (input, output): (&str, &Path),
    ui: &Ui,
    after_call: AfterCall<'_>,
) -> anyhow::Result<()> {
    let Some(("ids", file)) = input.split_once("=@") else {
        bail!(Usage(format!("--input: wanted ids=@FILE.npy or ids=@FILE.npz, found `{input}`")));
    };
    let sequences = tensors::read_ids(Path::new(file))?;
    let end_token = session.model().manifest().end_token;
    let end_token = (end_token != NO_INDEX && !args.ignore_eos).then_some(end_token);
    let bar = ui.count_bar("sequences", sequences.len() as u64);
    let written = tensors::write(output, |outputs| {
        for Ids { prefix, ids } in &sequences {
            outputs.add_ids(&format!("{prefix}ids"), ids)?;
            let place = || format!("{file}: {prefix}ids");
            match args.max_new {
                Some(max_new) => {
                    let mut sampler = Sampler::new(args.sampling());
                    let new =
                        engine::continuation(session, &mut sampler, ids, max_new, end_token).with_context(place)?;
                    outputs.add_ids(&format!("{prefix}generated"), &new)?;
                }
                None => {
                    for tensor in session.forward_all_with(ids, after_call).with_context(place)? {
                        outputs.add(prefix, &tensor)?;
                    }
                }
            }
            bar.inc(1);
        }
        Ok(())
    });
    bar.finish_and_clear();
    written
}
