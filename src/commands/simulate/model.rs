//! `simulate` of a model: prompts, prefill in chunks, greedy decode, call by call in the simulator.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use lapidary_npu_isa::Program;
use lapidary_runtime::{Tensor, Tokenizer, greedy};
use lapidary_simulator::observe::After;
use lapidary_simulator::report::csv;
use lapidary_simulator::report::html::{self, Details};
use lapidary_simulator::report::summary::Summary;
use lapidary_simulator::report::timeline::Timeline;
use lapidary_simulator::report::trace::ChromeTrace;
use lapidary_simulator::{Options, Report};

use super::source::{self, Source};
use super::visits::Visits;
use super::{print, write};
use crate::cli::{ModelRun, Observe, SimulateArgs};
use crate::failure::{Unsupported, Usage};
use crate::npu::{self, Call, Choice, Compiled, Session};
use crate::tensors::{self, Outputs};
use crate::ui::{self, Ui};

/// Tokens that follow a text when nothing else is asked for.
const NEW_BEHIND_TEXT: u64 = 16;
/// Longest file of prompts.
const MAX_PROMPTS_BYTES: u64 = 1 << 20;

/// A sequence to run.
struct Input {
    /// What its outputs' names begin with.
    prefix: String,
    /// The text, if that is where it comes from.
    prompt: Option<String>,
    ids: Vec<u32>,
}

/// What became of a sequence.
#[derive(Clone, Debug, Default)]
pub struct Sequence {
    /// The text before it.
    pub prompt: Option<String>,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens that followed, or stand for such.
    pub new: Vec<u32>,
    /// Their text.
    pub text: Option<String>,
    /// Why it ended.
    pub stop: &'static str,
    /// Latency of its prefill.
    pub prefill_ms: f64,
    /// Latency of its decoded tokens together.
    pub decode_ms: f64,
}

/// What all of it gave.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// One per input.
    pub sequences: Vec<Sequence>,
    /// All calls; its phases are the programs.
    pub summary: Summary,
    /// Calls of each program together.
    phases: Vec<(&'static str, Report)>,
}

impl Outcome {
    fn add(&mut self, call: &Call) -> anyhow::Result<()> {
        self.summary.add(call.entry, call.tokens, &call.report)?;
        match self.phases.iter_mut().find(|(entry, _)| *entry == call.entry) {
            Some((_, sum)) => sum.merge(&call.report)?,
            None => self.phases.push((call.entry, call.report.clone())),
        }
        Ok(())
    }

    /// Calls of each program together.
    pub fn by_phase(&self) -> impl Iterator<Item = (&'static str, &Report)> {
        self.phases.iter().map(|(entry, sum)| (*entry, sum))
    }
}

/// Runs a model or an artifact.
pub fn run(args: &SimulateArgs, name: &str, options: Options, ui: &Ui) -> anyhow::Result<()> {
    let run = &args.model;
    // Compiling a model takes its time; a file that is no artifact is worse than a missing option.
    if source::is_model(name) {
        check_usage(args)?;
    }
    let source = Source::open(args, name, ui)?;
    check_usage(args)?;
    let compiled = &source.compiled;
    let choice = run.routing.as_ref().map(|text| Choice::parse(text, run.modules_per_token, compiled)).transpose()?;
    let tokenizer = tokenizer(run, compiled)?;
    let inputs = inputs(run, compiled, tokenizer.as_ref())?;
    let mut session = Session::new(compiled, options, None)?;
    if options.values {
        source.load(&mut session, ui)?;
    }
    let mut simulation = Simulation {
        args,
        compiled,
        tokenizer: tokenizer.as_ref(),
        choice: choice.as_ref(),
        session,
        outcome: Outcome::default(),
        visits: Visits::default(),
        kind: observed_kind(run, compiled, max_new(run))?,
    };
    simulation.run_observed(&inputs, ui)?;
    let outcome = simulation.outcome;
    if let Some(path) = &args.csv {
        let sum = outcome.summary.report().context("a call")?;
        write(path, |out| Ok(out.write_all(csv::by_part(sum).as_bytes())?))?;
    }
    print::outcome(args, compiled, &outcome);
    Ok(())
}

/// Whether it is said what to run.
fn check_usage(args: &SimulateArgs) -> anyhow::Result<()> {
    let run = &args.model;
    if args.timing_only && run.routing.is_none() {
        bail!(Usage(
            "--timing-only: wanted --routing with it, since the course of a routed model depends on where tokens go, found none\n\
             hint: --routing uniform, zipf:S, or trace=FILE of `lapidary run --record-routing FILE`"
                .into()
        ));
    }
    if run.prompt.is_none() && run.prompts.is_none() && run.tokens.is_none() && run.input.is_none() {
        bail!(Usage(
            "simulate: wanted --prompt, --prompts, --tokens or --input with a model, found none of them".into()
        ));
    }
    Ok(())
}

/// Needed for texts, and welcome for what follows ids.
fn tokenizer(run: &ModelRun, compiled: &Compiled) -> anyhow::Result<Option<Tokenizer>> {
    match &compiled.tokenizer {
        Some(json) => {
            Ok(Some(Tokenizer::from_json(json).with_context(|| format!("{}: tokenizer.json", compiled.model))?))
        }
        None if run.prompt.is_some() || run.prompts.is_some() => bail!(Unsupported(format!(
            "{}: wanted a tokenizer for a text, found none\nhint: --tokens N, or --input ids=@ids.npy",
            compiled.model
        ))),
        None => Ok(None),
    }
}

/// Tokens to decode behind each input.
fn max_new(run: &ModelRun) -> u64 {
    let default = match (&run.input, run.tokens) {
        (Some(_), _) => 0,
        (None, Some(_)) => 1,
        (None, None) => NEW_BEHIND_TEXT,
    };
    run.max_new.unwrap_or(default)
}

/// Which call a trace shows.
fn observed_kind(run: &ModelRun, compiled: &Compiled, max_new: u64) -> anyhow::Result<Observe> {
    let decodes = compiled.decode.is_some() && max_new > 0;
    match run.observe {
        Some(Observe::Decode) if !decodes => {
            bail!(Usage("--observe decode: wanted tokens to be decoded, found none: see --max-new".into()))
        }
        Some(kind) => Ok(kind),
        None if decodes => Ok(Observe::Decode),
        None => Ok(Observe::Prefill),
    }
}

fn inputs(run: &ModelRun, compiled: &Compiled, tokenizer: Option<&Tokenizer>) -> anyhow::Result<Vec<Input>> {
    let encode = |prompt: &str, prefix: String| -> anyhow::Result<Input> {
        let ids = tokenizer.context("a tokenizer")?.encode(prompt)?;
        Ok(Input { prefix, prompt: Some(prompt.to_string()), ids })
    };
    let longest = if compiled.whole_sequence { compiled.chunk_tokens } else { compiled.max_tokens };
    let inputs = if let Some(prompt) = &run.prompt {
        vec![encode(prompt, String::new())?]
    } else if let Some(path) = &run.prompts {
        let text = ui::read_text(path, MAX_PROMPTS_BYTES)?;
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let prefixed = lines.enumerate().map(|(i, line)| encode(line, format!("prompt.{i:03}.")));
        prefixed.collect::<anyhow::Result<Vec<_>>>().with_context(|| path.display().to_string())?
    } else if let Some(tokens) = run.tokens {
        if !(1..=longest).contains(&tokens) {
            bail!(Usage(format!(
                "--tokens: wanted 1 to {longest}, what {} is compiled for, found {tokens}",
                compiled.model
            )));
        }
        vec![Input { prefix: String::new(), prompt: None, ids: npu::made_up_ids(tokens, compiled.vocab_size) }]
    } else {
        let input = run.input.as_deref().unwrap_or_default();
        let Some(("ids", file)) = input.split_once("=@") else {
            bail!(Usage(format!("--input: wanted ids=@FILE.npy or ids=@FILE.npz, found `{input}`")));
        };
        let read = tensors::read_ids(Path::new(file))?;
        read.into_iter().map(|ids| Input { prefix: ids.prefix, prompt: None, ids: ids.ids }).collect()
    };
    ensure!(!inputs.is_empty(), "--prompts: wanted at least one line of text, found none");
    for Input { prefix, ids, .. } in &inputs {
        let (what, found) = (if prefix.is_empty() { "the input" } else { prefix }, ids.len() as u64);
        ensure!(
            (1..=longest).contains(&found),
            "{what}: tokens, wanted 1 to {longest}, what {} is compiled for, found {found}",
            compiled.model
        );
    }
    Ok(inputs)
}

type Trace<'w> = ChromeTrace<'w, &'w mut dyn Write>;
/// What sees a call: the trace if it is the one to trace, and the timeline of all calls.
type Observers<'o, 'w> = (Option<&'o mut Trace<'w>>, Option<After<'o, Timeline>>);

/// Sees calls.
struct Watch<'w> {
    /// The call that it is of is still to come, or over.
    trace: Option<Trace<'w>>,
    has_traced: bool,
    timeline: Option<Timeline>,
}

struct Simulation<'s> {
    args: &'s SimulateArgs,
    compiled: &'s Compiled,
    tokenizer: Option<&'s Tokenizer>,
    choice: Option<&'s Choice>,
    session: Session<'s>,
    outcome: Outcome,
    visits: Visits,
    /// The call to trace, the first of its kind.
    kind: Observe,
}

impl Simulation<'_> {
    /// Runs all inputs, with the trace and the page that were asked for.
    fn run_observed(&mut self, inputs: &[Input], ui: &Ui) -> anyhow::Result<()> {
        let args = self.args;
        let timeline = args.report.is_some().then(Timeline::default);
        let timeline = match &args.trace {
            None => {
                let mut watch = Watch { trace: None, has_traced: false, timeline };
                self.run(inputs, &mut watch, ui)?;
                watch.timeline
            }
            Some(path) => {
                let program: &Program = match (self.kind, &self.compiled.decode) {
                    (Observe::Decode, Some(program)) => program,
                    (Observe::Decode | Observe::Prefill, _) => &self.compiled.prefill,
                };
                let mut seen = None;
                write(path, |out| {
                    let trace = ChromeTrace::new(out as &mut dyn Write, program, &self.compiled.machine);
                    let mut watch = Watch { trace: Some(trace), has_traced: false, timeline };
                    self.run(inputs, &mut watch, ui)?;
                    ensure!(
                        watch.has_traced,
                        "--trace: wanted a decoded token to show, found that none was decoded\nhint: --observe prefill"
                    );
                    watch.trace.map(ChromeTrace::finish).transpose()?;
                    seen = watch.timeline;
                    Ok(())
                })?;
                seen
            }
        };
        if let (Some(path), Some(timeline), Some(sum)) = (&args.report, &timeline, self.outcome.summary.report()) {
            let details = Details {
                summary: Some(&self.outcome.summary),
                domains: Some(&self.visits.domains).filter(|domains| !domains.names.is_empty()),
                tokens: &self.visits.tokens,
            };
            let page = html::page_with(sum, timeline, &self.compiled.model, &details)?;
            write(path, |out| Ok(out.write_all(page.as_bytes())?))?;
        }
        Ok(())
    }

    /// Notes where the tokens of the last call went, if anybody will ask.
    fn see(&mut self, ids: &[u32]) -> anyhow::Result<()> {
        match self.args.report.is_some() && !self.args.timing_only {
            true => self.visits.add(&self.session, self.compiled, self.tokenizer, ids),
            false => Ok(()),
        }
    }

    fn run(&mut self, inputs: &[Input], watch: &mut Watch<'_>, ui: &Ui) -> anyhow::Result<()> {
        let new = max_new(&self.args.model).min(self.compiled.max_tokens);
        let tokens = inputs.iter().map(|input| input.ids.len() as u64 + new).sum();
        let bar = ui.count_bar("simulating", tokens);
        let mut each = |simulation: &mut Self, mut outputs: Option<&mut Outputs<'_>>| {
            for (i, input) in inputs.iter().enumerate() {
                let place = || match &input.prompt {
                    Some(prompt) => format!("prompt {prompt:?}"),
                    None => format!("input {}ids", input.prefix),
                };
                simulation.sequence(i, input, outputs.as_deref_mut(), watch, &bar).with_context(place)?;
            }
            anyhow::Ok(())
        };
        match &self.args.model.output {
            Some(path) => tensors::write(path, |outputs| each(self, Some(outputs)))?,
            None => each(self, None)?,
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn sequence(
        &mut self,
        number: usize,
        input: &Input,
        mut outputs: Option<&mut Outputs<'_>>,
        watch: &mut Watch<'_>,
        bar: &ui::Bar,
    ) -> anyhow::Result<()> {
        let (compiled, run) = (self.compiled, &self.args.model);
        let max_new = max_new(run).min(compiled.max_tokens.saturating_sub(input.ids.len() as u64));
        if run.max_new.is_some_and(|n| n > 0) && compiled.decode.is_none() {
            bail!(Unsupported(format!("{} cannot decode: {}", compiled.model, compiled.cannot_decode)));
        }
        let tokens = input.ids.len() as u64 + max_new;
        self.session.route(self.choice.map(|choice| choice.routing(number, tokens)));
        self.session.reset()?;
        let mut result = Sequence {
            prompt: input.prompt.clone(),
            prompt_tokens: input.ids.len() as u64,
            stop: "cannot decode",
            ..Sequence::default()
        };
        let mut gathered: Vec<Tensor> = Vec::new();
        for chunk in input.ids.chunks(usize::try_from(compiled.chunk_tokens)?) {
            let rows = if outputs.is_some() { chunk.len() as u64 } else { 1 };
            let (is_wanted, offset) = (self.kind == Observe::Prefill, self.outcome.summary.cycles());
            let call = observe(watch, is_wanted, offset, |observer| self.session.prefill(chunk, rows, observer))?;
            self.see(chunk)?;
            result.prefill_ms += call.report.latency_ms();
            self.outcome.add(&call)?;
            if outputs.is_some() {
                self.session.gather(&mut gathered)?;
            }
            bar.inc(chunk.len() as u64);
        }
        if compiled.decode.is_some() {
            result.stop = self.decode(&mut result, max_new, watch, bar)?;
        }
        if let Some(outputs) = outputs.as_mut() {
            outputs.add_ids(&format!("{}ids", input.prefix), &input.ids)?;
            for tensor in &gathered {
                outputs.add(&input.prefix, tensor)?;
            }
            if !result.new.is_empty() {
                outputs.add_ids(&format!("{}generated", input.prefix), &result.new)?;
            }
        }
        if let Some(tokenizer) = self.tokenizer.filter(|_| !self.args.timing_only && !result.new.is_empty()) {
            // Each on its own, as they would be shown.
            let mut stream = tokenizer.stream();
            let mut text = String::new();
            for id in &result.new {
                text.push_str(&stream.push(*id)?);
            }
            text.push_str(&stream.finish()?);
            result.text = Some(text);
        }
        self.outcome.sequences.push(result);
        Ok(())
    }

    /// Decodes up to `max_new` tokens; why it stopped.
    fn decode(
        &mut self,
        result: &mut Sequence,
        max_new: u64,
        watch: &mut Watch<'_>,
        bar: &ui::Bar,
    ) -> anyhow::Result<&'static str> {
        let (compiled, values) = (self.compiled, !self.args.timing_only);
        let made_up = if values { Vec::new() } else { npu::made_up_ids(max_new, compiled.vocab_size) };
        for at in 0..max_new {
            let token = match made_up.get(usize::try_from(at)?) {
                Some(id) => *id,
                None => greedy(&self.session.logits()?),
            };
            if values && !self.args.model.ignore_eos && compiled.end_token == Some(token) {
                return Ok("end of text");
            }
            result.new.push(token);
            // The last token is decoded as well, though nobody asks what would follow: its time is a token's.
            let (is_wanted, offset) = (self.kind == Observe::Decode, self.outcome.summary.cycles());
            let call = observe(watch, is_wanted, offset, |observer| self.session.decode(token, observer))?;
            self.see(&[token])?;
            result.decode_ms += call.report.latency_ms();
            self.outcome.add(&call)?;
            bar.inc(1);
        }
        let is_full = self.session.position() >= compiled.max_tokens;
        Ok(if is_full { "the context is full" } else { "--max-new" })
    }
}

/// Makes a call that begins after `offset` cycles, and watches it; traces it if it is the first that is wanted.
fn observe<'w>(
    watch: &mut Watch<'w>,
    is_wanted: bool,
    offset: u64,
    call: impl FnOnce(&mut Observers<'_, 'w>) -> anyhow::Result<Call>,
) -> anyhow::Result<Call> {
    let trace = watch.trace.as_mut().filter(|_| is_wanted && !watch.has_traced);
    watch.has_traced |= is_wanted;
    let timeline = watch.timeline.as_mut().map(|timeline| After { observer: timeline, offset });
    call(&mut (trace, timeline))
}
