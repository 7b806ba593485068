//! Ops that work element by element.

use super::InferCx;
use crate::ir::{DType, TensorType};

/// One float matrix → the same type.
pub(super) fn unary_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    cx.matrix(0, DType::F32)?;
    Ok(vec![cx.value(0).clone()])
}

/// Two float matrices of one type → that type.
pub(super) fn binary_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    cx.matrix(0, DType::F32)?;
    cx.want(1, cx.value(0))?;
    Ok(vec![cx.value(0).clone()])
}
