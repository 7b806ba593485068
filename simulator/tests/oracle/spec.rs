//! The instruction table as `ISA.md` prints it: the oracle takes opcodes and operand bits from the text, not from the crate
//! that the simulator decodes with.

use std::sync::OnceLock;

/// Where an operand's bits are, and what they mean.
#[derive(Debug)]
pub struct Field {
    pub name: String,
    pub at: u32,
    pub bits: u32,
    /// Its kind in ISA.md's table of kinds.
    pub kind: String,
}

/// One instruction's part of the reference.
#[derive(Debug)]
pub struct Entry {
    pub mnemonic: String,
    pub opcode: u8,
    /// Heading that it stands under: `Sequencer`, `LOAD`, ….
    pub unit: String,
    pub fields: Vec<Field>,
}

impl Entry {
    pub fn field(&self, name: &str) -> &Field {
        let found = self.fields.iter().find(|f| f.name == name);
        found.unwrap_or_else(|| panic!("{} has no operand {name}", self.mnemonic))
    }

    pub fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|f| f.name == name)
    }
}

const TEXT: &str = include_str!("../../../ISA.md");

/// Every instruction, in the order of the text.
pub fn entries() -> &'static [Entry] {
    static ENTRIES: OnceLock<Vec<Entry>> = OnceLock::new();
    ENTRIES.get_or_init(parse)
}

/// The instruction with a mnemonic.
pub fn entry(mnemonic: &str) -> &'static Entry {
    entries().iter().find(|e| e.mnemonic == mnemonic).unwrap_or_else(|| panic!("ISA.md has no {mnemonic}"))
}

/// The instruction of a word.
pub fn entry_of(word: u128) -> &'static Entry {
    static BY_OPCODE: OnceLock<Vec<Option<&'static Entry>>> = OnceLock::new();
    let table = BY_OPCODE.get_or_init(|| (0..128).map(|code| entries().iter().find(|e| e.opcode == code)).collect());
    table[(word & 127) as usize].unwrap_or_else(|| panic!("ISA.md has no opcode {:#x}", word & 127))
}

fn parse() -> Vec<Entry> {
    let (_, reference) = TEXT.split_once("\n## Instructions\n").expect("the reference");
    let mut entries = Vec::new();
    let mut unit = String::new();
    let mut mnemonic = String::new();
    for line in reference.lines() {
        if let Some(name) = line.strip_prefix("### ") {
            unit = name.into();
        } else if let Some(name) = line.strip_prefix("#### ") {
            mnemonic = name.trim_matches('`').into();
        } else if let Some(rest) = line.strip_prefix("Opcode 0x") {
            let (opcode, rest) = rest.split_once(',').expect("Opcode 0x…, …");
            let (_, bits) = rest.split_once("Bits: ").expect("Bits: …");
            let bits = bits.trim_end_matches('.');
            let fields = match bits {
                "none" => Vec::new(),
                list => list.split(", ").map(field).collect(),
            };
            let opcode = u8::from_str_radix(opcode, 16).expect("a hexadecimal opcode");
            entries.push(Entry { mnemonic: mnemonic.clone(), opcode, unit: unit.clone(), fields });
        }
    }
    entries
}

/// `cols 67–79 (size12)` or `norm 110 (flag)`.
fn field(text: &str) -> Field {
    let parts: Vec<&str> = text.split(' ').collect();
    let [name, range, kind] = parts[..] else { panic!("no field: {text}") };
    let (first, last) = range.split_once('–').unwrap_or((range, range));
    let at: u32 = first.parse().expect("a bit");
    let last: u32 = last.parse().expect("a bit");
    Field { name: name.into(), at, bits: last - at + 1, kind: kind.trim_matches(['(', ')']).into() }
}

/// A word with the registers of its issue, read by the names of ISA.md.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    pub entry: &'static Entry,
    pub word: u128,
    pub regs: &'a [i64; 32],
}

impl Operands<'_> {
    pub fn bits(&self, name: &str) -> u64 {
        let field = self.entry.field(name);
        (self.word >> field.at & ((1u128 << field.bits) - 1)) as u64
    }

    pub fn flag(&self, name: &str) -> bool {
        self.bits(name) == 1
    }

    /// Value of a register that has to be given.
    pub fn reg(&self, name: &str) -> i64 {
        self.regs[self.bits(name) as usize]
    }

    /// Value of a register, if the operand is not left out.
    pub fn maybe(&self, name: &str) -> Option<i64> {
        Some(self.bits(name)).filter(|number| *number != 0).map(|number| self.regs[number as usize])
    }

    /// Of kind `sizeN`.
    pub fn size(&self, name: &str) -> i64 {
        let (bits, n) = (self.bits(name), self.entry.field(name).bits - 1);
        match bits >> n {
            0 => bits as i64,
            _ => self.regs[(bits & 31) as usize],
        }
    }

    /// Of kind `term`.
    pub fn term(&self, name: &str) -> i64 {
        let bits = self.bits(name);
        match bits >> 32 {
            0 => i64::from(bits as u32 as i32),
            _ => self.regs[(bits & 31) as usize],
        }
    }

    /// Address of kind `sp`, `w`, `acc` or `dram`.
    pub fn address(&self, name: &str) -> i64 {
        let bits = self.bits(name);
        let (unit, constant) = match self.entry.field(name).kind.as_str() {
            "sp" | "w" => (32, bits >> 5),
            "sp|w" => (32, bits >> 5 & 0x7fff),
            "dram" => (64, bits >> 5),
            "acc" => (1, bits >> 5),
            kind => panic!("{kind} is no address"),
        };
        self.regs[(bits & 31) as usize].wrapping_add(constant as i64 * unit)
    }

    /// Of kind `sp|w`: whether it is the weight buffer.
    pub fn in_weights(&self, name: &str) -> bool {
        self.bits(name) >> 20 == 1
    }
}
