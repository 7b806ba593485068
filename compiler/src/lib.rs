//! The graph compiler: how does a model become a plan?
//!
//! [`import`] (a model folder, a preset or `.lir` text) → [`ir`] → passes → memory plan. Targets take it from there; they
//! and the runtime meet this crate only through the planned IR and the artifact format.

pub mod import;
pub mod interp;
pub mod ir;
pub mod ops;
pub mod passes;
pub mod plan;
pub mod quant;
