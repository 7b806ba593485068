//! Plain tensors in files: sequences of token ids come in, arrays go out.
//!
//! Arrays are read and written here and not by a library: the runner of an executable is small, and a general reader of
//! `.npy` brings a parser of Python literals and big integers that weigh more than the runtime.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use lapidary_runtime::{Tensor, TensorData};
use tempfile::NamedTempFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

/// Most bytes of one array of ids: 8 Mi ids and a header.
const MAX_ARRAY_BYTES: u64 = (64 << 20) + (64 << 10);

/// One sequence of token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// What the names of its outputs begin with: `prompt.NNN.`, or nothing.
    pub prefix: String,
    /// The ids.
    pub ids: Vec<u32>,
}

/// Reads a `.npy` of one sequence, or an `.npz` with one in each array named `ids` or `prompt.NNN.ids`; other arrays are ignored.
pub fn read_ids(path: &Path) -> anyhow::Result<Vec<Ids>> {
    let place = || path.display().to_string();
    let mut file = File::open(path).with_context(|| format!("{}: cannot be opened", path.display()))?;
    if path.extension().is_none_or(|e| e != "npz") {
        return Ok(vec![Ids { prefix: String::new(), ids: read_array(&mut file).with_context(place)? }]);
    }
    let mut archive = ZipArchive::new(file).with_context(|| format!("{}: wanted an .npz file", path.display()))?;
    let mut names: Vec<String> = archive.file_names().map(str::to_string).collect();
    names.sort();
    let mut sequences = Vec::new();
    for name in names {
        let array = name.trim_end_matches(".npy");
        let Some(prefix) = array.strip_suffix("ids").filter(|p| p.is_empty() || p.ends_with('.')) else { continue };
        let place = || format!("{}: array {array}", path.display());
        let mut entry = archive
            .by_name(&name)
            .with_context(|| format!("{}: wanted it readable and not compressed, as np.savez writes", place()))?;
        sequences.push(Ids { prefix: prefix.into(), ids: read_array(&mut entry).with_context(place)? });
    }
    ensure!(!sequences.is_empty(), "{}: wanted arrays named ids or prompt.NNN.ids, found none", path.display());
    Ok(sequences)
}

/// A `.npy` of int64 `[T]`.
fn read_array(from: &mut impl Read) -> anyhow::Result<Vec<u32>> {
    let mut bytes = Vec::new();
    from.take(MAX_ARRAY_BYTES + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= MAX_ARRAY_BYTES, "wanted at most {MAX_ARRAY_BYTES} bytes, found more");
    let (header, data) = split(&bytes).context("wanted a .npy array, found other contents")?;
    // Python writes one space here and there; a dictionary means the same without.
    let header: String = header.chars().filter(|c| !c.is_whitespace()).collect();
    let value = |key: &str| header.split_once(&format!("'{key}':")).map(|(_, rest)| rest);
    let tokens = value("shape").and_then(|v| v.strip_prefix('(')?.split_once(",)")?.0.parse::<usize>().ok());
    let (Some(tokens), true) = (tokens, value("descr").is_some_and(|v| v.starts_with("'<i8'"))) else {
        bail!("wanted int64 [T], found {header}");
    };
    let wanted = tokens.checked_mul(8);
    ensure!(wanted == Some(data.len()), "wanted {tokens} elements of 8 bytes, found {} bytes", data.len());
    data.as_chunks::<8>()
        .0
        .iter()
        .map(|id| i64::from_le_bytes(*id))
        .enumerate()
        .map(|(i, id)| u32::try_from(id).with_context(|| format!("element {i}: wanted a token id, found {id}")))
        .collect()
}

/// Header and data of a `.npy`, by its version: 1 has a length of two bytes, 2 and 3 of four.
fn split(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (version, rest) = bytes.strip_prefix(b"\x93NUMPY")?.split_at_checked(2)?;
    let (header_bytes, rest) = match version[0] {
        1 => rest.split_first_chunk().map(|(n, rest)| (usize::from(u16::from_le_bytes(*n)), rest))?,
        2 | 3 => rest.split_first_chunk().map(|(n, rest)| (u32::from_le_bytes(*n) as usize, rest))?,
        _ => return None,
    };
    let (header, data) = rest.split_at_checked(header_bytes)?;
    Some((std::str::from_utf8(header).ok()?, data))
}

/// An `.npz` that appears under its name when it is complete.
pub struct Outputs<'p> {
    path: &'p Path,
    zip: ZipWriter<NamedTempFile>,
}

impl<'p> Outputs<'p> {
    /// Begins the file, beside where it will be.
    pub fn create(path: &'p Path) -> anyhow::Result<Self> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let temporary = crate::ui::temporary_in(folder)
            .with_context(|| format!("{}: a file beside it cannot be created", path.display()))?;
        Ok(Outputs { path, zip: ZipWriter::new(temporary) })
    }

    /// Adds an output of the model, `[rows, columns]`.
    pub fn add(&mut self, prefix: &str, tensor: &Tensor) -> anyhow::Result<()> {
        let name = format!("{prefix}{}", tensor.name);
        let shape = format!("({}, {})", tensor.rows, tensor.columns);
        match &tensor.data {
            TensorData::F32(data) => self.array(&name, "<f4", &shape, data.iter().map(|x| x.to_le_bytes())),
            TensorData::U8(data) => self.array(&name, "|u1", &shape, data.iter().map(|x| x.to_le_bytes())),
            TensorData::U32(data) => self.array(&name, "<u4", &shape, data.iter().map(|x| x.to_le_bytes())),
        }
    }

    /// Adds token ids, int64 `[n]`.
    pub fn add_ids(&mut self, name: &str, ids: &[u32]) -> anyhow::Result<()> {
        let elements = ids.iter().map(|id| i64::from(*id).to_le_bytes());
        self.array(name, "<i8", &format!("({},)", ids.len()), elements)
    }

    /// Writes one array in NumPy's format, version 1.0.
    fn array<const N: usize>(
        &mut self,
        name: &str,
        descr: &str,
        shape: &str,
        elements: impl Iterator<Item = [u8; N]>,
    ) -> anyhow::Result<()> {
        let place = || format!("{}: array {name}", self.path.display());
        let dictionary = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
        // Magic, version, length, dictionary and a line end are a multiple of 64 bytes.
        let header_bytes = (10 + dictionary.len() + 1).next_multiple_of(64) - 10;
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend(u16::try_from(header_bytes).with_context(place)?.to_le_bytes());
        bytes.extend(format!("{dictionary:<0$}\n", header_bytes - 1).bytes());
        bytes.extend(elements.flatten());
        // The same outputs give the same file: the time is that of all archives without one.
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .large_file(bytes.len() > u32::MAX as usize);
        self.zip.start_file(format!("{name}.npy"), options).with_context(place)?;
        self.zip.write_all(&bytes).with_context(place)
    }

    /// Gives the file its name.
    pub fn finish(self) -> anyhow::Result<()> {
        let place = || format!("{}: cannot be written", self.path.display());
        let mut temporary = self.zip.finish().with_context(place)?;
        temporary.flush().with_context(place)?;
        temporary
            .persist(self.path)
            .with_context(|| format!("{}: cannot be renamed into place", self.path.display()))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(sequences: &[(&str, &[u32])]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ids.npz");
        let mut outputs = Outputs::create(&path).unwrap();
        for (name, ids) in sequences {
            outputs.add_ids(name, ids).unwrap();
        }
        outputs.finish().unwrap();
        (folder, path)
    }

    #[test]
    fn sequences_come_back_in_the_order_of_their_names() {
        let (_folder, path) = written(&[("prompt.001.ids", &[7]), ("prompt.000.ids", &[1, u32::MAX]), ("other", &[3])]);
        let ids = |prefix: &str, ids: &[u32]| Ids { prefix: prefix.into(), ids: ids.to_vec() };
        assert_eq!(read_ids(&path).unwrap(), [ids("prompt.000.", &[1, u32::MAX]), ids("prompt.001.", &[7])]);
        let mut library = ndarray_npy::NpzReader::new(File::open(&path).unwrap()).unwrap();
        let array: ndarray::Array1<i64> = library.by_name("prompt.000.ids").unwrap();
        assert_eq!(array.to_vec(), [1, i64::from(u32::MAX)]);
    }

    #[test]
    fn every_prefix_and_every_changed_byte_is_an_error_or_an_array() {
        let mut whole = Vec::new();
        ndarray_npy::WriteNpyExt::write_npy(&ndarray::Array1::from(vec![4_i64, 5, 6]), &mut whole).unwrap();
        assert_eq!(read_array(&mut whole.as_slice()).unwrap(), [4, 5, 6]);
        for end in 0..whole.len() {
            assert!(read_array(&mut &whole[..end]).is_err(), "{end} bytes");
        }
        for at in 0..whole.len() {
            for change in 1..=255 {
                let mut changed = whole.clone();
                changed[at] ^= change;
                if let Ok(ids) = read_array(&mut changed.as_slice()) {
                    assert_eq!(ids.len(), 3, "byte {at} changed by {change}");
                }
            }
        }
    }

    #[test]
    fn other_arrays_are_refused_by_what_they_are() {
        let array = |header: &str| {
            let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
            bytes.extend((header.len() as u16).to_le_bytes());
            bytes.extend(header.bytes());
            bytes.extend(5_i64.to_le_bytes());
            format!("{:#}", read_array(&mut bytes.as_slice()).unwrap_err())
        };
        assert!(array("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }").contains("int64 [T]"));
        assert!(array("{'descr': '<i8', 'fortran_order': False, 'shape': (1, 1), }").contains("int64 [T]"));
        assert!(array("{'descr': '<i8', 'fortran_order': False, 'shape': (), }").contains("int64 [T]"));
        assert!(array("{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }").contains("2 elements"));
        assert!(array(&format!("{{'descr': '<i8', 'shape': ({},), }}", usize::MAX)).contains("elements"));
    }
}
