//! How far a program's outputs are from reference outputs.
//!
//! Module sets are discrete: where two scores are closer than [`TIE_SCORE`], rounding may decide, and everything after such a
//! decision may differ. Such a prompt is a near tie; it is counted and named, and its differences are not held against the
//! program. Greedy continuations are excused after a step whose two best logits are closer than [`TIE_LOGIT`].

use std::collections::BTreeMap;

use crate::reference::{Prompt, Rows};

/// Scores closer than this may be ordered either way.
pub const TIE_SCORE: f32 = 1e-5;
/// Logits closer than this may be ordered either way.
pub const TIE_LOGIT: f32 = 1e-4;

/// Bounds of a comparison.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Absolute.
    pub atol: f32,
    /// Relative to the reference value.
    pub rtol: f32,
    /// Score that the `threshold` policy, or mass that `top_p` compares with, for near ties.
    pub boundary: Boundary,
}

/// The number that selection compares scores with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Boundary {
    /// None: scores are compared with each other only.
    #[default]
    None,
    /// Single scores (`threshold`: tau).
    Score(f32),
    /// Sums of the largest scores (`top_p`: p).
    Mass(f32),
}

/// What was found for one output over all prompts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OutputDifference {
    /// Elements compared.
    pub elements: u64,
    /// Largest absolute difference.
    pub max_abs: f32,
    /// Elements beyond the tolerance (floats) or unequal (module sets).
    pub wrong: u64,
    /// Prompt of the largest difference, or of the first unequal set.
    pub worst_prompt: String,
}

/// What was found over all prompts.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// By output: `logits`, `domains`, `modules.l`, `gates.l`, `output`.
    pub outputs: BTreeMap<String, OutputDifference>,
    /// Prompts compared.
    pub prompts: usize,
    /// Prompts with a near tie that went the other way.
    pub near_ties: Vec<String>,
    /// Greedy continuations compared, and equal ones.
    pub greedy: usize,
    /// Equal to the end, or to a step that is excused.
    pub greedy_equal: usize,
    /// `prompt 003: step 5: wanted 17, found 20`.
    pub greedy_differences: Vec<String>,
    /// Outputs that the program should have given and did not.
    pub missing: Vec<String>,
}

impl Comparison {
    /// Whether everything agreed, and there was something to agree on: near ties alone prove nothing.
    pub fn agrees(&self) -> bool {
        let greedy_alone = self.prompts == 0 && self.greedy > 0;
        (greedy_alone || self.prompts > self.near_ties.len())
            && self.missing.is_empty()
            && self.outputs.values().all(|o| o.wrong == 0)
            && self.greedy_differences.is_empty()
    }

    /// Adds one prompt: `found` are the program's outputs with all rows.
    pub fn add(&mut self, reference: &Prompt, found: &BTreeMap<String, Rows>, tolerance: &Tolerance) {
        self.prompts += 1;
        let differs = reference.outputs.iter().any(|(name, wanted)| {
            name.starts_with("modules.") && found.get(name).is_some_and(|f| f.data != wanted.data)
        });
        if differs && is_near_tie(reference, found, tolerance.boundary) {
            self.near_ties.push(reference.name.clone());
            return;
        }
        for (name, wanted) in &reference.outputs {
            if name.starts_with("scores.") {
                continue;
            }
            let Some(found) = found.get(name) else {
                if !self.missing.contains(name) {
                    self.missing.push(name.clone());
                }
                continue;
            };
            let rows = if name == "logits" { reference.logits_rows.as_deref() } else { None };
            self.outputs.entry(name.clone()).or_default().add(reference, name, wanted, found, rows, tolerance);
        }
    }

    /// Adds one greedy continuation.
    pub fn add_greedy(&mut self, reference: &Prompt, found: &[u32]) {
        self.greedy += 1;
        let step = reference.greedy.iter().zip(found).position(|(a, b)| a != b);
        match step {
            None if found.len() == reference.greedy.len() => self.greedy_equal += 1,
            None => self.greedy_differences.push(format!(
                "prompt {}: wanted {} tokens, found {}",
                reference.name,
                reference.greedy.len(),
                found.len()
            )),
            Some(at) if reference.greedy_margin.get(at).is_some_and(|m| *m < TIE_LOGIT) => self.greedy_equal += 1,
            Some(at) => self.greedy_differences.push(format!(
                "prompt {}: step {at}: wanted {}, found {}",
                reference.name, reference.greedy[at], found[at]
            )),
        }
    }
}

impl OutputDifference {
    fn add(
        &mut self,
        prompt: &Prompt,
        name: &str,
        wanted: &Rows,
        found: &Rows,
        rows: Option<&[usize]>,
        tolerance: &Tolerance,
    ) {
        let discrete = name.starts_with("modules.");
        for i in 0..wanted.rows() {
            let row = rows.map_or(i, |rows| rows[i]);
            if row >= found.rows() || found.cols != wanted.cols {
                self.wrong += wanted.cols as u64;
                self.worst_prompt.clone_from(&prompt.name);
                continue;
            }
            for (w, f) in wanted.row(i).iter().zip(found.row(row)) {
                self.elements += 1;
                let difference = (w - f).abs();
                // Not a number is beyond every tolerance.
                let within = if discrete { w == f } else { difference <= tolerance.atol + tolerance.rtol * w.abs() };
                if !within {
                    self.wrong += 1;
                }
                if difference > self.max_abs || difference.is_nan() {
                    self.max_abs = difference;
                    self.worst_prompt.clone_from(&prompt.name);
                }
            }
        }
    }
}

/// Whether the first module sets that differ hang on scores that are too close to call.
fn is_near_tie(reference: &Prompt, found: &BTreeMap<String, Rows>, boundary: Boundary) -> bool {
    for layer in 0.. {
        let Some(wanted) = reference.outputs.get(&format!("modules.{layer}")) else { return false };
        let Some(found) = found.get(&format!("modules.{layer}")) else { return false };
        if found.data == wanted.data {
            continue;
        }
        let Some(scores) = reference.outputs.get(&format!("scores.{layer}")) else { return false };
        let fits = |other: &Rows| (other.rows(), other.cols) == (wanted.rows(), wanted.cols);
        if !fits(found) || !fits(scores) {
            return false;
        }
        return (0..wanted.rows()).filter(|r| wanted.row(*r) != found.row(*r)).all(|row| {
            let changed = |c: &usize| wanted.row(row)[*c] != found.row(row)[*c];
            (0..wanted.cols).filter(changed).all(|c| close(scores, row, c, boundary))
        });
    }
    false
}

/// Whether score `c` of a row is close to another score of its row or column, or to the boundary.
fn close(scores: &Rows, row: usize, c: usize, boundary: Boundary) -> bool {
    let own = scores.row(row)[c];
    let near = |other: f32| (own - other).abs() < TIE_SCORE;
    let in_row = scores.row(row).iter().enumerate().any(|(i, s)| i != c && near(*s));
    let in_column = (0..scores.rows()).any(|r| r != row && near(scores.row(r)[c]));
    let at_boundary = match boundary {
        Boundary::None => false,
        Boundary::Score(tau) => near(tau),
        Boundary::Mass(p) => {
            let mut sorted = scores.row(row).to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let mut mass = 0.0;
            sorted.iter().any(|s| {
                mass += s;
                (mass - p).abs() < TIE_SCORE
            })
        }
    };
    in_row || in_column || at_boundary
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: Tolerance = Tolerance { atol: 1e-3, rtol: 0.0, boundary: Boundary::Score(0.2) };

    fn prompt(scores: [f32; 3]) -> Prompt {
        let outputs = [
            ("logits".to_string(), Rows { cols: 2, data: vec![1.0, 2.0] }),
            ("modules.0".to_string(), Rows { cols: 3, data: vec![1.0, 0.0, 0.0] }),
            ("scores.0".to_string(), Rows { cols: 3, data: scores.to_vec() }),
        ];
        Prompt {
            name: "000".into(),
            ids: vec![1],
            outputs: outputs.into(),
            greedy: vec![4, 5],
            greedy_margin: vec![1.0, 1e-5],
            ..Prompt::default()
        }
    }

    fn found(logit: f32, modules: [f32; 3]) -> BTreeMap<String, Rows> {
        [
            ("logits".to_string(), Rows { cols: 2, data: vec![logit, 2.0] }),
            ("modules.0".to_string(), Rows { cols: 3, data: modules.to_vec() }),
        ]
        .into()
    }

    /// One prompt that agrees, and one as given.
    fn compare(scores: [f32; 3], logit: f32, modules: [f32; 3]) -> Comparison {
        let mut comparison = Comparison::default();
        comparison.add(&prompt([0.5, 0.3, 0.2]), &found(1.0, [1.0, 0.0, 0.0]), &TOLERANCE);
        comparison.add(&prompt(scores), &found(logit, modules), &TOLERANCE);
        comparison
    }

    #[test]
    fn differences_within_the_tolerance_agree() {
        assert!(compare([0.5, 0.3, 0.2], 1.0009, [1.0, 0.0, 0.0]).agrees());
        assert!(!compare([0.5, 0.3, 0.2], 1.0011, [1.0, 0.0, 0.0]).agrees());
        assert!(!compare([0.5, 0.3, 0.2], f32::NAN, [1.0, 0.0, 0.0]).agrees());
    }

    #[test]
    fn another_module_set_is_wrong_unless_scores_tie() {
        assert!(!compare([0.5, 0.3, 0.2], 1.0, [0.0, 1.0, 0.0]).agrees());
        let tie = compare([0.4, 0.399_995, 0.2], 9.0, [0.0, 1.0, 0.0]);
        assert!(tie.agrees());
        assert_eq!(tie.near_ties, ["000"]);
        // One module more, its score at tau; then one whose score is far from everything.
        assert!(compare([0.5, 0.3, 0.200_005], 1.0, [1.0, 0.0, 1.0]).agrees());
        assert!(!compare([0.5, 0.3, 0.19], 1.0, [1.0, 0.0, 1.0]).agrees());
    }

    #[test]
    fn rows_of_other_lengths_are_no_near_tie() {
        let mut reference = prompt([0.4, 0.399_995, 0.2]);
        reference.outputs.insert("scores.0".into(), Rows { cols: 1, data: vec![0.4] });
        let mut comparison = Comparison::default();
        comparison.add(&reference, &found(1.0, [0.0, 1.0, 0.0]), &TOLERANCE);
        reference.outputs.insert("modules.0".into(), Rows { cols: 5, data: vec![1.0; 5] });
        comparison.add(&reference, &found(1.0, [0.0, 1.0, 0.0]), &TOLERANCE);
        assert!(comparison.near_ties.is_empty() && !comparison.agrees());
    }

    #[test]
    fn near_ties_alone_prove_nothing() {
        let mut comparison = Comparison::default();
        comparison.add(&prompt([0.4, 0.399_995, 0.2]), &found(1.0, [0.0, 1.0, 0.0]), &TOLERANCE);
        assert_eq!(comparison.near_ties, ["000"]);
        assert!(!comparison.agrees());
    }

    #[test]
    fn a_missing_output_is_wrong() {
        let mut comparison = Comparison::default();
        comparison.add(&prompt([0.5, 0.3, 0.2]), &BTreeMap::new(), &TOLERANCE);
        assert!(!comparison.agrees());
    }

    #[test]
    fn greedy_is_excused_only_where_logits_tie() {
        let reference = prompt([0.5, 0.3, 0.2]);
        let greedy = |found: &[u32]| {
            let mut comparison = Comparison { prompts: 1, ..Comparison::default() };
            comparison.add_greedy(&reference, found);
            comparison.agrees()
        };
        assert!(greedy(&[4, 5]));
        assert!(greedy(&[4, 6]));
        assert!(!greedy(&[3, 5]));
        assert!(!greedy(&[4]));
    }
}
