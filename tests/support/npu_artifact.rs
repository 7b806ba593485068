//! An artifact for an NPU by hand: the smallest model that follows the host's protocol. Its logits are the row of the last tokens in
//! a table, so every token says which comes next.

use std::io::Write;

use lapidary_format::abi::NPU_PROTOCOL_VERSION;
use lapidary_format::{
    ArtifactBuilder, Component, Direction, Dtype, Entry, Isa, Manifest, ManifestFlags, NO_INDEX, Plan, Port, Region,
    Rows, Step, Target,
};
use lapidary_npu_isa::Program;
use lapidary_npu_isa::asm::assemble;
use sha2::{Digest, Sha256};

/// Tokens.
pub const VOCAB: u32 = 8;
/// Longest sequence.
pub const MAX_TOKENS: u32 = 16;
/// Most tokens of a call.
pub const CHUNK: u32 = 4;

/// Both programs: one that takes up to four tokens also takes one.
const PROGRAM: &str = r#"
.space weights, 256                     ; f32 [8, 8]
.space call, 16
.space ids, 16
.space out.logits, 128                  ; f32 [4, 8]
.space state, 64
.op "embed"
    li r1, call
    load sp[0], dram[r1], row_bytes=16 post(t1)
    sync sequencer wait(t1)
    li r2, 0
    lds r3, sp[r2], max=4               ; T
    li r2, 4
    lds r4, sp[r2], max=4               ; S
    li r5, ids
    load sp[64], dram[r5], row_bytes=16 post(t1)
    sync sequencer wait(t1)
.op "layers.0.table"
    sub r6, r3, r4                      ; the last S ids
    max r6, r6, 0
    min r6, r6, 3
    mul r6, r6, 4
    add r6, r6, 64
    li r7, weights
    li r8, 8
    load.rows sp[256], dram[r7], sp[r6], bound=r8, row_bytes=32, rows=r4 post(t2)
.op "logits"
    li r9, out.logits
    store dram[r9], sp[256], row_bytes=32, rows=r4 wait(t2)
    halt
"#;

/// The program.
pub fn program() -> Program {
    assemble(PROGRAM).expect("a good program")
}

/// After token t comes (3t + 1) mod 8.
pub fn next(token: u32) -> u32 {
    (3 * token + 1) % VOCAB
}

/// A table of logits with the highest where the next token is.
fn weights() -> Vec<u8> {
    let logit = |(token, column): (u32, u32)| if column == next(token) { 2.0f32 } else { column as f32 / 16.0 };
    let places = (0..VOCAB).flat_map(|token| (0..VOCAB).map(move |column| (token, column)));
    places.flat_map(|place| logit(place).to_le_bytes()).collect()
}

/// The artifact, for edge-16.
pub fn artifact() -> Vec<u8> {
    let machine = include_str!("../../targets/npu-isa/machines/edge-16.toml");
    let manifest = Manifest {
        model: "table",
        abi_version: NPU_PROTOCOL_VERSION,
        isa: Isa::Npu,
        flags: ManifestFlags::IS_CAUSAL | ManifestFlags::CAN_DECODE,
        vocab_size: VOCAB,
        num_layers: 2,
        num_clusters: 4,
        max_tokens: MAX_TOKENS,
        max_chunk_tokens: CHUNK,
        max_output_rows: CHUNK,
        end_token: NO_INDEX,
        ..Manifest::default()
    };
    let plan = Plan { weights_bytes: 256, state_bytes: 64, ..Plan::default() };
    let mut builder = ArtifactBuilder::new(manifest, plan);
    let program = program().to_bytes().expect("a good program");
    let decode = program.len().next_multiple_of(16);
    builder.push(Entry { name: "prefill", offset: 0 });
    builder.push(Entry { name: "decode", offset: decode as u64 });
    builder.push(Step { name: "prefill/0", op: "embed", offset: 80, bytes: 160, entry: 0 });
    let mut code = program.clone();
    code.resize(decode, 0);
    code.extend(program);
    builder.set_code(code);
    builder.push(Port {
        name: "ids",
        direction: Direction::Input,
        dtype: Dtype::U32,
        rows: Rows::Tokens,
        region: Region::Ids,
        columns: 1,
        offset: 0,
        row_stride_bytes: 4,
    });
    builder.push(Port {
        name: "logits",
        direction: Direction::Output,
        dtype: Dtype::F32,
        rows: Rows::OutputRows,
        region: Region::Segment,
        columns: VOCAB.into(),
        offset: 0,
        row_stride_bytes: 32,
    });
    builder.push(Component { name: "head", quantization: "fp32", parameters: 64, bytes: 256 });
    let digest = Sha256::digest(machine.as_bytes()).into();
    builder.push(Target { name: "npu:edge-16", description: machine, digest });
    builder.to_vec(|out| out.write_all(&weights())).expect("a good artifact")
}
