//! A model in a few lines of assembly: it echoes its tokens, counts them in its state, and its logits are 1 at the
//! successor of each token.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    arch::global_asm,
    io::Write,
    path::{Path, PathBuf},
};

use lapidary_format::*;

pub const VOCAB: u32 = 257;
pub const MAX_TOKENS: u32 = 200;
pub const MAX_CHUNK: u32 = 8;
pub const MAX_ROWS: u32 = 4;
pub const ARENA: u64 = 8192;
pub const STATE: u64 = 64;

#[cfg(target_arch = "x86_64")]
global_asm!(
    "toy_begin:",
    "toy_prefill:",
    // state[0] = first_position == 0 ? tokens : state[0] + tokens
    "mov rax, [rdi + 16]",
    "mov rcx, [rdi + 40]",
    "cmp qword ptr [rdi + 48], 0",
    "jne 2f",
    "mov qword ptr [rax], 0",
    "2: add [rax], rcx",
    "mov rax, [rax]",
    "mov rdx, [rdi + 8]",
    "mov [rdx + 512], eax",
    // counters[0] += tokens
    "mov rax, [rdi + 72]",
    "add [rax], rcx",
    // parallel_for(ctx, step, tokens)
    "lea rsi, [rip + toy_step]",
    "mov rdx, rcx",
    "jmp qword ptr [rdi + 32]",
    "toy_decode_with_kernel:",
    "push rdi",
    "mov rax, [rdi + 24]",
    "call qword ptr [rax]",
    "pop rdi",
    "jmp toy_prefill",
    "toy_step:",
    "mov r8, [rdi + 8]",
    "mov r9, [rdi + 64]",
    "mov r10, [rdi + 40]",
    "sub r10, [rdi + 56]",
    "2: cmp rsi, rdx",
    "jae 6f",
    "mov eax, [r9 + rsi*4]",
    "mov [r8 + rsi*4], eax",
    "mov r11, rsi",
    "sub r11, r10",
    "jb 5f",
    "imul r11, r11, 1088",
    "lea r11, [r8 + r11 + 1024]",
    "xor ecx, ecx",
    "3: mov dword ptr [r11 + rcx*4], 0",
    "inc ecx",
    "cmp ecx, 257",
    "jb 3b",
    "inc eax",
    "cmp eax, 257",
    "jb 4f",
    "xor eax, eax",
    "4: mov dword ptr [r11 + rax*4], 0x3f800000",
    "5: inc rsi",
    "jmp 2b",
    "6: ret",
    "toy_end:",
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    "toy_begin:",
    "toy_prefill:",
    "ldr x3, [x0, #16]",
    "ldr x2, [x0, #40]",
    "ldr x4, [x0, #48]",
    "ldr x5, [x3]",
    "cmp x4, #0",
    "csel x5, xzr, x5, eq",
    "add x5, x5, x2",
    "str x5, [x3]",
    "ldr x4, [x0, #8]",
    "str w5, [x4, #512]",
    "ldr x3, [x0, #72]",
    "ldr x4, [x3]",
    "add x4, x4, x2",
    "str x4, [x3]",
    "adr x1, toy_step",
    "ldr x16, [x0, #32]",
    "br x16",
    "toy_decode_with_kernel:",
    "stp x29, x30, [sp, #-32]!",
    "str x0, [sp, #16]",
    "ldr x1, [x0, #24]",
    "ldr x1, [x1]",
    "blr x1",
    "ldr x0, [sp, #16]",
    "ldp x29, x30, [sp], #32",
    "b toy_prefill",
    "toy_step:",
    "ldr x3, [x0, #8]",
    "ldr x4, [x0, #64]",
    "ldr x5, [x0, #40]",
    "ldr x6, [x0, #56]",
    "sub x5, x5, x6",
    "mov x10, #1088",
    "2: cmp x1, x2",
    "b.hs 6f",
    "ldr w7, [x4, x1, lsl #2]",
    "str w7, [x3, x1, lsl #2]",
    "subs x8, x1, x5",
    "b.lo 5f",
    "madd x8, x8, x10, x3",
    "add x8, x8, #1024",
    "mov x9, #0",
    "3: str wzr, [x8, x9, lsl #2]",
    "add x9, x9, #1",
    "cmp x9, #257",
    "b.lo 3b",
    "add w7, w7, #1",
    "cmp w7, #257",
    "csel w7, w7, wzr, lo",
    "mov w9, #0x3f800000",
    "str w9, [x8, x7, lsl #2]",
    "5: add x1, x1, #1",
    "b 2b",
    "6: ret",
    "toy_end:",
);

unsafe extern "C" {
    static toy_begin: u8;
    static toy_prefill: u8;
    static toy_decode_with_kernel: u8;
    static toy_end: u8;
}

pub fn code() -> Vec<u8> {
    let (begin, end) = (&raw const toy_begin, &raw const toy_end);
    // SAFETY: the bytes between two labels of one assembly block.
    unsafe { std::slice::from_raw_parts(begin, end.addr() - begin.addr()) }.to_vec()
}

pub fn decode_with_kernel_offset() -> u64 {
    ((&raw const toy_decode_with_kernel).addr() - (&raw const toy_prefill).addr()) as u64
}

pub const THIS_ISA: Isa = if cfg!(target_arch = "aarch64") { Isa::Aarch64 } else { Isa::X86_64 };

pub const OTHER_ISA: Isa = if cfg!(target_arch = "aarch64") { Isa::X86_64 } else { Isa::Aarch64 };

pub fn manifest() -> Manifest<'static> {
    Manifest {
        model: "toy",
        isa: THIS_ISA,
        flags: ManifestFlags::IS_CAUSAL | ManifestFlags::CAN_DECODE,
        vocab_size: VOCAB,
        hidden_size: 1,
        max_tokens: MAX_TOKENS,
        max_chunk_tokens: MAX_CHUNK,
        max_output_rows: MAX_ROWS,
        ..Manifest::default()
    }
}

/// A manifest for a model that looks at its whole input at once.
pub fn whole_sequence() -> Manifest<'static> {
    Manifest {
        flags: ManifestFlags::WHOLE_SEQUENCE,
        cannot_decode: "scar.policy expert_choice looks across tokens",
        ..manifest()
    }
}

pub fn port(name: &'static str, dtype: Dtype, rows: Rows, columns: u64) -> Port<'static> {
    Port {
        name,
        direction: Direction::Output,
        dtype,
        rows,
        region: Region::Arena,
        columns,
        offset: 0,
        row_stride_bytes: 4 * columns,
    }
}

pub fn builder(manifest: Manifest<'_>) -> ArtifactBuilder {
    let plan = Plan { arena_bytes: ARENA, state_bytes: STATE, weights_bytes: 64, stack_bytes: 4096 };
    let mut b = ArtifactBuilder::new(manifest, plan);
    b.set_code(code());
    b.push(Entry { name: ENTRY_PREFILL, offset: 0 });
    b.push(Port {
        name: "ids",
        direction: Direction::Input,
        region: Region::Ids,
        ..port("ids", Dtype::U32, Rows::Tokens, 1)
    });
    b.push(Port {
        offset: 1024,
        row_stride_bytes: 1088,
        ..port("logits", Dtype::F32, Rows::OutputRows, u64::from(VOCAB))
    });
    b.push(port("echo", Dtype::U32, Rows::Tokens, 1));
    b.push(Port { offset: 512, ..port("seen", Dtype::U32, Rows::One, 1) });
    b
}

/// A toy whose decode entry is its prefill entry.
pub fn toy(manifest: Manifest<'_>) -> ArtifactBuilder {
    let mut b = builder(manifest);
    b.push(Entry { name: ENTRY_DECODE, offset: 0 });
    b
}

pub fn bytes(builder: &ArtifactBuilder) -> AlignedBytes {
    AlignedBytes::new(&builder.to_vec(|w| w.write_all(&[3; 64])).unwrap())
}

/// Writes an artifact to a file in `folder`.
pub fn file(folder: &Path, builder: &ArtifactBuilder) -> PathBuf {
    let path = folder.join("toy.lapis");
    builder.write_file(&path, |w| w.write_all(&[3; 64])).unwrap();
    path
}

/// Bytes at a 64-byte aligned address.
pub struct AlignedBytes {
    blocks: Vec<Block>,
    len: usize,
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Block([u8; 64]);

impl AlignedBytes {
    pub fn new(bytes: &[u8]) -> Self {
        let mut this = Self::zeroed(bytes.len());
        this.as_mut().copy_from_slice(bytes);
        this
    }

    pub fn zeroed(len: usize) -> Self {
        Self { blocks: vec![Block([0; 64]); len.div_ceil(64)], len }
    }
}

impl AsRef<[u8]> for AlignedBytes {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the blocks are bytes without padding, at least `len` of them.
        unsafe { std::slice::from_raw_parts(self.blocks.as_ptr().cast(), self.len) }
    }
}

impl AsMut<[u8]> for AlignedBytes {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.blocks.as_mut_ptr().cast(), self.len) }
    }
}

/// A byte-level tokenizer: id = byte, 256 = the end of a text.
pub fn tokenizer_json() -> Vec<u8> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    let vocab: Vec<String> = (0..256_u32)
        .map(|byte| {
            let spelled = if printable(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            let text = match char::from_u32(spelled).unwrap() {
                '"' => "\\\"".to_string(),
                '\\' => "\\\\".to_string(),
                c => c.to_string(),
            };
            format!("\"{text}\": {byte}")
        })
        .collect();
    format!(
        r#"{{"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{{"id": 256, "content": "<|endoftext|>", "single_word": false, "lstrip": false,
                           "rstrip": false, "normalized": false, "special": true}}],
        "normalizer": null,
        "pre_tokenizer": {{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}},
        "post_processor": null,
        "decoder": {{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}},
        "model": {{"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                   "vocab": {{{}, "<|endoftext|>": 256}}, "merges": []}}}}"#,
        vocab.join(", ")
    )
    .into_bytes()
}
