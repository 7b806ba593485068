//! Outputs where they lie.

use lapidary_format::{Dtype, Port};
use zerocopy::FromBytes;

/// Rows of an output in the arena, valid until the next call.
#[derive(Clone, Copy, Debug)]
pub struct View<'v> {
    dtype: Dtype,
    rows: usize,
    columns: usize,
    stride_bytes: usize,
    bytes: &'v [u8],
}

impl<'v> View<'v> {
    /// The first `rows` rows of a port.
    pub(crate) fn new(port: &Port<'_>, rows: u64, arena: &'v [u8]) -> Self {
        let bytes = usize::try_from(port.offset).ok().and_then(|begin| arena.get(begin..));
        Self {
            dtype: port.dtype,
            rows: rows as usize,
            columns: port.columns as usize,
            stride_bytes: port.row_stride_bytes as usize,
            bytes: bytes.unwrap_or_default(),
        }
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// A row of an `f32` output.
    pub fn row_f32(&self, row: usize) -> Option<&'v [f32]> {
        self.row(Dtype::F32, row)
    }

    /// A row of a `u8` output.
    pub fn row_u8(&self, row: usize) -> Option<&'v [u8]> {
        self.row(Dtype::U8, row)
    }

    /// A row of a `u32` output.
    pub fn row_u32(&self, row: usize) -> Option<&'v [u32]> {
        self.row(Dtype::U32, row)
    }

    fn row<T>(&self, dtype: Dtype, row: usize) -> Option<&'v [T]>
    where
        [T]: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable,
    {
        if dtype != self.dtype || row >= self.rows {
            return None;
        }
        let begin = row.checked_mul(self.stride_bytes)?;
        let len = self.columns.checked_mul(size_of::<T>())?;
        let bytes = self.bytes.get(begin..)?.get(..len)?;
        <[T]>::ref_from_bytes(bytes).ok()
    }
}
