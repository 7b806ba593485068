//! The table itself: names, selection, resolution.

use crate::machine_features;
use lapidary_kernels::{Feature, FeatureSet, Isa, KernelOp, WeightType, find, kernels, resolve, resolve_for, select};
use std::collections::BTreeSet;
use std::io::Write;

/// Sets of features that a target can have, by instruction set.
fn targets() -> Vec<FeatureSet> {
    Isa::ALL.iter().map(|isa| isa.required()).collect()
}

#[test]
fn a_name_is_the_specification() {
    let mut names = BTreeSet::new();
    for row in kernels() {
        let (op, isa, weight) = (row.op.name(), row.isa.name(), row.weight.name());
        let wanted = match row.op {
            KernelOp::Gemm | KernelOp::Gemv | KernelOp::GemmSwiglu | KernelOp::GemvSwiglu => {
                let inputs = if matches!(row.weight, WeightType::I8 | WeightType::I4) { "i8" } else { "f32" };
                format!("{op}_{inputs}_{weight}_{}x{}_{isa}", row.tile.mr, row.tile.nr)
            }
            KernelOp::EmbedRows | KernelOp::EmbedPanels => format!("{op}_{weight}_{isa}"),
            KernelOp::CopyRows | KernelOp::AttendRange | KernelOp::AttendClustered
                if row.weight != WeightType::None =>
            {
                format!("{op}_f32_{weight}_{isa}")
            }
            KernelOp::CopyRows
            | KernelOp::ClusterAppend
            | KernelOp::RouteCluster
            | KernelOp::SelectTopK
            | KernelOp::SelectTopP
            | KernelOp::SelectThreshold
            | KernelOp::SelectExpertChoice
            | KernelOp::SelectBidirectional
            | KernelOp::RouteGroup
            | KernelOp::GatherRows => format!("{op}_{isa}"),
            KernelOp::QuantizeRows
            | KernelOp::RmsNorm
            | KernelOp::Softmax
            | KernelOp::Silu
            | KernelOp::Gelu
            | KernelOp::L2Normalize
            | KernelOp::SiluMul
            | KernelOp::Rope
            | KernelOp::AttendRange
            | KernelOp::AttendClustered
            | KernelOp::RouteScores
            | KernelOp::RouteMemory
            | KernelOp::ScatterAdd
            | KernelOp::MeanRows => format!("{op}_f32_{isa}"),
        };
        assert_eq!(row.name, wanted);
        assert!(names.insert(row.name), "{} twice", row.name);
        assert!(!row.doc.is_empty());
        assert_eq!(find(row.name).unwrap().name, row.name);
    }
}

#[test]
fn functions_exist_on_their_own_architecture() {
    for row in kernels() {
        let here = match row.isa {
            Isa::Scalar => true,
            Isa::Neon | Isa::Dotprod | Isa::I8mm => cfg!(target_arch = "aarch64"),
            Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 | Isa::Avx512Vnni => cfg!(target_arch = "x86_64"),
        };
        assert_eq!(resolve(row.name).is_some(), here, "{}", row.name);
        assert_eq!(row.function().is_some(), here, "{}", row.name);
        assert_eq!(resolve_for(row.name, &row.required()).is_some(), here, "{}", row.name);
        let missing = row.required().iter().map(|feature| row.required().difference(FeatureSet::of(&[feature])));
        for features in missing {
            assert!(resolve_for(row.name, &features).is_none(), "{} without a feature it needs", row.name);
        }
    }
    assert!(resolve("gemm_f32_f64_1x1_abacus").is_none());
    assert!(resolve_for("gemm_f32_f64_1x1_abacus", &machine_features()).is_none());
}

#[test]
fn every_operation_has_a_scalar_kernel_and_the_best_one_is_selected() {
    for &op in KernelOp::ALL {
        let weights: BTreeSet<WeightType> = kernels().iter().filter(|row| row.op == op).map(|row| row.weight).collect();
        assert!(!weights.is_empty(), "{op:?} has no kernel");
        for weight in weights {
            for features in targets() {
                let best = select(op, &features, weight).unwrap();
                assert!(features.contains(best.required()));
                for row in kernels().iter().filter(|row| row.op == op && row.weight == weight) {
                    assert!(!features.contains(row.required()) || row.isa <= best.isa, "{} is better", row.name);
                }
            }
            let baseline = select(op, &FeatureSet::EMPTY, weight).unwrap();
            assert_eq!(baseline.isa, Isa::Scalar);
        }
    }
    assert!(select(KernelOp::Softmax, &FeatureSet::EMPTY, WeightType::F16).is_none());
}

#[test]
fn one_feature_less_falls_back() {
    let all = Isa::Avx512.required();
    let without = all.difference(FeatureSet::of(&[Feature::Avx512vl]));
    assert_eq!(select(KernelOp::RmsNorm, &all, WeightType::None).unwrap().name, "rms_norm_f32_avx512");
    assert_eq!(select(KernelOp::RmsNorm, &without, WeightType::None).unwrap().name, "rms_norm_f32_avx2");
    let without = all.difference(FeatureSet::of(&[Feature::Fma]));
    assert_eq!(select(KernelOp::RmsNorm, &without, WeightType::None).unwrap().name, "rms_norm_f32_scalar");
}

/// A GEMM and its GEMV read the same packed weights, so that prefill and decode share them.
#[test]
fn gemm_and_gemv_share_panels() {
    for features in targets() {
        for weight in [WeightType::F32, WeightType::F16, WeightType::I8, WeightType::I4] {
            for (gemm, gemv) in [(KernelOp::Gemm, KernelOp::Gemv), (KernelOp::GemmSwiglu, KernelOp::GemvSwiglu)] {
                let row = |op| select(op, &features, weight).unwrap();
                let tiles = (row(gemm).tile, row(gemv).tile);
                assert_eq!((tiles.0.nr, tiles.0.kr), (tiles.1.nr, tiles.1.kr));
                assert_eq!(row(gemm).isa.code_offset(), row(gemv).isa.code_offset());
            }
        }
    }
}

/// Says which rows no test on this machine can run. Written past the test harness, which hides what passing tests print.
#[test]
fn rows_not_run_here_are_named() {
    let features = machine_features();
    let (run, skipped): (Vec<_>, Vec<_>) =
        kernels().iter().map(|row| row.name).partition(|name| resolve_for(name, &features).is_some());
    let mut report = std::io::stderr().lock();
    writeln!(report, "{} kernels run here, {} skipped: {}", run.len(), skipped.len(), skipped.join(" ")).unwrap();
    assert_eq!(run.len() + skipped.len(), kernels().len());
}
