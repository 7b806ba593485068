//! What can be wrong with an artifact.

use core::fmt;

use crate::container::SectionKind;

/// Why bytes are not a valid artifact: where, what, what was wanted, what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatError {
    /// The part of the file.
    pub place: Place,
    /// Byte offset inside that part.
    pub offset: u64,
    /// What is wrong there.
    pub fault: Fault,
}

/// A part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The first 64 bytes.
    Header,
    /// The section table behind the header.
    SectionTable,
    /// A section's contents.
    Section(SectionKind),
    /// The gap in front of a section, or behind the section table.
    Padding,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Fewer bytes than needed.
    Truncated {
        /// Bytes wanted.
        wanted: u64,
        /// Bytes found.
        found: u64,
    },
    /// Not a `.lapis` file at all.
    Magic {
        /// The first eight bytes.
        found: [u8; 8],
    },
    /// Written for another major version of the format.
    Version {
        /// Major version found.
        major: u16,
        /// Minor version found.
        minor: u16,
    },
    /// Contents and checksum disagree.
    Checksum {
        /// Checksum that the file states.
        wanted: u32,
        /// Checksum of the contents.
        found: u32,
    },
    /// A value that is none of the allowed ones.
    Value {
        /// Name of the field.
        what: &'static str,
        /// The allowed values, in words.
        wanted: &'static str,
        /// The value found.
        found: u64,
    },
    /// A value past its bound.
    AtMost {
        /// Name of the field.
        what: &'static str,
        /// Greatest allowed value.
        wanted: u64,
        /// The value found.
        found: u64,
    },
    /// A value that must be another.
    Exactly {
        /// Name of the field.
        what: &'static str,
        /// The only allowed value.
        wanted: u64,
        /// The value found.
        found: u64,
    },
    /// Text that is not UTF-8, or that a reference cuts inside a character.
    Text {
        /// Name of the field.
        what: &'static str,
    },
    /// Something required is absent.
    Missing {
        /// Its name.
        what: &'static str,
    },
    /// Something is there twice.
    Duplicate {
        /// Its name.
        what: &'static str,
    },
    /// A section begins before the previous one ends.
    Overlap {
        /// End of the previous section.
        previous_end: u64,
        /// Begin of this section.
        found: u64,
    },
    /// A section that this version does not know and may not ignore.
    UnknownSection {
        /// Its kind.
        kind: u32,
    },
}

impl FormatError {
    pub(crate) const fn new(place: Place, offset: u64, fault: Fault) -> Self {
        Self { place, offset, fault }
    }

    /// What the reader of the error can do about it.
    pub const fn hint(&self) -> &'static str {
        match self.fault {
            Fault::Magic { .. } => "is this a .lapis file? `lapidary compile` writes one",
            Fault::Version { .. } | Fault::UnknownSection { .. } => {
                "compile the model again with this version of lapidary, or run it with the one that wrote it"
            }
            Fault::Truncated { .. } => "the file is incomplete: copy it or compile the model again",
            Fault::Checksum { .. } => "the file is damaged: copy it or compile the model again",
            Fault::Value { .. }
            | Fault::AtMost { .. }
            | Fault::Exactly { .. }
            | Fault::Text { .. }
            | Fault::Missing { .. }
            | Fault::Duplicate { .. }
            | Fault::Overlap { .. } => "the file is damaged or its producer is faulty: compile the model again",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Header => f.write_str("header"),
            Place::SectionTable => f.write_str("section table"),
            Place::Section(kind) => write!(f, "section `{kind}`"),
            Place::Padding => f.write_str("padding"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Fault::Truncated { wanted, found } => {
                write!(f, "ends early, wanted {wanted} bytes, found {found}")
            }
            Fault::Magic { found } => {
                write!(f, "magic, wanted \"{}\", found \"{}\"", crate::MAGIC.escape_ascii(), found.escape_ascii())
            }
            Fault::Version { major, minor } => {
                write!(f, "format version, wanted {}.x, found {major}.{minor}", crate::MAJOR)
            }
            Fault::Checksum { wanted, found } => {
                write!(f, "checksum, wanted {wanted:#010x}, found {found:#010x}")
            }
            Fault::Value { what, wanted, found } => write!(f, "{what}, wanted {wanted}, found {found}"),
            Fault::AtMost { what, wanted, found } => write!(f, "{what}, wanted at most {wanted}, found {found}"),
            Fault::Exactly { what, wanted, found } => write!(f, "{what}, wanted {wanted}, found {found}"),
            Fault::Text { what } => write!(f, "{what}, wanted UTF-8 text, found other bytes"),
            Fault::Missing { what } => write!(f, "{what}, wanted one, found none"),
            Fault::Duplicate { what } => write!(f, "{what}, wanted one, found two"),
            Fault::Overlap { previous_end, found } => write!(
                f,
                "begin of the section, wanted at least {previous_end} (end of the previous one), found {found}"
            ),
            Fault::UnknownSection { kind } => write!(f, "critical section, wanted a known kind, found kind {kind}"),
        }
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, byte {:#x}: {}\nhint: {}", self.place, self.offset, self.fault, self.hint())
    }
}

impl core::error::Error for FormatError {}
