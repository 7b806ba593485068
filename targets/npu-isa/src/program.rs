//! Programs: instructions, what DRAM holds at the start, and names for people.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::instruction::Instruction;
use crate::operand::Reg;
use crate::table::Op;

/// Places of the loop stack.
pub const MAX_LOOP_DEPTH: usize = 8;
/// Most instructions of a program.
pub const MAX_INSTRUCTIONS: usize = 1 << 24;

/// One past the last byte of DRAM that a segment can have.
pub const MAX_DRAM: u64 = 1 << 40;
/// Longest name, in bytes.
pub const MAX_NAME: usize = 255;

/// Whether segments and labels can be called that: letters, digits, `_` and `.`, not beginning with a digit or a point, and no
/// word of the assembly language.
pub fn is_name(name: &str) -> bool {
    let begins = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    let all = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
    begins && all && name.len() <= MAX_NAME && !crate::asm::is_reserved(name)
}

/// Whether reports can call something that: no control characters, no `"` and no `\\`.
pub fn is_title(title: &str) -> bool {
    title.len() <= MAX_NAME && !title.chars().any(|c| c.is_control() || c == '"' || c == '\\')
}

/// A part of DRAM that has contents or a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub address: u64,
    /// Its length; behind `bytes` it is zero.
    pub len_bytes: u64,
    /// Contents at the start, no longer than `len_bytes`.
    pub bytes: Vec<u8>,
    /// Its name, see [`is_name`].
    pub name: String,
}

/// An instruction with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its position in the program, or the program's length.
    pub at: u32,
    /// The name.
    pub name: String,
}

/// What instructions belong to: those from `at` on, up to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpLabel {
    /// First instruction.
    pub at: u32,
    /// What reports call it; nothing: to nothing.
    pub name: String,
    /// The register that holds the module's number when an instruction is issued.
    pub module: Option<Reg>,
}

/// A program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// In order.
    pub instructions: Vec<Instruction>,
    /// By address, without overlap.
    pub segments: Vec<Segment>,
    /// By position.
    pub labels: Vec<Label>,
    /// By position, one at most for each.
    pub op_labels: Vec<OpLabel>,
    /// [`crate::machine::Machine::hash`] of the machine that it is for; `None`: for any.
    pub machine_hash: Option<[u8; 32]>,
}

/// Why instructions are no program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StructureError {
    /// Position of the instruction.
    pub at: usize,
    /// What is wrong there.
    pub what: &'static str,
    /// What would be right.
    pub wanted: u64,
    /// What it is.
    pub found: u64,
}

impl fmt::Display for StructureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StructureError { at, what, wanted, found } = self;
        write!(f, "instruction {at}, {what}: wanted {wanted}, found {found}")
    }
}

impl core::error::Error for StructureError {}

impl Program {
    /// What `at` belongs to.
    pub fn op_label(&self, at: usize) -> Option<&OpLabel> {
        let after = self.op_labels.partition_point(|l| l.at as usize <= at);
        self.op_labels.get(after.checked_sub(1)?).filter(|l| !l.name.is_empty())
    }

    /// Loops nest and end where their heads say, branches stay within their loop, and `halt` is the last instruction and
    /// stands nowhere else.
    pub fn check_structure(&self) -> Result<(), StructureError> {
        let code = &self.instructions;
        let error = |at, what, wanted, found| StructureError { at, what, wanted, found };
        if code.is_empty() || code.len() > MAX_INSTRUCTIONS {
            return Err(error(
                0,
                "number of instructions",
                MAX_INSTRUCTIONS.min(code.len().max(1)) as u64,
                code.len() as u64,
            ));
        }
        let last = code.len() - 1;
        // The innermost loop that each instruction is in, by the position of its head + 1; an `end` is in its loop.
        let mut innermost: Vec<usize> = Vec::new();
        let mut open: Vec<(usize, usize)> = Vec::new();
        for (at, instruction) in code.iter().enumerate() {
            innermost.push(open.last().map_or(0, |(head, _)| head + 1));
            match instruction.op {
                Op::Loop(head) => {
                    let end = at + 1 + head.body.0 as usize;
                    let limit = open.last().map_or(last, |(_, end)| *end);
                    if open.len() == MAX_LOOP_DEPTH {
                        return Err(error(at, "depth of loops", MAX_LOOP_DEPTH as u64, open.len() as u64 + 1));
                    }
                    if end >= limit {
                        return Err(error(at, "latest position of its `end`", limit as u64 - 1, end as u64));
                    }
                    open.push((at, end));
                }
                Op::End(tail) => match open.pop() {
                    None => return Err(error(at, "a loop that `end` is of", 1, 0)),
                    Some((head, _)) if at - head - 1 != tail.body.0 as usize => {
                        return Err(error(at, "length of the body", (at - head - 1) as u64, tail.body.0.into()));
                    }
                    Some((_, end)) if end != at => {
                        return Err(error(at, "position of the loop's `end`", end as u64, at as u64));
                    }
                    Some(_) => (),
                },
                Op::Halt(_) if at != last => {
                    return Err(error(at, "position of `halt`, which ends the program", last as u64, at as u64));
                }
                _ if at == last && !matches!(instruction.op, Op::Halt(_)) => {
                    return Err(error(at, "number of `halt`s behind the last instruction", 1, 0));
                }
                _ => (),
            }
        }
        if let Some((head, _)) = open.pop() {
            return Err(error(head, "an `end` of the loop", 1, 0));
        }
        for (at, instruction) in code.iter().enumerate() {
            let skipped = match instruction.op {
                Op::Branch(branch) => branch.target.0,
                Op::SkipIfZero(skip) => skip.target.0,
                _ => continue,
            };
            let target = at + 1 + skipped as usize;
            if target > last {
                return Err(error(at, "latest target of a branch", last as u64, target as u64));
            }
            if innermost[target] != innermost[at] {
                let what = "loop of the branch's target, by the position behind its head (0: none)";
                return Err(error(at, what, innermost[at] as u64, innermost[target] as u64));
            }
        }
        Ok(())
    }
}
