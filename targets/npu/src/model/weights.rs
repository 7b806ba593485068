//! The image of weights: what lies where in DRAM, in which form.
//!
//! A matrix that activations are multiplied with lies in the array's order ([`crate::matmul::tiling`]); what the vector unit reads, and
//! the embedding, of which rows are gathered, lie row by row. A weight that is used in two ways (an embedding that is also the
//! head) lies there twice. Cosines and sines lie among them.

use std::collections::HashMap;
use std::io::Write;

use half::f16;
use lapidary_compiler::ir::{Graph, Node, Op, Storage, WeightId, WeightReader};
use lapidary_compiler::quant::{QuantizedRows, Scales};
use lapidary_npu_isa::Machine;
use lapidary_npu_isa::choice::Type;

use crate::error::LowerError;
use crate::matmul::{Tiling, WeightFormat, pack::pack};

/// Everything begins at a multiple of it.
pub(super) const ALIGN: u64 = 64;

/// How a weight is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Form {
    /// By MATRIX, tile by tile.
    Tiles,
    /// By rows.
    Rows,
}

/// Floats, row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloatRows {
    /// First byte.
    pub address: u64,
    /// Outputs.
    pub rows: u64,
    /// Inputs.
    pub cols: u64,
    /// F32 or F16.
    pub element: Type,
}

impl FloatRows {
    /// Bytes of a row.
    pub const fn row_bytes(&self) -> u64 {
        self.cols * self.element.bytes() as u64
    }
}

/// Codes in the array's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeTiles {
    /// First byte of the tiles.
    pub address: u64,
    /// How they are cut.
    pub tiling: Tiling,
    /// Scales of outputs, f32, of int8.
    pub scales: u64,
}

/// Codes, row by row, with their scales: one f32 per row of int8, an f16 per group of int4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeRows {
    /// First byte of the codes.
    pub address: u64,
    /// Bytes of a row of codes; of int4 two codes in each.
    pub row_bytes: u64,
    /// First byte of the scales.
    pub scales: u64,
    /// Bytes of a row of scales.
    pub scale_bytes: u64,
    /// Rows.
    pub rows: u64,
    /// Codes of a row.
    pub cols: u64,
    /// How they are stored.
    pub format: WeightFormat,
}

/// A weight in DRAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// Floats.
    Floats(FloatRows),
    /// Codes that are multiplied with.
    Tiles(CodeTiles),
    /// Codes of which rows are gathered.
    Codes(CodeRows),
}

/// A part of the image.
#[derive(Clone, Debug)]
enum Piece {
    Weight(WeightId, Placed),
    Rope { head_dim: u64, theta: f64, rows: u64 },
}

/// What lies where.
#[derive(Clone, Debug, Default)]
pub struct WeightImage {
    placed: HashMap<(WeightId, Form), Placed>,
    ropes: HashMap<(u64, u32), u64>,
    pieces: Vec<(u64, Piece)>,
    end: u64,
}

/// How codes are stored.
pub fn format_of(storage: Storage) -> Option<WeightFormat> {
    match storage {
        Storage::Int8 => Some(WeightFormat::Int8),
        Storage::Int4(group) => Some(WeightFormat::Int4 { group: group.elems() as u32 }),
        Storage::F32 | Storage::F16 | Storage::Bf16 => None,
    }
}

impl WeightImage {
    /// Places all weights of a graph, module after module, and the tables that its ops need.
    pub fn new(graph: &Graph, machine: &Machine, max_tokens: u64) -> WeightImage {
        let mut weights = WeightImage::default();
        for node in &graph.nodes {
            let fixed = node.op.num_fixed_operands();
            for operand in &node.operands[..fixed.min(node.operands.len())] {
                if let Some(weight) = operand.weight() {
                    weights.place(graph, machine, weight, form(node));
                }
            }
            let groups = node.op.num_module_groups();
            let modules = (node.operands.len() - fixed).checked_div(groups).unwrap_or(0);
            for c in 0..modules {
                for group in 0..groups {
                    if let Some(weight) = node.operands[fixed + group * modules + c].weight() {
                        weights.place(graph, machine, weight, Form::Tiles);
                    }
                }
            }
            weights.table(node, max_tokens);
        }
        weights
    }

    /// Length of the image.
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// The weight as it is multiplied with.
    pub fn product(&self, weight: WeightId) -> Placed {
        self.placed[&(weight, Form::Tiles)]
    }

    /// The weight as its rows are read.
    pub fn rows(&self, weight: WeightId) -> Placed {
        self.placed[&(weight, Form::Rows)]
    }

    /// Rows of `head_dim` f32, cosines and then sines, by position.
    pub fn rope(&self, head_dim: u64, theta: f32) -> u64 {
        self.ropes[&(head_dim, theta.to_bits())]
    }

    fn take(&mut self, bytes: u64, piece: Piece) -> u64 {
        let at = self.end.next_multiple_of(ALIGN);
        self.end = at + bytes;
        self.pieces.push((at, piece));
        at
    }

    fn place(&mut self, graph: &Graph, machine: &Machine, weight: WeightId, form: Form) {
        if self.placed.contains_key(&(weight, form)) {
            return;
        }
        let w = graph.weight(weight);
        let (rows, cols) = (w.rows(), w.cols());
        let at = self.end.next_multiple_of(ALIGN);
        let (placed, bytes) = match (format_of(w.storage), form) {
            (None, _) => {
                // What is not f16 is widened: the vector unit reads no bf16.
                let element = if w.storage == Storage::F16 && w.shape.len() == 2 { Type::F16 } else { Type::F32 };
                let floats = FloatRows { address: at, rows, cols, element };
                (Placed::Floats(floats), rows * floats.row_bytes())
            }
            (Some(format), Form::Tiles) => {
                let tiling = Tiling::new(machine, cols as u32, rows as u32, format);
                let scales = (at + tiling.packed_bytes()).next_multiple_of(ALIGN);
                let end = match format {
                    WeightFormat::Int8 => scales + 4 * rows,
                    WeightFormat::Int4 { .. } => at + tiling.packed_bytes(),
                };
                (Placed::Tiles(CodeTiles { address: at, tiling, scales }), end - at)
            }
            (Some(format), Form::Rows) => {
                let row_bytes = format.row_bytes(cols);
                let scale_bytes = match format {
                    WeightFormat::Int8 => 4,
                    WeightFormat::Int4 { group } => 2 * cols.div_ceil(group.into()),
                };
                let scales = (at + rows * row_bytes).next_multiple_of(ALIGN);
                let codes = CodeRows { address: at, row_bytes, scales, scale_bytes, rows, cols, format };
                (Placed::Codes(codes), scales + rows * scale_bytes - at)
            }
        };
        self.placed.insert((weight, form), placed);
        self.take(bytes, Piece::Weight(weight, placed));
    }

    /// Rows of cosines and sines, if the op turns anything.
    fn table(&mut self, node: &Node, max_tokens: u64) {
        if node.op != Op::Rope {
            return;
        }
        let (head_dim, theta) = (node.attrs.int("head_dim"), node.attrs.float("theta"));
        if !self.ropes.contains_key(&(head_dim, theta.to_bits())) {
            let piece = Piece::Rope { head_dim, theta: theta.into(), rows: max_tokens };
            let address = self.take(4 * head_dim * max_tokens, piece);
            self.ropes.insert((head_dim, theta.to_bits()), address);
        }
    }

    /// Writes the image.
    pub fn write(
        &self,
        reader: &WeightReader<'_>,
        out: &mut dyn Write,
        progress: &dyn Fn(u64),
    ) -> Result<(), LowerError> {
        let wrong = |e: std::io::Error| LowerError::Write(e.to_string());
        let mut done = 0;
        for (at, piece) in &self.pieces {
            out.write_all(&vec![0; (at - done) as usize]).map_err(wrong)?;
            let bytes = piece.bytes(reader)?;
            out.write_all(&bytes).map_err(wrong)?;
            done = at + bytes.len() as u64;
            progress(done);
        }
        Ok(())
    }
}

/// How an op reads its weights.
fn form(node: &Node) -> Form {
    if matches!(node.op, Op::Linear | Op::LinearSwiglu) { Form::Tiles } else { Form::Rows }
}

impl Piece {
    fn bytes(&self, reader: &WeightReader<'_>) -> Result<Vec<u8>, LowerError> {
        let wrong = |e: &dyn std::fmt::Display| LowerError::Weights(e.to_string());
        match self {
            Piece::Rope { head_dim, theta, rows } => Ok(rope_rows(*head_dim, *theta, *rows)),
            Piece::Weight(weight, Placed::Floats(floats)) => {
                let elems = reader.read_all_stored(*weight).map_err(|e| wrong(&e))?;
                Ok(match floats.element {
                    Type::F16 => elems.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
                    _ => elems.iter().flat_map(|x| x.to_le_bytes()).collect(),
                })
            }
            Piece::Weight(weight, Placed::Tiles(tiles)) => {
                let rows = reader.read_all_codes(*weight).map_err(|e| wrong(&e))?;
                Ok(tile_bytes(tiles, &rows))
            }
            Piece::Weight(weight, Placed::Codes(codes)) => {
                let rows = reader.read_all_codes(*weight).map_err(|e| wrong(&e))?;
                Ok(row_bytes(codes, &rows))
            }
        }
    }
}

/// Cosines and sines, computed in f64 and rounded.
fn rope_rows(head_dim: u64, theta: f64, rows: u64) -> Vec<u8> {
    let angles =
        |position: u64| (0..head_dim / 2).map(move |i| position as f64 * theta.powf(-2.0 * i as f64 / head_dim as f64));
    let row = |position| {
        let cosines = angles(position).map(|a| a.cos() as f32);
        cosines.chain(angles(position).map(|a| a.sin() as f32)).flat_map(f32::to_le_bytes).collect::<Vec<_>>()
    };
    (0..rows).flat_map(row).collect()
}

fn tile_bytes(tiles: &CodeTiles, rows: &QuantizedRows) -> Vec<u8> {
    let k = rows.cols;
    let code = |input: u32, output: u32| rows.codes[output as usize * k + input as usize];
    match &rows.scales {
        Scales::PerRow(scales) => {
            let mut bytes = pack(&tiles.tiling, code, |_, _| f16::ONE);
            bytes.resize((tiles.scales - tiles.address) as usize, 0);
            bytes.extend(scales.iter().flat_map(|s| s.to_le_bytes()));
            bytes
        }
        Scales::PerGroup { group, scales } => {
            let groups = k.div_ceil(group.elems() as usize);
            pack(&tiles.tiling, code, |g, output| scales[output as usize * groups + g as usize])
        }
    }
}

fn row_bytes(codes: &CodeRows, rows: &QuantizedRows) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((codes.scales - codes.address) as usize);
    for row in rows.codes.chunks_exact(rows.cols) {
        match codes.format {
            WeightFormat::Int8 => bytes.extend(row.iter().map(|c| *c as u8)),
            WeightFormat::Int4 { .. } => bytes.extend(row.chunks(2).map(|pair| {
                let high = pair.get(1).copied().unwrap_or(0);
                (pair[0] as u8 & 15) | (high as u8 & 15) << 4
            })),
        }
    }
    bytes.resize((codes.scales - codes.address) as usize, 0);
    match &rows.scales {
        Scales::PerRow(scales) => bytes.extend(scales.iter().flat_map(|s| s.to_le_bytes())),
        Scales::PerGroup { scales, .. } => bytes.extend(scales.iter().flat_map(|s| s.to_le_bytes())),
    }
    bytes
}
