//! From a model to an artifact: what `compile`, `demo` and `inspect` share.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lapidary_compiler::import::{self, ImportOptions, ImportedModel};
use lapidary_compiler::ir::{Component, Graph, Op, Phase, WeightReader};
use lapidary_compiler::passes::{self, PassContext, PassReport, Recipe, StopAfter};
use lapidary_compiler::plan::{Plan, cost};
use lapidary_compiler::quant::{BudgetError, Builtin, RecipeError, fit_budget, parse_bytes};
use lapidary_runtime::Tokenizer;
use lapidary_target_cpu::{About, CPU_TARGETS, CpuTarget, Lowered, component_name, lower};
use serde_json::json;

use crate::cli::Format;
use crate::executable;
use crate::failure::{Missed, Unsupported, Usage};
use crate::ui::{Ui, bytes, count, table};

/// Splat weights (one repeated value) beyond this are for planning and are not written out.
const MAX_SPLAT_BYTES: u64 = 256 << 20;
/// Largest recipe.
const MAX_RECIPE_BYTES: u64 = 1 << 20;

/// How to compile.
#[derive(Clone, Debug)]
pub struct Options {
    /// Storage of weights, keys and values.
    pub recipe: Recipe,
    /// Most bytes that the weights may take.
    pub budget_bytes: Option<u64>,
    /// Longest sequence; `None`: the model's.
    pub max_tokens: Option<u64>,
    /// Most tokens of a call; `None`: the default.
    pub chunk_tokens: Option<u64>,
}

impl Options {
    /// From what stands on the command line: `--quant`, `--budget`, `--max-tokens`, `--chunk-tokens`.
    pub fn new(
        quant: Option<&str>,
        budget: Option<&str>,
        max_tokens: Option<u64>,
        chunk_tokens: Option<u64>,
    ) -> anyhow::Result<Self> {
        let budget_bytes = budget
            .map(|text| parse_bytes(text).map_err(|e| anyhow::Error::new(Usage(format!("--budget: {e}")))))
            .transpose()?;
        let recipe = match (quant, budget_bytes) {
            (Some(name), _) => recipe(name)?,
            (None, Some(_)) => Builtin::Hybrid.into(),
            (None, None) => Recipe::default(),
        };
        Ok(Options { recipe, budget_bytes, max_tokens, chunk_tokens })
    }

    /// The recipe as it fits a model and the budget.
    fn recipe_for(&self, graph: &Graph) -> anyhow::Result<Recipe> {
        let wrong = |e: RecipeError| anyhow::Error::new(Usage(format!("--quant: {e}")));
        let Some(budget_bytes) = self.budget_bytes else {
            self.recipe.choices(graph).map_err(wrong)?;
            return Ok(self.recipe.clone());
        };
        fit_budget(graph, &self.recipe, budget_bytes).map_err(|e| match e {
            BudgetError::Recipe(e) => wrong(e),
            BudgetError::Impossible { smallest_bytes, .. } => anyhow::Error::new(Missed(format!(
                "--budget: wanted at least {smallest_bytes} bytes ({}), the smallest that the weights of {} can be, found \
                 {budget_bytes}",
                bytes(smallest_bytes),
                graph.info.name
            ))),
        })
    }
}

/// A CPU by its name.
pub fn cpu_target(name: &str) -> anyhow::Result<CpuTarget> {
    CpuTarget::by_name(name).ok_or_else(|| {
        let names: Vec<_> = CPU_TARGETS.iter().map(|row| row.name).collect();
        anyhow::Error::new(Usage(format!(
            "--target: wanted one of {}, or npu:MACHINE, found `{name}`",
            names.join(", ")
        )))
    })
}

/// A built-in recipe, or one from a `.toml` file.
fn recipe(name: &str) -> anyhow::Result<Recipe> {
    let path = Path::new(name);
    if path.extension().is_none_or(|e| e != "toml") {
        return Recipe::from_str(name)
            .map_err(|e| anyhow::Error::new(Usage(format!("--quant: {e}, or a recipe's .toml file"))));
    }
    let mut text = String::new();
    let file = File::open(path).with_context(|| format!("--quant {name}"))?;
    file.take(MAX_RECIPE_BYTES + 1).read_to_string(&mut text).with_context(|| format!("--quant {name}"))?;
    if text.len() as u64 > MAX_RECIPE_BYTES {
        bail!(Usage(format!("--quant {name}: wanted at most {MAX_RECIPE_BYTES} bytes, found more")));
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    Recipe::from_toml(&text, &stem).map_err(|e| anyhow::Error::new(Usage(format!("--quant: {e}"))))
}

/// A model with its plan.
pub struct Planned {
    /// As imported: parameters and sizes before.
    pub before: Vec<cost::ComponentBytes>,
    /// Fused graph.
    pub graph: Graph,
    /// Weights and tokenizer.
    pub model: Arc<ImportedModel>,
    /// Memory.
    pub plan: Plan,
    /// How to compile.
    pub options: Options,
}

/// Reads a model.
pub fn load(model: &str) -> anyhow::Result<ImportedModel> {
    Ok(import::load(model, &ImportOptions::default())?)
}

/// The context of the passes for a graph.
pub fn context(graph: &Graph, options: &Options) -> anyhow::Result<PassContext> {
    let limit = graph.info.max_position_embeddings;
    let max_tokens = options.max_tokens.unwrap_or(limit);
    if max_tokens == 0 || max_tokens > limit {
        bail!(Usage(format!("--max-tokens: wanted 1 to {limit} (max_position_embeddings), found {max_tokens}")));
    }
    // A graph that is quantized already keeps its storage.
    let recipe = if graph.phase < Phase::Quantized { options.recipe_for(graph)? } else { options.recipe.clone() };
    let mut context = PassContext::new(graph, recipe, max_tokens);
    if let Some(chunk) = options.chunk_tokens {
        if chunk == 0 || chunk > max_tokens {
            bail!(Usage(format!("--chunk-tokens: wanted 1 to {max_tokens} (the longest sequence), found {chunk}")));
        }
        context.chunk_tokens = chunk;
    }
    Ok(context)
}

/// Runs the passes up to `stop_after`; `observer` sees each pass.
pub fn run_passes(
    graph: &mut Graph,
    options: &Options,
    stop_after: Option<StopAfter>,
    observer: &mut dyn FnMut(&'static passes::PassRow, &Graph, &PassReport),
) -> anyhow::Result<Option<Plan>> {
    let context = context(graph, options)?;
    Ok(passes::run_pipeline(graph, &context, stop_after, observer)?)
}

/// Runs all passes.
pub fn plan(model: impl Into<Arc<ImportedModel>>, mut options: Options, ui: &Ui) -> anyhow::Result<Planned> {
    let model = model.into();
    options.recipe = context(&model.graph, &options)?.recipe;
    let before = cost::weight_bytes(&model.graph);
    let mut graph = model.graph.clone();
    let plan = run_passes(&mut graph, &options, None, &mut |row, graph, report| {
        ui.detail(format!("{}: {} changes, {} nodes", row.name, report.fired.len(), graph.nodes.len()));
    })?;
    let plan = plan.context("the passes ended without a memory plan: the graph was planned before")?;
    Ok(Planned { before, graph, model, plan, options })
}

impl Planned {
    /// Decoding at the full context, or prefill of one token where the model cannot decode.
    pub fn work_per_token(&self) -> cost::Work {
        cost::decode_work(&self.graph, self.plan.max_tokens - 1).unwrap_or_else(|| cost::prefill_work(&self.graph, 1))
    }

    /// The token that ends a text, if there is a tokenizer and it has one.
    pub fn end_token(&self) -> anyhow::Result<Option<u32>> {
        let Some(json) = &self.model.tokenizer else { return Ok(None) };
        let tokenizer = Tokenizer::from_json(json);
        Ok(tokenizer.with_context(|| format!("{}: tokenizer.json", self.graph.info.name))?.end_token())
    }

    /// Parameters of the model.
    pub fn parameters(&self) -> u64 {
        self.before.iter().map(|c| c.elems).sum()
    }

    /// Code, weight layout, tables.
    pub fn lower(&self, target: &CpuTarget) -> anyhow::Result<Lowered<'_>> {
        let work = self.work_per_token();
        let about = About {
            quantization: self.options.recipe.name.clone(),
            recipe: self.options.recipe.to_toml(&[]),
            tokenizer: self.model.tokenizer.clone(),
            end_token: self.end_token()?,
            bytes_touched_per_token: work.weight_bytes.max + work.kv_bytes,
            macs_per_token: work.multiply_adds.max,
            parameters: self.parameters(),
        };
        Ok(lower(&self.graph, &self.plan, target, &about)?)
    }

    /// Writes the artifact; gives its size.
    pub fn write(&self, lowered: &Lowered<'_>, path: &Path, ui: &Ui) -> anyhow::Result<u64> {
        let total = lowered.layout().size_bytes();
        self.write_with(total, path, ui, |read, progress| Ok(lowered.write_file(path, read, progress)?))
    }

    /// Writes an executable, `runner` for `triple` with the artifact; gives the sizes of the artifact and of all.
    pub fn write_executable(
        &self,
        lowered: &Lowered<'_>,
        (runner, triple): (&Path, &str),
        path: &Path,
        ui: &Ui,
    ) -> anyhow::Result<(u64, u64)> {
        self.write_with(lowered.layout().size_bytes(), path, ui, |read, progress| {
            let mut artifact_bytes = 0;
            let all = executable::write(path, runner, triple, |out| {
                artifact_bytes = lowered.write_to(out, read, progress)?;
                anyhow::Ok(artifact_bytes)
            })?;
            Ok((artifact_bytes, all))
        })
    }

    /// Weights of one repeated value, made for planning, are not written out where they are large.
    pub fn check_splat(&self, hint: &str) -> anyhow::Result<()> {
        let splat: u64 = self.before.iter().map(|c| c.splat_bytes).sum();
        if splat > MAX_SPLAT_BYTES {
            bail!(Unsupported(format!(
                "{}: its weights are {} of one repeated value, made for planning and not written out\nhint: {hint}",
                self.graph.info.name,
                bytes(splat)
            )));
        }
        Ok(())
    }

    /// Calls `write` with what reads the weights and what is told how many of `total_bytes` are written.
    pub fn write_with<R>(
        &self,
        total_bytes: u64,
        path: &Path,
        ui: &Ui,
        write: impl FnOnce(&WeightReader<'_>, &dyn Fn(u64)) -> anyhow::Result<R>,
    ) -> anyhow::Result<R> {
        self.check_splat("use --dry-run")?;
        create_folder_of(path)?;
        let reader = WeightReader::new(&self.graph, self.model.source.as_ref());
        let bar = ui.bytes_bar("weights", total_bytes);
        let written = write(&reader, &|done| bar.set_position(done));
        bar.finish_and_clear();
        written.with_context(|| path.display().to_string())
    }
}

/// Creates the folder that a result will lie in.
pub fn create_folder_of(path: &Path) -> anyhow::Result<()> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot be created", folder.display()))
        }
        None => Ok(()),
    }
}

/// What a compilation took and gave.
pub struct Summary<'a> {
    /// The plan.
    pub planned: &'a Planned,
    /// The CPU.
    pub target: &'a CpuTarget,
    /// The code and layout.
    pub lowered: &'a Lowered<'a>,
    /// Size of the artifact; `None` for a dry run.
    pub artifact_bytes: Option<u64>,
    /// Size of the executable around it, if that is what was written.
    pub executable_bytes: Option<u64>,
    /// Time from reading the model to the finished file.
    pub elapsed: Duration,
}

/// How the weights of a component are stored: `int8`, or several with commas. (A norm may be in the matrices after it.)
pub fn storages(graph: &Graph, component: Component) -> String {
    let read = graph.nodes.iter().flat_map(|n| n.operands.iter()).filter_map(|o| o.weight()).map(|w| graph.weight(w));
    let found: BTreeSet<_> = read.filter(|w| w.component == component).map(|w| w.storage).collect();
    found.iter().map(|s| s.name()).collect::<Vec<_>>().join(", ")
}

/// A range as text: one number where both ends are equal.
pub fn range(r: cost::Range, text: fn(u64) -> String) -> String {
    if r.min == r.max { text(r.max) } else { format!("{} to {}", text(r.min), text(r.max)) }
}

impl Summary<'_> {
    /// A start time for `elapsed`.
    pub fn start() -> Instant {
        Instant::now()
    }

    /// Number of nodes by where they run: kernels called by generated code, or code alone.
    fn ops(&self) -> (usize, usize) {
        let own = |op: Op| matches!(op, Op::Add | Op::Mul | Op::Scale | Op::Fill);
        let nodes = self.planned.graph.nodes.iter().filter(|n| n.op != Op::Slice);
        let (code, kernels): (Vec<_>, Vec<_>) = nodes.partition(|n| own(n.op));
        (kernels.len(), code.len())
    }

    /// For people.
    pub fn print_text(&self) {
        let (Planned { before, graph, plan, .. }, target) = (self.planned, self.target);
        let program = self.lowered.program();
        let (kernels, code) = self.ops();
        let work = self.planned.work_per_token();
        println!(
            "{} for {}: {} ops, all on the CPU: {} steps of generated code ({}) that call {} kernels",
            graph.info.name,
            target.name,
            kernels + code,
            program.ranges.iter().filter(|r| r.node.is_some()).count(),
            bytes(program.code.len() as u64),
            program.kernels.len(),
        );
        let after = self.components_after();
        let stored = cost::weight_bytes(graph);
        let rows = before.iter().map(|c| {
            let name = component_name(Some(c.component));
            let packed = after.iter().find(|(n, _)| *n == name).map_or(0, |(_, b)| *b);
            let stored = stored.iter().find(|s| s.component == c.component).map_or(0, |s| s.bytes);
            let storage = storages(graph, c.component);
            vec![name.to_string(), count(c.elems), bytes(c.bytes), bytes(stored), bytes(packed), storage]
        });
        println!("{}", table(&["component", ">parameters", ">before", ">stored", ">packed", "as"], rows));
        println!(
            "weights {} -> {}, arena {} (calls of {} tokens), state {} (contexts of {})",
            bytes(before.iter().map(|c| c.bytes).sum()),
            bytes(self.lowered.layout().size_bytes()),
            bytes(plan.arena_bytes),
            plan.chunk_tokens,
            bytes(plan.state_bytes),
            plan.max_tokens
        );
        println!(
            "per {}: {} of weights and {} of keys and values touched, {} multiply-adds",
            if graph.info.why_no_decode.is_none() { "decoded token at full context" } else { "token" },
            range(work.weight_bytes, bytes),
            bytes(work.kv_bytes),
            range(work.multiply_adds, count)
        );
        if let Some(reason) = &graph.info.why_no_decode {
            println!("prefill only: {reason}");
        }
        match target.memory_bytes_per_s {
            Some(rate) => println!(
                "at least {:.1} ms per token: bytes touched at {} per second of memory bandwidth",
                1e3 * (work.weight_bytes.max + work.kv_bytes) as f64 / rate,
                bytes(rate as u64)
            ),
            None => println!("latency: not predicted for {}; `lapidary bench` measures it", target.name),
        }
        if let (Some(all), Some(artifact)) = (self.executable_bytes, self.artifact_bytes) {
            println!("executable {}: runner {}, artifact {}", bytes(all), bytes(all - artifact), bytes(artifact));
        }
        match self.artifact_bytes {
            Some(size) => println!("artifact {} in {:.2} s", bytes(size), self.elapsed.as_secs_f64()),
            None => println!("dry run: nothing written, {:.2} s", self.elapsed.as_secs_f64()),
        }
    }

    /// For programs.
    pub fn print_json(&self) {
        let Planned { before, graph, plan, options, .. } = self.planned;
        let work = self.planned.work_per_token();
        let bound =
            self.target.memory_bytes_per_s.map(|rate| 1e3 * (work.weight_bytes.max + work.kv_bytes) as f64 / rate);
        let stored = cost::weight_bytes(graph);
        let components: Vec<_> = before
            .iter()
            .map(|c| {
                let name = component_name(Some(c.component));
                let after = self.components_after().iter().find(|(n, _)| *n == name).map_or(0, |(_, b)| *b);
                let stored = stored.iter().find(|s| s.component == c.component).map_or(0, |s| s.bytes);
                json!({
                    "name": name,
                    "parameters": c.elems,
                    "bytes_before": c.bytes,
                    "bytes_stored": stored,
                    "bytes_packed": after,
                    "stored_as": storages(graph, c.component),
                })
            })
            .collect();
        let (kernels, code) = self.ops();
        let result = json!({
            "schema": "lapidary.compile/1",
            "model": graph.info.name,
            "target": self.target.name,
            "quantization": options.recipe.name,
            "ops": { "kernels": kernels, "generated_code": code },
            "parameters": before.iter().map(|c| c.elems).sum::<u64>(),
            "components": components,
            "weights_bytes_before": before.iter().map(|c| c.bytes).sum::<u64>(),
            "weights_bytes": self.lowered.layout().size_bytes(),
            "code_bytes": self.lowered.program().code.len(),
            "arena_bytes": plan.arena_bytes,
            "state_bytes": plan.state_bytes,
            "max_tokens": plan.max_tokens,
            "chunk_tokens": plan.chunk_tokens,
            "weight_bytes_per_token": { "min": work.weight_bytes.min, "max": work.weight_bytes.max },
            "kv_bytes_per_token": work.kv_bytes,
            "multiply_adds_per_token": { "min": work.multiply_adds.min, "max": work.multiply_adds.max },
            "latency_bound_ms": bound,
            "artifact_bytes": self.artifact_bytes,
            "executable_bytes": self.executable_bytes,
            "seconds": self.elapsed.as_secs_f64(),
        });
        println!("{result:#}");
    }

    fn components_after(&self) -> Vec<(&'static str, u64)> {
        let mut sums: Vec<(&'static str, u64)> = Vec::new();
        for row in self.lowered.layout().tensors(&self.planned.graph) {
            let name = component_name(row.component);
            match sums.iter_mut().find(|(n, _)| *n == name) {
                Some((_, sum)) => *sum += row.piece.size_bytes,
                None => sums.push((name, row.piece.size_bytes)),
            }
        }
        sums
    }
}

/// `lapidary inspect` of a model that is not compiled.
pub fn inspect(model: &str, format: Format) -> anyhow::Result<ExitCode> {
    let imported = load(model)?;
    let info = &imported.graph.info;
    let components = cost::weight_bytes(&imported.graph);
    let parameters = components.iter().map(|c| c.elems).sum();
    match format {
        Format::Text => {
            println!("model      {} ({:?}, {} parameters)", info.name, info.head, count(parameters));
            println!("graph      {} nodes, {} weights", imported.graph.nodes.len(), imported.graph.weights.len());
            println!("tokenizer  {}", if imported.tokenizer.is_some() { "yes" } else { "none" });
            let rows = components
                .iter()
                .map(|c| vec![component_name(Some(c.component)).into(), count(c.elems), bytes(c.bytes)]);
            println!("{}", table(&["component", ">parameters", ">size"], rows));
            println!("{}", info.config_json.trim_end());
        }
        Format::Json => {
            let components: Vec<_> = components
                .iter()
                .map(|c| json!({ "name": component_name(Some(c.component)), "parameters": c.elems, "bytes": c.bytes }))
                .collect();
            let config: serde_json::Value = serde_json::from_str(&info.config_json).unwrap_or_default();
            let result = json!({
                "schema": "lapidary.inspect-model/1",
                "model": info.name,
                "parameters": parameters,
                "nodes": imported.graph.nodes.len(),
                "has_tokenizer": imported.tokenizer.is_some(),
                "components": components,
                "config": config,
            });
            println!("{result:#}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
