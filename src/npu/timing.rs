//! How long a compiled model takes, without its weights: tokens go to modules by lot.

use anyhow::Context;
use lapidary_simulator::routing::Popularity;
use lapidary_simulator::{Options, Report};

use super::compiled::Compiled;
use super::routing::Choice;
use super::session::{Call, Session};
use crate::ui::Ui;

/// Tokens in the caches when decode is timed.
const CONTEXT: u64 = 32;
/// Seed of what is drawn.
pub const SEED: u64 = 1;

/// A call and how long it takes.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// `decode`, or `prefill` of a model that cannot decode.
    pub entry: &'static str,
    /// Position of its first token.
    pub first: u64,
    /// Tokens of the call.
    pub tokens: u64,
    /// Modules of each token.
    pub modules: u32,
    /// Cycles and all else.
    pub report: Report,
}

/// Token ids that stand for any.
pub fn made_up_ids(tokens: u64, vocab_size: u32) -> Vec<u32> {
    let mut state = SEED;
    (0..tokens)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32 % vocab_size.max(1)
        })
        .collect()
}

/// One token behind a short context, or a short prefill where the model cannot decode.
pub fn predict(compiled: &Compiled, ui: &Ui) -> anyhow::Result<Prediction> {
    let spinner = ui.spinner("timing");
    let modules = compiled.most_modules();
    let routing = Choice::Drawn(Popularity::Uniform, modules).routing(0, compiled.max_tokens);
    let mut session = Session::new(compiled, Options::timing_only(), Some(routing))?;
    let longest = compiled.chunk_tokens.min(compiled.max_tokens.saturating_sub(u64::from(compiled.decode.is_some())));
    let ids = made_up_ids(longest.clamp(1, CONTEXT), compiled.vocab_size);
    let mut call = session.prefill(&ids, 1, &mut ()).context("timing")?;
    if let Some(id) = ids.first().filter(|_| compiled.decode.is_some() && compiled.max_tokens > 1) {
        call = session.decode(*id, &mut ()).context("timing")?;
    }
    spinner.finish_and_clear();
    let Call { entry, first, tokens, report } = call;
    Ok(Prediction { entry, first, tokens, modules, report })
}
