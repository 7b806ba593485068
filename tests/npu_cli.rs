//! NPU programs from the command line: text, bytes, cycles.

mod support;

use std::path::{Path, PathBuf};

use serde_json::Value;
use support::{lapidary, output, root, run};

/// Exit code and stderr.
fn fails(args: &[&str]) -> (i32, String) {
    let output = output(lapidary().args(args)).unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn simulate(args: &[&str]) -> Value {
    serde_json::from_str(&run(lapidary().args(["-q", "simulate", "--format", "json"]).args(args)).unwrap()).unwrap()
}

/// An example, assembled.
fn assembled(folder: &Path, name: &str) -> PathBuf {
    let program = folder.join(format!("{name}.npu"));
    let source = root().join("examples/npu").join(format!("{name}.s"));
    run(lapidary().arg("asm").arg(source).arg("-o").arg(&program).args(["--machine", "edge-16"])).unwrap();
    program
}

#[test]
fn what_disasm_prints_assembles_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["matmul_double_buffered", "top_k_sort", "routed_ffn"] {
        let program = assembled(folder.path(), name);
        let (text, again) = (folder.path().join("text.s"), folder.path().join("again.npu"));
        std::fs::write(&text, run(lapidary().arg("disasm").arg(&program)).unwrap()).unwrap();
        run(lapidary().arg("asm").arg(&text).arg("-o").arg(&again)).unwrap();
        assert!(std::fs::read(&program).unwrap() == std::fs::read(&again).unwrap(), "{name}");
    }
}

#[test]
fn matrix_multiplications_take_the_cycles_of_their_closed_form() {
    // ⌈K/R⌉⌈N/C⌉(2R + C + M − 2), and with overlap R + (tiles − 1)·max(M, R) + M + R + C − 2.
    let plain = simulate(&["--gemm", "128,384,384", "--machine", "edge-16"]);
    assert_eq!((&plain["schema"], &plain["machine"]), (&"lapidary.sim/1".into(), &"edge-16".into()));
    assert_eq!((&plain["matrix_cycles"], &plain["ideal_cycles"]), (&100_224.into(), &73_728.into()));
    let overlap = ["--gemm", "1,384,1536", "--set", "matrix.weight_overlap=true", "--set", "dram.preset=ideal"];
    let overlap = simulate(&overlap);
    assert_eq!(overlap["matrix_cycles"], 32 + 575 * 32 + 1 + 32 + 32 - 2);
    let number = |value: &Value| value.as_u64().unwrap();
    for result in [&plain, &overlap] {
        for unit in ["matrix", "vector", "load", "store", "route", "sequencer"] {
            let unit = &result["units"][unit];
            let stalls: u64 = unit["stalls"].as_object().unwrap().values().map(number).sum();
            assert_eq!(number(&unit["busy_cycles"]) + stalls, number(&result["cycles"]));
        }
    }
    assert_eq!(simulate(&["--gemm", "128,384,384", "--machine", "edge-16", "--timing-only"]), plain);
    // int8 operands once, int32 result once.
    assert_eq!(overlap["bytes"]["dram_read"], 1536 + 384 * 1536);
    assert_eq!(overlap["bytes"]["dram_write"], 4 * 384);
}

#[test]
fn lists_are_the_sums_of_their_lines() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("list.csv");
    std::fs::write(&list, "m,n,k\n7,33,65\n\n1, 16, 16 # one tile\n7,33,65\n").unwrap();
    let result = simulate(&["--gemm-csv", list.to_str().unwrap()]);
    let lines = result["gemms"].as_array().unwrap();
    assert_eq!(lines.len(), 3);
    for key in ["cycles", "matrix_cycles", "ideal_cycles"] {
        let sum: u64 = lines.iter().map(|line| line[key].as_u64().unwrap()).sum();
        assert_eq!(result[key], sum);
        let alone = simulate(&["--gemm", "7,33,65"]);
        assert_eq!((&lines[0][key], &lines[2][key]), (&alone[key], &alone[key]));
    }
    std::fs::write(&list, "m,n,k\n7,33\n").unwrap();
    let (code, errors) = fails(&["simulate", "--gemm-csv", list.to_str().unwrap()]);
    assert!(code == 1 && errors.contains("line 2: wanted M,N,K, found 2 numbers"), "{errors}");
}

#[test]
fn a_routed_program_is_timed_seen_and_skips_the_module_that_nobody_chose() {
    let folder = tempfile::tempdir().unwrap();
    let program = assembled(folder.path(), "routed_ffn");
    let at = |name: &str| folder.path().join(name);
    let out = ["t.json", "r.html", "c.csv"].map(|name| at(name).to_str().unwrap().to_string());
    let result = simulate(&[program.to_str().unwrap(), "--trace", &out[0], "--report", &out[1], "--csv", &out[2]]);
    let modules = result["modules"].as_array().unwrap();
    let macs: Vec<u64> = modules.iter().map(|m| m["macs"].as_u64().unwrap()).collect();
    let read: Vec<u64> = modules.iter().map(|m| m["dram_read"].as_u64().unwrap()).collect();
    assert_eq!(macs.iter().filter(|n| **n == 0).count(), 1, "{macs:?}");
    assert!(macs.iter().zip(&read).all(|(macs, read)| (*macs == 0) == (*read == 0)), "{macs:?} {read:?}");
    let trace: Value = serde_json::from_str(&std::fs::read_to_string(at("t.json")).unwrap()).unwrap();
    assert!(trace["traceEvents"].as_array().unwrap().len() > 100);
    let page = std::fs::read_to_string(at("r.html")).unwrap();
    assert!(page.contains("<html") && !page.contains("src=\"http") && !page.contains("href=\"http"));
    assert!(std::fs::read_to_string(at("c.csv")).unwrap().starts_with("class,instructions,"));
    // Another machine, by its name and by a file.
    let other = simulate(&[program.to_str().unwrap(), "--machine", "mobile-64"]);
    assert_eq!(other["machine"], "mobile-64");
    let file = at("mine.toml");
    std::fs::copy(root().join("targets/npu-isa/machines/mobile-64.toml"), &file).unwrap();
    let mine = simulate(&[program.to_str().unwrap(), "--machine", file.to_str().unwrap()]);
    assert_eq!(mine["cycles"], other["cycles"]);
}

#[test]
fn what_is_wrong_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let program = assembled(folder.path(), "top_k_sort");
    let program = program.to_str().unwrap();
    let usage: [(&[&str], &str); 7] = [
        (&["simulate"], "--gemm"),
        (&["simulate", "--gemm", "1,2"], "M,N,K"),
        (&["simulate", "--gemm", "0,2,3"], "M: wanted 1 to"),
        (&["simulate", program, "--machine", "edge-17"], "edge-16"),
        (&["simulate", program, "--set", "matrix.rows=0"], "matrix.rows"),
        (&["simulate", program, "--set", "matrix.rowz=8"], "matrix.rows"),
        (&["disasm", program, "--format", "json"], "--format"),
    ];
    for (args, names) in usage {
        let (code, errors) = fails(args);
        assert!(code == 2 && errors.contains(names), "{args:?}: {code} {errors}");
    }
    // A program that is cut off, one that does not pass the verifier, one that is none.
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let bytes = std::fs::read(program).unwrap();
    std::fs::write(at("cut.npu"), &bytes[..bytes.len() - 9]).unwrap();
    assert_eq!(fails(&["simulate", &at("cut.npu")]).0, 1);
    std::fs::write(at("wait.s"), "v.add sp[0], sp[64], sp[128], cols=16 wait(t1)\nhalt\n").unwrap();
    let (code, errors) = fails(&["asm", &at("wait.s"), "-o", &at("wait.npu"), "--machine", "edge-32"]);
    assert!(code == 1 && errors.contains("t1: wanted a token"), "{errors}");
    assert!(!Path::new(&at("wait.npu")).exists());
    std::fs::write(at("typo.s"), "v.ad sp[0], sp[64], sp[128], cols=16\nhalt\n").unwrap();
    let (code, errors) = fails(&["asm", &at("typo.s"), "-o", &at("typo.npu")]);
    assert!(code == 1 && errors.contains("line 1, column 1") && errors.contains('^'), "{errors}");
    assert_eq!(fails(&["simulate", &at("typo.s")]).0, 1);
    run(lapidary().args(["-q", "compile", "preset:gem-tiny", "-o", &at("cpu.lapis")])).unwrap();
    let (code, errors) = fails(&["simulate", &at("cpu.lapis")]);
    assert!(code == 4 && errors.contains("for a CPU"), "{errors}");
}
