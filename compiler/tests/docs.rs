//! The documentation's examples are true.

use lapidary_compiler::interp::Interpreter;
use lapidary_compiler::ir::{NoSource, parse};
use lapidary_compiler::ops::OPS;

const LIR: &str = include_str!("../../docs/lir.md");
const OP: &str = include_str!("../../docs/adding-an-op.md");

#[test]
fn the_text_forms_example_is_a_model_in_canonical_form() {
    let example = LIR.split("```lir\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let graph = parse(example).unwrap();
    graph.verify().unwrap();
    assert_eq!(graph.to_string(), example);
    let outputs = Interpreter::new(&graph, &NoSource).run(&[1, 2, 3], 2).unwrap();
    assert_eq!(outputs.get("logits").unwrap().shape, [2, 256]);
}

#[test]
fn the_example_row_is_the_op_tables() {
    let row = OP.split("```text\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let table = include_str!("../src/ops/mod.rs");
    let squeeze = |s: &str| s.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(squeeze(table).contains(&squeeze(row)));
}

#[test]
fn every_family_file_named_in_the_docs_exists() {
    let ops = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    for file in ["linear.rs", "norm.rs", "rows.rs", "elementwise.rs", "attention.rs", "route.rs", "expert.rs"] {
        assert!(OP.contains(file) && ops.join(file).is_file(), "{file}");
    }
    assert!(OPS.iter().all(|row| !row.doc.trim().is_empty()));
}
