//! Passes: how an imported graph becomes one that a target can compile.
//!
//! Each pass is one file and one row of [`passes`]. A pass changes the graph and reports where it did and where it
//! almost did ([`PassReport`]); the table's order is the pipeline's. What stays out: computing with weights (their
//! definitions are changed, their numbers are read by targets) and anything that depends on a target.
//!
//! ```
//! use lapidary_compiler::passes;
//! let row = passes::by_name("fuse-swiglu").unwrap();
//! println!("{}: {}", row.name, row.doc);
//! ```

mod choose_formats;
mod context;
mod edit;
mod eliminate_common_subexpressions;
mod eliminate_dead_code;
mod fold_constants;
mod fold_norm_into_projection;
mod fold_scale;
mod fuse_activation;
mod fuse_expert_ffn;
mod fuse_residual;
mod fuse_swiglu;
mod group_tokens_by_module;
mod infer_shapes;
mod merge_projections;
mod plan_memory;
mod report;
mod schedule;

pub use crate::quant::Recipe;
pub use context::PassContext;
pub use report::{Fired, Missed, PassReport};

use crate::ir::{Graph, Phase, VerifyError};
use crate::plan::{Plan, PlanError};

/// What a pass is run as.
pub type PassFn = fn(&mut Graph, &PassContext) -> Result<PassReport, PassError>;

/// One pass.
#[derive(Clone, Copy, Debug)]
pub struct PassRow {
    /// Verb and object: `fuse-swiglu`.
    pub name: &'static str,
    /// The phase that a graph is on its way to; the phase's last pass gets it there.
    pub phase: Phase,
    /// What it does, in one line.
    pub doc: &'static str,
    /// The pass itself; [`run_pass`] also renumbers and verifies.
    pub run: PassFn,
}

/// Why a pass could not do its work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PassError {
    /// The graph is not what the pass can work on.
    #[error("{pass}: {message}")]
    Failed {
        /// The pass.
        pass: &'static str,
        /// Where, what it wants and what it found.
        message: String,
    },
    /// The pass left a graph that is not one.
    #[error("the graph after {pass} is broken: {error}")]
    Broken {
        /// The pass.
        pass: &'static str,
        /// The verifier's message.
        error: VerifyError,
    },
    /// There is no memory plan.
    #[error("plan-memory: {0}")]
    Plan(#[from] PlanError),
}

macro_rules! pass_table {
    ($( $name:literal $module:ident $phase:ident $doc:literal )+) => {
        const PASSES: &[PassRow] = &[$(
            PassRow { name: $name, phase: Phase::$phase, doc: $doc, run: $module::run }
        ),+];
    };
}

pass_table! {
    "infer-shapes" infer_shapes Canonical
        "compute the type of every value from its node's operands"
    "fold-constants" fold_constants Canonical
        "drop factors of 1, join scales and slices, simplify weights' definitions"
    "eliminate-common-subexpressions" eliminate_common_subexpressions Canonical
        "compute once what several nodes compute alike"
    "eliminate-dead-code" eliminate_dead_code Canonical
        "drop nodes, weights and symbols that no output needs"
    "choose-formats" choose_formats Quantized
        "give weights, keys and values the storage that the recipe says"
    "fold-scale" fold_scale Fused
        "take a scale into the weight before it or the scores after it"
    "fold-norm-into-projection" fold_norm_into_projection Fused
        "multiply a norm's weight into the matrices that read its result"
    "fuse-swiglu" fuse_swiglu Fused
        "make gate, up, silu and mul one linear.swiglu"
    "fuse-activation" fuse_activation Fused
        "make silu and gelu a part of the linear before them"
    "group-tokens-by-module" group_tokens_by_module Fused
        "sort tokens by module, so that modules compute only the rows routed to them"
    "fuse-expert-ffn" fuse_expert_ffn Fused
        "make the ragged products of a module layer one expert.ffn"
    "fuse-residual" fuse_residual Fused
        "let products start from the sum that they are added to"
    "merge-projections" merge_projections Fused
        "make linears of the same input one linear with views of its columns"
    "schedule" schedule Fused
        "move nodes down to their first use where lifetimes get shorter"
    "plan-memory" plan_memory Planned
        "give every value its place in memory"
}

/// All passes, in the pipeline's order.
pub fn passes() -> &'static [PassRow] {
    PASSES
}

/// The pass of that name.
pub fn by_name(name: &str) -> Option<&'static PassRow> {
    PASSES.iter().find(|row| row.name == name)
}

/// Where a pipeline stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopAfter {
    /// After the last pass of this phase.
    Phase(Phase),
    /// After this pass.
    Pass(&'static str),
}

impl StopAfter {
    /// From the name of a phase or a pass, as `--dump-ir` takes it.
    pub fn parse(name: &str) -> Option<Self> {
        let phase = Phase::by_name(name).map(StopAfter::Phase);
        phase.or_else(|| by_name(name).map(|row| StopAfter::Pass(row.name)))
    }
}

/// The passes that a graph still has to go through, up to and with `stop_after`: those of phases that it has not reached.
pub fn pipeline(from: Phase, stop_after: Option<StopAfter>) -> Vec<&'static PassRow> {
    let until = match stop_after {
        None => PASSES.len(),
        Some(StopAfter::Phase(phase)) => PASSES.iter().take_while(|row| row.phase <= phase).count(),
        Some(StopAfter::Pass(name)) => PASSES.iter().position(|row| row.name == name).map_or(0, |at| at + 1),
    };
    PASSES[..until].iter().filter(|row| row.phase > from).collect()
}

/// Runs one pass, then drops the weights, values and symbols that nothing refers to any more and numbers the rest in
/// program order. Debug builds verify the graph. The graph's phase stays.
///
/// # Errors
/// What the pass says, or that it broke the graph.
pub fn run_pass(row: &PassRow, graph: &mut Graph, ctx: &PassContext) -> Result<PassReport, PassError> {
    let report = (row.run)(graph, ctx)?;
    graph.compact();
    if cfg!(debug_assertions) {
        graph.verify().map_err(|error| PassError::Broken { pass: row.name, error })?;
    }
    Ok(report)
}

/// Runs the passes between the graph's phase and `stop_after`, showing each one's graph and report to `observer`.
/// Returns the memory plan if `plan-memory` was among them.
///
/// # Errors
/// The first error of a pass.
pub fn run_pipeline(
    graph: &mut Graph,
    ctx: &PassContext,
    stop_after: Option<StopAfter>,
    observer: &mut dyn FnMut(&'static PassRow, &Graph, &PassReport),
) -> Result<Option<Plan>, PassError> {
    let rows = pipeline(graph.phase, stop_after);
    let mut plan = None;
    for row in rows {
        let report = run_pass(row, graph, ctx)?;
        if PASSES.iter().rfind(|other| other.phase == row.phase).is_some_and(|last| last.name == row.name) {
            graph.phase = row.phase;
        }
        observer(row, graph, &report);
        plan = report.plan;
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::parse;

    #[test]
    fn rows_are_named_once_and_phases_only_rise() {
        for pair in PASSES.windows(2) {
            assert!(pair[0].phase <= pair[1].phase, "{} comes after {}", pair[1].name, pair[0].name);
        }
        for (i, row) in PASSES.iter().enumerate() {
            assert!(PASSES[..i].iter().all(|other| other.name != row.name), "{} twice", row.name);
            assert!(!row.doc.ends_with('.'), "{}", row.name);
            assert_eq!(by_name(row.name).map(|found| found.doc), Some(row.doc));
        }
    }

    #[test]
    fn a_pipeline_stops_after_phases_and_passes() {
        let names = |from, stop| pipeline(from, stop).iter().map(|row| row.name).collect::<Vec<_>>();
        let all = names(Phase::Imported, None);
        assert_eq!((all.len(), all.last()), (PASSES.len(), Some(&"plan-memory")));
        assert_eq!(names(Phase::Imported, StopAfter::parse("imported")), Vec::<&str>::new());
        assert_eq!(names(Phase::Imported, StopAfter::parse("quantized")).last(), Some(&"choose-formats"));
        assert_eq!(names(Phase::Quantized, StopAfter::parse("fold-scale")), ["fold-scale"]);
        assert_eq!(names(Phase::Fused, None), ["plan-memory"]);
        assert_eq!(StopAfter::parse("later"), None);
    }

    #[test]
    fn the_phase_is_reached_with_its_last_pass() {
        let text = "lir 1\nphase imported\ninput \"x\" = %x: f32[T, 4]\n%y = silu(%x)\noutput \"y\" = %y\n";
        let mut graph = parse(text).unwrap();
        let ctx = PassContext::new(&graph, Recipe::default(), 8);
        let mut phases = Vec::new();
        let stop = StopAfter::parse("fold-scale");
        let plan = run_pipeline(&mut graph, &ctx, stop, &mut |_, graph, _| phases.push(graph.phase)).unwrap();
        assert_eq!(plan, None);
        let expected = [Phase::Imported, Phase::Imported, Phase::Imported, Phase::Canonical, Phase::Quantized];
        assert_eq!(phases, [&expected[..], &[Phase::Quantized]].concat());
    }
}
