//! Programs of random multiplications on random machines: verified, within their memories, with the right values, and moving
//! as many bytes as their summaries say.

mod support;

use lapidary_npu_isa::verify::verify;
use lapidary_target_npu::LowerError;
use proptest::prelude::*;
use support::case::{Case, cases};
use support::executor::Executor;

/// Builds, verifies, executes, compares; a memory that is too small is what an error says.
fn check(case: &Case) {
    let built = match case.build() {
        Ok(built) => built,
        Err(LowerError::TooSmall { wanted, found, .. }) => {
            assert!(wanted > found);
            return;
        }
        Err(LowerError::Argument { what: "test", .. }) => return,
        Err(error) => panic!("{error}"),
    };
    if let Err(error) = verify(&built.program, &case.machine) {
        panic!("{error}\n{:#?}", built.plan);
    }
    let mut executor = Executor::new(&case.machine, &built.program, built.dram_bytes);
    executor.run(&built.program);
    let out = built.out as usize;
    let got = &executor.dram[out..out + built.expected.len()];
    let at = got.iter().zip(&built.expected).position(|(a, b)| a != b);
    assert_eq!(at, None, "first byte that differs\n{:#?}", built.plan);
    if case.most.is_none() {
        let (loaded, stored) = case.extra_bytes();
        assert_eq!(executor.loaded + executor.stored - loaded - stored, built.plan.summary.moved_bytes());
        assert_eq!(executor.passes, built.plan.summary.passes);
        if !case.machine.matrix.weight_overlap {
            let cycles = executor.matrix_cycles + executor.preloads * case.machine.matrix.rows;
            assert_eq!(cycles, built.plan.summary.matrix_cycles);
        }
    }
    if case.m == 0 {
        assert_eq!((executor.passes, executor.preloads), (0, 0), "no row, no work");
    }
}

/// `PROPTEST_CASES`, or more with `LAPIDARY_TEST=full`.
fn case_count() -> u32 {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    cases.unwrap_or(if std::env::var_os("LAPIDARY_TEST").is_some() { 4000 } else { 400 })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: case_count(), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_multiplications(case in cases()) {
        check(&case);
    }
}

/// The cases of the test above reach every way to do it.
#[test]
fn every_plan_is_reached() {
    use lapidary_target_npu::matmul::plan::{Channels, Nest, Operand, Staging, WeightSlots};
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    use std::collections::BTreeMap;
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut note = |name: &str| *seen.entry(name.into()).or_default() += 1;
    for _ in 0..1500 {
        let case = cases().new_tree(&mut runner).expect("a case").current();
        let Ok(built) = case.build() else {
            note("too small");
            continue;
        };
        let plan = built.plan;
        note(match plan.nest {
            Nest::Blocks => "blocks outside",
            Nest::Strips => "strips outside",
        });
        note(match plan.operand {
            Operand::Given => "given operand",
            Operand::Block { slots: 2 } => "two blocks of operand",
            Operand::Block { .. } => "a block of operand",
            Operand::All => "all of the operand",
            Operand::Streamed => "streamed operand",
        });
        note(match plan.staging {
            Staging::Given => "given result",
            Staging::Strip { slots: 2 } => "two strips of results",
            Staging::Strip { .. } => "a strip of results",
            Staging::Whole { slots: 2 } => "two blocks of results",
            Staging::Whole { .. } => "a block of results",
        });
        note(match plan.channels {
            Channels::None => "no factors",
            Channels::One => "ones",
            Channels::Given => "given factors",
            Channels::Whole => "all factors",
            Channels::Strip => "a strip of factors",
        });
        note(match plan.weights {
            WeightSlots::One => "one slot of weights",
            WeightSlots::Two => "two slots of weights",
            WeightSlots::Strips(2) => "two strips of weights",
            WeightSlots::Strips(_) => "a strip of weights",
        });
        note(if plan.accumulators == 2 { "two sets of accumulators" } else { "one set of accumulators" });
        note(if plan.pieces { "pieces" } else { "no pieces" });
        note(if plan.blocks == 1 { "one block" } else { "several blocks" });
        note(if plan.chunks.mids > 2 { "a loop of chunks" } else { "few chunks" });
        if case.m == 0 {
            note("no row");
        }
    }
    println!("{seen:#?}");
    assert!(seen.len() >= 30, "{seen:#?}");
    assert!(seen.values().all(|count| *count >= 3), "{seen:#?}");
}
