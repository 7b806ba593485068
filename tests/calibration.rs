//! `calibrate` and `kernels bench`: what they write, on the bundled model and this machine.

mod support;

use std::path::{Path, PathBuf};

use serde_json::Value;
use support::{full, lapidary, output, root, run};

fn model() -> PathBuf {
    root().join("tests/models/gem-mini")
}

/// Any text will do.
fn text() -> PathBuf {
    root().join("docs/gem.md")
}

/// Calibrates under a budget; exit code, what was printed, and the recipe's file.
fn calibrate(folder: &Path, budget: &str, more: &[&str]) -> (i32, String, PathBuf) {
    let recipe = folder.join(format!("{budget}.toml"));
    let mut command = lapidary();
    command.args(["-q", "calibrate"]).arg(model()).arg("--text").arg(text()).args([
        "--tokens",
        "48",
        "--sequence",
        "24",
    ]);
    let output = output(command.args(["--budget", budget, "-o"]).arg(&recipe).args(more)).unwrap();
    let printed = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), printed, recipe)
}

/// Bytes that a recipe's weights take.
fn stored_bytes(recipe: &Path) -> u64 {
    let mut command = lapidary();
    command.args(["-q", "compile"]).arg(model()).args(["--dry-run", "--format", "json", "--quant"]).arg(recipe);
    let summary: Value = serde_json::from_str(&run(&mut command).unwrap()).unwrap();
    let components = summary["components"].as_array().unwrap();
    components.iter().map(|c| c["bytes_stored"].as_u64().unwrap()).sum()
}

/// Rows of a table under a header that has this word: cells.
fn rows_under(printed: &str, header: &str) -> Vec<Vec<String>> {
    let lines =
        printed.lines().skip_while(|line| !line.contains(header)).skip(1).take_while(|line| !line.trim().is_empty());
    lines.map(|line| line.split("  ").map(str::trim).filter(|c| !c.is_empty()).map(String::from).collect()).collect()
}

#[test]
fn a_calibrated_recipe_fits_its_budget_and_beats_the_default_one_under_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (code, printed, recipe) = calibrate(folder.path(), "4.8MB", &["--evaluate", text().to_str().unwrap()]);
    assert_eq!(code, 0, "{printed}");
    assert!(stored_bytes(&recipe) <= 4_800_000, "{printed}");
    let rows = rows_under(&printed, "same best");
    let nats = |name: &str| -> f64 { rows.iter().find(|row| row[0] == name).expect(name)[2].parse().unwrap() };
    let order = [nats("fp32"), nats("int8"), nats("hybrid"), nats("int4")];
    assert!(order.is_sorted() && order[0] == 0.0 && order[2] > 0.0, "{printed}");
    // The text is the one that it was calibrated on, so that it has to do better here, whatever it does elsewhere.
    assert!(nats("4.8MB") < nats("hybrid, lowered"), "{printed}");
}

#[test]
fn a_budget_that_cannot_be_met_gives_the_smallest_recipe_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (code, printed, recipe) = calibrate(folder.path(), "3MB", &[]);
    assert_eq!(code, 3, "{printed}");
    let named = printed.split_once('(').and_then(|(_, rest)| rest.split_once(" bytes)")).expect("a number of bytes").0;
    let (named, stored): (u64, _) = (named.parse().unwrap(), stored_bytes(&recipe));
    // Some norms are multiplied into matrices when the model is compiled.
    assert!(stored <= named && named - stored < 1000, "{stored} bytes\n{printed}");
    // Every other one is larger: four bits in the largest groups.
    let text = std::fs::read_to_string(&recipe).unwrap();
    let formats: Vec<_> = text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split_once(" = ")).collect();
    for (pattern, format) in formats.iter().filter(|(key, _)| !["name", "base", "kv_cache"].contains(key)) {
        let wanted = if ["\"norm\"", "\"routing\""].contains(pattern) { "\"fp32\"" } else { "\"int4:128\"" };
        assert_eq!(*format, wanted, "{text}");
    }
    if full() {
        // What a little more memory buys is not less.
        let kl = |budget: &str| -> f64 {
            let (code, printed, _) = calibrate(folder.path(), budget, &["--evaluate", self::text().to_str().unwrap()]);
            assert_eq!(code, 0, "{printed}");
            rows_under(&printed, "same best").iter().find(|row| row[0] == budget).unwrap()[2].parse().unwrap()
        };
        let all = ["3.8MB", "4.5MB", "6MB", "12MB"].map(kl);
        assert!(all.is_sorted_by(|less, more| less > more), "{all:?}");
    }
}

#[test]
fn kernels_bench_times_every_kernel_that_runs_here_fastest_first() {
    let json = |command: &mut std::process::Command| -> Value { serde_json::from_str(&run(command).unwrap()).unwrap() };
    let known = json(lapidary().args(["kernels", "--format", "json"]));
    let runs = |name: &str| {
        let kernels = known["kernels"].as_array().unwrap();
        kernels.iter().any(|k| k["name"] == name && k["runs_here"] == true)
    };
    for (product, weights) in
        [("5,70,33,i4", "i4"), ("1,64,40,i8", "i8"), ("13,31,17,f16", "f16"), ("2,8,8,f32", "f32")]
    {
        let result = json(lapidary().args(["kernels", "bench", product, "--format", "json"]));
        assert_eq!(result["schema"], "lapidary.kernels-bench/1");
        let kernels = result["kernels"].as_array().unwrap();
        let times: Vec<f64> = kernels.iter().map(|k| k["median_us"].as_f64().unwrap()).collect();
        assert!(!times.is_empty() && times.is_sorted() && times[0] > 0.0, "{result:#}");
        assert!(kernels.iter().all(|k| k["weights"] == weights && runs(k["name"].as_str().unwrap())), "{result:#}");
        // Dispatch takes one of them: for one row the vector kernel, else the matrix kernel.
        let taken: Vec<_> = kernels.iter().filter(|k| k["dispatched"] == true).collect();
        let op = if product.starts_with("1,") { "gemv" } else { "gemm" };
        assert!(taken.len() == 1 && taken[0]["op"] == op, "{result:#}");
        for limit in ["f32_gmacs_per_s", "int8_gmacs_per_s", "gbytes_per_s"] {
            assert!(result["limits"][limit].as_f64().unwrap() > 0.0);
        }
    }
    for (wrong, why) in [("5,70", "M,K,N"), ("0,8,8", "0"), ("1,8,8,i5", "i5"), ("1,99999999999,8", "99999999999")] {
        let output = output(lapidary().args(["kernels", "bench", wrong])).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && errors.contains(why), "{wrong}: {errors}");
    }
}
