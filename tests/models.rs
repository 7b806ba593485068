//! Whole models on every target: against PyTorch's saved outputs (logits, domains, module sets, gates, greedy continuations), and in
//! recipes of integers against the reference interpreter, natively node by node.
//!
//! Every model of tests/models is compiled for a target, run natively or under qemu-user, and compared by the command itself. A
//! plain `cargo test` takes all models on this machine's own target and one each on the others; `LAPIDARY_TEST=full` takes all on
//! all. Of gem-mini's 64 prompts every eighth is taken where all take half a minute and more, under emulation and in the reference
//! interpreter, which the test's name then says; `LAPIDARY_TEST=exhaustive` takes all. Tolerances are those of `lapidary compare`:
//! 1e-3 on logits for f32 arithmetic; docs/quantization.md has those of integers.

mod support;

use std::path::Path;

use libtest_mimic::{Arguments, Failed, Trial};
use support::{Reference, TARGETS, Target, exhaustive, full, lapidary, models, run, with_some_prompts};

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for target in TARGETS {
        let why_not = target.why_not();
        for (i, model) in models().into_iter().enumerate() {
            let own = target.name == "native";
            if !(own || full() || i == 5) {
                continue;
            }
            let name = model.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let skipped = why_not.as_ref().map(|why| format!(" (skipped: {why})")).unwrap_or_default();
            let recipes: &[&str] = match (model.ends_with("gem-mini"), target.name) {
                (true, "native") if full() => &["none", "fp32", "fp16", "hybrid", "int8", "int4"],
                (true, "native") => &["none", "fp32", "fp16", "hybrid"],
                // Emulation is slow: one recipe for each core.
                (true, "rpi4") => &["fp32"],
                (true, "rpi5") => &["hybrid"],
                (true, _) => &["none", "hybrid"],
                (false, "native") if full() => &["none", "hybrid", "int8", "int4"],
                (false, _) => [&["none", "hybrid"], &["none", "int8"], &["none", "int4"]][i % 3],
            };
            for recipe in recipes {
                let model = model.clone();
                let slow = target.cpu.is_some() || !["none", "fp32", "fp16"].contains(recipe);
                let step = if model.ends_with("gem-mini") && slow && !exhaustive() { 8 } else { 1 };
                let test = move || compiled_computes_the_model(&model, target, recipe, step);
                let name = format!("{}::{name}-{recipe}{}{skipped}", target.name, support::every(step));
                trials.push(Trial::test(name, test).with_ignored_flag(why_not.is_some()));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// On every `step`th prompt of the model's reference.
fn compiled_computes_the_model(model: &Path, target: &Target, recipe: &str, step: usize) -> Result<(), Failed> {
    let mini = model.ends_with("gem-mini");
    let some_prompts = (step > 1).then(|| with_some_prompts(model, step));
    let model = some_prompts.as_ref().map_or(model, |folder| folder.path());
    let folder = tempfile::tempdir()?;
    let artifact = folder.path().join("model.lapis");
    run(lapidary()
        .arg("-q")
        .arg("compile")
        .arg(model)
        .args(["--target", target.name, "--quant", recipe, "-o"])
        .arg(&artifact))?;
    // Under emulation the executables' own suite generates.
    let more: &[&str] = if mini && target.cpu.is_some() { &["--no-greedy"] } else { &[] };
    let compared = target.compare(&artifact, Reference::Model(model), more)?;
    if compared.contains("near ties") && !mini {
        return Err(format!("random models are drawn without near ties\n{compared}").into());
    }
    Ok(())
}
