//! Operands: what the fields of an instruction word can hold, with their bits and their text.
//!
//! Each type is an [`Operand`]: a width, both directions of its encoding, and its text. What an instruction's fields mean
//! stands in the table ([`crate::table`]); this file only says what values exist.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

/// The sequencer's registers as an instruction sees them when it is issued. Register 0 is always 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers([i64; 32]);

impl Registers {
    /// Value of a register.
    pub const fn get(&self, reg: Reg) -> i64 {
        self.0[(reg.0 & 31) as usize]
    }

    /// Sets a register.
    pub const fn set(&mut self, reg: Reg, value: i64) {
        self.0[(reg.0 & 31) as usize] = value;
    }
}

/// Register `r1` to `r31`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reg(u8);

impl Reg {
    /// Register `number`, from 1 to 31.
    pub const fn new(number: u8) -> Option<Reg> {
        if number >= 1 && number <= 31 { Some(Reg(number)) } else { None }
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

impl fmt::Display for Reg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// Where an operand stands in the text of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// By its place among the operands.
    Positional,
    /// As `name=value`, always there.
    Named,
    /// As `name=value` (a flag: as `name`), left out when it has its default, which is encoded as 0.
    Optional,
    /// Not at all: the structure of the program says it.
    Implied,
}

/// What is wrong with a field's bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadBits {
    /// What would be right.
    pub wanted: &'static str,
    /// The bits.
    pub found: u64,
}

/// A type of operand.
pub trait Operand: Sized + Copy + PartialEq + fmt::Debug {
    /// Width in the instruction word.
    const BITS: u32;
    /// Its place in the text.
    const POSITION: Position;
    /// Its name in `ISA.md`.
    const KIND: &'static str;

    /// The field's bits, below `1 << BITS`. An operand that is out of its range is an error that says what is wanted.
    fn encode(&self) -> Result<u64, &'static str>;
    /// From the field's bits.
    fn decode(bits: u64) -> Result<Self, BadBits>;
    /// Text that [`Operand::parse`] reads.
    fn print(&self) -> String;
    /// From text without surrounding blanks; an error says what is wanted.
    fn parse(text: &str) -> Result<Self, String>;

    /// The register that it names, if it does.
    fn register(&self) -> Option<Reg> {
        None
    }
    /// The register that the instruction writes, if this is one.
    fn destination(&self) -> Option<Reg> {
        None
    }
    /// The operand with the text of which its default is left out.
    fn is_default(&self) -> bool {
        self.encode() == Ok(0)
    }
}

/// An integer in decimal or `0x` hexadecimal, with `-` and `_`.
pub(crate) fn parse_int(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut value: i128 = 0;
    let (radix, digits) = match digits.strip_prefix("0x") {
        Some(hex) => (16, hex),
        None => (10, digits),
    };
    let mut seen = false;
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit())
        || (radix == 10 && !digits.starts_with(|c: char| c.is_ascii_digit()))
    {
        return None;
    }
    for c in digits.chars().filter(|c| *c != '_') {
        value = value * radix + i128::from(c.to_digit(radix as u32)?);
        seen = true;
        if value > 1 << 64 {
            return None;
        }
    }
    // 64-bit patterns can be written in hexadecimal.
    let value = if negative { -value } else { value };
    match seen {
        true if radix == 16 && !negative => u64::try_from(value).ok().map(|v| v as i64),
        true => i64::try_from(value).ok(),
        false => None,
    }
}

pub(crate) fn parse_reg(text: &str) -> Option<u8> {
    let digits = text.strip_prefix('r')?;
    if digits.is_empty() || digits.len() > 2 || (digits.len() == 2 && digits.starts_with('0')) {
        return None;
    }
    digits.parse().ok().filter(|n| *n <= 31)
}

fn wanted_found(wanted: &str, found: &str) -> String {
    format!("wanted {wanted}, found `{found}`")
}

/// A register that the instruction writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dest(pub Reg);

impl Operand for Dest {
    const BITS: u32 = 5;
    const POSITION: Position = Position::Positional;
    const KIND: &'static str = "rd";

    fn encode(&self) -> Result<u64, &'static str> {
        Ok(u64::from(self.0.0))
    }
    fn decode(bits: u64) -> Result<Self, BadBits> {
        Reg::new(bits as u8).map(Dest).ok_or(BadBits { wanted: "a register from r1 to r31", found: bits })
    }
    fn print(&self) -> String {
        self.0.to_string()
    }
    fn parse(text: &str) -> Result<Self, String> {
        let reg = parse_reg(text).and_then(Reg::new);
        reg.map(Dest).ok_or_else(|| wanted_found("a register from r1 to r31", text))
    }
    fn destination(&self) -> Option<Reg> {
        Some(self.0)
    }
    fn is_default(&self) -> bool {
        false
    }
}

/// A register that is read; `r0`, which is 0, is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source(pub Option<Reg>);

impl Source {
    /// Its value.
    pub fn value(self, regs: &Registers) -> i64 {
        self.0.map_or(0, |r| regs.get(r))
    }
}

impl Operand for Source {
    const BITS: u32 = 5;
    const POSITION: Position = Position::Positional;
    const KIND: &'static str = "reg";

    fn encode(&self) -> Result<u64, &'static str> {
        Ok(self.0.map_or(0, |r| u64::from(r.0)))
    }
    fn decode(bits: u64) -> Result<Self, BadBits> {
        Ok(Source(Reg::new(bits as u8)))
    }
    fn print(&self) -> String {
        self.0.map_or_else(|| "r0".into(), |r| r.to_string())
    }
    fn parse(text: &str) -> Result<Self, String> {
        parse_reg(text).map(|n| Source(Reg::new(n))).ok_or_else(|| wanted_found("a register from r0 to r31", text))
    }
    fn register(&self) -> Option<Reg> {
        self.0
    }
    fn is_default(&self) -> bool {
        false
    }
}

/// A register that may be left out: what then holds depends on the operand (a count is 1, a stride is dense).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Maybe(pub Option<Reg>);

impl Maybe {
    /// Its value, or the default.
    pub fn value_or(self, regs: &Registers, default: i64) -> i64 {
        self.0.map_or(default, |r| regs.get(r))
    }
}

impl Operand for Maybe {
    const BITS: u32 = 5;
    const POSITION: Position = Position::Optional;
    const KIND: &'static str = "reg?";

    fn encode(&self) -> Result<u64, &'static str> {
        Ok(self.0.map_or(0, |r| u64::from(r.0)))
    }
    fn decode(bits: u64) -> Result<Self, BadBits> {
        Ok(Maybe(Reg::new(bits as u8)))
    }
    fn print(&self) -> String {
        self.0.map_or_else(|| "r0".into(), |r| r.to_string())
    }
    fn parse(text: &str) -> Result<Self, String> {
        let reg = parse_reg(text).and_then(Reg::new);
        reg.map(|r| Maybe(Some(r))).ok_or_else(|| wanted_found("a register from r1 to r31", text))
    }
    fn register(&self) -> Option<Reg> {
        self.0
    }
}

/// A register that has to be given, by name: `k=r4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Given(pub Source);

impl Given {
    /// Its value.
    pub fn value(self, regs: &Registers) -> i64 {
        self.0.value(regs)
    }

    /// The number whose f32 bits are its low half.
    pub fn float(self, regs: &Registers) -> f32 {
        f32::from_bits(self.value(regs) as u32)
    }
}

impl Operand for Given {
    const BITS: u32 = 5;
    const POSITION: Position = Position::Named;
    const KIND: &'static str = "reg";

    fn encode(&self) -> Result<u64, &'static str> {
        self.0.encode()
    }
    fn decode(bits: u64) -> Result<Self, BadBits> {
        Source::decode(bits).map(Given)
    }
    fn print(&self) -> String {
        self.0.print()
    }
    fn parse(text: &str) -> Result<Self, String> {
        Source::parse(text).map(Given)
    }
    fn register(&self) -> Option<Reg> {
        self.0.0
    }
    fn is_default(&self) -> bool {
        false
    }
}

/// A size of at most `N` bits, or a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Size<const N: u32> {
    /// Below `1 << N`.
    Imm(u32),
    /// Read at issue.
    Reg(Reg),
}

impl<const N: u32> Size<N> {
    /// Its value; a register's may be negative, which is a fault.
    pub fn value(self, regs: &Registers) -> i64 {
        match self {
            Size::Imm(v) => i64::from(v),
            Size::Reg(r) => regs.get(r),
        }
    }
}

impl<const N: u32> Operand for Size<N> {
    const BITS: u32 = N + 1;
    const POSITION: Position = Position::Named;
    const KIND: &'static str = match N {
        9 => "size9",
        24 => "size24",
        12 => "size12",
        13 => "size13",
        14 => "size14",
        _ => "size",
    };

    fn encode(&self) -> Result<u64, &'static str> {
        match *self {
            Size::Imm(v) if v >> N == 0 => Ok(u64::from(v)),
            Size::Imm(_) => Err("a size that fits its field, or a register"),
            Size::Reg(r) => Ok(1 << N | u64::from(r.0)),
        }
    }
    fn decode(bits: u64) -> Result<Self, BadBits> {
        let low = bits & ((1 << N) - 1);
        match bits >> N {
            0 => Ok(Size::Imm(low as u32)),
            _ => match u8::try_from(low).ok().and_then(Reg::new) {
                Some(r) => Ok(Size::Reg(r)),
                None => Err(BadBits { wanted: "a size, or a register from r1 to r31", found: bits }),
            },
        }
    }
    fn print(&self) -> String {
        match self {
            Size::Imm(v) => v.to_string(),
            Size::Reg(r) => r.to_string(),
        }
    }
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(r) = parse_reg(text).and_then(Reg::new) {
            return Ok(Size::Reg(r));
        }
        match parse_int(text) {
            Some(v) if v >= 0 && v >> N == 0 => Ok(Size::Imm(v as u32)),
            Some(_) | None => Err(format!("wanted 0 to {} or a register, found `{text}`", (1u64 << N) - 1)),
        }
    }
    fn register(&self) -> Option<Reg> {
        match *self {
            Size::Imm(_) => None,
            Size::Reg(r) => Some(r),
        }
    }
    fn is_default(&self) -> bool {
        false
    }
}

/// An integer of 32 bits with sign, or a register: the second operand of arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Term {
    /// A constant.
    Imm(i32),
    /// A register, `r0` as `None`.
    Reg(Source),
}

impl Term {
    /// Its value.
    pub fn value(self, regs: &Registers) -> i64 {
        match self {
            Term::Imm(v) => i64::from(v),
            Term::Reg(r) => r.value(regs),
        }
    }
}

impl Operand for Term {
    const BITS: u32 = 33;
    const POSITION: Position = Position::Positional;
    const KIND: &'static str = "term";

    fn encode(&self) -> Result<u64, &'static str> {
        match *self {
            Term::Imm(v) => Ok(u64::from(v as u32)),
            Term::Reg(r) => Ok(1 << 32 | r.encode()?),
        }
    }
    fn decode(bits: u64) -> Result<Self, BadBits> {
        match bits >> 32 {
            0 => Ok(Term::Imm(bits as u32 as i32)),
            _ if bits as u32 <= 31 => Ok(Term::Reg(Source::decode(bits & 31)?)),
            _ => Err(BadBits { wanted: "a constant, or a register from r0 to r31", found: bits }),
        }
    }
    fn print(&self) -> String {
        match self {
            Term::Imm(v) => v.to_string(),
            Term::Reg(r) => r.print(),
        }
    }
    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(r) = Source::parse(text) {
            return Ok(Term::Reg(r));
        }
        match parse_int(text).and_then(|v| i32::try_from(v).ok()) {
            Some(v) => Ok(Term::Imm(v)),
            None => Err(wanted_found("an integer of 32 bits or a register", text)),
        }
    }
    fn register(&self) -> Option<Reg> {
        match *self {
            Term::Imm(_) => None,
            Term::Reg(r) => r.0,
        }
    }
    fn is_default(&self) -> bool {
        false
    }
}

/// An integer of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wide(pub i64);

impl Operand for Wide {
    const BITS: u32 = 64;
    const POSITION: Position = Position::Positional;
    const KIND: &'static str = "imm64";

    fn encode(&self) -> Result<u64, &'static str> {
        Ok(self.0 as u64)
    }
    fn decode(bits: u64) -> Result<Self, BadBits> {
        Ok(Wide(bits as i64))
    }
    fn print(&self) -> String {
        self.0.to_string()
    }
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(number) = text.strip_suffix('f').filter(|_| !text.starts_with("0x")) {
            return match number.parse::<f32>() {
                Ok(v) if v.is_finite() => Ok(Wide(i64::from(v.to_bits()))),
                Ok(_) | Err(_) => Err(wanted_found("a finite f32 like `0.5f`", text)),
            };
        }
        parse_int(text).map(Wide).ok_or_else(|| wanted_found("an integer of 64 bits or an f32 like `0.5f`", text))
    }
    fn is_default(&self) -> bool {
        false
    }
}

/// A bound of 32 bits: `max=4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bound(pub u32);

impl Operand for Bound {
    const BITS: u32 = 32;
    const POSITION: Position = Position::Named;
    const KIND: &'static str = "imm32";

    fn encode(&self) -> Result<u64, &'static str> {
        Ok(u64::from(self.0))
    }
    fn decode(bits: u64) -> Result<Self, BadBits> {
        Ok(Bound(bits as u32))
    }
    fn print(&self) -> String {
        self.0.to_string()
    }
    fn parse(text: &str) -> Result<Self, String> {
        let value = parse_int(text).and_then(|v| u32::try_from(v).ok());
        value.map(Bound).ok_or_else(|| wanted_found("an integer from 0 to 4294967295", text))
    }
    fn is_default(&self) -> bool {
        false
    }
}

/// Length of a loop's body without its `loop` and its `end`, in instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Body(pub u32);

impl Operand for Body {
    const BITS: u32 = 24;
    const POSITION: Position = Position::Implied;
    const KIND: &'static str = "length";

    fn encode(&self) -> Result<u64, &'static str> {
        if self.0 >> 24 == 0 { Ok(u64::from(self.0)) } else { Err("a body below 2^24 instructions") }
    }
    fn decode(bits: u64) -> Result<Self, BadBits> {
        Ok(Body(bits as u32))
    }
    fn print(&self) -> String {
        self.0.to_string()
    }
    fn parse(text: &str) -> Result<Self, String> {
        Distance::parse(text).map(|d| Body(d.0))
    }
}

/// A distance in instructions. In text it is a label further down, or `.+N`: N instructions are skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Distance(pub u32);

impl Operand for Distance {
    const BITS: u32 = 24;
    const POSITION: Position = Position::Positional;
    const KIND: &'static str = "label";

    fn encode(&self) -> Result<u64, &'static str> {
        if self.0 >> 24 == 0 { Ok(u64::from(self.0)) } else { Err("a distance below 2^24 instructions") }
    }
    fn decode(bits: u64) -> Result<Self, BadBits> {
        Ok(Distance(bits as u32))
    }
    fn print(&self) -> String {
        format!(".+{}", self.0)
    }
    fn parse(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix(".+").and_then(parse_int).and_then(|v| u32::try_from(v).ok());
        let number = number.filter(|v| v >> 24 == 0);
        number.map(Distance).ok_or_else(|| wanted_found("a label further down, or `.+N`", text))
    }
    fn is_default(&self) -> bool {
        false
    }
}

/// A yes or no: its name in the text, or nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flag(pub bool);

impl Operand for Flag {
    const BITS: u32 = 1;
    const POSITION: Position = Position::Optional;
    const KIND: &'static str = "flag";

    fn encode(&self) -> Result<u64, &'static str> {
        Ok(u64::from(self.0))
    }
    fn decode(bits: u64) -> Result<Self, BadBits> {
        Ok(Flag(bits != 0))
    }
    fn print(&self) -> String {
        String::new()
    }
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() { Ok(Flag(true)) } else { Err(wanted_found("the flag's name alone", text)) }
    }
}
