//! `lapidary compare`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
#[cfg(feature = "npu")]
use lapidary_format::Isa;
use lapidary_format::Manifest;
use lapidary_runtime::{Sampler, SamplerOptions, Session};
use serde_json::json;

use crate::cli::{CompareArgs, Format};
use crate::difference::{Boundary, Comparison, Tolerance};
use crate::engine;
use crate::failure::{MISSED, Usage};
use crate::lockstep::Lockstep;
use crate::model;
#[cfg(feature = "npu")]
use crate::npu;
use crate::oracle::Oracle;
use crate::quantized::QuantizedComparison;
use crate::reference::{self, Prompt};
use crate::ui::{Ui, table};

/// Tokens that made-up prompts are continued by.
const MADE_UP_NEW: usize = 8;

/// Runs the artifact on every reference prompt, or takes what it gave elsewhere.
pub fn run(args: &CompareArgs, ui: &Ui) -> anyhow::Result<ExitCode> {
    let artifact = engine::artifact(&args.artifact)?;
    let manifest = *artifact.artifact().manifest();
    let reference = Reference::find(args, &manifest)?;
    let default_atol = if matches!(manifest.quantization, "fp32" | "none") { 1e-3 } else { 1e-2 };
    let tolerance = Tolerance {
        atol: args.atol.unwrap_or(default_atol),
        rtol: args.rtol,
        boundary: boundary(manifest.source_config),
    };
    let target = artifact.artifact().target().map_or_else(String::new, |target| target.name.to_string());
    let files = args.outputs.as_deref().map(read_outputs).transpose()?;
    #[cfg(feature = "npu")]
    let npu = (manifest.isa == Isa::Npu && files.is_none())
        .then(|| npu::Compiled::parse(artifact.artifact()).with_context(|| args.artifact.display().to_string()))
        .transpose()?;
    #[cfg(feature = "npu")]
    let simulated = npu.as_ref().map(|compiled| {
        compiled.verify(&compiled.machine).with_context(|| args.artifact.display().to_string())?;
        let mut session = npu::Session::new(compiled, lapidary_simulator::Options::default(), None)?;
        session.load(|out| Ok(out.write_all(artifact.artifact().weights())?))?;
        anyhow::Ok(Program::Npu(Box::new(session)))
    });
    #[cfg(not(feature = "npu"))]
    let simulated = None::<anyhow::Result<Program<'_>>>;
    let mut program = match (&files, simulated) {
        (Some(files), _) => Program::Files(files),
        (None, Some(simulated)) => simulated?,
        (None, None) => Program::Session(Box::new(engine::open(artifact, args.threads)?)),
    };
    let (source, prompts) = match reference {
        Reference::Stored { name, prompts } => (name, prompts),
        Reference::Quantized { oracle, prompts } => {
            return compare_quantized(args, &oracle, &prompts, &mut program, &target, ui);
        }
    };
    let mut comparison = Comparison::default();
    let bar = ui.count_bar("comparing", prompts.len() as u64);
    for prompt in &prompts {
        for found in program.run(prompt, !args.no_greedy)? {
            if !found.outputs.is_empty() {
                comparison.add(prompt, &found.outputs, &tolerance);
            }
            if !found.greedy.is_empty() {
                comparison.add_greedy(prompt, &found.greedy);
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    match args.format {
        Format::Text => print_text(&comparison, &source, &tolerance),
        Format::Json => print_json(&comparison, &source, &tolerance),
    }
    Ok(if comparison.agrees() { ExitCode::SUCCESS } else { ExitCode::from(MISSED) })
}

/// What is compared: the artifact on this machine or in the simulator, or what it gave elsewhere.
enum Program<'a> {
    Session(Box<Session>),
    #[cfg(feature = "npu")]
    Npu(Box<npu::Session<'a>>),
    /// Prompts of each file.
    Files(&'a [(PathBuf, Vec<Prompt>)]),
}

fn read_outputs(files: &[PathBuf]) -> anyhow::Result<Vec<(PathBuf, Vec<Prompt>)>> {
    files.iter().map(|file| Ok((file.clone(), reference::read(file)?))).collect()
}

impl Program<'_> {
    /// Outputs of a prompt and, with `greedy`, its continuation by as many tokens as the reference has; in one piece or several.
    fn run(&mut self, prompt: &Prompt, greedy: bool) -> anyhow::Result<Vec<Prompt>> {
        let max_new = if greedy { prompt.greedy.len() } else { 0 };
        let session = match self {
            Program::Session(session) => session,
            #[cfg(feature = "npu")]
            Program::Npu(session) => {
                let place = || format!("prompt {}, in the simulator", prompt.name);
                let outputs = engine::rows(session.forward_all(&prompt.ids).with_context(place)?);
                let mut found = Prompt { outputs, ..Prompt::default() };
                if max_new > 0 && session.can_decode() {
                    let new = session.continuation(&prompt.ids, max_new, None, &mut |_| Ok(()));
                    found.greedy = new.with_context(place)?;
                }
                return Ok(vec![found]);
            }
            Program::Files(files) => {
                let one = |(file, prompts): &(PathBuf, Vec<Prompt>)| {
                    let same = prompts.iter().find(|f| f.name == prompt.name).filter(|f| f.ids == prompt.ids);
                    let mut found = same.cloned().with_context(|| {
                        let (file, name) = (file.display(), &prompt.name);
                        format!("{file}: prompt {name}, wanted it with the ids of the reference, found none")
                    })?;
                    if max_new == 0 {
                        found.greedy.clear();
                    }
                    Ok(found)
                };
                return files.iter().map(one).collect();
            }
        };
        let place = || format!("prompt {}", prompt.name);
        let outputs = engine::outputs(session, &prompt.ids).with_context(place)?;
        let mut found = Prompt { outputs, ..Prompt::default() };
        if max_new > 0 && engine::can_decode(session) {
            let mut sampler = Sampler::new(SamplerOptions::default());
            found.greedy =
                engine::continuation(session, &mut sampler, &prompt.ids, max_new, None).with_context(place)?;
        }
        Ok(vec![found])
    }
}

/// Node by node where the artifact runs here, and end to end.
fn compare_quantized(
    args: &CompareArgs,
    oracle: &Oracle,
    prompts: &[Prompt],
    program: &mut Program<'_>,
    target: &str,
    ui: &Ui,
) -> anyhow::Result<ExitCode> {
    if args.atol.is_some() || args.rtol != 0.0 {
        bail!(Usage(format!(
            "--atol, --rtol: wanted neither where {} is the measure, found one\nhint: its bounds are in docs/quantization.md",
            oracle.name
        )));
    }
    let compiled = match program {
        Program::Session(session) => Some(oracle.compile_again(session, ui)?),
        #[cfg(feature = "npu")]
        Program::Npu(_) => None,
        Program::Files(_) => None,
    };
    let lowered = compiled.as_ref().map(|planned| planned.lower(&model::cpu_target(target)?)).transpose()?;
    let lockstep = match (&compiled, &lowered, &*program) {
        (Some(planned), Some(lowered), Program::Session(session)) => {
            Some(Lockstep::new(planned, lowered.program(), session.model().artifact().code())?)
        }
        _ => None,
    };
    let mut found = QuantizedComparison::default();
    let judge = oracle.judge();
    let bar = ui.count_bar("comparing", prompts.len() as u64);
    for prompt in prompts {
        for outputs in program.run(prompt, !args.no_greedy)? {
            judge.add(prompt, &outputs, &mut found).with_context(|| format!("prompt {}", prompt.name))?;
        }
        if let (Some(lockstep), Program::Session(session)) = (&lockstep, &mut *program) {
            lockstep.add(session, &prompt.name, &prompt.ids, &mut found.ops)?;
        }
        found.prompts += 1;
        bar.inc(1);
    }
    bar.finish_and_clear();
    match args.format {
        Format::Text => print!("{}", found.text(&oracle.name)),
        Format::Json => println!("{:#}", found.json(&oracle.name)),
    }
    Ok(if found.agrees() { ExitCode::SUCCESS } else { ExitCode::from(MISSED) })
}

/// What to compare with.
enum Reference {
    /// Outputs that are known.
    Stored { name: String, prompts: Vec<Prompt> },
    /// Prompts, with the outputs of the checkpoint if they are known.
    Quantized { oracle: Box<Oracle>, prompts: Vec<Prompt> },
}

impl Reference {
    fn find(args: &CompareArgs, manifest: &Manifest<'_>) -> anyhow::Result<Reference> {
        let path = Path::new(&args.with);
        let stored = |prompts| Ok(Reference::Stored { name: args.with.clone(), prompts });
        match path.extension().and_then(|e| e.to_str()) {
            _ if args.with == "reference" => Self::of_model(args, manifest),
            Some("npz") => stored(reference::read(path)?),
            Some("lapis") => stored(by_artifact(path, args.threads, manifest)?),
            _ => bail!(Usage(format!("--with: wanted `reference`, an .npz or a .lapis file, found `{}`", args.with))),
        }
    }

    /// What PyTorch gave for the model, where the artifact computes with its numbers; otherwise the reference interpreter,
    /// on the same prompts if there are any.
    fn of_model(args: &CompareArgs, manifest: &Manifest<'_>) -> anyhow::Result<Reference> {
        let folder = model_folder(args.model.as_deref(), manifest);
        let model = match &folder {
            Some(folder) => folder.display().to_string(),
            None => format!("preset:{}", manifest.model),
        };
        let oracle = Oracle::new(&model, manifest).with_context(|| {
            "compare: wanted the model that the artifact was made from, below tests/models or as a preset\n\
             hint: name its folder with --model"
        })?;
        let file = folder.map(|folder| folder.join("reference.npz")).filter(|file| file.is_file());
        let mut prompts = match &file {
            Some(file) => reference::read(file)?,
            None => made_up_prompts(manifest),
        };
        if oracle.is_quantized() {
            return Ok(Reference::Quantized { oracle: Box::new(oracle), prompts });
        }
        if let Some(file) = file {
            return Ok(Reference::Stored { name: file.display().to_string(), prompts });
        }
        for prompt in &mut prompts {
            prompt.outputs = oracle.expected(&prompt.ids)?;
            prompt.greedy.clear();
        }
        Ok(Reference::Stored { name: oracle.name, prompts })
    }
}

/// The folder of the model that the artifact was made from: `--model`, or the one below tests/models with its name.
fn model_folder(model: Option<&Path>, manifest: &Manifest<'_>) -> Option<PathBuf> {
    if let Some(folder) = model {
        return Some(folder.to_path_buf());
    }
    let roots = ["tests/models", "tests/models/random", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models")];
    let found = roots.iter().map(|root| Path::new(root).join(manifest.model));
    found.into_iter().find(|folder| folder.join("reference.npz").is_file())
}

/// Prompts for models without reference outputs: a few lengths of pseudo-random ids, to be continued by a few tokens.
fn made_up_prompts(manifest: &Manifest<'_>) -> Vec<Prompt> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u32 % manifest.vocab_size
    };
    let max_tokens = manifest.max_tokens as usize;
    let prompt = |(i, len): (usize, usize)| Prompt {
        name: format!("{i:03}"),
        ids: (0..len).map(|_| next()).collect(),
        greedy: vec![0; (max_tokens - len).min(MADE_UP_NEW)],
        ..Prompt::default()
    };
    [1, 2, 5, 17].map(|n| n.min(max_tokens)).into_iter().enumerate().map(prompt).collect()
}

/// The outputs of another artifact.
fn by_artifact(path: &Path, threads: usize, manifest: &Manifest<'_>) -> anyhow::Result<Vec<Prompt>> {
    let mut session = engine::open(engine::artifact(path)?, threads)?;
    let other = session.model().manifest().vocab_size;
    if other != manifest.vocab_size {
        bail!("{}: wanted a model with vocab_size {}, found {other}", path.display(), manifest.vocab_size);
    }
    let mut prompts = made_up_prompts(manifest);
    for prompt in &mut prompts {
        prompt.outputs = engine::outputs(&mut session, &prompt.ids)?;
        prompt.greedy.clear();
    }
    Ok(prompts)
}

/// What the model's selection compares scores with.
fn boundary(config: &str) -> Boundary {
    let config: serde_json::Value = serde_json::from_str(config).unwrap_or_default();
    let scar = &config["scar"];
    let number = |key: &str| scar[key].as_f64().map(|x| x as f32);
    match scar["policy"].as_str() {
        Some("threshold") => number("tau").map_or(Boundary::None, Boundary::Score),
        Some("top_p") => number("p").map_or(Boundary::None, Boundary::Mass),
        Some(_) | None => Boundary::None,
    }
}

fn print_text(c: &Comparison, source: &str, tolerance: &Tolerance) {
    println!("with {source}: {} prompts, tolerance {} + {}·|reference|", c.prompts, tolerance.atol, tolerance.rtol);
    let rows = c.outputs.iter().map(|(name, o)| {
        let verdict = if o.wrong == 0 { "agrees".into() } else { format!("{} wrong", o.wrong) };
        vec![name.clone(), o.elements.to_string(), format!("{:.3e}", o.max_abs), o.worst_prompt.clone(), verdict]
    });
    println!("{}", table(&["output", ">elements", ">max |Δ|", ">prompt", ""], rows));
    if c.greedy > 0 {
        println!("greedy continuations: {} of {} equal", c.greedy_equal, c.greedy);
    }
    for text in c.greedy_differences.iter().take(10) {
        println!("  {text}");
    }
    if !c.near_ties.is_empty() {
        println!("near ties in module selection, not compared: prompts {}", c.near_ties.join(", "));
    }
    for name in &c.missing {
        println!("missing output: {name}");
    }
    println!("{}", if c.agrees() { "agrees" } else { "DIFFERS" });
}

fn print_json(c: &Comparison, source: &str, tolerance: &Tolerance) {
    let outputs: Vec<_> = c
        .outputs
        .iter()
        .map(|(name, o)| {
            json!({
                "name": name,
                "elements": o.elements,
                "max_abs": o.max_abs,
                "wrong": o.wrong,
                "worst_prompt": o.worst_prompt,
            })
        })
        .collect();
    let result = json!({
        "schema": "lapidary.compare/1",
        "with": source,
        "agrees": c.agrees(),
        "atol": tolerance.atol,
        "rtol": tolerance.rtol,
        "prompts": c.prompts,
        "outputs": outputs,
        "greedy": c.greedy,
        "greedy_equal": c.greedy_equal,
        "greedy_differences": c.greedy_differences,
        "near_ties": c.near_ties,
        "missing": c.missing,
    });
    println!("{result:#}");
}
