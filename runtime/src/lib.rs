//! Loads and runs `.lapis` artifacts.
//!
//! The core needs no allocator and no operating system: [`Program::load`] checks an artifact against the machine and
//! an [`Executor`] calls its code with memory that the caller hands in. Feature `std` adds what a process has: mapped
//! files (`Model`), threads (`ThreadPool`), sequences (`Session`), sampling (`Sampler`). Feature `text` adds the
//! tokenizer and streaming text.
//!
//! What lies here: loading, calling, bounds of calls. What does not: the file format (`lapidary-format`), arithmetic
//! (`lapidary-kernels`), anything that knows a model's structure (the compiler).
//!
//! ```no_run
//! use std::{path::Path, sync::Arc};
//!
//! use lapidary_runtime::{Model, Session, ThreadPool, greedy};
//!
//! let model = Arc::new(Model::open(Path::new("gem-mini.lapis"))?);
//! let mut session = Session::new(model, Arc::new(ThreadPool::new(0)?))?;
//! session.prefill(&[17, 4, 9])?;
//! let next = greedy(session.logits().expect("a language model"));
//! session.decode(next)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![no_std]

#[cfg(any(feature = "std", test))]
extern crate std;

mod error;
mod executor;
#[cfg(feature = "std")]
mod host;
#[cfg(feature = "std")]
mod mapping;
#[cfg(feature = "std")]
mod model;
mod parallel;
#[cfg(feature = "std")]
mod pool;
mod program;
#[cfg(feature = "std")]
mod recorder;
#[cfg(feature = "std")]
mod sampler;
#[cfg(feature = "std")]
mod session;
mod short_text;
#[cfg(feature = "text")]
mod text;
#[cfg(feature = "text")]
mod tokenizer_file;
mod view;

pub use error::{LoadError, RunError};
pub use executor::{CodeImage, Executor, Observer};
#[cfg(feature = "std")]
pub use host::Host;
pub use lapidary_format as format;
#[cfg(feature = "std")]
pub use model::{ArtifactFile, Model, OpenError};
pub use parallel::{ParallelFor, SingleThread};
#[cfg(feature = "std")]
pub use pool::ThreadPool;
pub use program::{Call, Machine, Program};
#[cfg(feature = "std")]
pub use recorder::{Interval, Recorder};
#[cfg(feature = "std")]
pub use sampler::{Sampler, SamplerOptions, greedy};
#[cfg(feature = "std")]
pub use session::{Session, SessionError, Tensor, TensorData};
pub use short_text::ShortText;
#[cfg(feature = "text")]
pub use text::{
    GenerateOptions, Generated, Progress, Stop, TextError, TextStream, Tokenizer, generate, panic_is_contained,
};
pub use view::View;

#[cfg(target_endian = "big")]
compile_error!("artifacts are little-endian and read in place");
