//! gem-mini in recipe `hybrid` on edge-32 against PyTorch: `tests/models/gem-mini/reference-hybrid.npz`, which
//! `models/gem/gem/quantized_reference.py` makes without this repository's Rust code.
//!
//! Compared are codes and scales of every weight, logits of each prompt's last token and of every greedy step, and the greedy tokens.
//! Bounds:
//!
//! * mean |Δlogit| of everything compared at most 1e-3. PyTorch adds up in the order of `ISA.md`, so all bits should be equal, and
//!   that is what is found; a number that is off by its last bit may turn the rounding of a code, which moves what follows by about 1e-2.
//! * greedy tokens equal. From a step where PyTorch's best two logits are nearer than 1e-3 on, the mean that may be off, another
//!   token is not an error: the continuation is then another one, is not compared, and is counted.
//!
//! A plain `cargo test` simulates some prompts for a few tokens; `LAPIDARY_TEST=full` all 64 for all 64 tokens.

#![allow(clippy::print_stdout, reason = "the last lines say how much was compared")]

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{LazyLock, Mutex};

use lapidary_compiler::ir::{Graph, Storage, WeightDef, WeightId, WeightReader};
use lapidary_compiler::quant::{Builtin, Scales};
use lapidary_npu_isa::Machine;
use lapidary_target_npu::model::{ModelOptions, NpuModel, lower_model};
use lapidary_target_npu::reference;
use libtest_mimic::{Arguments, Failed, Trial};
use ndarray::{Array1, Array2};
use ndarray_npy::{NpzReader, ReadableElement};
use support::device::Device;
use support::model::{Model, full, models_dir};

const PROMPTS: usize = 64;
/// Most of |Δlogit| in the mean over all that is compared.
const MEAN: f64 = 1e-3;
/// Best two logits nearer than this: either token will do.
const TIE: f32 = MEAN as f32;
/// Longest prompt (81) and its continuation.
const MAX_TOKENS: u64 = 160;
/// So that long prompts are two calls.
const CHUNK_TOKENS: usize = 64;
/// Of a plain run: every so many prompts are simulated, for so many tokens.
const SAMPLE_STEP: usize = 21;
const SAMPLE_TOKENS: usize = 6;

type Check = Result<(), Failed>;

/// What PyTorch says of a prompt.
struct Prompt {
    ids: Vec<u32>,
    /// `[V]`, of the last token of the prompt.
    logits: Vec<f32>,
    greedy: Vec<u32>,
    /// Best minus second best logit at each step.
    margins: Vec<f32>,
    /// `[steps, columns]`
    greedy_logits: Array2<f32>,
}

/// reference-hybrid.npz, with the ids of reference.npz.
struct Stored {
    prompts: Vec<Prompt>,
    columns: Vec<usize>,
    /// CRC-32 of codes and of scales, by the tensor's name.
    weights: BTreeMap<String, [u32; 2]>,
}

fn array<T: ReadableElement>(npz: &mut NpzReader<File>, name: &str) -> Vec<T> {
    let read: Result<Array1<T>, _> = npz.by_name(name);
    read.unwrap_or_else(|e| panic!("{name}: {e}")).into_raw_vec_and_offset().0
}

fn tokens(npz: &mut NpzReader<File>, name: &str) -> Vec<u32> {
    array::<i64>(npz, name).into_iter().map(|id| u32::try_from(id).expect("an id")).collect()
}

fn open(file: &str) -> NpzReader<File> {
    let path = models_dir().join("gem-mini").join(file);
    let file = File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    NpzReader::new(file).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

impl Stored {
    fn read() -> Stored {
        let (mut plain, mut npz) = (open("reference.npz"), open("reference-hybrid.npz"));
        let prompts = (0..PROMPTS).map(|i| {
            let name = |part: &str| format!("prompt.{i:03}.{part}");
            let greedy_logits = name("greedy_logits");
            Prompt {
                ids: tokens(&mut plain, &name("ids")),
                logits: array(&mut npz, &name("logits")),
                greedy: tokens(&mut npz, &name("greedy")),
                margins: array(&mut npz, &name("greedy_margin")),
                greedy_logits: npz.by_name(&greedy_logits).unwrap_or_else(|e| panic!("{greedy_logits}: {e}")),
            }
        });
        let prompts = prompts.collect();
        let columns = tokens(&mut npz, "greedy_columns").into_iter().map(|c| c as usize).collect();
        let names = String::from_utf8(array(&mut npz, "weights.names")).expect("names");
        let codes: Vec<u32> = array(&mut npz, "weights.codes");
        let scales: Vec<u32> = array(&mut npz, "weights.scales");
        let sums = codes.into_iter().zip(scales).map(|(c, s)| [c, s]);
        Stored { prompts, columns, weights: names.lines().map(String::from).zip(sums).collect() }
    }
}

/// gem-mini as the NPU target has it.
struct Lowered {
    model: Model,
    graph: Graph,
    npu: NpuModel,
    image: Vec<u8>,
}

impl Lowered {
    fn new() -> Lowered {
        let model = Model::of_folder(&models_dir().join("gem-mini"));
        let graph = model.fused(Builtin::Hybrid, MAX_TOKENS);
        let machine = Machine::preset("edge-32").unwrap_or_else(|e| panic!("{e}"));
        let options = ModelOptions { max_tokens: MAX_TOKENS, chunk_tokens: CHUNK_TOKENS as u64 };
        let npu = lower_model(&graph, &machine, &options).unwrap_or_else(|e| panic!("{e}"));
        let mut image = Vec::new();
        let written = npu.write_weights(&WeightReader::new(&graph, &*model.source), &mut image, &|_| ());
        written.unwrap_or_else(|e| panic!("{e}"));
        Lowered { model, graph, npu, image }
    }
}

static STORED: LazyLock<Stored> = LazyLock::new(Stored::read);
static LOWERED: LazyLock<Lowered> = LazyLock::new(Lowered::new);

/// How far logits are apart.
#[derive(Clone, Copy, Default)]
struct Distance {
    sum: f64,
    elems: usize,
    largest: f64,
    equal: usize,
}

impl Distance {
    fn add(&mut self, wanted: f32, found: f32) {
        let off = f64::from((wanted - found).abs());
        self.sum += off;
        self.elems += 1;
        self.equal += usize::from(wanted.to_bits() == found.to_bits());
        self.largest = self.largest.max(off);
    }

    fn merge(&mut self, other: Distance) {
        self.sum += other.sum;
        self.elems += other.elems;
        self.equal += other.equal;
        self.largest = self.largest.max(other.largest);
    }

    fn mean(&self) -> f64 {
        self.sum / self.elems.max(1) as f64
    }
}

impl std::fmt::Display for Distance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (mean, Distance { elems, largest, equal, .. }) = (self.mean(), *self);
        write!(f, "mean |Δlogit| {mean:.2e}, largest {largest:.2e}, {equal} of {elems} bit for bit")
    }
}

/// What was compared, of all prompts, by what gave the outputs.
#[derive(Default)]
struct Totals {
    prompts: usize,
    tokens: usize,
    distance: Distance,
    /// Prompts whose continuation parts from PyTorch's at a tie.
    parted: Vec<String>,
}

static TOTALS: Mutex<BTreeMap<&'static str, Totals>> = Mutex::new(BTreeMap::new());

/// The best token, of equal ones the lowest.
fn best(logits: &[f32]) -> u32 {
    let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (1..logits.len()).fold(0, better) as u32
}

/// Compares a prompt's logits and greedy tokens; `row` gives the logits at a step, which follow the tokens so far.
fn compare(
    what: &'static str,
    prompt: usize,
    steps: usize,
    mut row: impl FnMut(usize) -> Result<Vec<f32>, String>,
) -> Check {
    let wanted = &STORED.prompts[prompt];
    let mut distance = Distance::default();
    let mut same = 0;
    for step in 0..steps {
        let found = row(step).map_err(|e| format!("step {step}: {e}"))?;
        if found.len() != wanted.logits.len() {
            return Err(format!("step {step}: wanted {} logits, found {}", wanted.logits.len(), found.len()).into());
        }
        if step == 0 {
            wanted.logits.iter().zip(&found).for_each(|(w, f)| distance.add(*w, *f));
        }
        for (w, c) in wanted.greedy_logits.row(step).iter().zip(&STORED.columns) {
            distance.add(*w, found[*c]);
        }
        let (token, margin) = (best(&found), wanted.margins[step]);
        if token != wanted.greedy[step] {
            if margin < TIE {
                break;
            }
            let wanted = wanted.greedy[step];
            return Err(format!("step {step}: wanted token {wanted} (by {margin:.2e}), found {token}").into());
        }
        same += 1;
    }
    let is_near = distance.mean() <= MEAN; // what is not a number is not
    if !is_near {
        return Err(format!("{distance}, wanted a mean of at most {MEAN:e}").into());
    }
    let mut totals = TOTALS.lock().unwrap_or_else(|e| e.into_inner());
    let totals = totals.entry(what).or_default();
    totals.prompts += 1;
    totals.tokens += same;
    totals.distance.merge(distance);
    if same < steps {
        totals.parted.push(format!("prompt.{prompt:03} at step {same}"));
    }
    Ok(())
}

/// A prompt and its continuation in one piece through the reference interpreter.
fn interpreted(prompt: usize) -> Check {
    interpreted_as(&LOWERED.graph, prompt)
}

fn interpreted_as(graph: &Graph, prompt: usize) -> Check {
    let wanted = &STORED.prompts[prompt];
    let mut ids = wanted.ids.clone();
    ids.extend(&wanted.greedy[..wanted.greedy.len() - 1]);
    let interpreter = reference::interpreter(graph, &*LOWERED.model.source);
    let outputs = interpreter.run(&ids, wanted.greedy.len()).map_err(|e| e.to_string())?;
    let logits = outputs.get("logits").ok_or("logits: wanted some, found none")?;
    let row = |step: usize| Ok(logits.f32s()[step * logits.cols()..(step + 1) * logits.cols()].to_vec());
    compare("reference interpreter", prompt, wanted.greedy.len(), row)
}

/// A prompt through the simulated machine, then token after token.
fn simulated(prompt: usize, steps: usize) -> Check {
    let (lowered, wanted) = (&*LOWERED, &STORED.prompts[prompt]);
    let mut device = Device::with_image(&lowered.npu, lowered.image.clone())?;
    let mut call = |ids: &[u32], decode: bool| -> Result<Vec<f32>, String> {
        let answer = device.call(ids, 1, decode)?;
        Ok(answer.outputs.get("logits").ok_or("logits: wanted some, found none")?.f32s().to_vec())
    };
    let row = |step: usize| match step {
        0 => {
            let mut last = Vec::new();
            for ids in wanted.ids.chunks(CHUNK_TOKENS) {
                last = call(ids, false)?;
            }
            Ok(last)
        }
        // Tokens so far were PyTorch's.
        _ => call(&wanted.greedy[step - 1..step], true),
    };
    compare("simulator, edge-32", prompt, steps, row)
}

/// Codes and scales of all weights in integers are those that PyTorch found.
fn weights() -> Check {
    let lowered = &*LOWERED;
    let reader = WeightReader::new(&lowered.graph, &*lowered.model.source);
    let mut found = BTreeMap::new();
    for id in (0..lowered.graph.weights.len() as u32).map(WeightId) {
        let weight = lowered.graph.weight(id);
        if weight.def != WeightDef::Stored || !matches!(weight.storage, Storage::Int8 | Storage::Int4(_)) {
            continue;
        }
        let rows = reader.read_all_codes(id).map_err(|e| e.to_string())?;
        let codes: Vec<u8> = rows.codes.iter().map(|c| c.cast_unsigned()).collect();
        let scales: Vec<u8> = match &rows.scales {
            Scales::PerRow(scales) => scales.iter().flat_map(|s| s.to_le_bytes()).collect(),
            Scales::PerGroup { scales, .. } => scales.iter().flat_map(|s| s.to_le_bytes()).collect(),
        };
        found.insert(weight.name.clone(), [crc32fast::hash(&codes), crc32fast::hash(&scales)]);
    }
    let names = |of: &BTreeMap<String, [u32; 2]>| of.keys().cloned().collect::<Vec<_>>();
    if names(&found) != names(&STORED.weights) {
        return Err(format!("weights: wanted {:?}, found {:?}", names(&STORED.weights), names(&found)).into());
    }
    let differ: Vec<_> = found.iter().filter(|(name, sums)| STORED.weights[*name] != **sums).collect();
    match differ.is_empty() {
        true => Ok(()),
        false => Err(format!("codes or scales differ in {} of {}: {differ:?}", differ.len(), found.len()).into()),
    }
}

/// Domain modules of eight bits instead of four are found: by the mean, or by a token.
fn another_recipe_is_found() -> Check {
    let graph = LOWERED.model.fused(Builtin::Int8, MAX_TOKENS);
    match interpreted_as(&graph, 1) {
        Err(e) if ["wanted a mean", "wanted token"].iter().any(|w| e.message().is_some_and(|m| m.contains(w))) => {
            Ok(())
        }
        other => Err(format!("wanted a difference, found {other:?}").into()),
    }
}

fn main() {
    let mut cases =
        vec![Trial::test("weights", weights), Trial::test("harness/another-recipe-is-found", another_recipe_is_found)];
    for prompt in 0..PROMPTS {
        let sampled = prompt % SAMPLE_STEP == 0;
        let steps = if full() { usize::MAX } else { SAMPLE_TOKENS };
        let (skipped, ignored) = if full() || sampled { ("", false) } else { (" (skipped: LAPIDARY_TEST=full)", true) };
        let mut add = |name: String, check: Box<dyn FnOnce() -> Check + Send>| {
            cases.push(Trial::test(format!("{name}{skipped}"), check).with_ignored_flag(ignored));
        };
        add(format!("interpreter/prompt.{prompt:03}"), Box::new(move || interpreted(prompt)));
        let check = move || simulated(prompt, steps.min(STORED.prompts[prompt].greedy.len()));
        add(format!("simulator/prompt.{prompt:03}"), Box::new(check));
    }
    let conclusion = libtest_mimic::run(&Arguments::from_args(), cases);
    for (what, Totals { prompts, tokens, distance, parted }) in &*TOTALS.lock().unwrap_or_else(|e| e.into_inner()) {
        println!("{what}: {prompts} prompts, {tokens} greedy tokens equal, {distance}");
        println!("    continuations that part at a tie: {} {parted:?}", parted.len());
    }
    conclusion.exit();
}
