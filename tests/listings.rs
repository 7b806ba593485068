//! `disasm` and `inspect` on artifacts of every target: what they list is what is there.

mod support;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use support::{TARGETS, lapidary, root, run};

fn compiled(folder: &Path, target: &str) -> PathBuf {
    let artifact = folder.join(format!("{target}.lapis"));
    let model = root().join("tests/models/gem-mini");
    run(lapidary().arg("-q").arg("compile").arg(model).args(["--target", target, "-o"]).arg(&artifact)).unwrap();
    artifact
}

fn json(command: &str, artifact: &Path, more: &[&str]) -> Value {
    let text = run(lapidary().arg(command).arg(artifact).args(more).args(["--format", "json"])).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("{key} is no list"))
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} is no number in {value}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is no text in {value}"))
}

fn code_and_errors(command: &mut Command) -> (i32, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code().expect("no signal"), String::from_utf8(stderr).unwrap())
}

#[test]
fn every_call_in_an_artifact_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for target in TARGETS {
        let artifact = compiled(folder.path(), target.name);
        let listing = json("disasm", &artifact, &[]);
        assert_eq!(listing["schema"], "lapidary.disasm/1");
        let kernels: Vec<_> =
            list(&listing, "kernels").iter().map(|k| format!("kernel {}", k.as_str().unwrap())).collect();
        let (mut to_kernels, mut covered) = (0, 0);
        for function in list(&listing, "functions") {
            let mut at = number(function, "offset");
            for line in list(function, "lines") {
                let what = format!("{} {}", target.name, line);
                assert_eq!(number(line, "offset"), at, "{what}");
                at += text(line, "bytes").len() as u64 / 2;
                let code = text(line, "text");
                let (mnemonic, operand) = code.split_once(' ').unwrap_or((code, ""));
                let is_indirect = mnemonic == "blr" || mnemonic == "call" && !operand.starts_with("0x");
                let kind = line["note"]["kind"].as_str();
                assert!(!is_indirect || matches!(kind, Some("kernel" | "parallel_for" | "runtime")), "{what}");
                assert!(is_indirect || kind != Some("kernel"), "{what}");
                if kind == Some("kernel") {
                    assert!(kernels.iter().any(|k| k == text(&line["note"], "text")), "{what}");
                    to_kernels += 1;
                }
            }
            assert_eq!(at, number(function, "offset") + number(function, "bytes"));
            covered += number(function, "bytes");
        }
        assert!(to_kernels > 0, "{}", target.name);
        // Steps do not overlap here, so their sizes add up to what is listed.
        let inspected = json("inspect", &artifact, &[]);
        let steps: u64 = list(&inspected, "steps").iter().map(|s| number(s, "bytes")).sum();
        assert_eq!(covered, steps, "{}", target.name);
    }
}

#[test]
fn a_part_of_the_code_can_be_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = compiled(folder.path(), "rpi4");
    let names = |more: &[&str]| -> Vec<(String, String, String)> {
        let listing = json("disasm", &artifact, more);
        let steps = list(&listing, "functions").iter().flat_map(|f| list(f, "steps"));
        steps.map(|s| (text(s, "name").into(), text(s, "op").into(), text(s, "entry").into())).collect()
    };
    let (all, decode) = (names(&[]), names(&["--entry", "decode"]));
    assert!(decode.iter().all(|(.., entry)| entry == "decode"));
    assert_eq!(decode.len(), all.iter().filter(|(.., entry)| entry == "decode").count());
    assert_eq!(names(&["--entry", "prefill.profile"]).len(), 1);
    let attention = names(&["--entry", "decode", "--step", "attn.clustered"]);
    assert!(!attention.is_empty() && attention.len() < decode.len());
    assert!(attention.iter().all(|(_, op, entry)| op.contains("attn.clustered") && entry == "decode"));
    let fails = |more: &[&str], names: &str| {
        let (code, errors) = code_and_errors(lapidary().arg("disasm").arg(&artifact).args(more));
        assert_eq!(code, 2, "{errors}");
        assert!(errors.contains(names), "{errors}");
    };
    fails(&["--entry", "encode"], "decode.profile");
    fails(&["--step", "no such step"], "--step");
    // Text: the line before a step says its name, op and size.
    let text = run(lapidary().arg("disasm").arg(&artifact).args(["--step", "embed rms_norm"])).unwrap_or_default();
    assert!(text.is_empty(), "{text}");
    let text = run(lapidary().arg("disasm").arg(&artifact).args(["--step", "lm_head"])).unwrap();
    let header = text.lines().nth(2).unwrap();
    assert!(
        header.starts_with("prefill/") && header.contains("lm_head linear") && header.ends_with(" bytes"),
        "{header}"
    );
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = compiled(folder.path(), "native");
    // More than a pipe holds, so that the command is still writing when its reader ends.
    for format in ["text", "json"] {
        let mut command = lapidary();
        command.arg("disasm").arg(&artifact).args(["--format", format]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("gem-mini"), "{line}");
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{format}: {output:?}");
    }
    // Nobody reads from the beginning.
    for arguments in [&["kernels"][..], &["targets", "--format", "json"], &["inspect", artifact.to_str().unwrap()]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (code, errors) = code_and_errors(lapidary().args(arguments).stdout(writer));
        assert_eq!((code, errors.as_str()), (0, ""), "{arguments:?}");
    }
    // A full disk is an error, and no panic.
    if cfg!(target_os = "linux") {
        let full = || File::options().write(true).open("/dev/full").unwrap();
        for arguments in [&["kernels"][..], &["disasm", artifact.to_str().unwrap()]] {
            let (code, errors) = code_and_errors(lapidary().args(arguments).stdout(full()));
            assert_eq!(code, 1, "{errors}");
            assert!(errors.contains("stdout") && !errors.contains("panicked"), "{errors}");
        }
    }
}

/// What `inspect --format json` has had from its first version on.
const FIELDS: [&str; 24] = [
    "schema",
    "model",
    "head",
    "producer",
    "quantization",
    "parameters",
    "target",
    "isa",
    "features",
    "kernels",
    "max_tokens",
    "max_chunk_tokens",
    "can_decode",
    "cannot_decode",
    "domain_names",
    "weights_bytes",
    "arena_bytes",
    "state_bytes",
    "bytes_touched_per_token",
    "macs_per_token",
    "sections",
    "components",
    "ports",
    "config",
];

#[test]
fn inspect_tells_memory_code_and_weights() {
    let folder = tempfile::tempdir().unwrap();
    for target in TARGETS {
        let artifact = compiled(folder.path(), target.name);
        let inspected = json("inspect", &artifact, &[]);
        assert_eq!(inspected["schema"], "lapidary.inspect/1");
        FIELDS.iter().for_each(|field| assert!(!inspected[*field].is_null(), "{field}"));
        // At least the scratch of attention, at most what any thread has.
        let stack_bytes = number(&inspected, "stack_bytes");
        assert!((32 << 10..1 << 20).contains(&stack_bytes), "{}: {stack_bytes}", target.name);
        let entries = list(&inspected, "entries");
        let names: Vec<_> = entries.iter().map(|e| text(e, "name")).collect();
        assert!(names.contains(&"prefill") && names.contains(&"decode"), "{names:?}");
        let steps = list(&inspected, "steps");
        assert!(steps.iter().all(|s| names.contains(&text(s, "entry"))));
        for entry in entries {
            let function = steps.iter().find(|s| s["offset"] == entry["offset"]).expect("an entry is a function");
            assert_eq!(function["name"], entry["name"]);
        }
        // Buffers that are in use at the same time lie apart, inside the arena; the largest sum is its size or less.
        let buffers = list(&inspected, "buffers");
        assert!(buffers.len() > 20);
        for (i, a) in buffers.iter().enumerate() {
            let end = |b: &Value| number(b, "offset") + number(b, "bytes");
            assert!(end(a) <= number(&inspected, "arena_bytes"));
            for b in &buffers[i + 1..] {
                let together = number(a, "first_step") <= number(b, "last_step")
                    && number(b, "first_step") <= number(a, "last_step");
                let apart = end(a) <= number(b, "offset") || end(b) <= number(a, "offset");
                assert!(!together || apart, "{a} and {b}");
            }
        }
        let state: u64 = list(&inspected, "state_buffers").iter().map(|b| number(b, "bytes")).sum();
        assert!(state > 0 && state <= number(&inspected, "state_bytes"));
        let config = &inspected["config"];
        let modules = number(config, "num_hidden_layers") * number(&config["scar"], "num_clusters");
        assert_eq!(number(&inspected["extents"], "modules"), modules);
        // Tensors on request only; they fill what their components say.
        assert!(inspected["tensors"].is_null());
        let with_tensors = json("inspect", &artifact, &["--tensors"]);
        for component in list(&inspected, "components") {
            let of = |t: &&Value| t["component"] == component["name"];
            let bytes: u64 = list(&with_tensors, "tensors").iter().filter(of).map(|t| number(t, "bytes")).sum();
            assert_eq!(bytes, number(component, "bytes"), "{component}");
        }
    }
}

#[test]
fn the_picture_has_every_buffer_and_fits_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = compiled(folder.path(), "rpi5");
    let shown = run(lapidary().arg("inspect").arg(&artifact)).unwrap();
    let from = shown.lines().position(|l| l.starts_with("arena: ")).expect("the picture begins");
    let picture: Vec<_> = shown.lines().skip(from).take_while(|l| !l.starts_with("code: ")).collect();
    assert!(picture.iter().filter(|l| l.contains('|')).count() > 10);
    for line in &picture {
        assert!(line.is_ascii() && line.len() <= 100, "{line}");
    }
    let inspected = json("inspect", &artifact, &[]);
    for buffer in list(&inspected, "buffers").iter().chain(list(&inspected, "state_buffers")) {
        // Numbers that differ from layer to layer are `*` in the legend.
        let name = text(buffer, "name");
        let star: String = name.chars().map(|c| if c.is_ascii_digit() { '*' } else { c }).collect();
        assert!(picture.iter().any(|l| l.ends_with(&format!(" {name}")) || l.ends_with(&format!(" {star}"))), "{name}");
    }
}
