//! Where packed weights lie: each in exactly the layout that its kernel reads, in the order in which the model reads them.
//!
//! All weights of one module of one layer form an extent: contiguous, starting on a page, all modules of a layer at one
//! stride, so that generated code finds module c by a multiplication and a runtime can fetch or drop one alone.

use std::collections::HashMap;
use std::io::{self, Write};

use lapidary_compiler::ir::{Component, DType, Graph, Node, Op, Operand, Storage, Weight, WeightId};
use lapidary_format::{EXTENT_ALIGN, TENSOR_ALIGN, WeightsWriter};
use lapidary_kernels::{KernelOp, Source, WeightType, pack, select};

use crate::LowerError;
use crate::targets::CpuTarget;

/// Gives rows of a weight as f32: `(weight, first row, whole rows to fill)`.
pub type ReadRows<'a> = dyn Fn(WeightId, u64, &mut [f32]) -> io::Result<()> + 'a;

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

/// Where a weight lies.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// How.
    pub packing: Packing,
    /// Element type.
    pub dtype: DType,
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
    /// Element type.
    pub dtype: DType,
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

/// The kernels' name of an element type, or an error that names the node.
pub fn weight_type(node: &Node, dtype: DType) -> Result<WeightType, LowerError> {
    match dtype {
        DType::F32 => Ok(WeightType::F32),
        DType::F16 => Ok(WeightType::F16),
        DType::BF16 | DType::U32 | DType::U8 => {
            Err(LowerError::WeightStorage { node: node.label.clone(), found: dtype.name() })
        }
    }
}

/// The element type of a weight that is stored in floats; no kernel of this target reads integers yet.
fn float_dtype(node: &Node, weight: &Weight) -> Result<DType, LowerError> {
    let found = weight.storage;
    found.float().ok_or_else(|| LowerError::WeightStorage { node: node.label.clone(), found: found.name() })
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
                if tied { self.panels(graph, node, table, target) } else { self.rows(graph, node, table) }
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
                let piece = Piece { packing: Packing::Rows, dtype: DType::F32, offset_bytes: 0, size_bytes };
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

    fn rows(&mut self, graph: &Graph, node: &Node, w: WeightId) -> Result<(), LowerError> {
        let weight = graph.weight(w);
        let dtype = float_dtype(node, weight)?;
        weight_type(node, dtype)?;
        let size_bytes = weight.elems() * dtype.bytes();
        let piece = Piece { packing: Packing::Rows, dtype, offset_bytes: 0, size_bytes };
        self.place(Content::Weight(w), piece);
        Ok(())
    }

    /// Small weights that kernels read as f32.
    fn vector(&mut self, graph: &Graph, node: &Node, w: WeightId) -> Result<(), LowerError> {
        let found = graph.weight(w).storage;
        if found != Storage::F32 {
            return Err(LowerError::WeightStorage { node: node.label.clone(), found: found.name() });
        }
        self.rows(graph, node, w)
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
                if (piece.dtype, piece.size_bytes) != (wanted.dtype, wanted.size_bytes) {
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
                dtype: piece.dtype,
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

    /// Streams the section: one panel's rows in memory at a time. `progress` is told the bytes written so far.
    pub fn write(
        &self,
        read_rows: &ReadRows<'_>,
        graph: &Graph,
        out: &mut WeightsWriter<'_>,
        progress: &dyn Fn(u64),
    ) -> io::Result<()> {
        let mut buffers = Buffers::default();
        for block in &self.blocks {
            out.pad_to(block.piece.offset_bytes)?;
            match (block.content, block.piece.packing) {
                (Content::Weight(w), Packing::Rows) => {
                    let weight = graph.weight(w);
                    for row in 0..weight.rows() {
                        let rows = buffers.read(read_rows, w, row, 1, weight.cols())?;
                        write_elements(rows, block.piece.dtype, out)?;
                    }
                }
                (Content::Weight(w), Packing::Panels { nr } | Packing::PanelPairs { nr }) => {
                    for panel in 0..graph.weight(w).rows().div_ceil(nr) {
                        buffers.write_panel(read_rows, graph, w, panel, nr, block.piece.dtype, out)?;
                    }
                }
                (Content::Pair(gate, up), Packing::Panels { nr } | Packing::PanelPairs { nr }) => {
                    for panel in 0..graph.weight(gate).rows().div_ceil(nr) {
                        buffers.write_panel(read_rows, graph, gate, panel, nr, block.piece.dtype, out)?;
                        buffers.write_panel(read_rows, graph, up, panel, nr, block.piece.dtype, out)?;
                    }
                }
                (Content::Pair(..), Packing::Rows) => return Err(io::Error::other("a pair is packed in panels")),
                (Content::Rope { head_dim, theta_bits }, _) => {
                    for position in 0..self.positions {
                        let row = rope_row(position, head_dim, f32::from_bits(theta_bits));
                        write_elements(&row, DType::F32, out)?;
                    }
                }
            }
            progress(out.position());
        }
        out.pad_to(self.size_bytes)
    }
}

/// Working memory of [`WeightLayout::write`].
#[derive(Default)]
struct Buffers {
    rows: Vec<f32>,
    packed: Vec<u8>,
}

impl Buffers {
    fn read(&mut self, read_rows: &ReadRows<'_>, w: WeightId, first: u64, count: u64, cols: u64) -> io::Result<&[f32]> {
        self.rows.resize((count * cols) as usize, 0.0);
        read_rows(w, first, &mut self.rows)?;
        Ok(&self.rows)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "a panel is named by all of them; a struct would only be taken apart"
    )]
    fn write_panel(
        &mut self,
        read_rows: &ReadRows<'_>,
        graph: &Graph,
        w: WeightId,
        panel: u64,
        nr: u64,
        dtype: DType,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let weight = graph.weight(w);
        let (first, k) = (panel * nr, weight.cols());
        let count = nr.min(weight.rows() - first);
        self.read(read_rows, w, first, count, k)?;
        let weight_type = if dtype == DType::F16 { WeightType::F16 } else { WeightType::F32 };
        self.packed.resize((nr * k * dtype.bytes()) as usize, 0);
        pack(Source::F32(&self.rows), k as usize, nr as usize, weight_type, &mut self.packed)
            .map_err(|e| io::Error::other(format!("weight {}, panel {panel}: {e}", weight.name)))?;
        out.write_all(&self.packed)
    }
}

fn write_elements(elements: &[f32], dtype: DType, out: &mut dyn Write) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(elements.len() * 4);
    for x in elements {
        if dtype == DType::F16 {
            bytes.extend_from_slice(&half::f16::from_f32(*x).to_le_bytes());
        } else {
            bytes.extend_from_slice(&x.to_le_bytes());
        }
    }
    out.write_all(&bytes)
}

/// Cosines, then sines, of one position: angle = position · theta^(−2i/head_dim), frequency and angle rounded to f32 as the
/// models' own training code does.
fn rope_row(position: u64, head_dim: u64, theta: f32) -> Vec<f32> {
    let angles = (0..head_dim / 2).map(|i| {
        let frequency = f64::from(theta).powf(-2.0 * i as f64 / head_dim as f64) as f32;
        f64::from(position as f32 * frequency)
    });
    angles.clone().map(|a| a.cos() as f32).chain(angles.map(|a| a.sin() as f32)).collect()
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
    let dtype = float_dtype(node, weight)?;
    let nr = panel_width(node, KernelOp::Gemm, KernelOp::Gemv, dtype, target)?;
    let size_bytes = weight.rows().div_ceil(nr) * nr * weight.cols() * dtype.bytes();
    Ok(Piece { packing: Packing::Panels { nr }, dtype, offset_bytes: 0, size_bytes })
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
    let dtype = float_dtype(node, gate)?;
    let nr = panel_width(node, KernelOp::GemmSwiglu, KernelOp::GemvSwiglu, dtype, target)?;
    let size_bytes = 2 * gate.rows().div_ceil(nr) * nr * gate.cols() * dtype.bytes();
    Ok(Piece { packing: Packing::PanelPairs { nr }, dtype, offset_bytes: 0, size_bytes })
}

/// The panel width that both kernels of an operation read: one copy of the weights serves prefill and decode.
fn panel_width(
    node: &Node,
    matrix: KernelOp,
    vector: KernelOp,
    dtype: DType,
    target: &CpuTarget,
) -> Result<u64, LowerError> {
    let weight = weight_type(node, dtype)?;
    let width = |op: KernelOp| {
        select(op, &target.features, weight).map(|row| row.tile.nr as u64).ok_or_else(|| LowerError::NoKernel {
            op: format!("{op:?}"),
            weight: format!("{weight:?}"),
            target: target.name.into(),
        })
    };
    let (m, v) = (width(matrix)?, width(vector)?);
    if m == v { Ok(m) } else { Err(LowerError::PanelWidths { matrix: m, vector: v, target: target.name.into() }) }
}
