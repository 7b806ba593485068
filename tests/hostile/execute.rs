//! Running artifacts whose weights are damaged. Weights are data: whatever they hold, the code of an undamaged artifact reads
//! and writes nothing but its own memory, which here ends at pages that cannot be touched.

use lapidary_format::ManifestFlags;
use lapidary_kernels::resolve_for;
use lapidary_runtime::{
    Call, CodeImage, Executor, Host, Machine, Program, Sampler, SamplerOptions, SingleThread, greedy,
};

use crate::fixtures::{MAX_TOKENS, VOCAB};
use crate::mutate::Random;

/// Memory in front of a page that cannot be touched. It begins at a multiple of 64 bytes, so up to 63 bytes may lie between.
pub struct Guarded {
    map: *mut libc::c_void,
    map_bytes: usize,
    data: *mut u8,
    len: usize,
}

impl Guarded {
    fn new(contents: &[u8], len: usize, protection: libc::c_int) -> Self {
        // SAFETY: a fresh anonymous mapping of whole pages; data and length lie in front of the last one.
        unsafe {
            let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
            let data_bytes = len.next_multiple_of(64).next_multiple_of(page);
            let map_bytes = data_bytes + page;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let map = libc::mmap(std::ptr::null_mut(), map_bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_ne!(map, libc::MAP_FAILED);
            let end = map.cast::<u8>().add(data_bytes);
            let data = end.sub(len.next_multiple_of(64));
            data.copy_from_nonoverlapping(contents.as_ptr(), contents.len());
            assert_eq!(libc::mprotect(map, data_bytes, protection), 0);
            assert_eq!(libc::mprotect(end.cast(), page, libc::PROT_NONE), 0);
            Self { map, map_bytes, data, len }
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes are mapped at `data`, and nothing writes to what `new` made read-only.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this is the only reference; callers made the mapping writable.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: this value's own mapping.
        unsafe { libc::munmap(self.map, self.map_bytes) };
    }
}

const ODD: [f32; 8] =
    [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::MAX, f32::MIN, 1e-45, f32::from_bits(0xffff_ffff)];

/// Damages the weights section at `begin`: scattered elements, a run, all of it, or bits.
pub fn damage_weights(file: &mut [u8], begin: usize, random: &mut Random) -> String {
    let elements = (file.len() - begin) / 4;
    let put = |file: &mut [u8], at: usize, x: f32| file[begin + 4 * at..][..4].copy_from_slice(&x.to_le_bytes());
    let odd = ODD[random.below(ODD.len())];
    match random.below(4) {
        0 => {
            let count = 1 + random.below(40);
            (0..count).for_each(|_| put(file, random.below(elements), odd));
            format!("{count} weights become {odd}")
        }
        1 => {
            let from = random.below(elements);
            let to = (from + 1 + random.below(2000)).min(elements);
            (from..to).for_each(|at| put(file, at, odd));
            format!("weights {from}..{to} become {odd}")
        }
        2 => {
            (0..elements).for_each(|at| put(file, at, ODD[at.wrapping_mul(random.below(9)) % ODD.len()]));
            "every weight becomes an odd one".into()
        }
        _ => {
            let count = 1 + random.below(3000);
            (0..count).for_each(|_| file[begin + random.below(elements * 4)] = random.next() as u8);
            format!("{count} random bytes in the weights")
        }
    }
}

/// Prefill in pieces, decode, all outputs, sampling. The file's code must be what the compiler wrote.
pub fn run(file: &[u8], random: &mut Random) -> Result<(), String> {
    let host = Host::detect();
    let features = host.features();
    let machine = Machine {
        isa: Host::ISA,
        has_feature: &|name| host.has_feature(name),
        resolve: &|name| resolve_for(name, &features),
    };
    let file = Guarded::new(file, file.len(), libc::PROT_READ);
    let mut kernels = vec![None; 256];
    let program = Program::load(file.bytes(), &machine, &mut kernels).map_err(|e| e.to_string())?;
    let (artifact, manifest) = (program.artifact(), *program.manifest());
    let code = Guarded::new(artifact.code(), artifact.code().len(), libc::PROT_READ | libc::PROT_EXEC);
    let base = std::ptr::NonNull::new(code.data).expect("a mapping");
    // SAFETY: the code section of this program, mapped executable just now; the weights alone were damaged.
    let image = unsafe { CodeImage::new(base, code.len) };
    let writable = libc::PROT_READ | libc::PROT_WRITE;
    let mut arena = Guarded::new(&[], artifact.plan().arena_bytes as usize, writable);
    let mut state = Guarded::new(&[], artifact.plan().state_bytes as usize, writable);
    // What lies there before does not matter either.
    arena.bytes_mut().fill(0xff);
    state.bytes_mut().fill(0x7f);
    let mut executor = Executor::new(program, image, arena.bytes_mut(), state.bytes_mut(), &SingleThread)
        .map_err(|e| e.to_string())?;
    let whole = manifest.flags.contains(ManifestFlags::WHOLE_SEQUENCE);
    let length = 1 + random.below(MAX_TOKENS);
    let ids: Vec<u32> = (0..length).map(|_| random.below(VOCAB as usize) as u32).collect();
    let cut = if whole { length } else { 1 + random.below(length) };
    for piece in [&ids[..cut], &ids[cut..]].into_iter().filter(|piece| !piece.is_empty()) {
        let rows = if manifest.max_output_rows == 1 { 1 } else { piece.len() as u64 };
        let position = executor.position();
        executor.run(Call::Prefill, piece, position, rows).map_err(|e| e.to_string())?;
        check_outputs(&executor)?;
    }
    let seed = random.next();
    let mut sampler = Sampler::new(SamplerOptions { temperature: 0.7, top_p: 0.9, seed });
    while manifest.flags.contains(ManifestFlags::CAN_DECODE) && executor.position() < MAX_TOKENS as u64 {
        let logits = executor.logits().ok_or("no logits")?;
        let tokens = [greedy(logits), sampler.sample(logits)];
        if let Some(token) = tokens.iter().find(|token| **token >= VOCAB) {
            return Err(format!("token {token} of {VOCAB} was chosen"));
        }
        let position = executor.position();
        executor.run(Call::Decode, &tokens[1..], position, 1).map_err(|e| e.to_string())?;
        check_outputs(&executor)?;
    }
    Ok(())
}

/// Module sets are 0 or 1; all rows can be read.
fn check_outputs(executor: &Executor<'_>) -> Result<(), String> {
    for port in executor.program().outputs() {
        let view = executor.view(&port);
        for row in 0..view.rows() {
            if let Some(mask) = view.row_u8(row).and_then(|mask| mask.iter().find(|m| **m > 1)) {
                return Err(format!("{}: wanted 0 or 1, found {mask}", port.name));
            }
            let floats = view.row_f32(row).map_or(0, <[f32]>::len);
            if floats + view.row_u8(row).map_or(0, <[u8]>::len) + view.row_u32(row).map_or(0, <[u32]>::len) == 0 {
                return Err(format!("{}: row {row} cannot be read", port.name));
            }
        }
    }
    Ok(())
}
