//! Damage: how the bytes of a good file become those of a bad one. Each is a function of a seed alone.

use std::ops::Range;

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`; 0 for 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.next().checked_rem(limit as u64).unwrap_or(0) as usize
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

const INTEGERS: [u64; 20] = [
    0,
    1,
    2,
    7,
    63,
    64,
    65,
    127,
    255,
    4096,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_ff00,
    0xffff_ffff_ffff_ffff,
];

const NUMBERS: [&str; 24] = [
    "0",
    "1",
    "-1",
    "2",
    "63",
    "65",
    "255",
    "4095",
    "4096",
    "65536",
    "1048576",
    "16777216",
    "2147483648",
    "4294967295",
    "4294967296",
    "1000000000000000000",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "1e-40",
    "-0.0",
    "null",
    "\"7\"",
];

const WORDS: [&str; 28] = [
    "null",
    "true",
    "false",
    "{}",
    "[]",
    "\"\"",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    ",",
    ":",
    "\"",
    "'",
    "\\",
    "\\u0000",
    "\\ud800",
    "%0",
    "%1",
    "@w",
    "_",
    "T",
    "S",
    "\u{1f600}",
    "\u{0}",
    "\n",
];

/// What to damage, and where damage is likeliest to matter.
pub struct Subject<'a> {
    /// The good file.
    pub bytes: &'a [u8],
    /// Three of four damages are here; empty: everywhere.
    pub hot: &'a [Range<usize>],
    /// Text: numbers and words are replaced too, and lengths matter less than structure.
    pub is_text: bool,
}

/// A damaged copy, and what was done to it.
pub fn damaged(subject: &Subject<'_>, random: &mut Random) -> (Vec<u8>, String) {
    let mut bytes = subject.bytes.to_vec();
    let mut done = String::new();
    for _ in 0..[1, 1, 1, 2, 2, 3, 5][random.below(7)] {
        let text = subject.is_text && random.below(2) == 0;
        let what = if text { damage_text(&mut bytes, random) } else { damage(&mut bytes, subject.hot, random) };
        done = format!("{done}{}{what}", if done.is_empty() { "" } else { ", " });
    }
    (bytes, done)
}

fn place(bytes: &[u8], hot: &[Range<usize>], random: &mut Random) -> usize {
    if !hot.is_empty() && random.below(4) > 0 {
        let range = &hot[random.below(hot.len())];
        let at = range.start + random.below(range.len());
        if at < bytes.len() {
            return at;
        }
    }
    random.below(bytes.len())
}

fn damage(bytes: &mut Vec<u8>, hot: &[Range<usize>], random: &mut Random) -> String {
    if bytes.is_empty() {
        bytes.push(random.next() as u8);
        return "a byte into nothing".into();
    }
    let at = place(bytes, hot, random);
    let left = bytes.len() - at;
    let longest = random.of(&[16, 16, 16, 5000]);
    let span = 1 + random.below(left.min(longest));
    match random.below(10) {
        0 | 1 => {
            let bit = random.below(8);
            bytes[at] ^= 1 << bit;
            format!("bit {bit} of byte {at}")
        }
        2 => {
            bytes[at] = random.next() as u8;
            format!("byte {at}")
        }
        3..=5 => {
            let size = random.of(&[2, 4, 4, 8, 8]);
            let (begin, value) = (at / size * size, random.of(&INTEGERS));
            let value = if random.below(3) == 0 { bytes.len() as u64 } else { value };
            for (byte, new) in bytes[begin..].iter_mut().take(size).zip(value.to_le_bytes()) {
                *byte = new;
            }
            format!("{value:#x} in the {size} bytes at {begin}")
        }
        6 => {
            bytes.drain(at..at + span);
            format!("{at}..{} deleted", at + span)
        }
        7 => {
            let new: Vec<u8> = (0..span).map(|_| random.next() as u8).collect();
            bytes.splice(at..at, new);
            format!("{span} bytes inserted at {at}")
        }
        8 => {
            let copy = bytes[at..at + span].to_vec();
            let to = random.below(bytes.len());
            bytes.splice(to..to, copy);
            format!("{at}..{} again at {to}", at + span)
        }
        _ => {
            bytes.truncate(at);
            format!("cut at {at}")
        }
    }
}

fn damage_text(bytes: &mut Vec<u8>, random: &mut Random) -> String {
    let at = random.below(bytes.len());
    match random.below(5) {
        0..=2 => {
            // The next number from here.
            let digit = |b: &u8| b.is_ascii_digit();
            let Some(begin) = bytes[at.min(bytes.len())..].iter().position(digit).map(|n| at + n) else {
                return "nothing".into();
            };
            let end = bytes[begin..].iter().position(|b| !b.is_ascii_digit()).map_or(bytes.len(), |n| begin + n);
            let new = random.of(&NUMBERS);
            bytes.splice(begin..end, new.bytes());
            format!("the number at {begin} becomes {new}")
        }
        3 => {
            let word = random.of(&WORDS);
            let end = (at + random.below(8)).min(bytes.len());
            bytes.splice(at..end, word.bytes());
            format!("{at}..{end} becomes {word:?}")
        }
        _ => {
            let word = random.of(&["[", "{\"a\":", "(", "\"a\",", "((", "\\", "%1 = ", "concat(", "1"]);
            let times = random.of(&[10, 200, 5000]);
            bytes.splice(at..at, word.repeat(times).bytes());
            format!("{times} times {word:?} at {at}")
        }
    }
}

/// Makes an artifact's checksums right, and the length in its header if asked to, so that the checks behind them are reached.
pub fn reseal(file: &mut [u8], length: bool) {
    let word =
        |file: &[u8], at: usize| file.get(at..).and_then(|rest| rest.first_chunk()).map(|b| u64::from_le_bytes(*b));
    let put = |file: &mut [u8], at: usize, value: &[u8]| {
        if let Some(place) = file.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    };
    if length {
        let len = file.len() as u64;
        put(file, 16, &len.to_le_bytes());
    }
    let sections = file.get(12..16).map_or(0, |b| u32::from_le_bytes(b.try_into().expect("4 bytes"))).min(64) as usize;
    for row in (0..sections).map(|index| 64 + 32 * index) {
        let (Some(begin), Some(len)) = (word(file, row + 8), word(file, row + 16)) else { continue };
        let contents = file.get(begin as usize..).and_then(|rest| rest.get(..len as usize)).map(crc32fast::hash);
        if let Some(crc) = contents {
            put(file, row + 24, &crc.to_le_bytes());
        }
    }
    if let Some(crc) = file.get(64..64 + 32 * sections).map(crc32fast::hash) {
        put(file, 24, &crc.to_le_bytes());
    }
    if let Some(crc) = file.get(..60).map(crc32fast::hash) {
        put(file, 60, &crc.to_le_bytes());
    }
}
