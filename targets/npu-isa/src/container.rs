//! The `.npu` file: a program as bytes. Little-endian; the same program gives the same bytes, and only those.
//!
//! | offset | size | field |
//! |---:|---:|---|
//! | 0 | 8 | magic: `89 4E 50 55 0D 0A 1A 0A` (`\x89NPU\r\n\x1a\n`) |
//! | 8 | 2, 2 | major version: 1; minor version: 0 |
//! | 12 | 4 | 1 if the next field is a machine's hash, 0 if the program is for any machine |
//! | 16 | 32 | [`crate::machine::Machine::hash`], or zeros |
//! | 48 | 4, 4, 4, 4 | numbers of instructions, segments, labels, op labels |
//! | 64 | 8 | length of the file |
//! | 72 | 4 | CRC-32 of everything from byte 80 on |
//! | 76 | 4 | CRC-32 of bytes 0 to 75 |
//! | 80 | 16 each | instruction words |
//! | | 32 each | segments: address 8, length 8, bytes of contents 8, bytes of name 4, zeros 4 |
//! | | 8 each | labels: position 4, bytes of name 4 |
//! | | 12 each | op labels: position 4, bytes of name 4, register of the module or 0 4 |
//! | | | names of segments, labels and op labels, one after the other; then contents of segments |
//!
//! Segments ascend without overlap, labels ascend by position, op labels strictly; names of segments and labels are all
//! different.

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::instruction::{DecodeError, EncodeError, Instruction};
use crate::operand::Reg;
use crate::program::{Label, MAX_DRAM, MAX_INSTRUCTIONS, OpLabel, Program, Segment, StructureError, is_name, is_title};

/// First bytes of a file.
pub const MAGIC: [u8; 8] = *b"\x89NPU\r\n\x1a\n";
const MAJOR: u16 = 1;
const MINOR: u16 = 0;
const HEADER_BYTES: usize = 80;

/// Why bytes are no program, or a program has no bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerError {
    /// Byte of the file.
    pub offset: usize,
    /// What is wrong there.
    pub fault: ContainerFault,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContainerFault {
    /// A value that must be another.
    Value {
        /// The field.
        what: &'static str,
        /// What would be right.
        wanted: String,
        /// What it is.
        found: String,
    },
    /// A word that is no instruction.
    Word {
        /// Its position.
        at: usize,
        /// Why not.
        error: DecodeError,
    },
    /// An instruction without a word.
    Encode {
        /// Its position.
        at: usize,
        /// Why not.
        error: EncodeError,
    },
    /// Instructions that are no program.
    Structure(StructureError),
}

impl fmt::Display for ContainerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fault {
            ContainerFault::Value { what, wanted, found } => {
                write!(f, "program, byte {:#x}, {what}: wanted {wanted}, found {found}", self.offset)
            }
            ContainerFault::Word { at, error } => {
                write!(f, "program, byte {:#x}, instruction {at}: {error}", self.offset)
            }
            ContainerFault::Encode { at, error } => write!(f, "program, instruction {at}: {error}"),
            ContainerFault::Structure(error) => write!(f, "program, {error}"),
        }
    }
}

impl core::error::Error for ContainerError {}

fn value(offset: usize, what: &'static str, wanted: impl fmt::Display, found: impl fmt::Display) -> ContainerError {
    use alloc::string::ToString;
    let fault = ContainerFault::Value { what, wanted: wanted.to_string(), found: found.to_string() };
    ContainerError { offset, fault }
}

/// Bytes that are read from the front.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], ContainerError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..n).ok_or_else(|| value(self.at, what, format_args!("{n} bytes"), rest.len()))?;
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], ContainerError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, ContainerError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, ContainerError> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn text(&mut self, n: u32, what: &'static str) -> Result<String, ContainerError> {
        let at = self.at;
        let bytes = self.take(n as usize, what)?;
        core::str::from_utf8(bytes).map(String::from).map_err(|_| value(at, what, "UTF-8", "other bytes"))
    }
}

impl Program {
    /// The bytes of a `.npu` file.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ContainerError> {
        self.check()?;
        let mut body = Vec::new();
        for (at, instruction) in self.instructions.iter().enumerate() {
            let word = instruction.encode();
            let word =
                word.map_err(|error| ContainerError { offset: 0, fault: ContainerFault::Encode { at, error } })?;
            body.extend_from_slice(&word.to_le_bytes());
        }
        let u32s = |body: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| body.extend(v.to_le_bytes()));
        for segment in &self.segments {
            let sizes = [segment.address, segment.len_bytes, segment.bytes.len() as u64];
            sizes.iter().for_each(|v| body.extend(v.to_le_bytes()));
            u32s(&mut body, &[segment.name.len() as u32, 0]);
        }
        self.labels.iter().for_each(|l| u32s(&mut body, &[l.at, l.name.len() as u32]));
        for label in &self.op_labels {
            u32s(&mut body, &[label.at, label.name.len() as u32, label.module.map_or(0, |r| r.number().into())]);
        }
        for name in self.names() {
            body.extend_from_slice(name.as_bytes());
        }
        self.segments.iter().for_each(|s| body.extend_from_slice(&s.bytes));

        let mut file = Vec::with_capacity(HEADER_BYTES + body.len());
        file.extend_from_slice(&MAGIC);
        file.extend(MAJOR.to_le_bytes());
        file.extend(MINOR.to_le_bytes());
        u32s(&mut file, &[u32::from(self.machine_hash.is_some())]);
        file.extend_from_slice(&self.machine_hash.unwrap_or_default());
        let counts = [self.instructions.len(), self.segments.len(), self.labels.len(), self.op_labels.len()];
        counts.iter().for_each(|n| file.extend((*n as u32).to_le_bytes()));
        file.extend(((HEADER_BYTES + body.len()) as u64).to_le_bytes());
        u32s(&mut file, &[crc32fast::hash(&body)]);
        let crc = crc32fast::hash(&file);
        u32s(&mut file, &[crc]);
        file.extend_from_slice(&body);
        Ok(file)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let segments = self.segments.iter().map(|s| s.name.as_str());
        segments
            .chain(self.labels.iter().map(|l| l.name.as_str()))
            .chain(self.op_labels.iter().map(|l| l.name.as_str()))
    }

    /// From the bytes of a `.npu` file. Memory stays below a small multiple of the file's size.
    pub fn from_bytes(bytes: &[u8]) -> Result<Program, ContainerError> {
        let mut r = Reader { bytes, at: 0 };
        let magic: [u8; 8] = r.array("magic")?;
        if magic != MAGIC {
            return Err(value(0, "magic", MAGIC.escape_ascii(), magic.escape_ascii()));
        }
        let version = r.u32("version")?;
        if version != u32::from(MAJOR) | u32::from(MINOR) << 16 {
            return Err(value(8, "version", "1.0", format_args!("{}.{}", version & 0xffff, version >> 16)));
        }
        let has_hash = r.u32("machine")?;
        let hash: [u8; 32] = r.array("machine's hash")?;
        let machine_hash = match has_hash {
            0 if hash == [0; 32] => None,
            1 => Some(hash),
            0 | 2.. => return Err(value(12, "machine", "0 and zeros, or 1 and a hash", has_hash)),
        };
        let mut counts = [0usize; 4];
        for n in &mut counts {
            *n = r.u32("counts")? as usize;
        }
        let len = r.u64("length")?;
        if len != bytes.len() as u64 {
            return Err(value(64, "length of the file", len, bytes.len()));
        }
        let (body_crc, header_crc) = (r.u32("checksum")?, r.u32("checksum")?);
        let found = crc32fast::hash(&bytes[..76]);
        if found != header_crc {
            return Err(value(76, "checksum of the header", header_crc, found));
        }
        let found = crc32fast::hash(&bytes[HEADER_BYTES..]);
        if found != body_crc {
            return Err(value(72, "checksum", body_crc, found));
        }
        let mut program = read_tables(&mut r, counts)?;
        program.machine_hash = machine_hash;
        if r.at != bytes.len() {
            return Err(value(r.at, "bytes behind the program", "none", bytes.len() - r.at));
        }
        program.check()?;
        Ok(program)
    }

    /// Structure, order and names: what a file's program and an assembled one have in common.
    pub fn check(&self) -> Result<(), ContainerError> {
        self.check_structure().map_err(|e| ContainerError { offset: 0, fault: ContainerFault::Structure(e) })?;
        let mut free = 0u64;
        for Segment { address, len_bytes, bytes, .. } in &self.segments {
            if *address < free {
                return Err(value(0, "address of a segment", format_args!("at least {free}"), address));
            }
            free = address.saturating_add(*len_bytes);
            if free > MAX_DRAM || bytes.len() as u64 > *len_bytes || *len_bytes == 0 {
                let wanted = "1 byte or more, its contents or more, below 2^40";
                return Err(value(0, "length of a segment", wanted, format_args!("{len_bytes} at {address}")));
            }
        }
        let mut seen = BTreeSet::new();
        let names = self.segments.iter().map(|s| &s.name).chain(self.labels.iter().map(|l| &l.name));
        for name in names {
            if !is_name(name) || !seen.insert(name) {
                let found = format_args!("{:?}", name.chars().take(40).collect::<String>()).to_string();
                return Err(value(0, "name", "one that is new and no word of the language", found));
            }
        }
        let mut last = 0;
        for label in &self.labels {
            if label.at < last || label.at as usize >= self.instructions.len() {
                let wanted = format_args!("{last} to {}", self.instructions.len() - 1).to_string();
                return Err(value(0, "position of a label", wanted, label.at));
            }
            last = label.at;
        }
        let mut next = 0;
        for label in &self.op_labels {
            if label.at < next || label.at as usize >= self.instructions.len() || !is_title(&label.name) {
                let wanted =
                    format_args!("{next} to {}, and a printable name", self.instructions.len() - 1).to_string();
                return Err(value(0, "position of an op label", wanted, label.at));
            }
            next = label.at + 1;
        }
        Ok(())
    }
}

use alloc::string::ToString;

fn read_tables(
    r: &mut Reader<'_>,
    [instructions, segments, labels, op_labels]: [usize; 4],
) -> Result<Program, ContainerError> {
    let mut program = Program::default();
    if instructions > MAX_INSTRUCTIONS {
        return Err(value(48, "number of instructions", format_args!("at most {MAX_INSTRUCTIONS}"), instructions));
    }
    for at in 0..instructions {
        let offset = r.at;
        let word = u128::from_le_bytes(r.array("instruction")?);
        let error = |error| ContainerError { offset, fault: ContainerFault::Word { at, error } };
        program.instructions.push(Instruction::decode(word).map_err(error)?);
    }
    let mut sizes = Vec::new();
    for _ in 0..segments {
        let (address, len_bytes, bytes) = (r.u64("segment")?, r.u64("segment")?, r.u64("segment")?);
        let (name, zero) = (r.u32("segment")?, r.u32("segment")?);
        if zero != 0 {
            return Err(value(r.at - 4, "reserved bytes", 0, zero));
        }
        sizes.push((name, bytes));
        program.segments.push(Segment { address, len_bytes, ..Segment::default() });
    }
    let mut label_sizes = Vec::new();
    for _ in 0..labels {
        program.labels.push(Label { at: r.u32("label")?, name: String::new() });
        label_sizes.push(r.u32("label")?);
    }
    let mut op_label_sizes = Vec::new();
    for _ in 0..op_labels {
        let at = r.u32("op label")?;
        op_label_sizes.push(r.u32("op label")?);
        let module = r.u32("op label")?;
        let reg = u8::try_from(module).ok().and_then(Reg::new);
        if module != 0 && reg.is_none() {
            return Err(value(r.at - 4, "register of an op label", "0 to 31", module));
        }
        program.op_labels.push(OpLabel { at, name: String::new(), module: reg });
    }
    for (segment, (name, _)) in program.segments.iter_mut().zip(&sizes) {
        segment.name = r.text(*name, "name of a segment")?;
    }
    for (label, name) in program.labels.iter_mut().zip(label_sizes) {
        label.name = r.text(name, "name of a label")?;
    }
    for (label, name) in program.op_labels.iter_mut().zip(op_label_sizes) {
        label.name = r.text(name, "name of an op label")?;
    }
    for (segment, (_, bytes)) in program.segments.iter_mut().zip(sizes) {
        let n = usize::try_from(bytes).unwrap_or(usize::MAX);
        segment.bytes = r.take(n, "contents of a segment")?.to_vec();
    }
    Ok(program)
}
