//! Directives that fill DRAM.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::expression::{Symbol, evaluate};
use super::line::Piece;
use super::{Assembler, Wrong};
use crate::program::{MAX_DRAM, Program, Segment};

/// Most bytes of contents that a text can make.
const MAX_CONTENTS: u64 = 1 << 26;
/// Where segments without an address begin.
const ALIGN: u64 = 64;

/// The segment that is being filled.
#[derive(Default)]
pub(super) struct Open {
    segment: Option<Segment>,
    /// A low half that waits for its high half.
    nibble: Option<u8>,
    /// Zeros that have not been written.
    zeros: u64,
    /// Bytes of contents so far, of all segments.
    contents: u64,
    /// One past the last segment.
    free: u64,
}

impl Open {
    pub(super) fn close(&mut self, program: &mut Program) {
        if let Some(mut segment) = self.segment.take() {
            segment.bytes.extend(self.nibble.take());
            segment.len_bytes = segment.bytes.len() as u64 + self.zeros;
            self.free = segment.address.saturating_add(segment.len_bytes);
            self.zeros = 0;
            program.segments.push(segment);
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        let segment = self.segment.as_mut().ok_or("wanted a `.data` before it, found none")?;
        self.contents = self.contents.saturating_add(self.zeros).saturating_add(bytes.len() as u64);
        if self.contents > MAX_CONTENTS {
            return Err(format!("wanted at most {MAX_CONTENTS} bytes of contents, found {}", self.contents));
        }
        segment.bytes.extend(self.nibble.take());
        segment.bytes.resize(segment.bytes.len() + self.zeros as usize, 0);
        self.zeros = 0;
        segment.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn write_half(&mut self, half: u8) -> Result<(), String> {
        match self.nibble.take() {
            Some(low) => self.write(&[low | half << 4]),
            None => {
                self.write(&[])?;
                self.nibble = Some(half);
                Ok(())
            }
        }
    }
}

/// An f32 as the nearest f16, ties to even.
fn f16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let size = bits & 0x7fff_ffff;
    if size >= 0x7f80_0000 {
        return sign | 0x7c00 | if size > 0x7f80_0000 { 0x200 } else { 0 };
    }
    // Half of the last place of 65504, and above: infinity.
    if size >= 0x477f_f000 {
        return sign | 0x7c00;
    }
    let round = |value: u32, shift: u32| {
        let (kept, rest, half) = (value >> shift, value & ((1 << shift) - 1), 1 << (shift - 1));
        kept + u32::from(rest > half || (rest == half && kept & 1 == 1))
    };
    let exponent = (size >> 23) as i32 - 127;
    let rounded = match exponent {
        -14.. => round(size - (112 << 23), 13),
        -25..-14 => round((size & 0x7f_ffff) | 0x80_0000, (13 + (-14 - exponent)) as u32),
        _ => 0,
    };
    sign | rounded as u16
}

impl Assembler {
    /// Bytes of a value; of an `i4`, its half byte.
    fn value<'a>(&self, ty: &str, piece: Piece<'a>, what: &str) -> Result<Vec<u8>, Wrong<'a>> {
        let wrong = |wanted: &str| Wrong::new(piece, what, format!("wanted {wanted}, found `{}`", piece.text));
        if ty == "f32" || ty == "f16" {
            let number = piece.text.strip_suffix('f').unwrap_or(piece.text).parse::<f32>().ok();
            let number = number.or_else(|| evaluate(piece.text, &self.symbols).ok().map(|v| v as f32));
            let number = number.ok_or_else(|| wrong("a number"))?;
            return Ok(if ty == "f32" { number.to_le_bytes().into() } else { f16_bits(number).to_le_bytes().into() });
        }
        let value = evaluate(piece.text, &self.symbols).map_err(|e| Wrong::new(piece, what, e.message()))?;
        let (least, most, bytes) = match ty {
            "i4" => (-8, 7, 1),
            "i8" => (-128, 127, 1),
            "u8" => (0, 255, 1),
            "i32" => (i64::from(i32::MIN), i64::from(i32::MAX), 4),
            _ => (0, i64::from(u32::MAX), 4),
        };
        if !(least..=most).contains(&value) {
            return Err(Wrong::new(piece, what, format!("wanted {least} to {most}, found {value}")));
        }
        let mut bytes = value.to_le_bytes()[..bytes].to_vec();
        if ty == "i4" {
            bytes[0] &= 15;
        }
        Ok(bytes)
    }

    fn put<'a>(&mut self, ty: &str, bytes: &[u8], piece: Piece<'a>, what: &str) -> Result<(), Wrong<'a>> {
        let done = if ty == "i4" { self.segment.write_half(bytes[0]) } else { self.segment.write(bytes) };
        done.map_err(|message| Wrong::new(piece, what, message))
    }

    /// `at=…`, or the next free place.
    fn address<'a>(&mut self, piece: Option<Piece<'a>>, what: &str) -> Result<u64, Wrong<'a>> {
        self.segment.close(&mut self.program);
        let Some(piece) = piece else { return Ok(self.segment.free.next_multiple_of(ALIGN)) };
        match piece.text.find('=') {
            Some(equals) if piece.text[..equals].trim() == "at" => self.size(piece.cut(equals, 1).1, what),
            Some(_) | None => Err(Wrong::new(piece, what, format!("wanted at=ADDRESS, found `{}`", piece.text))),
        }
    }

    fn open<'a>(&mut self, name: Piece<'a>, what: &str, address: u64, zeros: u64) -> Result<(), Wrong<'a>> {
        if zeros > MAX_DRAM || address.saturating_add(zeros) > MAX_DRAM || address > i64::MAX as u64 {
            let message = format!("wanted a segment below {MAX_DRAM}, found {zeros} bytes at {address}");
            return Err(Wrong::new(name, what, message));
        }
        self.define(name, what, Symbol::Number(address as i64))?;
        self.segment.segment = Some(Segment { address, name: name.text.into(), ..Segment::default() });
        self.segment.zeros = zeros;
        Ok(())
    }

    pub(super) fn data<'a>(&mut self, name: Piece<'a>, operands: &[Piece<'a>]) -> Result<(), Wrong<'a>> {
        let what = name.text;
        let few = |wanted: &str| Wrong::new(name, what, format!("wanted {wanted}, found {} operands", operands.len()));
        match (what, operands) {
            (".data", [segment, rest @ ..]) if rest.len() < 2 => {
                let address = self.address(rest.first().copied(), what)?;
                self.open(*segment, what, address, 0)
            }
            (".data", _) => Err(few("a name and at most an address")),
            (".space", [segment, bytes, rest @ ..]) if rest.len() < 2 => {
                let address = self.address(rest.first().copied(), what)?;
                let bytes = self.size(*bytes, what)?;
                self.open(*segment, what, address, bytes)?;
                self.segment.close(&mut self.program);
                Ok(())
            }
            (".space", _) => Err(few("a name, a number of bytes and at most an address")),
            (".zero", [bytes]) => {
                let zeros = self.size(*bytes, what)?;
                self.segment.write(&[]).map_err(|message| Wrong::new(name, what, message))?;
                self.segment.zeros = zeros.min(MAX_DRAM);
                Ok(())
            }
            (".zero", _) => Err(few("a number of bytes")),
            (".fill", [ty, value, times]) => {
                let known = matches!(ty.text, "f32" | "f16" | "i8" | "u8" | "i32" | "u32" | "i4");
                let message = || format!("wanted f32, f16, i8, u8, i32, u32 or i4, found `{}`", ty.text);
                if !known {
                    return Err(Wrong::new(*ty, what, message()));
                }
                let bytes = self.value(ty.text, *value, what)?;
                let times_n = self.size(*times, what)?;
                if times_n > MAX_CONTENTS {
                    let message = format!("wanted at most {MAX_CONTENTS}, found {times_n}");
                    return Err(Wrong::new(*times, what, message));
                }
                match ty.text {
                    "i4" => (0..times_n).try_for_each(|_| self.put(ty.text, &bytes, name, what)),
                    _ => self.put(ty.text, &bytes.repeat(times_n as usize), name, what),
                }
            }
            (".fill", _) => Err(few("a type, a value and a number of times")),
            (".f32" | ".f16" | ".i8" | ".u8" | ".i32" | ".u32" | ".i4", values) => {
                if values.is_empty() {
                    return Err(few("values"));
                }
                for piece in values {
                    let bytes = self.value(&what[1..], *piece, what)?;
                    self.put(&what[1..], &bytes, *piece, what)?;
                }
                Ok(())
            }
            _ => {
                Err(Wrong::new(name, "directive", format!("wanted one of the assembler's directives, found `{what}`")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::f16_bits;

    /// Every f16 that is a number is its own nearest one, and so are the midpoints' even neighbours.
    #[test]
    fn f16_rounds_to_nearest_even() {
        let value = |h: u16| {
            let (e, m) = (i32::from(h >> 10 & 31), f32::from(h & 1023));
            if e == 0 { m * 2f32.powi(-24) } else { (1024.0 + m) * 2f32.powi(e - 25) }
        };
        for h in 0..0x7c00u16 {
            assert_eq!(f16_bits(value(h)), h);
            assert_eq!(f16_bits(-value(h)), h | 0x8000);
            let next = if h == 0x7bff { 65536.0 } else { value(h + 1) };
            let middle = (value(h) + next) / 2.0;
            assert_eq!(f16_bits(middle), h + (h & 1), "{h:#x}");
        }
        assert_eq!(f16_bits(f32::INFINITY), 0x7c00);
        assert_eq!(f16_bits(f32::NAN) & 0x7e00, 0x7e00);
        assert_eq!(f16_bits(1e-30), 0);
    }
}
