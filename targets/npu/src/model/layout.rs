//! Where what lies in DRAM behind the weights: what the host writes and reads, state, and values that do not stay on chip.

use std::collections::HashMap;

use lapidary_compiler::ir::{DType, Dim, Graph, Node, NodeId, Op, SymbolId};
use lapidary_compiler::ops::{Policy, select_capacity};
use lapidary_npu_isa::address::Memory;
use lapidary_npu_isa::program::Segment;
use lapidary_npu_isa::{Machine, choice::Type};

use super::homes::Room;
use super::ops::attention;
use super::order::{Area, Space};
use super::weights::{ALIGN, WeightImage};
use super::{ModelOutput, OutputRows};
use crate::error::LowerError;

/// Bytes of the segment `call`.
pub const CALL_BYTES: u64 = 16;

/// Addresses, the same for all programs of a model.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Number of tokens, output rows, position.
    pub call: u64,
    /// Ids.
    pub ids: u64,
    /// State of each node that keeps any, by node.
    state: Vec<Option<Area>>,
    /// Its length.
    pub state_bytes: u64,
    /// Rows of keys and of values that attention has room for in it.
    pub state_rows: u64,
    /// Results, in the order of the graph's outputs.
    pub outputs: Vec<u64>,
    /// Capacities of modules by number of tokens, of the nodes that need them.
    capacities: HashMap<NodeId, u64>,
    /// First byte of everything else.
    pub arena: u64,
    segments: Vec<Segment>,
}

impl Layout {
    /// Lays out everything but the arena.
    pub fn new(graph: &Graph, weights: &WeightImage, outputs: &[ModelOutput], max_tokens: u64, room: Room) -> Layout {
        let mut end = weights.bytes();
        let mut segments = Vec::new();
        let mut add = |name: &str, address: u64, len_bytes: u64| {
            segments.push(Segment { address, len_bytes, bytes: Vec::new(), name: name.into() });
        };
        let mut take = |bytes: u64| {
            let at = end.next_multiple_of(ALIGN);
            end = at + bytes;
            at
        };
        add("weights", 0, weights.bytes());
        let call = take(CALL_BYTES);
        add("call", call, CALL_BYTES);
        let ids = take(4 * room.rows);
        add("ids", ids, 4 * room.tokens);
        let state_begin = take(0);
        let state: Vec<Option<Area>> = graph
            .nodes
            .iter()
            .map(|node| {
                let bytes = attention::state_bytes(node, max_tokens, room);
                (bytes > 0).then(|| Area::new(Space::Dram, take(bytes), bytes))
            })
            .collect();
        // There always is such a segment.
        let state_bytes = (take(0) - state_begin).max(ALIGN);
        let state_end = take(0);
        take(state_begin + state_bytes - state_end);
        add("state", state_begin, state_bytes);
        let mut places = Vec::new();
        for output in outputs {
            let rows = match output.rows {
                OutputRows::Tokens | OutputRows::OutputRows => room.rows,
                OutputRows::One => 1,
            };
            let bytes = rows * output.cols * element(output.element).bytes() as u64;
            let at = take(bytes);
            add(&output.segment, at, bytes);
            places.push(at);
        }
        // Constants of the programs, not weights: known to whoever times them without weights, too.
        let (mut tables, mut capacities) = (Vec::<Vec<u32>>::new(), HashMap::new());
        for (i, node) in graph.nodes.iter().enumerate() {
            let Some(table) = capacity_table(graph, node, room.tokens) else { continue };
            let at = tables.iter().position(|known| *known == table).unwrap_or_else(|| {
                tables.push(table);
                tables.len() - 1
            });
            capacities.insert(NodeId(i as u32), at as u64);
        }
        let bytes: Vec<u8> = tables.concat().iter().flat_map(|word| word.to_le_bytes()).collect();
        let begin = take(bytes.len() as u64);
        capacities.values_mut().for_each(|at| *at = begin + *at * 4 * (room.tokens + 1));
        let constants = Segment { address: begin, len_bytes: bytes.len() as u64, bytes, name: "capacities".into() };
        let arena = take(0);
        segments.push(constants);
        Layout {
            capacities,
            call,
            ids,
            state,
            state_bytes,
            state_rows: attention::state_rows(max_tokens, room),
            outputs: places,
            arena,
            segments,
        }
    }

    /// State of a node.
    pub fn state(&self, node: NodeId) -> Option<Area> {
        self.state[node.0 as usize]
    }

    /// Capacities of modules by number of tokens, u32 from 0 tokens on, of a `route.select` that looks across tokens.
    pub fn capacities(&self, node: NodeId) -> u64 {
        self.capacities[&node]
    }

    /// All segments, with an arena of so many bytes.
    ///
    /// # Errors
    /// They do not fit the machine's DRAM.
    pub fn segments(&self, machine: &Machine, arena_bytes: u64) -> Result<Vec<Segment>, LowerError> {
        let end = self.arena + arena_bytes;
        if end > machine.dram.bytes {
            return Err(LowerError::TooSmall {
                what: "weights, state, results and values".into(),
                memory: Memory::Dram,
                wanted: end,
                found: machine.dram.bytes,
            });
        }
        let mut segments = self.segments.clone();
        if arena_bytes > 0 {
            let name = "arena".into();
            segments.push(Segment { address: self.arena, len_bytes: arena_bytes, bytes: Vec::new(), name });
        }
        segments.retain(|s| s.len_bytes > 0);
        Ok(segments)
    }
}

/// How many tokens a module takes of 0, 1, … tokens; `None`: the node asks no such thing.
fn capacity_table(graph: &Graph, node: &Node, most_tokens: u64) -> Option<Vec<u32>> {
    if node.op != Op::RouteSelect || !Policy::of(&node.attrs).looks_across_tokens() {
        return None;
    }
    let (factor, k_max) = (node.attrs.float("capacity_factor"), node.attrs.int("k_max") as usize);
    let modules = graph.ty(node.results[0]).cols() as usize;
    Some((0..=most_tokens).map(|tokens| select_capacity(factor, tokens as usize, k_max, modules) as u32).collect())
}

/// How the elements of a value lie in memory.
pub fn element(dtype: DType) -> Type {
    match dtype {
        DType::U32 => Type::I32,
        DType::U8 => Type::I8,
        DType::F32 | DType::F16 | DType::BF16 => Type::F32,
    }
}

/// What a graph gives.
pub fn outputs(graph: &Graph) -> Vec<ModelOutput> {
    let output = |o: &lapidary_compiler::ir::Output| {
        let ty = graph.ty(o.value);
        let rows = match ty.rows() {
            Dim::Sym(SymbolId::OUTPUT_ROWS) => OutputRows::OutputRows,
            Dim::Const(1) => OutputRows::One,
            Dim::Const(_) | Dim::Sym(_) => OutputRows::Tokens,
        };
        ModelOutput {
            name: o.name.clone(),
            segment: format!("out.{}", o.name),
            element: ty.dtype,
            rows,
            cols: ty.cols(),
        }
    };
    graph.outputs.iter().map(output).collect()
}
