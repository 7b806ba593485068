//! `lapidary compare`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use lapidary_compiler::{
    import::{self, ImportOptions},
    interp::{Data, Interpreter, Tensor},
};
use lapidary_format::Manifest;
use lapidary_runtime::{Sampler, SamplerOptions, Session};
use serde_json::json;

use crate::cli::{CompareArgs, Format};
use crate::difference::{Boundary, Comparison, Tolerance};
use crate::engine;
use crate::failure::{MISSED, Usage};
use crate::reference::{self, Prompt};
use crate::ui::{Ui, table};

/// Runs the artifact on every reference prompt, or takes what it gave elsewhere.
pub fn run(args: &CompareArgs, ui: &Ui) -> anyhow::Result<ExitCode> {
    let artifact = engine::artifact(&args.artifact)?;
    let manifest = *artifact.artifact().manifest();
    let (source, prompts) = references(args, &manifest, ui)?;
    let default_atol = if matches!(manifest.quantization, "fp32" | "none") { 1e-3 } else { 1e-2 };
    let tolerance = Tolerance {
        atol: args.atol.unwrap_or(default_atol),
        rtol: args.rtol,
        boundary: boundary(manifest.source_config),
    };
    let comparison = match &args.outputs {
        Some(files) => compare_outputs(files, &prompts, &tolerance, !args.no_greedy)?,
        None => compare(&mut engine::open(artifact, args.threads)?, &prompts, &tolerance, !args.no_greedy, ui)?,
    };
    match args.format {
        Format::Text => print_text(&comparison, &source, &tolerance),
        Format::Json => print_json(&comparison, &source, &tolerance),
    }
    Ok(if comparison.agrees() { ExitCode::SUCCESS } else { ExitCode::from(MISSED) })
}

/// All prompts, and their greedy continuations where there are any and the model generates.
fn compare(
    session: &mut Session,
    prompts: &[Prompt],
    tolerance: &Tolerance,
    greedy: bool,
    ui: &Ui,
) -> anyhow::Result<Comparison> {
    let mut comparison = Comparison::default();
    let bar = ui.count_bar("comparing", prompts.len() as u64);
    let mut sampler = Sampler::new(SamplerOptions::default());
    for prompt in prompts {
        let found = engine::outputs(session, &prompt.ids).with_context(|| format!("prompt {}", prompt.name))?;
        comparison.add(prompt, &found, tolerance);
        if greedy && !prompt.greedy.is_empty() && engine::can_decode(session) {
            let found = engine::continuation(session, &mut sampler, &prompt.ids, prompt.greedy.len(), None)
                .with_context(|| format!("prompt {}", prompt.name))?;
            comparison.add_greedy(prompt, &found);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(comparison)
}

/// The same of files that `run` wrote: outputs, continuations, or one of each. Every prompt has to be in every file.
fn compare_outputs(
    files: &[PathBuf],
    prompts: &[Prompt],
    tolerance: &Tolerance,
    greedy: bool,
) -> anyhow::Result<Comparison> {
    let mut comparison = Comparison::default();
    for file in files {
        let found = reference::read(file)?;
        for prompt in prompts {
            let same = found.iter().find(|f| f.name == prompt.name);
            let Some(found) = same.filter(|f| f.ids == prompt.ids) else {
                bail!(
                    "{}: prompt {}, wanted it with the ids of the reference, found none",
                    file.display(),
                    prompt.name
                );
            };
            if !found.outputs.is_empty() {
                comparison.add(prompt, &found.outputs, tolerance);
            }
            if greedy && !found.greedy.is_empty() && !prompt.greedy.is_empty() {
                comparison.add_greedy(prompt, &found.greedy);
            }
        }
    }
    Ok(comparison)
}

/// What to compare with, and where it came from.
fn references(args: &CompareArgs, manifest: &Manifest<'_>, ui: &Ui) -> anyhow::Result<(String, Vec<Prompt>)> {
    let path = Path::new(&args.with);
    if args.with == "reference" {
        return match reference_file(args.model.as_deref(), manifest)? {
            Some(file) => Ok((file.display().to_string(), reference::read(&file)?)),
            None => interpreted(args, manifest, ui),
        };
    }
    match path.extension().and_then(|e| e.to_str()) {
        Some("npz") => Ok((args.with.clone(), reference::read(path)?)),
        Some("lapis") => Ok((args.with.clone(), by_artifact(path, args.threads, manifest)?)),
        _ => bail!(Usage(format!("--with: wanted `reference`, an .npz or a .lapis file, found `{}`", args.with))),
    }
}

/// `reference.npz` of the model that the artifact was made from: in `--model`, or below tests/models by name and digest.
fn reference_file(model: Option<&Path>, manifest: &Manifest<'_>) -> anyhow::Result<Option<PathBuf>> {
    if let Some(folder) = model {
        let file = folder.join("reference.npz");
        return Ok(file.is_file().then_some(file));
    }
    let roots = ["tests/models", "tests/models/random", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models")];
    let found = roots.iter().map(|root| Path::new(root).join(manifest.model).join("reference.npz"));
    let Some(file) = found.into_iter().find(|f| f.is_file()) else { return Ok(None) };
    let folder = file.parent().unwrap_or(Path::new("."));
    let digest = crate::model::load(&folder.to_string_lossy())?.graph.info.source_digest;
    if digest != manifest.source_digest {
        bail!(
            "{}: wanted the model that the artifact was made from, found other weights of the same name\n\
             hint: compile again, or name the model's folder with --model",
            folder.display()
        );
    }
    Ok(Some(file))
}

/// Prompts for models without reference outputs: a few lengths of pseudo-random ids.
fn made_up_ids(manifest: &Manifest<'_>) -> Vec<Vec<u32>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u32 % manifest.vocab_size
    };
    let lengths = [1, 2, 5, 17].map(|n| n.min(manifest.max_tokens as usize));
    lengths.into_iter().map(|n| (0..n).map(|_| next()).collect()).collect()
}

/// The outputs of another artifact.
fn by_artifact(path: &Path, threads: usize, manifest: &Manifest<'_>) -> anyhow::Result<Vec<Prompt>> {
    let mut session = engine::open(engine::artifact(path)?, threads)?;
    let other = session.model().manifest().vocab_size;
    if other != manifest.vocab_size {
        bail!("{}: wanted a model with vocab_size {}, found {other}", path.display(), manifest.vocab_size);
    }
    made_up_ids(manifest)
        .into_iter()
        .enumerate()
        .map(|(i, ids)| {
            let outputs = engine::outputs(&mut session, &ids)?;
            Ok(Prompt { name: format!("{i:03}"), ids, outputs, ..Prompt::default() })
        })
        .collect()
}

/// The outputs of the reference interpreter.
fn interpreted(args: &CompareArgs, manifest: &Manifest<'_>, ui: &Ui) -> anyhow::Result<(String, Vec<Prompt>)> {
    let model = match &args.model {
        Some(folder) => folder.display().to_string(),
        None => format!("preset:{}", manifest.model),
    };
    let options = ImportOptions { scores: true };
    let imported = import::load(&model, &options).with_context(|| {
        "compare: wanted reference.npz below tests/models or a preset of the artifact's name, found neither\n\
         hint: name the model's folder with --model"
    })?;
    if imported.graph.info.source_digest != manifest.source_digest {
        bail!("{model}: wanted the model that the artifact was made from, found other weights");
    }
    let interpreter = Interpreter::new(&imported.graph, imported.source.as_ref());
    let bar = ui.spinner("interpreting");
    let prompts = made_up_ids(manifest)
        .into_iter()
        .enumerate()
        .map(|(i, ids)| {
            let outputs = interpreter.run(&ids, ids.len())?.0;
            let outputs = outputs.into_iter().map(|(name, tensor)| (name, rows(&tensor))).collect();
            Ok(Prompt { name: format!("{i:03}"), ids, outputs, ..Prompt::default() })
        })
        .collect::<anyhow::Result<_>>()?;
    bar.finish_and_clear();
    Ok(("the reference interpreter".into(), prompts))
}

/// A value of the interpreter as rows of floats.
fn rows(tensor: &Tensor) -> reference::Rows {
    let data = match &tensor.data {
        Data::F32(data) => data.clone(),
        Data::U32(data) => data.iter().map(|x| *x as f32).collect(),
        Data::U8(data) => data.iter().map(|x| f32::from(*x)).collect(),
    };
    reference::Rows { cols: tensor.shape.get(1).copied().unwrap_or(1), data }
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
