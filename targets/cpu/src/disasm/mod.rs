//! An artifact's code as text, on any host: each function with the op it computes, each instruction with the names of
//! what it calls and reads.
//!
//! * `x86_64`, `aarch64`: bytes → text, and what an instruction does to the registers that are followed.
//! * `follow`: which registers hold the execution context, its fields, kernels; certain, or unknown.
//! * `functions`: which bytes belong to which step, each byte once.
//!
//! Names hold if the code keeps to its calling convention and is entered where functions begin, as all code of this
//! compiler is. Bytes that are no instruction are shown as `.byte`.
//!
//! ```
//! use lapidary_target_cpu::disasm::{Code, Step};
//! use lapidary_target_cpu::Architecture;
//! // mov rax, [rdi + 0x18]; mov rax, [rax + 8]; call rax; ret
//! let bytes = [0x48, 0x8b, 0x47, 0x18, 0x48, 0x8b, 0x40, 0x08, 0xff, 0xd0, 0xc3];
//! let step = Step { name: "prefill/0", op: "norm rms_norm", entry: "prefill", offset: 0, bytes: 11 };
//! let code = Code::new(Architecture::X86_64, &bytes, vec![step], vec!["copy_rows_scalar", "rms_norm_f32_avx2"]);
//! let lines = code.functions()[0].lines();
//! assert_eq!(lines[0].note.as_ref().unwrap().to_string(), "ctx.kernels");
//! assert_eq!(lines[2].note.as_ref().unwrap().to_string(), "kernel rms_norm_f32_avx2");
//! ```

mod aarch64;
mod follow;
mod functions;
mod x86_64;

use std::fmt;

use lapidary_format::{Artifact, Isa};

use crate::Architecture;
pub use functions::Function;

/// A function of the code section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// Its name, such as `prefill/3.1`.
    pub name: &'a str,
    /// Label and op of the node that it computes; empty if it only calls others.
    pub op: &'a str,
    /// Entry point that runs it.
    pub entry: &'a str,
    /// Offset in the code section.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

/// The code of an artifact and what is known of it.
#[derive(Clone, Debug)]
pub struct Code<'a> {
    architecture: Architecture,
    bytes: &'a [u8],
    kernels: Vec<&'a str>,
    functions: Vec<functions::Range<'a>>,
}

impl<'a> Code<'a> {
    /// Of an artifact; `None` where its code is no CPU's.
    pub fn of(artifact: &Artifact<'a>) -> Option<Self> {
        let architecture = match artifact.manifest().isa {
            Isa::X86_64 => Architecture::X86_64,
            Isa::Aarch64 => Architecture::Aarch64,
            Isa::Npu => return None,
        };
        let entries: Vec<_> = artifact.entries().iter().map(|e| e.name).collect();
        let steps = artifact.steps().iter().map(|step| Step {
            name: step.name,
            op: step.op,
            entry: entries.get(step.entry as usize).copied().unwrap_or_default(),
            offset: step.offset,
            bytes: u64::from(step.bytes),
        });
        let kernels = artifact.kernels().iter().map(|k| k.name).collect();
        Some(Self::new(architecture, artifact.code(), steps.collect(), kernels))
    }

    /// Of a code section, its functions, and the kernels in the order of the context's table.
    pub fn new(architecture: Architecture, bytes: &'a [u8], steps: Vec<Step<'a>>, kernels: Vec<&'a str>) -> Self {
        let functions = functions::ranges(steps, bytes);
        Self { architecture, bytes, kernels, functions }
    }

    /// The functions in the order of the code. Every byte of every step is in exactly one, also where steps overlap; bytes
    /// that no step has are left out when they are zeros, which is padding.
    pub fn functions(&self) -> Vec<Function<'_>> {
        self.functions.iter().map(|range| Function { code: self, range }).collect()
    }

    /// Name of the function that begins at an offset.
    fn function_at(&self, offset: u64) -> Option<&'a str> {
        let at = self.functions.binary_search_by_key(&offset, |f| f.begin as u64).ok()?;
        self.functions.get(at)?.steps.first().map(|step| step.name)
    }
}

/// One instruction, or bytes that are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Offset in the code section.
    pub offset: u64,
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Text: Intel syntax on x86-64, Arm's on AArch64. Addresses are offsets in the code section.
    pub text: String,
    /// What it calls or reads.
    pub note: Option<Note<'a>>,
    /// Whether it calls through a register or memory: a kernel or a function of the runtime.
    pub is_indirect_call: bool,
}

/// What an instruction calls or reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note<'a> {
    /// Reads or writes this field of the execution context.
    Field(&'static str),
    /// Reads this place of the kernel table.
    KernelSlot(u64),
    /// Calls this kernel.
    Kernel(&'a str),
    /// Calls, jumps to, or takes the address of this function.
    Function(&'a str),
    /// Hands this function to the runtime's threads.
    ParallelFor(Option<&'a str>),
    /// Reports to the runtime through this field of the context.
    Runtime(&'static str),
}

impl Note<'_> {
    /// Its kind, for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Note::Field(_) => "field",
            Note::KernelSlot(_) => "kernel_slot",
            Note::Kernel(_) => "kernel",
            Note::Function(_) => "function",
            Note::ParallelFor(_) => "parallel_for",
            Note::Runtime(_) => "runtime",
        }
    }
}

impl fmt::Display for Note<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Field(name) | Note::Runtime(name) => write!(f, "ctx.{name}"),
            Note::KernelSlot(index) => write!(f, "ctx.kernels[{index}]"),
            Note::Kernel(name) => write!(f, "kernel {name}"),
            Note::Function(name) => f.write_str(name),
            Note::ParallelFor(Some(name)) => write!(f, "ctx.parallel_for({name})"),
            Note::ParallelFor(None) => f.write_str("ctx.parallel_for"),
        }
    }
}

/// A register that is followed: its number in the instruction set.
type Register = u8;

/// An address: a register and a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    base: Register,
    offset: i64,
}

/// What an instruction does to what is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// `to = from`, 64 bits.
    Copy { to: Register, from: Register },
    /// `to = from + add`.
    Offset { to: Register, from: Register, add: i64 },
    /// `to =` this offset of the code section.
    Address { to: Register, target: u64 },
    /// `to =` this page of the code section, which the next instruction may refine.
    Page { to: Register, target: u64 },
    /// `to =` the 8 bytes at a place.
    Load { to: Register, at: Place },
    /// The 8 bytes at a place `= from`.
    Store { at: Place, from: Register },
    /// Something else is in the register.
    Clobber(Register),
    /// Something else is in so many bytes at a place.
    Spoil { at: Place, bytes: u64 },
    /// Something else is somewhere in memory that this register leads to.
    SpoilAll { base: Register },
    /// Nothing is known any more.
    Forget,
}

/// Where a call through a pointer finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Callee {
    Register(Register),
    Memory(Place),
    Unknown,
}

/// What runs after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// The next one.
    Next,
    /// Another one, or, if conditional, also the next one.
    Jump { target: u64, conditional: bool },
    /// Somewhere.
    JumpAnywhere,
    /// A function, then the next one.
    Call { target: u64 },
    /// A function that a pointer leads to, then the next one.
    CallIndirect(Callee),
    /// The caller, or nothing.
    End,
}

/// An instruction, or bytes that are none.
#[derive(Clone, Debug)]
struct Decoded {
    /// Offset in the code section.
    offset: usize,
    length: usize,
    text: String,
    effects: Vec<Effect>,
    flow: Flow,
    /// The memory that it reads or writes, where register and constant say so.
    memory: Option<Place>,
}

/// `bytes` as data.
fn data(offset: usize, bytes: &[u8]) -> Decoded {
    let list: Vec<_> = bytes.iter().map(|b| format!("{b:#04x}")).collect();
    Decoded {
        offset,
        length: bytes.len(),
        text: format!(".byte {}", list.join(", ")),
        effects: Vec::new(),
        flow: Flow::End,
        memory: None,
    }
}

/// The calling convention of an instruction set.
struct Convention {
    /// Holds the execution context when a function begins.
    context: Register,
    /// Second argument: the step of `parallel_for`.
    second: Register,
    stack: Register,
    /// Registers that a call may change.
    changed_by_calls: &'static [Register],
}

/// Decodes a whole function.
fn decode(architecture: Architecture, code: &[u8], begin: usize, end: usize) -> (Vec<Decoded>, &'static Convention) {
    let bytes = code.get(begin..end).unwrap_or_default();
    match architecture {
        Architecture::X86_64 => (x86_64::decode(bytes, begin), &x86_64::CONVENTION),
        Architecture::Aarch64 => (aarch64::decode(bytes, begin), &aarch64::CONVENTION),
    }
}
