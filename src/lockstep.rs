//! Every node of an artifact's run, held to the reference interpreter on that run's own operands.
//!
//! Two right programs drift apart where activations are quantized: sums in another order move a float by its last bit, that
//! turns the rounding of a code now and then, and every code after it sees other numbers. Node by node nothing drifts: the
//! interpreter gets the very operands that the code had, so codes are equal and results differ by the rounding of one node.
//!
//! The artifact carries no graph. The model is compiled again; equal input gives equal bytes, so if the code is the same, so
//! are its steps and the places of its values.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail, ensure};
use lapidary_compiler::interp::{Data, Interpreter, Tensor};
use lapidary_compiler::ir::{DType, Dim, Graph, Node, NodeId, Op, SymbolId, ValueId};
use lapidary_compiler::plan::Plan;
use lapidary_runtime::{Observer, Session};
use lapidary_target_cpu::program::Program;

use crate::engine;
use crate::model::Planned;

/// Largest difference of a result from its definition, relative to the largest number of its row: the rounding of sums of a few
/// thousand f32 terms, and of kernels' exp, sin and cos.
pub const TOLERANCE: f32 = 2e-5;
/// The same of a row of routed modules whose hidden row has a code that rounding turned: one step of 127 of that row, weighted.
/// Hidden rows are quantized inside the node, from floats that kernels compute in f32.
pub const TURNED_TOLERANCE: f32 = 2e-2;

/// What was found of all nodes of one op.
#[derive(Clone, Debug, Default)]
pub struct OpDifference {
    /// Nodes.
    pub nodes: BTreeSet<u32>,
    /// Elements compared.
    pub elements: u64,
    /// Largest difference relative to the largest number of its row.
    pub max_relative: f32,
    /// Where.
    pub worst: String,
    /// Rows beyond [`TOLERANCE`] and within [`TURNED_TOLERANCE`], where a code may turn.
    pub turned_rows: u64,
    /// Elements that are wrong.
    pub wrong: u64,
}

/// What was found, by op.
pub type Differences = BTreeMap<&'static str, OpDifference>;

/// A compiled model whose runs can be followed.
pub struct Lockstep<'a> {
    graph: &'a Graph,
    plan: &'a Plan,
    interpreter: Interpreter<'a>,
    /// By step of the artifact: the node whose results are complete then.
    completes: Vec<Option<NodeId>>,
}

impl<'a> Lockstep<'a> {
    /// Readies the comparison: `program` is what compiling the model again gave, `code` what the artifact has.
    ///
    /// # Errors
    /// Code that differs.
    pub fn new(planned: &'a Planned, program: &Program, code: &[u8]) -> anyhow::Result<Self> {
        ensure!(
            program.code == code,
            "the model compiled again gives other code than the artifact has, so that its steps cannot be told apart\n\
             hint: compile it with this build"
        );
        let mut completes = vec![None; program.ranges.len()];
        let mut last = BTreeMap::new();
        for (step, range) in program.ranges.iter().enumerate() {
            if let Some(node) = range.node {
                last.insert((range.entry.name(), node), step);
            }
        }
        for ((_, node), step) in last {
            completes[step] = Some(NodeId(node));
        }
        let graph = &planned.graph;
        let interpreter = Interpreter::new(graph, planned.model.source.as_ref());
        Ok(Lockstep { graph, plan: &planned.plan, interpreter, completes })
    }

    /// Runs a prompt, its last token through `decode` if the model can, and adds what is found.
    pub fn add(&self, session: &mut Session, name: &str, ids: &[u32], found: &mut Differences) -> anyhow::Result<()> {
        let recorder = Recorder { lockstep: self, calls: Mutex::default() };
        let can_decode = engine::can_decode(session) && ids.len() > 1;
        let (before, last) = ids.split_at(ids.len() - usize::from(can_decode));
        session.reset();
        session.prefill_with(before, Some(&recorder), &mut |_, _| ())?;
        for id in last {
            session.decode_with(*id, &recorder)?;
        }
        let mut calls = recorder.calls.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut ids = ids;
        for at in 0..calls.len() {
            let (own, later) = ids.split_at_checked(calls[at].tokens).context("more tokens ran than there were")?;
            ids = later;
            for (_, value) in &self.graph.inputs {
                calls[at].values[value.0 as usize] = Some(Tensor::indices(own.to_vec()));
            }
            self.check_call(&mut calls[..=at], name, found)?;
        }
        Ok(())
    }

    /// Checks the last of the calls; what came before is there for ops that look back.
    fn check_call(&self, calls: &mut [CallValues], name: &str, found: &mut Differences) -> anyhow::Result<()> {
        let tokens: usize = calls.iter().map(|call| call.tokens).sum();
        for id in (0..self.graph.nodes.len() as u32).map(NodeId) {
            let node = self.graph.node(id);
            let (now, before) = calls.split_last_mut().context("a call")?;
            let wanted = match looks_back(node) {
                true => {
                    let values = joined(node, before, now)?;
                    let results = self.interpreter.node(id, &values, tokens, now.output_rows)?;
                    results.into_iter().map(|tensor| last_rows(tensor, now.tokens)).collect()
                }
                false => self.interpreter.node(id, &now.values, now.tokens, now.output_rows)?,
            };
            for (result, wanted) in node.results.iter().zip(wanted) {
                match &mut now.values[result.0 as usize] {
                    Some(value) => {
                        let difference = found.entry(node.op.row().name).or_default();
                        difference.nodes.insert(id.0);
                        difference.add(&wanted, value, may_turn(self.graph, node), || {
                            format!("{} in prompt {name}", node.label)
                        });
                    }
                    // Views, which no step computes.
                    missing if node.op == Op::Slice => *missing = Some(wanted),
                    None => {
                        bail!("{} ({}): wanted a step that computes it, found none", node.label, node.op.row().name)
                    }
                }
            }
        }
        Ok(())
    }

    /// Rows of a value in a call.
    fn rows(&self, value: ValueId, call: &CallValues) -> Option<usize> {
        match self.graph.ty(value).rows() {
            Dim::Const(n) => Some(n as usize),
            Dim::Sym(SymbolId::TOKENS) => Some(call.tokens),
            Dim::Sym(SymbolId::OUTPUT_ROWS) => Some(call.output_rows),
            Dim::Sym(routed) => call.routed.get(&routed.0).copied(),
        }
    }

    /// A value out of the arena; `None` where it is not inside, which the plan excludes.
    fn read(&self, value: ValueId, call: &CallValues, arena: &[u8]) -> Option<Tensor> {
        let (ty, place) = (self.graph.ty(value), self.plan.places[value.0 as usize]?);
        let (rows, cols, elem_bytes) = (self.rows(value, call)?, ty.cols() as usize, ty.dtype.bytes() as usize);
        let mut bytes = Vec::with_capacity(rows * cols * elem_bytes);
        for row in 0..rows {
            let begin = place.offset_bytes as usize + row * place.row_stride as usize * elem_bytes;
            bytes.extend_from_slice(arena.get(begin..begin + cols * elem_bytes)?);
        }
        let words = || bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
        let data = match ty.dtype {
            DType::F32 => Data::F32(words().map(f32::from_le_bytes).collect()),
            DType::U32 => Data::U32(words().map(u32::from_le_bytes).collect()),
            DType::U8 => Data::U8(bytes),
            DType::F16 | DType::BF16 => return None,
        };
        let mut shape = vec![rows];
        shape.extend(ty.shape[1..].iter().filter_map(|dim| dim.as_const()).map(|n| n as usize));
        Some(Tensor { shape, data })
    }
}

/// Whether a code inside the node may turn, see [`TURNED_TOLERANCE`].
fn may_turn(graph: &Graph, node: &Node) -> bool {
    node.op == Op::ExpertFfn
        && node.operands.iter().filter_map(|o| o.weight()).any(|w| graph.weight(w).storage.is_integer())
}

/// Ops whose results depend on positions before the call.
fn looks_back(node: &Node) -> bool {
    node.op == Op::Rope || node.keeps_keys()
}

/// Values of several calls of one sequence, one after the other, for the operands of a node.
fn joined(node: &Node, before: &[CallValues], now: &CallValues) -> anyhow::Result<Vec<Option<Tensor>>> {
    let mut out = vec![None; now.values.len()];
    for value in node.operands.iter().filter_map(|o| o.value()) {
        let part = |call: &CallValues| call.values[value.0 as usize].clone().context("an operand of an earlier call");
        let mut all = before.first().map_or_else(|| part(now), part)?;
        for call in before.iter().skip(1).chain((!before.is_empty()).then_some(now)) {
            append(&mut all, part(call)?)?;
        }
        out[value.0 as usize] = Some(all);
    }
    Ok(out)
}

fn append(all: &mut Tensor, more: Tensor) -> anyhow::Result<()> {
    all.shape[0] += more.shape[0];
    match (&mut all.data, more.data) {
        (Data::F32(all), Data::F32(more)) => all.extend(more),
        (Data::U32(all), Data::U32(more)) => all.extend(more),
        (Data::U8(all), Data::U8(more)) => all.extend(more),
        _ => bail!("a value changes its type between calls"),
    }
    Ok(())
}

fn last_rows(mut tensor: Tensor, rows: usize) -> Tensor {
    let skipped = (tensor.rows() - rows) * tensor.cols();
    match &mut tensor.data {
        Data::F32(data) => drop(data.drain(..skipped)),
        Data::U32(data) => drop(data.drain(..skipped)),
        Data::U8(data) => drop(data.drain(..skipped)),
    }
    tensor.shape[0] = rows;
    tensor
}

/// Values of one call, by the ids of the graph.
struct CallValues {
    tokens: usize,
    output_rows: usize,
    values: Vec<Option<Tensor>>,
    /// Routed rows of each symbol, known after its `route.group`.
    routed: BTreeMap<u32, usize>,
}

/// Copies results as steps complete them.
struct Recorder<'l> {
    lockstep: &'l Lockstep<'l>,
    calls: Mutex<Vec<CallValues>>,
}

impl Observer for Recorder<'_> {
    fn begin_call(&self, tokens: u64, output_rows: u64) {
        let values = vec![None; self.lockstep.graph.values.len()];
        let call =
            CallValues { tokens: tokens as usize, output_rows: output_rows as usize, values, routed: BTreeMap::new() };
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }

    fn begin_part(&self) {}

    fn end_step(&self, step: u64, arena: &[u8]) {
        let Some(Some(id)) = self.lockstep.completes.get(step as usize) else { return };
        let graph = self.lockstep.graph;
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(call) = calls.last_mut() else { return };
        let node = graph.node(*id);
        for result in &node.results {
            let value = self.lockstep.read(*result, call, arena);
            // The last offset of the groups is how many rows there are in all.
            if let (Op::RouteGroup, Some(Data::U32(offsets))) = (node.op, value.as_ref().map(|v| &v.data))
                && let (Some(rows), Dim::Sym(symbol)) = (offsets.last(), graph.ty(node.results[1]).rows())
            {
                call.routed.entry(symbol.0).or_insert(*rows as usize);
            }
            call.values[result.0 as usize] = value;
        }
    }

    fn end_module(&self, _: u64, _: u64) {}
}

impl OpDifference {
    fn add(&mut self, wanted: &Tensor, found: &Tensor, may_turn: bool, place: impl Fn() -> String) {
        self.elements += wanted.elems() as u64;
        match (&wanted.data, &found.data) {
            _ if wanted.shape != found.shape => self.add_wrong(wanted.elems(), &place),
            (Data::F32(wanted_rows), Data::F32(found_rows)) => {
                let cols = wanted.cols().max(1);
                for (wanted, found) in wanted_rows.chunks(cols).zip(found_rows.chunks(cols)) {
                    self.add_row(wanted, found, may_turn, &place);
                }
            }
            (Data::U32(wanted), Data::U32(found)) => self.add_equal(wanted, found, &place),
            (Data::U8(wanted), Data::U8(found)) => self.add_equal(wanted, found, &place),
            _ => self.add_wrong(wanted.elems(), &place),
        }
    }

    fn add_row(&mut self, wanted: &[f32], found: &[f32], may_turn: bool, place: &dyn Fn() -> String) {
        let size = wanted.iter().fold(f32::MIN_POSITIVE, |size, x| size.max(x.abs()));
        let relative = |(w, f): (&f32, &f32)| {
            let off = (w - f).abs() / size;
            // Not a number is beyond every tolerance.
            if off.is_nan() { f32::INFINITY } else { off }
        };
        let off: Vec<f32> = wanted.iter().zip(found).map(relative).collect();
        let worst = off.iter().fold(0f32, |worst, off| worst.max(*off));
        if worst > self.max_relative {
            self.max_relative = worst;
            self.worst = place();
        }
        let turned = may_turn && worst > TOLERANCE && worst <= TURNED_TOLERANCE;
        self.turned_rows += u64::from(turned);
        if !turned {
            self.wrong += off.iter().filter(|off| **off > TOLERANCE).count() as u64;
        }
    }

    fn add_equal<T: PartialEq>(&mut self, wanted: &[T], found: &[T], place: &dyn Fn() -> String) {
        let unequal = wanted.iter().zip(found).filter(|(w, f)| w != f).count();
        if unequal > 0 {
            self.add_wrong(unequal, place);
        }
    }

    fn add_wrong(&mut self, elements: usize, place: &dyn Fn() -> String) {
        self.wrong += elements as u64;
        self.max_relative = f32::INFINITY;
        self.worst = place();
    }
}
