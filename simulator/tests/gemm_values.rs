//! Random multiplications from the NPU target's lowering, on random machines: the simulator's values are those of
//! docs/quantization.md, and its array takes as many cycles as the closed forms say.

#[path = "../../targets/npu/tests/support/case.rs"]
mod case;

use case::cases;
use lapidary_npu_isa::{CostClass, Queue};
use lapidary_simulator::{Options, Simulator};
use lapidary_target_npu::LowerError;
use proptest::prelude::*;

/// `PROPTEST_CASES`, or more with `LAPIDARY_TEST=full`.
fn case_count() -> u32 {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    cases.unwrap_or(if std::env::var_os("LAPIDARY_TEST").is_some() { 4000 } else { 300 })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: case_count(), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn values_and_passes(case in cases()) {
        let built = match case.build() {
            Ok(built) => built,
            Err(LowerError::TooSmall { .. } | LowerError::Argument { what: "test", .. }) => return Ok(()),
            Err(error) => panic!("{error}"),
        };
        let run = Simulator::new(&built.program, &case.machine, Options::default()).expect("a simulator").run().expect("a run");
        let got = run.read_dram(built.out, built.expected.len());
        prop_assert_eq!(got, built.expected);
        if case.most.is_none() {
            let (loaded, stored) = case.extra_bytes();
            let moved = u128::from(built.plan.summary.moved_bytes() + loaded + stored);
            prop_assert_eq!(run.report.total.dram_used_bytes, moved);
            let macs = u128::from(case.m) * u128::from(case.n) * u128::from(case.k);
            prop_assert_eq!(run.report.total.macs, macs);
            if !case.machine.matrix.weight_overlap {
                let class = |class| run.report.classes.iter().find(|(c, _)| *c == class);
                let cycles = |c| class(c).map_or(0, |(_, share)| share.unit_cycles[Queue::Matrix.index()]);
                prop_assert_eq!(cycles(CostClass::Preload) + cycles(CostClass::Pass), built.plan.summary.matrix_cycles);
            }
        }
    }
}
