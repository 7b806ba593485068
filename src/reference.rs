//! Reference outputs of a model: a `.npz` of prompts with what PyTorch (or another run) gave for each.
//!
//! Arrays are named `prompt.NNN.NAME`, or just `NAME` for a file of one prompt; names are those of the plain outputs (`logits`,
//! `domains`, `modules.l`, `gates.l`, `output`) with, beside them, `ids` (int64 `[T]`), `logits_rows` (which rows
//! of the logits are stored; absent: all), `scores.l` (the scores that modules were selected by), `greedy` (greedy
//! continuation; `generated` in what `run` writes) and `greedy_margin` (how far apart the two best logits were at each step).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, bail};
use ndarray::ArrayD;
use ndarray_npy::{NpzReader, ReadNpzError};

/// Rows of numbers: what every output becomes for comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// Elements of a row.
    pub cols: usize,
    /// Row-major.
    pub data: Vec<f32>,
}

impl Rows {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.data.len().checked_div(self.cols).unwrap_or(0)
    }

    /// A row.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.cols..(i + 1) * self.cols]
    }
}

/// One prompt and what is known of it.
#[derive(Clone, Debug, Default)]
pub struct Prompt {
    /// `000`, or empty.
    pub name: String,
    /// Token ids.
    pub ids: Vec<u32>,
    /// `logits`, `domains`, `modules.l`, `gates.l`, `scores.l`, `output`.
    pub outputs: BTreeMap<String, Rows>,
    /// Rows of the logits that are stored; `None`: all.
    pub logits_rows: Option<Vec<usize>>,
    /// Greedy continuation.
    pub greedy: Vec<u32>,
    /// Distance of the two best logits at each step of it.
    pub greedy_margin: Vec<f32>,
}

/// Reads all prompts of a file, in order.
pub fn read(path: &Path) -> anyhow::Result<Vec<Prompt>> {
    let file = File::open(path).with_context(|| format!("{}: cannot be opened", path.display()))?;
    let mut npz = NpzReader::new(file).with_context(|| format!("{}: wanted an .npz file", path.display()))?;
    let mut prompts: BTreeMap<String, Prompt> = BTreeMap::new();
    for entry in npz.names().with_context(|| format!("{}: broken archive", path.display()))? {
        let array = entry.trim_end_matches(".npy");
        let (prompt, name) = split_name(array);
        let slot =
            prompts.entry(prompt.to_string()).or_insert_with(|| Prompt { name: prompt.into(), ..Prompt::default() });
        let place = || format!("{}: array {array}", path.display());
        match name {
            "ids" | "greedy" | "generated" => {
                let ids = integers(&mut npz, &entry).with_context(place)?;
                let ids = ids.into_iter().map(u32::try_from).collect::<Result<_, _>>();
                let ids = ids.with_context(|| format!("{}: wanted token ids", place()))?;
                if name == "ids" { slot.ids = ids } else { slot.greedy = ids }
            }
            "logits_rows" => {
                let rows = integers(&mut npz, &entry).with_context(place)?;
                let rows = rows.into_iter().map(usize::try_from).collect::<Result<_, _>>();
                slot.logits_rows = Some(rows.with_context(|| format!("{}: wanted row numbers", place()))?);
            }
            "greedy_margin" => slot.greedy_margin = rows(&mut npz, &entry).with_context(place)?.data,
            _ => {
                let value = rows(&mut npz, &entry).with_context(place)?;
                slot.outputs.insert(name.to_string(), value);
            }
        }
    }
    let prompts: Vec<Prompt> = prompts.into_values().collect();
    for prompt in &prompts {
        check(prompt).with_context(|| format!("{}: prompt {}", path.display(), prompt.name))?;
    }
    if prompts.is_empty() {
        bail!("{}: wanted arrays named prompt.NNN.NAME or NAME, found none", path.display());
    }
    Ok(prompts)
}

/// `prompt.000.logits` → (`000`, `logits`).
fn split_name(array: &str) -> (&str, &str) {
    array.strip_prefix("prompt.").and_then(|rest| rest.split_once('.')).unwrap_or(("", array))
}

fn check(prompt: &Prompt) -> anyhow::Result<()> {
    let tokens = prompt.ids.len();
    if tokens == 0 {
        bail!("ids: wanted at least one token, found none");
    }
    for (name, value) in &prompt.outputs {
        let stored = prompt.logits_rows.as_ref().map(Vec::len);
        let wanted = match name.as_str() {
            "logits" => stored.unwrap_or(tokens),
            "output" => 1,
            _ => tokens,
        };
        if value.rows() != wanted {
            bail!("{name}: wanted {wanted} rows, found {}", value.rows());
        }
    }
    if let Some(row) = prompt.logits_rows.iter().flatten().find(|row| **row >= tokens) {
        bail!("logits_rows: wanted rows below {tokens}, found {row}");
    }
    Ok(())
}

fn integers(npz: &mut NpzReader<File>, entry: &str) -> anyhow::Result<Vec<i64>> {
    let array: ArrayD<i64> = npz.by_name(entry).context("wanted int64")?;
    Ok(array.into_iter().collect())
}

/// An array of f32, bytes or u32 as rows; a vector is one row per element.
fn rows(npz: &mut NpzReader<File>, entry: &str) -> anyhow::Result<Rows> {
    let as_f32: Result<ArrayD<f32>, ReadNpzError> = npz.by_name(entry);
    let array = match as_f32 {
        Ok(array) => array,
        Err(ReadNpzError::Npy(_)) => {
            let as_u8: Result<ArrayD<u8>, ReadNpzError> = npz.by_name(entry);
            match as_u8 {
                Ok(array) => array.mapv(f32::from),
                Err(ReadNpzError::Npy(_)) => {
                    let array: ArrayD<u32> = npz.by_name(entry).context("wanted float32, uint8 or uint32")?;
                    array.mapv(|x| x as f32)
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(error) => return Err(error.into()),
    };
    let cols = match *array.shape() {
        // One vector per sequence, or one number per token.
        [n] if entry.trim_end_matches(".npy").ends_with("output") => n,
        [_] => 1,
        [_, cols] => cols,
        ref shape => bail!("wanted 1 or 2 dimensions, found {}", shape.len()),
    };
    // Iterates in row-major order, however the file orders them.
    Ok(Rows { cols, data: array.iter().copied().collect() })
}
