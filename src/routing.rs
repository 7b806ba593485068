//! Where tokens went: the token router's domain and the modules of every layer.

use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use lapidary_format::{Artifact, replace_file};
use lapidary_runtime::Session;
use serde_json::json;

/// One token and where it went.
#[derive(Clone, Debug)]
pub struct Visit {
    /// Position in its sequence.
    pub position: u64,
    /// Token id.
    pub id: u32,
    /// The most probable domain, the lowest of equals.
    pub domain: usize,
    /// Its probability.
    pub probability: f32,
    /// Selected modules of each layer, ascending.
    pub modules: Vec<Vec<usize>>,
    /// Their gates.
    pub gates: Vec<Vec<f32>>,
}

/// The visits of the tokens of the session's last call, which were `ids`.
pub fn visits(session: &Session, ids: &[u32]) -> anyhow::Result<Vec<Visit>> {
    let layers = session.model().manifest().num_layers as usize;
    let first = session.position() - ids.len() as u64;
    let domains = session.output("domains").context("the artifact has no output `domains`")?;
    let of_layers = |what: &str| {
        let output = |layer| {
            let name = format!("{what}.{layer}");
            session.output(&name).with_context(|| format!("the artifact has no output `{name}`"))
        };
        (0..layers).map(output).collect::<anyhow::Result<Vec<_>>>()
    };
    let (modules, gates) = (of_layers("modules")?, of_layers("gates")?);
    (0..ids.len())
        .map(|row| {
            let scores = domains.row_f32(row).context("output `domains`: wanted a row of f32 for every token")?;
            let mut best = (0, f32::NEG_INFINITY);
            for (domain, score) in scores.iter().enumerate() {
                if *score > best.1 {
                    best = (domain, *score);
                }
            }
            let (mut selected, mut gates_of) = (Vec::new(), Vec::new());
            for (modules, gates) in modules.iter().zip(&gates) {
                let mask = modules.row_u8(row).context("output `modules`: wanted a row of u8 for every token")?;
                let gates = gates.row_f32(row).context("output `gates`: wanted a row of f32 for every token")?;
                let chosen = mask.iter().zip(gates).enumerate().filter(|(_, (m, _))| **m != 0);
                let (modules, gates): (Vec<usize>, Vec<f32>) = chosen.map(|(c, (_, gate))| (c, *gate)).unzip();
                selected.push(modules);
                gates_of.push(gates);
            }
            Ok(Visit {
                position: first + row as u64,
                id: ids[row],
                domain: best.0,
                probability: best.1,
                modules: selected,
                gates: gates_of,
            })
        })
        .collect()
}

/// Visits kept while a closure that cannot fail is called: the first error is kept too.
#[derive(Debug, Default)]
pub struct Recording {
    visits: Vec<Visit>,
    error: Option<anyhow::Error>,
}

impl Recording {
    /// Adds the visits of the session's last call.
    pub fn add(&mut self, session: &Session, ids: &[u32]) {
        match visits(session, ids) {
            Ok(visits) => self.visits.extend(visits),
            Err(error) => self.error = self.error.take().or(Some(error)),
        }
    }

    /// All visits, or what went wrong.
    pub fn finish(self) -> anyhow::Result<Vec<Visit>> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(self.visits),
        }
    }
}

/// Writes a routing trace: a line of JSON on the model, then one per token. It appears under its name when complete.
pub fn write_trace(path: &Path, artifact: &Artifact<'_>, visits: &[Visit]) -> anyhow::Result<()> {
    let manifest = artifact.manifest();
    let head = json!({
        "schema": "lapidary.routing/1",
        "model": manifest.model,
        "layers": manifest.num_layers,
        "clusters": manifest.num_clusters,
        "domain_names": artifact.domain_names().iter().map(|d| d.name).collect::<Vec<_>>(),
        "tokens": visits.len(),
    });
    let written = replace_file(path, |file| {
        let mut out = BufWriter::new(file);
        writeln!(out, "{head}")?;
        for visit in visits {
            let line = json!({
                "position": visit.position,
                "id": visit.id,
                "domain": visit.domain,
                "probability": visit.probability,
                "modules": visit.modules,
                "gates": visit.gates,
            });
            writeln!(out, "{line}")?;
        }
        out.flush()
    });
    written.with_context(|| format!("{}: cannot be written", path.display()))
}
