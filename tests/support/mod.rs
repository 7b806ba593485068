//! What the end-to-end tests share: the command, targets that can run here, and the emulator.

#![allow(dead_code, reason = "each suite uses its part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether the slow suites run: `LAPIDARY_TEST=full`.
pub fn full() -> bool {
    std::env::var("LAPIDARY_TEST").is_ok_and(|v| v == "full")
}

/// The command under test.
pub fn lapidary() -> Command {
    Command::new(env!("CARGO_BIN_EXE_lapidary"))
}

/// Runs a command; its output, or an error with all that it printed.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{command:?}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr)))
}

/// A compile target and what runs its artifacts here.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name after `--target`.
    pub name: &'static str,
    /// Core that qemu-user emulates; `None`: this machine runs it.
    pub cpu: Option<&'static str>,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "native", cpu: None },
    Target { name: "x86-64-v3", cpu: None },
    Target { name: "x86-64-v4", cpu: None },
    Target { name: "rpi4", cpu: Some("cortex-a72") },
    Target { name: "rpi5", cpu: Some("cortex-a76") },
];

impl Target {
    /// Why its artifacts cannot run here, with the line that changes it.
    pub fn why_not(&self) -> Option<String> {
        if self.cpu.is_some() {
            return emulator().as_ref().err().cloned();
        }
        let runs = match self.name {
            "x86-64-v3" => cfg!(target_arch = "x86_64") && has("avx2") && has("fma") && has("f16c"),
            "x86-64-v4" => cfg!(target_arch = "x86_64") && has("avx512f") && has("avx512bw") && has("avx512vl"),
            _ => true,
        };
        (!runs).then(|| format!("this CPU is no {}", self.name))
    }

    /// The command, on this machine or emulated.
    pub fn command(&self) -> Command {
        match (self.cpu, emulator()) {
            (Some(cpu), Ok(binary)) => {
                let mut command = Command::new("qemu-aarch64");
                command.args(["-cpu", cpu]).arg(binary);
                command
            }
            _ => lapidary(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has(feature: &str) -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    flags.lines().find(|l| l.starts_with("flags")).is_some_and(|l| l.split(' ').any(|f| f == feature))
}

#[cfg(not(target_arch = "x86_64"))]
fn has(_: &str) -> bool {
    false
}

/// The command for AArch64, without the compiler, built on first use; or why there is none. As a release: that is what
/// runs on a device. (It executes a third of a debug build's instructions, but the emulator's time goes into floating-point
/// arithmetic, so gem-mini's 64 prompts take five minutes instead of six.)
fn emulator() -> &'static Result<PathBuf, String> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BINARY.get_or_init(|| {
        if Command::new("qemu-aarch64").arg("--version").output().is_err() {
            return Err("no qemu-aarch64: apt-get install qemu-user".into());
        }
        let triple = "aarch64-unknown-linux-musl";
        let sysroot = run(Command::new("rustc").args(["--print", "sysroot"]))?;
        if !Path::new(sysroot.trim()).join("lib/rustlib").join(triple).is_dir() {
            return Err(format!("no Rust target {triple}: rustup target add {triple}"));
        }
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let built = run(Command::new(cargo)
            .args([
                "build",
                "--release",
                "--no-default-features",
                "--message-format",
                "json",
                "--target",
                triple,
                "--bin",
                "lapidary",
            ])
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld")
            .current_dir(root()))
        .unwrap_or_else(|e| {
            panic!("the command does not build for {triple}, which is no reason to skip its tests:\n{e}")
        });
        let executable = built.lines().rev().find_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            message["executable"].as_str().map(PathBuf::from)
        });
        Ok(executable.expect("cargo names the executable it built"))
    })
}

/// Folders of models with reference outputs: the random ones, then the bundled one.
pub fn models() -> Vec<PathBuf> {
    let folder = root().join("tests/models");
    let mut models: Vec<PathBuf> = std::fs::read_dir(folder.join("random"))
        .expect("tests/models/random")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("reference.npz").is_file())
        .collect();
    models.sort();
    models.push(folder.join("gem-mini"));
    models
}
