//! The documentation's examples are true.

use lapidary_compiler::import::{ImportOptions, load_gem};
use lapidary_compiler::interp::Interpreter;
use lapidary_compiler::ir::{Component, NoSource, parse};
use lapidary_compiler::ops::OPS;
use lapidary_compiler::quant::{Builtin, Recipe, recipe_kv_name, recipe_name};

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

#[test]
fn the_example_recipe_is_one_for_the_bundled_model() {
    let text = include_str!("../../docs/quantization.md");
    let example = text.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let recipe = Recipe::from_toml(example, "example").unwrap();
    assert_eq!((recipe.name.as_str(), recipe.rules.len()), ("mine", 3));
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models/gem-mini");
    let model = load_gem(&folder, &ImportOptions::default()).unwrap();
    let choices = recipe.choices(&model.graph).unwrap();
    let of = |name: &str| choices.iter().find(|c| model.graph.weight(c.weight).name == name).unwrap().storage.name();
    assert_eq!(of("model.layers.3.modules.0.down_proj.weight"), "int8");
    assert_eq!(of("model.layers.2.modules.0.down_proj.weight"), "int4:32");
    assert_eq!(of("model.layers.2.general.down_proj.weight"), "f16");
    assert_eq!(of("model.layers.0.attn.q_proj.weight"), "int4:64");
}

#[test]
fn every_built_in_recipe_has_its_row_in_the_docs() {
    let text = include_str!("../../docs/quantization.md");
    for builtin in Builtin::ALL {
        let rows = text.lines().filter(|l| l.starts_with(&format!("| `{}` |", builtin.name())));
        let rows: Vec<Vec<&str>> = rows.map(|l| l.split('|').map(str::trim).collect()).collect();
        let cells = rows.iter().find(|cells| cells.len() == 7).unwrap_or_else(|| panic!("{builtin:?}"));
        assert_eq!(cells[5], recipe_kv_name(builtin.kv_cache()), "{builtin:?}");
        for (cell, component) in [(cells[2], Component::Attention), (cells[3], Component::Modules)] {
            if let Some(storage) = builtin.storage(component) {
                assert_eq!(cell, recipe_name(storage), "{builtin:?}");
            }
        }
    }
}
