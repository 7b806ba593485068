//! AArch64: text by yaxpeax, and what an instruction does to the registers that are followed.
//!
//! The effects come from the encoding itself (Arm Architecture Reference Manual, C4.1): few groups matter, and what is not
//! surely harmless is taken to change every register whose number the word holds.

use yaxpeax_arch::{Decoder, U8Reader};
use yaxpeax_arm::armv8::a64::{InstDecoder, Instruction, Opcode, Operand};

use super::{Callee, Convention, Decoded, Effect, Flow, Place, Register, data};

/// 31 is the stack pointer where something is followed; elsewhere it is the zero register, and not mentioned.
const SP: Register = 31;

/// AAPCS64.
pub(super) const CONVENTION: Convention = Convention {
    context: 0,
    second: 1,
    stack: SP,
    changed_by_calls: &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 30],
};

/// The instructions of `bytes`, which begin at `begin` of the code section.
pub(super) fn decode(bytes: &[u8], begin: usize) -> Vec<Decoded> {
    let decoder = InstDecoder::default();
    let one = |(i, chunk): (usize, &[u8])| {
        let offset = begin + 4 * i;
        let Ok(word) = <[u8; 4]>::try_from(chunk).map(u32::from_le_bytes) else { return data(offset, chunk) };
        let Ok(instruction) = decoder.decode(&mut U8Reader::new(chunk)) else { return data(offset, chunk) };
        // What is not allocated the decoder may call invalid, or udf for its whole group.
        if instruction.opcode == Opcode::Invalid || instruction.opcode == Opcode::UDF && word >> 16 != 0 {
            return data(offset, chunk);
        }
        let mut effects = effects(Word(word), offset as u64);
        let memory = memory(Word(word));
        // The zero register keeps nothing and is no base.
        effects.retain(|effect| !matches!(effect, Effect::Copy { to: SP, .. } | Effect::Load { to: SP, .. }));
        Decoded { offset, length: 4, text: text(&instruction, offset), effects, flow: flow(Word(word), offset), memory }
    };
    bytes.chunks(4).enumerate().map(one).collect()
}

/// The decoder's text, with targets as offsets in the code section.
fn text(instruction: &Instruction, offset: usize) -> String {
    let text = instruction.to_string();
    let target = instruction.operands.iter().find_map(|operand| match operand {
        Operand::PCOffset(distance) => Some(*distance),
        _ => None,
    });
    let (Some(distance), Some(at)) = (target, text.find('$')) else { return text };
    let is_page = text.starts_with("adrp");
    let from = if is_page { offset & !0xfff } else { offset };
    let end = text[at..].find([',', ']', ' ']).map_or(text.len(), |n| at + n);
    format!("{}{:#x}{}", &text[..at], (from as u64).wrapping_add_signed(distance), &text[end..])
}

/// An instruction word and its fields.
#[derive(Clone, Copy)]
struct Word(u32);

impl Word {
    fn is(self, mask: u32, value: u32) -> bool {
        self.0 & mask == value
    }

    fn bits(self, high: u32, low: u32) -> u32 {
        (self.0 >> low) & ((1 << (high - low + 1)) - 1)
    }

    fn signed(self, high: u32, low: u32) -> i64 {
        let unused = 31 - (high - low);
        i64::from((self.bits(high, low) << unused) as i32 >> unused)
    }

    /// Rd or Rt.
    fn d(self) -> Register {
        self.bits(4, 0) as Register
    }

    /// Rn.
    fn n(self) -> Register {
        self.bits(9, 5) as Register
    }

    /// Rm or Rs.
    fn m(self) -> Register {
        self.bits(20, 16) as Register
    }

    /// Rt2.
    fn t2(self) -> Register {
        self.bits(14, 10) as Register
    }
}

fn flow(w: Word, offset: usize) -> Flow {
    let target = |words: i64| (offset as u64).wrapping_add_signed(4 * words);
    if w.is(0xfc00_0000, 0x1400_0000) {
        Flow::Jump { target: target(w.signed(25, 0)), conditional: false }
    } else if w.is(0xfc00_0000, 0x9400_0000) {
        Flow::Call { target: target(w.signed(25, 0)) }
    } else if w.is(0xff00_0000, 0x5400_0000) || w.is(0x7e00_0000, 0x3400_0000) {
        Flow::Jump { target: target(w.signed(23, 5)), conditional: true }
    } else if w.is(0x7e00_0000, 0x3600_0000) {
        Flow::Jump { target: target(w.signed(18, 5)), conditional: true }
    } else if w.is(0xffff_fc1f, 0xd63f_0000) {
        Flow::CallIndirect(Callee::Register(w.n()))
    } else if w.is(0xffff_fc1f, 0xd65f_0000) {
        Flow::End
    } else if w.is(0xfe00_0000, 0xd600_0000) {
        // br, and all with pointer authentication, eret, drps.
        Flow::JumpAnywhere
    } else if w.is(0xff00_0000, 0xd400_0000) && !w.is(0xffe0_001f, 0xd400_0001) || w.is(0xffff_0000, 0) {
        // brk, hlt and the like, udf; not svc.
        Flow::End
    } else {
        Flow::Next
    }
}

/// The place that a load or store of one general-purpose register, or the first of a pair, names.
fn memory(w: Word) -> Option<Place> {
    let base = w.n();
    if w.is(0x3b00_0000, 0x3900_0000) {
        // Scaled unsigned offset, any size.
        Some(Place { base, offset: i64::from(w.bits(21, 10)) << w.bits(31, 30) })
    } else if w.is(0x3b20_0c00, 0x3800_0000) {
        Some(Place { base, offset: w.signed(20, 12) })
    } else if w.is(0x7f80_0000, 0x2900_0000) || w.is(0x7f80_0000, 0x2980_0000) {
        Some(Place { base, offset: w.signed(21, 15) * if w.bits(31, 31) == 1 { 8 } else { 4 } })
    } else {
        None
    }
}

fn effects(w: Word, offset: u64) -> Vec<Effect> {
    // Top-level groups by bits 28..25.
    match w.bits(28, 25) {
        0b1000 | 0b1001 => immediate(w, offset),
        0b1010 | 0b1011 => branch(w),
        0b0100 | 0b0110 | 0b1100 | 0b1110 => load_store(w),
        0b0101 | 0b1101 => register(w),
        0b0111 | 0b1111 => vector(w),
        _ => vec![Effect::Forget],
    }
}

/// Data processing with an immediate.
fn immediate(w: Word, offset: u64) -> Vec<Effect> {
    let sets_flags = w.bits(29, 29) == 1;
    if w.is(0x1f00_0000, 0x1000_0000) {
        let distance = w.signed(23, 5) << 2 | i64::from(w.bits(30, 29));
        return vec![if w.bits(31, 31) == 1 {
            Effect::Page { to: w.d(), target: (offset & !0xfff).wrapping_add_signed(distance << 12) }
        } else {
            Effect::Address { to: w.d(), target: offset.wrapping_add_signed(distance) }
        }];
    }
    if w.is(0x1f80_0000, 0x1100_0000) {
        let amount = i64::from(w.bits(21, 10)) << if w.bits(22, 22) == 1 { 12 } else { 0 };
        let add = if w.bits(30, 30) == 1 { -amount } else { amount };
        return match (w.bits(31, 31), sets_flags, w.d()) {
            (_, true, 31) => Vec::new(),
            (1, false, to) => vec![Effect::Offset { to, from: w.n(), add }],
            (_, _, to) => vec![Effect::Clobber(to)],
        };
    }
    // tst: a logical immediate that sets flags only.
    if w.is(0x7f80_001f, 0x7200_001f) { Vec::new() } else { vec![Effect::Clobber(w.d())] }
}

/// Branches, exceptions, system.
fn branch(w: Word) -> Vec<Effect> {
    let harmless = w.is(0x7c00_0000, 0x1400_0000) // b, bl
        || w.is(0xff00_0000, 0x5400_0000) // b.cond
        || w.is(0x7c00_0000, 0x3400_0000) // cbz, cbnz, tbz, tbnz
        || w.is(0xfe00_0000, 0xd600_0000) // br, blr, ret
        || w.is(0xffff_f01f, 0xd503_201f) // hints
        || w.is(0xffff_f01f, 0xd503_301f); // barriers
    if harmless {
        Vec::new()
    } else if w.is(0xfff0_0000, 0xd530_0000) {
        vec![Effect::Clobber(w.d())] // mrs
    } else {
        vec![Effect::Forget]
    }
}

fn load_store(w: Word) -> Vec<Effect> {
    let is_vector = w.bits(26, 26) == 1;
    let is_load = w.bits(22, 22) == 1;
    let base = w.n();
    // ldp, stp, and their forms that write the base back or hint.
    if w.is(0x3a00_0000, 0x2800_0000) {
        let scale = match (is_vector, w.bits(31, 30)) {
            (false, 0 | 1) => 4,
            (false, _) => 8,
            (true, size) => 4 << size.min(2),
        };
        let distance = w.signed(21, 15) * scale;
        let (pre, post) = (w.bits(24, 23) == 3, w.bits(24, 23) == 1);
        let first = Place { base, offset: if pre || post { 0 } else { distance } };
        let second = Place { base, offset: first.offset + scale };
        let whole = !is_vector && w.bits(31, 30) == 2;
        let mut effects = Vec::new();
        let write_back = Effect::Offset { to: base, from: base, add: distance };
        effects.extend(pre.then_some(write_back));
        match (whole, is_load) {
            // The register that is also the base comes last.
            (true, true) if w.d() == base => {
                effects.extend([Effect::Load { to: w.t2(), at: second }, Effect::Load { to: w.d(), at: first }]);
            }
            (true, true) => {
                effects.extend([Effect::Load { to: w.d(), at: first }, Effect::Load { to: w.t2(), at: second }]);
            }
            (true, false) => effects.extend([store(w.d(), first), store(w.t2(), second)]),
            (false, true) if is_vector => {}
            (false, true) => effects.extend(clobbered([w.d(), w.t2()])),
            (false, false) => effects.push(Effect::Spoil { at: first, bytes: 2 * scale as u64 }),
        }
        effects.extend(post.then_some(write_back));
        return effects;
    }
    // Literals.
    if w.is(0x3b00_0000, 0x1800_0000) {
        return if is_vector { Vec::new() } else { clobbered([w.d()]).collect() };
    }
    // One register: scaled offset, or (bits 25..24 = 00) unscaled, post-indexed, pre-indexed, by register.
    if w.is(0x3a00_0000, 0x3800_0000) {
        let scaled = w.bits(24, 24) == 1;
        let form = w.bits(11, 10);
        let by_register = !scaled && w.bits(21, 21) == 1;
        if by_register && form != 2 {
            // Atomics and pointer authentication.
            return clobbered([w.d(), base, w.m()]).chain([Effect::SpoilAll { base }]).collect();
        }
        let opcode = w.bits(23, 22);
        let size_bytes = if is_vector && opcode >= 2 { 16 } else { 1u64 << w.bits(31, 30) };
        let write_back = !scaled && !by_register && matches!(form, 1 | 3);
        let distance = if write_back { w.signed(20, 12) } else { 0 };
        let at = match memory(w) {
            Some(Place { offset, .. }) if is_vector && opcode >= 2 && scaled => Place { base, offset: offset << 4 },
            Some(place) => place,
            None => Place { base, offset: 0 },
        };
        let mut effects = Vec::new();
        let change = Effect::Offset { to: base, from: base, add: distance };
        effects.extend((write_back && form == 3).then_some(change));
        let is_store = if is_vector { opcode & 1 == 0 } else { opcode == 0 };
        match (is_store, is_vector) {
            (true, _) if by_register => effects.push(Effect::SpoilAll { base }),
            (true, false) if size_bytes == 8 => effects.push(store(w.d(), at)),
            (true, _) => effects.push(Effect::Spoil { at, bytes: size_bytes }),
            (false, true) => {}
            (false, false) if size_bytes == 8 && opcode == 1 && !by_register => {
                effects.push(Effect::Load { to: w.d(), at });
            }
            // Includes prefetches, whose "register" is a hint: knowing less is no harm.
            (false, false) => effects.extend(clobbered([w.d()])),
        }
        effects.extend((write_back && form == 1).then_some(change));
        return effects;
    }
    // Structures of vectors write registers of the other file; with a post-index also the base.
    if w.is(0xbe00_0000, 0x0c00_0000) {
        return vec![Effect::SpoilAll { base }, Effect::Clobber(base)];
    }
    clobbered([w.d(), base, w.m(), w.t2()]).chain([Effect::Forget]).collect()
}

/// A store of a register; of 31 it is zero.
fn store(from: Register, at: Place) -> Effect {
    if from == 31 { Effect::Spoil { at, bytes: 8 } } else { Effect::Store { at, from } }
}

/// Changes of registers that are not the zero register.
fn clobbered<const N: usize>(registers: [Register; N]) -> impl Iterator<Item = Effect> {
    registers.into_iter().filter(|r| *r != 31).map(Effect::Clobber)
}

/// Data processing of registers.
fn register(w: Word) -> Vec<Effect> {
    if w.is(0xffe0_ffe0, 0xaa00_03e0) {
        return if w.m() == 31 { vec![Effect::Clobber(w.d())] } else { vec![Effect::Copy { to: w.d(), from: w.m() }] };
    }
    // Conditional compares hold flags where others have Rd.
    if w.is(0x3fe0_0000, 0x3a40_0000) {
        return Vec::new();
    }
    // Adding an extended register is the one form here that can write the stack pointer.
    let writes_sp = w.is(0x3fe0_0000, 0x0b20_0000);
    if w.d() == 31 && !writes_sp { Vec::new() } else { vec![Effect::Clobber(w.d())] }
}

/// Vectors and floats: only conversions, moves to the general-purpose registers write one.
fn vector(w: Word) -> Vec<Effect> {
    let conversion = w.is(0x7f20_fc00, 0x1e20_0000) || w.is(0x7f20_0000, 0x1e00_0000);
    let element = w.is(0xbfe0_8400, 0x0e00_0400);
    if conversion || element { clobbered([w.d()]).collect() } else { Vec::new() }
}
