//! Reading an artifact in place.

use core::ops::Range;

use crate::{
    Buffer, Component, DomainName, Entry, Extent, Fault, Feature, FormatError, Kernel, MINOR, Manifest, Place, Plan,
    Port, Section, SectionKind, StateBuffer, Step, Table, Target, Tensor,
    container::{HEADER_BYTES, Header, SECTION_RECORD_BYTES, nonzero},
    contents::{Contents, Sections},
};

/// A `.lapis` file whose structure has been checked.
///
/// Everything borrows from the file's bytes; nothing is allocated or copied.
#[derive(Clone, Copy, Debug)]
pub struct Artifact<'a> {
    file: &'a [u8],
    header: Header,
    contents: Contents<'a>,
    code: &'a [u8],
    code_offset: u64,
    weights: &'a [u8],
    weights_offset: u64,
    tokenizer: Option<&'a [u8]>,
}

impl<'a> Artifact<'a> {
    /// Checks the structure of a whole file and the checksums of all sections but weights and tokenizer.
    ///
    /// The time is that of the tables and the code, whatever the size of the weights.
    pub fn parse(file: &'a [u8]) -> Result<Self, FormatError> {
        let header = Header::parse(file)?;
        let mut sections = Sections { newer: header.minor > MINOR, ..Sections::default() };
        let (mut code_offset, mut weights_offset) = (0, 0);
        for section in header.sections(file) {
            let section = section?;
            let (Some(kind), Some(bytes)) = (section.kind, section.slice(file)) else {
                continue;
            };
            if kind.verified_on_load() {
                check_crc(&section, bytes)?;
            }
            match kind {
                SectionKind::Code => code_offset = section.offset,
                SectionKind::Weights => {
                    sections.weights_bytes = section.bytes;
                    weights_offset = section.offset;
                }
                SectionKind::Manifest
                | SectionKind::CodeMap
                | SectionKind::Kernels
                | SectionKind::Plan
                | SectionKind::WeightTable
                | SectionKind::Target
                | SectionKind::Tokenizer => {}
            }
            if let Some(slot) = sections.bytes.get_mut(kind.index()) {
                *slot = Some(bytes);
            }
        }
        let raw = |kind: SectionKind| sections.bytes.get(kind.index()).copied().flatten();
        let required = |kind: SectionKind| {
            raw(kind).ok_or(FormatError::new(Place::SectionTable, 0, Fault::Missing { what: kind.name() }))
        };
        Ok(Self {
            file,
            header,
            contents: Contents::parse(&sections)?,
            code: required(SectionKind::Code)?,
            code_offset,
            weights: required(SectionKind::Weights)?,
            weights_offset,
            tokenizer: raw(SectionKind::Tokenizer),
        })
    }

    /// Verifies every checksum, and that all padding is zero: reads the whole file.
    pub fn check(&self) -> Result<(), FormatError> {
        let mut end = HEADER_BYTES + self.header.sections as usize * SECTION_RECORD_BYTES;
        for section in self.sections() {
            let begin = section.offset as usize;
            if let Some((at, found)) = nonzero(self.file.get(end..begin).unwrap_or_default()) {
                return Err(FormatError::new(
                    Place::Padding,
                    end as u64 + at,
                    Fault::Exactly { what: "padding byte", wanted: 0, found },
                ));
            }
            let bytes = section.slice(self.file).unwrap_or_default();
            check_crc(&section, bytes)?;
            end = begin + bytes.len();
        }
        Ok(())
    }

    /// Major and minor version of the file.
    pub fn version(&self) -> (u16, u16) {
        (crate::MAJOR, self.header.minor)
    }

    /// Size of the file.
    pub fn file_bytes(&self) -> u64 {
        self.file.len() as u64
    }

    /// The section table.
    pub fn sections(&self) -> impl Iterator<Item = Section> + use<'a> {
        self.header.sections(self.file).filter_map(Result::ok)
    }

    /// What the artifact is.
    pub fn manifest(&self) -> &Manifest<'a> {
        &self.contents.manifest
    }

    /// Names of the domains: none, or one per domain.
    pub fn domain_names(&self) -> Table<'a, DomainName<'a>> {
        self.contents.domain_names
    }

    /// CPU features that code and kernels need.
    pub fn features(&self) -> Table<'a, Feature<'a>> {
        self.contents.features
    }

    /// Memory that a run needs.
    pub fn plan(&self) -> &Plan {
        &self.contents.plan
    }

    /// Inputs and outputs.
    pub fn ports(&self) -> Table<'a, Port<'a>> {
        self.contents.ports
    }

    /// Buffers of the arena.
    pub fn buffers(&self) -> Table<'a, Buffer<'a>> {
        self.contents.buffers
    }

    /// Parts of the state.
    pub fn state_buffers(&self) -> Table<'a, StateBuffer<'a>> {
        self.contents.state_buffers
    }

    /// Kernels in the order of the context's table.
    pub fn kernels(&self) -> Table<'a, Kernel<'a>> {
        self.contents.kernels
    }

    /// Entry points.
    pub fn entries(&self) -> Table<'a, Entry<'a>> {
        self.contents.entries
    }

    /// Offset of the `prefill` entry point in the code.
    pub fn prefill_offset(&self) -> u64 {
        self.contents.prefill
    }

    /// Offset of the `decode` entry point in the code; always there when the manifest says `CAN_DECODE`.
    pub fn decode_offset(&self) -> Option<u64> {
        self.contents.decode
    }

    /// Steps in the order of execution.
    pub fn steps(&self) -> Table<'a, Step<'a>> {
        self.contents.steps
    }

    /// Tensors of the weights section.
    pub fn tensors(&self) -> Table<'a, Tensor<'a>> {
        self.contents.tensors
    }

    /// Contiguous ranges of the weights section by layer and module, ascending.
    pub fn extents(&self) -> Table<'a, Extent> {
        self.contents.extents
    }

    /// Components of the model and their formats.
    pub fn components(&self) -> Table<'a, Component<'a>> {
        self.contents.components
    }

    /// The machine compiled for, when the artifact says so.
    pub fn target(&self) -> Option<Target<'a>> {
        self.contents.target.get(0)
    }

    /// Machine code.
    pub fn code(&self) -> &'a [u8] {
        self.code
    }

    /// Where the code lies in the file.
    pub fn code_range(&self) -> Range<u64> {
        self.code_offset..self.code_offset + self.code.len() as u64
    }

    /// Packed weights.
    pub fn weights(&self) -> &'a [u8] {
        self.weights
    }

    /// Where the weights lie in the file.
    pub fn weights_range(&self) -> Range<u64> {
        self.weights_offset..self.weights_offset + self.weights.len() as u64
    }

    /// The bytes of `tokenizer.json`.
    pub fn tokenizer(&self) -> Option<&'a [u8]> {
        self.tokenizer
    }
}

fn check_crc(section: &Section, bytes: &[u8]) -> Result<(), FormatError> {
    let found = crc32fast::hash(bytes);
    if found == section.crc32 {
        return Ok(());
    }
    let wanted = section.crc32;
    Err(FormatError::new(section.place(), 0, Fault::Checksum { wanted, found }))
}
