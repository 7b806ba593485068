//! Recipes: what each says of each weight, its TOML, its errors, its arithmetic; budgets; choices from measurements.

use lapidary_compiler::import::{ImportOptions, load};
use lapidary_compiler::ir::{Component, Graph, Int4Group, KvStorage, Op, Storage};
use lapidary_compiler::passes::{PassContext, run_pipeline};
use lapidary_compiler::plan::{ScratchRole, cost};
use lapidary_compiler::quant::calibrate::{
    self, Candidate, ChooseError, Granularity, Measurement, candidates, choose, measurements,
};
use lapidary_compiler::quant::{BudgetError, Builtin, Recipe, fit_budget, parse_bytes, quantized_row_bytes};

const INT4: Storage = Storage::Int4(Int4Group::G32);

fn preset(name: &str) -> Graph {
    load(&format!("preset:{name}"), &ImportOptions::default()).expect("a preset").graph
}

fn planned(graph: &Graph, recipe: impl Into<Recipe>) -> (Graph, lapidary_compiler::plan::Plan) {
    let mut graph = graph.clone();
    let ctx = PassContext::new(&graph, recipe, 32);
    let plan = run_pipeline(&mut graph, &ctx, None, &mut |_, _, _| {}).expect("a model").expect("a plan");
    graph.verify().expect("a graph");
    (graph, plan)
}

/// The storage of each weight by name, where a recipe gives it that.
fn storage_of(graph: &Graph, recipe: &Recipe, name: &str) -> Storage {
    let choices = recipe.choices(graph).expect("a recipe for the model");
    let choice = choices.iter().find(|c| graph.weight(c.weight).name == name);
    choice.unwrap_or_else(|| panic!("no weight {name}")).storage
}

fn toml(text: &str) -> Recipe {
    Recipe::from_toml(text, "test").unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn builtin_recipes_are_gem_mds_table() {
    let graph = preset("gem-tiny");
    let cases: [(Builtin, [Storage; 6], KvStorage); 6] = [
        (Builtin::None, [Storage::F32; 6], KvStorage::F32),
        (Builtin::Fp32, [Storage::F32; 6], KvStorage::F32),
        (
            Builtin::Fp16,
            [Storage::F32, Storage::F16, Storage::F16, Storage::F16, Storage::F16, Storage::F16],
            KvStorage::F32,
        ),
        (
            Builtin::Int8,
            [Storage::F32, Storage::Int8, Storage::Int8, Storage::Int8, Storage::Int8, Storage::Int8],
            KvStorage::F16,
        ),
        (Builtin::Int4, [Storage::F32, INT4, INT4, INT4, INT4, INT4], KvStorage::F16),
        (
            Builtin::Hybrid,
            [Storage::F32, Storage::Int8, Storage::Int8, Storage::Int8, Storage::Int8, INT4],
            KvStorage::F16,
        ),
    ];
    let names = [
        &["model.norm.weight", "model.layers.0.scar.keys", "model.token_router.head.weight"][..],
        &["model.token_router.embed.weight", "model.token_router.layers.0.mlp.up_proj.weight"],
        &["model.embed_tokens.weight"],
        &["model.layers.1.attn.q_proj.weight", "model.layers.0.scar.query.weight"],
        &["model.layers.0.general.down_proj.weight", "model.layers.1.scar.memory_proj.weight"],
        &["model.layers.0.modules.1.gate_proj.weight", "model.layers.1.modules.0.down_proj.weight"],
    ];
    for (builtin, storages, kv_cache) in cases {
        let recipe: Recipe = builtin.name().parse().expect("a built-in");
        for (names, storage) in names.iter().zip(storages) {
            for name in *names {
                assert_eq!(storage_of(&graph, &recipe, name), storage, "{builtin:?} {name}");
            }
        }
        assert_eq!(recipe.kv_cache(), kv_cache);
        let (graph, _) = planned(&graph, recipe);
        let kept: Vec<&str> = graph.nodes.iter().filter(|n| n.keeps_keys()).map(|n| n.attrs.word("kv_cache")).collect();
        assert!(!kept.is_empty() && kept.iter().all(|k| *k == kv_cache.name()), "{builtin:?}: {kept:?}");
    }
    let error = "int5".parse::<Recipe>().unwrap_err().to_string();
    assert_eq!(error, "recipe: found `int5`, wanted one of none, fp32, fp16, int8, int4, hybrid");
}

#[test]
fn the_last_rule_that_matches_and_fits_decides() {
    let graph = preset("gem-tiny");
    let recipe = toml(
        "[weights]\nmodules = \"int8\"\n\"layers.1.modules.*\" = \"int4:64\"\n\"*.down_proj\" = \"fp16\"\n\
         \"model.layers.0.modules.0.down_proj.weight\" = \"int4:128\"\n\"layers.0.attention\" = \"int4\"\n",
    );
    let cases = [
        ("model.layers.0.modules.0.gate_proj.weight", Storage::Int8),
        ("model.layers.1.modules.0.gate_proj.weight", Storage::Int4(Int4Group::G64)),
        ("model.layers.1.modules.0.down_proj.weight", Storage::F16),
        ("model.layers.0.modules.0.down_proj.weight", Storage::Int4(Int4Group::G128)),
        ("model.token_router.layers.0.mlp.down_proj.weight", Storage::F16),
        ("model.layers.0.attn.k_proj.weight", INT4),
        ("model.layers.0.scar.query.weight", INT4),
        ("model.layers.1.attn.k_proj.weight", Storage::Int8),
    ];
    for (name, storage) in cases {
        assert_eq!(storage_of(&graph, &recipe, name), storage, "{name}");
    }
    // A pattern that matches more than can be stored so leaves the rest to the rules before it, and says it.
    let wide = toml("base = \"fp32\"\n[weights]\n\"layers.0.*\" = \"int8\"\n");
    assert_eq!(storage_of(&graph, &wide, "model.layers.0.scar.keys"), Storage::F32);
    assert_eq!(storage_of(&graph, &wide, "model.layers.0.attn.o_proj.weight"), Storage::Int8);
    assert_eq!(storage_of(&graph, &wide, "model.layers.1.attn.o_proj.weight"), Storage::F32);
    let choices = wide.choices(&graph).unwrap();
    let reasons: Vec<&str> = choices.iter().filter_map(|c| c.why_not.as_deref()).collect();
    assert!(reasons.contains(&"@model.layers.0.scar.keys is of routing, which is not stored in int8"), "{reasons:?}");
    // Every character matters where there is no star.
    let error = toml("[weights]\n\"layers.0.modules\" = \"int8\"\n").choices(&graph);
    assert!(error.is_ok(), "a component of a layer");
    assert!(toml("[weights]\n\"layers.0.module\" = \"int8\"\n").choices(&graph).is_err());
}

#[test]
fn errors_name_the_line_the_pattern_and_what_is_near() {
    let graph = preset("gem-tiny");
    let file = |text: &str| Recipe::from_toml(text, "r.toml").unwrap_err().to_string();
    assert_eq!(
        file("base = \"int5\""),
        "recipe r.toml: base: wanted one of none, fp32, fp16, int8, int4, hybrid, found int5"
    );
    assert_eq!(file("kv_cache = \"int4\""), "recipe r.toml: kv_cache: wanted one of fp32, fp16, int8, found int4");
    assert_eq!(
        file("[weights]\nmodules = \"bf16\""),
        "recipe r.toml: weights.\"modules\": wanted one of fp32, fp16, int8, int4 (groups of 32), int4:32, int4:64, \
         int4:128, found bf16"
    );
    assert!(file("[weights]\nmodules = 4").ends_with("found integer"));
    assert!(file("[weights]\nmodules = \"int8\"\nmodules = \"int4\"").contains("line 3"), "each pattern once");
    assert!(file("weight = 1").contains("unknown field `weight`"));
    assert!(file("name = \"\"").contains("name: wanted 1 to 100 characters"));
    assert!(file("base = ").contains("line 1"));
    let many: String = (0..1001).map(|i| format!("\"p{i}\" = \"int8\"\n")).collect();
    assert!(file(&format!("[weights]\n{many}")).contains("wanted at most 1000 patterns, found 1001"));

    let apply = |text: &str| toml(text).choices(&graph).unwrap_err().to_string();
    assert_eq!(
        apply("[weights]\n\"module\" = \"int8\""),
        "recipe test: pattern `module`: wanted a component's or a tensor's name, found no match\nhint: did you mean `modules`?"
    );
    let near = apply("[weights]\n\"layers.0.attn.qproj\" = \"int8\"");
    assert!(near.contains("did you mean `layers.0.attn.q_proj`"), "{near}");
    assert!(apply("[weights]\n\"zzzzzz*\" = \"int8\"").ends_with("found no match"));
    assert_eq!(
        apply("[weights]\nnorm = \"int8\""),
        "recipe test: `norm` = int8: wanted fp32, fp16 for norm, found int8"
    );
    assert!(apply("[weights]\n\"*.keys\" = \"int4\"").contains("for routing, found int4:32"));
    // The pass says the same.
    let mut graph = graph;
    let ctx = PassContext::new(&graph, toml("[weights]\n\"module\" = \"int8\""), 8);
    let error = run_pipeline(&mut graph, &ctx, None, &mut |_, _, _| {}).unwrap_err().to_string();
    assert!(error.starts_with("choose-formats: recipe test: pattern `module`"), "{error}");
}

#[test]
fn recipes_survive_their_toml() {
    let text = "name = \"a \\\"name\\\"\"\nbase = \"none\"\nkv_cache = \"int8\"\n\n[weights]\n\"b*\" = \"fp32\"\n\
                \"a\\\\\\\"*\" = \"int4:32\"\n\"layers.0.*\" = \"int4:128\"\n";
    let recipe = toml(text);
    let written = recipe.to_toml(&["first line".into(), "second\nthird".into()]);
    assert!(written.starts_with("# first line\n# second\n# third\nname = "), "{written}");
    assert_eq!(toml(&written), recipe);
    assert_eq!(recipe.rules.iter().map(|r| r.pattern.as_str()).collect::<Vec<_>>(), ["b*", "a\\\"*", "layers.0.*"]);
    // A pattern that stands twice is written once, where it decides.
    let twice = recipe.clone().with("b*", Storage::Int8);
    let back = toml(&twice.to_toml(&[]));
    assert_eq!(back.rules, twice.rules[1..]);
    for builtin in Builtin::ALL {
        assert_eq!(toml(&Recipe::from(builtin).to_toml(&[])), Recipe::from(builtin));
    }
    assert_eq!(toml("").base, Builtin::Hybrid);
    assert_eq!(toml("").name, "test");
}

#[test]
fn stored_size_is_the_recipes_arithmetic() {
    // Written anew: bytes of a matrix in each format.
    let bytes = |format: &str, rows: u64, cols: u64| -> u64 {
        match format {
            "f32" => rows * cols * 4,
            "f16" => rows * cols * 2,
            "int8" => rows * (cols + 4),
            int4 => {
                let group: u64 = int4.strip_prefix("int4:").unwrap().parse().unwrap();
                rows * (cols.div_ceil(2) + 2 * cols.div_ceil(group))
            }
        }
    };
    let texts = [
        "",
        "base = \"none\"",
        "base = \"int4\"\n[weights]\nattention = \"int4:128\"\n\"layers.1.general\" = \"fp16\"\n",
    ];
    for name in ["gem-tiny", "gem-small", "gem-paper", "gem-50ms"] {
        let imported = preset(name);
        for recipe in texts.map(toml).into_iter().chain(Builtin::ALL.map(Recipe::from)) {
            let (graph, _) = planned(&imported, recipe.clone());
            let stored = cost::weight_bytes(&graph);
            let sizes = recipe.sizes(&imported).unwrap();
            let choices = recipe.choices(&imported).unwrap();
            for size in &sizes {
                let of = choices.iter().filter(|c| imported.weight(c.weight).component == size.component);
                let wanted: u64 = of
                    .map(|c| (imported.weight(c.weight), c.storage.name()))
                    .map(|(w, format)| bytes(format, w.rows(), w.cols()))
                    .sum();
                assert_eq!(size.bytes, wanted, "{name} {} {:?}", recipe.name, size.component);
                // Only a norm's weight may have gone into the matrices after it.
                let found = stored.iter().find(|c| c.component == size.component).map_or(0, |c| c.bytes);
                match size.component {
                    Component::Norm => assert!(found <= wanted),
                    _ => assert_eq!(found, wanted, "{name} {} {:?}", recipe.name, size.component),
                }
            }
            assert_eq!(recipe.weight_bytes(&imported).unwrap(), sizes.iter().map(|s| s.bytes).sum::<u64>());
        }
    }
}

#[test]
fn quantized_products_have_room_for_their_rows() {
    let imported = preset("gem-tiny");
    let (graph, plan) = planned(&imported, Builtin::Hybrid);
    lapidary_compiler::plan::check(&plan, &graph).expect("a plan");
    let mut found = 0;
    for (i, node) in graph.nodes.iter().enumerate() {
        let id = lapidary_compiler::ir::NodeId(i as u32);
        let integers = node.operands.iter().filter_map(|o| o.weight()).any(|w| graph.weight(w).storage.is_integer());
        let rows = plan.scratch(id, ScratchRole::QuantizedRows);
        match node.op {
            Op::Linear | Op::LinearSwiglu | Op::ExpertFfn if integers => {
                let x = graph.ty(node.operands[0].value().unwrap());
                let wanted = graph.max_dim(x.rows(), plan.chunk_tokens) * quantized_row_bytes(x.cols());
                assert_eq!(rows.unwrap().size_bytes, wanted, "{}", node.label);
                found += 1;
            }
            _ => assert!(rows.is_none(), "{}", node.label),
        }
        if node.op == Op::ExpertFfn {
            let [hidden, codes] =
                [ScratchRole::Hidden, ScratchRole::QuantizedHidden].map(|r| plan.scratch(id, r).unwrap());
            let f = graph.weight(node.operands[5].weight().unwrap()).rows();
            assert_eq!(hidden.size_bytes / (4 * f), codes.size_bytes / quantized_row_bytes(f));
        }
    }
    assert!(found > 5);
    let (graph, plan) = planned(&imported, Builtin::Fp16);
    assert!(plan.scratch.iter().all(|s| !matches!(s.role, ScratchRole::QuantizedRows | ScratchRole::QuantizedHidden)));
    drop(graph);
}

#[test]
fn caches_take_what_their_storage_says() {
    let imported = preset("gem-tiny");
    let size = |kv: &str| {
        let recipe = toml(&format!("base = \"fp32\"\nkv_cache = \"{kv}\""));
        let (graph, plan) = planned(&imported, recipe);
        let keys = plan.scratch.iter().filter(|s| s.role == ScratchRole::Keys && graph.node(s.node).keeps_keys());
        let keys: Vec<u64> = keys.map(|s| s.size_bytes).collect();
        let node = graph.nodes.iter().find(|n| n.keeps_keys()).unwrap();
        let rows = node.attrs.int("kv_heads") * 32;
        let work = cost::decode_work(&graph, 9).unwrap();
        (keys[0] / rows, node.attrs.int("head_dim"), work.kv_bytes)
    };
    let (f32_row, head_dim, f32_work) = size("fp32");
    let (f16_row, _, f16_work) = size("fp16");
    let (int8_row, _, int8_work) = size("int8");
    assert_eq!([f32_row, f16_row, int8_row], [head_dim * 4, head_dim * 2, head_dim.next_multiple_of(4) + 4]);
    assert_eq!(f16_work * 2, f32_work);
    assert!(int8_work < f16_work);
    assert_eq!(KvStorage::Int8.row_bytes(6), Some(12));
}

#[test]
fn budgets_lower_components_in_their_order() {
    let graph = preset("gem-tiny");
    let hybrid = Recipe::from(Builtin::Hybrid);
    let full = hybrid.weight_bytes(&graph).unwrap();
    assert_eq!(fit_budget(&graph, &hybrid, full).unwrap(), hybrid, "what fits stays");
    let one_less = fit_budget(&graph, &hybrid, full - 1).unwrap();
    assert_eq!(one_less, hybrid.clone().with("general", INT4), "modules are int4 already");
    let smallest = match fit_budget(&graph, &hybrid, 1).unwrap_err() {
        BudgetError::Impossible { budget_bytes: 1, smallest_bytes } => smallest_bytes,
        other => panic!("{other}"),
    };
    let all =
        BUDGET_COMPONENTS.iter().fold(Recipe::from(Builtin::Hybrid), |r, c| r.with(*c, Storage::Int4(Int4Group::G128)));
    assert_eq!(smallest, all.weight_bytes(&graph).unwrap());
    let last = fit_budget(&graph, &hybrid, smallest).unwrap();
    assert_eq!(last.weight_bytes(&graph).unwrap(), smallest);
    assert!(fit_budget(&graph, &hybrid, smallest - 1).is_err());
    // Any start, any budget: it fits, and a larger budget never gives less.
    for start in Builtin::ALL {
        let mut before = 0;
        for percent in [20, 30, 45, 60, 80, 100, 150, 300] {
            let budget = full * percent / 100;
            match fit_budget(&graph, &start.into(), budget) {
                Ok(recipe) => {
                    let bytes = recipe.weight_bytes(&graph).unwrap();
                    assert!(bytes <= budget && bytes >= before, "{start:?} at {percent} %: {bytes}");
                    before = bytes;
                    assert_eq!(toml(&recipe.to_toml(&[])), recipe);
                }
                Err(BudgetError::Impossible { smallest_bytes, .. }) => assert!(smallest_bytes > budget),
                Err(other) => panic!("{other}"),
            }
        }
    }
}

/// Components of gem-tiny that may be stored in integers.
const BUDGET_COMPONENTS: [&str; 5] = ["modules", "general", "attention", "token_router", "embedding"];

#[test]
fn sizes_are_read_as_people_write_them() {
    for (text, bytes) in [
        ("900MB", 900_000_000),
        ("3 MB", 3_000_000),
        ("1.5GiB", 1_610_612_736),
        ("12KiB", 12_288),
        ("7kB", 7000),
        ("0.5MiB", 524_288),
        ("123", 123),
        ("123B", 123),
    ] {
        assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
    }
    for text in ["", "MB", "-1MB", "1e3MB", "infMB", "NaN", "0", "0.1B", "1.2.3MB", "99999999GB", "1mb", "²MB", "1 000"]
    {
        assert!(parse_bytes(text).is_err(), "{text}");
    }
}

#[test]
fn candidates_cover_the_model_once() {
    let graph = preset("gem-tiny");
    for granularity in [Granularity::Component, Granularity::Layer] {
        let list = candidates(&graph, granularity).unwrap();
        let reference: u64 = list.iter().filter(|c| c.is_reference()).map(|c| c.bytes).sum();
        assert_eq!(reference, Recipe::from(Builtin::Fp32).weight_bytes(&graph).unwrap(), "{granularity:?}");
        let fp32 = Recipe::from(Builtin::Fp32).weight_bytes(&graph).unwrap();
        for candidate in &list {
            // The recipe of a candidate differs from f32 by that candidate alone.
            let own = list.iter().find(|c| c.part() == candidate.part() && c.is_reference()).unwrap();
            let bytes = candidate.recipe().weight_bytes(&graph).unwrap();
            assert_eq!(bytes, fp32 - own.bytes + candidate.bytes, "{} {}", candidate.part(), candidate.format());
        }
        let parts = |name: &str| list.iter().filter(|c| c.part() == name).count();
        assert_eq!(parts("kv_cache"), 3);
        assert_eq!(parts("embedding"), 6);
        assert_eq!(parts("norm"), 1);
        match granularity {
            Granularity::Component => assert_eq!((parts("modules"), parts("layers.0.modules")), (6, 0)),
            Granularity::Layer => assert_eq!((parts("modules"), parts("layers.1.modules")), (0, 6)),
        }
        // The choice under a budget is a recipe for the model, of exactly the bytes that were promised.
        let damages: Vec<f64> = list.iter().map(|c| damage(c, own_bytes(&list, c))).collect();
        let table = measurements(&list, &damages);
        let budget = reference / 5;
        let chosen = choose(&table, budget).unwrap();
        let recipe = calibrate::recipe("calibrated", &list, &chosen);
        assert_eq!(recipe.weight_bytes(&graph).unwrap(), chosen.bytes);
        assert!(chosen.bytes <= budget);
        assert_eq!((table.len() + 3, recipe.kv_cache()), (list.len(), KvStorage::F16), "keys and values are no choice");
        let written = recipe.to_toml(&calibrate::table(&list, &damages, &chosen));
        assert_eq!(toml(&written), recipe);
    }
}

fn own_bytes(list: &[Candidate], candidate: &Candidate) -> u64 {
    list.iter().find(|c| c.part() == candidate.part() && c.is_reference()).unwrap().bytes
}

/// Something that grows as bytes are saved, faster and faster.
fn damage(candidate: &Candidate, reference: u64) -> f64 {
    match candidate.bytes {
        0 => 0.0,
        bytes => (reference as f64 / bytes as f64 - 1.0).powi(2) * (1.0 + candidate.part().len() as f64) * 1e-4,
    }
}

/// Reproducible numbers.
fn random(seed: &mut u64, below: u64) -> u64 {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (*seed >> 33) % below
}

#[test]
fn the_choice_is_the_best_of_all() {
    let mut seed = 7;
    for case in 0..200 {
        let components = 1 + random(&mut seed, 5) as usize;
        let mut table = Vec::new();
        for component in 0..components {
            for format in 0..1 + random(&mut seed, 4) {
                let (bytes, damage) = (random(&mut seed, 50), random(&mut seed, 20) as f64 / 4.0);
                table.push(Measurement { component, format: format.to_string(), bytes, damage });
            }
        }
        let budget = random(&mut seed, 50 * components as u64);
        // All combinations.
        let mut sums: Vec<(u64, f64)> = vec![(0, 0.0)];
        for component in 0..components {
            let of: Vec<&Measurement> = table.iter().filter(|m| m.component == component).collect();
            sums = sums.iter().flat_map(|s| of.iter().map(|m| (s.0 + m.bytes, s.1 + m.damage))).collect();
        }
        let smallest = sums.iter().map(|s| s.0).min().unwrap();
        let best = sums.iter().filter(|s| s.0 <= budget).map(|s| s.1).reduce(f64::min);
        match (choose(&table, budget), best) {
            (Ok(found), Some(best)) => {
                assert_eq!(found.damage, best, "case {case}");
                let (mut bytes, mut damage) = (0, 0.0);
                for (component, pick) in found.picks.iter().enumerate() {
                    assert_eq!(table[*pick].component, component);
                    (bytes, damage) = (bytes + table[*pick].bytes, damage + table[*pick].damage);
                }
                assert_eq!((bytes, damage), (found.bytes, found.damage));
                let fewest = sums.iter().filter(|s| s.1 == best).map(|s| s.0).min().unwrap();
                assert_eq!(found.bytes, fewest, "case {case}");
            }
            (Err(error), None) => {
                assert_eq!(error, ChooseError::Impossible { budget_bytes: budget, smallest_bytes: smallest });
            }
            (found, best) => panic!("case {case}: found {found:?}, best {best:?}"),
        }
    }
    let one = |component, damage| Measurement { component, format: String::new(), bytes: 1, damage };
    assert!(matches!(choose(&[one(1, 0.0)], 9), Err(ChooseError::Measurements(_))), "component 0 is missing");
    assert!(matches!(choose(&[one(0, f64::NAN)], 9), Err(ChooseError::Measurements(_))));
    assert_eq!(choose(&[], 0).unwrap().picks, [] as [usize; 0]);
}

#[test]
fn choices_among_very_many_stay_within_the_budget_and_near_the_best() {
    // 60 parts with sizes that hardly ever add up alike: more sums than are kept.
    let mut seed = 3;
    let mut table = Vec::new();
    for component in 0..60 {
        let full = 1_000_000 + random(&mut seed, 1 << 20);
        let weight = 1.0 + random(&mut seed, 1000) as f64;
        for (format, share, damage) in [("int8", 8, 0.01), ("int4:32", 4, 1.0), ("int4:128", 3, 1.7)] {
            let bytes = full * share / 8 + random(&mut seed, 1000);
            table.push(Measurement { component, format: format.into(), bytes, damage: damage * weight });
        }
    }
    let full: u64 = table.iter().filter(|m| m.format == "int8").map(|m| m.bytes).sum();
    let budget = full * 7 / 10;
    let chosen = choose(&table, budget).unwrap();
    assert!(chosen.bytes <= budget);
    // The bound of the relaxed problem: no choice has less damage than fractions of formats along the convex hull.
    let bound = relaxed(&table, 60, budget);
    assert!(chosen.damage >= bound - 1e-9 && chosen.damage <= bound * 1.002, "{} against {bound}", chosen.damage);
}

/// Least damage when formats may be mixed within a part: the largest of the Lagrange bounds.
fn relaxed(table: &[Measurement], components: usize, budget: u64) -> f64 {
    let bound = |price: f64| -> f64 {
        let part = |c: usize| {
            let of = table.iter().filter(|m| m.component == c);
            of.map(|m| m.damage + price * m.bytes as f64).fold(f64::INFINITY, f64::min)
        };
        (0..components).map(part).sum::<f64>() - price * budget as f64
    };
    (0..4000).map(|i| bound(1e-7 * 1.005f64.powi(i))).fold(0.0, f64::max)
}
