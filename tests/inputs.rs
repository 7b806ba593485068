//! Files that are no files, options that ask for too much, and files made to hurt one certain place: each an error that names
//! what is wrong, soon, and never a panic. Random damage is in `tests/hostile`.

mod support;

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::{lapidary, root, run};

/// A hang is a failure after this long; nothing here takes a second.
const HANG: Duration = Duration::from_secs(60);
/// Memory that a command may map: enough for itself and its threads' stacks, not for what a hostile file asks for.
const MEMORY_BYTES: u64 = 2 << 30;

fn model(name: &str) -> PathBuf {
    root().join("tests/models/random").join(name)
}

const GENERATES: &str = "30-generate-top_k";

/// A copy of a model's folder.
fn copy_of(name: &str, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(model(name).join(file), to.join(file)).unwrap();
    }
}

fn artifact_in(folder: &Path) -> PathBuf {
    let artifact = folder.join("good.lapis");
    run(lapidary().arg("-q").arg("compile").arg(model(GENERATES)).arg("-o").arg(&artifact)).unwrap();
    artifact
}

/// The command with bounded memory and time; code and stderr.
fn bounded(args: &[&str]) -> (Option<i32>, String) {
    let mut command = lapidary();
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    limit(&mut command, libc::RLIMIT_AS, MEMORY_BYTES);
    let mut child = command.spawn().unwrap();
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > HANG {
            child.kill().unwrap();
            panic!("{args:?}: no end after {} s", HANG.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn limit(command: &mut Command, resource: libc::__rlimit_resource_t, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: `setrlimit` may be called between fork and exec, and reads a structure that this closure owns.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(resource, &raw const limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

/// Ends with this code and an error that has these words.
#[track_caller]
fn fails(args: &[&str], code: i32, words: &[&str]) {
    let (found, stderr) = bounded(args);
    assert_eq!(found, Some(code), "{args:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: wanted `{word}` in {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    assert!(stderr.len() < 5000, "{args:?}: an error of {} bytes", stderr.len());
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn pipe(path: &Path) {
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a string that ends in zero.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
}

#[test]
fn what_is_no_file_is_an_error_wherever_a_file_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let good = artifact_in(folder.path());
    let good = text(&good);
    pipe(&at("pipe.lapis"));
    std::fs::create_dir(at("folder.lapis")).unwrap();
    std::os::unix::fs::symlink("/nowhere/at/all", at("dangling.lapis")).unwrap();
    std::os::unix::fs::symlink("loop.lapis", at("loop.lapis")).unwrap();
    std::fs::write(at("empty.lapis"), "").unwrap();
    let out = at("out.npz");
    for name in ["pipe", "folder", "dangling", "loop", "empty"] {
        let file = at(&format!("{name}.lapis"));
        fails(&["run", text(&file), "--prompt", "x"], 1, &[name]);
        fails(&["compare", good, "--with", text(&file)], 1, &[name]);
        if name != "folder" {
            fails(&["inspect", "--check", text(&file)], 1, &[name]);
        }
        let input = format!("ids=@{}", file.display());
        fails(&["run", good, "--input", &input, "--output", text(&out)], 1, &[name]);
        for kind in ["lir", "npz"] {
            std::fs::rename(&file, at(&format!("{name}.{kind}"))).unwrap();
            if kind == "lir" && name != "loop" {
                fails(&["compile", text(&at(&format!("{name}.lir"))), "--dry-run"], 1, &[name]);
            } else if name != "loop" {
                fails(&["compare", good, "--with", text(&at(&format!("{name}.npz")))], 1, &[name]);
            }
            std::fs::rename(at(&format!("{name}.{kind}")), &file).unwrap();
        }
        for part in ["config.json", "model.safetensors", "tokenizer.json"] {
            let broken = at(&format!("{name}-{part}"));
            copy_of(GENERATES, &broken);
            let _ = std::fs::remove_file(broken.join(part));
            let dangling_tokenizer = part == "tokenizer.json" && matches!(name, "dangling" | "loop");
            match name {
                "loop" => std::os::unix::fs::symlink(part, broken.join(part)).unwrap(),
                _ => std::os::unix::fs::symlink(&file, broken.join(part)).unwrap(),
            }
            if !dangling_tokenizer {
                fails(&["compile", text(&broken), "--dry-run"], 1, &[&format!("{name}-{part}")]);
            }
        }
    }
    assert!(!out.exists());
    fails(&["inspect", "/dev/zero"], 1, &["/dev/zero", "device"]);
}

#[test]
fn absurd_sizes_are_refused_before_memory_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(model(GENERATES).join("config.json")).unwrap();
    for (key, value, wanted) in [
        ("vocab_size", "18446744073709551616", "vocab_size"),
        ("vocab_size", "16777216", "shape [16777216, 36]"),
        ("hidden_size", "1048576", "shape"),
        ("num_hidden_layers", "4096", "tensors: wanted"),
        ("num_hidden_layers", "-1", "num_hidden_layers"),
        ("num_clusters", "4096", "tensors: wanted"),
        ("max_position_embeddings", "1048577", "max_position_embeddings"),
        ("head_dim", "1e3", "head_dim"),
    ] {
        let broken = folder.path().join(key);
        copy_of(GENERATES, &broken);
        let line = config.lines().find(|line| line.trim().starts_with(&format!("\"{key}\""))).unwrap();
        let comma = if line.ends_with(',') { "," } else { "" };
        let changed = config.replace(line, &format!("\"{key}\": {value}{comma}"));
        std::fs::write(broken.join("config.json"), changed).unwrap();
        fails(&["compile", text(&broken), "--dry-run"], 1, &[wanted, key]);
    }
    let deep = folder.path().join("deep");
    copy_of(GENERATES, &deep);
    std::fs::write(deep.join("config.json"), "[".repeat(1 << 20)).unwrap();
    fails(&["compile", text(&deep), "--dry-run"], 1, &["deep"]);
    std::fs::write(deep.join("config.json"), "{\"a\":".repeat(200_000)).unwrap();
    fails(&["compile", text(&deep), "--dry-run"], 1, &["deep"]);
    copy_of(GENERATES, &deep);
    std::fs::write(deep.join("tokenizer.json"), "[".repeat(1 << 20)).unwrap();
    fails(&["compile", text(&deep), "--dry-run"], 1, &["deep", "tokenizer"]);
    let mut header = (1_u64 << 62).to_le_bytes().to_vec();
    header.extend(b"{}");
    std::fs::remove_file(deep.join("tokenizer.json")).unwrap();
    std::fs::write(deep.join("model.safetensors"), header).unwrap();
    fails(&["compile", text(&deep), "--dry-run"], 1, &["model.safetensors"]);
}

#[test]
fn lir_of_any_size_is_planned_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.lir");
    let compile = |body: &str, words: &[&str]| {
        std::fs::write(
            &file,
            format!("lir 1\nphase imported\nmodel {{vocab_size = 9, max_position_embeddings = 1048576}}\n{body}"),
        )
        .unwrap();
        fails(&["compile", text(&file), "--dry-run"], 1, words);
    };
    compile("weight @w: f32[1000000000, 1000000000] head = splat(1.0)", &["x.lir", "elements"]);
    compile("weight @w: f32[18446744073709551615, 2] head = splat(1.0)", &["x.lir", "elements"]);
    compile("input \"x\" = %x: f32[T, 1000000000000000000]", &["x.lir", "dimension"]);
    compile("symbol N <= 1000000000000000000\ninput \"x\" = %x: f32[N, 2]", &["x.lir", "bound"]);
    // Every value is within its bounds; all of them together are 2^44 bytes and more.
    let wide = "weight @w: f32[16777216, 1] head = splat(1.0)\ninput \"ids\" = %ids: u32[T]\n\
                weight @e: f32[9, 1] embedding = splat(1.0)\n%x = embed(%ids, @e)\n%y = linear(%x, @w, _) {act = none}\n\
                output \"logits\" = %y\n";
    std::fs::write(&file, format!("lir 1\nphase imported\nmodel {{vocab_size = 9, max_position_embeddings = 1048576, why_no_decode = \"test\", is_causal = false}}\n{wide}")).unwrap();
    let (code, stderr) = bounded(&["compile", text(&file), "--dry-run"]);
    assert!(matches!(code, Some(0 | 1)) && !stderr.contains("panicked"), "{code:?} {stderr}");
    let parts = "@w, ".repeat(100_000);
    compile(
        &format!("weight @w: f32[1, 1] head = splat(1.0)\nweight @c: f32[9, 1] head = concat({parts}@w)"),
        &["x.lir", "concat"],
    );
    compile(&"(".repeat(1 << 20), &["x.lir", "4:1"]);
    // Each scale is twice its base, 64 deep.
    let chain: String = (1..64).map(|i| format!("weight @w{i}: f32[1] norm = scale(@w{}, 2.0)\n", i - 1)).collect();
    compile(&format!("weight @w0: f32[1] norm = splat(1.0)\n{chain}"), &["x.lir", "derivations"]);
}

#[test]
fn options_that_ask_for_too_much_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = artifact_in(folder.path());
    let (good, model) = (text(&good), model(GENERATES));
    let model = text(&model);
    let most = "18446744073709551615";
    for option in ["--max-tokens", "--chunk-tokens"] {
        fails(&["compile", model, "--dry-run", option, most], 2, &[option]);
        fails(&["compile", model, "--dry-run", option, "0"], 2, &[option]);
    }
    for name in ["", "..", "../../etc", "gem-tiny/", "GEM-TINY", "gem-tiny\n", &"x".repeat(100_000)] {
        let (code, stderr) = bounded(&["compile", &format!("preset:{name}"), "--dry-run"]);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains("preset") && !stderr.contains("panicked"), "{stderr}");
    }
    fails(&["bench", good, "--tokens", most, "--reps", "1"], 2, &["--tokens"]);
    // As much context as the model has.
    assert_eq!(bounded(&["bench", good, "--tokens", "1", "--context", most, "--reps", "1"]).0, Some(0));
    let single = folder.path().join("single.lapis");
    run(lapidary().args(["-q", "compile", model, "--max-tokens", "1", "-o"]).arg(&single)).unwrap();
    fails(&["bench", text(&single), "--tokens", "1", "--reps", "1"], 4, &["single.lapis", "context of 2"]);
    fails(&["run", good, "--prompt", "x", "--threads", most], 2, &["--threads", "512"]);
    fails(&["bench", good, "--tokens", "1", "--threads", "1,513"], 2, &["--threads", "513"]);
}

/// One of everything: an artifact whose tokenizer was made for another vocabulary runs into an error, not past its embedding.
#[test]
fn ids_beyond_the_vocabulary_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    copy_of(GENERATES, folder.path());
    let tokenizer = r#"{"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 97, "c": 4294967295}, "unk_token": "a"},
        "pre_tokenizer": {"type": "Whitespace"}}"#;
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    let artifact = folder.path().join("x.lapis");
    run(lapidary().arg("-q").arg("compile").arg(folder.path()).arg("-o").arg(&artifact)).unwrap();
    run(lapidary().arg("-q").arg("run").arg(&artifact).args(["--prompt", "a a", "--max-new", "2"])).unwrap();
    fails(&["run", text(&artifact), "--prompt", "a b"], 1, &["97"]);
    fails(&["run", text(&artifact), "--prompt", "c"], 1, &["4294967295"]);
}

#[test]
fn printing_to_a_full_disk_is_an_error_and_to_a_closed_pipe_none() {
    for args in
        [&["kernels"][..], &["inspect", "preset:gem-tiny"], &["compile", "preset:gem-tiny", "--dump-ir", "fused"]]
    {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = lapidary().args(args).stdout(full).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.contains("No space left") && !stderr.contains("panicked"), "{args:?}: {stderr}");

        let mut child = lapidary().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code().is_some() && stderr.is_empty(), "{args:?}: {} {stderr}", output.status);
    }
}
