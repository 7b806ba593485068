//! Programs in `tests/verify`: `accept_*` pass the verifier for `edge-16`, `reject_*` do not.
//!
//! The error stands behind `;~` on the line of the instruction, or on a line of its own at the end if it is about the
//! program. `LAPIDARY_BLESS=1` rewrites it.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Random, cases, program};
use lapidary_npu_isa::asm::assemble;
use lapidary_npu_isa::verify::{VerifyError, verify};
use lapidary_npu_isa::{Machine, Token};

fn machine() -> Machine {
    Machine::preset("edge-16").expect("a preset")
}

/// Lines that have an instruction, by number.
fn instruction_lines(text: &str) -> Vec<usize> {
    let code = |line: &str| {
        let line = line.split(';').next().unwrap_or("").trim();
        let line = line.rsplit_once(": ").map_or(line, |(_, code)| code.trim());
        !line.is_empty() && !line.starts_with('.') && !line.ends_with(':')
    };
    text.lines().enumerate().filter(|(_, l)| code(l)).map(|(i, _)| i).collect()
}

fn expected(text: &str, result: &Result<(), VerifyError>) -> String {
    let mut lines: Vec<String> =
        text.lines().map(|l| l.split(";~").next().unwrap_or("").trim_end().to_string()).collect();
    while lines.last().is_some_and(|l| l.is_empty()) {
        lines.pop();
    }
    if let Err(error) = result {
        let note = format!(";~ {}: wanted {}, found {}", error.what, error.wanted, error.found);
        match error.at {
            Some(at) => {
                let line = &mut lines[instruction_lines(text)[at]];
                *line = format!("{line}  {note}");
            }
            None => lines.push(note),
        }
    }
    lines.join("\n") + "\n"
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/verify");
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).expect("tests/verify").map(|e| e.expect("an entry").path()).collect();
    files.sort();
    files
}

#[test]
fn verifier_cases() {
    let bless = std::env::var_os("LAPIDARY_BLESS").is_some_and(|v| v == "1");
    let files = files();
    assert!(files.len() > 40);
    let mut wrong = Vec::new();
    for path in files {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect("text");
        let assembled = assemble(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        let result = verify(&assembled, &machine()).map(|_| ());
        let wanted = expected(&text, &result);
        if name.starts_with("accept") != result.is_ok() {
            wrong.push(format!("{name}: {result:?}"));
        } else if wanted != text {
            match bless {
                true => fs::write(&path, wanted).expect("writable"),
                false => wrong.push(format!("{name}: wanted\n{text}\nfound\n{wanted}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// More tokens than the verifier allows, without a loop.
#[test]
fn too_many_tokens() {
    let posts = "sync vector post(t1, t1)\n".repeat(Token::VERIFIED_MAX as usize / 2);
    let verified = |text: String| verify(&assemble(&text).expect("a program"), &machine());
    assert!(verified(format!("{posts}sync vector post(t1)\nhalt\n")).is_ok());
    let error = verified(format!("{posts}sync vector post(t1, t1)\nhalt\n")).expect_err("1024 tokens");
    assert_eq!(
        error.to_string(),
        "instruction 511, `sync vector post(t1, t1)`: t1: wanted at most 1023 tokens that nobody took, found 1024"
    );
}

/// Any program is verified or rejected, in bounded time, without a panic.
#[test]
fn any_program() {
    let mut random = Random(7);
    for _ in 0..cases(1000, 20_000) {
        let mut one = program(&mut random);
        one.machine_hash = None;
        if let Err(error) = verify(&one, &machine()) {
            assert!(error.to_string().contains("wanted"));
        }
    }
}
