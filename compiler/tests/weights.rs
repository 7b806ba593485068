//! Derived weights, read whole and in pieces.

#[path = "support/source.rs"]
mod source;
mod support;

use half::f16;
use lapidary_compiler::import::{ImportOptions, load_gem};
use lapidary_compiler::interp::Interpreter;
use lapidary_compiler::ir::{NoSource, Storage, WeightDef, WeightReader};
use source::{Numbers, graph};

const TEXT: &str = r#"lir 1
phase imported
weight @a: f32[3, 4] attention = stored
weight @b: f16[2, 4] attention = splat(0.5)
weight @v: f32[4] norm = stored
weight @both: f32[5, 4] attention = concat(@a, @b)
weight @scaled: f32[5, 4] attention = scale_columns(@both, @v)
weight @half: f32[5, 4] attention = scale(@scaled, 0.5)
weight @all: f32[13, 4] attention = concat(@half, @a, @both)
weight @r: f16[7, 3] general = random(5, 0.1)
"#;

fn numbers() -> Numbers {
    let a: Vec<f32> = (0..12).map(|i| i as f32).collect();
    Numbers::default().with("a", 4, &a).with("v", 4, &[1.0, -1.0, 2.0, 0.0])
}

#[test]
fn derived_weights_are_computed_from_their_bases() {
    let (graph, numbers) = (graph(TEXT), numbers());
    let reader = WeightReader::new(&graph, &numbers);
    let all = reader.read_all(graph.weight_by_name("all").unwrap()).unwrap();
    let a: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let both = [&a[..], &[0.5; 8]].concat();
    let half: Vec<f32> = both.iter().enumerate().map(|(i, x)| x * [1.0, -1.0, 2.0, 0.0][i % 4] * 0.5).collect();
    assert_eq!(all, [&half[..], &a, &both].concat());
}

#[test]
fn any_row_range_reads_as_the_whole_does() {
    let (graph, numbers) = (graph(TEXT), numbers());
    let reader = WeightReader::new(&graph, &numbers);
    for (i, w) in graph.weights.iter().enumerate() {
        let id = lapidary_compiler::ir::WeightId(i as u32);
        let whole = reader.read_all(id).unwrap();
        for first in 0..=w.rows() {
            for rows in 0..=w.rows() - first {
                let mut part = vec![9.0; (rows * w.cols()) as usize];
                reader.read_rows(id, first, &mut part).unwrap();
                let begin = (first * w.cols()) as usize;
                assert_eq!(part, whole[begin..begin + part.len()], "@{} rows {first}..+{rows}", w.name);
            }
        }
    }
}

#[test]
fn rows_that_do_not_exist_are_errors() {
    let (graph, numbers) = (graph(TEXT), numbers());
    let reader = WeightReader::new(&graph, &numbers);
    let id = graph.weight_by_name("all").unwrap();
    for (first, len) in [(13, 4), (0, 56), (0, 3), (u64::MAX, 4)] {
        let error = reader.read_rows(id, first, &mut vec![0.0; len]).unwrap_err().to_string();
        assert!(error.starts_with("weight @all: rows: wanted whole rows of 4 within 0..13, found"), "{error}");
    }
    let missing = WeightReader::new(&graph, &NoSource).read_all(id).unwrap_err().to_string();
    assert!(missing.starts_with("weight @a: tensor a: wanted a stored tensor"), "{missing}");
}

#[test]
fn f16_checkpoints_give_their_exact_bits() {
    let folder = support::models_dir().join("random/06-top_p-full-null-router-classify-fp16");
    let model = load_gem(&folder, &ImportOptions::default()).unwrap();
    let mut graph = model.graph.clone();
    let q = graph.weight_by_name("model.layers.0.attn.q_proj.weight").unwrap();
    let k = graph.weight_by_name("model.layers.0.attn.k_proj.weight").unwrap();
    let mut merged = graph.weight(q).clone();
    merged.name = "qk".into();
    merged.shape[0] += graph.weight(k).rows();
    merged.def = WeightDef::Concat(vec![q, k]);
    let merged = graph.add_weight(merged);
    graph.verify().unwrap();
    let reader = WeightReader::new(&graph, &*model.source);
    for id in [q, merged] {
        let values = reader.read_all(id).unwrap();
        let mut bits = vec![0u16; values.len()];
        assert!(reader.read_f16_bits(id, 0, &mut bits).unwrap());
        assert!(values.iter().zip(&bits).all(|(v, b)| f16::from_bits(*b).to_f32().to_bits() == v.to_bits()));
    }
    let derived = WeightDef::Scale { base: q, factor: 0.5 };
    let mut scaled = graph.weight(q).clone();
    (scaled.name, scaled.def) = ("scaled".into(), derived);
    let scaled = graph.add_weight(scaled);
    let mut bits = vec![0u16; graph.weight(scaled).elems() as usize];
    assert!(!WeightReader::new(&graph, &*model.source).read_f16_bits(scaled, 0, &mut bits).unwrap());
    assert_eq!(graph.weight(q).storage, Storage::F16);
}

#[test]
fn wrong_inputs_of_the_interpreter_are_errors() {
    let text = "lir 1\nphase imported\nweight @w: f32[9, 2] embedding = splat(1.0)\ninput \"ids\" = %0: u32[T]\n\
         %1 = embed(%0, @w)\noutput \"y\" = %1\n";
    let graph = graph(text);
    let interpreter = Interpreter::new(&graph, &NoSource);
    let error = |ids: &[u32], rows| interpreter.run(ids, rows).unwrap_err().to_string();
    assert_eq!(error(&[3, 9], 1), "node 0 (embed, ): ids: wanted less than 9, found 9");
    assert_eq!(error(&[], 1), "input ids: rows: wanted at least 1, found 0");
    assert_eq!(error(&[1], 2), "input output rows: S: wanted 1 to T = 1, found 2");
}
