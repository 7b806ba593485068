//! Weights of a test, given as numbers.

use std::collections::BTreeMap;

use lapidary_compiler::interp::{Data, Interpreter, Outputs, Tensor};
use lapidary_compiler::ir::{DType, Graph, WeightSource, parse};

/// Name → columns and elements.
#[derive(Default)]
pub struct Numbers(pub BTreeMap<String, (usize, Vec<f32>)>);

impl Numbers {
    pub fn with(mut self, name: &str, cols: usize, data: &[f32]) -> Self {
        self.0.insert(name.into(), (cols, data.to_vec()));
        self
    }
}

impl WeightSource for Numbers {
    fn read_rows(&self, name: &str, first_row: u64, out: &mut [f32]) -> Result<(), String> {
        let (cols, data) = self.0.get(name).ok_or("no such tensor")?;
        let begin = first_row as usize * cols;
        out.copy_from_slice(data.get(begin..begin + out.len()).ok_or("rows out of range")?);
        Ok(())
    }

    fn stored_dtype(&self, name: &str) -> Option<DType> {
        self.0.get(name).map(|_| DType::F32)
    }
}

/// A verified graph.
pub fn graph(text: &str) -> Graph {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    graph.verify().unwrap_or_else(|e| panic!("{e}\n{text}"));
    graph
}

/// Runs `body` (nodes that define `%y`) on inputs; gives `%y`.
#[allow(dead_code, reason = "each test file is a crate of its own")]
pub fn eval(head: &str, inputs: &[(&str, &str, Tensor)], body: &str, numbers: &Numbers) -> Tensor {
    let inputs_text: String = inputs.iter().map(|(n, ty, _)| format!("input \"{n}\" = %{n}: {ty}\n")).collect();
    let text = format!("lir 1\nphase imported\n{head}\n{inputs_text}{body}\noutput \"y\" = %y\n");
    let graph = graph(&text);
    let tensors: Vec<(&str, Tensor)> = inputs.iter().map(|(n, _, t)| (*n, t.clone())).collect();
    let outputs = run(&graph, numbers, &tensors, 1);
    outputs.get("y").unwrap().clone()
}

pub fn run(graph: &Graph, numbers: &Numbers, inputs: &[(&str, Tensor)], output_rows: usize) -> Outputs {
    Interpreter::new(graph, numbers).run_observed(inputs, output_rows, &mut |_, _| {}).unwrap()
}

/// A mask.
#[allow(dead_code, reason = "each test file is a crate of its own")]
pub fn mask(cols: usize, data: &[u8]) -> Tensor {
    Tensor { shape: vec![data.len() / cols, cols], data: Data::U8(data.to_vec()) }
}

/// Reproducible numbers in ±1.
#[allow(dead_code, reason = "each test file is a crate of its own")]
pub fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}
