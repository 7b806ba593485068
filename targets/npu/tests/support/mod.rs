//! What the tests of lowerings share.

pub mod case;
pub mod device;
pub mod executor;
pub mod held;
pub mod model;
