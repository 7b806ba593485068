//! A whole instruction: operation and tokens, and its word of 128 bits.

use core::fmt;

use crate::choice::Queue;
use crate::format::{BadField, OperandVisitor, RegisterUse};
use crate::operand::{Operand, Position};
use crate::table::Op;

/// A token counter, `t1` to `t31`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(u8);

impl Token {
    /// Counters there are, `t0`, which is none, included.
    pub const COUNT: usize = 32;
    /// A counter's largest value; a post beyond it is a fault, which a verified program never has.
    pub const MAX: u32 = 4095;
    /// The largest value that the verifier allows when instructions are executed one by one.
    pub const VERIFIED_MAX: u32 = 1023;

    /// Counter `number`, from 1 to 31.
    pub const fn new(number: u8) -> Option<Token> {
        if number >= 1 && number <= 31 { Some(Token(number)) } else { None }
    }

    /// 1 to 31.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Position in a table of 32.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

/// What an instruction waits for and posts: one token of each counter that is named, two if it is named twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tokens {
    /// Taken before it starts. The first is filled before the second.
    pub wait: [Option<Token>; 2],
    /// Added when it has completed. The first is filled before the second.
    pub post: [Option<Token>; 2],
}

impl Tokens {
    /// Neither.
    pub const NONE: Tokens = Tokens { wait: [None; 2], post: [None; 2] };

    /// Counters waited for.
    pub fn waits(&self) -> impl Iterator<Item = Token> + '_ {
        self.wait.iter().copied().flatten()
    }

    /// Counters posted to.
    pub fn posts(&self) -> impl Iterator<Item = Token> + '_ {
        self.post.iter().copied().flatten()
    }
}

/// An instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Instruction {
    /// What it does.
    pub op: Op,
    /// What it waits for and posts.
    pub tokens: Tokens,
}

/// Why an instruction has no word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeError {
    /// Its mnemonic.
    pub mnemonic: &'static str,
    /// The field.
    pub field: &'static str,
    /// What would be right.
    pub wanted: &'static str,
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EncodeError { mnemonic, field, wanted } = self;
        write!(f, "{mnemonic}, {field}: wanted {wanted}, found a value that the word cannot hold")
    }
}

impl core::error::Error for EncodeError {}

/// Why a word is no instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// Mnemonic of the row of its opcode, if there is one.
    pub mnemonic: Option<&'static str>,
    /// The field.
    pub field: &'static str,
    /// What would be right.
    pub wanted: &'static str,
    /// The field's bits.
    pub found: u64,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DecodeError { mnemonic, field, wanted, found } = self;
        match mnemonic {
            Some(mnemonic) => write!(f, "{mnemonic}, {field}: wanted {wanted}, found {found:#x}"),
            None => write!(f, "{field}: wanted {wanted}, found {found:#x}"),
        }
    }
}

impl core::error::Error for DecodeError {}

const TOKEN_AT: [u32; 4] = [7, 12, 17, 22];

impl From<Op> for Instruction {
    fn from(op: Op) -> Self {
        Instruction { op, tokens: Tokens::NONE }
    }
}

impl Instruction {
    /// Who executes it.
    pub const fn queue(&self) -> Queue {
        if let Op::Sync(sync) = self.op { sync.queue } else { self.op.row().queue }
    }

    /// Its word.
    pub fn encode(&self) -> Result<u128, EncodeError> {
        let row = self.op.row();
        let bad = |field, wanted| EncodeError { mnemonic: row.mnemonic, field, wanted };
        let operands = self.op.encode_operands().map_err(|BadField { field, wanted, .. }| bad(field, wanted))?;
        let Tokens { wait, post } = self.tokens;
        if !row.has_tokens() && self.tokens != Tokens::NONE {
            return Err(bad("tokens", "none on this instruction"));
        }
        if [wait, post].iter().any(|pair| pair[0].is_none() && pair[1].is_some()) {
            return Err(bad("tokens", "the first of two places filled before the second"));
        }
        let mut word = u128::from(row.opcode) | operands;
        for (at, token) in TOKEN_AT.iter().zip(wait.iter().chain(&post)) {
            word |= token.map_or(0, |t| u128::from(t.number())) << at;
        }
        Ok(word)
    }

    /// From a word. Every word is the encoding of one instruction at most.
    pub fn decode(word: u128) -> Result<Instruction, DecodeError> {
        let opcode = (word & 127) as u8;
        let Some(op) = Op::decode_operands(opcode, word) else {
            let found = u64::from(opcode);
            return Err(DecodeError { mnemonic: None, field: "opcode", wanted: "the opcode of an instruction", found });
        };
        let row = crate::row_of_opcode(opcode);
        let mnemonic = row.map(|r| r.mnemonic);
        let op = op.map_err(|BadField { field, wanted, found }| DecodeError { mnemonic, field, wanted, found })?;
        let token = |i: usize| Token::new((word >> TOKEN_AT[i] & 31) as u8);
        let tokens = Tokens { wait: [token(0), token(1)], post: [token(2), token(3)] };
        let found = (word >> TOKEN_AT[0] & 0xf_ffff) as u64;
        let bad = |wanted| DecodeError { mnemonic, field: "tokens", wanted, found };
        if !op.row().has_tokens() && tokens != Tokens::NONE {
            return Err(bad("none on this instruction"));
        }
        if [tokens.wait, tokens.post].iter().any(|pair| pair[0].is_none() && pair[1].is_some()) {
            return Err(bad("the first of two places filled before the second"));
        }
        Ok(Instruction { op, tokens })
    }

    /// Registers that it reads, with operands, and the one that it writes.
    pub fn registers(&self) -> RegisterUse {
        let mut used = RegisterUse::default();
        self.op.visit(&mut used);
        used
    }
}

impl fmt::Display for Instruction {
    /// The text that the assembler reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Printer<'a, 'f> {
            f: &'a mut fmt::Formatter<'f>,
            first: bool,
            result: fmt::Result,
        }
        impl Printer<'_, '_> {
            fn put(&mut self, text: fmt::Arguments<'_>) {
                let comma = if self.first { " " } else { ", " };
                self.first = false;
                self.result = self.result.and_then(|()| write!(self.f, "{comma}{text}"));
            }
        }
        impl OperandVisitor for Printer<'_, '_> {
            fn operand<T: Operand>(&mut self, name: &'static str, value: &T) {
                let text = value.print();
                match T::POSITION {
                    Position::Implied => (),
                    Position::Optional if value.is_default() => (),
                    Position::Optional if text.is_empty() => self.put(format_args!("{name}")),
                    Position::Named | Position::Optional => self.put(format_args!("{name}={text}")),
                    Position::Positional => self.put(format_args!("{text}")),
                }
            }
        }
        f.write_str(self.op.row().mnemonic)?;
        let mut printer = Printer { f, first: true, result: Ok(()) };
        self.op.visit(&mut printer);
        printer.result?;
        let mut tokens = |name: &str, pair: &[Option<Token>; 2]| match pair {
            [Some(a), Some(b)] => write!(f, " {name}({a}, {b})"),
            [Some(a), None] => write!(f, " {name}({a})"),
            [None, _] => Ok(()),
        };
        tokens("wait", &self.tokens.wait)?;
        tokens("post", &self.tokens.post)
    }
}
