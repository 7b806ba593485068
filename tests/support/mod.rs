//! What the end-to-end tests share: the command, targets that can run here, and the emulator.

#![allow(dead_code, reason = "each suite uses its part")]

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use lapidary_target_cpu::CpuTarget;
use ndarray::Array1;
use ndarray_npy::{NpzReader, NpzWriter};
use tempfile::TempDir;
use zip::{ZipArchive, ZipWriter};

#[path = "../../src/runner.rs"]
mod runner;

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether the slow suites run: `LAPIDARY_TEST=full`, or any other value.
pub fn full() -> bool {
    std::env::var_os("LAPIDARY_TEST").is_some()
}

/// Whether they also run on all of gem-mini's prompts what takes many minutes with them, under emulation or in the reference
/// interpreter: `LAPIDARY_TEST=exhaustive`.
pub fn exhaustive() -> bool {
    std::env::var("LAPIDARY_TEST").is_ok_and(|v| v == "exhaustive")
}

/// The command under test.
pub fn lapidary() -> Command {
    Command::new(env!("CARGO_BIN_EXE_lapidary"))
}

/// Runs a command; its output, or an error with all that it printed.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = output(command).map_err(|e| format!("{command:?}: {e}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{command:?}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr)))
}

/// Runs a command. A program that was just written may still be open for writing in a process that another test is about
/// to start; that passes.
pub fn output(command: &mut Command) -> std::io::Result<Output> {
    for _ in 0..50 {
        match command.output() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(Duration::from_millis(20))
            }
            result => return result,
        }
    }
    command.output()
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

/// What an artifact is compared with.
#[derive(Clone, Copy, Debug)]
pub enum Reference<'a> {
    /// The outputs in a file.
    File(&'a Path),
    /// What defines the outputs of artifacts of the model in a folder: its `reference.npz`, or the interpreter on its prompts.
    Model(&'a Path),
}

impl Target {
    /// Why its artifacts cannot run here, with the line that changes it.
    pub fn why_not(&self) -> Option<String> {
        if self.cpu.is_some() {
            return device_command().as_ref().err().cloned();
        }
        let runs = match self.name {
            "x86-64-v3" => cfg!(target_arch = "x86_64") && has("avx2") && has("fma") && has("f16c"),
            "x86-64-v4" => cfg!(target_arch = "x86_64") && has("avx512f") && has("avx512bw") && has("avx512vl"),
            _ => true,
        };
        (!runs).then(|| format!("this CPU is no {}", self.name))
    }

    /// What runs programs of this target here: nothing, or the emulator of its core.
    pub fn launch(&self, program: &Path) -> Command {
        match self.cpu {
            Some(cpu) => {
                let mut command = Command::new("qemu-aarch64");
                command.args(["-cpu", cpu]).arg(program);
                command
            }
            None => Command::new(program),
        }
    }

    /// Compares an artifact with reference outputs. Emulated, the command of a device runs the reference's prompts and the
    /// command of this machine compares what came out.
    pub fn compare(&self, artifact: &Path, with: Reference<'_>, more: &[&str]) -> Result<String, String> {
        let mut compare = lapidary();
        compare.args(["-q", "compare"]).arg(artifact).args(more).arg("--with");
        let reference = match with {
            Reference::File(file) => file.to_path_buf(),
            Reference::Model(folder) => folder.join("reference.npz"),
        };
        match with {
            Reference::File(file) => compare.arg(file),
            Reference::Model(folder) => compare.args(["reference", "--model"]).arg(folder),
        };
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        if let (Some(_), Ok(device)) = (self.cpu, device_command()) {
            let (input, outputs) = (folder.path().join("ids.npz"), folder.path().join("outputs.npz"));
            let has_greedy = copy_ids(&reference, &input);
            let mut run_with = |outputs: &Path, more: &[&str]| {
                let input = format!("ids=@{}", input.display());
                let mut command = self.launch(device);
                command.args(["-q", "run"]).arg(artifact).args(["--threads", "1", "--input", &input]);
                compare.arg("--outputs").arg(outputs);
                run(command.arg("--output").arg(outputs).args(more))
            };
            run_with(&outputs, &[])?;
            if let Some(tokens) = has_greedy.filter(|_| !more.contains(&"--no-greedy")) {
                let tokens = tokens.to_string();
                run_with(&folder.path().join("generated.npz"), &["--max-new", &tokens, "--ignore-eos"])?;
            }
        }
        run(&mut compare)
    }
}

/// What a test's name says of prompts that it leaves out.
pub fn every(step: usize) -> String {
    if step == 1 { String::new() } else { format!("-one-prompt-of-{step}") }
}

/// Writes every `step`th prompt of a reference, for what takes too long with all: of its arrays those that `wanted` says. Gives the
/// number of prompts.
pub fn copy_some(reference: &Path, step: usize, wanted: impl Fn(&str) -> bool, to: &Path) -> usize {
    let mut from = ZipArchive::new(std::fs::File::open(reference).expect("a reference")).expect("an archive");
    let mut some = ZipWriter::new(std::fs::File::create(to).expect("a file"));
    let mut prompts = BTreeSet::new();
    for i in 0..from.len() {
        let entry = from.by_index_raw(i).expect("an archive");
        let name = entry.name().trim_end_matches(".npy");
        let Some((number, what)) = name.strip_prefix("prompt.").and_then(|rest| rest.split_once('.')) else { continue };
        let number: usize = number.parse().expect("a number");
        if number.is_multiple_of(step) && wanted(what) {
            prompts.insert(number);
            some.raw_copy_file(entry).expect("a file");
        }
    }
    some.finish().expect("a file");
    prompts.len()
}

/// A model's folder again, with every `step`th prompt of its reference.
pub fn with_some_prompts(model: &Path, step: usize) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        symlink(model.join(name), folder.path().join(name)).expect("a link");
    }
    let prompts = copy_some(&model.join("reference.npz"), step, |_| true, &folder.path().join("reference.npz"));
    assert!(prompts > 0, "{}: wanted prompts, found none", model.display());
    folder
}

/// Writes the ids of a reference as the command of a device reads them, not compressed. Gives the length of the greedy
/// continuations, if there are any.
pub fn copy_ids(reference: &Path, to: &Path) -> Option<usize> {
    let mut from = NpzReader::new(std::fs::File::open(reference).expect("a reference")).expect("an archive");
    let mut npz = NpzWriter::new(std::fs::File::create(to).expect("a file"));
    let mut greedy = None;
    for entry in from.names().expect("an archive") {
        let name = entry.trim_end_matches(".npy");
        if name == "ids" || name.ends_with(".ids") {
            let ids: Array1<i64> = from.by_name(&entry).expect("int64 [T]");
            npz.add_array(name, &ids).expect("a file");
        } else if name.ends_with("greedy") {
            let tokens: Array1<i64> = from.by_name(&entry).expect("int64 [n]");
            assert!(greedy.is_none_or(|n| n == tokens.len()), "{entry}: continuations of several lengths");
            greedy = Some(tokens.len());
        }
    }
    npz.finish().expect("a file");
    greedy
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

/// The command of an AArch64 device, built as self-contained executables need it; or why there is none.
fn device_command() -> &'static Result<PathBuf, String> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BINARY.get_or_init(|| {
        if Command::new("qemu-aarch64").arg("--version").output().is_err() {
            return Err("no qemu-aarch64: apt-get install qemu-user".into());
        }
        static_program("rpi4")
    })
}

/// The runner for a compile target, built on first use; or why there is none.
pub fn static_program(target: &str) -> Result<PathBuf, String> {
    let target = CpuTarget::by_name(target).expect("a target of the table");
    let triple = target.architecture.static_triple();
    let sysroot = run(Command::new("rustc").args(["--print", "sysroot"]))?;
    if !Path::new(sysroot.trim()).join("lib/rustlib").join(triple).is_dir() {
        return Err(format!("no Rust target {triple}: rustup target add {triple}"));
    }
    let built = runner::find_or_build(&target, true);
    Ok(built.unwrap_or_else(|e| panic!("the command does not build for {triple}, which is no reason to skip: {e:#}")))
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
