//! The tables of an artifact, and what must hold between them.

use crate::{
    Buffer, Component, Direction, DomainName, Dtype, Entry, Extent, Fault, Feature, FormatError, Head, Isa, Kernel,
    Manifest, ManifestFlags, NO_INDEX, Packing, Place, Plan, Port, Region, Rows, SectionKind, StateBuffer, Step, Table,
    Target, Tensor, table::TableSection,
};

/// Alignment of tensors in the weights section.
pub const TENSOR_ALIGN: u64 = 64;
/// Alignment of extents in the weights section: a page, so that one can be fetched or dropped alone.
pub const EXTENT_ALIGN: u64 = 4096;
/// Most bytes of arena and of state.
pub const MAX_MEMORY_BYTES: u64 = 1 << 40;
/// Most bytes of stack.
pub const MAX_STACK_BYTES: u64 = 1 << 32;
/// Name of the entry point for one token.
pub const ENTRY_DECODE: &str = "decode";
/// Name of the entry point for any number of tokens.
pub const ENTRY_PREFILL: &str = "prefill";
/// Name of the twin of [`ENTRY_DECODE`] that reports the end of each step.
pub const ENTRY_DECODE_PROFILE: &str = "decode.profile";
/// Name of the twin of [`ENTRY_PREFILL`] that reports the end of each step.
pub const ENTRY_PREFILL_PROFILE: &str = "prefill.profile";

const MAX_ENTRIES: usize = 16;

/// What the sections are made of: tables in full, of the others the size.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sections<'a> {
    /// Contents by [`SectionKind::index`]; weights may be empty here.
    pub bytes: [Option<&'a [u8]>; SectionKind::ALL.len()],
    pub weights_bytes: u64,
    /// Written by a newer minor version.
    pub newer: bool,
}

/// All tables, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contents<'a> {
    pub manifest: Manifest<'a>,
    pub domain_names: Table<'a, DomainName<'a>>,
    pub features: Table<'a, Feature<'a>>,
    pub plan: Plan,
    pub ports: Table<'a, Port<'a>>,
    pub buffers: Table<'a, Buffer<'a>>,
    pub state_buffers: Table<'a, StateBuffer<'a>>,
    pub kernels: Table<'a, Kernel<'a>>,
    pub entries: Table<'a, Entry<'a>>,
    pub steps: Table<'a, Step<'a>>,
    pub tensors: Table<'a, Tensor<'a>>,
    pub extents: Table<'a, Extent>,
    pub components: Table<'a, Component<'a>>,
    pub target: Table<'a, Target<'a>>,
    /// Offset of the `prefill` entry point.
    pub prefill: u64,
    /// Offset of the `decode` entry point.
    pub decode: Option<u64>,
}

impl<'a> Contents<'a> {
    pub(crate) fn parse(sections: &Sections<'a>) -> Result<Self, FormatError> {
        let section = |kind: SectionKind| {
            let bytes = sections.bytes.get(kind.index()).copied().flatten();
            let bytes = bytes.ok_or(FormatError::new(Place::SectionTable, 0, Fault::Missing { what: kind.name() }))?;
            TableSection::parse(kind, bytes, sections.newer)
        };
        let manifest = section(SectionKind::Manifest)?;
        let plan = section(SectionKind::Plan)?;
        let code_map = section(SectionKind::CodeMap)?;
        let weight_table = section(SectionKind::WeightTable)?;
        let mut this = Self {
            manifest: manifest.single()?,
            domain_names: manifest.table()?,
            features: manifest.table()?,
            plan: plan.single()?,
            ports: plan.table()?,
            buffers: plan.table()?,
            state_buffers: plan.table()?,
            kernels: section(SectionKind::Kernels)?.table()?,
            entries: code_map.table()?,
            steps: code_map.table()?,
            tensors: weight_table.table()?,
            extents: weight_table.table()?,
            components: weight_table.table()?,
            target: section(SectionKind::Target)?.table()?,
            prefill: 0,
            decode: None,
        };
        this.check_manifest()?;
        let code = sections.bytes.get(SectionKind::Code.index());
        this.check_code(code.copied().flatten().map_or(0, <[u8]>::len) as u64)?;
        this.check_plan(sections.weights_bytes)?;
        this.check_ports()?;
        this.check_weights()?;
        Ok(this)
    }

    fn check_manifest(&self) -> Result<(), FormatError> {
        let m = &self.manifest;
        let at = |fault| FormatError::new(Place::Section(SectionKind::Manifest), 0, fault);
        let within = |what, wanted: u32, found: u32| {
            if found == 0 {
                Err(at(Fault::Value { what, wanted: "at least 1", found: 0 }))
            } else {
                at_most(what, u64::from(wanted), u64::from(found)).map_err(at)
            }
        };
        within("vocab_size", NO_INDEX, m.vocab_size)?;
        within("max_tokens", NO_INDEX, m.max_tokens)?;
        within("max_chunk_tokens", m.max_tokens, m.max_chunk_tokens)?;
        within("max_output_rows", m.max_chunk_tokens, m.max_output_rows)?;
        if m.end_token != NO_INDEX {
            let last = u64::from(m.vocab_size) - 1;
            at_most("end_token", last, u64::from(m.end_token)).map_err(at)?;
        }
        if m.flags.contains(ManifestFlags::CAN_DECODE) != m.cannot_decode.is_empty() {
            return Err(at(Fault::Value {
                what: "cannot_decode (its length)",
                wanted: "a reason exactly when the model cannot decode",
                found: m.cannot_decode.len() as u64,
            }));
        }
        let whole = m.flags.contains(ManifestFlags::WHOLE_SEQUENCE);
        if !whole && m.head != Head::CausalLm {
            return Err(at(Fault::Value {
                what: "flags",
                wanted: "WHOLE_SEQUENCE (4) with a head that pools over tokens",
                found: u64::from(m.flags.bits()),
            }));
        }
        if whole && m.flags.contains(ManifestFlags::CAN_DECODE) {
            return Err(at(Fault::Value {
                what: "flags",
                wanted: "WHOLE_SEQUENCE (4) or CAN_DECODE (2), not both",
                found: u64::from(m.flags.bits()),
            }));
        }
        if !self.domain_names.is_empty() {
            exactly("number of domain names", u64::from(m.num_domains), self.domain_names.len() as u64).map_err(at)?;
        }
        Ok(())
    }

    fn check_code(&mut self, code_bytes: u64) -> Result<(), FormatError> {
        let entries = self.entries.len();
        at_most("number of entries", MAX_ENTRIES as u64, entries as u64)
            .map_err(|fault| self.entries.error(0, fault))?;
        for (index, entry) in self.entries.iter().enumerate() {
            range("Entry.offset", entry.offset, 1, code_bytes).map_err(|fault| self.entries.error(index, fault))?;
            if self.entries.iter().take(index).any(|e| e.name == entry.name) {
                let fault = Fault::Duplicate { what: "Entry.name" };
                return Err(self.entries.error(index, fault));
            }
        }
        let offset = |name| {
            let mut entries = self.entries.iter();
            entries.find(|entry| entry.name == name).map(|e| e.offset)
        };
        let missing = |what| self.entries.error(0, Fault::Missing { what });
        let prefill = offset(ENTRY_PREFILL).ok_or_else(|| missing("entry `prefill`"))?;
        let decode = offset(ENTRY_DECODE);
        if self.manifest.flags.contains(ManifestFlags::CAN_DECODE) && decode.is_none() {
            return Err(missing("entry `decode`"));
        }
        (self.prefill, self.decode) = (prefill, decode);
        for (index, step) in self.steps.iter().enumerate() {
            range("Step", step.offset, u64::from(step.bytes), code_bytes)
                .map_err(|fault| self.steps.error(index, fault))?;
            let last = entries.saturating_sub(1) as u64;
            at_most("Step.entry", last, u64::from(step.entry)).map_err(|fault| self.steps.error(index, fault))?;
        }
        Ok(())
    }

    fn check_plan(&self, weights_bytes: u64) -> Result<(), FormatError> {
        let at = |fault| FormatError::new(Place::Section(SectionKind::Plan), 0, fault);
        let plan = &self.plan;
        at_most("arena_bytes", MAX_MEMORY_BYTES, plan.arena_bytes).map_err(at)?;
        at_most("state_bytes", MAX_MEMORY_BYTES, plan.state_bytes).map_err(at)?;
        exactly("weights_bytes", weights_bytes, plan.weights_bytes).map_err(at)?;
        at_most("stack_bytes", MAX_STACK_BYTES, plan.stack_bytes).map_err(at)?;
        for (index, buffer) in self.buffers.iter().enumerate() {
            range("Buffer", buffer.offset, buffer.bytes, plan.arena_bytes)
                .and_then(|()| at_most("Buffer.first_step", u64::from(buffer.last_step), u64::from(buffer.first_step)))
                .map_err(|fault| self.buffers.error(index, fault))?;
        }
        for (index, state) in self.state_buffers.iter().enumerate() {
            range("StateBuffer", state.offset, state.bytes, plan.state_bytes)
                .map_err(|fault| self.state_buffers.error(index, fault))?;
        }
        Ok(())
    }

    fn check_ports(&self) -> Result<(), FormatError> {
        for (index, port) in self.ports.iter().enumerate() {
            self.check_port(&port).map_err(|fault| self.ports.error(index, fault))?;
        }
        Ok(())
    }

    fn check_port(&self, port: &Port<'a>) -> Result<(), Fault> {
        if port.region == Region::Ids {
            return match port.direction {
                Direction::Input => Ok(()),
                Direction::Output => Err(Fault::Value {
                    what: "Port.region",
                    wanted: "1 (arena) or 3 (segment) for an output",
                    found: port.region as u64,
                }),
            };
        }
        let wanted = match (self.manifest.isa, port.direction) {
            (Isa::Npu, Direction::Output) => Region::Segment,
            (Isa::Npu, Direction::Input) => Region::Ids,
            (Isa::X86_64 | Isa::Aarch64, _) => Region::Arena,
        };
        if port.region != wanted {
            let wanted = match wanted {
                Region::Segment => "3 (segment) for an output of an NPU",
                Region::Ids => "2 (ids) for an input of an NPU",
                Region::Arena => "1 (arena), or 2 (ids) for an input, of a CPU",
            };
            return Err(Fault::Value { what: "Port.region", wanted, found: port.region as u64 });
        }
        if port.dtype == Dtype::I4 || port.columns == 0 {
            return Err(Fault::Value {
                what: "Port.columns",
                wanted: "at least 1, of whole bytes",
                found: port.columns,
            });
        }
        let rows = match port.rows {
            Rows::Tokens => self.manifest.max_chunk_tokens,
            Rows::OutputRows => self.manifest.max_output_rows,
            Rows::One => 1,
        };
        let element = u64::from(port.dtype.bits() / 8);
        let row_bytes = port.columns.saturating_mul(element);
        if port.region == Region::Segment {
            // Where segments lie, and how long they are, is in the programs.
            exactly("Port.offset", 0, port.offset)?;
            return exactly("Port.row_stride_bytes", row_bytes, port.row_stride_bytes);
        }
        at_most("bytes of a row", port.row_stride_bytes, row_bytes)?;
        if !port.offset.is_multiple_of(element) || !port.row_stride_bytes.is_multiple_of(element) {
            return Err(Fault::Value {
                what: "Port.offset",
                wanted: "offset and stride that are multiples of the element",
                found: port.offset,
            });
        }
        let before_last = port.row_stride_bytes.saturating_mul(u64::from(rows) - 1);
        let bytes = before_last.saturating_add(row_bytes);
        range("Port", port.offset, bytes, self.plan.arena_bytes)
    }

    fn check_weights(&self) -> Result<(), FormatError> {
        let weights_bytes = self.plan.weights_bytes;
        for (index, tensor) in self.tensors.iter().enumerate() {
            range("Tensor", tensor.offset, tensor.bytes, weights_bytes)
                .and_then(|()| aligned("Tensor.offset", tensor.offset, TENSOR_ALIGN))
                .and_then(|()| match tensor.packing {
                    Packing::RowMajor => exactly("Tensor.panel_width", 0, u64::from(tensor.panel_width)),
                    Packing::Panels if tensor.panel_width == 0 => {
                        Err(Fault::Value { what: "Tensor.panel_width", wanted: "at least 1", found: 0 })
                    }
                    Packing::Panels => Ok(()),
                })
                .map_err(|fault| self.tensors.error(index, fault))?;
        }
        let mut end = 0;
        for (index, extent) in self.extents.iter().enumerate() {
            let below = |what, index: u32, count: u32| match index {
                NO_INDEX => Ok(()),
                index if index < count => Ok(()),
                index => {
                    Err(Fault::AtMost { what, wanted: u64::from(count.saturating_sub(1)), found: u64::from(index) })
                }
            };
            range("Extent", extent.offset, extent.bytes, weights_bytes)
                .and_then(|()| aligned("Extent.offset", extent.offset, EXTENT_ALIGN))
                .and_then(|()| below("Extent.layer", extent.layer, self.manifest.num_layers))
                .and_then(|()| below("Extent.module", extent.module, self.manifest.num_clusters))
                .and_then(|()| {
                    if extent.offset < end {
                        return Err(Fault::Overlap { previous_end: end, found: extent.offset });
                    }
                    Ok(())
                })
                .map_err(|fault| self.extents.error(index, fault))?;
            end = extent.offset + extent.bytes;
        }
        at_most("number of targets", 1, self.target.len() as u64).map_err(|fault| self.target.error(0, fault))
    }
}

fn at_most(what: &'static str, wanted: u64, found: u64) -> Result<(), Fault> {
    if found <= wanted { Ok(()) } else { Err(Fault::AtMost { what, wanted, found }) }
}

fn exactly(what: &'static str, wanted: u64, found: u64) -> Result<(), Fault> {
    if found == wanted { Ok(()) } else { Err(Fault::Exactly { what, wanted, found }) }
}

fn aligned(what: &'static str, found: u64, align: u64) -> Result<(), Fault> {
    if found.is_multiple_of(align) {
        return Ok(());
    }
    let wanted = if align == TENSOR_ALIGN { "a multiple of 64" } else { "a multiple of 4096" };
    Err(Fault::Value { what, wanted, found })
}

/// `offset..offset + bytes` lies within `limit` bytes.
fn range(what: &'static str, offset: u64, bytes: u64, limit: u64) -> Result<(), Fault> {
    at_most(what, limit, offset.saturating_add(bytes))
}
