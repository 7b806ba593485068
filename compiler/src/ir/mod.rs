//! The graph IR: tensors with symbolic row counts, routing as first-class ops, weights by name.
//!
//! A [`Graph`] is a list of [`Node`]s in program order (every operand is defined before its use), values are dense ids,
//! a node may have several results. What an op is — operands, attributes, shape rule, reference evaluation — stands in
//! one row of the op table ([`Op::row`]). Weights are not nodes: they are named tensors ([`Weight`]) whose contents are
//! read when a target packs them, so a graph of billions of parameters costs a few kilobytes.

mod attrs;
mod build;
mod graph;
pub mod limits;
mod storage;
mod text;
mod types;
mod verify;
mod view;
mod weight_reader;
mod weights;

pub use crate::ops::Op;
pub use attrs::{AttrKind, AttrValue, Attrs};
pub use graph::{Graph, HeadKind, ModelInfo, Node, NodeId, Operand, Output, Phase, ValueId, ValueInfo};
pub use storage::{Int4Group, KvStorage, Storage};
pub use text::{ParseError, parse};
pub use types::{DType, Dim, Symbol, SymbolId, TensorType};
pub use verify::VerifyError;
pub use weight_reader::{WeightError, WeightReader};
pub use weights::{Component, NoSource, Weight, WeightDef, WeightId, WeightSource};
