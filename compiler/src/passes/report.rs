//! What a pass says it did, and why it did not.

use crate::plan::Plan;

/// One place where a pass changed the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fired {
    /// Label of the node, or the part of the model.
    pub label: String,
    /// What happened: `linear + linear + silu + mul -> linear.swiglu`.
    pub what: String,
}

/// One place that a pass looked at and left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// Label of the node.
    pub label: String,
    /// What stood in the way; printed by `--why-not PASS`.
    pub reason: String,
}

/// Everything one run of a pass reports.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PassReport {
    /// Changes, in program order.
    pub fired: Vec<Fired>,
    /// Near misses, in program order.
    pub missed: Vec<Missed>,
    /// The memory plan, of `plan-memory` only.
    pub plan: Option<Plan>,
}

impl PassReport {
    /// Adds a change.
    pub fn fire(&mut self, label: impl Into<String>, what: impl Into<String>) {
        self.fired.push(Fired { label: label.into(), what: what.into() });
    }

    /// Adds a near miss.
    pub fn miss(&mut self, label: impl Into<String>, reason: impl Into<String>) {
        self.missed.push(Missed { label: label.into(), reason: reason.into() });
    }
}
