//! Self-contained executables: the runner, zeros up to a multiple of 64 KiB, an artifact, a trailer (see FORMAT.md).
//!
//! The runner is this command built without the compiler for a static target. When it starts it looks at the end of its own
//! file, and with an artifact there it is the model's own program. Reading the trailer is all that this costs.

use std::env;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use lapidary_format::{MAGIC as ARTIFACT_MAGIC, SECTION_ALIGN};
use lapidary_runtime::{ArtifactFile, OpenError};

/// Bytes of the trailer.
pub const TRAILER_BYTES: u64 = 32;
/// Begin of the trailer.
const MAGIC: [u8; 8] = *b"\x89LAPEXE\n";
/// Bytes that the checksum covers: magic, offset, length, zero.
const CHECKED_BYTES: usize = 28;

/// An executable that carries an artifact, opened.
#[derive(Debug)]
pub struct Carrier {
    /// The executable.
    pub file: File,
    /// What errors call it.
    pub path: PathBuf,
    /// Where the artifact lies in it.
    pub range: Range<u64>,
}

/// The running program, if it carries an artifact.
pub fn this() -> anyhow::Result<Option<Carrier>> {
    let this = Path::new("/proc/self/exe");
    match File::open(this) {
        Ok(file) => Carrier::of(file, &env::current_exe().unwrap_or_else(|_| this.into())),
        // With the compiler in it, it carries nothing.
        Err(_) if cfg!(feature = "compiler") || !cfg!(target_os = "linux") => Ok(None),
        Err(error) => {
            let place = format!("{}: wanted to read the program itself\nhint: mount /proc", this.display());
            Err(error).context(place)
        }
    }
}

impl Carrier {
    /// The artifact that `file` carries, if any; errors call the file `path`.
    pub fn of(file: File, path: &Path) -> anyhow::Result<Option<Carrier>> {
        let bytes = file.metadata().with_context(|| format!("{}: read its size", path.display()))?.len();
        let mut trailer = [0; TRAILER_BYTES as usize];
        if let Some(begin) = bytes.checked_sub(TRAILER_BYTES) {
            read_at(&file, path, &mut trailer, begin)?;
        }
        if trailer[..8] != MAGIC {
            return match cut_short(&file, path, bytes)? {
                None => Ok(None),
                Some(wanted) => bail!(
                    "{}: trailer, wanted it at the end of a file of {wanted} bytes, found none in {bytes} bytes\n\
                     hint: the file was cut short or changed; copy or compile it again",
                    path.display()
                ),
            };
        }
        let range = parse_trailer(&trailer, bytes).map_err(|what| {
            anyhow!("{}: trailer: {what}\nhint: the file is damaged; copy or compile it again", path.display())
        })?;
        Ok(Some(Carrier { file, path: path.into(), range }))
    }

    /// The artifact, mapped.
    pub fn open(self) -> Result<ArtifactFile, OpenError> {
        ArtifactFile::in_file(self.file, &self.path, self.range)
    }
}

fn read_at(file: &File, path: &Path, out: &mut [u8], offset: u64) -> anyhow::Result<()> {
    file.read_exact_at(out, offset).with_context(|| format!("{}: read {} bytes at {offset}", path.display(), out.len()))
}

/// Reads an integer of `N` bytes at `at`, which lies inside `bytes`.
fn le<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..at + N).unwrap_or_default();
    field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Where the artifact lies in a file of `file_bytes` that ends in `trailer`, or what is wrong.
fn parse_trailer(trailer: &[u8; TRAILER_BYTES as usize], file_bytes: u64) -> Result<Range<u64>, String> {
    let (wanted, found) = (crc32fast::hash(&trailer[..CHECKED_BYTES]), le::<4>(trailer, CHECKED_BYTES));
    if u64::from(wanted) != found {
        return Err(format!("checksum, wanted {wanted:08x}, found {found:08x}"));
    }
    let (offset, bytes) = (le::<8>(trailer, 8), le::<8>(trailer, 16));
    if offset == 0 || offset % SECTION_ALIGN != 0 {
        return Err(format!("offset, wanted a multiple of {SECTION_ALIGN}, found {offset}"));
    }
    let end = file_bytes - TRAILER_BYTES;
    if offset.checked_add(bytes) != Some(end) {
        return Err(format!("artifact, wanted one that ends at {end}, found {bytes} bytes at {offset}"));
    }
    Ok(offset..end)
}

/// A file without trailer in which an artifact begins all the same, where the program itself ends: how long it ought to be.
fn cut_short(file: &File, path: &Path, bytes: u64) -> anyhow::Result<Option<u64>> {
    let mut header = [0; Elf::HEADER_BYTES];
    if bytes < header.len() as u64 {
        return Ok(None);
    }
    read_at(file, path, &mut header, 0)?;
    let begin = Elf::parse(&header).and_then(|elf| elf.end.checked_next_multiple_of(SECTION_ALIGN));
    let mut artifact = [0; 24];
    match begin {
        Some(begin) if begin.checked_add(artifact.len() as u64).is_some_and(|end| end <= bytes) => {
            read_at(file, path, &mut artifact, begin)?;
            // The length of the artifact, in its header.
            let wanted = begin.saturating_add(le::<8>(&artifact, 16)).saturating_add(TRAILER_BYTES);
            Ok((artifact[..8] == ARTIFACT_MAGIC).then_some(wanted))
        }
        Some(_) | None => Ok(None),
    }
}

/// What matters here of a program's header (64-bit little-endian ELF).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Elf {
    /// `e_machine`.
    machine: u64,
    /// End of the table of sections, the last thing that linkers write.
    end: u64,
}

impl Elf {
    const HEADER_BYTES: usize = 64;

    fn parse(header: &[u8; Self::HEADER_BYTES]) -> Option<Elf> {
        let is_elf = header[..6] == *b"\x7fELF\x02\x01";
        let sections_bytes = le::<2>(header, 0x3a) * le::<2>(header, 0x3c);
        let end = le::<8>(header, 0x28).checked_add(sections_bytes)?;
        is_elf.then_some(Elf { machine: le::<2>(header, 0x12), end })
    }
}

#[cfg(any(test, feature = "compiler"))]
pub use write::write;

#[cfg(any(test, feature = "compiler"))]
mod write {
    use std::io::{BufWriter, Seek, Write};

    use lapidary_format::replace_program;

    use super::*;

    /// `e_machine` of the architectures that lapidary compiles for, and their names in target triples.
    const MACHINES: &[(&str, u64)] = &[("x86_64", 62), ("aarch64", 183)];

    /// Writes `path`: the program `runner`, which is to be one for `triple`, and the artifact that `artifact` writes behind it
    /// and says the size of. Under another name first, then renamed. Returns the size of the file.
    pub fn write<E>(
        path: &Path,
        runner: &Path,
        triple: &str,
        artifact: impl FnOnce(&mut BufWriter<&mut File>) -> Result<u64, E>,
    ) -> anyhow::Result<u64>
    where
        anyhow::Error: From<E>,
    {
        let place = || format!("{}: cannot be written", path.display());
        let program = std::fs::read(runner).with_context(|| format!("{}: read the runner", runner.display()))?;
        check_runner(&program, triple).with_context(|| runner.display().to_string())?;
        replace_program(path, |file| {
            let mut out = BufWriter::with_capacity(1 << 20, file);
            out.write_all(&program).with_context(place)?;
            let offset = (program.len() as u64).next_multiple_of(SECTION_ALIGN);
            out.write_all(&vec![0; offset as usize - program.len()]).with_context(place)?;
            let bytes = artifact(&mut out)?;
            if out.stream_position().with_context(place)? != offset + bytes {
                bail!("{}: artifact, wanted {bytes} bytes, found another length", path.display());
            }
            out.write_all(&trailer(offset, bytes)).with_context(place)?;
            out.flush().with_context(place)?;
            Ok(offset + bytes + TRAILER_BYTES)
        })
    }

    /// The trailer of an artifact of `bytes` at `offset`.
    fn trailer(offset: u64, bytes: u64) -> [u8; TRAILER_BYTES as usize] {
        let mut trailer = [0; TRAILER_BYTES as usize];
        trailer[..8].copy_from_slice(&MAGIC);
        trailer[8..16].copy_from_slice(&offset.to_le_bytes());
        trailer[16..24].copy_from_slice(&bytes.to_le_bytes());
        let checksum = crc32fast::hash(&trailer[..CHECKED_BYTES]);
        trailer[CHECKED_BYTES..].copy_from_slice(&checksum.to_le_bytes());
        trailer
    }

    /// A program for the architecture, with nothing appended yet.
    fn check_runner(program: &[u8], triple: &str) -> anyhow::Result<()> {
        let header = program.get(..Elf::HEADER_BYTES).and_then(|h| h.try_into().ok());
        let Some(elf) = header.and_then(Elf::parse) else {
            bail!("runner, wanted a 64-bit ELF program, found another file");
        };
        let machine = MACHINES.iter().find(|(name, _)| triple.split('-').next() == Some(name));
        if machine.is_none_or(|(_, machine)| elf.machine != *machine) {
            bail!("runner, wanted a program for {triple}, found one for machine {}", elf.machine);
        }
        if program.len().checked_sub(TRAILER_BYTES as usize).is_some_and(|at| program[at..].starts_with(&MAGIC)) {
            bail!("runner, wanted a program without a model, found one that carries a model");
        }
        Ok(())
    }
}
