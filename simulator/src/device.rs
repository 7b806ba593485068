//! A machine that goes on: its memories stay over runs of programs that share its DRAM.
//!
//! ```
//! use lapidary_npu_isa::{Machine, asm::assemble};
//! use lapidary_simulator::{Device, Options};
//!
//! let store = assemble(".space state, 64\nli r1, state\nstore dram[r1], sp[0], row_bytes=64\nhalt").unwrap();
//! let load = assemble(".space state, 64\nli r1, state\nload sp[0], dram[r1], row_bytes=64\nhalt").unwrap();
//! let mut device = Device::new(&Machine::preset("edge-16").unwrap(), Options::default());
//! device.write(&load, "state", &[5; 64]).unwrap();
//! device.run(&load, &mut ()).unwrap();
//! device.zero(&load, "state").unwrap();
//! device.run(&store, &mut ()).unwrap();
//! assert_eq!(device.read(&store, "state", 3).unwrap(), [5, 5, 5]);
//! ```

use std::io;

use lapidary_npu_isa::program::Segment;
use lapidary_npu_isa::{Machine, Program};

use crate::error::SimError;
use crate::memory::Memories;
use crate::observe::Observer;
use crate::report::Report;
use crate::routing::Routed;
use crate::{Options, Simulator};

/// A machine and its memories. DRAM costs only what is written of it.
///
/// A program's segments with contents are written whenever it runs; segments without are as runs and the host leave them.
#[derive(Clone, Debug)]
pub struct Device {
    machine: Machine,
    options: Options,
    memories: Memories,
}

impl Device {
    /// All memories are zero. Limits of cycles and steps are those of each run.
    pub fn new(machine: &Machine, options: Options) -> Device {
        let memories = Memories::new(machine, options.values, options.limits.dram_bytes);
        Device { machine: machine.clone(), options, memories }
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// What the memories hold.
    pub fn memories(&self) -> &Memories {
        &self.memories
    }

    /// A segment by its name, which lies within the DRAM.
    fn segment<'p>(&self, program: &'p Program, name: &str) -> Result<&'p Segment, SimError> {
        let Some(segment) = program.segments.iter().find(|segment| segment.name == name) else {
            let names: Vec<String> = program.segments.iter().map(|segment| format!("{:?}", segment.name)).collect();
            let wanted = if names.is_empty() { "none, as the program has none".into() } else { names.join(", ") };
            return Err(SimError::NoSegment { name: name.into(), wanted });
        };
        let (dram_bytes, begin) = (self.machine.dram.bytes, segment.address);
        let end = begin.saturating_add(segment.len_bytes);
        match end <= dram_bytes {
            true => Ok(segment),
            false => Err(SimError::OutsideDram { what: format!("segment {name:?}"), dram_bytes, begin, end }),
        }
    }

    /// Where `len_bytes` from `offset` on are in DRAM.
    fn place(&self, program: &Program, name: &str, offset: u64, len_bytes: u64) -> Result<u64, SimError> {
        let segment = self.segment(program, name)?;
        let end = offset.saturating_add(len_bytes);
        match end <= segment.len_bytes {
            true => Ok(segment.address + offset),
            false => {
                let (name, wanted) = (name.into(), segment.len_bytes);
                Err(SimError::OutsideSegment { name, wanted, begin: offset, end })
            }
        }
    }

    /// Writes the first bytes of a segment.
    pub fn write(&mut self, program: &Program, segment: &str, bytes: &[u8]) -> Result<(), SimError> {
        self.write_at(program, segment, 0, bytes)
    }

    /// Writes bytes of a segment from `offset` on.
    pub fn write_at(&mut self, program: &Program, segment: &str, offset: u64, bytes: &[u8]) -> Result<(), SimError> {
        let at = self.place(program, segment, offset, bytes.len() as u64)?;
        self.memories.write_dram(at, bytes).map_err(|stop| stop.of(0, segment))
    }

    /// Writes a segment piece by piece, from its first byte on.
    pub fn writer<'d>(&'d mut self, program: &'d Program, segment: &'d str) -> SegmentWriter<'d> {
        SegmentWriter { device: self, program, segment, offset: 0 }
    }

    /// The first bytes of a segment. What a run without values did not compute is an error.
    pub fn read(&self, program: &Program, segment: &str, len_bytes: u64) -> Result<Vec<u8>, SimError> {
        let at = self.place(program, segment, 0, len_bytes)?;
        if !self.memories.unknown_dram.is_known(at, at + len_bytes) {
            return Err(SimError::NotComputed { name: segment.into() });
        }
        let mut bytes = vec![0; len_bytes as usize];
        self.memories.dram.read(at, &mut bytes);
        Ok(bytes)
    }

    /// Makes a segment zero.
    pub fn zero(&mut self, program: &Program, segment: &str) -> Result<(), SimError> {
        let Segment { address, len_bytes, .. } = *self.segment(program, segment)?;
        self.memories.dram.clear(address, address + len_bytes);
        self.memories.unknown_dram.remove(address, address + len_bytes);
        Ok(())
    }

    /// Without values: a segment's bytes are not known, such as weights that nobody writes. What is computed from them is not
    /// known either, and an instruction whose course would depend on them is refused. With values nothing happens.
    pub fn forget(&mut self, program: &Program, segment: &str) -> Result<(), SimError> {
        let Segment { address, len_bytes, .. } = *self.segment(program, segment)?;
        if !self.options.values {
            self.memories.unknown_dram.add(address, address + len_bytes);
        }
        Ok(())
    }

    /// Runs a program. After an error, memories are as it left them.
    pub fn run(&mut self, program: &Program, observer: &mut impl Observer) -> Result<Report, SimError> {
        self.start(program, None, observer)
    }

    /// Runs a program whose tokens go where a routing sends them.
    pub fn run_routed(
        &mut self,
        program: &Program,
        routed: Routed<'_>,
        observer: &mut impl Observer,
    ) -> Result<Report, SimError> {
        self.start(program, Some(routed), observer)
    }

    fn start(
        &mut self,
        program: &Program,
        routed: Option<Routed<'_>>,
        observer: &mut impl Observer,
    ) -> Result<Report, SimError> {
        program.check_structure()?;
        let simulator = Simulator {
            program,
            machine: &self.machine,
            options: self.options,
            memories: Memories::none(),
            routed: None,
        };
        let mut simulator = match routed {
            Some(Routed { routing, first_token }) => simulator.routed(Routed { routing: &mut *routing, first_token }),
            None => simulator,
        };
        std::mem::swap(&mut simulator.memories, &mut self.memories);
        let (memories, ended) = match simulator.write_segments() {
            Ok(()) => simulator.run_to_end(observer),
            Err(error) => (simulator.memories, Err(error)),
        };
        self.memories = memories;
        ended.map(|(report, _)| report)
    }
}

/// Writes a segment from its first byte on.
#[derive(Debug)]
pub struct SegmentWriter<'d> {
    device: &'d mut Device,
    program: &'d Program,
    segment: &'d str,
    offset: u64,
}

impl SegmentWriter<'_> {
    /// Bytes written.
    pub fn len_bytes(&self) -> u64 {
        self.offset
    }
}

impl io::Write for SegmentWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let SegmentWriter { device, program, segment, offset } = self;
        device.write_at(program, segment, *offset, bytes).map_err(io::Error::other)?;
        *offset += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
