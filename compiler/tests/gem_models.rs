//! Whole models through importer and interpreter, against the outputs of the PyTorch reference.

mod support;

use std::path::Path;

use lapidary_compiler::import::{ImportOptions, load_gem};
use lapidary_compiler::interp::{Interpreter, Outputs};
use support::{Npz, models_dir, random_models};

/// Largest absolute difference that is allowed.
const TOLERANCE: f32 = 1e-4;

fn compare(what: &str, found: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(found.len(), wanted.len(), "{what}: number of elements");
    let worst = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= TOLERANCE, "{what}: wanted max |Δ| ≤ {TOLERANCE}, found {worst}");
    worst
}

/// Runs every `stride`-th prompt of a model; returns the largest difference.
fn check_model(folder: &Path, stride: usize) -> f32 {
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    let model = load_gem(folder, &ImportOptions { scores: true }).unwrap_or_else(|e| panic!("{e}"));
    let interpreter = model.interpreter();
    let mut npz = Npz::open(&folder.join("reference.npz"));
    let prompts = npz.prompts();
    assert!(!prompts.is_empty(), "{name}: no prompts");
    let mut worst = 0.0f32;
    for prompt in prompts.into_iter().step_by(stride) {
        let ids = npz.ids(&prompt);
        let outputs = interpreter.run(&ids, ids.len()).unwrap_or_else(|e| panic!("{name} {prompt}: {e}"));
        let at = |key: &str| format!("{name} {prompt}.{key}");
        let f32s = |key: &str| outputs.get(key).unwrap_or_else(|| panic!("{}: no output", at(key))).f32s();
        for l in 0..model.graph.info.num_layers {
            let key = format!("modules.{l}");
            let wanted: Vec<u8> = npz.get(&format!("{prompt}.{key}"));
            assert_eq!(outputs.get(&key).unwrap().u8s(), wanted, "{}", at(&key));
        }
        let per_layer = (0..model.graph.info.num_layers).flat_map(|l| [format!("gates.{l}"), format!("scores.{l}")]);
        for key in std::iter::once("domains".into()).chain(per_layer) {
            worst = worst.max(compare(&at(&key), f32s(&key), &npz.get::<f32>(&format!("{prompt}.{key}"))));
        }
        worst = worst.max(check_head(&at("head"), &outputs, &mut npz, &prompt));
        if model.graph.info.why_no_decode.is_none() {
            check_greedy(&at("greedy"), &interpreter, &ids, &mut npz, &prompt);
        }
    }
    worst
}

fn check_head(at: &str, outputs: &Outputs, npz: &mut Npz, prompt: &str) -> f32 {
    if npz.has(&format!("{prompt}.output")) {
        return compare(at, outputs.get("output").unwrap().f32s(), &npz.get::<f32>(&format!("{prompt}.output")));
    }
    let wanted: Vec<f32> = npz.get(&format!("{prompt}.logits"));
    let logits = outputs.get("logits").unwrap();
    let rows: Vec<i64> = match npz.has(&format!("{prompt}.logits_rows")) {
        true => npz.get(&format!("{prompt}.logits_rows")),
        false => (0..logits.rows() as i64).collect(),
    };
    let (all, v) = (logits.f32s(), logits.cols());
    let found: Vec<f32> =
        rows.iter().flat_map(|r| all[*r as usize * v..(*r as usize + 1) * v].iter().copied()).collect();
    compare(at, &found, &wanted)
}

/// Greedy continuation by full recomputation. Tokens whose lead in the reference is within the tolerance may differ, and
/// what follows them is another text.
fn check_greedy(at: &str, interpreter: &Interpreter<'_>, ids: &[u32], npz: &mut Npz, prompt: &str) {
    if !npz.has(&format!("{prompt}.greedy")) {
        return;
    }
    let wanted: Vec<i64> = npz.get(&format!("{prompt}.greedy"));
    let margins: Vec<f32> = npz.get(&format!("{prompt}.greedy_margin"));
    let mut ids = ids.to_vec();
    for (i, (wanted, margin)) in wanted.into_iter().zip(margins).enumerate().take(4) {
        let outputs = interpreter.run(&ids, 1).unwrap();
        let row = outputs.get("logits").unwrap().f32s();
        let best = (1..row.len()).fold(0, |best, c| if row[c] > row[best] { c } else { best });
        if best as i64 != wanted {
            assert!(margin <= 2.0 * TOLERANCE, "{at}: token {i}: wanted {wanted} (margin {margin}), found {best}");
            return;
        }
        ids.push(best as u32);
    }
}

#[test]
fn random_models_agree_with_pytorch() {
    let models = random_models();
    assert!(models.len() >= 31, "found {} models", models.len());
    let worst = models.iter().map(|m| check_model(m, 1)).fold(0.0, f32::max);
    println!("{} models, max |Δ| {worst:e}", models.len());
}

/// Every model of `tests/models` itself that brings reference outputs.
#[test]
fn bundled_models_agree_with_pytorch() {
    let folders = std::fs::read_dir(models_dir()).unwrap().map(|e| e.unwrap().path());
    for folder in folders.filter(|f| f.join("reference.npz").is_file()) {
        // gem-mini has 64 prompts, eight lengths for each of eight domains: every ninth meets each length and each
        // domain once.
        println!("{}: max |Δ| {:e}", folder.display(), check_model(&folder, 9));
    }
}
