//! Why an artifact cannot be loaded or run. Errors own all they say, so they outlive the artifact.

use lapidary_format::{Dtype, FormatError, Head, Isa};
use thiserror::Error;

use crate::ShortText;

/// Why an artifact cannot be loaded on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The bytes are not a valid artifact.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Compiled for another contract between code and runtime.
    #[error(
        "manifest: ABI version, wanted {wanted}, found {found}\n\
         hint: compile the model again with this version of lapidary"
    )]
    Abi {
        /// Version of this runtime.
        wanted: u32,
        /// Version of the artifact.
        found: u32,
    },
    /// Compiled for another instruction set.
    #[error(
        "manifest: instruction set, wanted {wanted} (this machine), found {found}\n\
         hint: {}", other_isa_hint(*.found)
    )]
    Isa {
        /// Instruction set of this machine.
        wanted: Isa,
        /// Instruction set of the artifact.
        found: Isa,
    },
    /// The CPU lacks features that the code needs.
    #[error(
        "manifest: CPU features, wanted {missing}, found a CPU without\n\
         hint: compile the model for this machine, with `--target native`"
    )]
    MissingFeatures {
        /// Names of the missing features.
        missing: ShortText,
    },
    /// A kernel that this runtime does not have.
    #[error(
        "kernels: kernel {index}, wanted `{name}`, found none of that name\n\
         hint: compile the model again with this version of lapidary"
    )]
    MissingKernel {
        /// Index in the kernel table.
        index: usize,
        /// Its name.
        name: ShortText,
    },
    /// The output that the head ends in is not as it must be.
    #[error(
        "plan: output `{name}`, wanted f32 with {columns} columns (the head is {head}), found none such\n\
         hint: compile the model again with this version of lapidary"
    )]
    MissingOutput {
        /// Its name.
        name: &'static str,
        /// Its columns.
        columns: u32,
        /// The head.
        head: Head,
    },
    /// Memory handed in is too small.
    #[error("{what}: size, wanted {wanted} bytes, found {found}\nhint: the plan says how much a run needs")]
    TooSmall {
        /// Which memory.
        what: &'static str,
        /// Bytes needed.
        wanted: u64,
        /// Bytes handed in.
        found: u64,
    },
    /// Memory handed in is not aligned.
    #[error("{what}: address, wanted a multiple of {wanted}, found {found} past one\nhint: align it")]
    Unaligned {
        /// Which memory.
        what: &'static str,
        /// Alignment needed.
        wanted: usize,
        /// Remainder.
        found: usize,
    },
}

fn other_isa_hint(found: Isa) -> &'static str {
    match found {
        Isa::Npu => "`lapidary simulate` runs NPU programs",
        Isa::X86_64 | Isa::Aarch64 => {
            "compile the model for this machine, with `--target native`, or copy the artifact to one it is for"
        }
    }
}

/// Why a call was refused. The sequence is as it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RunError {
    /// No token at all.
    #[error("input: tokens, wanted at least 1, found 0\nhint: a prompt may not be empty")]
    Empty,
    /// An id that the vocabulary does not have.
    #[error(
        "input, token {index}: id, wanted at most {}, found {found}\n\
         hint: is this the tokenizer of the model?", .vocab_size.saturating_sub(1)
    )]
    TokenId {
        /// Its index in the call.
        index: usize,
        /// The id.
        found: u32,
        /// Size of the vocabulary.
        vocab_size: u32,
    },
    /// The sequence would be longer than the model was compiled for.
    #[error(
        "sequence: length, wanted at most {max_tokens} tokens, found {position} and {tokens} more\n\
         hint: begin a new sequence, or compile the model with a larger `--max-tokens`"
    )]
    ContextLength {
        /// Tokens so far.
        position: u64,
        /// Tokens of this call.
        tokens: u64,
        /// Longest sequence.
        max_tokens: u32,
    },
    /// More tokens than one call takes.
    #[error(
        "call: tokens, wanted at most {wanted}, found {found}\n\
         hint: split the input, or compile the model with a larger chunk"
    )]
    ChunkLength {
        /// Largest T.
        wanted: u32,
        /// Tokens of the call.
        found: u64,
    },
    /// The whole input must come in one call at position 0.
    #[error(
        "call: position, wanted 0 (this model looks at its whole input at once), found {found}\n\
         hint: reset the sequence first"
    )]
    WholeSequence {
        /// Position of the call.
        found: u64,
    },
    /// The call does not continue the sequence.
    #[error("call: position, wanted {wanted} or 0, found {found}\nhint: a sequence can be continued or begun again")]
    Position {
        /// Tokens so far.
        wanted: u64,
        /// Position of the call.
        found: u64,
    },
    /// The model cannot generate one token at a time.
    #[error("decode: model, wanted one that decodes, found: {why}\nhint: `--input` runs it on a whole sequence")]
    CannotDecode {
        /// The manifest's reason.
        why: ShortText,
    },
    /// The artifact was compiled without entry points for profiling.
    #[error(
        "profile: entry point, wanted `{name}`, found none\nhint: compile the model again with this version of lapidary"
    )]
    NoEntry {
        /// Its name.
        name: &'static str,
    },
    /// Decode takes one token.
    #[error("decode: tokens, wanted 1, found {found}\nhint: prefill takes more")]
    DecodeTokens {
        /// Tokens of the call.
        found: u64,
    },
    /// More rows through the head than the call has or the plan has room for.
    #[error("call: output rows, wanted 1 to {wanted}, found {found}\nhint: split the input")]
    OutputRows {
        /// Largest S of this call.
        wanted: u64,
        /// S asked for.
        found: u64,
    },
    /// An output of a type that this runtime does not gather.
    #[error(
        "output `{name}`: type, wanted f32, u8 or u32, found {dtype}\n\
         hint: compile the model again with this version of lapidary"
    )]
    OutputType {
        /// Its name.
        name: ShortText,
        /// Its element type.
        dtype: Dtype,
    },
}
