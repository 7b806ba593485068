//! What the tests of lowerings share.

pub mod case;
pub mod executor;
