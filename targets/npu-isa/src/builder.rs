//! Building programs instruction by instruction, with loops and branches whose lengths fill themselves in.
//!
//! ```
//! use lapidary_npu_isa::builder::Builder;
//! use lapidary_npu_isa::operand::Size;
//! use lapidary_npu_isa::{Reg, verify::verify, Machine};
//! let (r1, r2) = (Reg::new(1).unwrap(), Reg::new(2).unwrap());
//! let mut b = Builder::new();
//! b.li(r1, 5);
//! let outer = b.begin_loop(r2, Size::Imm(4), 4);
//! let skip = b.skip_if_zero(r2);
//! b.li(r1, 7);
//! b.land(skip);
//! b.end_loop(outer);
//! let program = b.finish().unwrap();
//! assert!(verify(&program, &Machine::preset("edge-16").unwrap()).is_ok());
//! ```

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::choice::{Condition, Queue};
use crate::container::ContainerError;
use crate::format;
use crate::instruction::{Instruction, Token, Tokens};
use crate::operand::{Body, Bound, Dest, Distance, Reg, Size, Source, Term, Wide};
use crate::program::{OpLabel, Program, Segment};
use crate::table::Op;

/// A loop that is open.
#[derive(Debug)]
#[must_use = "a loop has to end"]
pub struct OpenLoop(usize);

/// A branch that has no target yet.
#[derive(Debug)]
#[must_use = "a branch has to land"]
pub struct OpenBranch(usize);

/// A program in the making.
#[derive(Debug, Default)]
pub struct Builder {
    program: Program,
}

impl Builder {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of instructions so far.
    pub fn len(&self) -> usize {
        self.program.instructions.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.program.instructions.is_empty()
    }

    /// An instruction without tokens.
    pub fn push(&mut self, op: Op) {
        self.push_with(op, &[], &[]);
    }

    /// An instruction with tokens. Beyond two of a kind, `sync` of its queue waits before it or posts behind it.
    pub fn push_with(&mut self, op: Op, wait: &[Token], post: &[Token]) {
        let queue = Instruction::from(op).queue();
        let (early, wait) = wait.split_at(wait.len().saturating_sub(2));
        let (post, late) = post.split_at(post.len().min(2));
        early.chunks(2).for_each(|pair| self.sync(queue, pair, &[]));
        let two = |list: &[Token]| [list.first().copied(), list.get(1).copied()];
        self.program.instructions.push(Instruction { op, tokens: Tokens { wait: two(wait), post: two(post) } });
        late.chunks(2).for_each(|pair| self.sync(queue, &[], pair));
    }

    /// `sync`, with at most two tokens each way; more are further `sync`s.
    pub fn sync(&mut self, queue: Queue, wait: &[Token], post: &[Token]) {
        self.push_with(Op::Sync(format::Wait { queue }), wait, post);
    }

    /// `li`.
    pub fn li(&mut self, rd: Reg, value: i64) {
        self.push(Op::Li(format::Constant { rd: Dest(rd), value: Wide(value) }));
    }

    /// `li` of an f32's pattern.
    pub fn li_f32(&mut self, rd: Reg, value: f32) {
        self.li(rd, value.to_bits().into());
    }

    /// `loop`.
    pub fn begin_loop(&mut self, rd: Reg, count: Size<24>, max: u32) -> OpenLoop {
        let at = self.len();
        self.push(Op::Loop(format::LoopHead { rd: Dest(rd), count, max: Bound(max), body: Body(0) }));
        OpenLoop(at)
    }

    /// `end`. Loops end in the opposite order of their begin.
    pub fn end_loop(&mut self, OpenLoop(head): OpenLoop) {
        let body = Body((self.len() - head - 1) as u32);
        if let Op::Loop(loop_head) = &mut self.program.instructions[head].op {
            loop_head.body = body;
        }
        self.push(Op::End(format::LoopEnd { body }));
    }

    /// `skip_if_zero`, up to where it lands.
    pub fn skip_if_zero(&mut self, a: Reg) -> OpenBranch {
        let at = self.len();
        self.push(Op::SkipIfZero(format::Skip { a: Source(Some(a)), target: Distance(0) }));
        OpenBranch(at)
    }

    /// `branch`, up to where it lands.
    pub fn branch(&mut self, condition: Condition, a: Source, b: Term) -> OpenBranch {
        let at = self.len();
        self.push(Op::Branch(format::Branch { condition, a, b, target: Distance(0) }));
        OpenBranch(at)
    }

    /// A branch goes to the next instruction.
    pub fn land(&mut self, OpenBranch(at): OpenBranch) {
        let distance = Distance((self.len() - at - 1) as u32);
        match &mut self.program.instructions[at].op {
            Op::Branch(branch) => branch.target = distance,
            Op::SkipIfZero(skip) => skip.target = distance,
            _ => (),
        }
    }

    /// What the instructions from here on belong to.
    pub fn op_label(&mut self, name: &str, module: Option<Reg>) {
        let at = self.len() as u32;
        self.program.op_labels.retain(|l| l.at != at);
        self.program.op_labels.push(OpLabel { at, name: name.to_string(), module });
    }

    /// A segment of DRAM.
    pub fn segment(&mut self, name: String, address: u64, len_bytes: u64, bytes: Vec<u8>) {
        self.program.segments.push(Segment { address, len_bytes, bytes, name });
    }

    /// The program, with `halt` behind it and segments in order; or why it is none.
    pub fn finish(mut self) -> Result<Program, ContainerError> {
        self.push(Op::Halt(format::Nothing {}));
        self.program.segments.sort_by_key(|s| s.address);
        self.program.check()?;
        Ok(self.program)
    }
}
