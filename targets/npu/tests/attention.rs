//! Attention on the simulator, bit for bit against a plain reference: single nodes whose operands are columns of random rows.

use std::fmt::Write as _;

use half::f16;
use lapidary_compiler::ir::{Graph, NoSource, WeightReader, parse};
use lapidary_compiler::quant::quantize_row;
use lapidary_npu_isa::verify::verify;
use lapidary_npu_isa::{Machine, Program};
use lapidary_simulator::{Memories, Options, Report, Simulator};
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
    let r = n.mul_add(-0.693_359_375, x);
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
        .unwrap_or_else(|e| panic!("{case:?} on {}: {e}", machine.name));
    for (name, program) in [("prefill", Some(&model.prefill)), ("decode", model.decode.as_ref())] {
        if let Some(program) = program {
            verify(program, machine).unwrap_or_else(|e| panic!("{case:?} on {}, {name}: {e}", machine.name));
        }
    }
    (graph, model)
}

fn id(i: u64) -> u32 {
    (i * i * 31 % 101 + i * 7) as u32 % VOCAB as u32
}

/// Calls of so many tokens each, one after the other; 1 decodes.
fn check(case: &Case, machine: &Machine, max_tokens: u64, chunk_tokens: u64, calls: &[u64]) -> Vec<Report> {
    let (graph, model) = lower(case, machine, max_tokens, chunk_tokens);
    let weight = WeightReader::new(&graph, &NoSource).read_all(graph.weight_by_name("t").unwrap()).unwrap();
    let cols = case.widths().iter().sum::<u64>() as usize;
    let total: u64 = calls.iter().sum();
    assert!(total <= max_tokens);
    let ids: Vec<u32> = (0..total).map(id).collect();
    let rows: Vec<&[f32]> = ids.iter().map(|i| &weight[*i as usize * cols..][..cols]).collect();
    let want = reference(case, &rows);
    let mut session = Session::new(&model, &graph);
    let (mut position, mut reports) = (0, Vec::new());
    for tokens in calls {
        let program = match (tokens, &model.decode) {
            (1, Some(decode)) => decode,
            _ => &model.prefill,
        };
        let (y, report) = session.call(program, &ids[position..][..*tokens as usize], position as u64);
        let y_cols = case.widths()[0] as usize;
        for (i, (found, want)) in y.iter().zip(&want[position * y_cols..]).enumerate() {
            let (t, c) = (position + i / y_cols, i % y_cols);
            assert_eq!(
                found.to_bits(),
                want.to_bits(),
                "{case:?} on {}, max {max_tokens}, chunk {chunk_tokens}, calls {calls:?}: token {t}, column {c}: wanted {want}, found {found}",
                machine.name
            );
        }
        position += *tokens as usize;
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
    machine.name = format!("{name} with {scratchpad_bytes} bytes");
    machine
}

const KV: [&str; 3] = ["f32", "f16", "int8"];

#[test]
fn causal_range() {
    for kv in KV {
        for window in [0, 1, 7, 16, 100] {
            let case =
                Case { kind: Kind::Range { causal: true, window }, heads: 4, kv_heads: 2, head_dim: 20, kv };
            check(&case, &preset("edge-16"), 64, 24, &[24, 1, 1, 17, 1, 16, 1, 2, 1]);
        }
    }
}
