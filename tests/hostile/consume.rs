//! What reads each format, as the command does: `Ok(true)` when the bytes were accepted, `Ok(false)` when they were refused
//! with an error that says what is wrong; `Err` says which rule was broken. A panic, a crash or a hang is up to the caller
//! to notice.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use lapidary_compiler::import::{ImportOptions, ImportedModel, load};
use lapidary_compiler::ir::{Graph, WeightDef, WeightReader, parse};
use lapidary_compiler::passes::{PassContext, Recipe, run_pipeline};
use lapidary_compiler::plan::{Plan, cost};
use lapidary_format::Artifact;
use lapidary_runtime::{ArtifactFile, Tokenizer};

use crate::difference::{Boundary, Comparison, Tolerance};
use crate::reference::{self, Rows};

/// See above.
pub type Outcome = Result<bool, String>;

/// Longest message: a hostile file's text is quoted in part only.
const MAX_MESSAGE_BYTES: usize = 4000;

/// An error that says something, and not too much.
pub fn refused(error: &dyn Display) -> Outcome {
    let text = error.to_string();
    match text.len() {
        10..=MAX_MESSAGE_BYTES => Ok(false),
        len => Err(format!("an error of {len} bytes: {}", text.chars().take(200).collect::<String>())),
    }
}

/// An error that also names the file.
fn refused_file(error: &dyn Display, path: &Path) -> Outcome {
    let (text, name) = (error.to_string(), path.file_name().unwrap_or_default().to_string_lossy().into_owned());
    let folder = path.parent().unwrap_or(path).to_string_lossy().into_owned();
    if text.contains(&name) || text.contains(&folder) {
        return refused(error);
    }
    Err(format!("an error that does not name {name}: {text}"))
}

/// Structure, tables, and all checksums; nothing is executed.
pub fn artifact(bytes: &[u8]) -> Outcome {
    match Artifact::parse(bytes) {
        Ok(artifact) => {
            read_all(&artifact);
            match artifact.check() {
                Ok(()) => Ok(true),
                Err(error) => refused(&error),
            }
        }
        Err(error) => refused(&error),
    }
}

/// An artifact as a file, as `inspect --check` opens it; and what its tokenizer does.
pub fn artifact_file(bytes: &[u8], path: &Path) -> Outcome {
    std::fs::write(path, bytes).map_err(|e| e.to_string())?;
    let file = match ArtifactFile::open(path) {
        Ok(file) => file,
        Err(error) => return refused_file(&error, path),
    };
    read_all(file.artifact());
    if let Some(Err(error)) = file.artifact().tokenizer().map(Tokenizer::from_json) {
        refused(&error)?;
    }
    match file.check() {
        Ok(()) => Ok(true),
        Err(error) => refused(&error),
    }
}

/// Every record of every table, and the bytes that it points to.
fn read_all(artifact: &Artifact<'_>) {
    let mut sum = 0_u64;
    let mut add = |bytes: &[u8]| sum = bytes.iter().fold(sum, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte));
    for step in artifact.steps() {
        let begin = step.offset as usize;
        add(&artifact.code()[begin..begin + step.bytes as usize]);
        add(artifact.entries().get(step.entry as usize).expect("a step's entry").name.as_bytes());
    }
    for tensor in artifact.tensors() {
        let begin = tensor.offset as usize;
        add(&artifact.weights()[begin..begin + tensor.bytes as usize]);
    }
    for extent in artifact.extents() {
        let begin = extent.offset as usize;
        add(&artifact.weights()[begin..begin + extent.bytes as usize]);
    }
    for buffer in artifact.buffers() {
        assert!(buffer.offset + buffer.bytes <= artifact.plan().arena_bytes);
    }
    for state in artifact.state_buffers() {
        assert!(state.offset + state.bytes <= artifact.plan().state_bytes);
    }
    artifact.kernels().iter().for_each(|kernel| add(kernel.name.as_bytes()));
    artifact.features().iter().for_each(|feature| add(feature.name.as_bytes()));
    artifact.components().iter().for_each(|component| add(component.quantization.as_bytes()));
    std::hint::black_box(sum);
}

/// A model's folder, one file of which is damaged: import, and then everything up to the plan.
pub fn folder(folder: &Path, damaged: &Path) -> Outcome {
    match load(&folder.to_string_lossy(), &ImportOptions::default()) {
        Ok(model) => {
            read_weights(&model)?;
            planned(model.graph, |_, _| Ok(true)).map(|_| true)
        }
        Err(error) => refused_file(&error, damaged),
    }
}

/// All stored weights, as packing reads them.
fn read_weights(model: &ImportedModel) -> Result<(), String> {
    let reader = WeightReader::new(&model.graph, &*model.source);
    for (i, weight) in model.graph.weights.iter().enumerate() {
        if weight.def == WeightDef::Stored {
            let numbers = reader.read_all(lapidary_compiler::ir::WeightId(i as u32)).map_err(|e| e.to_string())?;
            std::hint::black_box(numbers);
        }
    }
    Ok(())
}

/// Text, verifier, passes, plan.
pub fn lir(bytes: &[u8]) -> Outcome {
    lir_graph(bytes, |_, _| Ok(true))
}

/// [`lir`], and what `then` does with the plan.
pub fn lir_graph(bytes: &[u8], then: impl FnOnce(&Graph, &Plan) -> Outcome) -> Outcome {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(false) };
    let graph = match parse(text) {
        Ok(graph) => graph,
        Err(error) => return refused(&error),
    };
    match graph.verify() {
        Ok(()) => planned(graph, then),
        Err(error) => refused(&error),
    }
}

/// Passes and plan, which may refuse.
fn planned(mut graph: Graph, then: impl FnOnce(&Graph, &Plan) -> Outcome) -> Outcome {
    std::hint::black_box(cost::weight_bytes(&graph));
    let max_tokens = graph.info.max_position_embeddings;
    if max_tokens == 0 {
        // The command refuses it here: no --max-tokens is possible.
        return Ok(false);
    }
    let context = PassContext::new(&graph, Recipe::default(), max_tokens);
    let plan = match run_pipeline(&mut graph, &context, None, &mut |_, _, _| ()) {
        Ok(Some(plan)) => plan,
        Ok(None) => return Ok(true),
        Err(error) => return refused(&error),
    };
    std::hint::black_box(cost::decode_work(&graph, plan.max_tokens - 1));
    std::hint::black_box(cost::prefill_work(&graph, 1));
    then(&graph, &plan)
}

/// Text that exercises words, digits, spaces, special tokens, and characters of one to four bytes.
const TEXTS: [&str; 3] =
    ["abcd  <|endoftext|> hé 123,b!\n\tgröße \u{4e2d}\u{1f600}\u{301}", "", "aaaaaaaaaaaaaaaaaaaaaaaab c[CLS]"];

/// A tokenizer: read, encode, decode, stream.
pub fn tokenizer(bytes: &[u8]) -> Outcome {
    let tokenizer = match Tokenizer::from_json(bytes) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return refused(&error),
    };
    let mut all_well = true;
    for text in TEXTS {
        let ids = match tokenizer.encode(text) {
            Ok(ids) => ids,
            Err(error) => {
                all_well &= refused(&error)?;
                vec![0, 1, 2, 3]
            }
        };
        for ids in [&ids[..ids.len().min(100)], &[u32::MAX, 5, 0]] {
            if let Err(error) = tokenizer.decode(ids) {
                all_well &= refused(&error)?;
            }
            let mut stream = tokenizer.stream();
            for id in ids {
                if let Err(error) = stream.push(*id) {
                    all_well &= refused(&error)?;
                }
                std::hint::black_box(tokenizer.token(*id));
            }
            if let Err(error) = stream.finish() {
                all_well &= refused(&error)?;
            }
        }
    }
    Ok(all_well)
}

/// Token ids.
pub fn npy(bytes: &[u8]) -> Outcome {
    match crate::npy::token_ids(bytes) {
        Ok(ids) if ids.len() * 8 <= bytes.len() => Ok(true),
        Ok(ids) => Err(format!("{} ids from {} bytes", ids.len(), bytes.len())),
        Err(error) => refused(&format!("{error:#}")),
    }
}

/// Reference outputs, and what `compare` does with them.
pub fn npz(bytes: &[u8]) -> Outcome {
    let prompts = match reference::parse(bytes) {
        Ok(prompts) => prompts,
        Err(error) => return refused(&format!("{error:#}")),
    };
    for boundary in [Boundary::None, Boundary::Score(0.2), Boundary::Mass(0.5)] {
        let tolerance = Tolerance { atol: 1e-3, rtol: 1e-3, boundary };
        let mut comparison = Comparison::default();
        for prompt in &prompts {
            let rows = prompt.ids.len();
            let output = |cols: usize| Rows { cols, data: vec![0.5; rows * cols] };
            let found: BTreeMap<_, _> =
                [("logits", 5), ("modules.0", 4), ("gates.0", 4)].map(|(n, cols)| (n.to_string(), output(cols))).into();
            comparison.add(prompt, &found, &tolerance);
            comparison.add_greedy(prompt, &prompt.greedy);
        }
        std::hint::black_box(comparison.agrees());
    }
    Ok(true)
}
