//! Plain tensors in files: sequences of token ids come in, arrays go out.
//!
//! Arrays are written here and not by a library, as they are read by [`npy`]: the runner of an executable is small, and a
//! general library for `.npy` brings a parser of Python literals and big integers that weigh more than the runtime.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use lapidary_format::replace_file;
use lapidary_runtime::{Tensor, TensorData};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use crate::npy;

/// Largest file of ids: 8 Mi of them.
const MAX_FILE_BYTES: u64 = 64 << 20;

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
    let file = npy::read_file(path, MAX_FILE_BYTES)?;
    if path.extension().is_none_or(|e| e != "npz") {
        return Ok(vec![Ids { prefix: String::new(), ids: npy::token_ids(&file).with_context(place)? }]);
    }
    let mut sequences = Vec::new();
    for entry in npy::archive(&file).with_context(place)? {
        let Some(prefix) = entry.name.strip_suffix("ids").filter(|p| p.is_empty() || p.ends_with('.')) else {
            continue;
        };
        let place = || format!("{}: array {}", path.display(), entry.name);
        let ids = npy::token_ids(&entry.read().with_context(place)?).with_context(place)?;
        sequences.push(Ids { prefix: prefix.into(), ids });
    }
    ensure!(!sequences.is_empty(), "{}: wanted arrays named ids or prompt.NNN.ids, found none", path.display());
    sequences.sort_by(|a, b| a.prefix.cmp(&b.prefix));
    Ok(sequences)
}

/// Reads the ids of a file that holds one sequence of at least one.
pub fn read_one(path: &Path) -> anyhow::Result<Vec<u32>> {
    let mut sequences = read_ids(path)?;
    match sequences.pop() {
        Some(only) if sequences.is_empty() && !only.ids.is_empty() => Ok(only.ids),
        Some(only) if sequences.is_empty() => {
            bail!("{}: wanted at least one id, found {}", path.display(), only.ids.len())
        }
        _ => bail!("{}: wanted one sequence of ids, found {}", path.display(), sequences.len() + 1),
    }
}

/// An `.npz` that is being written.
pub struct Outputs<'f> {
    zip: ZipWriter<&'f mut File>,
}

/// Writes an `.npz`, which appears under its name when it is complete.
pub fn write(path: &Path, content: impl FnOnce(&mut Outputs<'_>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let written = replace_file(path, |file| {
        let mut outputs = Outputs { zip: ZipWriter::new(file) };
        content(&mut outputs)?;
        outputs.zip.finish()?.flush()?;
        anyhow::Ok(())
    });
    written.with_context(|| format!("{}: cannot be written", path.display()))
}

impl Outputs<'_> {
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
        let place = || format!("array {name}");
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(sequences: &[(&str, &[u32])]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ids.npz");
        write(&path, |outputs| sequences.iter().try_for_each(|(name, ids)| outputs.add_ids(name, ids))).unwrap();
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
        assert_eq!(npy::token_ids(&whole).unwrap(), [4, 5, 6]);
        for end in 0..whole.len() {
            assert!(npy::token_ids(&whole[..end]).is_err(), "{end} bytes");
        }
        for at in 0..whole.len() {
            for change in 1..=255 {
                let mut changed = whole.clone();
                changed[at] ^= change;
                if let Ok(ids) = npy::token_ids(&changed) {
                    assert_eq!(ids.len(), 3, "byte {at} changed by {change}");
                }
            }
        }
    }

    #[test]
    fn other_arrays_are_refused() {
        let array = |header: &str| {
            let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
            bytes.extend((header.len() as u16).to_le_bytes());
            bytes.extend(header.bytes());
            bytes.extend(5_i64.to_le_bytes());
            npy::token_ids(&bytes)
        };
        assert_eq!(array("{'descr': '<i8', 'fortran_order': False, 'shape': (1,), }").unwrap(), [5]);
        assert!(array("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }").is_err());
        assert!(array("{'descr': '<i8', 'fortran_order': False, 'shape': (1, 1), }").is_err());
        assert!(array("{'descr': '<i8', 'fortran_order': False, 'shape': (), }").is_err());
        assert!(array("{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }").is_err());
        assert!(array(&format!("{{'descr': '<i8', 'fortran_order': False, 'shape': ({},), }}", usize::MAX)).is_err());
    }
}
