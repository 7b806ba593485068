//! Plain tensors in files: sequences of token ids come in, arrays go out.
//!
//! Ids are read here and not by a library: the runner of an executable is small, and a general reader of `.npy` brings a parser
//! of Python literals that weighs more than the runtime.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use lapidary_runtime::{Tensor, TensorData};
use ndarray::{Array1, Array2, ShapeBuilder};
use ndarray_npy::NpzWriter;
use tempfile::NamedTempFile;
use zip::ZipArchive;

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
    npz: NpzWriter<NamedTempFile>,
}

impl<'p> Outputs<'p> {
    /// Begins the file, beside where it will be.
    pub fn create(path: &'p Path) -> anyhow::Result<Self> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let temporary = crate::ui::temporary_in(folder)
            .with_context(|| format!("{}: a file beside it cannot be created", path.display()))?;
        Ok(Outputs { path, npz: NpzWriter::new(temporary) })
    }

    /// Adds an output of the model, `[rows, columns]`.
    pub fn add(&mut self, prefix: &str, tensor: Tensor) -> anyhow::Result<()> {
        let name = format!("{prefix}{}", tensor.name);
        let place = || format!("{}: array {name}", self.path.display());
        let shape = (tensor.rows, tensor.columns).into_shape_with_order();
        let npz = &mut self.npz;
        match tensor.data {
            TensorData::F32(data) => npz.add_array(&name, &Array2::from_shape_vec(shape, data).with_context(place)?),
            TensorData::U8(data) => npz.add_array(&name, &Array2::from_shape_vec(shape, data).with_context(place)?),
            TensorData::U32(data) => npz.add_array(&name, &Array2::from_shape_vec(shape, data).with_context(place)?),
        }
        .with_context(place)
    }

    /// Adds token ids, int64 `[n]`.
    pub fn add_ids(&mut self, name: &str, ids: &[u32]) -> anyhow::Result<()> {
        let ids: Array1<i64> = ids.iter().map(|id| i64::from(*id)).collect();
        self.npz.add_array(name, &ids).with_context(|| format!("{}: array {name}", self.path.display()))
    }

    /// Gives the file its name.
    pub fn finish(self) -> anyhow::Result<()> {
        let place = || format!("{}: cannot be written", self.path.display());
        let mut temporary = self.npz.finish().with_context(place)?;
        temporary.flush().with_context(place)?;
        temporary
            .persist(self.path)
            .with_context(|| format!("{}: cannot be renamed into place", self.path.display()))?;
        Ok(())
    }
}
