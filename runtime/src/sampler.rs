//! Choosing the next token. The same seed and logits give the same tokens on every machine with the same logits.

use std::vec::Vec;

/// How to choose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits; 0 chooses the greatest logit.
    pub temperature: f32,
    /// Only the smallest set of likeliest tokens with this much probability is drawn from; 1 draws from all.
    pub top_p: f32,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, seed: 0 }
    }
}

/// Draws tokens from logits.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    random: Xoshiro256,
    candidates: Vec<(u32, f64)>,
}

impl Sampler {
    /// A sampler at the begin of its random numbers.
    pub fn new(options: SamplerOptions) -> Self {
        Self { options, random: Xoshiro256::new(options.seed), candidates: Vec::new() }
    }

    /// The next token; 0 for no logits. A logit that is not a number is never chosen while there is another.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        let best = greedy(logits);
        let max = logits.get(best as usize).copied().unwrap_or_default();
        if self.options.temperature <= 0.0 || !max.is_finite() {
            return best;
        }
        let scale = 1.0 / f64::from(self.options.temperature);
        let weights = logits.iter().map(|logit| {
            let weight = ((f64::from(*logit) - f64::from(max)) * scale).exp();
            if weight.is_nan() { 0.0 } else { weight }
        });
        self.candidates.clear();
        self.candidates.extend((0..).zip(weights));
        let total: f64 = self.candidates.iter().map(|(_, weight)| weight).sum();
        let mass = if self.options.top_p < 1.0 { self.keep_nucleus(total) } else { total };
        let mut left = self.random.unit() * mass;
        for (token, weight) in &self.candidates {
            left -= weight;
            if left < 0.0 {
                return *token;
            }
        }
        // Rounding left a rest.
        let mut possible = self.candidates.iter().rev().filter(|(_, weight)| *weight > 0.0);
        possible.next().map_or(best, |(token, _)| *token)
    }

    /// Keeps the smallest prefix, in descending order, with `top_p` of the mass, at least one; returns its mass.
    fn keep_nucleus(&mut self, total: f64) -> f64 {
        let wanted = f64::from(self.options.top_p.max(0.0)) * total;
        // What is below this cannot be in the prefix: even all such tokens together are less than the rest.
        let floor = (total - wanted) / self.candidates.len() as f64;
        let greatest = self.candidates.iter().map(|(_, w)| *w).fold(0.0, f64::max);
        let floor = floor.min(greatest);
        self.candidates.retain(|(_, weight)| *weight >= floor);
        self.candidates.sort_unstable_by(|(a, x), (b, y)| y.total_cmp(x).then(a.cmp(b)));
        let mut mass = 0.0;
        let mut kept = 0;
        for (_, weight) in &self.candidates {
            mass += weight;
            kept += 1;
            if mass >= wanted {
                break;
            }
        }
        self.candidates.truncate(kept);
        mass
    }
}

/// The greatest logit's index, the lowest of equals; 0 for none.
pub fn greedy(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, logit) in (0..).zip(logits) {
        if *logit > best.1 {
            best = (token, *logit);
        }
    }
    best.0
}

/// xoshiro256++ by Blackman and Vigna (prng.di.unimi.it), seeded through SplitMix64.
#[derive(Clone, Debug)]
struct Xoshiro256([u64; 4]);

impl Xoshiro256 {
    fn new(seed: u64) -> Self {
        let mut state = seed;
        Self([(); 4].map(|()| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    fn next(&mut self) -> u64 {
        let [a, b, c, d] = self.0;
        let result = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let (c, d) = (c ^ a, d ^ b);
        self.0 = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        result
    }

    /// In [0, 1), 53 bits.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(temperature: f32, top_p: f32, seed: u64) -> SamplerOptions {
        SamplerOptions { temperature, top_p, seed }
    }

    /// Frequencies of `draws` draws against the probabilities, by chi-squared.
    fn check_distribution(logits: &[f32], temperature: f32, top_p: f32, exact: &[f64]) {
        const DRAWS: usize = 100_000;
        let mut sampler = Sampler::new(options(temperature, top_p, 42));
        let mut counts = std::vec![0_usize; logits.len()];
        for _ in 0..DRAWS {
            counts[sampler.sample(logits) as usize] += 1;
        }
        let mut chi_squared = 0.0;
        for (count, p) in counts.iter().zip(exact) {
            if *p == 0.0 {
                assert_eq!(*count, 0);
            } else {
                let expected = p * DRAWS as f64;
                chi_squared += (*count as f64 - expected).powi(2) / expected;
            }
        }
        // 99.99 % quantile of chi-squared with 9 degrees of freedom.
        assert!(chi_squared < 33.7, "{chi_squared}: {counts:?}, {exact:?}");
    }

    fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
        let weights: Vec<f64> = logits.iter().map(|l| (f64::from(*l) / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|w| w / total).collect()
    }

    const LOGITS: [f32; 10] = [0.1, 2.0, -1.0, 0.5, 2.0, -3.0, 1.0, 1.5, 0.0, -0.5];

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        assert_eq!(greedy(&[1.0, 3.0, 3.0, 2.0]), 1);
        assert_eq!(greedy(&[]), 0);
        assert_eq!(greedy(&[f32::NAN, -5.0, f32::NAN]), 1);
        let mut sampler = Sampler::new(SamplerOptions::default());
        assert_eq!(sampler.sample(&LOGITS), 1);
    }

    #[test]
    fn draws_follow_the_softmax() {
        check_distribution(&LOGITS, 1.0, 1.0, &softmax(&LOGITS, 1.0));
        check_distribution(&LOGITS, 0.5, 1.0, &softmax(&LOGITS, 0.5));
        check_distribution(&LOGITS, 3.0, 1.0, &softmax(&LOGITS, 3.0));
    }

    #[test]
    fn draws_follow_the_nucleus() {
        for top_p in [0.0, 0.2, 0.5, 0.75, 0.9, 0.99] {
            let mut exact = softmax(&LOGITS, 1.0);
            let mut order: Vec<usize> = (0..exact.len()).collect();
            order.sort_by(|a, b| exact[*b].total_cmp(&exact[*a]).then(a.cmp(b)));
            let mut mass = 0.0;
            for token in order {
                if mass > 0.0 && mass >= f64::from(top_p) {
                    exact[token] = 0.0;
                }
                mass += exact[token];
            }
            let kept: f64 = exact.iter().sum();
            exact.iter_mut().for_each(|p| *p /= kept);
            check_distribution(&LOGITS, 1.0, top_p, &exact);
        }
    }

    #[test]
    fn the_seed_decides() {
        let draw = |seed| {
            let mut sampler = Sampler::new(options(1.0, 0.9, seed));
            (0..50).map(|_| sampler.sample(&LOGITS)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn odd_logits_are_survived() {
        let mut sampler = Sampler::new(options(1.0, 0.9, 1));
        assert_eq!(sampler.sample(&[]), 0);
        assert_eq!(sampler.sample(&[f32::NAN, f32::NAN]), 0);
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 3]), 0);
        assert_eq!(sampler.sample(&[0.0, f32::INFINITY]), 1);
        for _ in 0..100 {
            assert_eq!(sampler.sample(&[f32::NAN, 1.0, f32::NEG_INFINITY]), 1);
        }
        let mut cold = Sampler::new(options(f32::MIN_POSITIVE, 1.0, 1));
        assert_eq!(cold.sample(&LOGITS[5..]), 2);
    }

    #[test]
    fn the_generator_is_xoshiro256_plus_plus() {
        let mut random = Xoshiro256([1, 2, 3, 4]);
        let first = [41_943_041, 58_720_359, 3_588_806_011_781_223];
        assert_eq!(first, [(); 3].map(|()| random.next()));
    }
}
