//! Every row of the kernel table against a plain-loop f64 oracle.
//!
//! Tests are per operation and go over the table, so a new row is tested without being named here, and a new operation
//! does not compile without an oracle ([`oracle_of`]). Inputs end at a page that cannot be read, so reading past
//! the end of anything is a crash. Rows that this machine cannot run are named as skipped.
//!
//! `PROPTEST_CASES` sets the number of random cases per operation (default 48).
#![allow(clippy::print_stdout, reason = "names what is measured and what is skipped")]

mod attend;
mod cache;
mod embed;
mod features;
mod gemm;
mod hostile;
mod memory;
mod pack;
mod quant;
mod quant_pack;
mod route;
mod rows;
mod select;
mod stack;
mod table;
mod transcendental;

use lapidary_kernels::{FeatureSet, KernelFn, KernelOp, KernelRow, WeightType, kernels, resolve_for};
use proptest::test_runner::{Config, TestRunner};

/// 2⁻²³, twice the largest relative error of one rounding: every tolerance counts roundings in it.
const EPS: f64 = f32::EPSILON as f64;

/// A row that this machine can run.
#[derive(Clone, Copy)]
struct Kernel {
    row: &'static KernelRow,
    function: KernelFn,
}

impl Kernel {
    /// Runs it, and holds the stack it took, which it returns, to its bound.
    fn run<A>(&self, args: &A) -> u64 {
        // SAFETY: the function was resolved for this machine's features; the tests build valid arguments.
        let stack_bytes = unsafe { stack::call(self.function, std::ptr::from_ref(args).cast()) };
        stack::check(self, stack_bytes);
        stack_bytes
    }
}

/// Features of this machine, from the standard library: independent of the detection under test.
fn machine_features() -> FeatureSet {
    macro_rules! detected {
        ($detect:ident: $($name:tt)*) => {
            FeatureSet::from_names([$(($name, std::arch::$detect!($name))),*]
                .into_iter()
                .filter(|(_, detected)| *detected)
                .map(|(name, _)| name))
                .expect("names are the standard library's")
        };
    }
    #[cfg(target_arch = "x86_64")]
    return detected!(is_x86_feature_detected:
        "avx" "avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512vnni" "avx512bf16" "avx512fp16"
        "avxvnni");
    #[cfg(target_arch = "aarch64")]
    return detected!(is_aarch64_feature_detected: "neon" "fp16" "dotprod" "i8mm" "bf16");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return FeatureSet::EMPTY;
}

/// Rows of an operation that this machine can run; names the others.
fn runnable(op: KernelOp) -> Vec<Kernel> {
    let features = machine_features();
    let mut runnable = Vec::new();
    for row in kernels().iter().filter(|row| row.op == op) {
        match resolve_for(row.name, &features) {
            Some(function) => runnable.push(Kernel { row, function }),
            None => println!("skipped: {} ({} not here)", row.name, row.isa.name()),
        }
    }
    assert!(!runnable.is_empty(), "{op:?} has no kernel that runs anywhere");
    runnable
}

/// Runs a property over random cases, the same ones every time.
fn property<S: proptest::strategy::Strategy>(strategy: S, check: impl Fn(S::Value)) {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(48);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = proptest::test_runner::TestRng::deterministic_rng(config.rng_algorithm);
    TestRunner::new_with_rng(config, rng)
        .run(&strategy, |case| {
            check(case);
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}

/// Kernels of quantized weights, and the others.
fn by_weights(kernels: &[Kernel]) -> (Vec<Kernel>, Vec<Kernel>) {
    kernels.iter().partition(|kernel| matches!(kernel.row.weight, WeightType::I8 | WeightType::I4))
}

/// The test of an operation's kernels.
fn oracle_of(op: KernelOp) -> fn(&[Kernel]) {
    match op {
        KernelOp::Gemm | KernelOp::Gemv | KernelOp::GemmSwiglu | KernelOp::GemvSwiglu => |kernels| {
            let (quantized, float) = by_weights(kernels);
            gemm::check(&float);
            quant::check(&quantized);
        },
        KernelOp::QuantizeRows => quant::check_quantize_rows,
        KernelOp::RmsNorm => rows::check_rms_norm,
        KernelOp::Softmax => rows::check_softmax,
        KernelOp::Silu => rows::check_silu,
        KernelOp::Gelu => rows::check_gelu,
        KernelOp::L2Normalize => rows::check_l2_normalize,
        KernelOp::SiluMul => rows::check_silu_mul,
        KernelOp::Rope => rows::check_rope,
        KernelOp::CopyRows => rows::check_copy_rows,
        KernelOp::AttendRange => attend::check_range,
        KernelOp::AttendClustered => attend::check_clustered,
        KernelOp::ClusterAppend => route::check_cluster_append,
        KernelOp::RouteScores => route::check_scores,
        KernelOp::RouteCluster => route::check_cluster,
        KernelOp::SelectTopK
        | KernelOp::SelectTopP
        | KernelOp::SelectThreshold
        | KernelOp::SelectExpertChoice
        | KernelOp::SelectBidirectional => select::check,
        KernelOp::RouteGroup => route::check_group,
        KernelOp::RouteMemory => route::check_memory,
        KernelOp::GatherRows => rows::check_gather,
        KernelOp::ScatterAdd => rows::check_scatter,
        KernelOp::EmbedRows | KernelOp::EmbedPanels => |kernels| {
            let (quantized, float) = by_weights(kernels);
            embed::check(&float);
            embed::check_quantized(&quantized);
        },
        KernelOp::MeanRows => rows::check_mean,
    }
}

/// One test per operation, and one that none is forgotten.
macro_rules! operations {
    ($($test:ident = $op:ident;)*) => {
        $(
            #[test]
            fn $test() {
                oracle_of(KernelOp::$op)(&runnable(KernelOp::$op));
            }
        )*

        #[test]
        fn every_operation_has_a_test() {
            let tested = [$(KernelOp::$op),*];
            for op in KernelOp::ALL {
                assert!(tested.contains(op), "{op:?} has no test");
            }
        }
    };
}

operations! {
    gemm_matches_oracle = Gemm;
    gemv_matches_oracle = Gemv;
    gemm_swiglu_matches_oracle = GemmSwiglu;
    gemv_swiglu_matches_oracle = GemvSwiglu;
    quantize_rows_matches_oracle = QuantizeRows;
    rms_norm_matches_oracle = RmsNorm;
    softmax_matches_oracle = Softmax;
    silu_matches_oracle = Silu;
    gelu_matches_oracle = Gelu;
    l2_normalize_matches_oracle = L2Normalize;
    silu_mul_matches_oracle = SiluMul;
    rope_matches_oracle = Rope;
    copy_rows_matches_oracle = CopyRows;
    attend_range_matches_oracle = AttendRange;
    attend_clustered_matches_oracle = AttendClustered;
    cluster_append_matches_oracle = ClusterAppend;
    route_scores_matches_oracle = RouteScores;
    route_cluster_matches_oracle = RouteCluster;
    select_top_k_matches_oracle = SelectTopK;
    select_top_p_matches_oracle = SelectTopP;
    select_threshold_matches_oracle = SelectThreshold;
    select_expert_choice_matches_oracle = SelectExpertChoice;
    select_bidirectional_matches_oracle = SelectBidirectional;
    route_group_matches_oracle = RouteGroup;
    route_memory_matches_oracle = RouteMemory;
    gather_rows_matches_oracle = GatherRows;
    scatter_add_matches_oracle = ScatterAdd;
    embed_rows_matches_oracle = EmbedRows;
    embed_panels_matches_oracle = EmbedPanels;
    mean_rows_matches_oracle = MeanRows;
}
