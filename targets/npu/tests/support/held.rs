//! A lowered model held to the reference interpreter, bit for bit, in several splits of a sequence into calls.
//!
//! A difference names output, row and column. `LAPIDARY_FIND_NODE=1` goes on to look for the first node of the graph whose
//! result differs: it makes one result after the other an output of the graph, lowers that and runs the same calls.
#![allow(dead_code, reason = "each suite uses its part")]

use lapidary_compiler::interp::{Data, Outputs, Tensor};
use lapidary_compiler::ir::{DType, Dim, Graph, Output, SymbolId, ValueId, WeightReader, WeightSource};
use lapidary_compiler::plan::why_whole_sequence;
use lapidary_npu_isa::Machine;
use lapidary_simulator::Report;
use lapidary_target_npu::LowerError;
use lapidary_target_npu::model::{ModelOptions, NpuModel, lower_model};
use lapidary_target_npu::reference;

use super::device::{Answer, Device};

/// One call of a device.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub tokens: usize,
    pub output_rows: usize,
    pub decode: bool,
}

/// A fused graph with its weights and a sequence.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub graph: &'a Graph,
    pub source: &'a dyn WeightSource,
    pub ids: &'a [u32],
}

/// Calls of these many tokens, with one row of output each.
fn calls(tokens: &[usize]) -> Vec<Step> {
    tokens.iter().map(|n| Step { tokens: *n, output_rows: 1, decode: false }).collect()
}

/// The ways in which a sequence is split into calls of at most `chunk` tokens, by name.
pub fn splits(graph: &Graph, tokens: usize, chunk: usize) -> Vec<(&'static str, Vec<Step>)> {
    let mut out = Vec::new();
    if tokens <= chunk {
        out.push(("one call", vec![Step { tokens, output_rows: tokens, decode: false }]));
        out.push(("one call, one row of output", calls(&[tokens])));
    }
    if why_whole_sequence(graph).is_some() {
        return out;
    }
    // 1, 4, 2, chunk, 1, 4, …: short after long and long after short.
    let mut pieces = Vec::new();
    while pieces.iter().sum::<usize>() < tokens {
        let rest = tokens - pieces.iter().sum::<usize>();
        pieces.push([1, 4, 2, chunk][pieces.len() % 4].min(chunk).min(rest));
    }
    let mut chunks = calls(&pieces);
    for step in &mut chunks {
        step.output_rows = step.tokens.div_ceil(2);
    }
    out.push(("several calls", chunks));
    if graph.info.why_no_decode.is_none() {
        let one = Step { tokens: 1, output_rows: 1, decode: true };
        let first = tokens.div_ceil(2).min(chunk);
        let mut steps = calls(&[first]);
        steps.resize(1 + tokens - first, one);
        out.push(("decode after prefill", steps));
        out.push(("decode from the start", vec![one; tokens.min(5)]));
    }
    out
}

/// Where a tensor first differs from what is wanted, and in how many elements.
fn difference(wanted: &Tensor, found: &Tensor) -> Option<String> {
    if (&wanted.shape, wanted.dtype()) != (&found.shape, found.dtype()) {
        let show = |t: &Tensor| format!("{}{:?}", t.dtype(), t.shape);
        return Some(format!("wanted {}, found {}", show(wanted), show(found)));
    }
    let patterns = |t: &Tensor| -> Vec<u32> {
        match &t.data {
            Data::F32(x) => x.iter().map(|x| x.to_bits()).collect(),
            Data::U32(x) => x.clone(),
            Data::U8(x) => x.iter().map(|x| u32::from(*x)).collect(),
        }
    };
    let (w, f) = (patterns(wanted), patterns(found));
    let at = w.iter().zip(&f).position(|(w, f)| w != f)?;
    let count = w.iter().zip(&f).filter(|(w, f)| w != f).count();
    let show = |bits: u32| match wanted.data {
        Data::F32(_) => format!("{:e} (0x{bits:08x})", f32::from_bits(bits)),
        Data::U32(_) | Data::U8(_) => bits.to_string(),
    };
    let (row, col) = (at / wanted.cols(), at % wanted.cols());
    let (rows, cols) = (wanted.rows(), wanted.cols());
    let place = format!("row {row} of {rows}, column {col} of {cols}");
    Some(format!("{place}: wanted {}, found {}; {count} of {} elements differ", show(w[at]), show(f[at]), w.len()))
}

/// Rows `rows` of a matrix.
fn rows_of(t: &Tensor, rows: std::ops::Range<usize>) -> Tensor {
    let cols = t.cols();
    let elems = rows.start * cols..rows.end * cols;
    let data = match &t.data {
        Data::F32(x) => Data::F32(x[elems].to_vec()),
        Data::U32(x) => Data::U32(x[elems].to_vec()),
        Data::U8(x) => Data::U8(x[elems].to_vec()),
    };
    Tensor { shape: vec![rows.len(), cols], data }
}

impl Subject<'_> {
    /// What the reference says, all rows through the head.
    pub fn wanted(&self) -> Outputs {
        let interpreter = reference::interpreter(self.graph, self.source);
        interpreter.run(self.ids, self.ids.len()).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Lowered for a machine.
    pub fn lower(&self, machine: &Machine, max_tokens: usize, chunk: usize) -> Result<NpuModel, LowerError> {
        let options = ModelOptions { max_tokens: max_tokens as u64, chunk_tokens: chunk as u64 };
        lower_model(self.graph, machine, &options)
    }

    /// A machine with the model.
    pub fn device<'m>(&self, model: &'m NpuModel) -> Result<Device<'m>, String> {
        Device::new(model, &WeightReader::new(self.graph, self.source))
    }

    /// Makes calls and compares every output of each with the rows of the whole sequence that it stands for.
    pub fn compare(&self, device: &mut Device<'_>, steps: &[Step], wanted: &Outputs) -> Result<Vec<Report>, String> {
        let mut reports = Vec::new();
        let mut begin = 0;
        for (i, step) in steps.iter().enumerate() {
            let end = begin + step.tokens;
            let at = |e| format!("call {i} (tokens {begin} to {}): {e}", end - 1);
            let answer = device.call(&self.ids[begin..end], step.output_rows, step.decode).map_err(at)?;
            self.compare_call(&answer, begin, step, wanted).map_err(at)?;
            reports.push(answer.report);
            begin = end;
        }
        Ok(reports)
    }

    fn compare_call(&self, answer: &Answer, begin: usize, step: &Step, wanted: &Outputs) -> Result<(), String> {
        let names = |o: &Outputs| o.0.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>().join(", ");
        if names(wanted) != names(&answer.outputs) {
            return Err(format!("outputs: wanted {}, found {}", names(wanted), names(&answer.outputs)));
        }
        let end = begin + step.tokens;
        for (output, ((name, wanted), (_, found))) in
            self.graph.outputs.iter().zip(wanted.0.iter().zip(&answer.outputs.0))
        {
            let rows = match self.graph.ty(output.value).rows() {
                Dim::Sym(SymbolId::TOKENS) => begin..end,
                Dim::Sym(SymbolId::OUTPUT_ROWS) => end - step.output_rows..end,
                Dim::Sym(_) | Dim::Const(_) => 0..wanted.rows(),
            };
            if let Some(difference) = difference(&rows_of(wanted, rows), found) {
                return Err(format!("output {name}, {difference}"));
            }
        }
        Ok(())
    }

    /// Lowers, and compares all splits of the sequence, one after the other on the same machine; of a model that takes whole
    /// sequences, of a shorter one as well.
    pub fn holds(&self, machine: &Machine, chunk: usize) -> Result<(), String> {
        let model = self.lower(machine, self.ids.len(), chunk).map_err(|e| e.to_string())?;
        let can_decode = self.graph.info.why_no_decode.is_none();
        if model.decode.is_some() != can_decode {
            return Err(format!("decode: wanted a program: {can_decode}, found one: {}", model.decode.is_some()));
        }
        let mut device = self.device(&model)?;
        let mut prefixes = vec![self.ids.len()];
        if why_whole_sequence(self.graph).is_some() {
            prefixes.push(self.ids.len().div_ceil(2));
        }
        for tokens in prefixes {
            let part = Subject { ids: &self.ids[..tokens], ..*self };
            let wanted = part.wanted();
            for (split, steps) in splits(self.graph, tokens, chunk) {
                device.begin_sequence()?;
                part.compare(&mut device, &steps, &wanted).map_err(|e| {
                    let more = if std::env::var_os("LAPIDARY_FIND_NODE").is_some() {
                        part.first_difference(machine, self.ids.len(), chunk, &steps)
                    } else {
                        "LAPIDARY_FIND_NODE=1 looks for the node".into()
                    };
                    format!("{tokens} tokens in {split}: {e}\n{more}")
                })?;
            }
        }
        Ok(())
    }

    /// The first node whose result differs in these calls, as far as results can be outputs (f32 and u8, rows T, S or one).
    fn first_difference(&self, machine: &Machine, max_tokens: usize, chunk: usize, steps: &[Step]) -> String {
        let mut seen = 0;
        for (i, node) in self.graph.nodes.iter().enumerate() {
            for value in node.results.iter().filter(|v| can_be_output(self.graph, **v)) {
                let graph = with_output(self.graph, SEEN, *value);
                let seeing = Subject { graph: &graph, ..*self };
                let compared = seeing.lower(machine, max_tokens, chunk).map_err(|e| e.to_string()).and_then(|model| {
                    let mut device = seeing.device(&model)?;
                    seeing.compare(&mut device, steps, &seeing.wanted())
                });
                seen += 1;
                match compared {
                    Err(e) if e.contains(&format!("output {SEEN},")) => {
                        return format!("first node that differs: {i} ({}, {}): {e}", node.op.row().name, node.label);
                    }
                    // It is equal, another output differs, or the graph with one more output has no program.
                    Ok(_) | Err(_) => (),
                }
            }
        }
        format!("none of {seen} results differs when it is an output")
    }
}

fn can_be_output(graph: &Graph, value: ValueId) -> bool {
    let ty = graph.ty(value);
    let rows = match ty.shape.first() {
        Some(Dim::Sym(s)) => *s == SymbolId::TOKENS || *s == SymbolId::OUTPUT_ROWS,
        Some(Dim::Const(n)) => *n == 1,
        None => false,
    };
    rows && ty.shape.len() == 2 && matches!(ty.dtype, DType::F32 | DType::U8)
}

/// Name of the output that [`with_output`] adds.
const SEEN: &str = "seen";

/// The graph with a value as one more output, before its own.
pub fn with_output(graph: &Graph, name: &str, value: ValueId) -> Graph {
    let mut graph = graph.clone();
    graph.outputs.insert(0, Output { name: name.into(), value });
    graph
}
