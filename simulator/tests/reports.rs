//! What reports say: fields of the JSON, lines of the CSV, a trace that parses, a page that stands alone.

mod common;

use lapidary_npu_isa::{Machine, Program, Queue};
use lapidary_simulator::report::timeline::Timeline;
use lapidary_simulator::report::trace::ChromeTrace;
use lapidary_simulator::report::{UNITS, csv, html, json, text};
use lapidary_simulator::{Cause, Options, Run, Simulator};
use serde_json::Value;

fn example(name: &str) -> Program {
    let path = format!("{}/../examples/npu/{name}.s", env!("CARGO_MANIFEST_DIR"));
    common::program(&std::fs::read_to_string(path).unwrap())
}

fn run(program: &Program, machine: &Machine) -> Run {
    Simulator::new(program, machine, Options::default()).unwrap().run().unwrap()
}

#[test]
fn json_has_its_fields_and_its_sums() {
    let machine = Machine::preset("edge-16").unwrap();
    let run = run(&example("routed_ffn"), &machine);
    let value = json::to_json(&run.report);
    let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    let wanted = ["schema", "machine", "cycles", "latency_ms", "units", "bytes", "energy_uj", "ops", "modules"];
    assert_eq!(keys, [&wanted[..], &["parts", "routing", "selections"]].concat());
    assert_eq!((&value["schema"], &value["machine"]), (&"lapidary.sim/1".into(), &"edge-16".into()));
    let cycles = value["cycles"].as_u64().unwrap();
    assert_eq!(value["latency_ms"].as_f64().unwrap(), cycles as f64 / 500e3);
    let units: Vec<&str> = value["units"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(units, ["matrix", "vector", "load", "store", "route", "sequencer"]);
    for unit in units {
        let unit = &value["units"][unit];
        let stalls: u64 = unit["stalls"].as_object().unwrap().values().map(|v| v.as_u64().unwrap()).sum();
        assert_eq!(unit["busy_cycles"].as_u64().unwrap() + stalls, cycles);
    }
    let bytes: Vec<&str> = value["bytes"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(bytes, ["dram_read", "dram_write", "spad_read", "spad_write"]);
    let sum =
        |list: &str, key: &str| value[list].as_array().unwrap().iter().map(|v| v[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum("ops", "dram_read"), value["bytes"]["dram_read"].as_u64().unwrap());
    assert_eq!(sum("ops", "macs"), sum("modules", "macs"));
    let modules: Vec<i64> =
        value["modules"].as_array().unwrap().iter().map(|m| m["module"].as_i64().unwrap()).collect();
    assert_eq!(modules, [0, 1, 2, 3]);
    let names: Vec<&str> = value["ops"].as_array().unwrap().iter().map(|o| o["op"].as_str().unwrap()).collect();
    assert!(names.starts_with(&["load", "route", "quantize", "credits", "dispatch"]), "{names:?}");
    let energy: f64 = value["ops"].as_array().unwrap().iter().map(|o| o["energy_uj"].as_f64().unwrap()).sum();
    assert!((energy - value["energy_uj"].as_f64().unwrap()).abs() < 1e-9);
}

#[test]
fn energy_is_the_sum_of_its_parts() {
    // One instruction of each kind of energy, with numbers that keep them apart.
    let machine = common::ideal(&[
        ("energy.mac_i8_fj", "1"),
        ("energy.mac_i4_fj", "1000"),
        ("energy.vector_op_fj", "1000000"),
        ("energy.route_op_fj", "1000000"),
        ("energy.instruction_fj", "0"),
        ("energy.scratchpad_byte_fj", "0"),
        ("energy.weights_byte_fj", "0"),
        ("energy.accumulators_byte_fj", "0"),
        ("energy.dram_byte_fj", "0"),
    ]);
    let energy = |text: &str, machine: &Machine| common::see(text, machine).run.report.total.energy_fj;
    // 3 rows · 5 · 7.
    assert_eq!(energy("m.preload i8, w[0], k=5, n=7\nm.pass sp[0], acc[0], rows=3, k=5\nhalt", &machine), 105);
    assert_eq!(energy("m.preload i4, w[0], k=5, n=7\nm.pass sp[0], acc[0], rows=3, k=5\nhalt", &machine), 105_000);
    // s·c·L: 2 steps of exp = 8 on 16 lanes, whatever the ports make of it.
    assert_eq!(energy("v.exp sp[0], sp[0], cols=17\nhalt", &machine), 2 * 8 * 16 * 1_000_000);
    // Cycles less P, times Q: 2 · 16.
    assert_eq!(energy("li r1, 17\nr.iota sp[0], count=r1\nhalt", &machine), 2 * 16 * 1_000_000);
    let bytes = |key: &str| {
        let mut m = machine.clone();
        m.set_all([("energy.vector_op_fj", "0"), ("energy.mac_i8_fj", "0"), (key, "1")]).unwrap();
        m
    };
    assert_eq!(energy("li r1, 17\nhalt", &bytes("energy.instruction_fj")), 2);
    // 17 f32 read and 17 f16 written.
    let copy = "v.copy sp[0], sp[256], cols=17, dst_type=f16\nhalt";
    assert_eq!(energy(copy, &bytes("energy.scratchpad_byte_fj")), 17 * 6);
    // 5 · 7 codes; rows of 16 words, written, or read and written.
    let pass = "m.preload i8, w[0], k=5, n=7\nm.pass sp[0], acc[0], rows=3, k=5\nhalt";
    assert_eq!(energy(pass, &bytes("energy.weights_byte_fj")), 35);
    assert_eq!(energy(pass, &bytes("energy.accumulators_byte_fj")), 3 * 64);
    assert_eq!(
        energy(&pass.replace("k=5\nhalt", "k=5, accumulate\nhalt"), &bytes("energy.accumulators_byte_fj")),
        6 * 64
    );
    assert_eq!(energy(pass, &bytes("energy.scratchpad_byte_fj")), 15);
    // Whole bursts of 64 bytes.
    assert_eq!(energy("load sp[0], dram[0], row_bytes=65\nhalt", &bytes("energy.dram_byte_fj")), 128);
}

#[test]
fn csv_has_a_line_per_class() {
    let run = run(&example("top_k_sort"), &Machine::preset("edge-16").unwrap());
    let csv = csv::by_class(&run.report);
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert!(lines.iter().all(|line| line.len() == lines[0].len()));
    let classes: Vec<&str> = lines[1..].iter().map(|line| line[0]).collect();
    assert_eq!(classes, ["scalar", "scalar-load", "sync", "dma", "select-rows", "group", "compact"]);
    let instructions: u64 = lines[1..].iter().map(|line| line[1].parse::<u64>().unwrap()).sum();
    assert_eq!(instructions, run.report.total.instructions);
    let group = lines.iter().find(|line| line[0] == "group").unwrap();
    // P + 2·⌈32/16⌉ + 4 + N = 16.
    assert_eq!(group[2], "28");
}

#[test]
fn names_with_commas_are_one_column() {
    let text = ".op \"gate, up\", module=r1\nli r2, 20\nr.iota sp[0], count=r2\n.op \"\"\nhalt";
    let report = run(&common::program(text), &common::ideal(&[])).report;
    assert_eq!(csv::by_op(&report).lines().nth(1).unwrap().split(',').next(), Some("\"gate"));
    assert!(csv::by_part(&report).contains("\n\"gate, up\",0,2,"), "{}", csv::by_part(&report));
    assert!(csv::by_module(&report).contains("\n0,0,2,"), "{}", csv::by_module(&report));
    // Nothing of this is routing.
    assert_eq!(
        (text::router(&report), csv::by_stage(&report).lines().count(), report.router().cycles),
        (String::new(), 1, 0)
    );
    assert!(text::tables(&report, 9).starts_with("op "));
}

#[test]
fn traces_are_json_and_lose_no_instruction() {
    let (program, machine) = (example("routed_ffn"), Machine::preset("edge-16").unwrap());
    let mut trace = ChromeTrace::new(Vec::new(), &program, &machine);
    let mut recorder = common::Recorder::default();
    let simulator = Simulator::new(&program, &machine, Options::default()).unwrap();
    let run = simulator.run_observed(&mut (&mut trace, &mut recorder)).unwrap();
    let trace: Value = serde_json::from_slice(&trace.finish().unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let complete: Vec<&Value> = events.iter().filter(|e| e["ph"] == "X" && e["cat"] != "stall").collect();
    assert_eq!(complete.len(), recorder.0.len());
    // No two of a track overlap.
    let mut tracks = std::collections::BTreeMap::<u64, Vec<(f64, f64)>>::new();
    for event in events.iter().filter(|e| e["ph"] == "X") {
        let (ts, dur) = (event["ts"].as_f64().unwrap(), event["dur"].as_f64().unwrap());
        tracks.entry(event["tid"].as_u64().unwrap()).or_default().push((ts, ts + dur));
        assert!(ts + dur <= run.report.latency_ms() * 1e3 + 1e-9);
    }
    for intervals in tracks.values_mut() {
        intervals.sort_by(|a, b| a.partial_cmp(b).unwrap());
        assert!(intervals.windows(2).all(|pair| pair[0].1 <= pair[1].0 + 1e-9), "{intervals:?}");
    }
    assert!(events.iter().any(|e| e["ph"] == "C" && e["args"]["load"].as_f64().unwrap() > 0.0));
    assert!(events.iter().any(|e| e["cat"] == "stall" && e["name"] == "token_wait"));
}

#[test]
fn pages_stand_alone_and_show_what_was_counted() {
    let (program, machine) = (example("routed_ffn"), Machine::preset("edge-16").unwrap());
    let mut timeline = Timeline::default();
    let simulator = Simulator::new(&program, &machine, Options::default()).unwrap();
    let run = simulator.run_observed(&mut timeline).unwrap();
    for queue in UNITS {
        for cause in Cause::ALL {
            let of_steps = timeline.steps(run.report.cycles).iter().map(|s| s.cycles[queue.index()][*cause as usize]);
            assert_eq!(of_steps.sum::<u64>(), run.report.spent_cycles(queue, *cause), "{queue} {}", cause.name());
        }
    }
    let page = html::page(&run.report, &timeline, "routed_ffn").unwrap();
    assert!(!page.contains("http") && !page.contains("<script"), "a page that needs a network");
    for wanted in ["token_wait", "roofline", "gate and up", &text::grouped(run.report.cycles.into()), "select-rows"] {
        assert!(page.to_lowercase().contains(wanted), "{wanted}");
    }
    // Observers change nothing.
    assert_eq!(self::run(&program, &machine).report, run.report);
}

#[test]
fn summaries_say_what_bounds() {
    let machine = Machine::preset("edge-16").unwrap();
    // A long stream is bound by DRAM.
    let text = "li r1, 4000\nloop r2, count=8\nload sp[0], dram[0], row_bytes=64, rows=r1\nend\nhalt";
    let seen = common::see(text, &machine);
    assert_eq!(seen.run.report.bound().by, "dram");
    assert!(
        text::summary(&seen.run.report).contains("bound by     DRAM's bus, busy 9"),
        "{}",
        text::summary(&seen.run.report)
    );
    // Passes behind each other by the array.
    let text = "m.preload i8, w[0], k=16, n=16\nloop r2, count=50\nm.pass sp[0], acc[0], rows=200, k=16\nend\nhalt";
    let seen = common::see(text, &common::ideal(&[]));
    assert_eq!((seen.run.report.bound().by, seen.busy(Queue::Matrix)), ("matrix", 16 + 50 * 230));
    assert!(text::summary(&seen.run.report).contains("bound by     the matrix unit, busy 100.0 %"));
    // Scalar work by the sequencer; a single small load by nothing but waiting.
    let seen = common::see("loop r2, count=50\nadd r1, r1, 1\nend\nhalt", &machine);
    assert_eq!(seen.run.report.bound().by, "sequencer");
    let seen = common::see("load sp[0], dram[0], row_bytes=64\nhalt", &machine);
    assert!(text::bound(&seen.run.report).starts_with("waiting: "), "{}", text::bound(&seen.run.report));
}

/// What `docs/simulator.md` and `docs/npu-programming.md` quote is what the code says. `LAPIDARY_BLESS=1` rewrites it.
#[test]
fn quoted_output_is_real() {
    let root = format!("{}/..", env!("CARGO_MANIFEST_DIR"));
    for page in ["npu-programming.md", "simulator.md"] {
        let path = format!("{root}/docs/{page}");
        let mut out = String::new();
        let mut skipping = false;
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            if line == "<!-- end -->" {
                skipping = false;
            }
            if !skipping {
                out += line;
                out.push('\n');
            }
            if let Some(what) = line.strip_prefix("<!-- summary of ").and_then(|l| l.strip_suffix(" -->")) {
                let (name, preset) = what.split_once(" on ").unwrap();
                let report = run(&example(name), &Machine::preset(preset).unwrap()).report;
                out += &format!("```\n{}```\n", text::summary(&report));
                skipping = true;
            }
        }
        let found = std::fs::read_to_string(&path).unwrap();
        if found != out {
            let bless = std::env::var("LAPIDARY_BLESS").is_ok_and(|v| v == "1");
            assert!(bless, "{path} is not what the simulator prints; LAPIDARY_BLESS=1 rewrites it");
            std::fs::write(&path, out).unwrap();
        }
    }
}
