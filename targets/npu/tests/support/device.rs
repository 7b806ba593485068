//! A machine with a model in its DRAM, and the host that calls it.
//!
//! Whatever a call may not read is made unusable before it: on-chip memories, what lies in the arena and in outputs (all bytes
//! 0xff, which are floats that are not numbers), and ids beyond those of the call (out of any vocabulary).
#![allow(dead_code, reason = "each suite uses its part")]

use lapidary_compiler::interp::{Data, Outputs, Tensor};
use lapidary_compiler::ir::{DType, WeightReader};
use lapidary_npu_isa::Program;
use lapidary_npu_isa::program::Segment;
use lapidary_npu_isa::verify::verify;
use lapidary_simulator::{Memories, Options, Report, Simulator};
use lapidary_target_npu::model::{NpuModel, OutputRows};

/// A machine between calls.
pub struct Device<'a> {
    model: &'a NpuModel,
    memories: Memories,
    /// Tokens of the sequence so far.
    position: u64,
    /// What the host writes to DRAM before the next call.
    writes: Vec<(u64, Vec<u8>)>,
}

/// What a call gave.
pub struct Answer {
    pub outputs: Outputs,
    pub report: Report,
}

/// The segment of a name.
fn segment<'p>(program: &'p Program, name: &str) -> Result<&'p Segment, String> {
    let found = program.segments.iter().find(|s| s.name == name);
    found.ok_or_else(|| {
        let names: Vec<&str> = program.segments.iter().map(|s| s.name.as_str()).collect();
        format!("segment {name}: wanted one, found {}", names.join(", "))
    })
}

/// Names of the segments that a host needs.
fn host_segments(model: &NpuModel) -> Vec<String> {
    let fixed = ["weights", "call", "ids", "state"].map(String::from);
    fixed.into_iter().chain(model.outputs.iter().map(|o| o.segment.clone())).collect()
}

/// Both programs pass the verifier, and agree about segments, which come without contents.
fn check(model: &NpuModel) -> Result<(), String> {
    for (what, program) in [("prefill", Some(&model.prefill)), ("decode", model.decode.as_ref())] {
        let Some(program) = program else { continue };
        verify(program, &model.machine).map_err(|e| format!("{what}: {e}"))?;
        for name in host_segments(model) {
            let (here, there) = (segment(program, &name)?, segment(&model.prefill, &name)?);
            if !here.bytes.is_empty() || (here.address, here.len_bytes) != (there.address, there.len_bytes) {
                return Err(format!("{what}, segment {name}: wanted no contents and one place, found {here:?}"));
            }
        }
    }
    let (weights, call) = (segment(&model.prefill, "weights")?, segment(&model.prefill, "call")?);
    let ids = segment(&model.prefill, "ids")?;
    let found = (weights.address, weights.len_bytes, call.len_bytes, ids.len_bytes);
    let wanted = (0, model.weight_bytes, 16, 4 * model.chunk_tokens);
    match found == wanted {
        true => Ok(()),
        false => Err(format!("weights at, their bytes, those of call and ids: wanted {wanted:?}, found {found:?}")),
    }
}

impl<'a> Device<'a> {
    /// A machine with a model's weights, at the start of a sequence.
    pub fn new(model: &'a NpuModel, weights: &WeightReader<'_>) -> Result<Device<'a>, String> {
        let mut image = Vec::new();
        model.write_weights(weights, &mut image, &|_| ()).map_err(|e| e.to_string())?;
        Device::with_image(model, image)
    }

    /// The same of an image that is at hand.
    pub fn with_image(model: &'a NpuModel, image: Vec<u8>) -> Result<Device<'a>, String> {
        check(model)?;
        if image.len() as u64 != model.weight_bytes {
            return Err(format!("image of weights: wanted {} bytes, found {}", model.weight_bytes, image.len()));
        }
        let options = Options::default();
        let memories = Memories::new(&model.machine, options.values, options.limits.dram_bytes);
        let mut device = Device { model, memories, position: 0, writes: vec![(0, image)] };
        device.begin_sequence()?;
        Ok(device)
    }

    /// Forgets all tokens.
    pub fn begin_sequence(&mut self) -> Result<(), String> {
        let state = segment(&self.model.prefill, "state")?;
        self.writes.push((state.address, vec![0; state.len_bytes as usize]));
        self.position = 0;
        Ok(())
    }

    /// Runs the next tokens of the sequence through the program for prefill or the one for decode.
    pub fn call(&mut self, ids: &[u32], output_rows: usize, decode: bool) -> Result<Answer, String> {
        let model = self.model;
        let program = match (decode, &model.decode) {
            (false, _) => &model.prefill,
            (true, Some(program)) => program,
            (true, None) => return Err("decode: wanted a program, found none".into()),
        };
        let words = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
        let mut padded = ids.to_vec();
        padded.resize(model.chunk_tokens as usize, u32::MAX);
        let mut writes = std::mem::take(&mut self.writes);
        writes.push((segment(program, "ids")?.address, words(&padded)));
        let call = [ids.len() as u32, output_rows as u32, self.position as u32, 0];
        writes.push((segment(program, "call")?.address, words(&call)));
        let unusable = program.segments.iter().filter(|s| s.name == "arena" || s.name.starts_with("out."));
        writes.extend(unusable.map(|s| (s.address, vec![0xff; s.len_bytes as usize])));

        let free = Memories::new(&model.machine, false, 0);
        let mut memories = std::mem::replace(&mut self.memories, free);
        memories.scratchpad.fill(0xff);
        memories.weights.fill(0xff);
        memories.accumulators.fill(u32::MAX);
        let simulator = Simulator::with_memories(program, &model.machine, Options::default(), memories);
        let mut simulator = simulator.map_err(|e| e.to_string())?;
        for (address, bytes) in writes {
            simulator.write_dram(address, &bytes).map_err(|e| e.to_string())?;
        }
        let run = simulator.run().map_err(|e| e.to_string())?;
        self.position += ids.len() as u64;

        let mut outputs = Vec::new();
        for output in &model.outputs {
            let rows = match output.rows {
                OutputRows::Tokens => ids.len(),
                OutputRows::OutputRows => output_rows,
                OutputRows::One => 1,
            };
            let (segment, elems) = (segment(program, &output.segment)?, rows * output.cols as usize);
            let bytes = run.read_dram(segment.address, elems * output.element.bytes() as usize);
            if bytes.len() as u64 > segment.len_bytes {
                let found = segment.len_bytes;
                return Err(format!("segment {}: wanted {} bytes, found {found}", segment.name, bytes.len()));
            }
            let float = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            let data = match output.element {
                DType::U8 => Data::U8(bytes),
                DType::F32 => Data::F32(bytes.chunks_exact(4).map(float).collect()),
                other => return Err(format!("output {}: wanted f32 or u8, found {other}", output.name)),
            };
            outputs.push((output.name.clone(), Tensor { shape: vec![rows, output.cols as usize], data }));
        }
        self.memories = run.memories;
        Ok(Answer { outputs: Outputs(outputs), report: run.report })
    }
}
