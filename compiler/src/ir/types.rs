//! Element types, dimensions and tensor types.

use core::fmt;

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float: all activations on CPU targets.
    F32,
    /// 16-bit IEEE float (weights).
    F16,
    /// bfloat16 (weights of checkpoints).
    BF16,
    /// Token ids, clusters, index lists.
    U32,
    /// Masks.
    U8,
}

impl DType {
    /// All types, in the order of their declaration.
    pub const ALL: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::U32, DType::U8];

    /// Size of one element.
    pub const fn bytes(self) -> u64 {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::U8 => 1,
        }
    }

    /// Name in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::U32 => "u32",
            DType::U8 => "u8",
        }
    }

    /// The type of that name.
    pub fn by_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }

    /// F32, F16 or BF16.
    pub const fn is_float(self) -> bool {
        match self {
            DType::F32 | DType::F16 | DType::BF16 => true,
            DType::U32 | DType::U8 => false,
        }
    }
}

/// A symbolic row count of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SymbolId(pub u32);

impl SymbolId {
    /// `T`: tokens of one call. Always symbol 0.
    pub const TOKENS: SymbolId = SymbolId(0);
    /// `S`: rows that go through the head, 1 ≤ S ≤ T. Always symbol 1.
    pub const OUTPUT_ROWS: SymbolId = SymbolId(1);
}

/// Name and bound of a symbolic row count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// `T`, `S`, `N0`, …
    pub name: String,
    /// Its largest value is `max_per_token · T`.
    pub max_per_token: u64,
}

/// One dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A number.
    Const(u64),
    /// A symbol, only as the first dimension of an activation.
    Sym(SymbolId),
}

impl Dim {
    /// The number, if it is one.
    pub const fn as_const(self) -> Option<u64> {
        match self {
            Dim::Const(n) => Some(n),
            Dim::Sym(_) => None,
        }
    }

    /// The symbol, if it is one.
    pub const fn as_symbol(self) -> Option<SymbolId> {
        match self {
            Dim::Sym(s) => Some(s),
            Dim::Const(_) => None,
        }
    }
}

/// Element type and shape of a value. Activations have rank 1 (`u32[T]`) or 2 (`f32[T,192]`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<Dim>,
}

impl TensorType {
    /// A matrix `[rows, cols]`.
    pub fn matrix(dtype: DType, rows: Dim, cols: u64) -> Self {
        Self { dtype, shape: vec![rows, Dim::Const(cols)] }
    }

    /// A vector `[rows]`.
    pub fn vector(dtype: DType, rows: Dim) -> Self {
        Self { dtype, shape: vec![rows] }
    }

    /// First dimension.
    pub fn rows(&self) -> Dim {
        self.shape[0]
    }

    /// Elements of one row: the product of all dimensions after the first.
    pub fn cols(&self) -> u64 {
        self.shape[1..].iter().map(|d| d.as_const().expect("only the first dimension is symbolic")).product()
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
