//! What an artifact should have given: the reference interpreter on the model that the artifact was made from.
//!
//! An artifact that stores weights in integers, or keys and values in fewer bits, does not compute with the checkpoint's
//! numbers but what its recipe defines (`docs/quantization.md`). The artifact carries its recipe, and the interpreter runs the
//! graph that the passes make of the model with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, bail};
use lapidary_compiler::import::{self, ImportOptions, ImportedModel};
use lapidary_compiler::interp::{Data, Interpreter, Tensor};
use lapidary_compiler::ir::{Graph, KvStorage, Node};
use lapidary_compiler::passes::{PassContext, Recipe, StopAfter, run_pipeline};
use lapidary_format::Manifest;
use lapidary_runtime::Session;

use crate::model::{self, Options, Planned};
use crate::quantized::Judge;
use crate::reference::Rows;
use crate::ui::Ui;

/// A model in an artifact's recipe.
pub struct Oracle {
    model: Arc<ImportedModel>,
    recipe: Recipe,
    /// What defines the outputs of an artifact that is quantized.
    quantized: Option<Graph>,
    /// For people: what computes.
    pub name: String,
}

impl Oracle {
    /// The oracle of an artifact that was made from this model.
    ///
    /// # Errors
    /// A model that cannot be read, or is not the one that the artifact was made from.
    pub fn new(name: &str, manifest: &Manifest<'_>) -> anyhow::Result<Oracle> {
        let mut model = import::load(name, &ImportOptions::default())?;
        if model.graph.info.source_digest != manifest.source_digest {
            bail!(
                "{name}: wanted the model that the artifact was made from, found other weights\n\
                 hint: compile again, or name the model's folder with --model"
            );
        }
        let recipe = Recipe::from_toml(manifest.recipe, manifest.quantization).context("the artifact's recipe")?;
        let name_of = |what: &str| format!("the reference interpreter{what}");
        if !is_quantized(&recipe, &model.graph)? {
            // Scores tell near ties of the selection from wrong ones.
            model = import::load(name, &ImportOptions { scores: true })?;
            return Ok(Oracle { model: Arc::new(model), recipe, quantized: None, name: name_of("") });
        }
        let mut graph = model.graph.clone();
        let context = PassContext::new(&graph, recipe.clone(), u64::from(manifest.max_tokens));
        run_pipeline(&mut graph, &context, StopAfter::parse("fused"), &mut |_, _, _| ())?;
        let name = name_of(&format!(" in recipe {}", recipe.name));
        Ok(Oracle { model: Arc::new(model), recipe, quantized: Some(graph), name })
    }

    /// Whether the artifact rounds keys and values or has integer weights, so that the checkpoint's outputs are no measure.
    pub fn is_quantized(&self) -> bool {
        self.quantized.is_some()
    }

    /// All outputs of the model as it was imported.
    pub fn expected(&self, ids: &[u32]) -> anyhow::Result<BTreeMap<String, Rows>> {
        outputs(&self.model.interpreter(), ids)
    }

    /// What holds outputs of the quantized artifact to their definition.
    pub fn judge(&self) -> Judge<'_> {
        let graph = self.quantized.as_ref().unwrap_or(&self.model.graph);
        Judge::new(Interpreter::new(graph, self.model.source.as_ref()), self.model.interpreter())
    }

    /// The model planned as the artifact of a session was.
    pub fn compile_again(&self, session: &Session, ui: &Ui) -> anyhow::Result<Planned> {
        let manifest = session.model().manifest();
        let (tokens, chunk) = (u64::from(manifest.max_tokens), u64::from(manifest.max_chunk_tokens));
        let mut options = Options::new(None, None, Some(tokens), Some(chunk))?;
        options.recipe = self.recipe.clone();
        model::plan(Arc::clone(&self.model), options, ui)
    }
}

/// All outputs that an interpreter gives for ids, with all rows.
pub fn outputs(interpreter: &Interpreter<'_>, ids: &[u32]) -> anyhow::Result<BTreeMap<String, Rows>> {
    let outputs = interpreter.run(ids, ids.len())?.0;
    Ok(outputs.into_iter().map(|(name, tensor)| (name, rows(&tensor))).collect())
}

/// Whether anything is stored in fewer bits than the numbers it came from, floats of weights apart.
fn is_quantized(recipe: &Recipe, graph: &Graph) -> anyhow::Result<bool> {
    let integers = recipe.choices(graph)?.iter().any(|choice| choice.storage.is_integer());
    let rounds_keys = recipe.kv_cache() != KvStorage::F32 && graph.nodes.iter().any(Node::keeps_keys);
    Ok(integers || rounds_keys)
}

/// A value of the interpreter as rows of floats.
fn rows(tensor: &Tensor) -> Rows {
    let data = match &tensor.data {
        Data::F32(data) => data.clone(),
        Data::U32(data) => data.iter().map(|x| *x as f32).collect(),
        Data::U8(data) => data.iter().map(|x| f32::from(*x)).collect(),
    };
    Rows { cols: tensor.shape.get(1).copied().unwrap_or(1), data }
}
