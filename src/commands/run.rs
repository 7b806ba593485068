//! `lapidary run`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use lapidary_format::{Head, Manifest, abi::Counter, replace_file};
use lapidary_runtime::{
    GenerateOptions, Progress, RunError, Sampler, SamplerOptions, Session, Stop, Tensor, TensorData, TextError,
    Tokenizer, generate,
};
use ndarray::Array2;
use ndarray_npy::{NpzWriter, WritableElement};

use crate::cli::RunArgs;
use crate::engine;
use crate::failure::{Unsupported, Usage};
use crate::reference;
use crate::routing::{self, Recording};
use crate::ui::{self, Ui};

/// Longest `.npy` of token ids: more than the longest sequence of any model.
const MAX_IDS_BYTES: u64 = 64 << 20;

/// Generates, classifies, embeds, or runs plain tensors.
pub fn run(args: &RunArgs, ui: &Ui) -> anyhow::Result<ExitCode> {
    if !(args.temperature.is_finite() && args.temperature >= 0.0) {
        bail!(Usage(format!("--temperature: wanted a number from 0 on, found {}", args.temperature)));
    }
    if !(args.top_p > 0.0 && args.top_p <= 1.0) {
        bail!(Usage(format!("--top-p: wanted a number above 0, at most 1, found {}", args.top_p)));
    }
    let mut session = engine::open(&args.artifact, args.threads)?;
    let mut recording = args.record_routing.is_some().then(Recording::default);
    let record = &mut |session: &Session, ids: &[u32]| {
        if let Some(recording) = &mut recording {
            recording.add(session, ids);
        }
    };
    match (&args.prompt, &args.text, &args.input, &args.output) {
        (Some(prompt), ..) => continue_text(&mut session, args, prompt, ui, record)?,
        (None, Some(text), ..) => pool_text(&mut session, text, record)?,
        (None, None, Some(input), Some(output)) => plain_tensors(&mut session, input, output, record)?,
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
    args: &RunArgs,
    prompt: &str,
    ui: &Ui,
    after_call: AfterCall<'_>,
) -> anyhow::Result<()> {
    let model = session.model().clone();
    let tokenizer = Tokenizer::of(model.artifact())?;
    let mut sampler =
        Sampler::new(SamplerOptions { temperature: args.temperature, top_p: args.top_p, seed: args.seed });
    let options = GenerateOptions { max_new: args.max_new, stop_at_end: !args.ignore_eos };
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
    let outputs = engine::outputs_with(session, &ids, after_call)?;
    let output = outputs.get("output").context("the artifact has no output named `output`")?;
    match manifest.head {
        Head::SequenceClassification => {
            for (label, score) in output.data.iter().enumerate() {
                println!("{label}\t{score}");
            }
        }
        Head::Embedding | Head::CausalLm => {
            let numbers: Vec<String> = output.data.iter().map(f32::to_string).collect();
            println!("[{}]", numbers.join(", "));
        }
    }
    Ok(())
}

/// Token ids from `ids=@FILE.npy`.
pub fn read_ids(input: &str) -> anyhow::Result<Vec<u32>> {
    let Some(("ids", file)) = input.split_once("=@") else {
        bail!(Usage(format!("--input: wanted ids=@FILE.npy, found `{input}`")));
    };
    let bytes = crate::npy::read_file(Path::new(file), MAX_IDS_BYTES)?;
    reference::token_ids(&bytes).with_context(|| file.to_string())
}

/// `ids=@x.npy` → every output into an `.npz`, which appears under its name when complete.
fn plain_tensors(session: &mut Session, input: &str, output: &Path, after_call: AfterCall<'_>) -> anyhow::Result<()> {
    let ids = read_ids(input)?;
    let tensors = session.forward_all_with(&ids, after_call)?;
    replace_file(output, |file| write_npz(file, tensors))
        .with_context(|| format!("{}: cannot be written", output.display()))?;
    Ok(())
}

fn write_npz(file: &mut File, tensors: Vec<Tensor>) -> io::Result<()> {
    let mut npz = NpzWriter::new(BufWriter::new(file));
    for tensor in tensors {
        let shape = (tensor.rows, tensor.columns);
        let name = tensor.name.as_str();
        let place = |error: &dyn std::fmt::Display| io::Error::other(format!("array {name}: {error}"));
        match tensor.data {
            TensorData::F32(data) => add(&mut npz, name, shape, data),
            TensorData::U8(data) => add(&mut npz, name, shape, data),
            TensorData::U32(data) => add(&mut npz, name, shape, data),
        }
        .map_err(|error| place(&error))?;
    }
    let mut file = npz.finish().map_err(io::Error::other)?;
    file.flush()
}

fn add<T: WritableElement>(
    npz: &mut NpzWriter<BufWriter<&mut File>>,
    name: &str,
    shape: (usize, usize),
    data: Vec<T>,
) -> anyhow::Result<()> {
    Ok(npz.add_array(name, &Array2::from_shape_vec(shape, data)?)?)
}
