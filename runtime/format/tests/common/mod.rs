//! A small artifact, and the means to damage one.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::Write;

use lapidary_format::*;

pub const WEIGHTS: u64 = 3 * 4096 + 100;

/// Reads every table of an artifact to the end and uses each range, as a runtime would.
pub fn exercise(artifact: &Artifact<'_>) {
    let manifest = artifact.manifest();
    assert!(manifest.max_output_rows <= manifest.max_chunk_tokens);
    for port in artifact.ports() {
        if port.region == Region::Arena {
            assert!(port.offset < artifact.plan().arena_bytes);
        }
    }
    for entry in artifact.entries() {
        assert!((entry.offset as usize) < artifact.code().len());
    }
    for step in artifact.steps() {
        let begin = step.offset as usize;
        assert!(artifact.code().get(begin..begin + step.bytes as usize).is_some());
        assert!(artifact.entries().get(step.entry as usize).is_some());
    }
    for tensor in artifact.tensors() {
        let begin = tensor.offset as usize;
        assert!(artifact.weights().get(begin..begin + tensor.bytes as usize).is_some());
    }
    for extent in artifact.extents() {
        let begin = extent.offset as usize;
        assert!(artifact.weights().get(begin..begin + extent.bytes as usize).is_some());
    }
    for buffer in artifact.buffers() {
        assert!(buffer.offset + buffer.bytes <= artifact.plan().arena_bytes);
    }
    for state in artifact.state_buffers() {
        assert!(state.offset + state.bytes <= artifact.plan().state_bytes);
    }
    let names = artifact.kernels().iter().map(|k| k.name.len()).sum::<usize>()
        + artifact.features().iter().map(|f| f.name.len()).sum::<usize>()
        + artifact.domain_names().iter().map(|d| d.name.len()).sum::<usize>()
        + artifact.components().iter().map(|c| c.name.len()).sum::<usize>()
        + artifact.target().map_or(0, |t| t.description.len());
    assert!(names < 1 << 30);
}

pub fn manifest() -> Manifest<'static> {
    Manifest {
        model: "gem-test",
        source_config: r#"{"model_type": "gem"}"#,
        source_digest: [7; 32],
        flags: ManifestFlags::IS_CAUSAL | ManifestFlags::CAN_DECODE,
        vocab_size: 100,
        hidden_size: 16,
        num_layers: 2,
        num_clusters: 4,
        num_domains: 2,
        max_tokens: 64,
        max_chunk_tokens: 8,
        max_output_rows: 4,
        end_token: 99,
        bytes_touched_per_token: 123_456,
        macs_per_token: 654_321,
        parameters: 1_000_000,
        ..Manifest::default()
    }
}

pub fn plan() -> Plan {
    Plan { arena_bytes: 8192, state_bytes: 4096, weights_bytes: WEIGHTS, stack_bytes: 40_960 }
}

pub fn logits() -> Port<'static> {
    Port {
        name: "logits",
        direction: Direction::Output,
        dtype: Dtype::F32,
        rows: Rows::OutputRows,
        region: Region::Arena,
        columns: 100,
        offset: 1024,
        row_stride_bytes: 448,
    }
}

pub fn tensor() -> Tensor<'static> {
    Tensor {
        name: "model.layers.0.modules.0.up_proj.weight",
        component: "modules",
        dtype: Dtype::F32,
        packing: Packing::Panels,
        panel_width: 8,
        group: 0,
        rows: 8,
        cols: 16,
        offset: 4096,
        bytes: 512,
    }
}

pub fn builder() -> ArtifactBuilder {
    let mut b = ArtifactBuilder::new(manifest(), plan());
    b.push(DomainName { name: "prose" });
    b.push(DomainName { name: "größe" });
    b.push(Feature { name: "sse2" });
    b.set_code((0..=255).collect());
    b.push(Entry { name: "prefill", offset: 0 });
    b.push(Entry { name: "decode", offset: 128 });
    b.push(Step { name: "prefill.0.embed", op: "embed_tokens", offset: 16, bytes: 32, entry: 0 });
    assert_eq!(b.kernel("gemm_f32_8x8_avx2"), 0);
    assert_eq!(b.kernel("rms_norm"), 1);
    assert_eq!(b.kernel("gemm_f32_8x8_avx2"), 0);
    b.push(Port {
        name: "ids",
        direction: Direction::Input,
        dtype: Dtype::U32,
        rows: Rows::Tokens,
        region: Region::Ids,
        columns: 1,
        offset: 0,
        row_stride_bytes: 4,
    });
    b.push(logits());
    b.push(Buffer { name: "x", offset: 0, bytes: 512, first_step: 0, last_step: 7 });
    b.push(StateBuffer { name: "layers.0.kv", offset: 64, bytes: 1024 });
    b.push(tensor());
    b.push(Extent { layer: NO_INDEX, module: NO_INDEX, offset: 0, bytes: 100 });
    b.push(Extent { layer: 0, module: 0, offset: 4096, bytes: 512 });
    b.push(Component { name: "modules", quantization: "fp32", parameters: 128, bytes: 512 });
    b.push(Target { name: "x86-64-v3", description: "isa = \"x86-64\"", digest: [9; 32] });
    b.set_tokenizer(br#"{"version": "1.0"}"#.to_vec());
    b
}

pub fn weights(out: &mut WeightsWriter<'_>) -> std::io::Result<()> {
    out.write_all(&[1; 100])?;
    out.pad_to(4096)?;
    assert_eq!(out.position(), 4096);
    out.write_all(&[2; 512])?;
    out.pad_to(WEIGHTS)
}

pub fn artifact() -> Vec<u8> {
    builder().to_vec(weights).unwrap()
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Where row `index` of the section table lies.
pub fn row(index: usize) -> usize {
    64 + 32 * index
}

/// Row, offset and length of a section, read as FORMAT.md says.
pub fn section(bytes: &[u8], kind: SectionKind) -> (usize, usize, usize) {
    let count = u32_at(bytes, 12) as usize;
    let row = (0..count).map(row).find(|row| u32_at(bytes, *row) == kind as u32).unwrap();
    let (offset, len) = (u64_at(bytes, row + 8), u64_at(bytes, row + 16));
    (row, offset as usize, len as usize)
}

/// Makes all checksums right again, so that damage reaches the checks behind them.
pub fn reseal(bytes: &mut [u8]) {
    let count = (u32_at(bytes, 12) as usize).min(64);
    for row in (0..count).map(row) {
        let (Ok(begin), Ok(len)) = (usize::try_from(u64_at(bytes, row + 8)), usize::try_from(u64_at(bytes, row + 16)))
        else {
            continue;
        };
        if let Some(contents) = bytes.get(begin..).and_then(|rest| rest.get(..len)) {
            let crc = crc32fast::hash(contents);
            put(bytes, row + 24, &crc.to_le_bytes());
        }
    }
    reseal_header(bytes);
}

/// Makes the checksums of header and section table right again.
pub fn reseal_header(bytes: &mut [u8]) {
    let count = (u32_at(bytes, 12) as usize).min(64);
    if let Some(table) = bytes.get(64..64 + 32 * count) {
        let crc = crc32fast::hash(table);
        put(bytes, 24, &crc.to_le_bytes());
    }
    let crc = crc32fast::hash(&bytes[..60]);
    put(bytes, 60, &crc.to_le_bytes());
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
