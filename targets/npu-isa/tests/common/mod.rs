//! Random programs.

#![allow(dead_code)]

use lapidary_npu_isa::format::OperandSource;
use lapidary_npu_isa::operand::{Body, Distance, Operand};
use lapidary_npu_isa::program::{Label, OpLabel, Segment};
use lapidary_npu_isa::{Instruction, Op, Program, ROWS, Reg, Row, Token, Tokens};

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

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

/// Operands with any bits that decode.
struct Bits<'r>(&'r mut Random);

impl OperandSource for Bits<'_> {
    type Error = std::convert::Infallible;
    fn operand<T: Operand>(&mut self, _: &'static str) -> Result<T, Self::Error> {
        loop {
            let mask = if T::BITS == 64 { u64::MAX } else { (1 << T::BITS) - 1 };
            // Small numbers are as frequent as large ones.
            let bits = (self.0.next() & mask) >> (self.0.below(4) * u64::from(T::BITS) / 5).min(u64::from(T::BITS) - 1);
            if let Ok(value) = T::decode(bits) {
                return Ok(value);
            }
        }
    }
}

pub fn instruction(random: &mut Random, row: &Row) -> Instruction {
    let op = match Op::build(row.mnemonic, &mut Bits(random)).expect("a mnemonic of the table") {
        Ok(op) => op,
        Err(never) => match never {},
    };
    let mut pair = |has: bool| {
        let mut token = || Token::new(random.below(32) as u8).filter(|_| has);
        let (a, b) = (token(), token());
        [a.or(b), a.and(b)]
    };
    let tokens = match row.has_tokens() {
        true => Tokens { wait: pair(true), post: pair(true) },
        false => Tokens::NONE,
    };
    Instruction { op, tokens }
}

fn is_control(op: &Op) -> bool {
    matches!(op, Op::Loop(_) | Op::End(_) | Op::Halt(_) | Op::Branch(_) | Op::SkipIfZero(_))
}

fn block(random: &mut Random, depth: usize, out: &mut Vec<Instruction>) {
    for _ in 0..random.below(8) {
        let row = &ROWS[random.below(ROWS.len() as u64) as usize];
        let mut one = instruction(random, row);
        match &mut one.op {
            Op::Loop(head) if depth < 8 => {
                let mut body = Vec::new();
                let head = *head;
                block(random, depth + 1, &mut body);
                let length = Body(body.len() as u32);
                out.push(Op::Loop(lapidary_npu_isa::format::LoopHead { body: length, ..head }).into());
                out.append(&mut body);
                out.push(Op::End(lapidary_npu_isa::format::LoopEnd { body: length }).into());
            }
            Op::Branch(_) | Op::SkipIfZero(_) => {
                let mut skipped = Vec::new();
                block(random, depth, &mut skipped);
                let length = Distance(skipped.len() as u32);
                match &mut one.op {
                    Op::Branch(branch) => branch.target = length,
                    Op::SkipIfZero(skip) => skip.target = length,
                    _ => (),
                }
                out.push(one);
                out.append(&mut skipped);
            }
            other if is_control(other) => (),
            _ => out.push(one),
        }
    }
}

/// A program with everything that a file can have.
pub fn program(random: &mut Random) -> Program {
    let mut instructions = Vec::new();
    block(random, 0, &mut instructions);
    instructions.push(instruction(random, ROWS.iter().find(|r| r.mnemonic == "halt").expect("a row")));
    let mut segments = Vec::new();
    let mut address = 0;
    for i in 0..random.below(4) {
        address += random.below(200);
        let byte = |r: &mut Random| if r.below(2) == 0 { 7 } else { r.next() as u8 };
        let bytes: Vec<u8> = (0..random.below(60)).map(|_| byte(random)).collect();
        let len_bytes = (bytes.len() as u64 + random.below(100)).max(1);
        segments.push(Segment { address, len_bytes, bytes, name: format!("seg.{i}") });
        address += len_bytes;
    }
    let (mut labels, mut op_labels) = (Vec::new(), Vec::new());
    for at in 0..instructions.len() as u32 {
        if random.below(4) == 0 {
            labels.push(Label { at, name: format!("_l{}", labels.len()) });
        }
        if random.below(4) == 0 {
            let name = ["", "layers.0.ffn", "π router, head 3; top-k"][random.below(3) as usize].into();
            op_labels.push(OpLabel { at, name, module: Reg::new(random.below(32) as u8) });
        }
    }
    let machine_hash = (random.below(2) == 0).then(|| [random.next() as u8; 32]);
    Program { instructions, segments, labels, op_labels, machine_hash }
}

/// How many cases a test runs: `quick`, or `full` with `LAPIDARY_TEST=full`.
pub fn cases(quick: u32, full: u32) -> u32 {
    if std::env::var_os("LAPIDARY_TEST").is_some() { full } else { quick }
}
