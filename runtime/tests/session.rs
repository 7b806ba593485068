//! Artifacts as files, run by sessions on a pool.

mod common;

use std::{fs, path::Path, sync::Arc, thread};

use common::*;
use lapidary_format::*;
use lapidary_runtime::*;

fn session(folder: &Path, builder: &ArtifactBuilder, threads: usize) -> Session {
    let model = Model::open(&file(folder, builder)).unwrap();
    let pool = ThreadPool::new(threads).unwrap();
    Session::new(Arc::new(model), Arc::new(pool)).unwrap()
}

fn tensor<'t>(tensors: &'t [lapidary_runtime::Tensor], name: &str) -> &'t lapidary_runtime::Tensor {
    tensors.iter().find(|tensor| tensor.name == name).unwrap()
}

#[test]
fn a_file_is_mapped_and_run() {
    let folder = tempfile::tempdir().unwrap();
    for threads in [1, 2, 4] {
        let mut s = session(folder.path(), &toy(manifest()), threads);
        assert_eq!(s.model().manifest().model, "toy");
        assert_eq!(s.model().artifact().weights()[..3], [3, 3, 3]);
        s.model().file().check().unwrap();
        let prompt: Vec<u32> = (0..50).collect();
        s.prefill(&prompt).unwrap();
        assert_eq!(s.position(), 50);
        assert_eq!(greedy(s.logits().unwrap()), 50);
        for token in 50..100 {
            s.decode(token).unwrap();
            assert_eq!(greedy(s.logits().unwrap()), token + 1);
        }
        assert_eq!(s.output("seen").unwrap().row_u32(0), Some(&[100][..]));
        assert_eq!(s.counter(abi::Counter::RowsRouted), 100);
        s.reset();
        s.prefill(&[9]).unwrap();
        assert_eq!(s.position(), 1);
        assert_eq!(s.output("seen").unwrap().row_u32(0), Some(&[1][..]));
    }
}

#[test]
fn the_file_may_be_replaced_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let mut s = session(folder.path(), &toy(manifest()), 1);
    file(folder.path(), &toy(whole_sequence()));
    s.prefill(&[1]).unwrap();
    assert_eq!(greedy(s.logits().unwrap()), 2);
}

#[test]
fn outputs_are_gathered_over_chunks() {
    let folder = tempfile::tempdir().unwrap();
    let ids: Vec<u32> = (0..30).map(|i| i * 7 % VOCAB).collect();
    let mut s = session(folder.path(), &toy(manifest()), 2);
    let tensors = s.forward_all(&ids).unwrap();
    let echo = tensor(&tensors, "echo");
    assert_eq!((echo.rows, echo.columns), (30, 1));
    assert_eq!(echo.data, TensorData::U32(ids.clone()));
    let logits = tensor(&tensors, "logits");
    assert_eq!((logits.rows, logits.columns), (30, VOCAB as usize));
    let TensorData::F32(values) = &logits.data else {
        panic!("{logits:?}");
    };
    for (row, id) in values.chunks(VOCAB as usize).zip(&ids) {
        assert_eq!(greedy(row), id + 1);
    }
    assert_eq!(s.position(), 30);
    assert_eq!(s.forward_all(&ids).unwrap(), tensors);
}

#[test]
fn a_whole_sequence_is_one_call() {
    let folder = tempfile::tempdir().unwrap();
    let mut s = session(folder.path(), &toy(whole_sequence()), 2);
    s.prefill(&[1; 8]).unwrap();
    assert_eq!(s.prefill(&[1]).unwrap_err(), RunError::WholeSequence { found: 8 });
    let tensors = s.forward_all(&[1, 2, 3, 4]).unwrap();
    assert_eq!(tensor(&tensors, "logits").rows, 4);
    assert!(matches!(s.forward_all(&[1; 9]), Err(RunError::ChunkLength { wanted: 8, found: 9 })));
    assert!(matches!(s.forward_all(&[1; 5]), Err(RunError::OutputRows { wanted: 4, found: 5 })));
    assert!(matches!(s.decode(1), Err(RunError::CannotDecode { .. })));
}

#[test]
fn a_refused_prompt_leaves_the_sequence_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let mut s = session(folder.path(), &toy(manifest()), 1);
    s.prefill(&[1, 2, 3]).unwrap();
    let mut late = vec![0; 50];
    late.push(VOCAB);
    assert!(matches!(s.prefill(&late), Err(RunError::TokenId { index: 50, .. })));
    assert!(matches!(s.prefill(&[0; 198]), Err(RunError::ContextLength { position: 3, tokens: 198, .. })));
    assert_eq!(s.prefill(&[]), Err(RunError::Empty));
    assert_eq!(s.forward_all(&[]), Err(RunError::Empty));
    assert_eq!(s.position(), 3);
    s.prefill(&[0; 197]).unwrap();
    assert!(matches!(s.decode(0), Err(RunError::ContextLength { .. })));
}

#[test]
fn sessions_share_a_model_and_a_pool() {
    let folder = tempfile::tempdir().unwrap();
    let model = Arc::new(Model::open(&file(folder.path(), &toy(manifest()))).unwrap());
    let pool = Arc::new(ThreadPool::new(3).unwrap());
    let runs: Vec<_> = (0..4)
        .map(|run| {
            let mut s = Session::new(Arc::clone(&model), pool.clone()).unwrap();
            thread::spawn(move || {
                for round in 0..50 {
                    let ids: Vec<u32> = (0..40).map(|i| (i * run + round) % VOCAB).collect();
                    let tensors = s.forward_all(&ids).unwrap();
                    assert_eq!(tensor(&tensors, "echo").data, TensorData::U32(ids));
                }
            })
        })
        .collect();
    drop((model, pool));
    for run in runs {
        run.join().unwrap();
    }
}

#[test]
fn an_artifact_inside_a_larger_file_runs() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = fs::read(file(folder.path(), &toy(manifest()))).unwrap();
    let path = folder.path().join("program-with-model");
    let mut bytes = vec![0xee; 65536];
    bytes.extend(&artifact);
    bytes.extend([0xee; 100]);
    fs::write(&path, &bytes).unwrap();
    let range = 65536..65536 + artifact.len() as u64;
    let inside = ArtifactFile::in_file(std::fs::File::open(&path).unwrap(), &path, range).unwrap();
    let model = Model::from_file(inside, &Host::detect()).unwrap();
    let pool = Arc::new(ThreadPool::new(1).unwrap());
    let mut s = Session::new(Arc::new(model), pool).unwrap();
    s.prefill(&[4]).unwrap();
    assert_eq!(greedy(s.logits().unwrap()), 5);
    let past_end = ArtifactFile::in_file(std::fs::File::open(&path).unwrap(), &path, 65536..1 << 40).unwrap_err();
    assert!(past_end.to_string().contains("65536..1099511627776"), "{past_end}");
}

#[test]
fn files_that_cannot_be_opened_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let error = |path: &Path| Model::open(path).unwrap_err().to_string();
    let text = error(&folder.path().join("absent.lapis"));
    assert!(text.contains("absent.lapis: open it, wanted a readable file, found: No such file"), "{text}");
    let path = folder.path().join("empty.lapis");
    fs::write(&path, b"").unwrap();
    assert!(error(&path).contains("empty.lapis: header, byte 0x0: ends early"), "{}", error(&path));
    fs::write(&path, b"GGUF, not a lapis file").unwrap();
    assert!(error(&path).contains("found \"GGUF, no\""), "{}", error(&path));
    let other = Manifest { isa: OTHER_ISA, ..manifest() };
    let path = file(folder.path(), &toy(other));
    assert!(error(&path).contains("toy.lapis: manifest: instruction set, wanted"), "{}", error(&path));
    assert_eq!(ArtifactFile::open(&path).unwrap().artifact().manifest().isa, OTHER_ISA);
    assert!(!error(folder.path()).is_empty());
}

#[test]
fn this_machine_has_its_baseline_and_resolves_kernels() {
    let host = Host::detect();
    if cfg!(target_arch = "aarch64") {
        assert!(host.has_feature("neon"));
    }
    assert!(!host.has_feature("no such feature"));
    let here =
        |row: &&lapidary_kernels::KernelRow| row.function().is_some() && host.features().contains(row.required());
    let row = lapidary_kernels::kernels().iter().find(here).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut b = toy(manifest());
    b.kernel(row.name);
    Model::open(&file(folder.path(), &b)).unwrap();
    b.kernel("gemm_of_the_future");
    let error = Model::open(&file(folder.path(), &b)).unwrap_err();
    assert!(error.to_string().contains("gemm_of_the_future"), "{error}");
}
