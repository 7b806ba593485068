//! Header and section table: the outer shell of the file.

use bitflags::bitflags;

use crate::{
    Fault, FormatError, Place,
    field::{Field, coded_enum},
};

/// The first eight bytes. The high bit and the line ends show up what text-mode copies damage.
pub const MAGIC: [u8; 8] = *b"\x89LAPIS\r\n";
/// Major version: another one cannot be read.
pub const MAJOR: u16 = 1;
/// Minor version: a newer one may append fields, tables and sections that an older reader ignores.
pub const MINOR: u16 = 1;
/// Alignment of sections in the file: pages of 4, 16 and 64 KiB all map.
pub const SECTION_ALIGN: u64 = 64 * 1024;
/// Most sections of a file.
pub const MAX_SECTIONS: u32 = 64;

pub(crate) const HEADER_BYTES: usize = 64;
pub(crate) const SECTION_RECORD_BYTES: usize = 32;

coded_enum! {
    /// What a section holds.
    SectionKind: "1 to 9" {
        /// What the artifact is.
        Manifest = 1, "manifest";
        /// Machine code or NPU program, position-independent.
        Code = 2, "code";
        /// Entry points and steps of the code.
        CodeMap = 3, "code map";
        /// Kernels that the code calls.
        Kernels = 4, "kernels";
        /// Arena, state, inputs and outputs.
        Plan = 5, "plan";
        /// Where each tensor lies in the weights.
        WeightTable = 6, "weight table";
        /// The machine compiled for.
        Target = 7, "target";
        /// The bytes of `tokenizer.json`.
        Tokenizer = 8, "tokenizer";
        /// Packed weights.
        Weights = 9, "weights";
    }
}

impl SectionKind {
    pub(crate) fn from_code(code: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| *kind as u32 == code)
    }

    /// Position in [`SectionKind::ALL`].
    pub(crate) const fn index(self) -> usize {
        self as usize - 1
    }

    /// Whether loading verifies the checksum; the others are left to `check`.
    pub const fn verified_on_load(self) -> bool {
        !matches!(self, SectionKind::Tokenizer | SectionKind::Weights)
    }
}

bitflags! {
    /// Properties of a section.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct SectionFlags: u32 {
        /// A reader that does not know the kind must refuse the file.
        const CRITICAL = 1;
    }
}

/// A row of the section table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// What it holds; `None` for a kind of a newer version that may be ignored.
    pub kind: Option<SectionKind>,
    /// The code of the kind.
    pub kind_code: u32,
    /// Properties.
    pub flags: SectionFlags,
    /// Offset in the file, a multiple of [`SECTION_ALIGN`].
    pub offset: u64,
    /// Size, without padding.
    pub bytes: u64,
    /// CRC-32 (IEEE) of the contents.
    pub crc32: u32,
}

impl Section {
    /// The contents, given the whole file.
    pub(crate) fn slice<'a>(&self, file: &'a [u8]) -> Option<&'a [u8]> {
        let begin = usize::try_from(self.offset).ok()?;
        let len = usize::try_from(self.bytes).ok()?;
        file.get(begin..)?.get(..len)
    }

    /// What errors call the section.
    pub(crate) fn place(&self) -> Place {
        self.kind.map_or(Place::SectionTable, Place::Section)
    }
}

/// The header, once it and the section table are known to be sound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub minor: u16,
    pub sections: u32,
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Fault> {
    u32::read("", bytes.get(at..).unwrap_or_default(), "")
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, Fault> {
    u64::read("", bytes.get(at..).unwrap_or_default(), "")
}

impl Header {
    /// Reads and checks the header and the section table.
    pub(crate) fn parse(file: &[u8]) -> Result<Self, FormatError> {
        let at = |offset: u64| move |fault| FormatError::new(Place::Header, offset, fault);
        let Some(magic) = file.first_chunk::<8>() else {
            return Err(at(0)(Fault::Truncated { wanted: HEADER_BYTES as u64, found: file.len() as u64 }));
        };
        if *magic != MAGIC {
            return Err(at(0)(Fault::Magic { found: *magic }));
        }
        let Some(header) = file.get(..HEADER_BYTES) else {
            return Err(at(0)(Fault::Truncated { wanted: HEADER_BYTES as u64, found: file.len() as u64 }));
        };
        let version = u32_at(header, 8).map_err(at(8))?;
        let (major, minor) = (version as u16, (version >> 16) as u16);
        if major != MAJOR {
            return Err(at(8)(Fault::Version { major, minor }));
        }
        let wanted = u32_at(header, 60).map_err(at(60))?;
        let found = crc32fast::hash(header.get(..60).unwrap_or_default());
        if wanted != found {
            return Err(at(60)(Fault::Checksum { wanted, found }));
        }
        let sections = u32_at(header, 12).map_err(at(12))?;
        if sections > MAX_SECTIONS {
            return Err(at(12)(Fault::AtMost {
                what: "number of sections",
                wanted: u64::from(MAX_SECTIONS),
                found: u64::from(sections),
            }));
        }
        let file_bytes = u64_at(header, 16).map_err(at(16))?;
        let found = file.len() as u64;
        if found < file_bytes {
            return Err(at(16)(Fault::Truncated { wanted: file_bytes, found }));
        }
        if found > file_bytes {
            return Err(at(16)(Fault::Exactly { what: "length of the file", wanted: file_bytes, found }));
        }
        if let Some(byte) = nonzero(header.get(28..60).unwrap_or_default()) {
            return Err(at(28 + byte.0)(Fault::Exactly { what: "reserved byte", wanted: 0, found: byte.1 }));
        }
        let table = section_table(file, sections)?;
        let wanted = u32_at(header, 24).map_err(at(24))?;
        let found = crc32fast::hash(table);
        if wanted != found {
            return Err(FormatError::new(Place::SectionTable, 0, Fault::Checksum { wanted, found }));
        }
        let this = Self { minor, sections };
        this.check_sections(file)?;
        Ok(this)
    }

    /// The rows of the section table.
    pub(crate) fn sections<'a>(&self, file: &'a [u8]) -> impl Iterator<Item = Result<Section, FormatError>> + use<'a> {
        let table = section_table(file, self.sections).unwrap_or_default();
        table.chunks_exact(SECTION_RECORD_BYTES).enumerate().map(|(index, record)| {
            section(record).map_err(|(at, fault)| {
                let offset = index * SECTION_RECORD_BYTES + at;
                FormatError::new(Place::SectionTable, offset as u64, fault)
            })
        })
    }

    fn check_sections(&self, file: &[u8]) -> Result<(), FormatError> {
        let mut end = (HEADER_BYTES + self.sections as usize * SECTION_RECORD_BYTES) as u64;
        let mut seen = [false; SectionKind::ALL.len()];
        for (index, section) in self.sections(file).enumerate() {
            let section = section?;
            let at = |field: usize, fault| {
                let offset = index * SECTION_RECORD_BYTES + field;
                FormatError::new(Place::SectionTable, offset as u64, fault)
            };
            match section.kind {
                Some(kind) => {
                    if let Some(seen) = seen.get_mut(kind.index())
                        && core::mem::replace(seen, true)
                    {
                        return Err(at(0, Fault::Duplicate { what: kind.name() }));
                    }
                }
                None if section.flags.contains(SectionFlags::CRITICAL) => {
                    return Err(at(0, Fault::UnknownSection { kind: section.kind_code }));
                }
                None => {}
            }
            if section.offset % SECTION_ALIGN != 0 {
                return Err(at(
                    8,
                    Fault::Value { what: "begin of the section", wanted: "a multiple of 65536", found: section.offset },
                ));
            }
            if section.offset < end {
                return Err(at(8, Fault::Overlap { previous_end: end, found: section.offset }));
            }
            let found = section.offset.saturating_add(section.bytes);
            if found > file.len() as u64 {
                return Err(at(16, Fault::AtMost { what: "end of the section", wanted: file.len() as u64, found }));
            }
            end = found;
        }
        if end != file.len() as u64 {
            return Err(FormatError::new(
                Place::Header,
                16,
                Fault::Exactly { what: "length of the file", wanted: end, found: file.len() as u64 },
            ));
        }
        Ok(())
    }
}

fn section_table(file: &[u8], sections: u32) -> Result<&[u8], FormatError> {
    let wanted = sections as usize * SECTION_RECORD_BYTES;
    let rest = file.get(HEADER_BYTES..).unwrap_or_default();
    rest.get(..wanted).ok_or(FormatError::new(
        Place::SectionTable,
        0,
        Fault::Truncated { wanted: wanted as u64, found: rest.len() as u64 },
    ))
}

fn section(record: &[u8]) -> Result<Section, (usize, Fault)> {
    let at = |offset| move |fault| (offset, fault);
    let kind_code = u32_at(record, 0).map_err(at(0))?;
    let bits = u32_at(record, 4).map_err(at(4))?;
    let reserved = u32_at(record, 28).map_err(at(28))?;
    if reserved != 0 {
        return Err((28, Fault::Exactly { what: "reserved field", wanted: 0, found: u64::from(reserved) }));
    }
    Ok(Section {
        kind: SectionKind::from_code(kind_code),
        kind_code,
        flags: SectionFlags::from_bits(bits)
            .ok_or((4, Fault::Value { what: "flags of the section", wanted: "0 or 1", found: u64::from(bits) }))?,
        offset: u64_at(record, 8).map_err(at(8))?,
        bytes: u64_at(record, 16).map_err(at(16))?,
        crc32: u32_at(record, 24).map_err(at(24))?,
    })
}

/// Index and value of the first byte that is not zero.
pub(crate) fn nonzero(bytes: &[u8]) -> Option<(u64, u64)> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let chunks = bytes.chunks(ZEROS.len()).enumerate();
    let (chunk, bytes) = chunks.into_iter().find(|(_, chunk)| Some(*chunk) != ZEROS.get(..chunk.len()))?;
    let index = bytes.iter().position(|byte| *byte != 0)?;
    Some(((chunk * ZEROS.len() + index) as u64, u64::from(*bytes.get(index)?)))
}

/// The header and section table of a file with these sections, in order of their offsets.
#[cfg(feature = "std")]
pub(crate) fn write_header(sections: &[Section]) -> std::vec::Vec<u8> {
    let mut table = std::vec::Vec::new();
    for section in sections {
        table.extend_from_slice(&section.kind_code.to_le_bytes());
        table.extend_from_slice(&section.flags.bits().to_le_bytes());
        table.extend_from_slice(&section.offset.to_le_bytes());
        table.extend_from_slice(&section.bytes.to_le_bytes());
        table.extend_from_slice(&section.crc32.to_le_bytes());
        table.extend_from_slice(&0_u32.to_le_bytes());
    }
    let file_bytes = sections.last().map_or(0, |last| last.offset + last.bytes);
    let mut out = std::vec::Vec::with_capacity(HEADER_BYTES + table.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&MAJOR.to_le_bytes());
    out.extend_from_slice(&MINOR.to_le_bytes());
    out.extend_from_slice(&(sections.len() as u32).to_le_bytes());
    out.extend_from_slice(&file_bytes.to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(&table).to_le_bytes());
    out.resize(60, 0);
    out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
    out.extend_from_slice(&table);
    out
}
