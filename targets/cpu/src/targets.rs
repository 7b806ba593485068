//! The target table: what a compiled program may assume of the machine it will run on.
//!
//! Everything the compiler decides — kernels, tile sizes, code — is a function of a row of this table, never of the
//! machine that compiles. `native` is the exception by name: its features are those of this machine.

use lapidary_kernels::FeatureSet;

/// Instruction set architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// x86-64.
    X86_64,
    /// AArch64.
    Aarch64,
}

impl Architecture {
    /// Name in artifacts and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Architecture::X86_64 => "x86-64",
            Architecture::Aarch64 => "aarch64",
        }
    }

    /// The Rust target of programs that need nothing installed: static, with musl's C library.
    pub const fn static_triple(self) -> &'static str {
        match self {
            Architecture::X86_64 => "x86_64-unknown-linux-musl",
            Architecture::Aarch64 => "aarch64-unknown-linux-musl",
        }
    }

    /// The architecture of this machine.
    pub const fn host() -> Architecture {
        if cfg!(target_arch = "aarch64") { Architecture::Aarch64 } else { Architecture::X86_64 }
    }
}

/// A CPU target.
#[derive(Clone, Copy, Debug)]
pub struct CpuTargetRow {
    /// Name after `--target`.
    pub name: &'static str,
    /// Architecture; `None`: this machine's.
    pub architecture: Option<Architecture>,
    /// CPU features that the program may use; `None`: those of this machine.
    pub features: Option<&'static [&'static str]>,
    /// Page size of its usual operating system: modules start on such a boundary, so that each can be fetched as a unit.
    pub page_bytes: u64,
    /// Memory bandwidth that programs get, in bytes per second, where the target is one machine.
    pub memory_bytes_per_s: Option<f64>,
    /// What it stands for.
    pub doc: &'static str,
}

/// All CPU targets.
pub const CPU_TARGETS: &[CpuTargetRow] = &[
    CpuTargetRow {
        name: "native",
        architecture: None,
        features: None,
        page_bytes: 4096,
        memory_bytes_per_s: None,
        doc: "this machine, with every feature it has",
    },
    CpuTargetRow {
        name: "x86-64-v3",
        architecture: Some(Architecture::X86_64),
        features: Some(&["avx", "avx2", "fma", "f16c"]),
        page_bytes: 4096,
        memory_bytes_per_s: None,
        doc: "x86-64 with AVX2, FMA and F16C (most PCs since 2013)",
    },
    CpuTargetRow {
        name: "x86-64-v4",
        architecture: Some(Architecture::X86_64),
        features: Some(&["avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"]),
        page_bytes: 4096,
        memory_bytes_per_s: None,
        doc: "x86-64 with AVX-512 F, BW, DQ and VL",
    },
    CpuTargetRow {
        name: "rpi4",
        architecture: Some(Architecture::Aarch64),
        features: Some(&["neon"]),
        page_bytes: 4096,
        memory_bytes_per_s: Some(4e9),
        doc: "Raspberry Pi 4: Cortex-A72, NEON without dot products",
    },
    CpuTargetRow {
        name: "rpi5",
        architecture: Some(Architecture::Aarch64),
        features: Some(&["neon", "dotprod", "fp16"]),
        page_bytes: 16384,
        memory_bytes_per_s: None,
        doc: "Raspberry Pi 5: Cortex-A76, NEON with dot products, pages of 16 KiB",
    },
];

/// A target with nothing left open.
#[derive(Clone, Debug)]
pub struct CpuTarget {
    /// Its row's name.
    pub name: &'static str,
    /// Architecture.
    pub architecture: Architecture,
    /// Features that code and kernels may use.
    pub features: FeatureSet,
    /// Page size, see [`CpuTargetRow::page_bytes`].
    pub page_bytes: u64,
    /// Memory bandwidth, see [`CpuTargetRow::memory_bytes_per_s`].
    pub memory_bytes_per_s: Option<f64>,
}

impl CpuTarget {
    /// The target of that name; `native` looks at this machine.
    pub fn by_name(name: &str) -> Option<CpuTarget> {
        let row = CPU_TARGETS.iter().find(|row| row.name == name)?;
        let features = match row.features {
            Some(names) => {
                FeatureSet::from_names(names.iter().copied()).expect("the table names features that the kernels know")
            }
            None => FeatureSet::detect(),
        };
        Some(CpuTarget {
            name: row.name,
            architecture: row.architecture.unwrap_or(Architecture::host()),
            features,
            page_bytes: row.page_bytes,
            memory_bytes_per_s: row.memory_bytes_per_s,
        })
    }
}

impl CpuTarget {
    /// The target as text: what the artifact stores, and what its hash is of.
    pub fn description(&self) -> String {
        let features: Vec<&str> = self.features.iter().map(|f| f.name()).collect();
        format!(
            "name = \"{}\"\narchitecture = \"{}\"\nfeatures = [{}]\npage_bytes = {}\n",
            self.name,
            self.architecture.name(),
            features.iter().map(|f| format!("\"{f}\"")).collect::<Vec<_>>().join(", "),
            self.page_bytes
        )
    }
}
