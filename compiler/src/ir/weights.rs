//! Weights: named tensors, stored, made up, or derived from others; read row by row when they are packed.

use super::{DType, Storage};

/// A weight of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub u32);

/// Part of the model that a weight belongs to: the unit of quantization recipes and of the size table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// Token embedding (and the LM head when tied).
    Embedding,
    /// LM head or classifier.
    Head,
    /// Norm weights.
    Norm,
    /// Dynamic token router, all but its head.
    TokenRouter,
    /// Router head, SCAR queries' keys, values.
    Routing,
    /// Attention projections.
    Attention,
    /// General path.
    General,
    /// Domain modules.
    Modules,
}

impl Component {
    /// All components, in the order of their declaration.
    pub const ALL: [Component; 8] = [
        Component::Embedding,
        Component::Head,
        Component::Norm,
        Component::TokenRouter,
        Component::Routing,
        Component::Attention,
        Component::General,
        Component::Modules,
    ];

    /// Name in the text form, in recipes and in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Component::Embedding => "embedding",
            Component::Head => "head",
            Component::Norm => "norm",
            Component::TokenRouter => "token_router",
            Component::Routing => "routing",
            Component::Attention => "attention",
            Component::General => "general",
            Component::Modules => "modules",
        }
    }

    /// The component of that name.
    pub fn by_name(name: &str) -> Option<Component> {
        Component::ALL.into_iter().find(|c| c.name() == name)
    }
}

/// Where a weight's numbers come from.
#[derive(Clone, Debug, PartialEq)]
pub enum WeightDef {
    /// The tensor of this weight's own name in the model's [`WeightSource`].
    Stored,
    /// One repeated value, no storage.
    Splat(f32),
    /// Pseudo-random, uniform with mean 0 and this standard deviation: element i depends on `seed` and i alone. Every
    /// element is a number that F16 can hold, so the model is the same whether it is stored as F16 or F32.
    Random {
        /// Stream.
        seed: u64,
        /// Standard deviation.
        std: f32,
    },
    /// These weights below each other (same columns).
    Concat(Vec<WeightId>),
    /// `base · diag(columns)`: column j times element j of a vector.
    ScaleColumns {
        /// `[n, k]`.
        base: WeightId,
        /// `[k]`.
        columns: WeightId,
    },
    /// Every element times a factor.
    Scale {
        /// Any shape.
        base: WeightId,
        /// The factor.
        factor: f32,
    },
}

/// A named weight tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// Name without the `@`: the checkpoint's, or one that a pass made.
    pub name: String,
    /// How the artifact stores it (what the kernels read). The import sets the checkpoint's type, the recipe changes it.
    pub storage: Storage,
    /// `[n, k]` rows = outputs, or `[n]`.
    pub shape: Vec<u64>,
    /// Source of the numbers.
    pub def: WeightDef,
    /// Part of the model.
    pub component: Component,
}

impl WeightDef {
    /// The weights that this one is derived from.
    pub fn bases(&self) -> Vec<WeightId> {
        match self {
            WeightDef::Stored | WeightDef::Splat(_) | WeightDef::Random { .. } => Vec::new(),
            WeightDef::Concat(parts) => parts.clone(),
            WeightDef::ScaleColumns { base, columns } => vec![*base, *columns],
            WeightDef::Scale { base, .. } => vec![*base],
        }
    }
}

impl Weight {
    /// Rows: outputs of a matrix; 1 for a vector.
    pub fn rows(&self) -> u64 {
        if self.shape.len() == 2 { self.shape[0] } else { 1 }
    }

    /// Elements of a row.
    pub fn cols(&self) -> u64 {
        *self.shape.last().unwrap_or(&1)
    }

    /// Bytes in its storage: codes and scales, rows packed without gaps.
    pub fn bytes(&self) -> u64 {
        self.storage.bytes(self.rows(), self.cols())
    }

    /// Elements.
    pub fn elems(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// Gives the numbers of [`WeightDef::Stored`] weights.
pub trait WeightSource: Send + Sync {
    /// Writes rows `first_row ..` of the named tensor as f32 (exact for F16 and BF16) into `out`, a whole number of rows.
    fn read_rows(&self, name: &str, first_row: u64, out: &mut [f32]) -> Result<(), String>;

    /// The element type that the named tensor is stored in, if there is such a tensor.
    fn stored_dtype(&self, name: &str) -> Option<DType>;

    /// Writes the bits of rows `first_row ..` of a tensor that is stored as F16. `false`: it is not, nothing was written.
    fn read_f16_bits(&self, _name: &str, _first_row: u64, _out: &mut [u16]) -> Result<bool, String> {
        Ok(false)
    }
}

/// The source of a model whose weights are all made up (splat, random): it has no tensor.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSource;

impl WeightSource for NoSource {
    fn read_rows(&self, name: &str, _first_row: u64, _out: &mut [f32]) -> Result<(), String> {
        Err(format!("tensor {name}: wanted a stored tensor, found none: this model has no weights file"))
    }

    fn stored_dtype(&self, _name: &str) -> Option<DType> {
        None
    }
}
