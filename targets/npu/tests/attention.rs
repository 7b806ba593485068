//! Attention on the simulator, bit for bit against a plain reference: single nodes whose operands are columns of random rows.

use std::fmt::Write as _;

use half::f16;
use lapidary_compiler::ir::{Graph, NoSource, WeightReader, parse};
use lapidary_compiler::quant::quantize_row;
use lapidary_npu_isa::verify::verify;
use lapidary_npu_isa::{Machine, Program};
use lapidary_simulator::{Memories, Options, Report, Simulator};
use lapidary_target_npu::LowerError;
use lapidary_target_npu::model::{ModelOptions, NpuModel, lower_model};

/// Rows of the random table.
const VOCAB: u64 = 97;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Range { causal: bool, window: u64 },
    Clustered { window: u64, sinks: u64, cap: u64, clusters: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Case {
    kind: Kind,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    kv: &'static str,
}

const SCALE: f32 = 0.30625;

impl Case {
    fn widths(&self) -> [u64; 4] {
        let clusters = match self.kind {
            Kind::Range { .. } => 0,
            Kind::Clustered { clusters, .. } => clusters,
        };
        [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim, clusters]
    }

    fn text(&self) -> String {
        let widths = self.widths();
        let all: u64 = widths.iter().sum();
        let mut text = format!(
            "lir 1\nphase imported\nweight @t: f32[{VOCAB}, {all}] embedding = random(5, 1.5)\n\
             input \"ids\" = %ids: u32[T]\n%x = embed(%ids, @t) \"embed\"\n"
        );
        let mut begin = 0;
        for (name, width) in ["q", "k", "v", "s"].iter().zip(widths) {
            if width > 0 {
                let end = begin + width;
                writeln!(text, "%{name} = slice(%x) {{begin = {begin}, end = {end}}} \"{name}\"").unwrap();
                begin = end;
            }
        }
        let Case { heads, kv_heads, head_dim, kv, .. } = self;
        let common = format!("heads = {heads}, kv_heads = {kv_heads}, head_dim = {head_dim}, scale = {SCALE}");
        match self.kind {
            Kind::Range { causal, window } => writeln!(
                text,
                "%y = attn.range(%q, %k, %v) {{{common}, causal = {causal}, window = {window}, kv_cache = {kv}}} \"attn\""
            ),
            Kind::Clustered { window, sinks, cap, clusters } => writeln!(
                text,
                "%c = route.cluster(%s) \"cluster\"\n%y = attn.clustered(%q, %k, %v, %c) {{{common}, window = {window}, \
                 sinks = {sinks}, cluster_cap = {cap}, num_clusters = {clusters}, kv_cache = {kv}}} \"attn\""
            ),
        }
        .unwrap();
        text + "output \"y\" = %y\n"
    }
}

// The reference.

fn exp(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    let bits = f32::from_bits;
    let x = x.clamp(-104.0, 89.0);
    let n = x.mul_add(bits(0x3fb8_aa3b), 12_582_912.0) - 12_582_912.0;
    let r = n.mul_add(-355.0 / 512.0, x);
    let r = n.mul_add(bits(0x395e_8083), r);
    let mut p = bits(0x3950_6967);
    for c in [0x3ab7_43ce, 0x3c08_8908, 0x3d2a_a9c1, 0x3e2a_aaaa, 0x3f00_0000] {
        p = p.mul_add(r, bits(c));
    }
    let p = (r * r).mul_add(p, r) + 1.0;
    let n = n as i32;
    let h = n.div_euclid(2);
    let power = |k: i32| bits(((127 + k) as u32) << 23);
    (p * power(h)) * power(n - h)
}

fn fold(mut p: [f32; 16]) -> f32 {
    for h in [8, 4, 2, 1] {
        for i in 0..h {
            p[i] += p[i + h];
        }
    }
    p[0]
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut p = [0.0f32; 16];
    for (j, (a, b)) in a.iter().zip(b).enumerate() {
        p[j % 16] = a.mul_add(*b, p[j % 16]);
    }
    fold(p)
}

fn softmax(z: &mut [f32]) {
    z.iter_mut().for_each(|z| *z *= SCALE);
    let m = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    z.iter_mut().for_each(|z| *z = exp(*z - m));
    let mut p = [0.0f32; 16];
    z.iter().enumerate().for_each(|(j, e)| p[j % 16] += e);
    let sum = fold(p);
    z.iter_mut().for_each(|z| *z /= sum);
}

fn kept(case: &Case, row: &[f32]) -> Vec<f32> {
    row.chunks(case.head_dim as usize)
        .flat_map(|head| match case.kv {
            "f32" => head.to_vec(),
            "f16" => head.iter().map(|x| f16::from_f32(*x).to_f32()).collect(),
            _ => {
                let q = quantize_row(head);
                q.codes.iter().map(|c| f32::from(*c) * q.scale).collect()
            }
        })
        .collect()
}

/// Rows of y for a whole sequence.
fn reference(case: &Case, rows: &[&[f32]]) -> Vec<f32> {
    let [q_cols, k_cols, v_cols, clusters] = case.widths().map(|w| w as usize);
    let (hd, group) = (case.head_dim as usize, (case.heads / case.kv_heads) as usize);
    let keys: Vec<Vec<f32>> = rows.iter().map(|r| kept(case, &r[q_cols..][..k_cols])).collect();
    let values: Vec<Vec<f32>> = rows.iter().map(|r| kept(case, &r[q_cols + k_cols..][..v_cols])).collect();
    let cluster: Vec<usize> = rows
        .iter()
        .map(|r| {
            let s = &r[q_cols + k_cols + v_cols..][..clusters];
            (0..clusters).fold(0, |best, c| if s[c] > s[best] { c } else { best })
        })
        .collect();
    let mut y = Vec::new();
    for (t, row) in rows.iter().enumerate() {
        let seen: Vec<usize> = match case.kind {
            Kind::Range { causal: false, .. } => (0..rows.len()).collect(),
            Kind::Range { window: 0, .. } => (0..=t).collect(),
            Kind::Range { window, .. } => (0..=t).filter(|j| t - j < window as usize).collect(),
            Kind::Clustered { window, sinks, cap, .. } => (0..=t)
                .filter(|j| {
                    let later = (*j..=t).filter(|i| cluster[*i] == cluster[t]).count();
                    t - j < window as usize
                        || *j < sinks as usize
                        || (cluster[*j] == cluster[t] && later <= cap as usize)
                })
                .collect(),
        };
        for h in 0..case.heads as usize {
            let at = h / group * hd;
            let mut w: Vec<f32> = seen.iter().map(|j| dot(&row[h * hd..][..hd], &keys[*j][at..][..hd])).collect();
            softmax(&mut w);
            let mut sum = vec![0.0f32; hd];
            for (j, w) in seen.iter().zip(&w) {
                sum.iter_mut().zip(&values[*j][at..]).for_each(|(t, v)| *t = w.mul_add(*v, *t));
            }
            y.extend(sum);
        }
    }
    y
}

// The NPU.

struct Session<'m> {
    model: &'m NpuModel,
    memories: Option<Memories>,
}

fn segment<'p>(program: &'p Program, name: &str) -> &'p lapidary_npu_isa::program::Segment {
    program.segments.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no segment {name}"))
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

impl<'m> Session<'m> {
    fn new(model: &'m NpuModel, graph: &Graph) -> Session<'m> {
        let mut image = Vec::new();
        model.write_weights(&WeightReader::new(graph, &NoSource), &mut image, &|_| ()).unwrap();
        let mut memories = Memories::new(&model.machine, true, 1 << 32);
        let mut simulator =
            Simulator::with_memories(&model.prefill, &model.machine, Options::default(), memories).unwrap();
        simulator.write_dram(0, &image).unwrap();
        memories = std::mem::replace(simulator.memories_mut(), Memories::new(&model.machine, true, 0));
        Session { model, memories: Some(memories) }
    }

    fn call(&mut self, program: &Program, ids: &[u32], position: u64) -> (Vec<f32>, Report) {
        let memories = self.memories.take().unwrap();
        let machine = &self.model.machine;
        let mut simulator = Simulator::with_memories(program, machine, Options::default(), memories).unwrap();
        let call = words(&[ids.len() as u32, 1, position as u32, 0]);
        simulator.write_dram(segment(program, "call").address, &call).unwrap();
        simulator.write_dram(segment(program, "ids").address, &words(ids)).unwrap();
        // Nothing on chip has a meaning between calls.
        simulator.memories_mut().scratchpad.fill(0xa5);
        let run = simulator.run().unwrap_or_else(|e| panic!("{e}"));
        let cols = self.model.outputs[0].cols as usize;
        let bytes = run.read_dram(segment(program, "out.y").address, 4 * cols * ids.len());
        let y = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        self.memories = Some(run.memories);
        (y, run.report)
    }
}

fn lower(case: &Case, machine: &Machine, max_tokens: u64, chunk_tokens: u64) -> (Graph, NpuModel) {
    let graph = parse(&case.text()).unwrap_or_else(|e| panic!("{e}\n{}", case.text()));
    let model = lower_model(&graph, machine, &ModelOptions { max_tokens, chunk_tokens })
        .unwrap_or_else(|e| panic!("{case:?} on {}: {e}", machine.name()));
    for (name, program) in [("prefill", Some(&model.prefill)), ("decode", model.decode.as_ref())] {
        if let Some(program) = program {
            verify(program, machine).unwrap_or_else(|e| panic!("{case:?} on {}, {name}: {e}", machine.name()));
        }
    }
    (graph, model)
}

fn id(i: u64) -> u32 {
    (i * i * 31 % 101 + i * 7) as u32 % VOCAB as u32
}

/// A call of the program for prefill with so many tokens; 0: of that for decode.
const DECODE: u64 = 0;

/// Calls one after the other.
fn check(case: &Case, machine: &Machine, max_tokens: u64, chunk_tokens: u64, calls: &[u64]) -> Vec<Report> {
    let (graph, model) = lower(case, machine, max_tokens, chunk_tokens);
    let weight = WeightReader::new(&graph, &NoSource).read_all(graph.weight_by_name("t").unwrap()).unwrap();
    let cols = case.widths().iter().sum::<u64>() as usize;
    let total: u64 = calls.iter().map(|tokens| (*tokens).max(1)).sum();
    assert!(total <= max_tokens);
    let ids: Vec<u32> = (0..total).map(id).collect();
    let rows: Vec<&[f32]> = ids.iter().map(|i| &weight[*i as usize * cols..][..cols]).collect();
    let want = reference(case, &rows);
    let mut session = Session::new(&model, &graph);
    let (mut position, mut reports) = (0, Vec::new());
    for tokens in calls {
        let (tokens, program) = match *tokens {
            DECODE => (1, model.decode.as_ref().unwrap()),
            tokens => (tokens as usize, &model.prefill),
        };
        let (y, report) = session.call(program, &ids[position..][..tokens], position as u64);
        let y_cols = case.widths()[0] as usize;
        for (i, (found, want)) in y.iter().zip(&want[position * y_cols..]).enumerate() {
            let (t, c) = (position + i / y_cols, i % y_cols);
            assert_eq!(
                found.to_bits(),
                want.to_bits(),
                "{case:?} on {}, max {max_tokens}, chunk {chunk_tokens}, calls {calls:?}: token {t}, column {c}: wanted {want}, found {found}",
                machine.name()
            );
        }
        position += tokens;
        reports.push(report);
    }
    reports
}

fn preset(name: &str) -> Machine {
    Machine::preset(name).unwrap()
}

/// A preset with another scratchpad.
fn small(name: &str, scratchpad_bytes: u64) -> Machine {
    let mut machine = preset(name);
    machine.scratchpad.bytes = scratchpad_bytes;
    machine
}

const KV: [&str; 3] = ["f32", "f16", "int8"];
const PRESETS: [&str; 3] = ["edge-16", "edge-32", "mobile-64"];

/// Most tokens of a sequence and of a call, and calls: after the first call, in small steps, up to the last position.
const LONG: (u64, u64, &[u64]) = (64, 24, &[24, DECODE, DECODE, 17, DECODE, 1, 15, DECODE, 2, 1]);

fn range(causal: bool, window: u64) -> Kind {
    Kind::Range { causal, window }
}

fn clustered(window: u64, sinks: u64, cap: u64) -> Kind {
    Kind::Clustered { window, sinks, cap, clusters: 5 }
}

fn check_long(case: &Case, machine: &Machine) {
    let (max_tokens, chunk_tokens, calls) = LONG;
    check(case, machine, max_tokens, chunk_tokens, calls);
}

#[test]
fn windows_and_storages() {
    for kv in KV {
        for window in [0, 1, 7, 16, 17, 64, 1000] {
            let case = Case { kind: range(true, window), heads: 4, kv_heads: 2, head_dim: 20, kv };
            check_long(&case, &preset("edge-16"));
        }
    }
}

#[test]
fn clusters_and_storages() {
    for kv in KV {
        for (window, sinks, cap) in [(8, 2, 4), (1, 0, 0), (5, 0, 3), (16, 3, 0), (1, 1, 64), (1000, 0, 2), (3, 70, 1)]
        {
            let case = Case { kind: clustered(window, sinks, cap), heads: 4, kv_heads: 2, head_dim: 20, kv };
            check_long(&case, &preset("edge-16"));
        }
    }
}

#[test]
fn all_tokens_see_all() {
    for machine in [preset("edge-16"), small("edge-16", 16 << 10), small("edge-32", 8 << 10)] {
        for (heads, kv_heads, head_dim) in [(4, 2, 20), (3, 3, 8), (4, 1, 16)] {
            let case = Case { kind: range(false, 0), heads, kv_heads, head_dim, kv: "f32" };
            for tokens in [1, 2, 15, 16, 17, 40] {
                check(&case, &machine, 40, 40, &[tokens]);
            }
        }
    }
}

#[test]
fn heads_and_presets() {
    for name in PRESETS {
        for (heads, kv_heads, head_dim) in [(1, 1, 64), (3, 3, 6), (4, 1, 32), (6, 2, 32), (2, 2, 130)] {
            for kind in [range(true, 0), range(true, 9), clustered(9, 2, 6)] {
                for kv in KV {
                    check_long(&Case { kind, heads, kv_heads, head_dim, kv }, &preset(name));
                }
            }
        }
    }
}

#[test]
fn chunks_of_one_and_of_all() {
    for kind in [range(true, 0), range(true, 9), clustered(9, 2, 6)] {
        let case = Case { kind, heads: 4, kv_heads: 2, head_dim: 20, kv: "f16" };
        check(&case, &preset("edge-16"), 12, 1, &[1, DECODE, 1, 1, DECODE, DECODE, 1, 1, 1, 1, 1, DECODE]);
        check(&case, &preset("edge-16"), 33, 33, &[33]);
        check(&case, &preset("edge-16"), 33, 33, &[32, DECODE]);
        check(&case, &preset("edge-16"), 1, 1, &[DECODE]);
        check(&case, &preset("edge-16"), 1, 1, &[1]);
    }
}

#[test]
fn odd_machines() {
    let settings: [&[(&str, &str)]; 3] = [
        &[("queue.depth", "1"), ("dma.channels", "1"), ("scratchpad.banks", "1"), ("vector.lanes", "7")],
        &[("queue.depth", "256"), ("dma.channels", "5"), ("dram.preset", "ideal"), ("scratchpad.bytes", "32768")],
        &[("dma.burst_bytes", "32"), ("vector.lanes", "128"), ("route.lanes", "1"), ("scratchpad.bytes", "12288")],
    ];
    for set in settings {
        let mut machine = preset("edge-32");
        machine.set_all(set.iter().copied()).unwrap();
        for kv in KV {
            for kind in [range(true, 0), range(true, 9), clustered(9, 2, 6)] {
                check_long(&Case { kind, heads: 6, kv_heads: 3, head_dim: 12, kv }, &machine);
            }
        }
    }
}

/// Scratchpads down to those that are too small: operands are in DRAM, keys pass in blocks.
#[test]
fn small_scratchpads() {
    for kv in KV {
        for kind in [range(true, 0), range(true, 20), clustered(9, 2, 6), clustered(40, 2, 20)] {
            let case = Case { kind, heads: 4, kv_heads: 2, head_dim: 20, kv };
            let mut bytes = 64 << 10;
            let mut fitted = 0;
            loop {
                let machine = small("edge-16", bytes);
                let graph = parse(&case.text()).unwrap();
                match lower_model(&graph, &machine, &ModelOptions { max_tokens: LONG.0, chunk_tokens: LONG.1 }) {
                    Ok(_) => check_long(&case, &machine),
                    Err(LowerError::TooSmall { wanted, found, .. }) => {
                        assert!(wanted > found);
                        break;
                    }
                    Err(e) => panic!("{e}"),
                }
                fitted += 1;
                bytes = (bytes * 3 / 4).next_multiple_of(256);
            }
            println!("{kv} {kind:?}: {fitted} sizes, {bytes} is too small");
            assert!(fitted > 4);
        }
    }
}

#[test]
fn long_sequences() {
    for kv in KV {
        for kind in [range(true, 0), range(true, 100), clustered(64, 4, 64)] {
            let case = Case { kind, heads: 6, kv_heads: 2, head_dim: 32, kv };
            let calls = [128, 128, 128, 128, 128, DECODE, 128, 127, DECODE, 127, 127, DECODE];
            check(&case, &preset("edge-16"), 1152, 128, &calls);
        }
    }
}

/// What gem-mini's attention takes. `cargo test … -- --ignored --nocapture` shows it.
#[test]
#[ignore = "shows cycles"]
fn cycles() {
    for kv in KV {
        for kind in [clustered(64, 4, 64), range(true, 64), range(true, 0)] {
            let kind = match kind {
                Kind::Clustered { window, sinks, cap, .. } => Kind::Clustered { window, sinks, cap, clusters: 16 },
                kind => kind,
            };
            let case = Case { kind, heads: 6, kv_heads: 2, head_dim: 32, kv };
            let calls = [128, 128, 128, 116, DECODE];
            let reports = check(&case, &preset("edge-32"), 1024, 128, &calls);
            for (call, report) in calls.iter().zip(&reports) {
                let tokens = (*call).max(1);
                let ops: Vec<String> = report.ops().iter().map(|(name, share)| format!("{name} {share:?}")).collect();
                println!("{kv} {kind:?}: {tokens} tokens, {} cycles, {:?}", report.cycles, report.bound());
                for queue in lapidary_npu_isa::Queue::ALL {
                    println!("    {queue:?} busy {}", report.busy_cycles(*queue));
                }
                if std::env::var_os("OPS").is_some() {
                    println!("{ops:#?}");
                }
            }
        }
    }
}
