//! The program in front of an artifact in a self-contained executable: this command without the compiler, static.
//!
//! Either it lies beside the running command, as packages bring it, or cargo builds it from the sources that the running
//! command was built from. Nothing but Rust is needed: the linker is the one that comes with it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use lapidary_target_cpu::{Architecture, CpuTarget};

/// The workspace that this command was built from, if it is still there.
const SOURCE: &str = env!("CARGO_MANIFEST_DIR");
/// A cargo profile, see Cargo.toml.
const PROFILE: &str = "device";
/// For the linker that comes with Rust: leaves out what the runner never needs.
const LINKER_SCRIPT: &str = "src/runner.ld";

/// Variables that cargo and rustup set for what they run, or that a developer sets for the machine at hand: none of them is meant
/// for the program that is built here. `CARGO_TARGET_DIR` and the variables of a target or a profile by name are.
fn disturbs(variable: &str) -> bool {
    const NAMES: &[&str] = &[
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_CRATE_NAME",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_MAKEFLAGS",
        "CARGO_PRIMARY_PACKAGE",
        "CARGO_TARGET_TMPDIR",
        "MAKEFLAGS",
        "RUSTFLAGS",
    ];
    const PREFIXES: &[&str] = &["CARGO_BIN_", "CARGO_CFG_", "CARGO_FEATURE_", "CARGO_MANIFEST_", "CARGO_PKG_"];
    NAMES.contains(&variable) || PREFIXES.iter().any(|prefix| variable.starts_with(prefix))
}

/// The runner for a target: the file `lapidary-runner-TRIPLE` beside this program, or built, with no more kernels than
/// the target can use. Building shows cargo's progress on stderr unless `quiet`.
pub fn find_or_build(target: &CpuTarget, quiet: bool) -> anyhow::Result<PathBuf> {
    let triple = target.architecture.static_triple();
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(format!("lapidary-runner-{triple}"))));
    match beside {
        Some(runner) if runner.is_file() => Ok(runner),
        Some(_) | None => {
            build(target, triple, quiet).with_context(|| format!("the runner for {triple} cannot be built"))
        }
    }
}

fn build(target: &CpuTarget, triple: &str, quiet: bool) -> anyhow::Result<PathBuf> {
    let source = Path::new(SOURCE);
    if !source.join("Cargo.toml").is_file() {
        bail!(
            "{SOURCE}: source, wanted the workspace that this command was built from, found none\n\
             hint: put lapidary-runner-{triple} beside the command"
        );
    }
    let linker = format!("CARGO_TARGET_{}_LINKER", triple.to_uppercase().replace('-', "_"));
    check_tools(source, triple, &linker)?;
    let mut cargo = tool(source, "CARGO", "cargo");
    cargo.args(["rustc", "--profile", PROFILE, "--no-default-features", "--bin", "lapidary", "--target", triple]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    let usual = match target.architecture {
        Architecture::X86_64 => "x86-64-v3",
        Architecture::Aarch64 => "rpi5",
    };
    let usual = CpuTarget::by_name(usual).with_context(|| format!("the table of targets has no {usual}"))?;
    if !usual.features.contains(target.features) {
        cargo.args(["--features", "newest-cpus"]);
    }
    if quiet {
        cargo.arg("--quiet");
    }
    if env::var_os(&linker).is_none() {
        cargo.env(&linker, "rust-lld");
        let mut script = OsString::from("link-arg=-T");
        script.push(source.join(LINKER_SCRIPT));
        cargo.args(["--", "-C"]).arg(script);
    }
    let output = cargo.stderr(Stdio::inherit()).output().context("cargo cannot be started")?;
    if !output.status.success() {
        bail!("cargo: wanted success, found {}\nhint: its own messages are above", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let built = text.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    built.context("cargo: wanted the name of what it built, found none")
}

/// Cargo, the Rust target and the linker, each missing one with the line that brings it.
fn check_tools(source: &Path, triple: &str, linker: &str) -> anyhow::Result<()> {
    let print = |what: &str| -> anyhow::Result<String> {
        let output = tool(source, "RUSTC", "rustc").args(["--print", what]).output();
        let output = output.context("rustc: wanted Rust to build with, found none\nhint: https://rustup.rs")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let rustlib = Path::new(&print("sysroot")?).join("lib/rustlib");
    if !rustlib.join(triple).join("lib").is_dir() {
        bail!("rustc: wanted the Rust target {triple}, found it not installed\nhint: rustup target add {triple}");
    }
    // rustc looks there by itself.
    let lld = rustlib.join(print("host-tuple")?).join("bin/rust-lld");
    let on_path =
        || env::split_paths(&env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join("rust-lld").is_file());
    if env::var_os(linker).is_none() && !lld.is_file() && !on_path() {
        bail!(
            "{}: wanted the linker that comes with Rust, found none\nhint: install Rust with rustup, or name a linker in {linker}",
            lld.display()
        );
    }
    if tool(source, "CARGO", "cargo").arg("--version").output().is_err() {
        bail!("cargo: wanted it to build with, found none\nhint: https://rustup.rs");
    }
    Ok(())
}

/// A program of the Rust toolchain, in the workspace and without the variables that would disturb it.
fn tool(source: &Path, variable: &str, name: &str) -> Command {
    let mut command = Command::new(env::var_os(variable).unwrap_or_else(|| OsString::from(name)));
    command.current_dir(source).stdin(Stdio::null());
    for (key, _) in env::vars_os() {
        if key.to_str().is_some_and(disturbs) {
            command.env_remove(key);
        }
    }
    // Relative to where the user is, not to the workspace.
    if let Some(folder) = env::var_os("CARGO_TARGET_DIR").filter(|folder| folder != OsStr::new("")) {
        command.env("CARGO_TARGET_DIR", std::path::absolute(&folder).unwrap_or(folder.into()));
    }
    command
}
