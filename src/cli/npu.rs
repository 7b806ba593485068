//! The command line of what is about NPUs alone: `simulate` and `asm`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Format;
use crate::npu::Shape;

/// `simulate`.
#[derive(Args)]
pub struct SimulateArgs {
    /// An artifact for an NPU, an assembled program, or a model (folder, .lir, preset:NAME), which is compiled without being written
    pub artifact: Option<String>,
    /// Times a matrix multiplication instead, as every one of a model is lowered: int8 × int8, M rows of K inputs to N outputs
    #[arg(long, value_name = "M,N,K", conflicts_with_all = ["artifact", "gemm_csv", "ModelRun"])]
    pub gemm: Option<Shape>,
    /// Times a list of them: a line M,N,K each
    #[arg(long, value_name = "FILE", conflicts_with_all = ["artifact", "ModelRun"])]
    pub gemm_csv: Option<PathBuf>,
    /// The machine [default: what the artifact is compiled for, otherwise edge-32]
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub machine: Option<String>,
    /// Overrides an entry of the machine; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Cycles without values; programs whose course depends on computed values are refused, models need --routing
    #[arg(long)]
    pub timing_only: bool,
    /// What to run of a model.
    #[command(flatten)]
    pub model: ModelRun,
    /// Writes what each unit did when, as Chrome trace events (ui.perfetto.dev)
    #[arg(long, value_name = "OUT.json")]
    pub trace: Option<PathBuf>,
    /// Writes a page with timeline, roofline, stalls and memory over time
    #[arg(long, value_name = "OUT.html")]
    pub report: Option<PathBuf>,
    /// Writes a table: of a program by class of instructions, of a model by op and by module
    #[arg(long, value_name = "OUT.csv")]
    pub csv: Option<PathBuf>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// What `simulate` runs of a model.
#[derive(Args)]
pub struct ModelRun {
    /// Text to continue
    #[arg(long, conflicts_with_all = ["prompts", "tokens", "input"])]
    pub prompt: Option<String>,
    /// Texts to continue, one per line: shows median, p95 and longest latency
    #[arg(long, value_name = "FILE", conflicts_with_all = ["tokens", "input"])]
    pub prompts: Option<PathBuf>,
    /// So many made-up ids instead of a text
    #[arg(long, value_name = "N", conflicts_with = "input")]
    pub tokens: Option<u64>,
    /// Token ids instead of a text: ids=@ids.npy (int64 of one dimension), or an .npz with arrays prompt.NNN.ids
    #[arg(long, value_name = "NAME=@FILE")]
    pub input: Option<String>,
    /// Where plain outputs go; every token goes through the head then
    #[arg(long, value_name = "FILE.npz", conflicts_with = "timing_only")]
    pub output: Option<PathBuf>,
    /// Tokens to generate, greedily; without values: made-up tokens to decode [default: 16 behind a text, 1 behind made-up ids, none
    /// behind --input]
    #[arg(long)]
    pub max_new: Option<u64>,
    /// Generate on past the end-of-text token
    #[arg(long)]
    pub ignore_eos: bool,
    /// Which modules tokens visit: uniform, zipf:S, or trace=F of `run --record-routing F` [default: what the model's router says]
    #[arg(long, value_name = "uniform|zipf:S|trace=F")]
    pub routing: Option<String>,
    /// Modules of a token for uniform and zipf:S [default: the most that the model's policy gives, k_max]
    #[arg(long, value_name = "N", requires = "routing")]
    pub modules_per_token: Option<u32>,
    /// The call that --trace shows, the first of its kind [default: decode if any token is decoded]
    #[arg(long, value_enum)]
    pub observe: Option<Observe>,
    /// For a model: storage of its weights, as for `compile`
    #[arg(long, value_name = "RECIPE")]
    pub quant: Option<String>,
    /// For a model: longest sequence, as for `compile`
    #[arg(long)]
    pub max_tokens: Option<u64>,
    /// For a model: most tokens of one prefill call, as for `compile`
    #[arg(long)]
    pub chunk_tokens: Option<u64>,
}

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Observe {
    /// A chunk of the prompt
    Prefill,
    /// One token
    Decode,
}

/// `asm`.
#[derive(Args)]
pub struct AsmArgs {
    /// The program's text
    pub source: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "OUT.npu")]
    pub output: PathBuf,
    /// Verify the program for this machine: tokens, races, bounds, loops
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub machine: Option<String>,
    /// Overrides an entry of the machine; may be given several times
    #[arg(long, value_name = "KEY=VALUE", requires = "machine")]
    pub set: Vec<String>,
}
