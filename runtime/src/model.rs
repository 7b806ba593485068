//! Artifacts as files: mapped, checked, ready to run.

use core::{ops::Range, ptr::NonNull};
use std::{boxed::Box, format, fs::File, io, path::Path};

use lapidary_format::{Artifact, FormatError, Manifest};
use thiserror::Error;

use crate::{
    CodeImage, Host, LoadError, Program,
    mapping::{FileMap, KernelTable},
};

/// Why a file cannot be opened as an artifact.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The operating system refused.
    #[error("{}: {doing}, wanted a readable file, found: {source}{}", path.display(), io_hint(doing, source))]
    Io {
        /// The file.
        path: Box<Path>,
        /// What was being done.
        doing: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// The file is not an artifact for this machine.
    #[error("{}: {source}", path.display())]
    Load {
        /// The file.
        path: Box<Path>,
        /// Why not.
        source: LoadError,
    },
}

const MAP_CODE: &str = "map its code";

fn io_hint(doing: &str, source: &io::Error) -> &'static str {
    if doing == MAP_CODE && source.kind() == io::ErrorKind::PermissionDenied {
        "\nhint: is the file system mounted with `noexec`? copy the artifact to another"
    } else {
        "\nhint: check path and permissions"
    }
}

/// A mapped artifact, for any machine: what `inspect` looks at.
#[derive(Debug)]
pub struct ArtifactFile {
    // Borrows from `_map`.
    artifact: Artifact<'static>,
    _map: FileMap,
    file: File,
    path: Box<Path>,
    range: Range<u64>,
}

impl ArtifactFile {
    /// Maps a file and checks its structure. The weights are not read.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let file = open_file(path)?;
        let len = file_bytes(path, &file)?;
        Self::map(path, file, 0..len)
    }

    /// An artifact that is a part of a file, at a multiple of 64 KiB: what a self-contained executable carries.
    /// `path` is what errors call the file.
    pub fn in_file(file: File, path: &Path, range: Range<u64>) -> Result<Self, OpenError> {
        let len = file_bytes(path, &file)?;
        if range.start > range.end || range.end > len {
            let found = format!("{}..{} of {len} bytes", range.start, range.end);
            return Err(at(path, "find an artifact in it")(io::Error::other(found)));
        }
        Self::map(path, file, range)
    }

    fn map(path: &Path, file: File, range: Range<u64>) -> Result<Self, OpenError> {
        let map = FileMap::new(&file, range.clone()).map_err(at(path, "map it"))?;
        // SAFETY: the artifact lives beside the map, in this structure, which gives it out with its own lifetime.
        let bytes = unsafe { map.bytes() };
        let artifact =
            Artifact::parse(bytes).map_err(|error| OpenError::Load { path: path.into(), source: error.into() })?;
        Ok(Self { artifact, _map: map, file, path: path.into(), range })
    }

    /// The artifact.
    pub fn artifact(&self) -> &Artifact<'_> {
        &self.artifact
    }

    /// Verifies every checksum, those of the weights included: reads the whole file.
    pub fn check(&self) -> Result<(), FormatError> {
        self.artifact.check()
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which bytes of the file are the artifact: all, or those that an executable carries.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }
}

fn at(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { path: path.into(), doing, source }
}

fn file_bytes(path: &Path, file: &File) -> Result<u64, OpenError> {
    let metadata = file.metadata().map_err(at(path, "read its size"))?;
    Ok(metadata.len())
}

/// Only files are opened: a pipe would be waited for, and neither it nor a device can be mapped.
fn open_file(path: &Path) -> Result<File, OpenError> {
    let metadata = std::fs::metadata(path).map_err(at(path, "open it"))?;
    if !metadata.is_file() {
        let what = if metadata.is_dir() { "a folder" } else { "a device or a pipe" };
        return Err(at(path, "open it")(io::Error::other(what)));
    }
    File::open(path).map_err(at(path, "open it"))
}

/// An artifact that this machine can run: weights used where they are mapped, code executed where it is mapped.
///
/// Shared by its sessions through an `Arc`.
#[derive(Debug)]
pub struct Model {
    // Borrows from `file` and `_kernels`.
    program: Program<'static>,
    code: FileMap,
    _kernels: KernelTable,
    file: ArtifactFile,
}

impl Model {
    /// Opens an artifact for this machine.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::from_file(ArtifactFile::open(path)?, &Host::detect())
    }

    /// Readies a mapped artifact for `host`, which must be what [`Host::detect`] says of this machine or less.
    pub fn from_file(file: ArtifactFile, host: &Host) -> Result<Self, OpenError> {
        let load_error = |source| OpenError::Load { path: file.path.clone(), source };
        let mut kernels = KernelTable::new(file.artifact.kernels().len());
        // SAFETY: called once; the program lives beside the table, in this structure.
        let slots = unsafe { kernels.slots() };
        let program = host.machine(|machine| Program::link(file.artifact, machine, slots)).map_err(load_error)?;
        let range = file.artifact.code_range();
        let in_file = file.range.start + range.start..file.range.start + range.end;
        let code = FileMap::executable(&file.file, in_file).map_err(at(&file.path, MAP_CODE))?;
        Ok(Self { program, code, _kernels: kernels, file })
    }

    /// The program.
    pub fn program(&self) -> &Program<'_> {
        &self.program
    }

    /// The artifact.
    pub fn artifact(&self) -> &Artifact<'_> {
        self.program.artifact()
    }

    /// What the artifact is.
    pub fn manifest(&self) -> &Manifest<'_> {
        self.program.manifest()
    }

    /// The file.
    pub fn file(&self) -> &ArtifactFile {
        &self.file
    }

    /// Program and code, for a structure that keeps this model alive.
    ///
    /// # Safety
    /// The results are not used after `self` is dropped.
    pub(crate) unsafe fn parts(&self) -> (Program<'static>, CodeImage<'static>) {
        // SAFETY: the caller keeps this structure, and with it the map.
        let bytes = unsafe { self.code.bytes() };
        // SAFETY: these are the file's code section, mapped executable by `from_file` and coherent (see there); the
        // section's checksum was verified when the artifact was parsed.
        let code = unsafe { CodeImage::new(NonNull::from(bytes).cast(), bytes.len()) };
        (self.program, code)
    }
}
