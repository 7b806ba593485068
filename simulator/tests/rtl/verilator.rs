//! Builds the matrix unit of `simulator/rtl` with Verilator, and runs cases on it.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::memory::Memories;

/// Words of a program with the memories that it starts from.
pub struct Case {
    pub words: Vec<u128>,
    pub memories: Memories,
}

/// Cycles of one instruction: its start, and the first cycles after its own end and after its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    pub start: u64,
    pub end: u64,
    pub completion: u64,
}

/// What a case gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub times: Vec<Times>,
    pub accumulators: Vec<u32>,
    /// The first cycle in which nothing is left to do.
    pub total: u64,
}

/// An array that was built.
pub struct Unit {
    program: PathBuf,
}

const SOURCES: [&str; 8] = [
    "matrix_word.sv",
    "delay.sv",
    "multiply_adder.sv",
    "systolic_array.sv",
    "issue_queue.sv",
    "completions.sv",
    "matrix_unit.sv",
    "testbench.cpp",
];

fn rtl() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("rtl")
}

/// Verilator's version, if it is there; otherwise the test is named as skipped.
pub fn version() -> Option<String> {
    let output = Command::new("verilator").arg("--version").output();
    match output.ok().filter(|o| o.status.success()) {
        Some(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        None => {
            writeln!(std::io::stderr().lock(), "skipped: co-simulation (no Verilator: apt-get install -y verilator)")
                .unwrap();
            None
        }
    }
}

impl Unit {
    /// An array of `rows` × `cols` with the memories of `like`, from the cache if sources and Verilator are what they were.
    pub fn build(version: &str, rows: u64, cols: u64, overlap: bool, depth: u64, like: &Memories) -> Unit {
        let acc_rows = like.accumulators.len() / like.array_cols;
        let parameters = [
            format!("-GR={rows}"),
            format!("-GC={cols}"),
            format!("-GOVERLAP=1'b{}", u8::from(overlap)),
            format!("-GDEPTH={depth}"),
            format!("-GSP_BYTES={}", like.scratchpad.len()),
            format!("-GW_BYTES={}", like.weights.len()),
            format!("-GACC_ROWS={acc_rows}"),
        ];
        let mut key = format!("{version}{parameters:?}");
        for source in SOURCES {
            key += &fs::read_to_string(rtl().join(source)).expect(source);
        }
        // FNV-1a: names a folder, no more.
        let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let folder =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("rtl-{rows}x{cols}-{overlap}-{hash:016x}"));
        let program = folder.join("unit");
        if program.exists() {
            return Unit { program };
        }
        let building = folder.with_extension(std::process::id().to_string());
        let mut command = Command::new("verilator");
        command.args("--cc --exe --build -O3 --x-assign fast --x-initial fast -Wall -Wno-UNUSEDSIGNAL".split(' '));
        command.args(["--top-module", "matrix_unit", "-o", "unit", "--Mdir"]).arg(&building).args(&parameters);
        command.args(["-CFLAGS", &format!("-std=c++17 -DROWS={rows} -DCOLS={cols}")]);
        // Compiling takes longer than running: plain code.
        command.args(["-MAKEFLAGS", "OPT_FAST=-O0 OPT_SLOW=-O0 OPT_GLOBAL=-O0"]);
        command.args(SOURCES.map(|source| rtl().join(source)));
        let output = command.output().expect("verilator runs");
        let log = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "verilator: {log}");
        // Another test may have been faster.
        if fs::rename(&building, &folder).is_err() {
            fs::remove_dir_all(&building).ok();
        }
        Unit { program }
    }

    /// Runs cases one after the other.
    pub fn run(&self, cases: &[Case]) -> Vec<Outcome> {
        let mut text = String::new();
        for Case { words, memories } in cases {
            let (sp, w, acc) = (&memories.scratchpad, &memories.weights, &memories.accumulators);
            writeln!(text, "case {} {} {} {}", words.len(), sp.len(), w.len(), acc.len()).unwrap();
            words.iter().for_each(|word| writeln!(text, "{word:032x}").unwrap());
            for bytes in [sp, w] {
                bytes.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
                text.push('\n');
            }
            acc.iter().for_each(|word| write!(text, "{word:08x}").unwrap());
            text.push('\n');
        }
        let file = self.program.with_file_name(format!("cases-{}.txt", std::process::id()));
        fs::write(&file, text).expect("cases are written");
        let output = Command::new(&self.program).arg(&file).output().expect("the unit runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::remove_file(&file).ok();
        let outcomes = read(&String::from_utf8(output.stdout).expect("text"));
        assert_eq!(outcomes.len(), cases.len());
        outcomes
    }
}

fn read(text: &str) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> = Vec::new();
    for line in text.lines() {
        let mut parts = line.split(' ');
        let keyword = parts.next();
        if keyword == Some("case") {
            outcomes.push(Outcome { times: Vec::new(), accumulators: Vec::new(), total: 0 });
            continue;
        }
        let outcome = outcomes.last_mut().expect("`case` first");
        match keyword {
            Some("acc") => {
                let digits = parts.next().expect("words");
                let words = (0..digits.len() / 8).map(|i| u32::from_str_radix(&digits[8 * i..8 * i + 8], 16));
                outcome.accumulators = words.map(|word| word.expect("a word")).collect();
            }
            keyword => {
                let numbers: Vec<u64> = parts.map(|number| number.parse().expect("a number")).collect();
                match (keyword, &numbers[..]) {
                    (Some("i"), [start, end, completion]) => {
                        outcome.times.push(Times { start: *start, end: *end, completion: *completion });
                    }
                    (Some("end"), [total]) => outcome.total = *total,
                    other => panic!("testbench says {other:?}"),
                }
            }
        }
    }
    outcomes
}
