//! Runs every file under `tests/filetests`: text in, text out.
//!
//! A file is a `.lir` text whose first comment says what to do with it, followed by what should come out:
//!
//! ```text
//! ; run: fuse-swiglu                 passes in order, or `pipeline`, `pipeline PHASE`, `verify`, `parse`, `cost`
//! ; recipe: fp16                     optional; also `max-tokens: N`, `chunk-tokens: N`
//! lir 1
//! …
//! ;; fired                           `pass: label: what`, one line each
//! ;; missed                          `pass: label: reason`
//! ;; graph                           the graph afterwards
//! ;; plan, ;; places                 after plan-memory: the picture, and where each value lives
//! ;; cost                            after cost: what is stored, read and multiplied
//! ;; error                           the error that stopped it
//! ```
//!
//! With `parse` and `verify`, the expected error stands at the end of the line that it is about: `; error: …`.
//! `LAPIDARY_BLESS=1` rewrites what is expected. Whatever the expectation, each graph that comes out is verified, read
//! back from its own text, and computes what the graph that went in computes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use lapidary_compiler::interp::{Data, Interpreter, Tensor};
use lapidary_compiler::ir::{DType, Graph, Op, Phase, Storage, WeightSource, parse};
use lapidary_compiler::passes::{self, PassContext, PassReport, Recipe, StopAfter};
use lapidary_compiler::plan::{self, Plan, cost};
use libtest_mimic::{Arguments, Trial};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/filetests");
    let mut files = Vec::new();
    find_files(&root, &mut files);
    files.sort();
    let covered: Vec<Trial> = passes::passes().iter().map(|row| coverage(&root, row)).collect();
    let trial = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
        Trial::test(name, move || run_file(&path).map_err(|e| format!("{e:#}").into()))
    };
    let trials = files.into_iter().map(trial).chain(covered).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// Every pass has a file in which it fires and one in which it does not.
fn coverage(root: &Path, row: &'static passes::PassRow) -> Trial {
    let folder = root.join("passes").join(row.name);
    Trial::test(format!("{} has filetests", row.name), move || {
        let mut files = Vec::new();
        find_files(&folder, &mut files);
        let texts = files.iter().map(std::fs::read_to_string).collect::<std::io::Result<Vec<_>>>()?;
        let fires = |text: &String| text.contains(&format!("\n{}: ", row.name)) && text.contains("\n;; fired\n");
        match (texts.iter().any(fires), texts.iter().any(|text| !text.contains("\n;; fired\n"))) {
            (true, true) => Ok(()),
            (fired, stayed) => Err(format!("fires in a file: {fired}, does not in another: {stayed}").into()),
        }
    })
}

fn find_files(folder: &Path, out: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for path in entries.map(|e| e.expect("an entry of a folder that can be listed").path()) {
        if path.is_dir() {
            find_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "lir") {
            out.push(path);
        }
    }
}

fn run_file(path: &Path) -> Result<()> {
    let text = std::fs::read_to_string(path)?;
    let actual = process(&text)?;
    if actual == text {
        return Ok(());
    }
    if std::env::var_os("LAPIDARY_BLESS").is_some_and(|v| v == "1") {
        std::fs::write(path, actual)?;
        return Ok(());
    }
    let first = text.lines().zip(actual.lines()).position(|(a, b)| a != b);
    let at = first.unwrap_or_else(|| text.lines().count().min(actual.lines().count()));
    let line = |text: &str| text.lines().nth(at).unwrap_or("(end of file)").to_owned();
    bail!("line {}:\n  wanted {}\n  found  {}\n\nall that was found:\n{actual}", at + 1, line(&text), line(&actual))
}

/// What the head of a file asks for.
struct Directives {
    run: String,
    recipe: Recipe,
    max_tokens: u64,
    chunk_tokens: Option<u64>,
}

impl Directives {
    fn read(text: &str) -> Result<Self> {
        let head = text.lines().take_while(|l| l.starts_with(';') || l.is_empty());
        let fields: BTreeMap<&str, &str> =
            head.filter_map(|l| l.strip_prefix("; ")?.split_once(": ")).map(|(k, v)| (k, v.trim())).collect();
        let number = |key: &str| fields.get(key).map(|n| n.parse::<u64>()).transpose();
        Ok(Self {
            run: (*fields.get("run").context("the file has no `; run: …` line")?).to_owned(),
            recipe: fields.get("recipe").map_or(Ok(Recipe::default()), |r| r.parse())?,
            max_tokens: number("max-tokens")?.unwrap_or(16),
            chunk_tokens: number("chunk-tokens")?,
        })
    }

    fn context(&self, graph: &Graph) -> PassContext {
        let ctx = PassContext::new(graph, self.recipe.clone(), self.max_tokens);
        PassContext { chunk_tokens: self.chunk_tokens.unwrap_or(ctx.chunk_tokens), ..ctx }
    }
}

/// The file as it should be: its input, then what came out.
fn process(text: &str) -> Result<String> {
    let input: String = text.lines().take_while(|l| !l.starts_with(";; ")).map(|l| format!("{l}\n")).collect();
    let directives = Directives::read(text)?;
    if directives.run == "parse" || directives.run == "verify" {
        return Ok(annotate_error(&input, directives.run == "verify"));
    }
    let graph = parse(&input)?;
    let mut sections = format!("{}\n", input.trim_end());
    if directives.run == "cost" {
        section(&mut sections, "cost", &show_cost(&graph, directives.max_tokens));
        return Ok(sections);
    }
    run_passes(graph, &directives, &mut sections)?;
    Ok(sections)
}

fn section(out: &mut String, name: &str, body: &str) {
    if !body.is_empty() {
        write!(out, "\n;; {name}\n{}\n", body.trim_end()).expect("writing to a string");
    }
}

fn run_passes(mut graph: Graph, directives: &Directives, sections: &mut String) -> Result<()> {
    let ctx = directives.context(&graph);
    let before = graph.clone();
    let (mut fired, mut missed) = (String::new(), String::new());
    let mut observe = |row: &passes::PassRow, _: &Graph, report: &PassReport| {
        for f in &report.fired {
            writeln!(fired, "{}: {}: {}", row.name, f.label, f.what).expect("writing to a string");
        }
        for m in &report.missed {
            writeln!(missed, "{}: {}: {}", row.name, m.label, m.reason).expect("writing to a string");
        }
    };
    let result: Result<Option<Plan>, passes::PassError> = match directives.run.strip_prefix("pipeline") {
        Some("") => passes::run_pipeline(&mut graph, &ctx, None, &mut observe),
        Some(phase) => {
            let phase = Phase::by_name(phase.trim()).context("pipeline: no such phase")?;
            passes::run_pipeline(&mut graph, &ctx, Some(StopAfter::Phase(phase)), &mut observe)
        }
        None => {
            let rows: Vec<_> = directives.run.split(", ").map(passes::by_name).collect();
            ensure!(rows.iter().all(|r| r.is_some()), "run: no such pass in `{}`", directives.run);
            rows.into_iter().flatten().try_fold(None, |_, row| {
                let report = passes::run_pass(row, &mut graph, &ctx)?;
                observe(row, &graph, &report);
                Ok(report.plan)
            })
        }
    };
    section(sections, "fired", &fired);
    section(sections, "missed", &missed);
    let plan = match result {
        Ok(plan) => plan,
        Err(error) => {
            section(sections, "error", &error.to_string());
            return Ok(());
        }
    };
    graph.verify().context("the graph that came out")?;
    let printed = graph.to_string();
    let read_back = parse(&printed).context("reading back the graph that came out")?;
    ensure!(read_back == graph, "the graph that came out reads back differently:\n{printed}");
    if before.verify().is_ok() {
        // What the recipe rounds is another model; the passes around it must not change anything more.
        let mut rounded = before.clone();
        if fired.contains("choose-formats: ") {
            let row = passes::by_name("choose-formats").context("choose-formats")?;
            passes::run_pass(row, &mut rounded, &ctx)?;
        }
        same_results(&before, &rounded, &graph)?;
    }
    if let Some(plan) = plan {
        plan::check(&plan, &graph)?;
        section(sections, "plan", &plan::render(&plan, &graph));
        section(sections, "places", &show_places(&plan));
    }
    section(sections, "graph", &printed);
    Ok(())
}

/// One line per value: its buffer, offset in it and row stride.
fn show_places(plan: &Plan) -> String {
    let mut out = String::new();
    for (v, place) in plan.places.iter().enumerate() {
        let Some(place) = place else { continue };
        let buffer = &plan.buffers[place.buffer.0 as usize];
        let offset = place.offset_bytes - buffer.offset_bytes;
        writeln!(out, "%{v}: {} + {offset}, stride {}", buffer.name, place.row_stride).expect("writing to a string");
    }
    out
}

fn show_cost(graph: &Graph, max_tokens: u64) -> String {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").expect("writing to a string");
    for c in cost::weight_bytes(graph) {
        let (name, splat) = (c.component.name(), c.splat_bytes);
        line(format!("{name}: {} parameters, {} bytes, {splat} of them splat", c.elems, c.bytes));
    }
    let work = |name: String, w: cost::Work| {
        let (bytes, macs) = (w.weight_bytes, w.multiply_adds);
        let weights = format!("weights {}..{} bytes", bytes.min, bytes.max);
        format!("{name}: {weights}, keys and values {} bytes, {}..{} multiply-adds", w.kv_bytes, macs.min, macs.max)
    };
    for context in [0, max_tokens - 1] {
        match cost::decode_work(graph, context) {
            Some(w) => line(work(format!("decode at {context}"), w)),
            None => line(format!("decode at {context}: none")),
        }
    }
    line(work(format!("prefill of {max_tokens}"), cost::prefill_work(graph, max_tokens)));
    out
}

/// The input with the error at the end of the line that it is about, and without other expectations.
fn annotate_error(input: &str, verify: bool) -> String {
    let lines: Vec<&str> = input.lines().map(|l| l.split("; error: ").next().unwrap_or(l).trim_end()).collect();
    let clean = lines.iter().map(|l| format!("{l}\n")).collect::<String>();
    let found = match parse(&clean) {
        Err(e) => Some((e.line - 1, format!("{}: {}", e.column, e.message))),
        Ok(graph) if verify => graph.verify().err().map(|e| (line_of(&lines, &e.place), e.to_string())),
        Ok(_) => None,
    };
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        match &found {
            Some((at, message)) if *at == i => writeln!(out, "{line} ; error: {message}"),
            _ => writeln!(out, "{line}"),
        }
        .expect("writing to a string");
    }
    if let Some((at, message)) = found.filter(|(at, _)| *at >= lines.len()) {
        writeln!(out, "; error: line {}: {message}", at + 1).expect("writing to a string");
    }
    out
}

/// The line that the verifier's `place` is about: `node 2 (…)` is the third node, `weight 0 (…)` the first weight, …
fn line_of(lines: &[&str], place: &str) -> usize {
    let mut words = place.split([' ', '(', ')']);
    let (kind, which) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let starts = |prefix: &str| -> Vec<usize> { (0..lines.len()).filter(|i| lines[*i].starts_with(prefix)).collect() };
    let number: usize = which.trim_start_matches('%').parse().unwrap_or(0);
    let at = match kind {
        "node" => starts("%").get(number).copied(),
        "weight" => starts("weight ").get(number).copied(),
        "symbol" => starts("symbol ").get(number.saturating_sub(2)).copied(),
        "output" => starts("output ").get(number).copied(),
        "input" => starts(&format!("input \"{which}\"")).first().copied(),
        "value" => {
            let defined = |i: &usize| lines[*i].split('=').any(|part| part.contains(&format!("%{number}: ")));
            (0..lines.len()).find(defined)
        }
        _ => starts("model").first().copied(),
    };
    at.or_else(|| starts("lir").first().copied()).unwrap_or(0)
}

/// Numbers of stored weights: made up, by name and position, such as the checkpoint's type can hold.
struct MadeUp<'g>(&'g Graph);

impl WeightSource for MadeUp<'_> {
    fn read_rows(&self, name: &str, first_row: u64, out: &mut [f32]) -> Result<(), String> {
        let weight = self.0.weights.iter().find(|w| w.name == name).ok_or("no such weight")?;
        let seed = name.bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        let first = first_row * weight.cols();
        for (i, x) in out.iter_mut().enumerate() {
            let number = pseudo_random(seed.wrapping_add(first + i as u64));
            *x = match weight.storage {
                Storage::F16 => half::f16::from_f32(number).to_f32(),
                Storage::Bf16 => half::bf16::from_f32(number).to_f32(),
                Storage::F32 | Storage::Int8 | Storage::Int4(_) => number,
            };
        }
        Ok(())
    }

    fn stored_dtype(&self, name: &str) -> Option<DType> {
        self.0.weights.iter().find(|w| w.name == name).and_then(|w| w.storage.float())
    }
}

/// Between −0.5 and 0.5.
fn pseudo_random(i: u64) -> f32 {
    let mut x = i.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
}

/// Runs `rounded` and `after` on the same inputs and compares all outputs. `before` has the checkpoint's types.
fn same_results(before: &Graph, rounded: &Graph, after: &Graph) -> Result<()> {
    const TOKENS: usize = 5;
    const OUTPUT_ROWS: usize = 2;
    let vocab = before.nodes.iter().filter(|n| n.op == Op::Embed).filter_map(|n| n.operands[1].weight());
    let vocab = vocab.map(|w| before.weight(w).rows()).min().unwrap_or(4);
    let mut inputs = Vec::new();
    for (name, value) in &before.inputs {
        let ty = before.ty(*value);
        let rows = ty.rows().as_const().map_or(TOKENS, |n| n as usize);
        let elems = rows * ty.cols() as usize;
        let numbers = (0..elems as u64).map(|i| pseudo_random(i + 1000));
        let data = match ty.dtype {
            DType::U32 => Data::U32((0..elems as u64).map(|i| (i * 7 % vocab) as u32).collect()),
            DType::U8 => Data::U8(numbers.map(|x| u8::from(x > 0.0)).collect()),
            DType::F32 | DType::F16 | DType::BF16 => Data::F32(numbers.collect()),
        };
        let shape = ty.shape.iter().map(|d| d.as_const().map_or(TOKENS, |n| n as usize)).collect();
        inputs.push((name.as_str(), Tensor { shape, data }));
    }
    let run = |graph: &Graph| {
        let source = MadeUp(before);
        Interpreter::new(graph, &source).run_observed(&inputs, OUTPUT_ROWS, &mut |_, _| {})
    };
    let (wanted, found) = (run(rounded)?, run(after)?);
    ensure!(wanted.0.len() == found.0.len(), "{} outputs became {}", wanted.0.len(), found.0.len());
    for ((name, wanted), (_, found)) in wanted.0.iter().zip(&found.0) {
        match (&wanted.data, &found.data) {
            (Data::F32(a), Data::F32(b)) => {
                let size = a.iter().fold(0f32, |m, x| m.max(x.abs()));
                let off = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                ensure!(a.len() == b.len() && off <= 1e-5 * size.max(1e-3), "output {name} is off by {off} of {size}");
            }
            (a, b) => ensure!(a == b, "output {name} differs"),
        }
    }
    Ok(())
}
