//! Machine files: presets, overrides, and what is wrong with wrong ones.

use lapidary_npu_isa::Machine;
use lapidary_npu_isa::machine::{DramPreset, KEYS, KeyKind, MachineError, PRESETS};

fn edge_16() -> String {
    PRESETS[0].1.to_string()
}

fn error(text: &str) -> String {
    Machine::parse(text).expect_err("a wrong machine").to_string()
}

#[test]
fn presets() {
    for (name, _) in PRESETS {
        let machine = Machine::preset(name).expect("a preset");
        assert_eq!(machine.name(), *name);
        // A program's operands have to reach all of the array.
        assert!(machine.matrix.rows < 512 && machine.matrix.cols < 512);
    }
    let [small, middle, large] = ["edge-16", "edge-32", "mobile-64"].map(|n| Machine::preset(n).expect("a preset"));
    assert_eq!((small.matrix.rows, small.scratchpad.bytes, small.clock_mhz), (16, 256 << 10, 500));
    assert_eq!((middle.matrix.rows, middle.scratchpad.bytes, middle.clock_mhz), (32, 512 << 10, 1000));
    assert_eq!((large.matrix.rows, large.scratchpad.bytes, large.clock_mhz), (64, 2 << 20, 1000));
    // The Raspberry Pi's 4 GB/s: bytes of a request over its time, less refresh.
    let rate = small.dma.burst_bytes as f64 / small.burst_ps() as f64 * 1e12;
    let usable = rate * (1.0 - small.dram.trfc_ps as f64 / small.dram.trefi_ps as f64);
    assert!((3.9e9..4.1e9).contains(&usable), "{usable}");
    assert_eq!(
        Machine::preset("edge").expect_err("none").to_string(),
        "machine, preset: wanted edge-16, edge-32, mobile-64, found \"edge\""
    );
}

#[test]
fn overrides() {
    let mut machine = Machine::preset("edge-32").expect("a preset");
    let before = machine.clone();
    machine.set("matrix.weight_overlap", "true").expect("a flag");
    assert!(machine.matrix.weight_overlap);
    let (key, value) = Machine::pair("matrix.rows=64").expect("a pair");
    machine.set(key, value).expect("a number");
    assert_eq!(machine.matrix.rows, 64);
    assert_ne!(machine.hash(), before.hash());
    machine.set("dram.preset", "ideal").expect("a preset");
    assert_eq!((machine.dram.preset, machine.dram.tcl_ps), (DramPreset::Ideal, 0));
    machine.set("dram.preset", "LPDDR4").expect("a preset in any case");
    machine.set("matrix.rows", "32").expect("a number");
    machine.set("matrix.weight_overlap", "false").expect("a flag");
    assert_eq!((&machine, machine.hash()), (&before, before.hash()), "back to where it was");
    for (key, value, wanted) in [
        ("matrix.rows", "0", "machine, matrix.rows: wanted an integer from 1 to 256, found 0"),
        ("matrix.rows", "many", "machine, matrix.rows: wanted an integer from 1 to 256, found \"many\""),
        ("matrix.weight_overlap", "1", "machine, matrix.weight_overlap: wanted true or false, found 1"),
        ("dram.preset", "hbm", "machine, dram.preset: wanted ideal, lpddr4, lpddr5, ddr4 or custom, found \"hbm\""),
        (
            "scratchpad.banks",
            "7",
            "machine, scratchpad.banks: wanted a number that divides scratchpad.bytes into multiples of 32 bytes, found 7",
        ),
        (
            "matrix.row",
            "7",
            "machine, matrix.row: wanted a key such as matrix.rows, matrix.cols, matrix.weight_overlap, found an unknown key",
        ),
        (
            "lanes",
            "7",
            "machine, lanes: wanted a key such as vector.lanes, route.lanes, clock_mhz, cores, found an unknown key",
        ),
        (
            "dram.trefi_ps",
            "300000",
            "machine, dram.trefi_ps: wanted 0, or more than trfc_ps and the longest access together, 391753, found 300000",
        ),
        ("dma.burst_bytes", "48", "machine, dma.burst_bytes: wanted a power of two, found 48"),
        (
            "weights.bytes",
            "1000",
            "machine, weights.bytes: wanted at least a tile, matrix.rows·matrix.cols = 1024, found 1000",
        ),
        (
            "accumulators.bytes",
            "1000",
            "machine, accumulators.bytes: wanted a multiple of 4·matrix.cols = 128, found 1000",
        ),
    ] {
        assert_eq!(machine.set(key, value).expect_err("wrong").to_string(), wanted);
        assert_eq!(machine, before, "an error changes nothing");
    }
    let error = Machine::pair("matrix.rows").expect_err("no value").to_string();
    assert_eq!(error, "machine, matrix.rows: wanted key=value, found no `=`");
    // Neither alone makes a machine.
    assert!(machine.set("matrix.cols", "48").is_err() && machine.set("accumulators.bytes", "192").is_err());
    machine.set_all([("matrix.cols", "48"), ("accumulators.bytes", "192")]).expect("together");
    assert_eq!(machine.accumulator_rows(), 1);
}

/// Every key: missing, out of bounds on both sides, of a wrong type.
#[test]
fn every_key() {
    let text = edge_16();
    for row in KEYS {
        let (section, key) = row.name.rsplit_once('.').unwrap_or(("", row.name));
        let has_line =
            |line: &str, inside: &str| inside == section && line.split('=').next().is_some_and(|k| k.trim() == key);
        let with = |value: Option<&str>| {
            let mut inside = "";
            let mut out = String::new();
            let mut seen = false;
            for line in text.lines().filter(|l| !l.starts_with('#')) {
                inside = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')).unwrap_or(inside);
                let replaced = has_line(line, inside);
                seen |= replaced;
                match value {
                    Some(value) if replaced => out += &format!("{key} = {value}\n"),
                    None if replaced => (),
                    _ => out += &format!("{line}\n"),
                }
            }
            // Keys of dram that the preset gives are not in the file.
            if let (false, Some(value)) = (seen, value) {
                out = out.replace("[dram]\n", &format!("[dram]\n{key} = {value}\n"));
            }
            out
        };
        let prefix = format!("machine, {}: wanted {}, found ", row.name, row.kind);
        if section != "dram" || key == "preset" {
            assert_eq!(error(&with(None)), format!("{prefix}nothing"));
        }
        for (value, found) in [("1.5", "a number with a fraction"), ("[1]", "a list"), ("\"x\"", "\"x\"")] {
            assert_eq!(error(&with(Some(value))), format!("{prefix}{found}"));
        }
        if let KeyKind::Number(least, most) = row.kind {
            let above = (most + 1).to_string();
            assert_eq!(error(&with(Some(&above))), format!("{prefix}{above}"));
            let below = (i128::from(least) - 1).to_string();
            assert_eq!(error(&with(Some(&below))), format!("{prefix}{below}"));
        }
    }
}

#[test]
fn wrong_files() {
    assert_eq!(error(""), "machine, name: wanted a text, found nothing");
    assert_eq!(error("name = 3"), "machine, name: wanted a text, found 3");
    assert_eq!(
        error("name = \"x\"\nspeed = 3"),
        "machine, speed: wanted a key such as clock_mhz, cores, found an unknown key"
    );
    assert!(error("name = \"x\"\n= 3").starts_with("machine, line 2: wanted TOML, found "));
    let twice = edge_16().replace("cores = 1", "cores = 1\ncores = 2");
    assert!(error(&twice).contains("wanted TOML, found duplicate key"), "{}", error(&twice));
    let custom = edge_16().replace("\"lpddr4\"", "\"custom\"");
    assert_eq!(error(&custom), "machine, dram.bytes: wanted an integer from 4096 to 1099511627776, found nothing");
    assert!(error(&"#".repeat(1 << 21)).starts_with("machine, file: wanted at most 1048576 bytes"));
    let deep = format!("name = {}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(error(&deep).contains("wanted"));
}

/// What an artifact keeps of a machine makes it again.
#[test]
fn settings_make_the_machine() {
    for (name, _) in PRESETS {
        let mut machine = Machine::preset(name).expect("a preset");
        machine.set("dram.tcl_ps", "12345").expect("a number");
        let settings: Vec<(&str, String)> = machine.settings().map(|(row, value)| (row.name, value)).collect();
        let pairs = || settings.iter().rev().map(|(key, value)| (*key, value.as_str()));
        assert_eq!(Machine::from_settings(name, pairs()).as_ref(), Ok(&machine));
        let error = |e: Result<Machine, MachineError>| e.map(|_| ()).expect_err("wrong").to_string();
        assert_eq!(
            error(Machine::from_settings(name, pairs().skip(1))),
            "machine, energy.dram_byte_fj: wanted an integer from 0 to 1000000000, found nothing"
        );
        assert_eq!(
            error(Machine::from_settings(name, pairs().chain(pairs()))),
            "machine, energy.dram_byte_fj: wanted one value, found two"
        );
    }
}

/// The hash says which values, not how they were written.
#[test]
fn hash_is_of_values() {
    let spaced = edge_16().replace(" = ", "=").replace("262_144", "0x40000").replace("edge-16", "other");
    let machine = Machine::parse(&spaced).expect("the same machine");
    assert_eq!(machine.hash(), Machine::preset("edge-16").expect("a preset").hash());
    let mut hashes: Vec<[u8; 32]> = PRESETS.iter().map(|(n, _)| Machine::preset(n).expect("a preset").hash()).collect();
    for row in KEYS {
        let mut changed = Machine::preset("edge-16").expect("a preset");
        let value = match row.kind {
            KeyKind::Number(..) => ["1", "2", "128", "4096", "8192", "1048576", "262144", "65536"].as_slice(),
            KeyKind::Flag => &["true"],
            KeyKind::Preset => &["ddr4"],
        };
        let set = value.iter().any(|v| {
            let mut copy = changed.clone();
            let done = copy.set(row.name, v).is_ok() && copy != changed;
            if done {
                changed = copy;
            }
            done
        });
        assert!(set, "{} can be changed", row.name);
        hashes.push(changed.hash());
    }
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), PRESETS.len() + KEYS.len(), "every key is part of the hash");
}
