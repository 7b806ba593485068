//! Tensors of the interpreter.

use crate::ir::DType;

/// Elements of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Activations.
    F32(Vec<f32>),
    /// Ids, clusters, index lists.
    U32(Vec<u32>),
    /// Masks.
    U8(Vec<u8>),
}

/// A value at run time, rows packed.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// One or two dimensions, outermost first.
    pub shape: Vec<usize>,
    /// As many elements as the shape says.
    pub data: Data,
}

impl Tensor {
    /// A float matrix.
    pub fn matrix(rows: usize, cols: usize, data: Vec<f32>) -> Self {
        debug_assert_eq!(data.len(), rows * cols);
        Self { shape: vec![rows, cols], data: Data::F32(data) }
    }

    /// A vector of indices.
    pub fn indices(data: Vec<u32>) -> Self {
        Self { shape: vec![data.len()], data: Data::U32(data) }
    }

    /// First dimension.
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match self.data {
            Data::F32(_) => DType::F32,
            Data::U32(_) => DType::U32,
            Data::U8(_) => DType::U8,
        }
    }

    /// Number of elements held.
    pub fn elems(&self) -> usize {
        match &self.data {
            Data::F32(x) => x.len(),
            Data::U32(x) => x.len(),
            Data::U8(x) => x.len(),
        }
    }

    /// The floats.
    ///
    /// # Panics
    /// If the tensor holds another type, like the other two.
    pub fn f32s(&self) -> &[f32] {
        match &self.data {
            Data::F32(x) => x,
            Data::U32(_) | Data::U8(_) => panic!("element type: wanted f32, found {}", self.dtype()),
        }
    }

    /// The indices.
    pub fn u32s(&self) -> &[u32] {
        match &self.data {
            Data::U32(x) => x,
            Data::F32(_) | Data::U8(_) => panic!("element type: wanted u32, found {}", self.dtype()),
        }
    }

    /// The mask's bytes.
    pub fn u8s(&self) -> &[u8] {
        match &self.data {
            Data::U8(x) => x,
            Data::F32(_) | Data::U32(_) => panic!("element type: wanted u8, found {}", self.dtype()),
        }
    }
}
