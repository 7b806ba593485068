//! An opened artifact with its threads, as the commands use it.

#[cfg(feature = "compiler")]
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use lapidary_format::ManifestFlags;
use lapidary_runtime::{ArtifactFile, Host, LoadError, Model, OpenError, Sampler, Session, ThreadPool};

use crate::executable::Carrier;
use crate::failure::Unsupported;
#[cfg(feature = "compiler")]
use crate::reference::Rows;

/// Maps an artifact: a file of its own, or the one that an executable carries.
pub fn artifact(path: &Path) -> anyhow::Result<ArtifactFile> {
    // Opening a pipe would wait for its other end; the next attempt says what is wrong.
    let file = std::fs::metadata(path).is_ok_and(|m| m.is_file()).then(|| File::open(path));
    let carrier = match file {
        Some(Ok(file)) => Carrier::of(file, path)?,
        Some(Err(_)) | None => None,
    };
    Ok(match carrier {
        Some(carrier) => carrier.open()?,
        None => ArtifactFile::open(path)?,
    })
}

/// Readies an artifact; one that this machine cannot run is [`Unsupported`].
pub fn open(file: ArtifactFile, threads: usize) -> anyhow::Result<Session> {
    let model = Model::from_file(file, &Host::detect()).map_err(|error| match &error {
        OpenError::Load { source: LoadError::Isa { .. } | LoadError::MissingFeatures { .. }, .. } => {
            anyhow::Error::new(Unsupported(error.to_string()))
        }
        _ => anyhow::Error::new(error),
    })?;
    session(Arc::new(model), threads)
}

/// A session with its own threads; 0: as many as the machine has.
pub fn session(model: Arc<Model>, threads: usize) -> anyhow::Result<Session> {
    let pool = Arc::new(ThreadPool::new(self::threads(threads)).context("threads cannot be started")?);
    Ok(Session::new(model, pool)?)
}

/// That many threads; 0: as many as this machine has cores.
pub fn threads(wanted: usize) -> usize {
    if wanted == 0 { std::thread::available_parallelism().map_or(1, |n| n.get()) } else { wanted }
}

#[cfg(feature = "compiler")]
/// Runs ids through the model and gives every output with all rows.
pub fn outputs(session: &mut Session, ids: &[u32]) -> anyhow::Result<BTreeMap<String, Rows>> {
    Ok(rows(session.forward_all(ids)?))
}

#[cfg(feature = "compiler")]
/// Outputs as rows of floats.
pub fn rows(tensors: Vec<lapidary_runtime::Tensor>) -> BTreeMap<String, Rows> {
    tensors
        .into_iter()
        .map(|t| {
            let data = match t.data {
                lapidary_runtime::TensorData::F32(data) => data,
                lapidary_runtime::TensorData::U8(data) => data.into_iter().map(f32::from).collect(),
                lapidary_runtime::TensorData::U32(data) => data.into_iter().map(|x| x as f32).collect(),
            };
            (t.name, Rows { cols: t.columns, data })
        })
        .collect()
}

/// Whether the model generates.
pub fn can_decode(session: &Session) -> bool {
    session.model().manifest().flags.contains(ManifestFlags::CAN_DECODE)
}

/// How a new sequence of `ids` goes on: at most `max_new` tokens, up to `end_token` or a full context.
pub fn continuation(
    session: &mut Session,
    sampler: &mut Sampler,
    ids: &[u32],
    max_new: usize,
    end_token: Option<u32>,
) -> anyhow::Result<Vec<u32>> {
    let model = Arc::clone(session.model());
    let manifest = model.manifest();
    if !can_decode(session) {
        bail!(Unsupported(format!("the model cannot decode: {}", manifest.cannot_decode)));
    }
    session.reset();
    session.prefill(ids)?;
    let mut new = Vec::new();
    while new.len() < max_new {
        let token = sampler.sample(session.logits().context("the model has no logits")?);
        if Some(token) == end_token {
            break;
        }
        new.push(token);
        if new.len() == max_new || session.position() >= u64::from(manifest.max_tokens) {
            break;
        }
        session.decode(token)?;
    }
    Ok(new)
}
