//! Writing an artifact: tables in memory, weights streamed.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    io::{self, BufWriter, Cursor, Seek, SeekFrom, Write},
    path::Path,
    string::{String, ToString},
    vec::Vec,
};

use crate::{
    Buffer, Component, DomainName, Entry, Extent, Feature, FormatError, Kernel, MAX_SECTIONS, Manifest, Plan, Port,
    Record, SECTION_ALIGN, Section, SectionFlags, SectionKind, StateBuffer, Step, Target, Tensor,
    container::{HEADER_BYTES, SECTION_RECORD_BYTES, write_header},
    contents::{Contents, Sections},
    record::StringPool,
    replace_file,
    table::write_tables,
};

/// Why an artifact was not written.
#[derive(Debug)]
pub enum WriteError {
    /// The file system or the source of the weights failed.
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The tables contradict each other or a limit of the format.
    Format(FormatError),
    /// Not as many bytes of weights came as the plan says.
    WeightsSize {
        /// `weights_bytes` of the plan.
        wanted: u64,
        /// Bytes that came.
        found: u64,
    },
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WriteError::Io { doing, source } => write!(f, "artifact: {doing}: {source}"),
            WriteError::Format(error) => write!(f, "artifact to be written: {error}"),
            WriteError::WeightsSize { wanted, found } => {
                write!(f, "weights to be written: size, wanted {wanted} bytes (the plan), found {found}")
            }
        }
    }
}

impl std::error::Error for WriteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            WriteError::Io { source, .. } => Some(source),
            WriteError::Format(error) => Some(error),
            WriteError::WeightsSize { .. } => None,
        }
    }
}

impl From<io::Error> for WriteError {
    fn from(source: io::Error) -> Self {
        WriteError::Io { doing: "write", source }
    }
}

fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> WriteError {
    move |source| WriteError::Io { doing, source }
}

/// Tables of one section under construction.
#[derive(Debug, Default)]
struct SectionBuilder {
    /// Bytes, number of records, size of a record.
    tables: Vec<(Vec<u8>, usize, usize)>,
    strings: StringPool,
}

impl SectionBuilder {
    fn table(&mut self, index: usize, record_bytes: usize) -> &mut (Vec<u8>, usize, usize) {
        if self.tables.len() <= index {
            self.tables.resize(index + 1, (Vec::new(), 0, 8));
        }
        let table = &mut self.tables[index];
        table.2 = record_bytes;
        table
    }

    fn push<'r, R: Record<'r>>(&mut self, record: R) -> u32 {
        let index = self.table(R::TABLE, R::BYTES).1;
        let mut bytes = core::mem::take(&mut self.table(R::TABLE, R::BYTES).0);
        record.encode(&mut bytes, &mut self.strings);
        *self.table(R::TABLE, R::BYTES) = (bytes, index + 1, R::BYTES);
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    fn bytes(&self) -> Vec<u8> {
        write_tables(&self.tables, &self.strings.bytes)
    }
}

/// Collects an artifact and writes it.
///
/// The same calls give the same bytes. What is written has passed the checks of [`crate::Artifact::parse`].
#[derive(Debug)]
pub struct ArtifactBuilder {
    sections: [SectionBuilder; SectionKind::ALL.len()],
    weights_bytes: u64,
    kernels: HashMap<String, u32>,
    code: Vec<u8>,
    tokenizer: Option<Vec<u8>>,
}

impl ArtifactBuilder {
    /// Begins an artifact.
    pub fn new(manifest: Manifest<'_>, plan: Plan) -> Self {
        let mut this = Self {
            sections: Default::default(),
            weights_bytes: plan.weights_bytes,
            kernels: HashMap::new(),
            code: Vec::new(),
            tokenizer: None,
        };
        this.declare::<Manifest<'_>>();
        this.declare::<DomainName<'_>>();
        this.declare::<Feature<'_>>();
        this.declare::<Plan>();
        this.declare::<Port<'_>>();
        this.declare::<Buffer<'_>>();
        this.declare::<StateBuffer<'_>>();
        this.declare::<Kernel<'_>>();
        this.declare::<Entry<'_>>();
        this.declare::<Step<'_>>();
        this.declare::<Tensor<'_>>();
        this.declare::<Extent>();
        this.declare::<Component<'_>>();
        this.declare::<Target<'_>>();
        this.push(manifest);
        this.push(plan);
        this
    }

    fn declare<'r, R: Record<'r>>(&mut self) {
        self.sections[R::SECTION.index()].table(R::TABLE, R::BYTES);
    }

    /// Appends a record to its table and returns its index there.
    ///
    /// A second [`Manifest`] or [`Plan`] makes writing fail; kernels go through [`ArtifactBuilder::kernel`].
    pub fn push<'r, R: Record<'r>>(&mut self, record: R) -> u32 {
        self.sections[R::SECTION.index()].push(record)
    }

    /// Index of a kernel in the context's table; the first call with a name imports it.
    pub fn kernel(&mut self, name: &str) -> u32 {
        if let Some(&index) = self.kernels.get(name) {
            return index;
        }
        let index = self.push(Kernel { name });
        self.kernels.insert(name.to_string(), index);
        index
    }

    /// Sets the code section.
    pub fn set_code(&mut self, code: Vec<u8>) {
        self.code = code;
    }

    /// Sets the bytes of `tokenizer.json`.
    pub fn set_tokenizer(&mut self, json: Vec<u8>) {
        self.tokenizer = Some(json);
    }

    /// Writes the file: into a temporary file beside it, which takes its place when all is on the disk.
    ///
    /// `weights` writes exactly `plan.weights_bytes` bytes. Returns the size of the file.
    pub fn write_file(
        &self,
        path: &Path,
        weights: impl FnOnce(&mut WeightsWriter<'_>) -> io::Result<()>,
    ) -> Result<u64, WriteError> {
        replace_file(path, |file| {
            let mut out = BufWriter::with_capacity(1 << 20, file);
            let bytes = self.write_to(&mut out, weights)?;
            out.flush()?;
            Ok(bytes)
        })
    }

    /// The artifact as bytes.
    pub fn to_vec(
        &self,
        weights: impl FnOnce(&mut WeightsWriter<'_>) -> io::Result<()>,
    ) -> Result<Vec<u8>, WriteError> {
        let mut out = Cursor::new(Vec::new());
        self.write_to(&mut out, weights)?;
        Ok(out.into_inner())
    }

    /// Writes the artifact at the begin of an empty stream and returns its size.
    pub fn write_to<W: Write + Seek>(
        &self,
        out: &mut W,
        weights: impl FnOnce(&mut WeightsWriter<'_>) -> io::Result<()>,
    ) -> Result<u64, WriteError> {
        let payloads = self.payloads();
        self.check(&payloads).map_err(WriteError::Format)?;
        let count = payloads.len() + 1;
        let mut end = (HEADER_BYTES + count * SECTION_RECORD_BYTES) as u64;
        out.seek(SeekFrom::Start(0)).map_err(io_error("seek"))?;
        pad(out, end).map_err(io_error("write"))?;
        let mut table = Vec::with_capacity(count);
        for (kind, bytes) in &payloads {
            let offset = end.next_multiple_of(SECTION_ALIGN);
            pad(out, offset - end).map_err(io_error("write"))?;
            out.write_all(bytes).map_err(io_error("write"))?;
            end = offset + bytes.len() as u64;
            table.push(row(*kind, offset, bytes.len() as u64, crc32fast::hash(bytes)));
        }
        let offset = end.next_multiple_of(SECTION_ALIGN);
        pad(out, offset - end).map_err(io_error("write"))?;
        let mut writer = WeightsWriter { out, position: 0, limit: self.weights_bytes, crc: crc32fast::Hasher::new() };
        weights(&mut writer).map_err(io_error("write the weights"))?;
        let (found, crc) = (writer.position, writer.crc.finalize());
        if found != self.weights_bytes {
            return Err(WriteError::WeightsSize { wanted: self.weights_bytes, found });
        }
        table.push(row(SectionKind::Weights, offset, found, crc));
        out.seek(SeekFrom::Start(0)).map_err(io_error("seek"))?;
        out.write_all(&write_header(&table)).map_err(io_error("write"))?;
        Ok(offset + found)
    }

    /// All sections but the weights, in file order.
    fn payloads(&self) -> Vec<(SectionKind, Cow<'_, [u8]>)> {
        let mut payloads: Vec<(SectionKind, Cow<'_, [u8]>)> = Vec::new();
        for (kind, section) in SectionKind::ALL.iter().zip(&self.sections) {
            let bytes = match kind {
                SectionKind::Code => Cow::Borrowed(self.code.as_slice()),
                SectionKind::Tokenizer => match &self.tokenizer {
                    Some(json) => Cow::Borrowed(json.as_slice()),
                    None => continue,
                },
                SectionKind::Weights => continue,
                SectionKind::Manifest
                | SectionKind::CodeMap
                | SectionKind::Kernels
                | SectionKind::Plan
                | SectionKind::WeightTable
                | SectionKind::Target => Cow::Owned(section.bytes()),
            };
            payloads.push((*kind, bytes));
        }
        payloads
    }

    /// What a reader would check.
    fn check(&self, payloads: &[(SectionKind, Cow<'_, [u8]>)]) -> Result<(), FormatError> {
        let mut sections = Sections { weights_bytes: self.weights_bytes, ..Sections::default() };
        for (kind, bytes) in payloads {
            sections.bytes[kind.index()] = Some(bytes);
        }
        Contents::parse(&sections).map(|_| ())
    }
}

fn row(kind: SectionKind, offset: u64, bytes: u64, crc32: u32) -> Section {
    Section { kind: Some(kind), kind_code: kind as u32, flags: SectionFlags::CRITICAL, offset, bytes, crc32 }
}

fn pad(out: &mut dyn Write, mut bytes: u64) -> io::Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    while bytes > 0 {
        let piece = bytes.min(ZEROS.len() as u64);
        out.write_all(&ZEROS[..piece as usize])?;
        bytes -= piece;
    }
    Ok(())
}

/// Where the weights are streamed to; keeps position and checksum.
pub struct WeightsWriter<'w> {
    out: &'w mut dyn Write,
    position: u64,
    limit: u64,
    crc: crc32fast::Hasher,
}

impl WeightsWriter<'_> {
    /// Bytes written: the offset in the section of what comes next.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Writes zeros up to `offset`; one that already lies behind is an error.
    pub fn pad_to(&mut self, offset: u64) -> io::Result<()> {
        let Some(bytes) = offset.checked_sub(self.position) else {
            return Err(io::Error::other(std::format!(
                "weights, byte {}: padding, wanted an offset not behind, found {offset}",
                self.position
            )));
        };
        pad(self, bytes)
    }
}

impl Write for WeightsWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.limit - self.position;
        if bytes.len() as u64 > room {
            return Err(io::Error::other(std::format!(
                "weights, byte {}: size, wanted at most {} bytes (the plan), found more",
                self.position,
                self.limit
            )));
        }
        let written = self.out.write(bytes)?;
        self.crc.update(&bytes[..written]);
        self.position += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl fmt::Debug for WeightsWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeightsWriter")
            .field("position", &self.position)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

const _: () = assert!(SectionKind::ALL.len() < MAX_SECTIONS as usize);
