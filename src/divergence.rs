//! How far one model's predictions are from another's.

/// Sums over rows of logits; a row predicts one token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// Rows.
    pub rows: usize,
    /// Sum of the KL divergences of the found distribution from the wanted one, in nats.
    pub nats: f64,
    /// Rows whose most probable token is the same.
    pub same_best: usize,
}

impl Divergence {
    /// Adds rows of log-probabilities, see [`log_softmax`].
    pub fn add(&mut self, wanted: &[f32], found: &[f32], vocab: usize) {
        for (wanted, found) in wanted.chunks_exact(vocab).zip(found.chunks_exact(vocab)) {
            self.rows += 1;
            self.nats += wanted.iter().zip(found).map(|(p, q)| f64::from(*p).exp() * f64::from(p - q)).sum::<f64>();
            self.same_best += usize::from(best(wanted) == best(found));
        }
    }

    /// Adds the rows of another sum.
    pub fn merge(&mut self, other: &Divergence) {
        self.rows += other.rows;
        self.nats += other.nats;
        self.same_best += other.same_best;
    }

    /// KL divergence per row, in nats. Not negative, though sums of rounded terms may be.
    pub fn nats_per_row(&self) -> f64 {
        (self.nats / self.rows.max(1) as f64).max(0.0)
    }

    /// Share of rows whose most probable token is the same, in percent.
    pub fn same_best_percent(&self) -> f64 {
        100.0 * self.same_best as f64 / self.rows.max(1) as f64
    }
}

/// Turns each row of logits into log-probabilities.
pub fn log_softmax(logits: &mut [f32], vocab: usize) {
    for row in logits.chunks_exact_mut(vocab) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
        let log = f64::from(max) + sum.ln();
        row.iter_mut().for_each(|x| *x = (f64::from(*x) - log) as f32);
    }
}

/// The first of the largest numbers.
pub fn best(row: &[f32]) -> usize {
    row.iter().enumerate().fold(0, |best, (i, x)| if *x > row[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_with_a_closed_form() {
        // 1/2, 1/4, 1/4 and 1/4, 1/2, 1/4: KL = 1/2·ln 2 − 1/4·ln 2.
        let ln = |x: f32| x.ln();
        let mut wanted = [ln(0.5) + 3.0, ln(0.25) + 3.0, ln(0.25) + 3.0, 0.0, 0.0, 0.0];
        let mut found = [ln(0.25), ln(0.5), ln(0.25), 7.0, 7.0, 7.0];
        log_softmax(&mut wanted, 3);
        log_softmax(&mut found, 3);
        let mut divergence = Divergence::default();
        divergence.add(&wanted, &found, 3);
        assert!((divergence.nats - 0.25 * std::f64::consts::LN_2).abs() < 1e-6);
        assert_eq!((divergence.rows, divergence.same_best), (2, 1));
        assert!((divergence.nats_per_row() - 0.125 * std::f64::consts::LN_2).abs() < 1e-6);
        assert_eq!(divergence.same_best_percent(), 50.0);
    }

    #[test]
    fn nothing_differs_from_itself() {
        let mut rows = [0.1f32, -3.0, 8.0, 1e-3];
        log_softmax(&mut rows, 4);
        let mut divergence = Divergence::default();
        divergence.add(&rows, &rows, 4);
        assert_eq!((divergence.nats, divergence.same_best), (0.0, 1));
        assert_eq!(Divergence::default().nats_per_row(), 0.0);
    }
}
