//! The static verifier: token balance, bounds, races, loops, registers. What it proves and what it does not is said in
//! `ISA.md`, chapter "Verifier".
//!
//! ```
//! use lapidary_npu_isa::{Machine, asm::assemble, verify::verify};
//! let machine = Machine::preset("edge-16").unwrap();
//! let program = assemble("v.add sp[0], sp[64], sp[128], cols=16 wait(t1)\nhalt\n").unwrap();
//! let error = verify(&program, &machine).unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "instruction 0, `v.add sp[0], sp[64], sp[128], cols=16 wait(t1)`: t1: \
//!      wanted a token that is posted further up, found 0 on the way here"
//! );
//! ```

mod bounds;
mod races;
mod ranges;
mod value;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::choice::Queue;
use crate::instruction::Token;
use crate::machine::Machine;
use crate::program::Program;
use crate::table::Op;

/// Why a program is rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyError {
    /// The instruction; `None`: the program as a whole.
    pub at: Option<usize>,
    /// Its text.
    pub text: String,
    /// What is wrong, with the address if there is one.
    pub what: String,
    /// What would be right.
    pub wanted: String,
    /// What it is.
    pub found: String,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VerifyError { at, text, what, wanted, found } = self;
        match at {
            Some(at) => write!(f, "instruction {at}, `{text}`: {what}: wanted {wanted}, found {found}"),
            None => write!(f, "program: {what}: wanted {wanted}, found {found}"),
        }
    }
}

impl core::error::Error for VerifyError {}

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Ways through the program on which races were looked for.
    pub paths: u32,
    /// Iterations of each loop that were executed on them; a loop with no more is covered fully.
    pub iterations: u32,
}

/// Verifies a program for a machine.
pub fn verify(program: &Program, machine: &Machine) -> Result<Verified, VerifyError> {
    program.check().map_err(|e| whole("structure", "a program", e))?;
    if program.machine_hash.is_some_and(|hash| hash != machine.hash()) {
        let hex = |hash: [u8; 32]| hash.iter().take(8).map(|b| format!("{b:02x}")).collect::<String>();
        let found = program.machine_hash.map_or(String::new(), hex);
        return Err(whole(
            "machine",
            format!("the hash {}… of {}", hex(machine.hash()), machine.name()),
            format!("{found}…"),
        ));
    }
    if let Some(last) = program.segments.last()
        && last.address + last.len_bytes > machine.dram.bytes
    {
        let what = format!("end of segment {}", last.name);
        return Err(whole(what, format!("at most dram.bytes = {}", machine.dram.bytes), last.address + last.len_bytes));
    }
    let shape = Shape::of(program)?;
    let exits = bounds::check(program, machine, &shape)?;
    races::check(program, &shape, &exits)
}

fn whole(what: impl Into<String>, wanted: impl Into<String>, found: impl ToString) -> VerifyError {
    VerifyError { at: None, text: String::new(), what: what.into(), wanted: wanted.into(), found: found.to_string() }
}

/// What does not depend on values.
struct Shape {
    /// Of each loop's head: its end, and the registers that its body writes, loops in it included.
    loops: Vec<Option<(usize, u32)>>,
}

impl Shape {
    fn of(program: &Program) -> Result<Shape, VerifyError> {
        let code = &program.instructions;
        let mut loops = alloc::vec![None; code.len()];
        let mut open: Vec<(usize, usize, u32)> = Vec::new();
        let mut users: [[Option<(usize, Queue)>; 2]; Token::COUNT] = [[None; 2]; Token::COUNT];
        for (at, instruction) in code.iter().enumerate() {
            for (side, token) in
                instruction.tokens.waits().map(|t| (0, t)).chain(instruction.tokens.posts().map(|t| (1, t)))
            {
                let queue = instruction.queue();
                match users[token.index()][side] {
                    Some((first, other)) if other != queue => {
                        let verb = ["waits for", "posts"][side];
                        let wanted = format!("one queue that {verb} it, {other} as instruction {first}");
                        return Err(error(program, at, token.to_string(), wanted, queue));
                    }
                    Some(_) => (),
                    None => users[token.index()][side] = Some((at, queue)),
                }
            }
            if let Some(written) = instruction.registers().writes {
                for (head, _, mask) in &mut open {
                    let Op::Loop(loop_head) = code[*head].op else { continue };
                    if loop_head.rd.0 == written {
                        let wanted = format!("a register other than the index of the loop at {head}");
                        return Err(error(program, at, "rd", wanted, written));
                    }
                    *mask |= 1 << written.number();
                }
            }
            if let Op::Loop(head) = instruction.op {
                open.push((at, at + 1 + head.body.0 as usize, 0));
            }
            if let Some((head, end, mask)) = open.pop() {
                match end == at {
                    true => loops[head] = Some((end, mask)),
                    false => open.push((head, end, mask)),
                }
            }
        }
        Ok(Shape { loops })
    }

    /// End and written registers of the loop at `at`.
    fn of_loop(&self, at: usize) -> (usize, u32) {
        self.loops.get(at).copied().flatten().unwrap_or((at, 0))
    }
}

fn error(
    program: &Program,
    at: usize,
    what: impl Into<String>,
    wanted: impl Into<String>,
    found: impl ToString,
) -> VerifyError {
    let text = program.instructions.get(at).map_or(String::new(), ToString::to_string);
    VerifyError { at: Some(at), text, what: what.into(), wanted: wanted.into(), found: found.to_string() }
}
