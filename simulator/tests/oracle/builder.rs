//! Builds random instructions operand by operand, by the names and kinds of ISA.md.

use crate::dice::Dice;
use crate::memory::{Memories, Place, Type};
use crate::spec::{Entry, entry};

/// Where an operand can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Where {
    Dram,
    Scratchpad,
    Weights,
    Accumulators,
}

impl From<Place> for Where {
    fn from(place: Place) -> Where {
        match place {
            Place::Dram => Where::Dram,
            Place::Scratchpad => Where::Scratchpad,
            Place::Weights => Where::Weights,
        }
    }
}

/// A range that the instruction reads or writes, from its first unit to its last.
#[derive(Clone, Copy, Debug)]
pub struct Touch {
    pub place: Where,
    pub begin: i64,
    pub end: i64,
    pub writes: bool,
}

/// A register that the instruction reads, with the value that it wants there.
#[derive(Clone, Copy, Debug)]
pub struct Set {
    pub register: u8,
    pub value: i64,
    /// Whether it is part of an address, and of which memory.
    pub address: Option<Where>,
    /// Whether it is a float's pattern or another number that can have any value.
    pub free: bool,
}

/// An instruction with what it needs.
#[derive(Clone, Debug)]
pub struct Draft {
    pub entry: &'static Entry,
    pub word: u128,
    pub sets: Vec<Set>,
    pub touches: Vec<Touch>,
    /// Contents of the scratchpad that it wants before it starts.
    pub pokes: Vec<(i64, Vec<u8>)>,
}

pub struct Builder<'a> {
    pub dice: &'a mut Dice,
    pub memories: &'a Memories,
    pub draft: Draft,
    /// Whether it may fault.
    pub faulty: bool,
    registers: Vec<u8>,
}

/// How rows lie in memory.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    pub bytes: i64,
    pub rows: i64,
    pub element: i64,
    pub writes: bool,
}

impl<'a> Builder<'a> {
    /// `registers` are those that it may use.
    pub fn new(mnemonic: &str, dice: &'a mut Dice, memories: &'a Memories, registers: &[u8]) -> Builder<'a> {
        let entry = entry(mnemonic);
        let mut registers = registers.to_vec();
        for i in (1..registers.len()).rev() {
            registers.swap(i, dice.below(i as i64 + 1) as usize);
        }
        let word = u128::from(entry.opcode);
        let draft = Draft { entry, word, sets: Vec::new(), touches: Vec::new(), pokes: Vec::new() };
        Builder { dice, memories, draft, faulty: true, registers }
    }

    /// Sets a field's bits.
    pub fn bits(&mut self, name: &str, bits: u64) {
        let field = self.draft.entry.field(name);
        assert!(u128::from(bits) >> field.bits == 0, "{name} = {bits} does not fit {} bits", field.bits);
        self.draft.word |= u128::from(bits) << field.at;
    }

    /// True once in n times if it may fault.
    pub fn wrong(&mut self, n: i64) -> bool {
        self.faulty && self.dice.once_in(n)
    }

    fn register(&mut self, value: i64, address: Option<Where>, free: bool) -> u64 {
        let same = self.draft.sets.iter().find(|s| s.value == value && s.address == address).map(|s| s.register);
        if let Some(register) = same.filter(|_| self.dice.once_in(3)) {
            return register.into();
        }
        let register = self.registers.pop().expect("enough registers");
        self.draft.sets.push(Set { register, value, address, free });
        register.into()
    }

    /// An operand of kind `reg` that is given.
    pub fn reg(&mut self, name: &str, value: i64) {
        let bits = if value == 0 && self.dice.once_in(2) { 0 } else { self.register(value, None, false) };
        self.bits(name, bits);
    }

    /// As `reg`, of a number that may be anything.
    pub fn free(&mut self, name: &str, value: i64) {
        let bits = self.register(value, None, true);
        self.bits(name, bits);
    }

    /// An operand that may be left out if it has its default.
    pub fn maybe(&mut self, name: &str, value: i64, default: i64) {
        if value != default || self.dice.once_in(4) {
            let bits = self.register(value, None, false);
            self.bits(name, bits);
        }
    }

    pub fn size(&mut self, name: &str, value: i64) {
        let n = self.draft.entry.field(name).bits - 1;
        let bits = match value >> n != 0 || self.dice.once_in(3) {
            true => 1 << n | self.register(value, None, false),
            false => value as u64,
        };
        self.bits(name, bits);
    }

    pub fn flag(&mut self, name: &str) -> bool {
        let set = self.dice.once_in(2);
        self.bits(name, set.into());
        set
    }

    pub fn ty(&mut self, name: &str) -> Type {
        let number = self.dice.of(&[0, 0, 0, 1, 1, 2, 3]);
        self.bits(name, number);
        Type::ALL[number as usize]
    }

    fn units(&self, place: Where) -> i64 {
        match place {
            Where::Dram => self.memories.dram.len() as i64,
            Where::Scratchpad => self.memories.scratchpad.len() as i64,
            Where::Weights => self.memories.weights.len() as i64,
            Where::Accumulators => (self.memories.accumulators.len() / self.memories.array_cols) as i64,
        }
    }

    /// Writes an address: a constant, a register, or both.
    pub fn address(&mut self, name: &str, place: Where, value: i64) {
        let kind = self.draft.entry.field(name).kind.as_str();
        let (unit, constants, high) = match kind {
            "dram" => (64, 1 << 19, 0),
            "acc" => (1, 1 << 12, 0),
            "sp|w" => (32, 1 << 15, u64::from(place == Where::Weights) << 20),
            _ => (32, 1 << 15, 0),
        };
        let most = self.units(place) / unit;
        let constant = match self.dice.below(4) {
            0 => 0,
            1 => self.dice.below(most + 1).min(constants - 1),
            _ => (value.max(0) / unit).min(constants - 1),
        };
        let rest = value - constant * unit;
        let register = if rest == 0 { 0 } else { self.register(rest, Some(place), false) };
        self.bits(name, high | (constant as u64) << 5 | register);
    }

    /// A place for `span` units: anywhere, at an end of the memory, or on or beside another operand.
    pub fn place(&mut self, place: Where, span: i64, align: i64) -> i64 {
        let last = (self.units(place) - span) / align * align;
        assert!(last >= 0, "{span} units do not fit {place:?}");
        let near: Vec<i64> =
            self.draft.touches.iter().filter(|t| t.place == place).flat_map(|t| [t.begin, t.end]).collect();
        let at = match self.dice.below(10) {
            0 => 0,
            1 => last,
            2 if !near.is_empty() => self.dice.of(&near),
            3 if !near.is_empty() => self.dice.of(&near) + self.dice.within(-40, 40),
            4 if !near.is_empty() => self.dice.of(&near) - span,
            _ => self.dice.below(last + 1),
        };
        at.clamp(0, last) / align * align
    }

    fn touch(&mut self, place: Where, begin: i64, span: i64, writes: bool) {
        self.draft.touches.push(Touch { place, begin, end: begin + span, writes });
    }

    /// `span` units without a stride.
    pub fn flat(&mut self, name: &str, place: Where, span: i64, align: i64, writes: bool) -> i64 {
        let at = self.place(place, span, align);
        self.address(name, place, at);
        self.touch(place, at, span, writes);
        at
    }

    /// A stride for rows: dense, with gaps, overlapping, or all the same row.
    fn stride(&mut self, shape: Rows, room: i64) -> i64 {
        let dense = shape.bytes / shape.element * shape.element;
        let wanted = match self.dice.below(8) {
            0..=3 => shape.bytes,
            4..=5 => dense + shape.element * self.dice.within(0, 12),
            6 => self.dice.within(0, dense / shape.element) * shape.element,
            _ => 0,
        };
        let fits = |stride: i64| (shape.rows - 1).max(0) * stride + shape.bytes <= room;
        if fits(wanted) { wanted } else { 0 }
    }

    /// Rows with an optional stride.
    pub fn rows(&mut self, name: &str, stride_name: &str, place: Where, shape: Rows) -> i64 {
        let stride = if stride_name.is_empty() { shape.bytes } else { self.stride(shape, self.units(place) / 2) };
        let empty = shape.rows == 0 || shape.bytes == 0;
        let span = if empty { 0 } else { (shape.rows - 1) * stride + shape.bytes };
        let at = self.place(place, span, shape.element);
        self.address(name, place, at);
        if !stride_name.is_empty() {
            self.maybe(stride_name, stride, shape.bytes);
        }
        self.touch(place, at, span, shape.writes);
        at
    }

    /// Elements in the scratchpad.
    pub fn matrix(&mut self, name: &str, stride: &str, ty: Type, rows: i64, cols: i64, writes: bool) -> i64 {
        let shape = Rows { bytes: cols * ty.bytes(), rows, element: ty.bytes(), writes };
        self.rows(name, stride, Where::Scratchpad, shape)
    }

    /// Planes of rows, for DMA.
    pub fn boxed(&mut self, name: &str, place: Where, bytes: i64, rows: i64, planes: i64, writes: bool) {
        let room = self.units(place) / 2;
        let shape = Rows { bytes, rows, element: 1, writes };
        let stride = self.stride(shape, room);
        let plane = Rows { bytes: ((rows - 1).max(0) * stride + bytes).min(room), rows: planes, element: 1, writes };
        let mut plane_stride = self.stride(plane, room);
        let dense = rows * stride;
        if self.dice.once_in(2) && (planes - 1).max(0) * dense + plane.bytes <= room {
            plane_stride = dense;
        }
        let empty = bytes == 0 || rows == 0 || planes == 0;
        let span = if empty { 0 } else { (planes - 1) * plane_stride + plane.bytes };
        let at = self.place(place, span, 1);
        self.address(name, place, at);
        self.maybe(&format!("{name}_stride"), stride, bytes);
        self.maybe(&format!("{name}_plane"), plane_stride, dense);
        self.touch(place, at, span, writes);
    }

    /// A table of `bound` rows of which indices name some.
    pub fn table(&mut self, name: &str, stride_name: &str, place: Where, bound: i64, row: Rows) {
        self.rows(name, stride_name, place, Rows { rows: bound, ..row });
    }

    /// A list of `count` indices below `bound`, which the instruction finds at operand `index`.
    pub fn list(&mut self, count: i64, bound: i64) {
        let at = self.flat("index", Where::Scratchpad, 4 * count, 4, false);
        let mut bytes = Vec::new();
        for _ in 0..count {
            let index = match self.dice.below(2000) {
                0 if self.faulty => bound as u32,
                1 if self.faulty => self.dice.bits() as u32,
                _ if bound == 0 => 0,
                0..=500 => bound as u32 - 1,
                _ => self.dice.below(bound) as u32,
            };
            bytes.extend(index.to_le_bytes());
        }
        self.draft.pokes.push((at, bytes));
    }

    /// Whether what it wants in memory is where it writes.
    pub fn pokes_are_written(&self) -> bool {
        let writes = self.draft.touches.iter().filter(|t| t.writes && t.place == Where::Scratchpad);
        writes
            .into_iter()
            .any(|t| self.draft.pokes.iter().any(|(at, bytes)| t.begin < at + bytes.len() as i64 && *at < t.end))
    }

    /// Whether two operands that are written overlap.
    pub fn writes_collide(&self) -> bool {
        let writes: Vec<&Touch> = self.draft.touches.iter().filter(|t| t.writes).collect();
        writes
            .iter()
            .enumerate()
            .any(|(i, a)| writes[..i].iter().any(|b| a.place == b.place && a.begin < b.end && b.begin < a.end))
    }
}
