//! Where packed weights lie: each in exactly the layout that its kernel reads, in the order in which the model reads them.
//!
//! All weights of one module of one layer form an extent: contiguous, starting on a page, all modules of a layer at one
//! stride, so that generated code finds module c by a multiplication and a runtime can fetch or drop one alone.

mod write;

use std::collections::HashMap;

use lapidary_compiler::ir::{Component, Graph, Node, Op, Operand, Storage, Weight, WeightId};
use lapidary_format::{EXTENT_ALIGN, TENSOR_ALIGN};
use lapidary_kernels::{KernelOp, QuantLayout, WeightType, select};

use crate::LowerError;
use crate::targets::CpuTarget;

/// How a piece is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Row-major, dense.
    Rows,
    /// Panels of `nr` outputs.
    Panels {
        /// Panel width.
        nr: u64,
    },
    /// Gate panel p, up panel p, for the swiglu kernels.
    PanelPairs {
        /// Panel width.
        nr: u64,
    },
}

/// What a piece is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// As the graph says.
    pub storage: Storage,
    /// As the kernels say.
    pub weight: WeightType,
    /// Where codes and scales go, for integers.
    pub quant: Option<QuantLayout>,
}

impl Format {
    /// Weights that kernels read as f32, one by one.
    const F32: Format = Format { storage: Storage::F32, weight: WeightType::F32, quant: None };

    /// The format of a weight in kernels of some operations, which must agree on it; also their panel width.
    fn of(node: &Node, weight: &Weight, ops: &[KernelOp], target: &CpuTarget) -> Result<(Format, u64), LowerError> {
        let (kind, group) = match weight.storage {
            Storage::F32 => (WeightType::F32, 0),
            Storage::F16 => (WeightType::F16, 0),
            Storage::Int8 => (WeightType::I8, 0),
            Storage::Int4(group) => (WeightType::I4, group.elems()),
            Storage::Bf16 => {
                return Err(LowerError::WeightStorage { node: node.label.clone(), found: weight.storage.name() });
            }
        };
        let mut found: Option<(Format, u64)> = None;
        for op in ops {
            let row = select(*op, &target.features, kind).ok_or_else(|| LowerError::NoKernel {
                op: format!("{op:?}"),
                weight: format!("{kind:?}"),
                target: target.name.into(),
            })?;
            let quant = row.quant_layout(group as usize);
            let this = (Format { storage: weight.storage, weight: kind, quant }, row.tile.nr as u64);
            match found {
                None => found = Some(this),
                Some(other) if other == this => {}
                Some((_, width)) => {
                    let target = target.name.into();
                    return Err(LowerError::PanelWidths { matrix: width, vector: this.1, target });
                }
            }
        }
        Ok(found.expect("a weight is read by an operation"))
    }

    /// Inputs that share a scale, 0 where a row does or there is none.
    pub fn group(&self) -> u64 {
        self.quant.map_or(0, |layout| layout.group() as u64)
    }

    /// Bytes of `rows` rows of `cols` in panels of `nr`; row-major is `nr` 1.
    fn packed_bytes(&self, rows: u64, cols: u64, nr: u64) -> u64 {
        match self.quant {
            Some(layout) => layout.packed_bytes(rows as usize, cols as usize) as u64,
            None => rows.next_multiple_of(nr) * cols * self.weight.bytes() as u64,
        }
    }
}

/// Where a weight lies.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// How.
    pub packing: Packing,
    /// What of.
    pub format: Format,
    /// Offset in the weights section.
    pub offset_bytes: u64,
    /// Size.
    pub size_bytes: u64,
}

/// Where one projection of all modules of a layer lies.
#[derive(Clone, Copy, Debug)]
pub struct ModulePieces {
    /// How.
    pub packing: Packing,
    /// What of.
    pub format: Format,
    /// Offset of module 0.
    pub offset_bytes: u64,
    /// From module to module.
    pub stride_bytes: u64,
    /// Size of one module's piece.
    pub size_bytes: u64,
    /// Modules.
    pub count: u64,
    /// Outputs.
    pub rows: u64,
}

/// What fills a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Content {
    Weight(WeightId),
    Pair(WeightId, WeightId),
    /// `[positions, head_dim]` cosines and sines; theta by its bits.
    Rope {
        head_dim: u64,
        theta_bits: u32,
    },
}

impl Content {
    /// The weight, or the first of a pair.
    fn first_weight(self) -> WeightId {
        match self {
            Content::Weight(w) | Content::Pair(w, _) => w,
            Content::Rope { .. } => unreachable!("modules have no rope tables"),
        }
    }
}

/// One contiguous run of the weights section.
#[derive(Clone, Copy, Debug)]
struct Block {
    content: Content,
    piece: Piece,
}

/// All weights of one module of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Which layer with modules, from 0.
    pub layer: u32,
    /// Module.
    pub module: u32,
    /// Offset in the weights section.
    pub offset_bytes: u64,
    /// Size.
    pub size_bytes: u64,
}

/// A row of the artifact's weight table.
#[derive(Clone, Debug)]
pub struct TensorRow {
    /// Name.
    pub name: String,
    /// Part of the model; `None` for tables that the compiler made.
    pub component: Option<Component>,
    /// Outputs.
    pub rows: u64,
    /// Inputs.
    pub cols: u64,
    /// Place and packing.
    pub piece: Piece,
}

/// The layout of a program's weights.
#[derive(Debug, Default)]
pub struct WeightLayout {
    blocks: Vec<Block>,
    places: HashMap<Content, Piece>,
    modules: HashMap<Vec<Content>, ModulePieces>,
    extents: Vec<Extent>,
    size_bytes: u64,
    positions: u64,
}

impl WeightLayout {
    /// Lays out every weight that the graph's nodes read. `positions` is the longest sequence, for rope tables.
    pub fn build(graph: &Graph, positions: u64, target: &CpuTarget) -> Result<WeightLayout, LowerError> {
        let mut layout = WeightLayout { positions, ..WeightLayout::default() };
        for node in &graph.nodes {
            layout.node(graph, node, target)?;
        }
        Ok(layout)
    }

    fn node(&mut self, graph: &Graph, node: &Node, target: &CpuTarget) -> Result<(), LowerError> {
        let weight = |i: usize| node.operands[i].weight();
        match node.op {
            Op::Embed => {
                let table = weight(1).expect("the verifier wants a table");
                let tied = graph.nodes.iter().any(|n| n.op == Op::Linear && n.operands[1] == Operand::Weight(table));
                if tied { self.panels(graph, node, table, target) } else { self.table(graph, node, table, target) }
            }
            Op::RmsNorm => match weight(1) {
                Some(w) => self.vector(graph, node, w),
                None => Ok(()),
            },
            Op::RouteScores | Op::RouteMemory => {
                self.vector(graph, node, weight(2).expect("the verifier wants a weight"))
            }
            Op::Linear => self.panels(graph, node, weight(1).expect("the verifier wants a weight"), target),
            Op::LinearSwiglu => {
                let (gate, up) =
                    (weight(1).expect("the verifier wants a gate"), weight(2).expect("the verifier wants an up"));
                let piece = pair_piece(graph, node, gate, up, target)?;
                self.place(Content::Pair(gate, up), piece);
                Ok(())
            }
            Op::Rope => {
                let (head_dim, theta) = (node.attrs.int("head_dim"), node.attrs.float("theta"));
                let size_bytes = self.positions * head_dim * 4;
                let piece = Piece { packing: Packing::Rows, format: Format::F32, offset_bytes: 0, size_bytes };
                self.place(Content::Rope { head_dim, theta_bits: theta.to_bits() }, piece);
                Ok(())
            }
            Op::ExpertLinear => self.place_modules(graph, node, target, TENSOR_ALIGN),
            Op::ExpertFfn => self.place_modules(graph, node, target, target.page_bytes.max(EXTENT_ALIGN)),
            Op::ExpertApply
            | Op::Fill
            | Op::Add
            | Op::Mul
            | Op::Scale
            | Op::Silu
            | Op::Gelu
            | Op::Softmax
            | Op::Slice
            | Op::AttnRange
            | Op::AttnClustered
            | Op::RouteCluster
            | Op::RouteSelect
            | Op::RouteGroup
            | Op::RouteGather
            | Op::RouteCombine
            | Op::LastRows
            | Op::MeanRows
            | Op::L2Normalize => Ok(()),
        }
    }

    fn panels(&mut self, graph: &Graph, node: &Node, w: WeightId, target: &CpuTarget) -> Result<(), LowerError> {
        let piece = panel_piece(graph, node, w, target)?;
        self.place(Content::Weight(w), piece);
        Ok(())
    }

    /// An embedding table, row-major.
    fn table(&mut self, graph: &Graph, node: &Node, w: WeightId, target: &CpuTarget) -> Result<(), LowerError> {
        let weight = graph.weight(w);
        let (format, _) = Format::of(node, weight, &[KernelOp::EmbedRows], target)?;
        let size_bytes = format.packed_bytes(weight.rows(), weight.cols(), 1);
        self.place(Content::Weight(w), Piece { packing: Packing::Rows, format, offset_bytes: 0, size_bytes });
        Ok(())
    }

    /// Small weights that kernels read as f32.
    fn vector(&mut self, graph: &Graph, node: &Node, w: WeightId) -> Result<(), LowerError> {
        let weight = graph.weight(w);
        if weight.storage != Storage::F32 {
            return Err(LowerError::VectorStorage { node: node.label.clone(), found: weight.storage.name() });
        }
        let size_bytes = weight.elems() * 4;
        let piece = Piece { packing: Packing::Rows, format: Format::F32, offset_bytes: 0, size_bytes };
        self.place(Content::Weight(w), piece);
        Ok(())
    }

    fn place(&mut self, content: Content, piece: Piece) {
        if !self.places.contains_key(&content) {
            self.append(content, piece);
        }
    }

    fn append(&mut self, content: Content, piece: Piece) {
        let piece = Piece { offset_bytes: self.size_bytes.next_multiple_of(TENSOR_ALIGN), ..piece };
        self.size_bytes = piece.offset_bytes + piece.size_bytes;
        self.places.insert(content, piece);
        self.blocks.push(Block { content, piece });
    }

    /// The modules of one node, aligned, at one stride. Where the node has all weights of its modules, each is an extent.
    fn place_modules(
        &mut self,
        graph: &Graph,
        node: &Node,
        target: &CpuTarget,
        align_bytes: u64,
    ) -> Result<(), LowerError> {
        let modules = module_contents(node);
        let Some(first) = modules.first() else { return Ok(()) };
        let mut sizes = Vec::new();
        for content in first {
            sizes.push(module_piece(graph, node, *content, target)?);
        }
        let layer = self.extents.last().map_or(0, |e| e.layer + 1);
        let mut starts = Vec::new();
        for (c, contents) in modules.iter().enumerate() {
            self.size_bytes = self.size_bytes.next_multiple_of(align_bytes);
            let start = self.size_bytes;
            for (content, wanted) in contents.iter().zip(&sizes) {
                let piece = module_piece(graph, node, *content, target)?;
                if (piece.format, piece.size_bytes) != (wanted.format, wanted.size_bytes) {
                    return Err(LowerError::UnequalModules { node: node.label.clone(), module: c });
                }
                // Modules may share a weight; each still has its own copy, a stride from the one before.
                self.append(*content, piece);
                starts.push(self.size_bytes - piece.size_bytes);
            }
            if node.op == Op::ExpertFfn {
                let size_bytes = self.size_bytes - start;
                self.extents.push(Extent { layer, module: c as u32, offset_bytes: start, size_bytes });
            }
        }
        for (i, (content, piece)) in first.iter().zip(sizes).enumerate() {
            let column = modules.iter().map(|m| m[i]).collect();
            let pieces = ModulePieces {
                packing: piece.packing,
                format: piece.format,
                offset_bytes: starts[i],
                stride_bytes: starts.get(first.len() + i).map_or(0, |second| second - starts[i]),
                size_bytes: piece.size_bytes,
                count: modules.len() as u64,
                rows: graph.weight(content.first_weight()).rows(),
            };
            self.modules.insert(column, pieces);
        }
        Ok(())
    }

    /// Where a single weight lies.
    pub fn weight(&self, graph: &Graph, w: WeightId) -> Result<Piece, LowerError> {
        self.places
            .get(&Content::Weight(w))
            .copied()
            .ok_or_else(|| LowerError::NotLaidOut { weight: graph.weight(w).name.clone() })
    }

    /// Where a gate and an up projection lie.
    pub fn pair(&self, gate: WeightId, up: WeightId) -> Result<Piece, LowerError> {
        self.places
            .get(&Content::Pair(gate, up))
            .copied()
            .ok_or_else(|| LowerError::NotLaidOut { weight: format!("{gate:?} with {up:?}") })
    }

    /// Where the modules' pieces lie: of `expert.linear` piece 0, of `expert.ffn` 0 (gate and up) or 1 (down).
    pub fn modules(&self, node: &Node, piece: usize) -> Result<ModulePieces, LowerError> {
        let column: Vec<Content> = module_contents(node).iter().map(|m| m[piece]).collect();
        self.modules
            .get(&column)
            .copied()
            .ok_or_else(|| LowerError::NotLaidOut { weight: format!("modules of {}", node.label) })
    }

    /// Where a table of cosines and sines lies.
    pub fn rope(&self, head_dim: u64, theta: f32) -> Result<Piece, LowerError> {
        self.places
            .get(&Content::Rope { head_dim, theta_bits: theta.to_bits() })
            .copied()
            .ok_or_else(|| LowerError::NotLaidOut { weight: format!("rope table of head_dim {head_dim}") })
    }

    /// Size of the weights section.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Extents of modules, ascending.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Rows of the artifact's weight table, ascending by offset.
    pub fn tensors(&self, graph: &Graph) -> Vec<TensorRow> {
        self.blocks
            .iter()
            .map(|block| match block.content {
                Content::Weight(w) => {
                    let weight = graph.weight(w);
                    TensorRow {
                        name: weight.name.clone(),
                        component: Some(weight.component),
                        rows: weight.rows(),
                        cols: weight.cols(),
                        piece: block.piece,
                    }
                }
                Content::Pair(gate, up) => {
                    let (gate, up) = (graph.weight(gate), graph.weight(up));
                    TensorRow {
                        name: format!("{} + {}", gate.name, up.name),
                        component: Some(gate.component),
                        rows: gate.rows() + up.rows(),
                        cols: gate.cols(),
                        piece: block.piece,
                    }
                }
                Content::Rope { head_dim, theta_bits } => TensorRow {
                    name: format!("rope(theta={}, head_dim={head_dim})", f32::from_bits(theta_bits)),
                    component: None,
                    rows: self.positions,
                    cols: head_dim,
                    piece: block.piece,
                },
            })
            .collect()
    }
}

/// What each module of a node has: of `expert.linear` one matrix, of `expert.ffn` gate with up, and down.
fn module_contents(node: &Node) -> Vec<Vec<Content>> {
    let weights: Vec<WeightId> = node.operands.iter().filter_map(|o| o.weight()).collect();
    if node.op != Op::ExpertFfn {
        return weights.into_iter().map(|w| vec![Content::Weight(w)]).collect();
    }
    let count = weights.len() / 3;
    let (gates, rest) = weights.split_at(count);
    let (ups, downs) = rest.split_at(count);
    let modules = gates.iter().zip(ups).zip(downs);
    modules.map(|((gate, up), down)| vec![Content::Pair(*gate, *up), Content::Weight(*down)]).collect()
}

fn module_piece(graph: &Graph, node: &Node, content: Content, target: &CpuTarget) -> Result<Piece, LowerError> {
    match content {
        Content::Weight(w) => panel_piece(graph, node, w, target),
        Content::Pair(gate, up) => pair_piece(graph, node, gate, up, target),
        Content::Rope { .. } => Err(LowerError::packing(node, "panels")),
    }
}

fn panel_piece(graph: &Graph, node: &Node, w: WeightId, target: &CpuTarget) -> Result<Piece, LowerError> {
    let weight = graph.weight(w);
    // One copy of the weights serves prefill and decode.
    let (format, nr) = Format::of(node, weight, &[KernelOp::Gemm, KernelOp::Gemv], target)?;
    let size_bytes = format.packed_bytes(weight.rows(), weight.cols(), nr);
    Ok(Piece { packing: Packing::Panels { nr }, format, offset_bytes: 0, size_bytes })
}

fn pair_piece(
    graph: &Graph,
    node: &Node,
    gate: WeightId,
    up: WeightId,
    target: &CpuTarget,
) -> Result<Piece, LowerError> {
    let (gate, up) = (graph.weight(gate), graph.weight(up));
    if gate.storage != up.storage || gate.shape != up.shape {
        return Err(LowerError::UnequalPair {
            node: node.label.clone(),
            gate: format!("{} {:?}", gate.storage, gate.shape),
            up: format!("{} {:?}", up.storage, up.shape),
        });
    }
    let (format, nr) = Format::of(node, gate, &[KernelOp::GemmSwiglu, KernelOp::GemvSwiglu], target)?;
    let size_bytes = 2 * format.packed_bytes(gate.rows(), gate.cols(), nr);
    Ok(Piece { packing: Packing::PanelPairs { nr }, format, offset_bytes: 0, size_bytes })
}
