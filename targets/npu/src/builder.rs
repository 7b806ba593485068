//! Programs instruction by instruction: registers and token counters by name, loops, and sums of addresses.
//!
//! Registers are taken with [`Builder::reg`] and given back at the end of the [`Builder::scope`] that they were taken in. Token
//! counters are taken for a pair of queues, since a counter has one queue that posts it and one that waits for it.

use lapidary_npu_isa::address::{Acc, Address, Dram, OnChip, Sp, W};
use lapidary_npu_isa::format::{Arithmetic, Constant, LoopEnd, LoopHead, Nothing, Skip, Wait};
use lapidary_npu_isa::operand::{Body, Bound, Dest, Distance, Maybe, Size, Source, Term, Wide};
use lapidary_npu_isa::program::{Label, OpLabel, Segment};
use lapidary_npu_isa::{Instruction, Machine, Op, Program, Queue, Reg, Token, Tokens};

use crate::error::LowerError;

/// A number that is known now, or a register that holds it then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Known now.
    Const(i64),
    /// Known when the program runs.
    Reg(Reg),
}

impl Value {
    /// Zero.
    pub const ZERO: Value = Value::Const(0);

    /// The number, if it is known.
    pub const fn known(self) -> Option<i64> {
        match self {
            Value::Const(n) => Some(n),
            Value::Reg(_) => None,
        }
    }
}

/// An address or another sum: what a register holds, if one is given, plus a constant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Added when the program runs.
    pub base: Option<Reg>,
    /// In the units of the memory.
    pub offset: i64,
}

impl Place {
    /// A constant.
    pub const fn at(offset: u64) -> Place {
        Place { base: None, offset: offset as i64 }
    }

    /// A value.
    pub const fn of(value: Value) -> Place {
        match value {
            Value::Const(offset) => Place { base: None, offset },
            Value::Reg(reg) => Place { base: Some(reg), offset: 0 },
        }
    }

    /// So many units further on.
    pub const fn plus(self, units: i64) -> Place {
        Place { offset: self.offset + units, ..self }
    }
}

/// A token counter between two queues.
#[derive(Clone, Copy, Debug)]
struct Counter {
    from: Queue,
    to: Queue,
    taken: bool,
}

/// A loop whose end is still to come.
#[derive(Debug)]
#[must_use]
pub(crate) struct LoopMark {
    at: usize,
    head: LoopHead,
}

/// A skip whose target is still to come.
#[derive(Debug)]
#[must_use]
pub(crate) struct SkipMark {
    at: usize,
    reg: Reg,
}

/// A place in a program that is being made.
#[derive(Debug)]
pub(crate) struct Snapshot {
    instructions: usize,
    op_labels: usize,
    counters: Vec<Counter>,
    registers: [Option<&'static str>; 32],
}

/// Makes a program.
#[derive(Debug, Default)]
pub struct Builder {
    program: Program,
    /// What each register is for.
    registers: [Option<&'static str>; 32],
    counters: Vec<Counter>,
}

/// Tokens of an instruction; more than two of either do not fit the word.
pub fn tokens(waits: &[Token], posts: &[Token]) -> Tokens {
    debug_assert!(waits.len() <= 2 && posts.len() <= 2, "an instruction waits for two counters and posts two at most");
    let pair = |list: &[Token]| [list.first().copied(), list.get(1).copied()];
    Tokens { wait: pair(waits), post: pair(posts) }
}

impl Builder {
    /// No instruction yet.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// Position of the next instruction.
    pub fn position(&self) -> u32 {
        self.program.instructions.len() as u32
    }

    /// Adds an instruction.
    pub fn push(&mut self, op: Op) {
        self.program.instructions.push(op.into());
    }

    /// Adds an instruction with tokens.
    pub fn push_with(&mut self, op: Op, waits: &[Token], posts: &[Token]) {
        self.program.instructions.push(Instruction { op, tokens: tokens(waits, posts) });
    }

    /// Does nothing in a queue but wait and post; no tokens: no instruction.
    pub fn sync(&mut self, queue: Queue, waits: &[Token], posts: &[Token]) {
        let pairs = waits.len().max(posts.len()).div_ceil(2);
        for i in 0..pairs {
            let part = |list: &[Token]| list.iter().copied().skip(2 * i).take(2).collect::<Vec<_>>();
            self.push_with(Op::Sync(Wait { queue }), &part(waits), &part(posts));
        }
    }

    /// What the instructions from here on belong to.
    pub fn op_label(&mut self, name: &str, module: Option<Reg>) {
        let at = self.position();
        self.program.op_labels.retain(|l| l.at != at);
        self.program.op_labels.push(OpLabel { at, name: name.into(), module });
    }

    /// Names the next instruction.
    pub fn label(&mut self, name: &str) {
        self.program.labels.push(Label { at: self.position(), name: name.into() });
    }

    /// A register.
    pub fn reg(&mut self, what: &'static str) -> Result<Reg, LowerError> {
        let free = (1..32u8).find(|n| self.registers[usize::from(*n)].is_none()).and_then(Reg::new);
        let reg = free
            .ok_or_else(|| LowerError::Registers { what, used: self.registers.iter().copied().flatten().collect() })?;
        self.registers[reg.index()] = Some(what);
        Ok(reg)
    }

    /// Keeps a register that somebody else chose from being given away.
    pub fn reserve(&mut self, reg: Reg, what: &'static str) {
        self.registers[reg.index()] = Some(what);
    }

    /// Registers that are taken inside are free again behind it.
    pub fn scope<T>(&mut self, inside: impl FnOnce(&mut Self) -> Result<T, LowerError>) -> Result<T, LowerError> {
        let before = self.registers;
        let result = inside(self);
        self.registers = before;
        result
    }

    /// A token counter that `from` posts and `to` waits for, with no tokens in it.
    pub fn token(&mut self, what: &'static str, from: Queue, to: Queue) -> Result<Token, LowerError> {
        let same = |c: &Counter| !c.taken && c.from == from && c.to == to;
        let at = match self.counters.iter().position(same) {
            Some(at) => at,
            None => {
                self.counters.push(Counter { from, to, taken: false });
                self.counters.len() - 1
            }
        };
        let token = u8::try_from(at + 1).ok().and_then(Token::new).ok_or(LowerError::Tokens { what })?;
        self.counters[at].taken = true;
        Ok(token)
    }

    /// Gives a counter back, which has to be empty.
    pub fn release(&mut self, token: Token) {
        if let Some(counter) = self.counters.get_mut(token.index() - 1) {
            counter.taken = false;
        }
    }

    /// dst = value.
    pub fn li(&mut self, dst: Reg, value: i64) {
        self.push(Op::Li(Constant { rd: Dest(dst), value: Wide(value) }));
    }

    /// Three-operand arithmetic, for example `arithmetic(Op::Min, …)`; a constant of more than 32 bits takes a register for a moment.
    pub fn arithmetic(
        &mut self,
        op: fn(Arithmetic) -> Op,
        dst: Reg,
        a: Reg,
        b: impl Into<Value>,
    ) -> Result<(), LowerError> {
        let b = b.into();
        self.scope(|this| {
            let b = match b {
                Value::Reg(r) => Term::Reg(Source(Some(r))),
                Value::Const(n) => match i32::try_from(n) {
                    Ok(n) => Term::Imm(n),
                    Err(_) => {
                        let wide = this.reg("a wide constant")?;
                        this.li(wide, n);
                        Term::Reg(Source(Some(wide)))
                    }
                },
            };
            this.push(op(Arithmetic { rd: Dest(dst), a: Source(Some(a)), b }));
            Ok(())
        })
    }

    /// dst = dst + b, nothing for 0.
    pub fn increase(&mut self, dst: Reg, b: impl Into<Value>) -> Result<(), LowerError> {
        match b.into() {
            Value::Const(0) => Ok(()),
            b => self.arithmetic(Op::Add, dst, dst, b),
        }
    }

    /// dst = place + Σ value·factor. `dst` may be the base or a value only if nothing else is added.
    pub fn sum(&mut self, dst: Reg, place: Place, terms: &[(Value, i64)]) -> Result<(), LowerError> {
        let mut constant = place.offset;
        let mut registers: Vec<(Reg, i64)> = place.base.map(|r| (r, 1)).into_iter().collect();
        for (value, factor) in terms {
            match value {
                Value::Const(n) => constant += n * factor,
                Value::Reg(_) if *factor == 0 => (),
                Value::Reg(r) => registers.push((*r, *factor)),
            }
        }
        // Products first: they are made in dst, what is only added can come from anywhere.
        registers.sort_by_key(|(_, factor)| *factor == 1);
        let Some((first, rest)) = registers.split_first() else {
            self.li(dst, constant);
            return Ok(());
        };
        let mut current = first.0;
        if first.1 != 1 {
            self.arithmetic(Op::Mul, dst, first.0, Value::Const(first.1))?;
            current = dst;
        }
        for (reg, factor) in rest {
            self.scope(|this| {
                let mut term = *reg;
                if *factor != 1 {
                    term = this.reg("a product")?;
                    this.arithmetic(Op::Mul, term, *reg, Value::Const(*factor))?;
                }
                this.arithmetic(Op::Add, dst, current, Value::Reg(term))
            })?;
            current = dst;
        }
        if constant != 0 || current != dst {
            self.arithmetic(Op::Add, dst, current, Value::Const(constant))?;
        }
        Ok(())
    }

    /// value·factor: as a constant, or in a register that is taken in the current scope.
    pub fn product(&mut self, what: &'static str, value: Value, factor: i64) -> Result<Value, LowerError> {
        match value {
            Value::Const(n) => Ok(Value::Const(n * factor)),
            Value::Reg(r) if factor == 1 => Ok(Value::Reg(r)),
            Value::Reg(r) => {
                let dst = self.reg(what)?;
                self.arithmetic(Op::Mul, dst, r, Value::Const(factor))?;
                Ok(Value::Reg(dst))
            }
        }
    }

    /// A size field of `N` bits; a larger constant goes through a register of the current scope.
    pub fn size<const N: u32>(&mut self, what: &'static str, value: Value) -> Result<Size<N>, LowerError> {
        match value {
            Value::Reg(r) => Ok(Size::Reg(r)),
            Value::Const(n) => match u32::try_from(n) {
                Ok(n) if n >> N == 0 => Ok(Size::Imm(n)),
                Ok(_) | Err(_) => Ok(Size::Reg(self.constant(what, n)?)),
            },
        }
    }

    /// A register of the current scope that holds a constant.
    pub fn constant(&mut self, what: &'static str, value: i64) -> Result<Reg, LowerError> {
        let reg = self.reg(what)?;
        self.li(reg, value);
        Ok(reg)
    }

    /// A value in a register: its own, or one of the current scope.
    pub fn in_register(&mut self, what: &'static str, value: Value) -> Result<Reg, LowerError> {
        match value {
            Value::Reg(r) => Ok(r),
            Value::Const(n) => self.constant(what, n),
        }
    }

    /// Executes the body `count` times; it sees how often it has been executed before. Once needs no loop and no register.
    /// `most` bounds a count that is known only then.
    pub fn repeat(
        &mut self,
        what: &'static str,
        count: Value,
        most: u32,
        body: impl FnOnce(&mut Self, Value) -> Result<(), LowerError>,
    ) -> Result<(), LowerError> {
        match count {
            Value::Const(..=0) => return Ok(()),
            Value::Const(1) => return self.scope(|this| body(this, Value::ZERO)),
            Value::Const(_) | Value::Reg(_) => (),
        }
        self.scope(|this| {
            let (head, rd) = this.begin_loop(what, count, most)?;
            body(this, Value::Reg(rd))?;
            this.end_loop(head);
            Ok(())
        })
    }

    /// The head of a loop, whose index is in a register of the current scope.
    pub(crate) fn begin_loop(
        &mut self,
        what: &'static str,
        count: Value,
        most: u32,
    ) -> Result<(LoopMark, Reg), LowerError> {
        let rd = self.reg(what)?;
        let (count, max) = match count {
            Value::Const(n) => (self.size::<24>("a count", count)?, n.min(u32::MAX.into()) as u32),
            Value::Reg(r) => (Size::Reg(r), most),
        };
        let head = LoopHead { rd: Dest(rd), count, max: Bound(max), body: Body(0) };
        let at = self.program.instructions.len();
        self.push(Op::Loop(head));
        Ok((LoopMark { at, head }, rd))
    }

    /// The end of a loop.
    pub(crate) fn end_loop(&mut self, LoopMark { at, head }: LoopMark) {
        let body = Body((self.program.instructions.len() - at - 1) as u32);
        self.push(Op::End(LoopEnd { body }));
        self.program.instructions[at].op = Op::Loop(LoopHead { body, ..head });
    }

    /// Skips what follows, up to [`Builder::end_skip`], if the register is 0.
    pub(crate) fn begin_skip(&mut self, reg: Reg) -> SkipMark {
        let at = self.program.instructions.len();
        self.push(Op::SkipIfZero(Skip { a: Source(Some(reg)), target: Distance(0) }));
        SkipMark { at, reg }
    }

    /// Where a skip goes.
    pub(crate) fn end_skip(&mut self, SkipMark { at, reg }: SkipMark) {
        let target = Distance((self.program.instructions.len() - at - 1) as u32);
        self.program.instructions[at].op = Op::SkipIfZero(Skip { a: Source(Some(reg)), target });
    }

    /// Where the program is, to come back to.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            instructions: self.program.instructions.len(),
            op_labels: self.program.op_labels.len(),
            counters: self.counters.clone(),
            registers: self.registers,
        }
    }

    /// Takes back everything since then.
    pub(crate) fn restore(&mut self, then: Snapshot) {
        self.program.instructions.truncate(then.instructions);
        self.program.op_labels.truncate(then.op_labels);
        (self.counters, self.registers) = (then.counters, then.registers);
    }

    /// Which registers are taken.
    pub(crate) fn taken(&self) -> [Option<&'static str>; 32] {
        self.registers
    }

    /// Gives back all registers that were not taken then.
    pub(crate) fn give_back(&mut self, then: [Option<&'static str>; 32]) {
        self.registers = then;
    }

    /// Executes the body only if the register is not 0. The body has to leave every counter as it found it.
    pub fn unless_zero(
        &mut self,
        reg: Reg,
        body: impl FnOnce(&mut Self) -> Result<(), LowerError>,
    ) -> Result<(), LowerError> {
        let mark = self.begin_skip(reg);
        self.scope(body)?;
        self.end_skip(mark);
        Ok(())
    }

    /// The sequencer waits until the queues have done all that they were given: what follows is ordered behind everything.
    pub fn barrier(&mut self, queues: &[Queue]) -> Result<(), LowerError> {
        for queue in queues {
            let done = self.token("the end of what went before", *queue, Queue::Sequencer)?;
            self.sync(*queue, &[], &[done]);
            self.sync(Queue::Sequencer, &[done], &[]);
            self.release(done);
        }
        Ok(())
    }

    /// Names a part of DRAM, with contents or without.
    pub fn segment(&mut self, segment: Segment) {
        self.program.segments.push(segment);
    }

    /// Binds the program to a machine.
    pub fn for_machine(&mut self, machine: &Machine) {
        self.program.machine_hash = Some(machine.hash());
    }

    /// Ends the program and checks that it is one.
    pub fn finish(mut self) -> Result<Program, LowerError> {
        self.push(Op::Halt(Nothing {}));
        self.program.check_structure()?;
        for instruction in &self.program.instructions {
            instruction.encode()?;
        }
        Ok(self.program)
    }
}

impl From<i64> for Value {
    fn from(n: i64) -> Self {
        Value::Const(n)
    }
}

impl From<Reg> for Value {
    fn from(reg: Reg) -> Self {
        Value::Reg(reg)
    }
}

/// `sp[reg]`.
pub const fn sp(reg: Reg) -> Sp {
    Sp(Address { base: Some(reg), offset: 0 })
}

/// `w[reg]`.
pub const fn w(reg: Reg) -> W {
    W(Address { base: Some(reg), offset: 0 })
}

/// `dram[reg]`.
pub const fn dram(reg: Reg) -> Dram {
    Dram(Address { base: Some(reg), offset: 0 })
}

/// `acc[reg]`.
pub const fn acc(reg: Reg) -> Acc {
    Acc(Address { base: Some(reg), offset: 0 })
}

/// `sp[reg]` as what a load fills.
pub const fn into_sp(reg: Reg) -> OnChip {
    OnChip::Scratchpad(sp(reg))
}

/// `w[reg]` as what a load fills.
pub const fn into_w(reg: Reg) -> OnChip {
    OnChip::Weights(w(reg))
}

/// A register that may be left out.
pub const fn maybe(reg: Reg) -> Maybe {
    Maybe(Some(reg))
}
