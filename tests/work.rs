//! Only selected work is done: the counters that generated code and kernels keep against what the definition admits.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use lapidary_format::abi::Counter;
use lapidary_runtime::{Model, Session, Tensor, TensorData, ThreadPool};
use support::{lapidary, models, run};

struct Compiled {
    config: serde_json::Value,
    session: Session,
    _folder: tempfile::TempDir,
}

fn compile(model: &Path) -> Compiled {
    let folder = tempfile::tempdir().unwrap();
    let artifact = folder.path().join("model.lapis");
    run(lapidary().arg("-q").arg("compile").arg(model).arg("-o").arg(&artifact)).unwrap();
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    let opened = Arc::new(Model::open(&artifact).unwrap());
    let session = Session::new(opened, Arc::new(ThreadPool::new(2).unwrap())).unwrap();
    Compiled { config: serde_json::from_str(&config).unwrap(), session, _folder: folder }
}

impl Compiled {
    fn number(&self, path: &str) -> usize {
        let value = self.config.pointer(path).and_then(|v| v.as_u64()).unwrap_or_else(|| panic!("{path}"));
        value as usize
    }

    fn outputs(&mut self, ids: &[u32]) -> BTreeMap<String, Tensor> {
        self.session.forward_all(ids).unwrap().into_iter().map(|t| (t.name.clone(), t)).collect()
    }
}

fn ids(length: usize, vocab: usize) -> Vec<u32> {
    (0..length).map(|i| ((i * i * 7 + i * 3 + 1) % vocab) as u32).collect()
}

fn selected(outputs: &BTreeMap<String, Tensor>, layer: usize) -> Vec<Vec<bool>> {
    let tensor = &outputs[&format!("modules.{layer}")];
    let TensorData::U8(mask) = &tensor.data else { panic!("modules are u8") };
    mask.chunks(tensor.columns).map(|row| row.iter().map(|m| *m != 0).collect()).collect()
}

/// Σ|R| rows go through modules, and a call reads just the modules that some token chose, on every model of the tests.
#[test]
fn modules_see_only_the_rows_routed_to_them() {
    for model in models() {
        let mut compiled = compile(&model);
        let layers = compiled.number("/num_hidden_layers");
        let length = 33.min(compiled.number("/max_position_embeddings"));
        let ids = ids(length, compiled.number("/vocab_size"));
        compiled.session.reset_counters();
        let outputs = compiled.outputs(&ids);
        let chunk = compiled.session.model().manifest().max_chunk_tokens as usize;
        let (mut rows, mut read) = (0, 0);
        for layer in 0..layers {
            let mask = selected(&outputs, layer);
            rows += mask.iter().flatten().filter(|m| **m).count() as u64;
            for call in mask.chunks(chunk) {
                read += (0..call[0].len()).filter(|c| call.iter().any(|row| row[*c])).count() as u64;
            }
        }
        let session = &compiled.session;
        assert_eq!(session.counter(Counter::RowsRouted), rows, "{}", model.display());
        assert_eq!(session.counter(Counter::ModulesRead), read, "{}", model.display());
        assert!(
            model.ends_with("25-no-module-chosen") == (rows == 0),
            "{}: {rows} rows: a suite without routed rows proves nothing",
            model.display()
        );
    }
}

/// Clustered attention reads at most window + sinks + cluster_cap keys per query, and far fewer than all of them once the
/// sequence is long: decoding the same tokens reads as many keys as prefill does.
#[test]
fn attention_reads_only_admitted_keys() {
    let mut tried = 0;
    for model in models() {
        let mut compiled = compile(&model);
        if compiled.config["attention"]["kind"] != "clustered" {
            continue;
        }
        let bound = ["window", "sinks", "cluster_cap"].map(|k| compiled.number(&format!("/attention/{k}")));
        let bound = bound.iter().sum::<usize>() as u64;
        let length = 100.min(compiled.number("/max_position_embeddings"));
        let ids = ids(length, compiled.number("/vocab_size"));
        let heads = (compiled.number("/num_key_value_heads") * compiled.number("/num_hidden_layers")) as u64;
        compiled.session.reset_counters();
        compiled.session.reset();
        compiled.session.prefill(&ids).unwrap();
        let session = &mut compiled.session;
        let (keys, queries) = (session.counter(Counter::ClusteredKeysRead), session.counter(Counter::ClusteredQueries));
        assert_eq!(queries, heads * ids.len() as u64, "{}", model.display());
        assert!(keys <= bound * queries, "{}: {keys} keys for {queries} queries", model.display());
        let all = heads * (ids.len() * (ids.len() + 1) / 2) as u64;
        assert!(keys <= all, "{}: {keys} keys, all are {all}", model.display());
        if bound < ids.len() as u64 / 2 {
            assert!(keys < all, "{}: nothing was skipped", model.display());
            tried += 1;
        }
        if session.model().artifact().decode_offset().is_some() {
            session.reset_counters();
            session.reset();
            ids.iter().for_each(|id| session.decode(*id).unwrap());
            assert_eq!(session.counter(Counter::ClusteredKeysRead), keys, "{}", model.display());
        }
    }
    assert!(tried > 0, "no model is long enough to skip keys");
}
