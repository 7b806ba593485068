//! The command line.

#[cfg(feature = "npu")]
mod npu;

use std::path::PathBuf;

use clap::{ArgGroup, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use lapidary_kernels::{QuantLayout, WeightType};
use lapidary_runtime::SamplerOptions;

#[cfg(feature = "npu")]
pub use npu::{AsmArgs, ModelRun, Observe, SimulateArgs};

/// Compiles sparse routed language models to native code and runs them.
#[derive(Parser)]
#[command(name = "lapidary", version, max_term_width = 100)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Args)]
pub struct Global {
    /// No progress, no log
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// More log
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub verbose: bool,
}

/// The command line of a self-contained executable: what `run`, `bench` and `inspect` offer, for the one model inside.
#[derive(Parser)]
#[command(version, max_term_width = 100, group = ArgGroup::new("report").args(["bench", "info"]))]
pub struct Executable {
    /// What to run, and how.
    #[command(flatten)]
    pub run: RunOptions,
    /// Threads (0: as many as the machine has; --bench takes several, as in 1,4)
    #[arg(long, value_delimiter = ',', default_value = "0", value_parser = thread_count)]
    pub threads: Vec<usize>,
    /// Time prefill and decode
    #[arg(long)]
    pub bench: bool,
    /// What to time.
    #[command(flatten)]
    pub bench_options: BenchOptions,
    /// Show what is inside: model, target, CPU features, kernels, sizes
    #[arg(long)]
    pub info: bool,
    /// How to look.
    #[command(flatten)]
    pub inspect_options: InspectOptions,
    /// Format of --bench and --info
    #[arg(long, value_enum, default_value_t, requires = "report")]
    pub format: Format,
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
}

impl Executable {
    /// Parses the arguments of this process, or ends it with usage, help or version.
    pub fn from_args() -> Self {
        let command = Self::command()
            .mut_group("RunOptions", |run| run.conflicts_with("report"))
            .mut_group("BenchOptions", |options| options.requires("bench"))
            .mut_group("InspectOptions", |options| options.requires("info"));
        Self::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
    }
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// For programs: one object with a `schema` field
    Json,
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Compiles the bundled, really trained GEM for this machine, generates, and shows where each token was routed
    #[cfg(feature = "compiler")]
    Demo(DemoArgs),
    /// Compiles a model to an artifact
    #[cfg(feature = "compiler")]
    Compile(CompileArgs),
    /// Runs an artifact: text generation, text to classes or embeddings, or plain tensors
    Run(RunArgs),
    /// Times an artifact: prefill and decode
    Bench(BenchArgs),
    /// Shows where the time of an artifact goes on this CPU: per op, per module, for the routers
    #[cfg(feature = "profile")]
    Profile(ProfileArgs),
    /// Shows what is in a model or an artifact
    Inspect(InspectArgs),
    /// Shows an artifact's code: each instruction, the op it comes from, what it calls and reads
    #[cfg(feature = "compiler")]
    Disasm(DisasmArgs),
    /// Runs a model compiled for an NPU, or an NPU program, in the simulator: values and cycles
    #[cfg(feature = "npu")]
    Simulate(SimulateArgs),
    /// Assembles an NPU program from text
    #[cfg(feature = "npu")]
    Asm(AsmArgs),
    /// Compares an artifact's outputs with reference outputs or another artifact
    #[cfg(feature = "compiler")]
    Compare(CompareArgs),
    /// Measures what each part of a model loses in each format and writes the best recipe under a budget
    #[cfg(feature = "compiler")]
    Calibrate(CalibrateArgs),
    /// Lists the targets that this build compiles for
    #[cfg(feature = "compiler")]
    Targets(ListArgs),
    /// Lists the kernels of this build and which of them run here
    Kernels(KernelsArgs),
    /// Lists the compiler's passes
    #[cfg(feature = "compiler")]
    Passes(ListArgs),
}

/// `kernels`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct KernelsArgs {
    /// How the list is printed.
    #[command(flatten)]
    pub list: ListArgs,
    /// What else to do with kernels.
    #[command(subcommand)]
    pub command: Option<KernelsCommand>,
}

/// What `kernels` does besides listing.
#[derive(Subcommand)]
pub enum KernelsCommand {
    /// Times every kernel of this machine for a matrix product, fastest first, and marks those that dispatch takes
    Bench(KernelsBenchArgs),
}

/// `kernels bench`.
#[derive(Args)]
pub struct KernelsBenchArgs {
    /// M,K,N[,TYPE…]: M rows of K inputs to N outputs; weight types f32, f16, i8, i4 (default: all)
    #[arg(value_parser = product)]
    pub product: Product,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// A matrix product to time.
#[derive(Clone, Debug)]
pub struct Product {
    /// Rows.
    pub m: usize,
    /// Inputs.
    pub k: usize,
    /// Outputs.
    pub n: usize,
    /// How weights are stored.
    pub types: Vec<WeightType>,
}

/// A number of threads. Far more than cores only cost memory, and each is a stack that the system has to find.
fn thread_count(text: &str) -> Result<usize, String> {
    const MOST: usize = 512;
    match text.parse() {
        Ok(count) if count <= MOST => Ok(count),
        _ => Err(format!("wanted 0 to {MOST}")),
    }
}

/// Reads M,K,N[,TYPE…].
fn product(text: &str) -> Result<Product, String> {
    /// Elements of an operand: 1 GiB of f32.
    const MOST_ELEMS: usize = 1 << 28;
    const TYPES: [WeightType; 4] = [WeightType::F32, WeightType::F16, WeightType::I8, WeightType::I4];
    let parts: Vec<&str> = text.split(',').collect();
    let [m, k, n, types @ ..] = parts.as_slice() else {
        return Err("wanted M,K,N[,TYPE…], as in 1,768,2048,i8".to_owned());
    };
    let size = |what: &str, text: &str| match text.parse() {
        Ok(0) | Err(_) => Err(format!("{what}: wanted a number of at least 1, found \"{text}\"")),
        Ok(size) => Ok(size),
    };
    let (m, k, n): (usize, usize, usize) = (size("M", m)?, size("K", k)?, size("N", n)?);
    if k > QuantLayout::MOST_INPUTS {
        return Err(format!("K: wanted at most {}, found {k}", QuantLayout::MOST_INPUTS));
    }
    for (what, rows, columns) in [("M·K", m, k), ("N·K", n, k), ("M·N", m, n)] {
        if rows.saturating_mul(columns) > MOST_ELEMS {
            return Err(format!("{what}: wanted at most {MOST_ELEMS} elements"));
        }
    }
    let known = |name: &str| {
        let found = TYPES.into_iter().find(|t| t.name() == name);
        found.ok_or_else(|| format!("type: wanted f32, f16, i8 or i4, found \"{name}\""))
    };
    let types =
        if types.is_empty() { TYPES.to_vec() } else { types.iter().map(|t| known(t)).collect::<Result<_, _>>()? };
    Ok(Product { m, k, n, types })
}

/// `targets`, `kernels`, `passes`.
#[derive(Args)]
pub struct ListArgs {
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// `demo`.
#[cfg(feature = "compiler")]
#[derive(Args)]
pub struct DemoArgs {
    /// Text to continue, instead of one prompt per chosen domain
    #[arg(long)]
    pub prompt: Option<String>,
    /// Tokens to generate per prompt
    #[arg(long, default_value_t = 12)]
    pub max_new: usize,
    /// Threads (0: as many as the machine has)
    #[arg(long, default_value_t = 0, value_parser = thread_count)]
    pub threads: usize,
}

/// `compile`.
#[cfg(feature = "compiler")]
#[derive(Args)]
pub struct CompileArgs {
    /// A GEM folder (config.json, *.safetensors, tokenizer.json), a .lir file, or preset:NAME
    pub model: String,
    /// What to compile for, see `lapidary targets`: a CPU, or npu:MACHINE (edge-16, edge-32, mobile-64, or a .toml file)
    #[arg(long, default_value = "native")]
    pub target: String,
    /// Overrides an entry of the NPU's machine; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The file to write [default: MODEL's name with .lapis, or without an extension for an executable]
    #[arg(short, long)]
    pub output: Option<PathBuf>,
    /// How weights, keys and values are stored: none (as in the checkpoint), fp32, fp16, int8, int4, hybrid, or a
    /// recipe's .toml file [default: none; hybrid with --budget and for an NPU]
    #[arg(long, value_name = "RECIPE")]
    pub quant: Option<String>,
    /// Most bytes that weights may take (900MB, 1.5GiB): lowers components of the recipe until they fit
    #[arg(long, value_name = "SIZE")]
    pub budget: Option<String>,
    /// Longest sequence [default: the model's max_position_embeddings]
    #[arg(long)]
    pub max_tokens: Option<u64>,
    /// Most tokens of one prefill call [default: 128, or the whole sequence where the model needs it]
    #[arg(long)]
    pub chunk_tokens: Option<u64>,
    /// What to write: lapis (an artifact), exe (a program that needs nothing else), ir
    #[arg(long, default_value = "lapis")]
    pub emit: String,
    /// Print the graph after a phase (imported, canonical, quantized, fused, planned) or after a pass, and stop
    #[arg(long, value_name = "PHASE|PASS")]
    pub dump_ir: Option<String>,
    /// Run only these passes on the graph as it was read, print it and stop
    #[arg(long, value_name = "PASS,…", value_delimiter = ',', conflicts_with_all = ["dump_ir", "why_not"])]
    pub passes: Option<Vec<String>>,
    /// Print why a pass did not fire where it might have, and stop
    #[arg(long, value_name = "PASS")]
    pub why_not: Option<String>,
    /// Plan and report, write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Format of the summary
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// `run`.
#[derive(Args)]
pub struct RunArgs {
    /// The artifact
    pub artifact: PathBuf,
    /// What to run, and how.
    #[command(flatten)]
    pub options: RunOptions,
    /// Threads (0: as many as the machine has)
    #[arg(long, default_value_t = 0, value_parser = thread_count)]
    pub threads: usize,
}

/// What to run, and how: options of `run` and of self-contained executables.
#[derive(Args)]
pub struct RunOptions {
    /// Text to continue
    #[arg(long, conflicts_with_all = ["text", "input"])]
    pub prompt: Option<String>,
    /// Text to classify or to embed
    #[arg(long, conflicts_with = "input")]
    pub text: Option<String>,
    /// Plain tensors: ids=@ids.npy (int64 of one dimension), or an .npz with arrays prompt.NNN.ids
    #[arg(long, value_name = "NAME=@FILE", requires = "output")]
    pub input: Option<String>,
    /// Where plain outputs go
    #[arg(long, value_name = "FILE.npz", requires = "input")]
    pub output: Option<PathBuf>,
    /// Tokens to generate [default: 64; with --input: none, the outputs are written instead]
    #[arg(long)]
    pub max_new: Option<usize>,
    /// 0: greedy
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Sample from the most probable tokens of this mass
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f32,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Generate on past the end-of-text token
    #[arg(long)]
    pub ignore_eos: bool,
    /// Print the work counters after the run: rows routed, keys read, modules read
    #[arg(long)]
    pub counters: bool,
    /// Write which modules every token visited, one line of JSON per token
    #[arg(long, value_name = "FILE")]
    pub record_routing: Option<PathBuf>,
}

impl RunOptions {
    /// How tokens are chosen.
    pub fn sampling(&self) -> SamplerOptions {
        SamplerOptions { temperature: self.temperature, top_p: self.top_p, seed: self.seed }
    }
}

/// `bench`.
#[derive(Args)]
pub struct BenchArgs {
    /// Artifacts, timed in turn
    #[arg(required = true)]
    pub artifacts: Vec<PathBuf>,
    /// Thread counts (0: as many as the machine has)
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = thread_count)]
    pub threads: Vec<usize>,
    /// What to time.
    #[command(flatten)]
    pub options: BenchOptions,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// What to time: options of `bench` and of self-contained executables.
#[derive(Args)]
pub struct BenchOptions {
    /// Tokens of a call: 1 times decode, more time prefill
    #[arg(long, value_delimiter = ',', default_value = "1,128")]
    pub tokens: Vec<usize>,
    /// Timed repetitions [default: as many as fit in about two seconds, 5 to 500]
    #[arg(long)]
    pub reps: Option<usize>,
    /// Untimed repetitions first
    #[arg(long, default_value_t = 3)]
    pub warmup: usize,
    /// Tokens already in the cache when decode is timed
    #[arg(long, default_value_t = 64)]
    pub context: usize,
    /// Token ids to run instead of random ones, again and again: int64 of one dimension
    #[arg(long, value_name = "FILE.npy")]
    pub ids: Option<PathBuf>,
    /// Which modules tokens visit: model (what the model's own router says)
    #[arg(long, default_value = "model")]
    pub routing: String,
}

/// `profile`.
#[cfg(feature = "profile")]
#[derive(Args)]
pub struct ProfileArgs {
    /// The artifact
    pub artifact: PathBuf,
    /// Text to continue
    #[arg(long, conflicts_with_all = ["text", "input"])]
    pub prompt: Option<String>,
    /// Text to classify or to embed
    #[arg(long, conflicts_with = "input")]
    pub text: Option<String>,
    /// Token ids instead of text: ids=@ids.npy, int64 of one dimension
    #[arg(long, value_name = "NAME=@FILE.npy")]
    pub input: Option<String>,
    /// Tokens to decode after the prompt
    #[arg(long, default_value_t = 32)]
    pub max_new: usize,
    /// Threads (0: as many as the machine has)
    #[arg(long, default_value_t = 1, value_parser = thread_count)]
    pub threads: usize,
    /// Measured rounds
    #[arg(long, default_value_t = 9)]
    pub reps: usize,
    /// Write the last round as a Chrome trace, for ui.perfetto.dev
    #[arg(long, value_name = "OUT.json")]
    pub trace: Option<PathBuf>,
    /// Write everything as one HTML page
    #[arg(long, value_name = "OUT.html")]
    pub report: Option<PathBuf>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// `inspect`.
#[derive(Args)]
pub struct InspectArgs {
    /// An artifact, a self-contained executable, a model folder, or preset:NAME
    pub file: String,
    /// How to look.
    #[command(flatten)]
    pub options: InspectOptions,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// `disasm`.
#[cfg(feature = "compiler")]
#[derive(Args)]
pub struct DisasmArgs {
    /// The artifact, or an assembled NPU program
    pub artifact: PathBuf,
    /// Only the functions of this entry point: prefill, decode
    #[arg(long)]
    pub entry: Option<String>,
    /// Only functions with this in their name or op
    #[arg(long, value_name = "SUBSTRING")]
    pub step: Option<String>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// How to look into an artifact: options of `inspect` and of self-contained executables.
#[derive(Args)]
pub struct InspectOptions {
    /// Verify every checksum and bound
    #[arg(long)]
    pub check: bool,
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,
}

/// `calibrate`.
#[cfg(feature = "compiler")]
#[derive(Args)]
pub struct CalibrateArgs {
    /// A GEM folder that generates
    pub model: String,
    /// Text to measure with; several: the same number of tokens of each
    #[arg(long, required = true, num_args = 1..)]
    pub text: Vec<PathBuf>,
    /// Most bytes that the weights may take (900MB, 1.5GiB) [default: any]
    #[arg(long, value_name = "SIZE")]
    pub budget: Option<String>,
    /// The recipe to write
    #[arg(short, long, value_name = "RECIPE.toml")]
    pub output: PathBuf,
    /// Tokens to measure with
    #[arg(long, default_value_t = 2048)]
    pub tokens: usize,
    /// Tokens of one sequence
    #[arg(long, default_value_t = 256)]
    pub sequence: u64,
    /// Choose for attention, general path and modules of each layer, instead of for each component
    #[arg(long)]
    pub by_layer: bool,
    /// Texts whose perplexity to show, under the built-in recipes and the chosen one
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    pub evaluate: Vec<PathBuf>,
    /// Threads (0: as many as the machine has)
    #[arg(long, default_value_t = 0, value_parser = thread_count)]
    pub threads: usize,
}

/// `compare`.
#[cfg(feature = "compiler")]
#[derive(Args)]
pub struct CompareArgs {
    /// The artifact
    pub artifact: PathBuf,
    /// `reference` (the outputs that PyTorch gave, or the reference interpreter), a reference .npz, or another artifact
    #[arg(long)]
    pub with: String,
    /// Folder of the model, for `reference` [default: found below tests/models by the artifact's digest]
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// Largest absolute difference [default: 1e-3 for f32 weights, else 1e-2]
    #[arg(long)]
    pub atol: Option<f32>,
    /// Difference allowed relative to the reference value, added to --atol
    #[arg(long, default_value_t = 0.0)]
    pub rtol: f32,
    /// Threads (0: as many as the machine has)
    #[arg(long, default_value_t = 1, value_parser = thread_count)]
    pub threads: usize,
    /// What the artifact gave elsewhere (`run --input ids=@F --output`, without and with --max-new), instead of running it here
    #[arg(long, value_name = "FILE.npz", value_delimiter = ',')]
    pub outputs: Option<Vec<PathBuf>>,
    /// Compare no greedy continuations
    #[arg(long)]
    pub no_greedy: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}
