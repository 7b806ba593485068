//! No bytes make the reader panic, read past the end, or accept what does not hold together.

mod common;

use common::*;
use lapidary_format::*;
use proptest::prelude::*;

const TABLES: [SectionKind; 6] = [
    SectionKind::Manifest,
    SectionKind::CodeMap,
    SectionKind::Kernels,
    SectionKind::Plan,
    SectionKind::WeightTable,
    SectionKind::Target,
];

/// Of so many cases, how many are tried: Miri, which sees each access, runs some thousand times slower.
const fn some_of(cases: usize) -> usize {
    if cfg!(miri) { cases.div_ceil(800) } else { cases }
}

fn parse_and_check(bytes: &[u8]) -> Result<(), FormatError> {
    let artifact = Artifact::parse(bytes)?;
    exercise(&artifact);
    artifact.check()
}

#[test]
fn every_prefix_is_an_error() {
    let bytes = artifact();
    for len in (0..bytes.len()).step_by(if cfg!(miri) { 29_989 } else { 1 }) {
        assert!(parse_and_check(&bytes[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn every_prefix_that_claims_to_be_whole_is_an_error() {
    let bytes = artifact();
    let mut random = Random(1);
    let ends = (64..4096).take(some_of(4032)).chain((0..some_of(3000)).map(|_| 64 + random.below(bytes.len() - 64)));
    for len in ends.chain([bytes.len() - 1]) {
        let mut cut = bytes[..len].to_vec();
        put(&mut cut, 16, &(len as u64).to_le_bytes());
        reseal_header(&mut cut);
        assert!(parse_and_check(&cut).is_err(), "{len} bytes");
    }
}

#[test]
fn every_changed_byte_is_found() {
    let bytes = artifact();
    let mut random = Random(2);
    let mut used = Vec::new();
    for kind in SectionKind::ALL {
        let (_, begin, len) = section(&bytes, *kind);
        used.push((begin, len));
    }
    used.push((0, 64 + 32 * used.len()));
    for round in 0..some_of(4000) {
        let mut damaged = bytes.clone();
        for _ in 0..1 + round % 3 {
            let at = if round % 4 == 0 {
                random.below(bytes.len())
            } else {
                let (begin, len) = used[random.below(used.len())];
                begin + random.below(len)
            };
            damaged[at] = random.next() as u8;
        }
        let result = parse_and_check(&damaged);
        assert_eq!(result.is_ok(), damaged == bytes, "round {round}: {result:?}");
    }
}

#[test]
fn damage_behind_right_checksums_never_panics() {
    let bytes = artifact();
    let values = [0, 1, 7, 8, 255, 4096, 1 << 16, 1 << 31, u32::MAX - 1, u32::MAX];
    let mut accepted = 0;
    let mut words = Vec::new();
    for kind in TABLES {
        let (_, begin, len) = section(&bytes, kind);
        words.extend((begin..begin + len / 4 * 4).step_by(4));
    }
    words.extend((8..64 + 32 * 9).step_by(4));
    for at in words.into_iter().step_by(if cfg!(miri) { 257 } else { 1 }) {
        for value in values {
            let mut damaged = bytes.clone();
            put(&mut damaged, at, &value.to_le_bytes());
            reseal(&mut damaged);
            accepted += usize::from(parse_and_check(&damaged).is_ok());
        }
    }
    assert!(accepted > 0);
}

#[test]
fn random_damage_behind_right_checksums_never_panics() {
    let bytes = artifact();
    let mut random = Random(3);
    for _ in 0..some_of(4000) {
        let mut damaged = bytes.clone();
        for _ in 0..1 + random.below(4) {
            let (_, begin, len) = section(&bytes, TABLES[random.below(TABLES.len())]);
            let at = begin + random.below(len);
            damaged[at] = random.next() as u8;
        }
        reseal(&mut damaged);
        let _ = parse_and_check(&damaged);
    }
}

fn damaged(change: impl FnOnce(&mut Vec<u8>)) -> FormatError {
    let mut bytes = artifact();
    change(&mut bytes);
    reseal(&mut bytes);
    parse_and_check(&bytes).unwrap_err()
}

#[test]
fn errors_name_place_offset_wanted_and_found() {
    let error = damaged(|b| b[0] = b'x');
    assert!(error.to_string().starts_with("header, byte 0x0: magic, wanted \"\\x89LAPIS\\r\\n\""));
    let error = damaged(|b| b[8] = 2);
    assert_eq!(error.fault, Fault::Version { major: 2, minor: MINOR });
    let error = damaged(|b| b[40] = 1);
    assert_eq!((error.place, error.offset), (Place::Header, 40));
    let error = damaged(|b| b.push(0));
    assert!(error.to_string().contains("length of the file"), "{error}");
    let error = damaged(|b| put(b, row(1), &1_u32.to_le_bytes()));
    assert_eq!(error.fault, Fault::Duplicate { what: "manifest" });
    let error = damaged(|b| put(b, row(1), &77_u32.to_le_bytes()));
    assert_eq!(error.fault, Fault::UnknownSection { kind: 77 });
    let error = damaged(|b| put(b, row(1) + 4, &2_u32.to_le_bytes()));
    assert!(matches!(error.fault, Fault::Value { what: "flags of the section", .. }));
    let error = damaged(|b| put(b, row(1) + 28, &2_u32.to_le_bytes()));
    assert!(matches!(error.fault, Fault::Exactly { what: "reserved field", .. }));
    let error = damaged(|b| put(b, row(2) + 8, &65536_u64.to_le_bytes()));
    assert!(matches!(error.fault, Fault::Overlap { found: 65536, .. }), "{error}");
    let error = damaged(|b| put(b, row(1) + 8, &70000_u64.to_le_bytes()));
    assert!(matches!(error.fault, Fault::Value { wanted: "a multiple of 65536", .. }));
    let error = damaged(|b| put(b, row(8) + 16, &u64::MAX.to_le_bytes()));
    assert!(matches!(error.fault, Fault::AtMost { what: "end of the section", .. }));
    let error = damaged(|b| put(b, 12, &u32::MAX.to_le_bytes()[..]));
    assert!(matches!(error.fault, Fault::AtMost { what: "number of sections", .. }));
    let error = damaged(|b| b[5000] = 1);
    assert_eq!((error.place, error.offset), (Place::Padding, 5000));
}

#[test]
fn an_unknown_section_that_is_not_critical_is_ignored() {
    let mut bytes = artifact();
    let (tokenizer, ..) = section(&bytes, SectionKind::Tokenizer);
    put(&mut bytes, tokenizer, &1000_u32.to_le_bytes());
    put(&mut bytes, tokenizer + 4, &0_u32.to_le_bytes());
    reseal(&mut bytes);
    let artifact = Artifact::parse(&bytes).unwrap();
    assert_eq!(artifact.tokenizer(), None);
    artifact.check().unwrap();
}

/// Appends a field of 8 bytes to the one record of the plan, as a newer minor version may.
fn with_longer_plan(minor: u8) -> Vec<u8> {
    let mut bytes = artifact();
    bytes[10] = minor;
    let (row, begin, len) = section(&bytes, SectionKind::Plan);
    let old = bytes[begin..begin + len].to_vec();
    let tables = u32_at(&old, 0) as usize;
    let first = u32_at(&old, 16) as usize;
    let mut new = old.clone();
    new.splice(first + 32..first + 32, [0xaa; 8]);
    put(&mut new, 4, &(u32_at(&old, 4) + 8).to_le_bytes());
    put(&mut new, 16 + 8, &40_u32.to_le_bytes());
    for table in 1..tables {
        let at = 16 + 16 * table;
        put(&mut new, at, &(u32_at(&old, at) + 8).to_le_bytes());
    }
    put(&mut bytes, begin, &new);
    put(&mut bytes, row + 16, &(new.len() as u64).to_le_bytes());
    reseal(&mut bytes);
    bytes
}

#[test]
fn a_newer_minor_version_may_append_fields() {
    let bytes = with_longer_plan(MINOR as u8 + 1);
    let artifact = Artifact::parse(&bytes).unwrap();
    assert_eq!(*artifact.plan(), plan());
    assert_eq!(artifact.ports().iter().nth(1), Some(logits()));
    let error = Artifact::parse(&with_longer_plan(MINOR as u8)).unwrap_err();
    assert!(matches!(error.fault, Fault::Exactly { what: "bytes of a record", wanted: 32, found: 40 }));
}

#[test]
fn a_stack_that_no_thread_has_is_an_error() {
    let with_stack = |stack_bytes: u64| {
        let mut bytes = artifact();
        let (_, begin, _) = section(&bytes, SectionKind::Plan);
        let plan = begin + u32_at(&bytes, begin + 16) as usize;
        put(&mut bytes, plan + 24, &stack_bytes.to_le_bytes());
        reseal(&mut bytes);
        Artifact::parse(&bytes).map(|artifact| artifact.plan().stack_bytes)
    };
    assert_eq!(with_stack(MAX_STACK_BYTES), Ok(MAX_STACK_BYTES));
    let error = with_stack(MAX_STACK_BYTES + 1).unwrap_err();
    assert!(matches!(error.fault, Fault::AtMost { what: "stack_bytes", .. }), "{error}");
}

#[test]
fn loading_does_not_read_the_weights_and_check_does() {
    let mut bytes = artifact();
    let (_, begin, _) = section(&bytes, SectionKind::Weights);
    bytes[begin + 200] ^= 1;
    let artifact = Artifact::parse(&bytes).unwrap();
    let error = artifact.check().unwrap_err();
    assert_eq!(error.place, Place::Section(SectionKind::Weights));
    assert!(matches!(error.fault, Fault::Checksum { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: some_of(256) as u32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_an_error(tail in prop::collection::vec(any::<u8>(), 0..2000), sections in 0u32..70) {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0, 0, 0]);
        bytes.extend(sections.to_le_bytes());
        bytes.extend(tail);
        prop_assert!(Artifact::parse(&bytes).is_err());
        if bytes.len() >= 64 {
            let len = bytes.len() as u64;
            put(&mut bytes, 16, &len.to_le_bytes());
            put(&mut bytes, 28, &[0; 32]);
            reseal_header(&mut bytes);
            prop_assert!(Artifact::parse(&bytes).is_err());
        }
    }

    #[test]
    fn arbitrary_tables_never_panic(kind in 0usize..6, contents in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = artifact();
        let (row, begin, len) = section(&bytes, TABLES[kind]);
        bytes[begin..begin + len.max(contents.len())].fill(0);
        put(&mut bytes, begin, &contents);
        put(&mut bytes, row + 16, &(contents.len() as u64).to_le_bytes());
        reseal(&mut bytes);
        prop_assert!(Artifact::parse(&bytes).is_err());
    }
}

#[test]
fn ports_lie_where_their_machine_has_them() {
    let with = |isa: Isa, region: Region, offset: u64| {
        let manifest = Manifest { isa, cannot_decode: "a test", ..Manifest::default() };
        let mut builder = ArtifactBuilder::new(manifest, Plan { arena_bytes: 4096, ..Plan::default() });
        builder.set_code(vec![0; 16]);
        builder.push(Entry { name: "prefill", offset: 0 });
        builder.push(Port {
            name: "logits",
            direction: Direction::Output,
            dtype: Dtype::F32,
            rows: Rows::OutputRows,
            region,
            columns: 4,
            offset,
            row_stride_bytes: 16,
        });
        builder.to_vec(|_| Ok(())).map(|bytes| Artifact::parse(&bytes).map(|_| ()))
    };
    assert!(matches!(with(Isa::Npu, Region::Segment, 0), Ok(Ok(()))));
    assert!(matches!(with(Isa::X86_64, Region::Arena, 64), Ok(Ok(()))));
    for (isa, region, offset) in
        [(Isa::Npu, Region::Arena, 0), (Isa::Aarch64, Region::Segment, 0), (Isa::Npu, Region::Segment, 16)]
    {
        let error = with(isa, region, offset).unwrap_err().to_string();
        assert!(error.contains("Port."), "{error}");
    }
}
