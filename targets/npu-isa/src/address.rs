//! Addresses: a base register that may be left out, and an offset in units of the memory.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

use crate::operand::{BadBits, Operand, Position, Reg, Registers, parse_int, parse_reg};

/// The memories that instructions name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Memory {
    /// Off chip, addressed in bytes.
    Dram,
    /// The activation scratchpad, addressed in bytes.
    Scratchpad,
    /// The weight buffer, addressed in bytes.
    Weights,
    /// The accumulators, addressed in rows of C words of 32 bits.
    Accumulators,
}

impl Memory {
    /// Every memory.
    pub const ALL: [Memory; 4] = [Memory::Dram, Memory::Scratchpad, Memory::Weights, Memory::Accumulators];

    /// How addresses in it are written: `sp[64]`.
    pub const fn name(self) -> &'static str {
        match self {
            Memory::Dram => "dram",
            Memory::Scratchpad => "sp",
            Memory::Weights => "w",
            Memory::Accumulators => "acc",
        }
    }

    /// What a unit of its addresses is called.
    pub const fn unit(self) -> &'static str {
        match self {
            Memory::Dram | Memory::Scratchpad | Memory::Weights => "byte",
            Memory::Accumulators => "row",
        }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `base + offset`, with offsets that are multiples of `UNIT` below `UNIT << BITS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Added to the offset when the instruction is issued.
    pub base: Option<Reg>,
    /// In the memory's units.
    pub offset: u32,
}

impl Address {
    /// Its value, which a register may make negative: that is a fault.
    pub fn value(self, regs: &Registers) -> i64 {
        self.base.map_or(0, |r| regs.get(r)).wrapping_add(i64::from(self.offset))
    }

    fn encode(self, bits: u32, unit: u32, wanted: &'static str) -> Result<u64, &'static str> {
        if !self.offset.is_multiple_of(unit) || u64::from(self.offset / unit) >> bits != 0 {
            return Err(wanted);
        }
        let base = self.base.map_or(0, |r| u64::from(r.number()));
        Ok(base | u64::from(self.offset / unit) << 5)
    }

    fn decode(bits: u64, unit: u32) -> Address {
        Address { base: Reg::new((bits & 31) as u8), offset: (bits >> 5) as u32 * unit }
    }

    fn print(self, memory: Memory) -> String {
        let inside = match (self.base, self.offset) {
            (None, offset) => offset.to_string(),
            (Some(r), 0) => r.to_string(),
            (Some(r), offset) => format!("{r}+{offset}"),
        };
        format!("{memory}[{inside}]")
    }

    fn parse(text: &str, memory: Memory, bits: u32, unit: u32) -> Result<Address, String> {
        let form = || format!("wanted an address like `{memory}[r1+{unit}]`, found `{text}`");
        let inside =
            text.strip_prefix(memory.name()).and_then(|t| t.strip_prefix('[')).and_then(|t| t.strip_suffix(']'));
        let inside = inside.ok_or_else(form)?;
        let (base, offset) = match inside.split_once('+') {
            Some((reg, offset)) => (Some(reg.trim()), Some(offset.trim())),
            None if inside.trim().starts_with('r') => (Some(inside.trim()), None),
            None => (None, Some(inside.trim())),
        };
        let base = match base {
            Some(reg) => Reg::new(parse_reg(reg).ok_or_else(form)?),
            None => None,
        };
        let offset = match offset {
            Some(number) => parse_int(number).ok_or_else(form)?,
            None => 0,
        };
        let most = i64::from(unit) * ((1 << bits) - 1);
        if !(0..=most).contains(&offset) || offset % i64::from(unit) != 0 {
            return Err(format!(
                "wanted an offset from 0 to {most} in steps of {unit}, found {offset}: put it in a register"
            ));
        }
        Ok(Address { base, offset: offset as u32 })
    }
}

macro_rules! addresses {
    ($($(#[$doc:meta])* $name:ident: $memory:ident, $kind:literal, $bits:literal bits of $unit:literal;)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
            pub struct $name(pub Address);

            impl $name {
                /// The memory.
                pub const MEMORY: Memory = Memory::$memory;

                /// `base + offset`; an offset that has no place in the word is an error of encoding.
                pub const fn new(base: Option<Reg>, offset: u32) -> Self {
                    Self(Address { base, offset })
                }

                /// Its value, which a register may make negative: that is a fault.
                pub fn value(self, regs: &Registers) -> i64 {
                    self.0.value(regs)
                }
            }

            impl Operand for $name {
                const BITS: u32 = 5 + $bits;
                const POSITION: Position = Position::Positional;
                const KIND: &'static str = $kind;

                fn encode(&self) -> Result<u64, &'static str> {
                    let wanted = concat!("an offset in steps of ", $unit, " below ", $unit, " << ", $bits);
                    self.0.encode($bits, $unit, wanted)
                }
                fn decode(bits: u64) -> Result<Self, BadBits> {
                    Ok(Self(Address::decode(bits, $unit)))
                }
                fn print(&self) -> String {
                    self.0.print(Memory::$memory)
                }
                fn parse(text: &str) -> Result<Self, String> {
                    Address::parse(text, Memory::$memory, $bits, $unit).map(Self)
                }
                fn register(&self) -> Option<Reg> {
                    self.0.base
                }
                fn is_default(&self) -> bool {
                    false
                }
            }
        )*
    };
}

addresses! {
    /// Place in the scratchpad, in bytes.
    Sp: Scratchpad, "sp", 15 bits of 32;
    /// Place in the weight buffer, in bytes.
    W: Weights, "w", 15 bits of 32;
    /// Row of the accumulators.
    Acc: Accumulators, "acc", 12 bits of 1;
    /// Place in DRAM, in bytes.
    Dram: Dram, "dram", 19 bits of 64;
}

/// Place in the scratchpad or in the weight buffer: where a load goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnChip {
    /// In the scratchpad.
    Scratchpad(Sp),
    /// In the weight buffer.
    Weights(W),
}

impl OnChip {
    /// Which of the two.
    pub const fn memory(self) -> Memory {
        match self {
            OnChip::Scratchpad(_) => Memory::Scratchpad,
            OnChip::Weights(_) => Memory::Weights,
        }
    }

    /// Its value, which a register may make negative: that is a fault.
    pub fn value(self, regs: &Registers) -> i64 {
        match self {
            OnChip::Scratchpad(a) => a.value(regs),
            OnChip::Weights(a) => a.value(regs),
        }
    }
}

impl Operand for OnChip {
    const BITS: u32 = 21;
    const POSITION: Position = Position::Positional;
    const KIND: &'static str = "sp|w";

    fn encode(&self) -> Result<u64, &'static str> {
        match self {
            OnChip::Scratchpad(a) => a.encode(),
            OnChip::Weights(a) => Ok(1 << 20 | a.encode()?),
        }
    }
    fn decode(bits: u64) -> Result<Self, BadBits> {
        match bits >> 20 {
            0 => Sp::decode(bits).map(OnChip::Scratchpad),
            _ => W::decode(bits & ((1 << 20) - 1)).map(OnChip::Weights),
        }
    }
    fn print(&self) -> String {
        match self {
            OnChip::Scratchpad(a) => a.print(),
            OnChip::Weights(a) => a.print(),
        }
    }
    fn parse(text: &str) -> Result<Self, String> {
        match text.starts_with("w[") {
            true => W::parse(text).map(OnChip::Weights),
            false => Sp::parse(text).map(OnChip::Scratchpad),
        }
    }
    fn register(&self) -> Option<Reg> {
        match self {
            OnChip::Scratchpad(a) => a.register(),
            OnChip::Weights(a) => a.register(),
        }
    }
    fn is_default(&self) -> bool {
        false
    }
}
