//! Attention on the simulator, bit for bit against the reference interpreter: single nodes whose operands are columns of random
//! rows, through all its ways: kept keys of all storages, lists, blocks, operands in DRAM.

#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::fmt::Write as _;

use lapidary_compiler::ir::{NoSource, WeightReader, parse};
use lapidary_npu_isa::Machine;
use lapidary_target_npu::LowerError;
use lapidary_target_npu::model::{ModelOptions, lower_model};
use lapidary_target_npu::reference::interpreter;
use support::device::Device;

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

fn id(i: u64) -> u32 {
    (i * i * 31 % 101 + i * 7) as u32 % VOCAB as u32
}

/// A call of the program for prefill with so many tokens; 0: of that for decode.
const DECODE: u64 = 0;

/// Calls one after the other.
fn check(case: &Case, machine: &Machine, max_tokens: u64, chunk_tokens: u64, calls: &[u64]) {
    let about = || format!("{case:?} on {}, max {max_tokens}, chunk {chunk_tokens}, calls {calls:?}", machine.name());
    let graph = parse(&case.text()).unwrap_or_else(|e| panic!("{e}\n{}", case.text()));
    let model = lower_model(&graph, machine, &ModelOptions { max_tokens, chunk_tokens })
        .unwrap_or_else(|e| panic!("{}: {e}", about()));
    let total: u64 = calls.iter().map(|tokens| (*tokens).max(1)).sum();
    assert!(total <= max_tokens);
    let ids: Vec<u32> = (0..total).map(id).collect();
    let reference = interpreter(&graph, &NoSource).run(&ids, 1).unwrap_or_else(|e| panic!("{}: {e}", about()));
    let want = reference.get("y").expect("an output");
    let weights = WeightReader::new(&graph, &NoSource);
    let mut device = Device::new(&model, &weights).unwrap_or_else(|e| panic!("{}: {e}", about()));
    let mut position = 0;
    for tokens in calls {
        let count = (*tokens).max(1) as usize;
        let answer = device.call(&ids[position..][..count], 1, *tokens == DECODE);
        let answer = answer.unwrap_or_else(|e| panic!("{}: {e}", about()));
        let found = answer.outputs.get("y").expect("an output");
        let cols = found.cols();
        assert_eq!(found.rows(), count);
        let want = &want.f32s()[position * want.cols()..][..count * want.cols()];
        for (i, (found, want)) in found.f32s().iter().zip(want).enumerate() {
            let (t, c) = (position + i / cols, i % cols);
            assert_eq!(
                found.to_bits(),
                want.to_bits(),
                "{}: token {t}, column {c}: wanted {want}, found {found}",
                about()
            );
        }
        position += count;
    }
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
