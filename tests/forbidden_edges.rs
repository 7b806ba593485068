//! Dependencies between the project's crates that would dissolve the architecture: runtime → compiler, kernels → anything
//! of ours, and the like (docs/architecture.md).

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Crate and all crates of ours that it may depend on, in any way.
const ALLOWED: &[(&str, &[&str])] = &[
    ("lapidary-format", &[]),
    ("lapidary-kernels", &[]),
    ("lapidary-runtime", &["lapidary-format", "lapidary-kernels"]),
    ("lapidary-compiler", &[]),
    ("lapidary-target-cpu", &["lapidary-compiler", "lapidary-format", "lapidary-kernels"]),
    ("lapidary-npu-isa", &[]),
    // Each runs the other's programs in its tests; neither library sees the other.
    ("lapidary-target-npu", &["lapidary-compiler", "lapidary-npu-isa", "lapidary-simulator"]),
    ("lapidary-simulator", &["lapidary-npu-isa", "lapidary-target-npu"]),
    (
        "lapidary",
        &[
            "lapidary-compiler",
            "lapidary-format",
            "lapidary-kernels",
            "lapidary-npu-isa",
            "lapidary-runtime",
            "lapidary-simulator",
            "lapidary-target-cpu",
            "lapidary-target-npu",
        ],
    ),
];

/// Dependencies of ours of every workspace crate, from `cargo metadata`; dev-dependencies count too, unless they are the
/// crate itself with more features.
fn edges() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |v: &serde_json::Value| v["name"].as_str().expect("a name").to_string();
    packages
        .iter()
        .map(|package| {
            let own = name(package);
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let ours = dependencies.iter().map(name).filter(|d| d.starts_with("lapidary") && *d != own).collect();
            (own, ours)
        })
        .collect()
}

#[test]
fn no_forbidden_edges() {
    let edges = edges();
    let known: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<&str> = edges.keys().map(String::as_str).collect();
    assert_eq!(known, found, "every crate of the workspace has a row in this test");
    for (name, allowed) in ALLOWED {
        for dependency in &edges[*name] {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}
