//! Tables of records with a string pool: the layout of every section but code, weights and tokenizer.

use core::{fmt, marker::PhantomData};

use crate::{Fault, FormatError, Place, Record, SectionKind, field::Field};

const PREFIX_BYTES: usize = 16;
const DIRECTORY_BYTES: usize = 16;
const MAX_TABLES: u32 = 64;

/// A section of tables whose layout has been checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableSection<'a> {
    kind: SectionKind,
    bytes: &'a [u8],
    tables: u32,
    strings: &'a str,
    newer: bool,
}

impl<'a> TableSection<'a> {
    /// Checks the layout: tables follow each other without gaps, the string pool follows them and ends the section.
    pub(crate) fn parse(kind: SectionKind, bytes: &'a [u8], newer: bool) -> Result<Self, FormatError> {
        let error = |offset: usize, fault| FormatError::new(Place::Section(kind), offset as u64, fault);
        let word = |at: usize| {
            u32::read("", bytes.get(at..).unwrap_or_default(), "")
                .map_err(|_| error(at, Fault::Truncated { wanted: at as u64 + 4, found: bytes.len() as u64 }))
        };
        let exactly = |at: usize, what, wanted: u64, found: u32| {
            if wanted == u64::from(found) {
                Ok(())
            } else {
                Err(error(at, Fault::Exactly { what, wanted, found: u64::from(found) }))
            }
        };
        let (tables, strings_offset, strings_bytes) = (word(0)?, word(4)?, word(8)?);
        exactly(12, "reserved field", 0, word(12)?)?;
        if tables > MAX_TABLES {
            return Err(error(
                0,
                Fault::AtMost { what: "number of tables", wanted: u64::from(MAX_TABLES), found: u64::from(tables) },
            ));
        }
        let mut end = PREFIX_BYTES as u64 + u64::from(tables) * DIRECTORY_BYTES as u64;
        for table in 0..tables as usize {
            let at = PREFIX_BYTES + table * DIRECTORY_BYTES;
            let (count, record_bytes) = (word(at + 4)?, word(at + 8)?);
            exactly(at, "begin of the table", end, word(at)?)?;
            exactly(at + 12, "reserved field", 0, word(at + 12)?)?;
            if record_bytes == 0 || record_bytes % 8 != 0 {
                return Err(error(
                    at + 8,
                    Fault::Value {
                        what: "bytes of a record",
                        wanted: "a multiple of 8",
                        found: u64::from(record_bytes),
                    },
                ));
            }
            end += u64::from(count) * u64::from(record_bytes);
            if end > bytes.len() as u64 {
                return Err(error(
                    at + 4,
                    Fault::AtMost { what: "end of the table", wanted: bytes.len() as u64, found: end },
                ));
            }
        }
        exactly(4, "begin of the strings", end, strings_offset)?;
        let wanted = bytes.len() as u64 - end;
        exactly(8, "bytes of the strings", wanted, strings_bytes)?;
        let pool = bytes.get(end as usize..).unwrap_or_default();
        let strings = core::str::from_utf8(pool)
            .map_err(|utf8| error(end as usize + utf8.valid_up_to(), Fault::Text { what: "strings" }))?;
        Ok(Self { kind, bytes, tables, strings, newer })
    }

    /// The table of `R`, every record of which has been decoded once.
    pub(crate) fn table<R: Record<'a>>(&self) -> Result<Table<'a, R>, FormatError> {
        debug_assert_eq!(R::SECTION, self.kind);
        let error = |offset: usize, fault| FormatError::new(Place::Section(self.kind), offset as u64, fault);
        let at = PREFIX_BYTES + R::TABLE * DIRECTORY_BYTES;
        if R::TABLE >= self.tables as usize {
            return Err(error(0, Fault::Missing { what: R::NAME }));
        }
        let word =
            |at: usize| u32::read("", self.bytes.get(at..).unwrap_or_default(), "").map_err(|fault| error(at, fault));
        let (begin, count, stride) = (word(at)? as usize, word(at + 4)? as usize, word(at + 8)? as usize);
        let wanted = R::BYTES as u64;
        if stride < R::BYTES || (stride > R::BYTES && !self.newer) {
            return Err(error(at + 8, Fault::Exactly { what: "bytes of a record", wanted, found: stride as u64 }));
        }
        let table = Table {
            records: self
                .bytes
                .get(begin..)
                .and_then(|rest| rest.get(..count.checked_mul(stride)?))
                .unwrap_or_default(),
            stride,
            begin,
            strings: self.strings,
            record: PhantomData,
        };
        for (index, bytes) in table.records.chunks_exact(stride).enumerate() {
            R::decode(bytes, self.strings).map_err(|(field, fault)| error(begin + index * stride + field, fault))?;
        }
        Ok(table)
    }

    /// The one record of a table that must have exactly one.
    pub(crate) fn single<R: Record<'a>>(&self) -> Result<R, FormatError> {
        let table = self.table::<R>()?;
        let at = (PREFIX_BYTES + R::TABLE * DIRECTORY_BYTES + 4) as u64;
        let fault = Fault::Exactly { what: "number of records", wanted: 1, found: table.len() as u64 };
        match table.get(0) {
            Some(record) if table.len() == 1 => Ok(record),
            _ => Err(FormatError::new(Place::Section(self.kind), at, fault)),
        }
    }
}

/// Records of one type, read in place. All of them were decoded once when the artifact was parsed.
#[derive(Clone, Copy)]
pub struct Table<'a, R> {
    records: &'a [u8],
    stride: usize,
    begin: usize,
    strings: &'a str,
    record: PhantomData<R>,
}

impl<'a, R: Record<'a>> Table<'a, R> {
    /// Number of records.
    pub fn len(&self) -> usize {
        self.records.len() / self.stride
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Record `index`.
    pub fn get(&self, index: usize) -> Option<R> {
        let begin = index.checked_mul(self.stride)?;
        let bytes = self.records.get(begin..)?.get(..self.stride)?;
        R::decode(bytes, self.strings).ok()
    }

    /// The records in order.
    pub fn iter(&self) -> TableIter<'a, R> {
        TableIter { table: *self, next: 0, end: self.len() }
    }

    /// An error about record `index`.
    pub(crate) fn error(&self, index: usize, fault: Fault) -> FormatError {
        FormatError::new(Place::Section(R::SECTION), (self.begin + index * self.stride) as u64, fault)
    }
}

impl<'a, R: Record<'a>> IntoIterator for Table<'a, R> {
    type Item = R;
    type IntoIter = TableIter<'a, R>;

    fn into_iter(self) -> TableIter<'a, R> {
        self.iter()
    }
}

impl<'a, R: Record<'a>> IntoIterator for &Table<'a, R> {
    type Item = R;
    type IntoIter = TableIter<'a, R>;

    fn into_iter(self) -> TableIter<'a, R> {
        self.iter()
    }
}

/// Iterator over the records of a [`Table`].
#[derive(Clone, Debug)]
pub struct TableIter<'a, R> {
    table: Table<'a, R>,
    next: usize,
    end: usize,
}

impl<'a, R: Record<'a>> Iterator for TableIter<'a, R> {
    type Item = R;

    fn next(&mut self) -> Option<R> {
        let index = self.next;
        if index >= self.end {
            return None;
        }
        self.next += 1;
        self.table.get(index)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.end - self.next;
        (left, Some(left))
    }
}

impl<'a, R: Record<'a>> DoubleEndedIterator for TableIter<'a, R> {
    fn next_back(&mut self) -> Option<R> {
        if self.next >= self.end {
            return None;
        }
        self.end -= 1;
        self.table.get(self.end)
    }
}

impl<'a, R: Record<'a>> ExactSizeIterator for TableIter<'a, R> {}

impl<R> fmt::Debug for Table<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("records", &(self.records.len() / self.stride)).finish_non_exhaustive()
    }
}

/// The bytes of a section made of `tables`, each with its number of records and their size.
#[cfg(feature = "std")]
pub(crate) fn write_tables(tables: &[(std::vec::Vec<u8>, usize, usize)], strings: &[u8]) -> std::vec::Vec<u8> {
    let mut out = std::vec::Vec::new();
    let mut word = |value: usize| {
        out.extend_from_slice(&u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
    };
    let mut end = PREFIX_BYTES + tables.len() * DIRECTORY_BYTES;
    let records: usize = tables.iter().map(|(bytes, ..)| bytes.len()).sum();
    word(tables.len());
    word(end + records);
    word(strings.len());
    word(0);
    for (bytes, count, record_bytes) in tables {
        word(end);
        word(*count);
        word(*record_bytes);
        word(0);
        end += bytes.len();
    }
    for (bytes, ..) in tables {
        out.extend_from_slice(bytes);
    }
    out.extend_from_slice(strings);
    out
}
