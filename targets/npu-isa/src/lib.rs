//! What the NPU can do: its instructions, its machines, its programs.
//!
//! * [`table`]: the instruction table, [`table::Op`]; [`format`]: operands of each, their bits and what they touch.
//! * [`instruction`]: an operation with its tokens ↔ a word of 128 bits ↔ text.
//! * [`program`]: instructions with DRAM contents and names; [`builder`] makes them in code, [`asm`] from text, [`container`] from the bytes
//!   of a `.npu` file, and [`disasm`] prints them.
//! * [`verify`]: what is proved of a program before it runs.
//! * [`machine`]: machine files and presets.
//! * [`cost`]: cost classes; [`mod@reference`]: the part of `ISA.md` that the tables say.
//!
//! Not here: what instructions compute in code (the simulator), which instructions a model needs (the NPU target). `ISA.md` at the
//! root of the repository is the specification of both.
//!
//! ```
//! use lapidary_npu_isa::{Instruction, Op, Registers};
//! use lapidary_npu_isa::format::Pass;
//! use lapidary_npu_isa::operand::{Flag, Maybe, Size};
//! use lapidary_npu_isa::address::{Acc, Address, Sp};
//!
//! let pass = Pass {
//!     a: Sp(Address { base: None, offset: 64 }),
//!     acc: Acc(Address { base: None, offset: 0 }),
//!     rows: Size::Imm(128),
//!     k: Size::Imm(16),
//!     a_stride: Maybe(None),
//!     accumulate: Flag(true),
//! };
//! let instruction = Instruction::from(Op::Pass(pass));
//! assert_eq!(instruction.to_string(), "m.pass sp[64], acc[0], rows=128, k=16, accumulate");
//! assert_eq!(Instruction::decode(instruction.encode().unwrap()), Ok(instruction));
//! let touched = instruction.op.accesses(&Registers::default()).unwrap();
//! assert_eq!((touched[0].begin, touched[0].end()), (64, 64 + 128 * 16));
//! ```
#![no_std]

extern crate alloc;
#[cfg(any(feature = "std", test))]
extern crate std;

pub mod access;
pub mod address;
pub mod asm;
pub mod builder;
pub mod choice;
pub mod container;
pub mod cost;
pub mod disasm;
pub mod format;
pub mod instruction;
pub mod machine;
pub mod operand;
pub mod program;
pub mod reference;
pub mod table;
pub mod verify;

pub use choice::Queue;
pub use cost::CostClass;
pub use instruction::{Instruction, Token, Tokens};
pub use machine::Machine;
pub use operand::{Reg, Registers};
pub use program::Program;
pub use table::{Op, ROWS, Row};

/// The row with an opcode.
pub fn row_of_opcode(opcode: u8) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.opcode == opcode)
}
