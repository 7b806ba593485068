//! What a model is on the NPU, bit for bit: an interpreter of graphs in the machine's arithmetic.
//!
//! Each op of a fused graph has one evaluation here, a plain loop over whole values that follows `ISA.md`'s definitions of numbers
//! and of the instructions that an op comes down to ([`numbers`] has the arithmetic). Programs that `model` makes are held to
//! it: outputs of any machine, in any split of a sequence into calls, are these bits. It knows no memory, no instruction and no
//! schedule, and neither shares code with lowering nor with the simulator. Integer products and the rounding of activations,
//! keys and values are `lapidary_compiler::quant`'s, which `docs/quantization.md` defines for every target.
//!
//! ```
//! use lapidary_compiler::ir::{NoSource, parse};
//! use lapidary_target_npu::reference;
//! let graph = parse(
//!     "lir 1\nphase imported\nweight @w: f32[9, 3] embedding = splat(0.1)\ninput \"ids\" = %0: u32[T]\n\
//!      %1 = embed(%0, @w)\n%2 = softmax(%1)\noutput \"y\" = %2\n",
//! )
//! .unwrap();
//! let outputs = reference::interpreter(&graph, &NoSource).run(&[3, 1], 1).unwrap();
//! assert_eq!(outputs.get("y").unwrap().f32s(), [1.0f32 / 3.0; 6]);
//! ```

mod attention;
mod elementwise;
mod expert;
mod norm;
pub mod numbers;
mod product;
mod route;

use lapidary_compiler::interp::{Data, Interpreter, Tensor};
use lapidary_compiler::ir::{Graph, WeightSource};
use lapidary_compiler::ops::{EvalCx, EvalFn, Op};

/// Results of a node.
type Results = Result<Vec<Tensor>, String>;

/// An interpreter of a verified graph in the NPU's arithmetic. The whole sequence is one call.
pub fn interpreter<'a>(graph: &'a Graph, source: &'a dyn WeightSource) -> Interpreter<'a> {
    Interpreter::with_evals(graph, source, eval)
}

/// What each op computes on the NPU.
fn eval(op: Op) -> EvalFn {
    match op {
        // What only moves numbers is the same everywhere.
        Op::Embed | Op::Slice | Op::Fill | Op::LastRows | Op::RouteGroup => op.row().eval,
        Op::RmsNorm => norm::rms_norm,
        Op::Linear => product::linear,
        Op::LinearSwiglu => product::swiglu,
        Op::Add => elementwise::add,
        Op::Mul => elementwise::mul,
        Op::Scale => elementwise::scale,
        Op::Silu => elementwise::silu,
        Op::Gelu => elementwise::gelu,
        Op::Softmax => norm::softmax,
        Op::Rope => attention::rope,
        Op::AttnRange => attention::range,
        Op::AttnClustered => attention::clustered,
        Op::RouteScores => route::scores,
        Op::RouteCluster => route::cluster,
        Op::RouteSelect => route::select,
        Op::RouteGather => |_| not_on_the_npu("route.gather"),
        Op::ExpertLinear => |_| not_on_the_npu("expert.linear"),
        Op::RouteCombine => |_| not_on_the_npu("route.combine"),
        Op::ExpertApply => |_| not_on_the_npu("expert.apply"),
        Op::ExpertFfn => expert::ffn,
        Op::RouteMemory => route::memory,
        Op::MeanRows => norm::mean_rows,
        Op::L2Normalize => norm::l2_normalize,
    }
}

fn not_on_the_npu(op: &str) -> Results {
    Err(format!("op: wanted one that the NPU has, found {op}, which fuse-expert-ffn makes part of an expert.ffn"))
}

/// A matrix of results of arithmetic; of those that are not numbers, the one pattern that there is.
fn matrix(rows: usize, cols: usize, mut elems: Vec<f32>) -> Vec<Tensor> {
    elems.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = numbers::NAN);
    vec![Tensor { shape: vec![rows, cols], data: Data::F32(elems) }]
}

/// Applies `f` to each row of value operand 0, in place.
fn each_row(cx: &EvalCx<'_>, mut f: impl FnMut(&mut [f32])) -> Results {
    let x = cx.value(0);
    let mut y = x.f32s().to_vec();
    y.chunks_exact_mut(x.cols()).for_each(&mut f);
    Ok(matrix(x.rows(), x.cols(), y))
}
