//! What the builder writes is what the reader reads; the same input gives the same bytes.

mod common;

use std::{fs, io, io::Write, os::unix::fs::PermissionsExt};

use common::*;
use lapidary_format::*;
use proptest::prelude::*;

#[test]
fn everything_comes_back() {
    let bytes = artifact();
    let a = Artifact::parse(&bytes).unwrap();
    a.check().unwrap();
    exercise(&a);
    assert_eq!(a.version(), (1, 1));
    assert_eq!(a.file_bytes(), bytes.len() as u64);
    assert_eq!(*a.manifest(), manifest());
    assert_eq!(*a.plan(), plan());
    let domains: Vec<_> = a.domain_names().iter().map(|d| d.name).collect();
    assert_eq!(domains, ["prose", "größe"]);
    assert_eq!(a.features().get(0), Some(Feature { name: "sse2" }));
    assert_eq!(a.features().get(1), None);
    assert_eq!(a.ports().iter().nth(1), Some(logits()));
    let kernels: Vec<_> = a.kernels().iter().map(|k| k.name).collect();
    assert_eq!(kernels, ["gemm_f32_8x8_avx2", "rms_norm"]);
    assert_eq!(a.entries().iter().next_back().unwrap().offset, 128);
    assert_eq!(a.steps().get(0).unwrap().op, "embed_tokens");
    assert_eq!(a.buffers().get(0).unwrap().last_step, 7);
    assert_eq!(a.state_buffers().get(0).unwrap().name, "layers.0.kv");
    assert_eq!(a.tensors().get(0), Some(tensor()));
    assert_eq!(a.extents().len(), 2);
    assert_eq!(a.components().get(0).unwrap().bytes, 512);
    assert_eq!(a.target().unwrap().digest, [9; 32]);
    assert_eq!(a.code(), (0..=255).collect::<Vec<u8>>());
    assert_eq!(a.tokenizer().unwrap(), br#"{"version": "1.0"}"#);
    assert_eq!(a.weights().len() as u64, WEIGHTS);
    assert_eq!(a.weights()[..100], [1; 100]);
    assert_eq!(a.weights()[4096..4608], [2; 512]);
    assert_eq!(a.code_range().start % SECTION_ALIGN, 0);
    assert_eq!(a.weights_range().end, a.file_bytes());
}

#[test]
fn the_same_calls_give_the_same_bytes() {
    assert_eq!(artifact(), artifact());
}

#[test]
#[cfg_attr(miri, ignore = "Miri cannot sync a folder")]
fn a_file_is_replaced_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.lapis");
    fs::write(&path, "the old file").unwrap();

    let broken = builder().write_file(&path, |_| Err(io::Error::other("source of the weights")));
    assert!(matches!(broken, Err(WriteError::Io { .. })), "{broken:?}");
    assert_eq!(fs::read(&path).unwrap(), b"the old file");

    let written = builder().write_file(&path, weights).unwrap();
    assert_eq!(fs::read(&path).unwrap(), artifact());
    assert_eq!(written, artifact().len() as u64);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_ne!(mode & 0o400, 0);
}

#[test]
fn weights_must_be_as_many_as_planned() {
    let few = builder().to_vec(|out| out.write_all(&[0; 10]));
    let text = few.unwrap_err().to_string();
    assert!(text.contains("wanted 12388 bytes (the plan), found 10"), "{text}");
    let many = builder().to_vec(|out| out.write_all(&[0; 20_000]));
    let text = many.unwrap_err().to_string();
    assert!(text.contains("wanted at most 12388 bytes"), "{text}");
    let behind = builder().to_vec(|out| {
        out.write_all(&[0; 10])?;
        out.pad_to(5)
    });
    assert!(behind.is_err());
}

fn refused(change: impl FnOnce(&mut ArtifactBuilder)) -> FormatError {
    let mut b = builder();
    change(&mut b);
    match b.to_vec(weights) {
        Err(WriteError::Format(error)) => error,
        other => panic!("wanted a format error, got {other:?}"),
    }
}

#[test]
fn the_builder_refuses_what_a_reader_would() {
    let error = refused(|b| {
        b.push(Entry { name: "decode", offset: 1 });
    });
    assert_eq!(error.fault, Fault::Duplicate { what: "Entry.name" });
    let error = refused(|b| {
        b.push(Entry { name: "other", offset: 256 });
    });
    assert!(matches!(error.fault, Fault::AtMost { what: "Entry.offset", wanted: 256, found: 257 }));
    let error = refused(|b| {
        b.push(Port { row_stride_bytes: 396, ..logits() });
    });
    assert!(matches!(error.fault, Fault::AtMost { what: "bytes of a row", .. }));
    let error = refused(|b| {
        b.push(Port { offset: 8192 - 400 - 3 * 448 + 4, ..logits() });
    });
    assert!(matches!(error.fault, Fault::AtMost { what: "Port", wanted: 8192, found: 8196 }));
    let error = refused(|b| {
        b.push(Tensor { offset: 32, ..tensor() });
    });
    assert!(matches!(error.fault, Fault::Value { what: "Tensor.offset", .. }));
    let error = refused(|b| {
        b.push(Extent { layer: 0, module: 1, offset: 4096, bytes: 1 });
    });
    assert!(matches!(error.fault, Fault::Overlap { .. }));
    let error = refused(|b| {
        b.push(Extent { layer: 2, module: 1, offset: 8192, bytes: 1 });
    });
    assert!(matches!(error.fault, Fault::AtMost { what: "Extent.layer", wanted: 1, found: 2 }));
    let error = refused(|b| {
        b.push(plan());
    });
    assert!(matches!(error.fault, Fault::Exactly { what: "number of records", .. }));
}

#[test]
fn the_manifest_must_agree_with_itself() {
    let parse = |manifest: Manifest<'_>| {
        let mut b = ArtifactBuilder::new(manifest, Plan::default());
        b.set_code(vec![0; 8]);
        b.push(Entry { name: ENTRY_PREFILL, offset: 0 });
        b.to_vec(|_| Ok(())).map_err(|error| error.to_string())
    };
    let good = Manifest { cannot_decode: "it classifies", ..Manifest::default() };
    parse(good).unwrap();
    let says = |manifest, text: &str| {
        let error = parse(manifest).unwrap_err();
        assert!(error.contains(text), "{error}");
    };
    says(Manifest { cannot_decode: "", ..good }, "a reason exactly when");
    says(Manifest { flags: ManifestFlags::CAN_DECODE, cannot_decode: "", ..good }, "entry `decode`");
    says(Manifest { head: Head::Embedding, ..good }, "WHOLE_SEQUENCE");
    says(Manifest { max_chunk_tokens: 2, ..good }, "max_chunk_tokens, wanted at most 1, found 2");
    says(Manifest { vocab_size: 0, ..good }, "vocab_size, wanted at least 1, found 0");
    says(Manifest { end_token: 1, ..good }, "end_token, wanted at most 0, found 1");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 64 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_manifest_and_steps_come_back(
        model in ".{0,40}",
        config in "(?s).{0,400}",
        digest in any::<[u8; 32]>(),
        vocab in 1u32..,
        counts in any::<[u32; 4]>(),
        estimates in any::<[u64; 3]>(),
        names in prop::collection::vec(".{0,12}", 0..40),
    ) {
        let manifest = Manifest {
            model: &model,
            source_config: &config,
            source_digest: digest,
            cannot_decode: "no reason",
            vocab_size: vocab,
            hidden_size: counts[0],
            num_layers: counts[1],
            num_clusters: counts[2],
            num_labels: counts[3],
            bytes_touched_per_token: estimates[0],
            macs_per_token: estimates[1],
            parameters: estimates[2],
            ..Manifest::default()
        };
        let mut b = ArtifactBuilder::new(manifest, Plan::default());
        b.set_code(vec![0; 64]);
        b.push(Entry { name: ENTRY_PREFILL, offset: 3 });
        for (index, name) in names.iter().enumerate() {
            b.push(Step { name, op: &model, offset: index as u64, bytes: 1, entry: 0 });
        }
        let bytes = b.to_vec(|_| Ok(())).unwrap();
        let artifact = Artifact::parse(&bytes).unwrap();
        artifact.check().unwrap();
        prop_assert_eq!(*artifact.manifest(), manifest);
        let read: Vec<_> = artifact.steps().iter().map(|s| s.name).collect();
        prop_assert_eq!(read, names);
    }
}

/// `Name (section, table N; … B bytes` stands in FORMAT.md.
fn is_documented<'a, R: Record<'a>>() -> bool {
    let text = include_str!("../../../FORMAT.md");
    let begin = format!("{} ({}, table {}; ", R::NAME, R::SECTION, R::TABLE);
    text.split(&begin)
        .nth(1)
        .and_then(|rest| rest.split(')').next())
        .is_some_and(|sizes| sizes.contains(&format!("{} bytes", R::BYTES)))
}

#[test]
fn the_documentation_knows_every_table_and_its_size() {
    assert!(is_documented::<Manifest<'_>>());
    assert!(is_documented::<DomainName<'_>>());
    assert!(is_documented::<Feature<'_>>());
    assert!(is_documented::<Entry<'_>>());
    assert!(is_documented::<Step<'_>>());
    assert!(is_documented::<Kernel<'_>>());
    assert!(is_documented::<Plan>());
    assert!(is_documented::<Port<'_>>());
    assert!(is_documented::<Buffer<'_>>());
    assert!(is_documented::<StateBuffer<'_>>());
    assert!(is_documented::<Tensor<'_>>());
    assert!(is_documented::<Extent>());
    assert!(is_documented::<Component<'_>>());
    assert!(is_documented::<Target<'_>>());
}
