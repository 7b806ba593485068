//! An artifact that this machine can run.

use lapidary_format::{
    Artifact, Direction, Dtype, Head, Isa, Manifest, Port, Region, Rows, TENSOR_ALIGN,
    abi::{ABI_VERSION, KernelFn},
};

use crate::{LoadError, ShortText};

/// Name of the output of a causal language model.
pub(crate) const LOGITS: &str = "logits";
/// Name of the output of the other heads.
pub(crate) const OUTPUT: &str = "output";

/// What the machine under this runtime can do.
#[derive(Clone, Copy)]
pub struct Machine<'m> {
    /// Its instruction set.
    pub isa: Isa,
    /// Whether it has a CPU feature, named as Rust's `target_feature` does.
    pub has_feature: &'m dyn Fn(&str) -> bool,
    /// Finds a kernel by its name.
    pub resolve: &'m dyn Fn(&str) -> Option<KernelFn>,
}

impl core::fmt::Debug for Machine<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Machine").field("isa", &self.isa).finish_non_exhaustive()
    }
}

/// An artifact whose needs this machine meets, with its kernels found.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    artifact: Artifact<'a>,
    kernels: &'a [Option<KernelFn>],
}

impl<'a> Program<'a> {
    /// Checks an artifact against the machine and looks up its kernels.
    ///
    /// `file` is the whole `.lapis` file at a 64-byte aligned address. `kernels` is room for the kernel table: as
    /// many slots as [`Artifact::kernels`] has records, or more.
    pub fn load(file: &'a [u8], machine: &Machine<'_>, kernels: &'a mut [Option<KernelFn>]) -> Result<Self, LoadError> {
        let artifact = Artifact::parse(file)?;
        Self::link(artifact, machine, kernels)
    }

    /// [`Program::load`] of an artifact that is parsed already.
    pub fn link(
        artifact: Artifact<'a>,
        machine: &Machine<'_>,
        kernels: &'a mut [Option<KernelFn>],
    ) -> Result<Self, LoadError> {
        let manifest = artifact.manifest();
        // First, since an NPU's artifact counts the versions of another contract.
        if manifest.isa != machine.isa {
            return Err(LoadError::Isa { wanted: machine.isa, found: manifest.isa });
        }
        if manifest.abi_version != ABI_VERSION {
            return Err(LoadError::Abi { wanted: ABI_VERSION, found: manifest.abi_version });
        }
        let lacks = |name: &str| !(machine.has_feature)(name);
        if artifact.features().iter().any(|feature| lacks(feature.name)) {
            let names = artifact.features().iter().map(|feature| feature.name);
            return Err(LoadError::MissingFeatures { missing: ShortText::joined(names.filter(|name| lacks(name))) });
        }
        check_aligned("weights", artifact.weights().as_ptr())?;
        let wanted = artifact.kernels().len();
        let found = kernels.len();
        let Some(kernels) = kernels.get_mut(..wanted) else {
            return Err(LoadError::TooSmall {
                what: "kernel table",
                wanted: (wanted * size_of::<KernelFn>()) as u64,
                found: (found * size_of::<KernelFn>()) as u64,
            });
        };
        for (index, (slot, kernel)) in kernels.iter_mut().zip(artifact.kernels()).enumerate() {
            let found = (machine.resolve)(kernel.name);
            *slot = Some(found.ok_or_else(|| LoadError::MissingKernel { index, name: ShortText::new(kernel.name) })?);
        }
        let this = Self { artifact, kernels };
        this.check_output()?;
        Ok(this)
    }

    /// The output that the head ends in is there.
    fn check_output(&self) -> Result<(), LoadError> {
        let manifest = self.manifest();
        let head = manifest.head;
        let (name, rows, columns) = match head {
            Head::CausalLm => (LOGITS, Rows::OutputRows, manifest.vocab_size),
            Head::SequenceClassification => (OUTPUT, Rows::One, manifest.num_labels),
            Head::Embedding => (OUTPUT, Rows::One, manifest.hidden_size),
        };
        let fits = |port: Port<'_>| {
            (port.name, port.dtype, port.rows) == (name, Dtype::F32, rows) && port.columns == u64::from(columns)
        };
        if self.outputs().any(fits) {
            return Ok(());
        }
        Err(LoadError::MissingOutput { name, columns, head })
    }

    /// The artifact.
    pub fn artifact(&self) -> &Artifact<'a> {
        &self.artifact
    }

    /// What the artifact is.
    pub fn manifest(&self) -> &Manifest<'a> {
        self.artifact.manifest()
    }

    /// Kernels, all found.
    pub fn kernels(&self) -> &'a [Option<KernelFn>] {
        self.kernels
    }

    /// Outputs in the arena.
    pub fn outputs(&self) -> impl Iterator<Item = Port<'a>> + use<'a> {
        self.artifact.ports().iter().filter(|port| port.direction == Direction::Output && port.region == Region::Arena)
    }
}

/// Which entry point to call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Any number of tokens up to the compiled maximum.
    Prefill,
    /// One token.
    Decode,
}

/// Rows of a port in a call of `tokens` tokens with `output_rows` rows through the head.
pub(crate) fn rows_of(port: &Port<'_>, tokens: u64, output_rows: u64) -> u64 {
    match port.rows {
        Rows::Tokens => tokens,
        Rows::OutputRows => output_rows,
        Rows::One => 1,
    }
}

pub(crate) fn check_aligned(what: &'static str, address: *const u8) -> Result<(), LoadError> {
    let wanted = TENSOR_ALIGN as usize;
    match address.addr() % wanted {
        0 => Ok(()),
        found => Err(LoadError::Unaligned { what, wanted, found }),
    }
}
