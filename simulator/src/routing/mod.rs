//! Routing decisions from outside: whatever a model's scores say, tokens go where a [`Routing`] sends them.
//!
//! While a program runs, a [`Routing`] is asked at each selection of the routing unit (`r.top_k`, `r.threshold`, `r.top_p`,
//! `r.expert_choice`, `r.bidirectional`) and at each `v.row_argmax`. If it answers, its answer is what the instruction writes.
//! Cycles, bytes and energy of the instruction are its own all the same. Without values, an answer is known although the
//! scores are not, so that programs whose course depends on routing alone can be timed.
//!
//! | | |
//! |---|---|
//! | [`Drawn`] | modules by lot: uniform, or few that are popular |
//! | [`Trace`] | decisions that were recorded, or are made up |
//! | [`Recorder`] | records a run's own decisions, into a [`Trace`] |
//!
//! ```
//! use lapidary_simulator::routing::{Call, Drawn, ModulesPerToken, Popularity, Routing};
//!
//! let mut routing = Drawn::new("zipf:1.1".parse::<Popularity>().unwrap(), ModulesPerToken::Exactly(2), 7);
//! let (mut mask, mut gates, mut best) = ([0; 16], [0.0; 16], [0; 2]);
//! let call = |label| Call { label, first: 40, rows: 2, cols: 8 };
//! assert!(routing.select(&call("layers.3.scar.select"), &mut mask, &mut gates));
//! assert_eq!((mask.iter().sum::<u8>(), gates.iter().sum::<f32>()), (4, 2.0));
//! // The cluster is one of its modules, whichever is asked for first.
//! assert!(routing.cluster(&call("layers.3.attn.cluster"), &mut best));
//! assert_eq!(mask[best[0] as usize], 1);
//! ```

mod drawn;
mod trace;

pub use drawn::{Drawn, ModulesPerToken, Popularity, PopularityError};
pub use trace::{Decision, Recorder, Trace};

/// What is decided: rows of one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// The instruction's op label; nothing if it has none.
    pub label: &'a str,
    /// The token of the first row, counted from the start of the sequence: [`Routed::first_token`] and the rows that earlier
    /// instructions of this label had in this run, which come in order and once each.
    pub first: u64,
    /// Tokens.
    pub rows: usize,
    /// Modules.
    pub cols: usize,
}

impl Call<'_> {
    /// The layer: the number after the last `layers.` of the label, 0 without one.
    pub fn layer(&self) -> u64 {
        let Some((_, rest)) = self.label.rsplit_once("layers.") else { return 0 };
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..end].parse().unwrap_or(0)
    }

    /// Whether the label is that of the clusters of attention.
    pub fn is_cluster(&self) -> bool {
        self.label.ends_with("attn.cluster")
    }
}

/// Decides, or watches decisions.
pub trait Routing {
    /// A run begins.
    fn begin(&mut self) {}

    /// The modules of some tokens. `mask` and `gates` have `rows` rows of `cols` elements, all 0; what is not 0 in the mask is
    /// chosen. Gates of what is not chosen count as 0. `false`: the instruction decides itself.
    ///
    /// More modules than the program has room for are a fault of the instruction that finds no room (`r.group`).
    fn select(&mut self, call: &Call<'_>, mask: &mut [u8], gates: &mut [f32]) -> bool {
        let _ = (call, mask, gates);
        false
    }

    /// The column of each row. `false`: the instruction decides itself. It is asked at every `v.row_argmax`, whatever that is
    /// for: see [`Call::is_cluster`]. A column that does not exist is a fault.
    fn cluster(&mut self, call: &Call<'_>, best: &mut [u32]) -> bool {
        let _ = (call, best);
        false
    }

    /// What a selection wrote, whoever decided. Not called for what a run without values does not know.
    fn selected(&mut self, call: &Call<'_>, mask: &[u8], gates: &[f32]) {
        let _ = (call, mask, gates);
    }

    /// What `v.row_argmax` wrote, whoever decided. Not called for what a run without values does not know.
    fn clustered(&mut self, call: &Call<'_>, best: &[u32]) {
        let _ = (call, best);
    }
}

/// A routing for one run.
pub struct Routed<'r> {
    /// Who decides.
    pub routing: &'r mut dyn Routing,
    /// Position in the sequence of the run's first token.
    pub first_token: u64,
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers everywhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SplitMix(u64);

impl SplitMix {
    /// A generator of its own for each list of numbers.
    pub(crate) fn of(numbers: &[u64]) -> SplitMix {
        let mut state = SplitMix(0x6c61_7069_6461_7279);
        for number in numbers {
            state = SplitMix(state.next() ^ *number);
        }
        state
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound` (0 if that is 0), uniform up to 2⁻⁶⁴·`bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_read_off_labels() {
        let layer = |label| Call { label, first: 0, rows: 1, cols: 1 }.layer();
        assert_eq!(layer("layers.3.scar.select"), 3);
        assert_eq!(layer("layers.41"), 41);
        assert_eq!(layer("token_router.layers.2.attn"), 2);
        assert_eq!([layer(""), layer("route"), layer("layers.x"), layer("layers.99999999999999999999")], [0; 4]);
    }

    #[test]
    fn splitmix_gives_the_published_numbers() {
        // Of the reference implementation with state 1234567.
        let mut state = SplitMix(1_234_567);
        assert_eq!([state.next(), state.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }
}
