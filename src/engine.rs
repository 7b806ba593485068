//! An opened artifact with its threads, as the commands use it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use lapidary_format::ManifestFlags;
use lapidary_runtime::{LoadError, Model, OpenError, Session, TensorData, ThreadPool, greedy};

use crate::failure::Unsupported;
use crate::reference::Rows;

/// Opens an artifact; one that this machine cannot run is [`Unsupported`].
pub fn open(path: &Path, threads: usize) -> anyhow::Result<Session> {
    let model = Model::open(path).map_err(|error| match &error {
        OpenError::Load { source: LoadError::Isa { .. } | LoadError::MissingFeatures { .. }, .. } => {
            anyhow::Error::new(Unsupported(error.to_string()))
        }
        _ => anyhow::Error::new(error),
    })?;
    session(Arc::new(model), threads)
}

/// A session with its own threads; 0: as many as the machine has.
pub fn session(model: Arc<Model>, threads: usize) -> anyhow::Result<Session> {
    let threads = if threads == 0 { available_threads() } else { threads };
    let pool = Arc::new(ThreadPool::new(threads).context("threads cannot be started")?);
    Ok(Session::new(model, pool)?)
}

/// Cores of this machine.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Runs ids through the model and gives every output with all rows.
pub fn outputs(session: &mut Session, ids: &[u32]) -> anyhow::Result<BTreeMap<String, Rows>> {
    outputs_with(session, ids, &mut |_, _| ())
}

/// [`outputs`]; `after_call` sees the session after each call, and the tokens of that call.
pub fn outputs_with(
    session: &mut Session,
    ids: &[u32],
    after_call: &mut dyn FnMut(&Session, &[u32]),
) -> anyhow::Result<BTreeMap<String, Rows>> {
    let tensors = session.forward_all_with(ids, after_call)?;
    Ok(tensors
        .into_iter()
        .map(|t| {
            let data = match t.data {
                TensorData::F32(data) => data,
                TensorData::U8(data) => data.into_iter().map(f32::from).collect(),
                TensorData::U32(data) => data.into_iter().map(|x| x as f32).collect(),
            };
            (t.name, Rows { cols: t.columns, data })
        })
        .collect())
}

/// Whether the model generates.
pub fn can_decode(session: &Session) -> bool {
    session.model().manifest().flags.contains(ManifestFlags::CAN_DECODE)
}

/// The `count` tokens that greedy decoding gives after `ids`.
pub fn greedy_continuation(session: &mut Session, ids: &[u32], count: usize) -> anyhow::Result<Vec<u32>> {
    session.reset();
    session.prefill(ids)?;
    let mut out = Vec::with_capacity(count);
    for step in 0..count {
        let logits = session.logits().context("the model has no logits")?;
        let token = greedy(logits);
        out.push(token);
        if step + 1 < count {
            session.decode(token)?;
        }
    }
    Ok(out)
}
