//! Whole models: lowered, verified, simulated, and every output of every call held to the reference interpreter, bit for bit.
//!
//! A plain `cargo test` takes each model on one machine in one recipe; `LAPIDARY_TEST=full` takes all. Cases have names, so
//! `cargo test -p lapidary-target-npu --test models -- 05-top_k` runs some; `LAPIDARY_FIND_NODE=1` finds the node at fault.

mod support;

use lapidary_compiler::import::{GemConfig, ImportOptions};
use lapidary_compiler::interp::{Outputs, Tensor};
use lapidary_compiler::ir::{DType, Graph, Op};
use lapidary_compiler::ops::Policy;
use lapidary_compiler::plan::why_whole_sequence;
use lapidary_compiler::quant::Builtin;
use lapidary_npu_isa::Machine;
use lapidary_npu_isa::address::Memory;
use lapidary_npu_isa::machine::PRESETS;
use lapidary_simulator::Report;
use lapidary_target_npu::LowerError;
use lapidary_target_npu::model::{ModelOutput, ModelSummary, NpuModel, OutputRows, WeightImage};
use libtest_mimic::{Arguments, Failed, Trial};
use support::device::Device;
use support::held::{Step, Subject, splits, with_output};
use support::model::{Model, Numbers, Random, full, models_dir, odd_config, random_models};

const RECIPES: [Builtin; 5] = [Builtin::None, Builtin::Hybrid, Builtin::Int8, Builtin::Int4, Builtin::Fp16];
const POLICIES: [Policy; 5] = Policy::ALL;
const RANDOM_MACHINES: u64 = 20;

type Check = Result<(), Failed>;

fn main() {
    let arguments = Arguments::from_args();
    let mut cases = Cases::default();
    stored(&mut cases);
    odd(&mut cases);
    random_machines(&mut cases);
    laws(&mut cases);
    cases.add("harness/differences-are-found".into(), true, differences_are_found);
    libtest_mimic::run(&arguments, cases.0).exit();
}

#[derive(Default)]
struct Cases(Vec<Trial>);

impl Cases {
    /// A case that always runs, or only with `LAPIDARY_TEST=full`, which its name then says.
    fn add(&mut self, name: String, always: bool, check: impl FnOnce() -> Check + Send + 'static) {
        let runs = always || full();
        let skipped = if runs { "" } else { " (skipped: LAPIDARY_TEST=full)" };
        self.0.push(Trial::test(format!("{name}{skipped}"), check).with_ignored_flag(!runs));
    }
}

fn preset(name: &str) -> Machine {
    Machine::preset(name).unwrap_or_else(|e| panic!("{e}"))
}

/// Holds a model to the reference on a machine: with all of the sequence in a call where that is allowed, and with chunks.
fn holds(model: &Model, recipe: Builtin, machine: &Machine, tokens: usize, seed: u64) -> Check {
    let graph = model.fused(recipe, tokens as u64);
    let ids = Random::new(seed).ids(tokens, graph.info.vocab_size);
    let subject = Subject { graph: &graph, source: &*model.source, ids: &ids };
    subject.holds(machine, tokens)?;
    if why_whole_sequence(&graph).is_none() {
        subject.holds(machine, 5)?;
    }
    Ok(())
}

/// The models of tests/models.
fn stored(cases: &mut Cases) {
    let folders = random_models();
    assert!(folders.len() >= 31, "found {} models", folders.len());
    for (i, folder) in folders.into_iter().enumerate() {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for (r, recipe) in RECIPES.into_iter().enumerate() {
            for (m, (machine, _)) in PRESETS.iter().enumerate() {
                let folder = folder.clone();
                let check =
                    move || holds(&Model::of_folder(&folder), recipe, &preset(machine), [19, 13, 27][m], i as u64);
                let always = r == i % RECIPES.len() && m == i % PRESETS.len();
                cases.add(format!("random/{name}/{}/{machine}", recipe.name()), always, check);
            }
        }
    }
    for (recipe, machine) in [
        (Builtin::Hybrid, "edge-32"),
        (Builtin::None, "edge-32"),
        (Builtin::Int8, "edge-16"),
        (Builtin::Int4, "mobile-64"),
        (Builtin::Fp16, "mobile-64"),
    ] {
        let check = move || holds(&Model::of_folder(&models_dir().join("gem-mini")), recipe, &preset(machine), 21, 3);
        cases.add(format!("gem-mini/{}/{machine}", recipe.name()), recipe == Builtin::Hybrid, check);
    }
}

/// Made-up models whose sizes are multiples of nothing: policies, kinds of attention, with and without memory and router.
fn odd(cases: &mut Cases) {
    let mut index = 0;
    for policy in POLICIES {
        for (clustered, memory, router) in (0..8).map(|bits| (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0)) {
            let attention = if clustered { "clustered" } else { "full" };
            let memory_word = if memory { "memory" } else { "no-memory" };
            let router_word = if router { "router" } else { "no-router" };
            for (m, (machine, _)) in PRESETS.iter().enumerate() {
                let recipe = RECIPES[(index + m) % RECIPES.len()];
                let name = format!(
                    "odd/{}/{attention}/{memory_word}/{router_word}/{}/{machine}",
                    policy.name(),
                    recipe.name()
                );
                let seed = index as u64;
                let check = move || {
                    let config = odd_config(policy, clustered, memory, router);
                    let model = Model::made_up(&config, Numbers::random(&config, seed));
                    holds(&model, recipe, &preset(machine), 17, seed)
                };
                cases.add(name, m == index % PRESETS.len() && index % 2 == 0, check);
            }
            index += 1;
        }
    }
}

/// A valid machine that depends on the seed alone: arrays that are no powers of two, memories from tiny to ample.
fn random_machine(seed: u64) -> Machine {
    let mut random = Random::new(seed);
    let arrays = [(5, 3), (64, 16), (1, 1), (3, 40), (16, 16), (32, 8), (7, 7), (24, 17), (128, 4), (9, 64)];
    let (rows, cols) = arrays[seed as usize % arrays.len()];
    let banks = random.pick(&[1, 2, 4, 8, 16]);
    let mut numbers = vec![
        ("scratchpad.banks", 1),
        ("matrix.rows", rows),
        ("matrix.cols", cols),
        ("vector.lanes", random.pick(&[1, 3, 16, 32, 100])),
        ("vector.startup_cycles", random.below(9)),
        ("vector.exp_cycles", 1 + random.below(9)),
        ("vector.tree_cycles", random.below(7)),
        ("route.lanes", random.pick(&[1, 5, 16, 64])),
        ("sequencer.load_cycles", 1 + random.below(9)),
        ("queue.depth", random.pick(&[1, 2, 3, 16, 64])),
        ("scratchpad.bytes", random.pick(&[4, 8, 16, 32, 64, 256, 1024]) << 10),
        ("scratchpad.ports", 1 + random.below(3)),
        ("weights.bytes", (rows * cols * (1 << random.below(7))).next_multiple_of(32).max(256)),
        ("accumulators.bytes", 4 * cols * (16 + random.below(200))),
        ("dma.channels", 1 + random.below(4)),
        ("dma.burst_bytes", random.pick(&[16, 64, 256])),
        ("dma.outstanding", random.pick(&[1, 4, 32])),
    ];
    numbers.push(("scratchpad.banks", banks));
    let texts: Vec<(&str, String)> = numbers.into_iter().map(|(key, n)| (key, n.to_string())).collect();
    let mut machine = preset("edge-16");
    let dram = ("dram.preset", random.pick(&["ideal", "lpddr4", "ddr4"]));
    let overlap = ("matrix.weight_overlap", random.pick(&["true", "false"]));
    let pairs = texts.iter().map(|(key, n)| (*key, n.as_str()));
    machine.set_all([dram, overlap].into_iter().chain(pairs)).unwrap_or_else(|e| panic!("machine {seed}: {e}"));
    machine
}

/// The machine with as much more of a memory as an error asks for.
fn enlarge(machine: &mut Machine, memory: Memory, units: u64) -> Check {
    let (key, bytes) = match memory {
        Memory::Dram => ("dram.bytes", machine.dram.bytes + units),
        Memory::Scratchpad => {
            let granule = 32 * machine.scratchpad.banks;
            ("scratchpad.bytes", (machine.scratchpad.bytes + units).next_multiple_of(granule))
        }
        Memory::Weights => ("weights.bytes", machine.weights.bytes + units),
        Memory::Accumulators => ("accumulators.bytes", machine.accumulators.bytes + 4 * machine.matrix.cols * units),
    };
    Ok(machine.set(key, &bytes.to_string()).map_err(|e| e.to_string())?)
}

/// Machines of all sizes: a memory that is too small is what an error says, by how much; with that much more there is a
/// program, after a few such errors, and it computes the same bits.
fn random_machines(cases: &mut Cases) {
    const MOST_ERRORS: usize = 40;
    for seed in 0..RANDOM_MACHINES {
        let check = move || {
            let mut machine = random_machine(seed);
            let policy = POLICIES[seed as usize % POLICIES.len()];
            let config = odd_config(policy, seed % 2 == 0, seed % 3 == 0, seed % 4 != 0);
            let model = Model::made_up(&config, Numbers::random(&config, seed));
            let (recipe, tokens) = (RECIPES[seed as usize % RECIPES.len()], 11);
            let graph = model.fused(recipe, tokens as u64);
            let ids = Random::new(seed).ids(tokens, config.vocab_size);
            let subject = Subject { graph: &graph, source: &*model.source, ids: &ids };
            for _ in 0..MOST_ERRORS {
                match subject.lower(&machine, tokens, tokens) {
                    Ok(_) => return holds(&model, recipe, &machine, tokens, seed),
                    Err(LowerError::TooSmall { what, memory, wanted, found }) => {
                        if wanted <= found {
                            return Err(format!("{what}: wanted more than there is, found {wanted} ≤ {found}").into());
                        }
                        enlarge(&mut machine, memory, wanted - found)?;
                    }
                    Err(error) => return Err(error.to_string().into()),
                }
            }
            Err(format!("still too small after {MOST_ERRORS} times what errors asked for: {machine:?}").into())
        };
        cases.add(format!("machines/{seed}"), seed % 4 == 0, check);
    }
    cases.add("machines/too-small".into(), true, || {
        // Least memories that a machine may have: nobody's model fits.
        let mut machine = preset("edge-16");
        let tiny = [("scratchpad.banks", "1"), ("scratchpad.bytes", "1024")];
        machine.set_all(tiny).map_err(|e| e.to_string())?;
        let model = Model::of_folder(&random_models()[3]);
        let graph = model.fused(Builtin::Int8, 64);
        let subject = Subject { graph: &graph, source: &*model.source, ids: &[0; 64] };
        match subject.lower(&machine, 64, 64) {
            Err(LowerError::TooSmall { memory: Memory::Scratchpad, wanted, found, .. }) if wanted > found => Ok(()),
            Err(other) => Err(format!("wanted TooSmall of the scratchpad, found {other}").into()),
            Ok(_) => Err("wanted TooSmall of the scratchpad, found a program".into()),
        }
    });
}

const LAW_TOKENS: usize = 17;

/// A made-up model with a sequence.
struct Made {
    graph: Graph,
    model: Model,
    ids: Vec<u32>,
}

impl Made {
    fn new(config: &GemConfig, numbers: Numbers, recipe: Builtin) -> Made {
        let model = Model::made_up(config, numbers);
        let graph = model.fused(recipe, LAW_TOKENS as u64);
        Made { graph, model, ids: Random::new(7).ids(LAW_TOKENS, config.vocab_size) }
    }

    fn subject(&self) -> Subject<'_> {
        Subject { graph: &self.graph, source: &*self.model.source, ids: &self.ids }
    }

    /// One prefill on edge-16, compared bit for bit; what the machine reported.
    fn prefill(&self) -> Result<Report, Failed> {
        let subject = self.subject();
        let lowered = subject.lower(&preset("edge-16"), LAW_TOKENS, LAW_TOKENS).map_err(|e| e.to_string())?;
        let mut device = subject.device(&lowered)?;
        let step = Step { tokens: LAW_TOKENS, output_rows: LAW_TOKENS, decode: false };
        Ok(subject.compare(&mut device, &[step], &subject.wanted())?.remove(0))
    }
}

/// Numbers of modules for which something was done, and the bytes that they had read from DRAM.
fn modules_touched(report: &Report) -> (Vec<i64>, u128) {
    let of_modules = || report.parts.iter().filter(|p| p.name.ends_with(".modules") && p.module.is_some());
    let mut touched: Vec<i64> =
        of_modules().filter(|p| p.share.amounts.dram_read_bytes > 0).filter_map(|p| p.module).collect();
    touched.sort_unstable();
    touched.dedup();
    (touched, of_modules().map(|p| p.share.amounts.dram_read_bytes).sum())
}

/// How many tokens chose each module, of all layers.
fn visits(outputs: &Outputs) -> Vec<usize> {
    let masks = outputs.0.iter().filter(|(name, _)| name.starts_with("modules.")).map(|(_, mask)| mask);
    masks.fold(Vec::new(), |mut sum: Vec<usize>, mask| {
        sum.resize(mask.cols(), 0);
        mask.u8s()
            .chunks_exact(mask.cols())
            .for_each(|row| sum.iter_mut().zip(row).for_each(|(s, m)| *s += usize::from(*m)));
        sum
    })
}

fn need(ok: bool, what: impl FnOnce() -> String) -> Check {
    if ok { Ok(()) } else { Err(what().into()) }
}

/// What routing must not change, and what it must save.
fn laws(cases: &mut Cases) {
    for recipe in [Builtin::None, Builtin::Hybrid] {
        let name = |law: &str| format!("laws/{law}/{}", recipe.name());
        cases.add(name("no-token-chosen"), true, move || {
            let mut config = odd_config(Policy::Threshold, true, true, true);
            config.scar.tau = 1.0;
            let made = Made::new(&config, Numbers::random(&config, 1), recipe);
            need(visits(&made.subject().wanted()).iter().all(|n| *n == 0), || "a token chose a module".into())?;
            let (touched, bytes) = modules_touched(&made.prefill()?);
            need(touched.is_empty() && bytes == 0, || format!("nobody's modules {touched:?} read {bytes} bytes"))
        });
        cases.add(name("all-tokens-to-one-module"), true, move || {
            // Keys of zeros: all scores are equal, and of equal ones the first is taken.
            let mut config = odd_config(Policy::TopK, true, true, false);
            config.scar.k_max = 1;
            let mut numbers = Numbers::random(&config, 2);
            let keys = numbers.0.iter_mut().filter(|(name, _)| name.ends_with("scar.keys"));
            keys.for_each(|(_, (_, elems))| elems.fill(0.0));
            let made = Made::new(&config, numbers, recipe);
            let visits = visits(&made.subject().wanted());
            need(visits[0] == 2 * LAW_TOKENS && visits[1..].iter().all(|n| *n == 0), || format!("visits: {visits:?}"))?;
            let (touched, _) = modules_touched(&made.prefill()?);
            need(touched == [0], || format!("modules that read: wanted 0 alone, found {touched:?}"))
        });
        cases.add(name("all-modules"), true, move || {
            let mut config = odd_config(Policy::TopK, false, true, true);
            config.scar.k_max = config.scar.num_clusters;
            let made = Made::new(&config, Numbers::random(&config, 3), recipe);
            let visits = visits(&made.subject().wanted());
            need(visits.iter().all(|n| *n == 2 * LAW_TOKENS), || format!("visits: {visits:?}"))?;
            let (touched, _) = modules_touched(&made.prefill()?);
            need(touched == [0, 1, 2, 3, 4, 5, 6], || format!("modules that read: wanted all, found {touched:?}"))
        });
        cases.add(name("permuted-modules-one-each"), true, move || permuted(1, recipe));
        cases.add(name("permuted-modules-three-each"), true, move || permuted(3, recipe));
    }
    cases.add("laws/decode-moves-what-it-must/gem-mini".into(), true, decode_bytes);
}

/// The modules of a model in another order, with their keys and values. There is no router, whose domains know clusters by
/// their numbers. What holds:
///
/// * A softmax and a sum over modules have their terms in another order, so scores differ by rounding: 1e-5 of them.
/// * The same modules are chosen (numbers here have no near ties).
/// * With one module per token and normalized gates (a/a = 1) no sum over modules has two terms: masks and gates are the
///   permuted ones, and logits the same bits.
/// * With more, logits differ by the rounding of those sums: 1e-3 of the largest of a row; integers round activations, where a
///   turned code is a step: 5e-2.
/// * The same weights are fetched: bytes that instructions ask DRAM for are equal.
fn permuted(k: u64, recipe: Builtin) -> Check {
    let mut config = odd_config(Policy::TopK, true, true, false);
    config.scar.k_max = k;
    let order = [3, 0, 6, 2, 5, 1, 4];
    let numbers = Numbers::random(&config, 4);
    let permuted = numbers.permute_modules(&order);
    let made = [numbers, permuted].map(|numbers| Made::new(&config, numbers, recipe));
    let [plain, other] = made.each_ref().map(|made| made.subject().wanted());
    let column = |t: &Tensor, row: usize, c: usize| row * t.cols() + c;
    for ((name, a), (_, b)) in plain.0.iter().zip(&other.0) {
        let by_module = ["modules.", "gates.", "scores."].iter().any(|p| name.starts_with(p));
        let bound = match () {
            () if name.starts_with("modules.") => 0.0,
            () if name.starts_with("scores.") && (k == 1 || name == "scores.0") => 1e-5,
            () if k == 1 => 0.0,
            () if recipe == Builtin::None => 1e-3,
            () => 5e-2,
        };
        let number = |t: &Tensor, at: usize| match name.starts_with("modules.") {
            true => f32::from(t.u8s()[at]),
            false => t.f32s()[at],
        };
        for row in 0..a.rows() {
            let size = (0..a.cols()).fold(0f32, |m, c| m.max(number(a, column(a, row, c)).abs()));
            for c in 0..a.cols() {
                let from = order.get(c).filter(|_| by_module).copied().unwrap_or(c);
                let (wanted, found) = (number(a, column(a, row, from)), number(b, column(b, row, c)));
                let off = (wanted - found).abs();
                need(off <= bound * size, || format!("{name}, row {row}, column {c}: {wanted} became {found}"))?;
            }
        }
    }
    let bytes = [made[0].prefill()?, made[1].prefill()?].map(|report| report.total.dram_used_bytes);
    need(bytes[0] == bytes[1], || format!("bytes asked of DRAM: {bytes:?}"))
}

/// Bytes of weights that a call of one token has to read once: rows of tables, whole matrices, modules that were chosen.
fn compulsory_bytes(graph: &Graph, outputs: &Outputs) -> u64 {
    let mut layer = 0;
    let mut sum = 0;
    for node in &graph.nodes {
        let weights: Vec<_> = node.operands.iter().filter_map(|o| o.weight()).map(|w| graph.weight(w)).collect();
        sum += match node.op {
            Op::Embed => weights[0].storage.row_bytes(weights[0].cols()),
            Op::ExpertFfn => {
                let name = format!("modules.{layer}");
                let mask = outputs.get(&name).expect("an output of the graph").u8s();
                layer += 1;
                let chosen = |i: usize| mask[i % mask.len()] != 0;
                weights.iter().enumerate().filter(|(i, _)| chosen(*i)).map(|(_, w)| w.bytes()).sum()
            }
            _ => weights.iter().map(|w| w.bytes()).sum(),
        };
    }
    sum
}

/// A decoded token reads each weight that it needs once: DRAM is asked for these bytes, the tokens' keys and values, and at most
/// a tenth more (tiles that are padded, tables, outputs).
fn decode_bytes() -> Check {
    let model = lapidary_compiler::import::load_gem(&models_dir().join("gem-mini"), &ImportOptions::default())?;
    let model = Model { graph: model.graph, source: model.source };
    let graph = model.fused(Builtin::Hybrid, 32);
    let ids = Random::new(5).ids(9, graph.info.vocab_size);
    let subject = Subject { graph: &graph, source: &*model.source, ids: &ids };
    let lowered = subject.lower(&preset("edge-32"), 32, 16).map_err(|e| e.to_string())?;
    let mut device = subject.device(&lowered)?;
    device.call(&ids[..8], 1, false)?;
    let answer = device.call(&ids[8..], 1, true)?;
    let kv_bytes = lapidary_compiler::plan::cost::decode_work(&graph, 8).ok_or("gem-mini decodes")?.kv_bytes;
    let least = u128::from(compulsory_bytes(&graph, &answer.outputs));
    let most = least + least / 10 + u128::from(kv_bytes);
    let found = answer.report.total.dram_used_bytes;
    need((least..=most).contains(&found), || {
        format!("bytes of DRAM: wanted {least} (weights) to {most} (and keys and values: {kv_bytes}), found {found}")
    })
}

/// Looks up rows of a table of nine rows of four: what a lowering would make of `embed`.
const LOOK_UP: &str = "
    .space weights, 144, at=0
    .space call, 16
    .space ids, 64
    .space state, 64
    .space out.y, 256
    .equ there, t1
    .equ ids_there, t2
    .equ rows_there, t3
    li r1, call
    load sp[0], dram[r1], row_bytes=16 post(there)
    lds r2, sp[0], max=16 wait(there)
    li r3, ids
    load sp[32], dram[r3], row_bytes=4, rows=r2 post(ids_there)
    li r4, 9
    sync sequencer wait(ids_there)
    load.rows sp[128], dram[0], sp[32], bound=r4, row_bytes=16, rows=r2 post(rows_there)
    li r5, out.y
    store dram[r5], sp[128], row_bytes=16, rows=r2 wait(rows_there)
    halt
";

/// The device and the comparison on a program by hand: what is right passes, one wrong bit of a weight is found where it is,
/// and ids that no call has are never looked up.
fn differences_are_found() -> Check {
    let text = "lir 1\nphase imported\nweight @w: f32[9, 4] embedding = stored\ninput \"ids\" = %0: u32[T]\n\
                %1 = embed(%0, @w)\noutput \"y\" = %1\n";
    let graph = lapidary_compiler::ir::parse(text).map_err(|e| e.to_string())?;
    let mut numbers = Numbers::default();
    let table: Vec<f32> = (0..36).map(|i| i as f32 / 7.0).collect();
    numbers.0.insert("w".into(), (4, table.clone()));
    let program = lapidary_npu_isa::asm::assemble(LOOK_UP).map_err(|e| e.to_string())?;
    let lowered = NpuModel {
        machine: preset("edge-16"),
        max_tokens: 16,
        chunk_tokens: 16,
        prefill: program.clone(),
        decode: Some(program),
        outputs: vec![ModelOutput {
            name: "y".into(),
            segment: "out.y".into(),
            element: DType::F32,
            rows: OutputRows::Tokens,
            cols: 4,
        }],
        weight_bytes: 144,
        summary: ModelSummary::default(),
        image: WeightImage::default(),
    };
    let subject = Subject { graph: &graph, source: &numbers, ids: &[3, 8, 0, 5, 5, 1, 7] };
    let wanted = subject.wanted();
    let mut image: Vec<u8> = table.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut device = Device::with_image(&lowered, image.clone())?;
    let splits = splits(&graph, 7, 16);
    need(splits.len() == 5, || format!("splits: {splits:?}"))?;
    for (_, steps) in &splits {
        device.begin_sequence()?;
        subject.compare(&mut device, steps, &wanted)?;
    }
    // The last bit of element 2 of row 5: token 3 and the one after it.
    image[4 * (5 * 4 + 2)] ^= 1;
    let mut device = Device::with_image(&lowered, image)?;
    let found = subject.compare(&mut device, &splits[0].1, &wanted).map(|_| ()).unwrap_err();
    let place = "call 0 (tokens 0 to 6): output y, row 3 of 7, column 2 of 4: wanted ";
    need(found.starts_with(place) && found.ends_with("; 2 of 28 elements differ"), || found.clone())?;
    // In the split 1, 4, 2 it is the second call's third row.
    device.begin_sequence()?;
    let found = subject.compare(&mut device, &splits[2].1, &wanted).map(|_| ()).unwrap_err();
    need(found.starts_with("call 1 (tokens 1 to 4): output y, row 2 of 4, column 2 of 4"), || found.clone())?;
    let seen = with_output(&graph, "seen", graph.outputs[0].value);
    need(seen.outputs.len() == 2 && seen.outputs[0].name == "seen", || "outputs of the graph".into())
}
