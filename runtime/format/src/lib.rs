//! The `.lapis` artifact: what the compiler hands to the runtime, and the only thing the two share.
//!
//! * [`abi`]: how generated code is called and what it may call.
//! * [`Artifact`]: reads an artifact in place, without allocation and without trusting a byte of it.
//! * `ArtifactBuilder` (feature `std`): writes one, streaming the weights.
//!
//! `FORMAT.md` at the root of the repository describes every byte. Nothing here maps files or runs code: that is
//! `lapidary-runtime`.
//!
//! ```
//! # #[cfg(feature = "std")] {
//! use std::io::Write;
//!
//! use lapidary_format::{ArtifactBuilder, Artifact, Entry, Manifest, ManifestFlags, Plan};
//!
//! let manifest = Manifest {
//!     model: "demo",
//!     flags: ManifestFlags::IS_CAUSAL | ManifestFlags::CAN_DECODE,
//!     ..Manifest::default()
//! };
//! let mut builder = ArtifactBuilder::new(manifest, Plan { weights_bytes: 4, ..Plan::default() });
//! builder.set_code(vec![0xc3; 32]);
//! builder.push(Entry { name: "prefill", offset: 0 });
//! builder.push(Entry { name: "decode", offset: 16 });
//! let bytes = builder.to_vec(|weights| weights.write_all(&[1, 2, 3, 4]))?;
//!
//! let artifact = Artifact::parse(&bytes)?;
//! assert_eq!(artifact.manifest().model, "demo");
//! assert_eq!(artifact.weights(), [1, 2, 3, 4]);
//! artifact.check()?;
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![no_std]

#[cfg(feature = "std")]
extern crate std;

pub mod abi;
mod artifact;
#[cfg(feature = "std")]
mod builder;
mod container;
mod contents;
mod error;
mod field;
mod record;
mod records;
#[cfg(feature = "std")]
mod replace;
mod table;

pub use artifact::Artifact;
#[cfg(feature = "std")]
pub use builder::{ArtifactBuilder, WeightsWriter, WriteError};
pub use container::{MAGIC, MAJOR, MAX_SECTIONS, MINOR, SECTION_ALIGN, Section, SectionFlags, SectionKind};
pub use contents::{
    ENTRY_DECODE, ENTRY_DECODE_PROFILE, ENTRY_PREFILL, ENTRY_PREFILL_PROFILE, EXTENT_ALIGN, MAX_MEMORY_BYTES,
    MAX_STACK_BYTES, TENSOR_ALIGN,
};
pub use error::{Fault, FormatError, Place};
pub use record::Record;
pub use records::{
    Buffer, Component, Direction, DomainName, Dtype, Entry, Extent, Feature, Head, Isa, Kernel, Manifest,
    ManifestFlags, NO_INDEX, Packing, Plan, Port, Region, Rows, StateBuffer, Step, Target, Tensor,
};
#[cfg(feature = "std")]
pub use replace::{TEMPORARY_PREFIX, replace_file, replace_program};
pub use table::{Table, TableIter};

/// Rounds `value` up to a multiple of `align`, or `None` when that does not fit.
///
/// `align` must be a power of two.
pub const fn align_up(value: u64, align: u64) -> Option<u64> {
    match value.checked_add(align - 1) {
        Some(sum) => Some(sum & !(align - 1)),
        None => None,
    }
}
