//! Self-contained executables: they run, natively and under qemu-user, what the artifact inside would; their layout; what happens
//! to damaged ones; how they are made.
//!
//! With `LAPIDARY_TEST=full` gem-mini's own executables continue reference prompts for 64 tokens each, with one thread and with four, and
//! every token is held against PyTorch's: natively all 64 prompts, on both Pi cores every sixteenth (`LAPIDARY_TEST=exhaustive`: all).

mod support;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};
use support::{TARGETS, Target, copy_ids, copy_some, exhaustive, full, lapidary, output, root, run, static_program};
use tempfile::TempDir;

const TRAILER_BYTES: u64 = 32;
const ALIGN: u64 = 65536;

fn triple(target: &Target) -> &'static str {
    if target.cpu.is_some() { "aarch64-unknown-linux-musl" } else { "x86_64-unknown-linux-musl" }
}

/// A random model that generates, without a tokenizer.
fn tiny() -> PathBuf {
    root().join("tests/models/random/29-generate-top_p")
}

fn gem_mini() -> PathBuf {
    root().join("tests/models/gem-mini")
}

/// A compiled executable in a folder of its own.
struct Made {
    folder: TempDir,
    path: PathBuf,
    target: &'static Target,
}

impl Made {
    fn of(model: &Path, target: &'static Target) -> Result<Made, Failed> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("model");
        let mut compile = lapidary();
        compile.args(["-q", "compile"]).arg(model).args(["--target", target.name, "--emit", "exe", "-o"]).arg(&path);
        run(&mut compile)?;
        Ok(Made { folder, path, target })
    }

    fn command(&self) -> Command {
        self.target.launch(&self.path)
    }

    fn bytes(&self) -> u64 {
        fs::metadata(&self.path).expect("it was written").len()
    }

    /// A file beside the executable.
    fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The exit code and stderr of a call.
    fn call(&self, args: &[&str]) -> Result<(i32, String), Failed> {
        called(self.command().args(args))
    }
}

fn called(command: &mut Command) -> Result<(i32, String), Failed> {
    let output = output(command)?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code().ok_or_else(|| format!("{command:?}: {}\n{stderr}", output.status))?;
    if stderr.contains("panicked") {
        return Err(format!("{command:?}: {stderr}").into());
    }
    Ok((code, stderr))
}

fn expect(command: &mut Command, code: i32, text: &str) -> Result<(), Failed> {
    let (found, stderr) = called(command)?;
    if found != code || !stderr.contains(text) {
        return Err(format!("{command:?}: wanted {code} and `{text}`, found {found}: {stderr}").into());
    }
    Ok(())
}

/// Continuations of every `step`th reference prompt by the executable itself, token for token.
fn continues_as_pytorch(model: &Path, target: &'static Target, threads: &str, step: usize) -> Result<(), Failed> {
    let made = Made::of(model, target)?;
    let [ids, some, found] = ["ids.npz", "some.npz", "found.npz"].map(|name| made.beside(name));
    let prompts = copy_some(&model.join("reference.npz"), step, |array| ["ids", "greedy"].contains(&array), &some);
    let tokens = copy_ids(&some, &ids).expect("continuations").to_string();
    let input = format!("ids=@{}", ids.display());
    let mut command = made.command();
    command.args(["-q", "--threads", threads, "--max-new", &tokens, "--ignore-eos", "--input", &input, "--output"]);
    run(command.arg(&found))?;
    let mut compare = lapidary();
    compare.args(["-q", "compare", "--format", "json"]).arg(&made.path).arg("--outputs").arg(&found);
    let compared: serde_json::Value = serde_json::from_str(&run(compare.arg("--with").arg(&some))?)?;
    let counts = ["greedy", "greedy_equal"].map(|key| compared[key].as_u64().unwrap_or(0));
    if prompts == 0 || counts != [prompts as u64; 2] {
        return Err(format!("wanted {prompts} equal continuations, found {compared:#}").into());
    }
    Ok(())
}

/// Plain outputs and text.
fn runs(target: &'static Target) -> Result<(), Failed> {
    let made = Made::of(&tiny(), target)?;
    let (ids, found) = (made.beside("ids.npz"), made.beside("found.npz"));
    copy_ids(&tiny().join("reference.npz"), &ids);
    run(made.command().arg("--input").arg(format!("ids=@{}", ids.display())).arg("--output").arg(&found))?;
    let mut compare = lapidary();
    compare.args(["compare", "--no-greedy"]).arg(&made.path).arg("--outputs").arg(&found);
    run(compare.arg("--with").arg(tiny().join("reference.npz")))?;
    let mini = Made::of(&gem_mini(), target)?;
    let said = run(mini.command().args(["--prompt", "The patient should", "--max-new", "3", "--threads", "2"]))?;
    let artifact = mini.beside("gem.lapis");
    let mut compile = lapidary();
    run(compile.arg("compile").arg(gem_mini()).arg("-o").arg(&artifact))?;
    let mut plain = lapidary();
    let wanted = run(plain.arg("run").arg(&artifact).args(["--prompt", "The patient should", "--max-new", "3"]))?;
    if said != wanted || said.trim_end() == "The patient should" {
        return Err(format!("wanted {wanted}, found {said}").into());
    }
    Ok(())
}

/// `--info` and `lapidary inspect` say the same, and what was asked for.
fn shows_what_is_inside(target: &'static Target) -> Result<(), Failed> {
    let made = Made::of(&tiny(), target)?;
    let info = run(made.command().args(["--info", "--check", "--format", "json"]))?;
    let info: serde_json::Value = serde_json::from_str(&info)?;
    let mut inspect = lapidary();
    inspect.arg("inspect").arg(&made.path).args(["--check", "--format", "json"]);
    let inspected: serde_json::Value = serde_json::from_str(&run(&mut inspect)?)?;
    assert_eq!(info, inspected);
    assert_eq!(info["schema"], "lapidary.inspect/1");
    assert_eq!((&info["target"], &info["checked"]), (&target.name.into(), &true.into()));
    let runner_bytes = info["runner_bytes"].as_u64().ok_or("a number")?;
    let artifact_bytes = info["artifact_bytes"].as_u64().ok_or("a number")?;
    assert_eq!(runner_bytes + artifact_bytes + TRAILER_BYTES, made.bytes());
    let kernels = info["kernels"].as_array().ok_or("kernels")?;
    let own = if target.cpu.is_some() { "neon" } else { "avx2" };
    assert!(kernels.iter().any(|name| name.as_str().is_some_and(|name| name.ends_with(own))), "{kernels:?}");
    let text = run(made.command().arg("--info"))?;
    assert!(text.contains(target.name) && text.contains("kernels") && text.contains("executable"), "{text}");
    if target.cpu.is_some() {
        // Measuring the limits of an emulator takes minutes.
        return Ok(());
    }
    let bench = run(made.command().args([
        "--bench",
        "--reps",
        "2",
        "--tokens",
        "1,4",
        "--threads",
        "1,2",
        "--format",
        "json",
    ]))?;
    let bench: serde_json::Value = serde_json::from_str(&bench)?;
    assert_eq!(bench["results"].as_array().map(Vec::len), Some(4));
    Ok(())
}

fn exits_with_the_code_of_what_is_wrong(target: &'static Target) -> Result<(), Failed> {
    let made = Made::of(&tiny(), target)?;
    for (args, code, text) in [
        (&[][..], 2, "--prompt TEXT"),
        (&["--max-new", "3"], 2, "--prompt TEXT"),
        (&["--nonsense"], 2, "--nonsense"),
        (&["--info", "--prompt", "x"], 2, "--info"),
        (&["--info", "--bench"], 2, "--bench"),
        (&["--tokens", "4"], 2, "--bench"),
        (&["--check"], 2, "--info"),
        (&["--format", "json"], 2, "--info"),
        (&["--prompt", "x", "--threads", "1,2"], 2, "--threads"),
        (&["--prompt", "x", "--top-p", "2"], 2, "--top-p"),
        (&["--prompt", "x"], 1, "tokenizer"),
        (&["--text", "x"], 4, "--text"),
        (&["--input", "ids=@/nowhere.npy", "--output", "/tmp/never.npz"], 1, "/nowhere.npy"),
        (&["--bench", "--routing", "uniform"], 4, "--routing"),
    ] {
        expect(made.command().args(args), code, text)?;
    }
    let (_, usage) = made.call(&[])?;
    assert!(usage.lines().count() <= 6 && usage.contains(target.name), "{usage}");
    Ok(())
}

/// Runner, zeros, artifact, trailer, and nothing else; static; for every page size.
fn is_runner_artifact_and_trailer(target: &'static Target) -> Result<(), Failed> {
    let made = Made::of(&tiny(), target)?;
    let runner = fs::read(static_program(target.name)?)?;
    let artifact = made.beside("tiny.lapis");
    run(lapidary().arg("compile").arg(tiny()).args(["--target", target.name, "-o"]).arg(&artifact))?;
    let artifact = fs::read(artifact)?;
    let all = fs::read(&made.path)?;
    let begin = (runner.len() as u64).next_multiple_of(ALIGN) as usize;
    assert_eq!(all.len() as u64, (begin + artifact.len()) as u64 + TRAILER_BYTES);
    assert!(all.starts_with(&runner), "the runner comes first");
    assert!(all[runner.len()..begin].iter().all(|byte| *byte == 0), "zeros up to the artifact");
    assert!(all[begin..].starts_with(&artifact), "the artifact is the one that --emit lapis writes");
    // Vector code of x86-64 is longer.
    let limit = if target.cpu.is_some() { 3_000_000 } else { 4_000_000 };
    assert!(runner.len() < limit, "runner for {}: wanted less than {limit}, found {}", triple(target), runner.len());
    for header in program_headers(&runner) {
        let (kind, align) =
            (u32::from_le_bytes(header[..4].try_into()?), u64::from_le_bytes(header[48..56].try_into()?));
        assert!(kind != 3, "static: no PT_INTERP");
        assert!(
            kind != 1 || target.cpu.is_none() || align.is_multiple_of(ALIGN),
            "PT_LOAD for pages of 64 KiB: {align}"
        );
    }
    let mode = fs::metadata(&made.path)?.permissions().mode();
    assert!(mode & 0o100 != 0, "executable: {mode:o}");
    let left: Vec<_> = fs::read_dir(made.folder.path())?.map(|e| e.map(|e| e.file_name())).collect::<Result<_, _>>()?;
    assert_eq!(left.len(), 2, "no temporary file stays: {left:?}");
    Ok(())
}

fn program_headers(elf: &[u8]) -> impl Iterator<Item = &[u8]> {
    let number = |at: usize| usize::from(u16::from_le_bytes([elf[at], elf[at + 1]]));
    let table = u64::from_le_bytes(elf[0x20..0x28].try_into().expect("8 bytes")) as usize;
    elf[table..].chunks(number(0x36)).take(number(0x38))
}

/// Pages of 4, 16 and 64 KiB, as far as the emulator knows them.
fn runs_with_large_pages(target: &'static Target) -> Result<(), Failed> {
    let made = Made::of(&gem_mini(), target)?;
    let say = |page: &str| {
        let mut command = Command::new("qemu-aarch64");
        command.args(["-cpu", target.cpu.unwrap_or_default(), "-p", page]).arg(&made.path);
        run(command.args(["-q", "--prompt", "The patient", "--max-new", "2"]))
    };
    let wanted = say("4096")?;
    for page in ["16384", "65536"] {
        assert_eq!(say(page)?, wanted, "pages of {page}");
    }
    Ok(())
}

/// Cut short anywhere, or with any byte of the trailer or of the artifact's header changed: an error that says so.
fn damage_is_an_error(target: &'static Target) -> Result<(), Failed> {
    let made = Made::of(&tiny(), target)?;
    let (all, bytes) = (fs::read(&made.path)?, made.bytes());
    let info: serde_json::Value = serde_json::from_str(&run(made.command().args(["--info", "--format", "json"]))?)?;
    let begin = info["runner_bytes"].as_u64().ok_or("a number")?;
    let damaged = made.beside("damaged");
    fs::write(&damaged, &all)?;
    fs::set_permissions(&damaged, Permissions::from_mode(0o755))?;
    let info = |text: &str| expect(target.launch(&damaged).arg("--info"), 1, text);
    for cut in [1, TRAILER_BYTES - 1, TRAILER_BYTES, TRAILER_BYTES + 1, 4096, (bytes - begin) / 2, bytes - begin - 64] {
        File::options().write(true).open(&damaged)?.set_len(bytes - cut)?;
        info(&format!("wanted it at the end of a file of {bytes} bytes")).map_err(|e| at("cut", cut, e))?;
    }
    fs::write(&damaged, &all)?;
    let change = |offset: u64| -> Result<(), Failed> {
        let mut byte = [all[offset as usize]];
        byte[0] ^= 0x10;
        File::options().write(true).open(&damaged)?.write_all_at(&byte, offset)?;
        Ok(())
    };
    for offset in bytes - TRAILER_BYTES..bytes {
        change(offset)?;
        info("trailer").map_err(|e| at("changed", offset, e))?;
        File::options().write(true).open(&damaged)?.write_all_at(&all[offset as usize..=offset as usize], offset)?;
    }
    for offset in [begin, begin + 16, begin + 40, begin + 63, begin + ALIGN] {
        change(offset)?;
        info("damaged").map_err(|e| at("changed", offset, e))?;
        File::options().write(true).open(&damaged)?.write_all_at(&all[offset as usize..=offset as usize], offset)?;
    }
    // The same bytes again are whole again; without anything behind it, the runner is the command of a device.
    run(target.launch(&damaged).arg("--info"))?;
    File::options().write(true).open(&damaged)?.set_len(begin)?;
    let help = run(target.launch(&damaged).arg("--help"))?;
    assert!(help.contains("inspect") && !help.contains("compile"), "{help}");
    Ok(())
}

fn at(what: &str, offset: u64, error: Failed) -> Failed {
    format!("{what} {offset}: {}", error.message().unwrap_or_default()).into()
}

/// Another name, another folder, a link, only readable: it is the file that counts.
fn works_wherever_it_lies(target: &'static Target) -> Result<(), Failed> {
    let made = Made::of(&tiny(), target)?;
    let folder = made.beside("other folder");
    fs::create_dir(&folder)?;
    let moved = folder.join("ünder another name.bin");
    fs::rename(&made.path, &moved)?;
    fs::set_permissions(&moved, Permissions::from_mode(0o555))?;
    run(target.launch(&moved).arg("--info"))?;
    let link = made.beside("link");
    std::os::unix::fs::symlink(&moved, &link)?;
    run(target.launch(&link).arg("--info"))?;
    if target.cpu.is_none() {
        // Found through PATH, called by a name without a folder.
        let mut command = Command::new("link");
        run(command.env("PATH", made.folder.path()).current_dir("/").arg("--info"))?;
    }
    Ok(())
}

/// The runner may lie beside the command; a missing tool is an error with the line that brings it.
fn the_runner_is_found_or_its_absence_explained() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let command = folder.path().join("lapidary");
    // Not copied by this process: a program that is open for writing in a child of it could not be started.
    run(Command::new("cp").arg(env!("CARGO_BIN_EXE_lapidary")).arg(&command))?;
    let out = folder.path().join("out");
    let compile = |rustc: &Path| {
        let mut compile = Command::new(&command);
        compile.env("RUSTC", rustc).env("CARGO", "/nowhere/cargo");
        compile.args(["-q", "compile"]).arg(tiny()).args(["--target", "rpi4", "--emit", "exe", "-o"]).arg(&out);
        compile
    };
    expect(&mut compile(Path::new("/nowhere/rustc")), 1, "https://rustup.rs")?;
    let rustc = folder.path().join("rustc");
    fs::write(&rustc, "#!/bin/sh\necho /nowhere\n")?;
    fs::set_permissions(&rustc, Permissions::from_mode(0o755))?;
    expect(&mut compile(&rustc), 1, "rustup target add aarch64-unknown-linux-musl")?;
    let runner = folder.path().join("lapidary-runner-aarch64-unknown-linux-musl");
    fs::write(&runner, "no program")?;
    expect(&mut compile(&rustc), 1, "ELF")?;
    let mut elf = vec![0; 4096];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[0x12] = 62;
    fs::write(&runner, &elf)?;
    expect(&mut compile(&rustc), 1, "aarch64-unknown-linux-musl, found one for machine 62")?;
    assert!(!out.exists(), "nothing is written before all is there");
    elf[0x12] = 183;
    fs::write(&runner, &elf)?;
    run(&mut compile(&rustc))?;
    // One that carries a model already.
    fs::rename(&out, &runner)?;
    expect(&mut compile(&rustc), 1, "carries a model")?;
    fs::create_dir(&out)?;
    expect(&mut compile(&rustc), 2, "folder")?;
    Ok(())
}

fn main() {
    let arguments = Arguments::from_args();
    let mut trials =
        vec![Trial::test("the_runner_is_found_or_its_absence_explained", the_runner_is_found_or_its_absence_explained)];
    for target in TARGETS.iter().filter(|t| ["rpi4", "rpi5", "x86-64-v3"].contains(&t.name)) {
        let why_not = target.why_not().or_else(|| static_program(target.name).err());
        let mut add = |name: &str, test: Box<dyn FnOnce() -> Result<(), Failed> + Send>| {
            let skipped = why_not.as_ref().map(|why| format!(" (skipped: {why})")).unwrap_or_default();
            let name = format!("{}::{name}{skipped}", target.name);
            trials.push(Trial::test(name, test).with_ignored_flag(why_not.is_some()));
        };
        for threads in ["1", "4"] {
            let model = if full() { gem_mini() } else { tiny() };
            let step = if full() && target.cpu.is_some() && !exhaustive() { 16 } else { 1 };
            let name = format!("continues_as_pytorch-{threads}-threads{}", support::every(step));
            add(&name, Box::new(move || continues_as_pytorch(&model, target, threads, step)));
        }
        add("runs", Box::new(|| runs(target)));
        add("shows_what_is_inside", Box::new(|| shows_what_is_inside(target)));
        add("is_runner_artifact_and_trailer", Box::new(|| is_runner_artifact_and_trailer(target)));
        add("exits_with_the_code_of_what_is_wrong", Box::new(|| exits_with_the_code_of_what_is_wrong(target)));
        if target.cpu.is_some() {
            add("runs_with_large_pages", Box::new(|| runs_with_large_pages(target)));
        } else {
            // The same code on every target; a process under emulation costs too much for each byte of the trailer.
            add("damage_is_an_error", Box::new(|| damage_is_an_error(target)));
        }
        add("works_wherever_it_lies", Box::new(|| works_wherever_it_lies(target)));
    }
    libtest_mimic::run(&arguments, trials).exit();
}
