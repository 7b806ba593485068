//! A device that runs several programs, and reports of several runs.

mod common;

use std::io::Write;

use common::program;
use lapidary_npu_isa::{Machine, Queue};
use lapidary_simulator::observe::After;
use lapidary_simulator::report::summary::Summary;
use lapidary_simulator::report::timeline::Timeline;
use lapidary_simulator::report::{DomainVisits, TokenModules, csv, html, json, text};
use lapidary_simulator::routing::{Drawn, ModulesPerToken, Popularity, Routed};
use lapidary_simulator::{Cause, Device, Limits, Options, SimError};

const SEGMENTS: &str = ".data table\n.u32 7, 8\n.space ids, 64\n.space out, 128\n";

fn machine() -> Machine {
    Machine::preset("edge-16").unwrap()
}

#[test]
fn memories_stay_between_programs() {
    let first = program(&format!("{SEGMENTS}li r1, ids\nload sp[64], dram[r1], row_bytes=64\nhalt"));
    let second = program(&format!("{SEGMENTS}li r1, out\nstore dram[r1], sp[64], row_bytes=64\nhalt"));
    let mut device = Device::new(&machine(), Options::default());
    device.write(&first, "ids", &[1, 2, 3]).unwrap();
    device.write_at(&first, "ids", 60, &[9; 4]).unwrap();
    // Contents of a program come back with it; others stay.
    device.write(&first, "table", &[0; 8]).unwrap();
    device.run(&first, &mut ()).unwrap();
    assert_eq!(device.read(&first, "table", 8).unwrap(), [7, 0, 0, 0, 8, 0, 0, 0]);
    device.run(&second, &mut ()).unwrap();
    assert_eq!(device.read(&second, "ids", 3).unwrap(), [1, 2, 3]);
    let out = device.read(&second, "out", 128).unwrap();
    assert_eq!((&out[..4], &out[60..64], &out[64..]), (&[1, 2, 3, 0][..], &[9; 4][..], &[0; 64][..]));
    device.zero(&second, "out").unwrap();
    assert_eq!(device.read(&second, "out", 128).unwrap(), [0; 128]);
    // A writer goes on where it was, and ends with the segment.
    let mut writer = device.writer(&second, "ids");
    writer.write_all(&[4; 40]).unwrap();
    writer.write_all(&[5; 24]).unwrap();
    assert_eq!(writer.len_bytes(), 64);
    let error = writer.write_all(&[6]).unwrap_err().to_string();
    assert_eq!(error, "segment \"ids\": wanted bytes within its 64, found 64 to 65");
    assert_eq!(device.read(&second, "ids", 64).unwrap()[38..42], [4, 4, 5, 5]);
}

#[test]
fn segments_that_are_not_there_have_names() {
    let empty = program("halt");
    let some = program(&format!("{SEGMENTS}halt"));
    let mut device = Device::new(&machine(), Options::default());
    let error = device.write(&some, "idz", &[1]).unwrap_err().to_string();
    assert_eq!(error, "segment \"idz\": wanted one of the program's: \"table\", \"ids\", \"out\"");
    let error = device.zero(&empty, "ids").unwrap_err().to_string();
    assert_eq!(error, "segment \"ids\": wanted one of the program's: none, as the program has none");
    let error = device.read(&some, "ids", u64::MAX).unwrap_err().to_string();
    assert_eq!(error, format!("segment \"ids\": wanted bytes within its 64, found 0 to {}", u64::MAX));
    let mut small = machine();
    small.set("dram.bytes", &(1u64 << 20).to_string()).unwrap();
    let far = program(".space gap, 2097152\n.space far, 64\nhalt");
    let error = Device::new(&small, Options::default()).write(&far, "far", &[1]).unwrap_err();
    assert!(matches!(error, SimError::OutsideDram { .. }), "{error}");
}

#[test]
fn memories_outlive_a_failure() {
    let fails = program(&format!("{SEGMENTS}li r1, out\nlds r2, sp[0], max=0\nlds r2, sp[64], max=0\nhalt"));
    let fills = program(&format!("{SEGMENTS}li r1, ids\nload sp[64], dram[r1], row_bytes=64\nhalt"));
    let mut device = Device::new(&machine(), Options::default());
    device.write(&fills, "ids", &[3; 64]).unwrap();
    device.run(&fills, &mut ()).unwrap();
    assert!(matches!(device.run(&fails, &mut ()), Err(SimError::Fault(_))));
    assert_eq!(device.memories().scratchpad[64..128], [3; 64]);
    assert_eq!(device.read(&fails, "ids", 64).unwrap(), [3; 64]);
    // DRAM is limited as a whole.
    let limits = Limits { dram_bytes: 4096, ..Limits::default() };
    let mut device = Device::new(&machine(), Options { limits, ..Options::default() });
    let far = program(".space a, 8192\nhalt");
    device.write(&far, "a", &[1]).unwrap();
    assert!(matches!(device.write_at(&far, "a", 4096, &[1]), Err(SimError::Limit { .. })));
}

/// What one run did not compute, the next does not know.
#[test]
fn what_is_not_known_stays_unknown() {
    let segments = ".space weights, 4096\n.space state, 64\n";
    let computes = program(&format!(
        "{segments}li r1, weights\nli r2, state\nload w[0], dram[r1], row_bytes=256 post(t1)\n\
         m.preload i8, w[0], k=16, n=16 wait(t1)\nm.pass sp[0], acc[0], rows=1, k=16 post(t2)\n\
         v.rescale sp[1024], acc[0], sp[0], sp[0], cols=16 wait(t2) post(t3)\n\
         store dram[r2], sp[1024], row_bytes=64 wait(t3)\nhalt"
    ));
    let depends = program(&format!(
        "{segments}li r2, state\nload sp[0], dram[r2], row_bytes=64 post(t1)\nlds r3, sp[0], max=9 wait(t1)\nhalt"
    ));
    let mut device = Device::new(&machine(), Options::timing_only());
    device.run(&computes, &mut ()).unwrap();
    let error = device.read(&computes, "state", 4).unwrap_err();
    assert!(matches!(error, SimError::NotComputed { .. }), "{error}");
    assert!(matches!(device.run(&depends, &mut ()), Err(SimError::Unknown { .. })));
    // What the host writes is known.
    device.zero(&depends, "state").unwrap();
    device.run(&depends, &mut ()).unwrap();
    device.forget(&depends, "state").unwrap();
    assert!(matches!(device.run(&depends, &mut ()), Err(SimError::Unknown { .. })));
    device.write(&depends, "state", &[0; 64]).unwrap();
    device.run(&depends, &mut ()).unwrap();
    // With values everything is known.
    let mut device = Device::new(&machine(), Options::default());
    device.forget(&depends, "state").unwrap();
    device.run(&depends, &mut ()).unwrap();
}

fn routed_ffn() -> lapidary_npu_isa::Program {
    let path = format!("{}/../examples/npu/routed_ffn.s", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    program(&text.replace(".op \"route\"", ".op \"layers.0.scar.select\""))
}

/// A prefill and some steps, whose routing differs.
fn summary(steps: u64) -> (Summary, Timeline) {
    let program = routed_ffn();
    let mut device = Device::new(&machine(), Options::default());
    let mut drawn = Drawn::new(Popularity::Zipf(1.0), ModulesPerToken::Exactly(2), 3);
    let (mut summary, mut timeline) = (Summary::default(), Timeline::default());
    for step in 0..=steps {
        let mut observer = After { observer: &mut timeline, offset: summary.cycles() };
        let routed = Routed { routing: &mut drawn, first_token: 8 * step };
        let report = device.run_routed(&program, routed, &mut observer).unwrap();
        summary.add(if step == 0 { "prefill" } else { "decode" }, 8, &report).unwrap();
    }
    (summary, timeline)
}

#[test]
fn several_runs_add_up() {
    let (summary, timeline) = summary(20);
    let report = summary.report().unwrap();
    let cycles: Vec<u64> = summary.runs().iter().map(|run| run.cycles).collect();
    assert_eq!((report.cycles, cycles.len()), (cycles.iter().sum(), 21));
    assert_eq!(report.parts.iter().map(|part| part.share.cycles).sum::<u64>(), report.cycles);
    assert_eq!(report.parts.iter().map(|part| part.share.end).max(), Some(report.cycles));
    assert_eq!(report.selections[0].tokens_by_count, [0, 0, 21 * 8]);
    assert_eq!(report.selections[0].visits.iter().sum::<u64>(), 21 * 8 * 2);
    for (module, share) in report.modules() {
        assert_eq!(share.amounts.macs, u128::from(report.visits(module) * 3 * 32 * 32));
    }
    let busy: u64 =
        timeline.steps(report.cycles).iter().map(|s| s.cycles[Queue::Matrix.index()][Cause::Busy as usize]).sum();
    assert_eq!(busy, report.busy_cycles(Queue::Matrix));
    // Of 20 steps, in ascending order, the 10th, the 19th and the last.
    let [prefill, decode] = &summary.phases()[..] else { panic!("{:?}", summary.phases()) };
    let mut sorted = cycles[1..].to_vec();
    sorted.sort_unstable();
    assert_eq!((decode.p50_cycles, decode.p95_cycles, decode.max_cycles), (sorted[9], sorted[18], sorted[19]));
    assert_eq!((prefill.runs, prefill.p50_cycles, prefill.p95_cycles), (1, cycles[0], cycles[0]));
    assert_eq!(decode.tokens, 160);
    let per_second = 160.0 / (decode.cycles as f64 / 500e6);
    assert!((decode.tokens_per_second / per_second - 1.0).abs() < 1e-12);
    // Another machine is no summand.
    let other = Machine::preset("edge-32").unwrap();
    let mut device = Device::new(&other, Options::default());
    let report = device.run(&program("halt"), &mut ()).unwrap();
    let mut sum = summary.clone();
    let error = sum.add("decode", 1, &report).unwrap_err().to_string();
    assert!(error.contains("found one on machine edge-32"), "{error}");
    assert_eq!(sum, summary);
}

#[test]
fn reports_of_several_runs_say_what_they_say() {
    let (summary, timeline) = summary(5);
    let report = summary.report().unwrap();
    let value = json::summary_to_json(&summary);
    assert_eq!(json::summary_to_json(&Summary::default()), serde_json::Value::Null);
    assert_eq!((value["phases"].as_array().unwrap().len(), value["runs"].as_array().unwrap().len()), (2, 6));
    let sum = |list: &serde_json::Value, key: &str| {
        list.as_array().unwrap().iter().map(|line| line[key].as_u64().unwrap()).sum::<u64>()
    };
    for list in ["ops", "parts", "runs", "phases"] {
        assert_eq!(sum(&value[list], "cycles"), report.cycles, "{list}");
    }
    assert_eq!(sum(&value["modules"], "tokens"), 6 * 16);
    assert_eq!(sum(&value["routing"]["stages"], "cycles"), value["routing"]["cycles"].as_u64().unwrap());
    assert!(value["parts"].as_array().unwrap().iter().any(|p| p["module"] == 2 && p["op"] == "weights"));
    // CSV: as wide as its head, and complete.
    let tables =
        [csv::by_op(report), csv::by_part(report), csv::by_module(report), csv::by_stage(report), csv::visits(report)];
    for table in &tables {
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split(',').collect()).collect();
        assert!(lines.len() > 1 && lines.iter().all(|line| line.len() == lines[0].len()), "{table}");
    }
    let column = |table: &str, name: &str| {
        let place = table.lines().next().unwrap().split(',').position(|n| n == name).unwrap();
        table.lines().skip(1).map(|l| l.split(',').nth(place).unwrap().parse::<u64>().unwrap()).sum::<u64>()
    };
    assert_eq!([column(&tables[0], "cycles"), column(&tables[1], "cycles")], [report.cycles; 2]);
    assert_eq!(u128::from(column(&tables[0], "macs")), report.total.macs);
    assert_eq!([column(&tables[2], "tokens"), column(&tables[4], "tokens")], [6 * 16; 2]);
    // Text.
    let tables = text::tables(report, 3);
    assert!(tables.starts_with("routing      ") && tables.contains(" more "), "{tables}");
    assert_eq!(text::phases(&summary).lines().count(), 3);
    // The page.
    let domains =
        DomainVisits { names: vec!["code".into(), "law".into()], visits: vec![vec![40, 2, 6, 0], vec![3, 30, 5, 10]] };
    let tokens: Vec<TokenModules> = ["fn", "<main>", "()"]
        .iter()
        .map(|t| TokenModules { text: (*t).into(), domain: "code".into(), modules: vec![vec![0, 2], vec![1]] })
        .collect();
    let details = html::Details { summary: Some(&summary), domains: Some(&domains), tokens: &tokens };
    let page = html::page_with(report, &timeline, "routed_ffn, prefill and decode", &details).unwrap();
    assert!(!page.contains("http") && !page.contains("<script") && !page.contains("<main>"));
    for wanted in ["Routing takes", "layers.0", "p95 ms", "law", "&lt;main&gt;", "layer 1", "weights, module 2"] {
        assert!(page.contains(wanted), "{wanted}");
    }
}
