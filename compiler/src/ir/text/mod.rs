//! The text form, `.lir`: [`parse`] reads it, `Display` of a [`Graph`](super::Graph) writes it. `docs/lir.md` describes it.
//!
//! What is written is canonical: values are numbered in the order of their definition, attributes stand in the order of
//! the op's row, floats have their shortest form that reads back as the same bits. Reading it gives the same graph, and
//! writing that gives the same text.
//!
//! ```
//! let text = "lir 1\nphase imported\nweight @w: f32[2, 3] general = splat(0.5)\n\
//!             input \"x\" = %x: f32[T, 3]\n%y = linear(%x, @w, _) {act = none}\noutput \"y\" = %y\n";
//! let graph = lapidary_compiler::ir::parse(text).unwrap();
//! graph.verify().unwrap();
//! assert!(graph.to_string().contains("%1: f32[T, 2] = linear(%0, @w, _) {act = none}"));
//! ```

mod lexer;
mod parser;
mod print;

pub use parser::parse;

/// What is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct ParseError {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// `what: wanted …, found …`.
    pub message: String,
}
