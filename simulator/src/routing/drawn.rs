//! Modules by lot.

use std::str::FromStr;

use super::{Call, Routing, SplitMix};

/// Weight of the most popular module.
const MOST_POPULAR: f64 = (1u64 << 32) as f64;

/// How likely modules are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Popularity {
    /// All the same.
    Uniform,
    /// In proportion to 1/rank^S. Who has which rank is drawn for each layer.
    Zipf(f64),
}

/// Text that is no popularity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("routing: wanted `uniform` or `zipf:S` with S from 0 to 16, found {0:?}")]
pub struct PopularityError(String);

impl FromStr for Popularity {
    type Err = PopularityError;

    fn from_str(text: &str) -> Result<Popularity, PopularityError> {
        let exponent = text.strip_prefix("zipf:").and_then(|s| s.parse::<f64>().ok());
        match (text, exponent) {
            ("uniform", _) => Ok(Popularity::Uniform),
            (_, Some(s)) if (0.0..=16.0).contains(&s) => Ok(Popularity::Zipf(s)),
            _ => Err(PopularityError(text.into())),
        }
    }
}

/// How many modules a token takes; never more than there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModulesPerToken {
    /// So many.
    Exactly(u32),
    /// Weight of 0 modules, of 1, of 2, …; without any weight 0 modules.
    Weighted(Vec<u32>),
}

impl ModulesPerToken {
    fn draw(&self, random: &mut SplitMix) -> usize {
        // Takes one number always, so that modules do not depend on how their number is drawn.
        let number = random.next();
        match self {
            ModulesPerToken::Exactly(count) => *count as usize,
            ModulesPerToken::Weighted(weights) => {
                let all: u64 = weights.iter().map(|w| u64::from(*w)).sum();
                let mut place = ((u128::from(number) * u128::from(all)) >> 64) as u64;
                for (count, weight) in weights.iter().enumerate() {
                    match place.checked_sub((*weight).into()) {
                        Some(rest) => place = rest,
                        None => return count,
                    }
                }
                0
            }
        }
    }
}

/// Each token takes different modules by lot, one after the other, with gates 1/k. Decisions depend on the seed, the layer and
/// the token's position alone, so prefill and decode, blocks of rows, and clusters and modules agree.
#[derive(Clone, Debug)]
pub struct Drawn {
    popularity: Popularity,
    modules_per_token: ModulesPerToken,
    seed: u64,
    /// Layer and number of modules that `urn` is of.
    urn_of: Option<(u64, usize)>,
    urn: Urn,
    left: Urn,
}

impl Drawn {
    /// By popularity.
    pub fn new(popularity: Popularity, modules_per_token: ModulesPerToken, seed: u64) -> Drawn {
        Drawn { popularity, modules_per_token, seed, urn_of: None, urn: Urn::default(), left: Urn::default() }
    }

    /// Fills the urn of a layer.
    fn fill(&mut self, layer: u64, cols: usize) {
        if self.urn_of == Some((layer, cols)) {
            return;
        }
        self.urn_of = Some((layer, cols));
        let mut weights: Vec<u64> = (1..=cols)
            .map(|rank| match self.popularity {
                Popularity::Uniform => 1,
                Popularity::Zipf(s) => ((MOST_POPULAR * (rank as f64).powf(-s)).round() as u64).max(1),
            })
            .collect();
        let mut random = SplitMix::of(&[self.seed, layer]);
        for last in (1..cols).rev() {
            weights.swap(last, random.below(last as u64 + 1) as usize);
        }
        self.urn = Urn::new(&weights);
    }

    /// The modules of a token, in the order in which they are drawn, at least `least` of them; and how many it takes.
    fn draw(&mut self, layer: u64, token: u64, cols: usize, least: usize, mut each: impl FnMut(usize)) -> usize {
        self.fill(layer, cols);
        let mut random = SplitMix::of(&[self.seed, layer, token, 1]);
        let count = self.modules_per_token.draw(&mut random).min(cols);
        let drawn = count.max(least).min(cols);
        if drawn > 0 {
            self.left.clone_from(&self.urn);
        }
        for _ in 0..drawn {
            let place = random.below(self.left.all);
            each(self.left.take(place));
        }
        count
    }
}

impl Routing for Drawn {
    fn select(&mut self, call: &Call<'_>, mask: &mut [u8], gates: &mut [f32]) -> bool {
        if call.cols == 0 {
            return false;
        }
        let layer = call.layer();
        let rows = mask.chunks_exact_mut(call.cols).zip(gates.chunks_exact_mut(call.cols));
        for ((mask, gates), row) in rows.zip(0u64..) {
            let token = call.first.wrapping_add(row);
            let count = self.draw(layer, token, call.cols, 0, |module| mask[module] = 1);
            let gate = 1.0 / count as f32;
            mask.iter().zip(gates).filter(|(m, _)| **m != 0).for_each(|(_, g)| *g = gate);
        }
        true
    }

    /// The module that is drawn first, whether or not any is taken.
    fn cluster(&mut self, call: &Call<'_>, best: &mut [u32]) -> bool {
        if call.cols == 0 || !call.is_cluster() {
            return false;
        }
        let layer = call.layer();
        for (best, row) in best.iter_mut().zip(0u64..) {
            let mut first = None;
            self.draw(layer, call.first.wrapping_add(row), call.cols, 1, |module| {
                first.get_or_insert(module);
            });
            *best = first.unwrap_or(0) as u32;
        }
        true
    }
}

/// Things with weights, of which one after the other is taken: a Fenwick tree of the weights that are left.
#[derive(Clone, Debug, Default)]
struct Urn {
    /// Node i (from 1) has the sum of the i & −i weights that end with weight i.
    sums: Vec<u64>,
    /// Sum of what is left.
    all: u64,
}

impl Urn {
    fn new(weights: &[u64]) -> Urn {
        let mut sums = vec![0; weights.len() + 1];
        for (i, weight) in weights.iter().enumerate() {
            let i = i + 1;
            sums[i] += weight;
            let parent = i + (i & i.wrapping_neg());
            if parent < sums.len() {
                sums[parent] += sums[i];
            }
        }
        Urn { sums, all: weights.iter().sum() }
    }

    /// Takes out the thing in whose weight `place` falls, all of them one behind the other; needs `place` < `all`.
    fn take(&mut self, place: u64) -> usize {
        let (mut at, mut rest) = (0, place);
        let mut step = self.sums.len().next_power_of_two();
        while step > 0 {
            if let Some(sum) = self.sums.get(at + step).filter(|sum| **sum <= rest) {
                rest -= sum;
                at += step;
            }
            step /= 2;
        }
        let found = at.min(self.sums.len().saturating_sub(2));
        let weight = self.weight(found);
        self.all -= weight;
        let mut i = found + 1;
        while i < self.sums.len() {
            self.sums[i] -= weight;
            i += i & i.wrapping_neg();
        }
        found
    }

    /// What is left of a thing's weight.
    fn weight(&self, thing: usize) -> u64 {
        let before = |mut i: usize| {
            let mut sum = 0;
            while i > 0 {
                sum += self.sums[i];
                i &= i - 1;
            }
            sum
        };
        before(thing + 1) - before(thing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urns_give_everything_once() {
        for weights in [vec![3, 1, 4, 1, 5, 9, 2], vec![1; 8], vec![7], vec![1, 1 << 32, 1]] {
            let all: u64 = weights.iter().sum();
            let mut counts = vec![0; weights.len()];
            if all < 100 {
                (0..all).for_each(|place| counts[Urn::new(&weights).take(place)] += 1);
                assert_eq!(counts, weights);
            }
            let mut urn = Urn::new(&weights);
            let mut taken: Vec<usize> = (0..weights.len()).map(|i| urn.take(urn.all * (i as u64 % 3) / 3)).collect();
            taken.sort_unstable();
            assert_eq!(taken, (0..weights.len()).collect::<Vec<_>>());
            assert_eq!(urn.all, 0);
        }
    }

    #[test]
    fn popularity_is_read() {
        assert_eq!("uniform".parse(), Ok(Popularity::Uniform));
        assert_eq!("zipf:1.25".parse(), Ok(Popularity::Zipf(1.25)));
        for text in ["", "zipf", "zipf:", "zipf:-1", "zipf:NaN", "zipf:inf", "zipf:17", "Uniform"] {
            let error = text.parse::<Popularity>().unwrap_err().to_string();
            assert!(error.ends_with(&format!("found {text:?}")), "{error}");
        }
    }
}
