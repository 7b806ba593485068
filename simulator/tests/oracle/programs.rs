//! Random whole programs: loops, branches, `lds`, instructions of all queues, ordered by tokens wherever they have to be.
//!
//! Order is by construction: before an instruction, every other queue that has touched what it touches posts a token that
//! it waits for. Loops and branches begin and end with the sequencer waiting for all queues.

use crate::builder::{Draft, Set, Touch, Where};
use crate::cases::{case, queued};
use crate::dice::Dice;
use crate::memory::Memories;
use crate::spec::entry;

/// A program, and what DRAM holds when it starts.
pub struct Generated {
    pub words: Vec<u128>,
    pub dram: Vec<u8>,
}

const QUEUES: [&str; 5] = ["LOAD", "STORE", "MATRIX", "VECTOR", "ROUTE"];
/// The sequencer's place behind the queues.
const SEQUENCER: usize = 5;
/// Bytes of DRAM that instructions work on; constants lie behind.
const WORKING: usize = 32768;

/// Builds words by the names of ISA.md: an operand is given as its bits.
pub fn word(mnemonic: &str, operands: &[(&str, u64)]) -> u128 {
    let entry = entry(mnemonic);
    operands.iter().fold(u128::from(entry.opcode), |word, (name, bits)| {
        let field = entry.field(name);
        assert!(u128::from(*bits) >> field.bits == 0, "{mnemonic}, {name} = {bits}");
        word | u128::from(*bits) << field.at
    })
}

/// Bits of a `term` that is a constant.
pub fn constant(value: i64) -> u64 {
    u64::from(i32::try_from(value).expect("a term of 32 bits") as u32)
}

struct Writer<'a> {
    dice: &'a mut Dice,
    /// Sizes of memories that instructions may touch.
    memories: Memories,
    words: Vec<u128>,
    dram: Vec<u8>,
    history: [Vec<Touch>; 5],
    /// How much of a queue's history another queue, or the sequencer, is behind.
    ordered: [[usize; 6]; 5],
    /// Position of the last instruction of a queue that can take another post.
    last: [Option<usize>; 5],
    /// k of the tile, if it is known.
    tile: Option<i64>,
    /// Loops that are open: register, largest count.
    loops: Vec<(u8, i64)>,
}

/// A random program of about `length` queued instructions for a machine with these memories.
pub fn program(dice: &mut Dice, memories: &Memories, length: usize) -> Generated {
    let mut small = memories.clone();
    small.dram.truncate(WORKING);
    let mut dram = vec![0; WORKING];
    dice.fill(&mut dram);
    let mut writer = Writer {
        dice,
        memories: small,
        words: Vec::new(),
        dram,
        history: Default::default(),
        ordered: [[0; 6]; 5],
        last: [None; 5],
        tile: None,
        loops: Vec::new(),
    };
    writer.initial_contents();
    while writer.history.iter().map(Vec::len).sum::<usize>() < 3 * length {
        writer.item(2);
    }
    writer.words.push(word("halt", &[]));
    assert!(writer.dram.len() <= memories.dram.len(), "{} bytes of constants", writer.dram.len());
    Generated { words: writer.words, dram: writer.dram }
}

impl Writer<'_> {
    fn initial_contents(&mut self) {
        let mut scratchpad = vec![0; self.memories.scratchpad.len()];
        let mut weights = vec![0; self.memories.weights.len()];
        self.dice.fill(&mut scratchpad);
        self.dice.fill(&mut weights);
        self.load(Where::Scratchpad, 0, &scratchpad);
        self.load(Where::Weights, 0, &weights);
    }

    /// Loads constants, by as many instructions as row_bytes has to have.
    fn load(&mut self, place: Where, at: i64, bytes: &[u8]) {
        for (i, bytes) in bytes.chunks(8192).enumerate() {
            let at = at + 8192 * i as i64;
            self.dram.resize(self.dram.len().next_multiple_of(64), 0);
            let src = self.dram.len();
            self.dram.extend(bytes);
            let high = u64::from(place == Where::Weights) << 20;
            let offset = at / 32 * 32;
            let register = if at == offset { 0 } else { 7 };
            if register != 0 {
                self.words.push(word("li", &[("rd", 7), ("value", (at - offset) as u64)]));
            }
            let operands = [
                ("dst", high | (offset as u64 / 32) << 5 | register),
                ("src", (src as u64 / 64) << 5),
                ("row_bytes", bytes.len() as u64),
            ];
            let touch = Touch { place, begin: at, end: at + bytes.len() as i64, writes: true };
            self.issue(0, word("load", &operands), &[touch]);
        }
    }

    /// Something: an instruction, scalar work, a loop, a branch. `depth` bounds how deep loops and branches nest.
    fn item(&mut self, depth: usize) {
        match self.dice.below(24) {
            0..=1 if depth > 0 => self.repeat(depth),
            2..=3 if depth > 0 => self.branch(depth),
            4..=5 => self.scalar(),
            6 => self.scalar_load(),
            _ => self.instruction(),
        }
    }

    fn scalar(&mut self) {
        let rd = self.dice.within(1, 3) as u64;
        let a = self.dice.below(7) as u64;
        if self.dice.once_in(4) {
            let value = if self.dice.once_in(2) { self.dice.bits() } else { self.dice.below(9) as u64 };
            self.words.push(word("li", &[("rd", rd), ("value", value)]));
            return;
        }
        let b = match self.dice.once_in(2) {
            true => 1 << 32 | self.dice.below(7) as u64,
            false => constant(self.dice.within(-70, 70)),
        };
        let mnemonic = self.dice.of(&["add", "sub", "mul", "shl", "shr", "min", "max", "and"]);
        self.words.push(word(mnemonic, &[("rd", rd), ("a", a), ("b", b)]));
    }

    /// Reads a word that is there, whatever it is.
    fn scalar_load(&mut self) {
        let at = self.dice.below(self.memories.scratchpad.len() as i64 / 32) * 32;
        let rd = self.dice.within(1, 3) as u64;
        self.read_word(rd, at, u32::MAX);
    }

    fn read_word(&mut self, rd: u64, at: i64, max: u32) {
        let touch = Touch { place: Where::Scratchpad, begin: at, end: at + 4, writes: false };
        let lds = word("lds", &[("rd", rd), ("src", (at as u64 / 32) << 5), ("max", max.into())]);
        self.issue(SEQUENCER, lds, &[touch]);
    }

    /// Gives a register a value: by `li`, or by way of memory.
    fn set(&mut self, register: u8, value: i64) {
        if self.dice.once_in(12) && (0..1 << 32).contains(&value) {
            let at = self.dice.below(self.memories.scratchpad.len() as i64 / 32) * 32;
            self.load(Where::Scratchpad, at, &(value as u32).to_le_bytes());
            self.read_word(register.into(), at, value as u32);
        } else {
            self.words.push(word("li", &[("rd", register.into()), ("value", value as u64)]));
        }
    }

    fn instruction(&mut self) {
        let all = queued();
        let mut mnemonic = self.dice.of(&all);
        if self.dice.once_in(6) {
            mnemonic = self.dice.of(&["m.preload", "m.preload_scaled", "m.pass", "m.pass", "m.pass_scaled"]);
        }
        if mnemonic.starts_with("m.pass") && self.tile.is_none() {
            mnemonic = "m.preload_scaled";
        }
        let mut draft = case(mnemonic, self.dice, &self.memories, self.tile.unwrap_or(0), false);
        if mnemonic.starts_with("m.preload") {
            let mut regs = [0; 32];
            draft.sets.iter().for_each(|s| regs[usize::from(s.register)] = s.value);
            let operands = crate::spec::Operands { entry: draft.entry, word: draft.word, regs: &regs };
            self.tile = Some(operands.size("k"));
        }
        let moving = self.moving(&mut draft);
        for set in draft.sets.clone() {
            match moving {
                Some((register, step, counter)) if register == set.register => {
                    let rd = ("rd", register.into());
                    self.words.push(word("mul", &[rd, ("a", counter.into()), ("b", constant(step))]));
                    self.words.push(word("add", &[rd, ("a", register.into()), ("b", constant(set.value))]));
                }
                _ => self.set(set.register, set.value),
            }
        }
        for (at, bytes) in &draft.pokes {
            self.load(Where::Scratchpad, *at, bytes);
        }
        let queue = QUEUES.iter().position(|q| *q == draft.entry.unit).expect("a queue");
        let (encoded, touches) = (draft.word, draft.touches);
        self.issue(queue, encoded, &touches);
    }

    /// In a loop, makes an address move with its counter: (register, step, counter).
    fn moving(&mut self, draft: &mut Draft) -> Option<(u8, i64, u8)> {
        let (counter, most) = *self.loops.last()?;
        let sets: Vec<Set> = draft.sets.iter().copied().filter(|s| s.address.is_some()).collect();
        // Lists that it has loaded stay where they are, and lists that ROUTE writes do not come to overlap.
        let lists = draft.entry.unit == "ROUTE" && !draft.entry.has("scores");
        if sets.is_empty() || lists || !draft.pokes.is_empty() || self.dice.once_in(3) {
            return None;
        }
        let set = self.dice.of(&sets);
        let step = if set.address == Some(Where::Accumulators) { 1 } else { self.dice.of(&[4, 32, 64]) };
        let moved = (most - 1) * step;
        let touches = draft.touches.iter_mut().filter(|t| Some(t.place) == set.address);
        let (mut fits, units) = (true, |place| match place {
            Where::Dram => self.memories.dram.len(),
            Where::Scratchpad => self.memories.scratchpad.len(),
            Where::Weights => self.memories.weights.len(),
            Where::Accumulators => self.memories.accumulators.len() / self.memories.array_cols,
        });
        for touch in touches {
            touch.end += moved;
            fits = fits && touch.end <= units(touch.place) as i64;
        }
        fits.then_some((set.register, step, counter))
    }

    fn repeat(&mut self, depth: usize) {
        let counter = 4 + self.loops.len() as u8;
        let most = self.dice.within(1, 4);
        let count = self.dice.of(&[0, 1, most, most]);
        let by_register = self.dice.once_in(2);
        if by_register {
            let count = if count == 0 { self.dice.of(&[0, -1, i64::MIN]) } else { count };
            self.set(3, count);
        }
        let bits = if by_register { 1 << 24 | 3 } else { count as u64 };
        self.barrier();
        let head = self.words.len();
        self.words.push(word("loop", &[("rd", counter.into()), ("count", bits), ("max", most as u64)]));
        self.tile = None;
        self.loops.push((counter, most));
        for _ in 0..self.dice.within(1, 4) {
            self.item(depth - 1);
        }
        self.loops.pop();
        self.barrier();
        let body = (self.words.len() - head - 1) as u64;
        self.words[head] |= word("loop", &[("body", body)]);
        self.words.push(word("end", &[("body", body)]));
        self.tile = None;
    }

    fn branch(&mut self, depth: usize) {
        self.barrier();
        let at = self.words.len();
        let a = ("a", self.dice.below(7) as u64);
        if self.dice.once_in(2) {
            self.words.push(word("skip_if_zero", &[a]));
        } else {
            let b = ("b", constant(self.dice.within(-2, 3)));
            self.words.push(word("branch", &[("condition", self.dice.below(4) as u64), a, b]));
        }
        for _ in 0..self.dice.within(1, 3) {
            self.item(depth - 1);
        }
        self.barrier();
        let skipped = (self.words.len() - at - 1) as u64;
        let mnemonic = if self.words[at] & 127 == 0x0e { "skip_if_zero" } else { "branch" };
        self.words[at] |= word(mnemonic, &[("target", skipped)]);
        self.tile = None;
    }

    /// Counter for tokens from a queue to another, or to the sequencer.
    fn counter(from: usize, to: usize) -> u64 {
        1 + (from * 5 + if to > from { to - 1 } else { to }) as u64
    }

    /// Queue `from` posts a token for `to` behind all that it has been given.
    fn post(&mut self, from: usize, to: usize) -> u64 {
        let token = Self::counter(from, to);
        let free = |word: u128| {
            if word >> 17 & 31 == 0 {
                Some(17)
            } else if word >> 22 & 31 == 0 {
                Some(22)
            } else {
                None
            }
        };
        match self.last[from].and_then(|at| Some((at, free(self.words[at])?))) {
            Some((at, bit)) if self.dice.once_in(2) => self.words[at] |= u128::from(token) << bit,
            _ => self.words.push(word("sync", &[("queue", 1 + from as u64)]) | u128::from(token) << 17),
        }
        token
    }

    /// Issues an instruction behind all that it conflicts with.
    fn issue(&mut self, queue: usize, mut word_: u128, touches: &[Touch]) {
        let conflicts =
            |a: &Touch, b: &Touch| a.place == b.place && (a.writes || b.writes) && a.begin < b.end && b.begin < a.end;
        let mut waits = Vec::new();
        for other in (0..5).filter(|other| *other != queue) {
            let new = &self.history[other][self.ordered[other][queue]..];
            if new.iter().any(|a| touches.iter().any(|b| conflicts(a, b))) {
                waits.push(self.post(other, queue));
                self.ordered[other][queue] = self.history[other].len();
                if queue == SEQUENCER {
                    self.ordered[other] = [self.history[other].len(); 6];
                }
            }
        }
        // Two waits fit the instruction; the others, and sometimes all, are those of a `sync` before it.
        while waits.len() > 2 || (!waits.is_empty() && self.dice.once_in(4)) {
            let token = waits.remove(0);
            let number = if queue == SEQUENCER { 0 } else { 1 + queue as u64 };
            self.words.push(word("sync", &[("queue", number)]) | u128::from(token) << 7);
        }
        for (token, bit) in waits.iter().zip([7, 12]) {
            word_ |= u128::from(*token) << bit;
        }
        if queue < SEQUENCER {
            self.history[queue].extend(touches);
            self.last[queue] = Some(self.words.len());
        }
        self.words.push(word_);
    }

    /// The sequencer waits for everything.
    fn barrier(&mut self) {
        for queue in 0..5 {
            if self.ordered[queue][SEQUENCER] < self.history[queue].len() {
                let token = self.post(queue, SEQUENCER);
                self.words.push(word("sync", &[]) | u128::from(token) << 7);
                self.ordered[queue] = [self.history[queue].len(); 6];
            }
        }
        self.last = [None; 5];
    }
}
