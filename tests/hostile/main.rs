//! Files that mean harm: damaged artifacts, checkpoints, configs, tokenizers, `.lir` texts and NumPy files end in an error or a
//! right result, never in a panic, a crash, a hang, or more memory than the file's size gives reason for (SECURITY.md).
//!
//! Each format is one test. A test runs its cases in a process of its own (this binary again), which says in a small file
//! which case it is at: when it crashes or hangs, the case is known. A case is a function of format and number alone:
//!
//!     LAPIDARY_HOSTILE=lir:4711 cargo test --test hostile
//!
//! runs that one, says what was done to the file, and keeps the file. `LAPIDARY_TEST=full` runs 100 times as many cases.

mod allocation;
mod compiled;
mod consume;
#[path = "../../src/difference.rs"]
#[allow(dead_code, reason = "the command's, in part")]
mod difference;
mod execute;
mod fixtures;
mod mutate;
mod npu;
#[path = "../support/npu_artifact.rs"]
#[allow(dead_code, reason = "the command's tests', in part")]
mod npu_artifact;
#[path = "../../src/npu/compiled.rs"]
#[allow(dead_code, reason = "the command's, in part")]
mod npu_compiled;
#[path = "../../src/npy.rs"]
#[allow(dead_code, reason = "the command's, in part")]
mod npy;
#[path = "../../src/reference.rs"]
#[allow(dead_code, reason = "the command's, in part")]
mod reference;
#[path = "../support/mod.rs"]
mod support;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use lapidary_format::{Artifact, SectionKind};
use libtest_mimic::{Arguments, Failed, Trial};

use mutate::{Random, Subject, damaged, reseal};

#[global_allocator]
static ALLOCATOR: allocation::Counting = allocation::Counting;

/// How long one case may take before it counts as a hang. Most take less than a millisecond.
const HANG: Duration = Duration::from_secs(120);
/// What a process with one format to read is told.
const WORKER: &str = "LAPIDARY_HOSTILE_WORKER";
/// `FORMAT:CASE` to run alone.
const REPLAY: &str = "LAPIDARY_HOSTILE";

/// Folder to write the good files to, one folder per fuzz target.
const SEEDS: &str = "LAPIDARY_SEEDS";

/// One damaged file and what came of it.
struct Case {
    /// Whether it was accepted, or the rule that was broken.
    outcome: Result<bool, String>,
    /// The file.
    bytes: Vec<u8>,
    /// What was done to it.
    damage: String,
    /// The most memory that reading it took.
    peak_bytes: usize,
}

/// The cases of a format.
struct Cases {
    /// How many there are beyond those that a format's row says.
    more: u64,
    /// Runs case `n`.
    run: Box<dyn FnMut(u64) -> Case>,
}

impl Cases {
    fn of(run: impl FnMut(u64) -> Case + 'static) -> Self {
        Self { more: 0, run: Box::new(run) }
    }
}

/// A format, or a way to damage it.
struct Format {
    name: &'static str,
    /// Cases with `LAPIDARY_TEST=full`, and without.
    cases: [u64; 2],
    /// Memory that reading may take: so many bytes, and so many per byte of the file.
    memory: (usize, usize),
    /// Good files in a folder of their own.
    cases_in: fn(&Path) -> Cases,
}

/// Small files need tables and buffers of their own; what grows with the file is copies of it as numbers, strings and nodes.
const FORMATS: &[Format] = &[
    Format { name: "artifact-prefixes", cases: [1, 1], memory: (1 << 16, 0), cases_in: artifact_prefixes },
    Format { name: "artifact", cases: [100_000, 1000], memory: (1 << 16, 0), cases_in: artifact_as_it_is },
    Format { name: "artifact-resealed", cases: [100_000, 1000], memory: (1 << 16, 0), cases_in: artifact_resealed },
    Format { name: "artifact-file", cases: [10_000, 200], memory: (1 << 19, 8), cases_in: artifact_file },
    Format { name: "npu-artifact", cases: [100_000, 1000], memory: (16 << 20, 8), cases_in: npu::cases },
    Format { name: "weights", cases: [10_000, 200], memory: (1 << 20, 2), cases_in: weights },
    Format { name: "safetensors", cases: [100_000, 1000], memory: (1 << 20, 32), cases_in: safetensors },
    Format { name: "config", cases: [100_000, 1000], memory: (1 << 21, 64), cases_in: config },
    Format { name: "tokenizer", cases: [100_000, 1000], memory: (8 << 20, 256), cases_in: tokenizer },
    Format { name: "lir", cases: [100_000, 1000], memory: (1 << 20, 16), cases_in: lir },
    Format { name: "lir-code", cases: [20_000, 100], memory: (4 << 20, 64), cases_in: lir_code },
    Format { name: "npy", cases: [100_000, 1000], memory: (1 << 16, 4), cases_in: npy },
    Format { name: "npz", cases: [100_000, 1000], memory: (3 << 19, 96), cases_in: npz },
];

fn main() -> ExitCode {
    if let Ok(job) = std::env::var(WORKER) {
        return worker(&job);
    }
    if let Ok(case) = std::env::var(REPLAY) {
        return replay(&case);
    }
    if let Ok(folder) = std::env::var(SEEDS) {
        return write_seeds(Path::new(&folder));
    }
    let trials = FORMATS.iter().map(|format| Trial::test(format.name, || supervise(format))).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Runs the cases of a format in a process of its own, and watches it.
fn supervise(format: &'static Format) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let record = folder.path().join("case");
    let log = folder.path().join("log");
    std::fs::write(&record, u64::MAX.to_le_bytes())?;
    let cases = format.cases[usize::from(!support::full())];
    let mut child = Command::new(std::env::current_exe()?)
        .env(WORKER, format!("{}:{cases}:{}", format.name, folder.path().display()))
        .stdout(Stdio::null())
        .stderr(File::create(&log)?)
        .spawn()?;
    let at = || std::fs::read(&record).ok().and_then(|b| Some(u64::from_le_bytes(*b.first_chunk()?))).unwrap_or(0);
    let (mut case, mut since) = (at(), Instant::now());
    let ended = loop {
        if let Some(status) = child.try_wait()? {
            break status.to_string();
        }
        std::thread::sleep(Duration::from_millis(20));
        let now = at();
        if now != case {
            (case, since) = (now, Instant::now());
        } else if since.elapsed() > HANG {
            child.kill()?;
            child.wait()?;
            break format!("no end after {} s", HANG.as_secs());
        }
    };
    let log = std::fs::read_to_string(&log)?;
    // The worker's last words, so that one that never ran is no success.
    if log.lines().last().is_some_and(|line| line.starts_with(&format!("{} done: ", format.name))) {
        eprint!("{}", log.lines().last().map(|line| format!("{line}\n")).unwrap_or_default());
        return Ok(());
    }
    let name = format.name;
    Err(format!("{name}: {ended} at case {}\n{log}\nagain: {REPLAY}={name}:{} cargo test --test hostile", at(), at())
        .into())
}

fn format_named(name: &str) -> &'static Format {
    FORMATS.iter().find(|format| format.name == name).expect("a format's name")
}

fn worker(job: &str) -> ExitCode {
    let mut parts = job.splitn(3, ':');
    let format = format_named(parts.next().unwrap_or_default());
    let count: u64 = parts.next().and_then(|n| n.parse().ok()).expect("a count");
    let folder = PathBuf::from(parts.next().expect("a folder"));
    let record = File::options().write(true).open(folder.join("case")).expect("a record");
    quiet_about_contained_panics();
    let mut cases = (format.cases_in)(&folder);
    let (mut accepted, mut failures, mut most) = (0_u64, 0, (0, 0));
    let count = count + cases.more;
    for n in 0..count {
        record.write_all_at(&n.to_le_bytes(), 0).expect("a record");
        match judge(format, &mut cases, n) {
            Ok((ok, case)) => {
                accepted += u64::from(ok);
                most = most.max((case.peak_bytes, case.bytes.len()));
            }
            Err(message) => {
                eprintln!("{message}");
                failures += 1;
                if failures == 5 {
                    break;
                }
            }
        }
    }
    if failures > 0 {
        return ExitCode::FAILURE;
    }
    let (peak, len) = most;
    eprintln!(
        "{} done: {count} cases, {accepted} accepted, at most {peak} bytes of memory (file of {len})",
        format.name
    );
    ExitCode::SUCCESS
}

/// The tokenizer library's panics are errors, which the cases look at.
fn quiet_about_contained_panics() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !lapidary_runtime::panic_is_contained() {
            hook(info);
        }
    }));
}

/// Runs a case and holds it to the rules; the message says how to see it again.
fn judge(format: &Format, cases: &mut Cases, n: u64) -> Result<(bool, Case), String> {
    let again = || format!("again: {REPLAY}={}:{n} cargo test --test hostile", format.name);
    let case = catch_unwind(AssertUnwindSafe(|| (cases.run)(n))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        format!("case {n}: panicked: {text}\n{}", again())
    })?;
    let (constant, per_byte) = format.memory;
    let limit = constant + per_byte * case.bytes.len();
    match &case.outcome {
        Err(rule) => Err(format!("case {n} ({}): {rule}\n{}", case.damage, again())),
        Ok(_) if case.peak_bytes > limit => Err(format!(
            "case {n} ({}): memory: wanted at most {limit} bytes for a file of {}, found {}\n{}",
            case.damage,
            case.bytes.len(),
            case.peak_bytes,
            again()
        )),
        Ok(accepted) => Ok((*accepted, case)),
    }
}

fn replay(case: &str) -> ExitCode {
    let (name, n) = case.split_once(':').expect("FORMAT:CASE");
    let n = n.parse().expect("a number");
    let folder = tempfile::tempdir().expect("a folder");
    let format = format_named(name);
    let mut cases = (format.cases_in)(folder.path());
    KEEP.set(Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hostile-{name}-{n}"))));
    match judge(format, &mut cases, n) {
        Ok((accepted, case)) => {
            eprintln!("{}: accepted: {accepted}, {} bytes of memory", case.damage, case.peak_bytes);
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

thread_local! {
    /// Where a damaged file is kept before it is read.
    static KEEP: std::cell::RefCell<Option<PathBuf>> = const { std::cell::RefCell::new(None) };
}

/// Reads a damaged file and measures what that takes.
fn read(bytes: Vec<u8>, damage: String, reader: impl FnOnce(&[u8]) -> Result<bool, String>) -> Case {
    if let Some(path) = KEEP.take() {
        std::fs::write(&path, &bytes).expect("a writable folder");
        eprintln!("{damage}: {}", path.display());
    }
    let (outcome, peak_bytes) = allocation::peak_of(|| reader(&bytes));
    Case { outcome, bytes, damage, peak_bytes }
}

fn random(format: &str, n: u64) -> Random {
    Random(format.bytes().fold(n.wrapping_mul(0xd134_2543_de82_ef95), |seed, b| seed.rotate_left(9) ^ u64::from(b)))
}

/// A tiny model in a folder and its artifact.
fn model_in(folder: &Path, variant: usize) -> (PathBuf, Vec<u8>) {
    let model = folder.join(format!("model-{variant}"));
    std::fs::create_dir_all(&model).expect("a writable folder");
    fixtures::write_model(&model, &fixtures::VARIANTS[variant]);
    let artifact = compiled::artifact(&model);
    (model, artifact)
}

/// What loading verifies: header, section table and the sections with a checksum that is looked at.
fn verified(file: &[u8]) -> Vec<Range<usize>> {
    let artifact = Artifact::parse(file).expect("a good artifact");
    let sections = artifact.sections().filter(|s| s.kind.is_some_and(SectionKind::verified_on_load));
    let table = 0..64 + 32 * artifact.sections().count();
    std::iter::once(table).chain(sections.map(|s| s.offset as usize..(s.offset + s.bytes) as usize)).collect()
}

fn artifact_prefixes(folder: &Path) -> Cases {
    let (_, good) = model_in(folder, 0);
    Cases::of(move |_| {
        read(good.clone(), "every prefix".into(), |good| {
            for len in 0..good.len() {
                if consume::artifact(&good[..len])? {
                    return Err(format!("the first {len} of {} bytes were accepted", good.len()));
                }
            }
            consume::artifact(good)
        })
    })
}

/// Checksums stay as they were: whatever loading covers is found on load, and the rest by `check`.
fn artifact_as_it_is(folder: &Path) -> Cases {
    let (_, good) = model_in(folder, 0);
    let verified = verified(&good);
    Cases::of(move |n| {
        let subject = Subject { bytes: &good, hot: &verified, is_text: false };
        let (bytes, damage) = damaged(&subject, &mut random("artifact", n));
        read(bytes, damage, |bytes| {
            let accepted = consume::artifact(bytes)?;
            if accepted != (bytes == good) {
                return Err(format!("accepted by check: wanted {}, found {accepted}", bytes == good));
            }
            let intact = bytes.len() == good.len() && verified.iter().all(|r| bytes[r.clone()] == good[r.clone()]);
            match Artifact::parse(bytes).is_ok() {
                loaded if loaded == intact => Ok(accepted),
                loaded => Err(format!("loaded: wanted {intact}, found {loaded}")),
            }
        })
    })
}

/// Checksums and length made right again, so that the checks behind them are reached. Never executed.
fn artifact_resealed(folder: &Path) -> Cases {
    let (_, good) = model_in(folder, 0);
    let verified = verified(&good);
    Cases::of(move |n| {
        let subject = Subject { bytes: &good, hot: &verified, is_text: false };
        let mut random = random("artifact-resealed", n);
        let (mut bytes, damage) = damaged(&subject, &mut random);
        reseal(&mut bytes, random.below(2) == 0);
        read(bytes, damage, consume::artifact)
    })
}

/// Both kinds as files, mapped, with what the runtime makes of the tokenizer.
fn artifact_file(folder: &Path) -> Cases {
    let (_, good) = model_in(folder, 0);
    let mut hot = verified(&good);
    let tokenizer = Artifact::parse(&good).expect("good").sections().find(|s| s.kind == Some(SectionKind::Tokenizer));
    hot.extend(tokenizer.map(|s| s.offset as usize..(s.offset + s.bytes) as usize));
    let path = folder.join("damaged.lapis");
    Cases::of(move |n| {
        let mut random = random("artifact-file", n);
        let (mut bytes, damage) = damaged(&Subject { bytes: &good, hot: &hot, is_text: false }, &mut random);
        if random.below(2) == 0 {
            reseal(&mut bytes, true);
        }
        read(bytes, damage, |bytes| consume::artifact_file(bytes, &path))
    })
}

/// Weights that are no numbers, infinite, or random; code and tables as they were. Executed.
fn weights(folder: &Path) -> Cases {
    let good: Vec<Vec<u8>> = (0..fixtures::VARIANTS.len()).map(|variant| model_in(folder, variant).1).collect();
    Cases::of(move |n| {
        let mut random = random("weights", n);
        let mut bytes = good[n as usize % good.len()].clone();
        let begin = Artifact::parse(&bytes).expect("good").weights_range().start as usize;
        let damage = match n < good.len() as u64 {
            true => "nothing".into(),
            false => execute::damage_weights(&mut bytes, begin, &mut random),
        };
        read(bytes, damage, |bytes| execute::run(bytes, &mut random).map(|()| true))
    })
}

/// A file of a model's folder is damaged, the others are not.
fn in_folder(folder: &Path, name: &'static str, is_text: bool, header: impl Fn(&Path) -> usize + 'static) -> Cases {
    let models: Vec<PathBuf> = [0, 3].map(|variant| model_in(folder, variant).0).into();
    let good: Vec<Vec<u8>> = models.iter().map(|m| std::fs::read(m.join(name)).expect("a file")).collect();
    let hot: Vec<_> = models.iter().map(|m| 0..header(&m.join(name))).collect();
    Cases::of(move |n| {
        let i = n as usize % models.len();
        let subject = Subject { bytes: &good[i], hot: &hot[i..=i], is_text };
        let (bytes, damage) = damaged(&subject, &mut random(name, n));
        let path = models[i].join(name);
        read(bytes, damage, |bytes| {
            std::fs::write(&path, bytes).map_err(|e| e.to_string())?;
            consume::folder(&models[i], &path)
        })
    })
}

fn safetensors(folder: &Path) -> Cases {
    let header = |path: &Path| {
        let bytes = std::fs::read(path).expect("a file");
        8 + u64::from_le_bytes(*bytes.first_chunk().expect("a header")) as usize
    };
    in_folder(folder, "model.safetensors", false, header)
}

fn config(folder: &Path) -> Cases {
    in_folder(folder, "config.json", true, |path| std::fs::metadata(path).expect("a file").len() as usize)
}

/// One of several good files, damaged and read from memory.
fn in_memory(
    name: &'static str,
    good: Vec<Vec<u8>>,
    is_text: bool,
    reader: fn(&[u8]) -> Result<bool, String>,
) -> Cases {
    // First prefixes of every file, then damage.
    let step = if support::full() { 1 } else { 97 };
    let lengths = |(i, file): (usize, &Vec<u8>)| (0..=file.len()).step_by(step).map(move |len| (i, len));
    let prefixes: Vec<(usize, usize)> = good.iter().enumerate().flat_map(lengths).collect();
    let more = prefixes.len() as u64;
    let run = move |n: u64| {
        if let Some((file, len)) = prefixes.get(n as usize) {
            return read(good[*file][..*len].to_vec(), format!("the first {len} bytes"), reader);
        }
        let subject = Subject { bytes: &good[n as usize % good.len()], hot: &[], is_text };
        let (bytes, damage) = damaged(&subject, &mut random(name, n));
        read(bytes, damage, reader)
    };
    Cases { more, run: Box::new(run) }
}

fn tokenizer(_: &Path) -> Cases {
    let good = fixtures::tokenizers().into_iter().map(String::into_bytes).collect();
    in_memory("tokenizer", good, true, consume::tokenizer)
}

fn lir_texts(folder: &Path) -> Vec<Vec<u8>> {
    compiled::lir(&model_in(folder, 0).0).into_iter().map(String::into_bytes).collect()
}

fn lir(folder: &Path) -> Cases {
    in_memory("lir", lir_texts(folder), true, consume::lir)
}

fn lir_code(folder: &Path) -> Cases {
    in_memory("lir-code", lir_texts(folder), true, compiled::lir_code)
}

fn npy(_: &Path) -> Cases {
    in_memory("npy", vec![fixtures::npy()], false, consume::npy)
}

fn npz(_: &Path) -> Cases {
    in_memory("npz", fixtures::npz(), false, consume::npz)
}

/// The good files, for the fuzz targets to begin with.
fn write_seeds(to: &Path) -> ExitCode {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, artifact) = model_in(folder.path(), 0);
    let file = |name: &str| vec![std::fs::read(model.join(name)).expect("a file")];
    for (target, files) in [
        ("artifact", vec![artifact]),
        ("safetensors", file("model.safetensors")),
        ("config", file("config.json")),
        ("tokenizer", fixtures::tokenizers().into_iter().map(String::into_bytes).collect()),
        ("lir", lir_texts(folder.path())),
        ("npy", vec![fixtures::npy()]),
        ("npz", fixtures::npz()),
    ] {
        let to = to.join(target);
        std::fs::create_dir_all(&to).expect("a writable folder");
        for (i, bytes) in files.iter().enumerate() {
            std::fs::write(to.join(format!("seed-{i}")), bytes).expect("a writable folder");
        }
    }
    ExitCode::SUCCESS
}
