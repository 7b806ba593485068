//! Profiling and routing traces: what is told must be what was run.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use lapidary_runtime::{Interval, Model, Observer, Recorder, Session, ThreadPool};
use ndarray::{Array1, Array2};
use ndarray_npy::{NpzReader, WriteNpyExt};
use serde_json::Value;
use support::{lapidary, root, run};

const GENERATES: &str = "29-generate-top_p";

fn compiled(folder: &Path, name: &str) -> PathBuf {
    let artifact = folder.join(format!("{name}.lapis"));
    let model = root().join("tests/models/random").join(name);
    run(lapidary().arg("-q").arg("compile").arg(model).arg("-o").arg(&artifact)).unwrap();
    artifact
}

fn session(artifact: &Path, threads: usize) -> Session {
    let model = Arc::new(Model::open(artifact).unwrap());
    Session::new(model, Arc::new(ThreadPool::new(threads).unwrap())).unwrap()
}

fn ids(session: &Session, count: usize) -> Vec<u32> {
    let vocab = session.model().manifest().vocab_size;
    (0..count as u32).map(|i| (i * 7 + 3) % vocab).collect()
}

/// All outputs of the last call, as bits.
fn outputs(session: &Session) -> BTreeMap<String, Vec<u32>> {
    let model = session.model().clone();
    let ports: Vec<_> = model.program().outputs().collect();
    ports
        .iter()
        .map(|port| {
            let view = session.output(port.name).unwrap();
            let row = |r| match view.row_f32(r) {
                Some(row) => row.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
                None => view.row_u8(r).unwrap().iter().map(|x| u32::from(*x)).collect(),
            };
            (port.name.to_string(), (0..view.rows()).flat_map(row).collect())
        })
        .collect()
}

/// Names of the steps that compute something, in the order of the code, which is that of execution.
fn steps_of(session: &Session, entry: &str) -> Vec<u32> {
    let model = session.model().clone();
    let artifact = model.artifact();
    let steps = artifact.steps();
    let mine = steps.iter().zip(0..).filter(|(step, _)| {
        step.name.starts_with(&format!("{entry}/")) && !step.op.is_empty() && !step.name.ends_with(" by module")
    });
    mine.map(|(_, i)| i).collect()
}

/// Modules with at least one token of the last call, per layer.
fn visited(session: &Session) -> Vec<BTreeSet<u32>> {
    (0..session.model().manifest().num_layers)
        .map(|layer| {
            let view = session.output(&format!("modules.{layer}")).unwrap();
            let rows = (0..view.rows()).map(|r| view.row_u8(r).unwrap().to_vec());
            rows.flat_map(|row| (0..).zip(row).filter(|(_, m)| *m != 0).map(|(c, _)| c).collect::<Vec<u32>>()).collect()
        })
        .collect()
}

fn check_intervals(session: &Session, entry: &str, intervals: &[Interval]) {
    let model = session.model().clone();
    let records: Vec<_> = model.artifact().steps().iter().collect();
    let steps: Vec<&Interval> = intervals.iter().filter(|i| i.module.is_none()).collect();
    let order: Vec<u32> = steps.iter().map(|i| i.step).collect();
    assert_eq!(order, steps_of(session, entry), "{entry}: every step once, in order");
    for pair in steps.windows(2) {
        assert_eq!(pair[0].end_ns, pair[1].begin_ns, "steps cover the call without a gap");
    }
    let mut told = vec![BTreeSet::new(); visited(session).len()];
    for interval in intervals.iter().filter(|i| i.module.is_some()) {
        assert!(interval.begin_ns <= interval.end_ns);
        let step = steps.iter().find(|s| s.step == interval.step).expect("a module belongs to a step of the call");
        assert!(step.begin_ns <= interval.begin_ns && interval.end_ns <= step.end_ns, "a module lies inside its step");
        let label = records[interval.step as usize].op;
        let layer: usize = label.strip_prefix("layers.").unwrap().split('.').next().unwrap().parse().unwrap();
        told[layer].insert(interval.module.unwrap());
    }
    assert_eq!(told, visited(session), "{entry}: exactly the modules with tokens");
}

#[test]
fn observed_calls_give_the_same_bits_and_tell_every_step_and_every_visited_module() {
    let folder = tempfile::tempdir().unwrap();
    for name in
        [GENERATES, "28-generate-threshold", "30-generate-top_k", "25-no-module-chosen", "27-one-module-for-all"]
    {
        let artifact = compiled(folder.path(), name);
        for threads in [1, 3] {
            let (mut plain, mut observed) = (session(&artifact, threads), session(&artifact, threads));
            let recorder = Recorder::new();
            let prompt = ids(&plain, 9);
            plain.prefill(&prompt).unwrap();
            observed.prefill_with(&prompt, Some(&recorder), &mut |_, _| ()).unwrap();
            assert_eq!(outputs(&plain), outputs(&observed), "{name}");
            check_intervals(&observed, "prefill", &recorder.take());
            if plain.decode(5).is_ok() {
                observed.decode_with(5, &recorder).unwrap();
                assert_eq!(outputs(&plain), outputs(&observed), "{name}");
                check_intervals(&observed, "decode", &recorder.take());
            }
        }
    }
}

#[test]
fn plain_calls_tell_an_observer_nothing() {
    #[derive(Default)]
    struct Calls(Mutex<Vec<&'static str>>);
    impl Observer for Calls {
        fn begin_call(&self, _: u64, _: u64) {
            self.0.lock().unwrap().push("call");
        }
        fn begin_part(&self) {}
        fn end_step(&self, _: u64, _: &[u8]) {
            self.0.lock().unwrap().push("step");
        }
        fn end_module(&self, _: u64, _: u64) {}
    }
    let folder = tempfile::tempdir().unwrap();
    let mut session = session(&compiled(folder.path(), GENERATES), 1);
    let calls = Calls::default();
    session.decode_with(1, &calls).unwrap();
    let steps = steps_of(&session, "decode").len();
    session.decode(2).unwrap();
    let told = calls.0.lock().unwrap();
    assert_eq!((told[0], told.len()), ("call", steps + 1));
}

#[test]
fn profile_tables_trace_and_page_agree_with_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = compiled(folder.path(), GENERATES);
    let (npy, trace, page) = (folder.path().join("i.npy"), folder.path().join("t.json"), folder.path().join("r.html"));
    let input: Vec<i64> = ids(&session(&artifact, 1), 11).into_iter().map(i64::from).collect();
    Array1::from(input).write_npy(std::fs::File::create(&npy).unwrap()).unwrap();
    let text = run(lapidary()
        .arg("profile")
        .arg(&artifact)
        .args(["--max-new", "4", "--reps", "3", "--format", "json"])
        .arg(format!("--input=ids=@{}", npy.display()))
        .arg("--trace")
        .arg(&trace)
        .arg("--report")
        .arg(&page))
    .unwrap();
    let profile: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(profile["schema"], "lapidary.profile/1");
    let phases = profile["phases"].as_array().unwrap();
    assert_eq!(
        phases.iter().map(|p| (&p["name"], &p["tokens"])).collect::<Vec<_>>(),
        [(&Value::from("prefill"), &Value::from(11)), (&Value::from("decode"), &Value::from(4))]
    );
    for phase in phases {
        let sum = |rows: &str, field: &str| -> f64 {
            phase[rows].as_array().unwrap().iter().map(|row| row[field].as_f64().unwrap()).sum()
        };
        for rows in ["steps", "ops", "components"] {
            assert!((sum(rows, "share") - 1.0).abs() < 1e-9, "{rows}");
            assert!((sum(rows, "ms") - phase["steps_ms"].as_f64().unwrap()).abs() < 1e-9, "{rows}");
        }
        let router = &phase["router"];
        let parts = ["token_router_ms", "scar_ms", "scar_query_ms"].map(|part| router[part].as_f64().unwrap());
        assert!((parts.iter().sum::<f64>() - router["ms"].as_f64().unwrap()).abs() < 1e-9);
        assert!(parts.iter().all(|ms| *ms > 0.0) && router["share"].as_f64().unwrap() < 1.0);
    }
    let visits: u64 = profile["routing"]["visits"].as_array().unwrap().iter().flat_map(numbers).sum();
    let by_module: u64 =
        phases.iter().flat_map(|p| p["modules"].as_array().unwrap()).map(|m| m["tokens"].as_u64().unwrap()).sum();
    assert_eq!(visits, by_module, "the heat map counts the visits that were timed");
    assert_eq!(profile["routing"]["tokens"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>(), 15);

    let trace: Value = serde_json::from_slice(&std::fs::read(trace).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let complete: Vec<_> = events.iter().filter(|e| e["ph"] == "X").collect();
    let calls: Vec<_> = complete.iter().filter(|e| e["cat"] == "call").collect();
    assert_eq!(calls.len(), 5);
    let range = |e: &Value| (e["ts"].as_f64().unwrap(), e["ts"].as_f64().unwrap() + e["dur"].as_f64().unwrap());
    for event in &complete {
        let (begin, end) = range(event);
        let inside = calls.iter().any(|call| range(call).0 <= begin + 1e-6 && end <= range(call).1 + 1e-6);
        assert!(inside, "{event}");
    }
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("Routing takes"));
    for outside in ["http:", "https:", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "the page needs no network, found {outside}");
    }
}

fn numbers(value: &Value) -> Vec<u64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        other => vec![other.as_u64().unwrap()],
    }
}

#[test]
fn routing_traces_hold_the_selected_modules() {
    let folder = tempfile::tempdir().unwrap();
    for name in [GENERATES, "03-expert_choice-clustered-windowed-router-lm-fp16", "25-no-module-chosen"] {
        let artifact = compiled(folder.path(), name);
        let (npy, npz, trace) =
            (folder.path().join("i.npy"), folder.path().join("o.npz"), folder.path().join("routing"));
        let tokens = ids(&session(&artifact, 1), 13);
        let input: Vec<i64> = tokens.iter().map(|id| i64::from(*id)).collect();
        Array1::from(input).write_npy(std::fs::File::create(&npy).unwrap()).unwrap();
        run(lapidary()
            .arg("run")
            .arg(&artifact)
            .arg(format!("--input=ids=@{}", npy.display()))
            .arg("--output")
            .arg(&npz)
            .arg("--record-routing")
            .arg(&trace))
        .unwrap();
        let text = std::fs::read_to_string(&trace).unwrap();
        let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let head = lines.next().unwrap();
        assert_eq!((&head["schema"], head["tokens"].as_u64()), (&Value::from("lapidary.routing/1"), Some(13)));
        let mut npz = NpzReader::new(std::fs::File::open(&npz).unwrap()).unwrap();
        let layers = head["layers"].as_u64().unwrap() as usize;
        let masks: Vec<Array2<u8>> = (0..layers).map(|l| npz.by_name(&format!("modules.{l}")).unwrap()).collect();
        let gates: Vec<Array2<f32>> = (0..layers).map(|l| npz.by_name(&format!("gates.{l}")).unwrap()).collect();
        let domains: Array2<f32> = npz.by_name("domains").unwrap();
        let lines: Vec<Value> = lines.collect();
        assert_eq!(lines.len(), 13);
        for (t, line) in lines.iter().enumerate() {
            assert_eq!((line["position"].as_u64(), line["id"].as_u64()), (Some(t as u64), Some(u64::from(tokens[t]))));
            for (layer, mask) in masks.iter().enumerate() {
                let wanted: Vec<u64> = (0..).zip(mask.row(t)).filter(|(_, m)| **m != 0).map(|(c, _)| c).collect();
                assert_eq!(numbers(&line["modules"][layer]), wanted, "{name}: token {t}, layer {layer}");
                let wanted = wanted.iter().map(|c| gates[layer][[t, *c as usize]]);
                let found = line["gates"][layer].as_array().unwrap().iter().map(|gate| gate.as_f64().unwrap() as f32);
                assert!(found.eq(wanted), "{name}: token {t}, gates of layer {layer}");
            }
            let row = domains.row(t);
            let best = row[line["domain"].as_u64().unwrap() as usize];
            assert!(row.iter().all(|p| *p <= best), "{name}: token {t}");
        }
    }
}
