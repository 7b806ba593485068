//! The machine that this process runs on.

use lapidary_format::Isa;
use lapidary_kernels::{FeatureSet, resolve_for};

use crate::Machine;

/// Instruction set and CPU features of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    features: FeatureSet,
}

impl Host {
    /// The instruction set that this runtime was built for.
    pub const ISA: Isa = if cfg!(target_arch = "aarch64") { Isa::Aarch64 } else { Isa::X86_64 };

    /// Asks the CPU and the operating system.
    pub fn detect() -> Self {
        #[cfg(all(target_arch = "aarch64", target_os = "linux"))]
        let features = {
            // SAFETY: `getauxval` reads the auxiliary vector, and gives 0 for what is not in it.
            let (hwcap, hwcap2) = unsafe { (libc::getauxval(libc::AT_HWCAP), libc::getauxval(libc::AT_HWCAP2)) };
            FeatureSet::from_hwcap(hwcap, hwcap2)
        };
        #[cfg(not(all(target_arch = "aarch64", target_os = "linux")))]
        let features = FeatureSet::detect();
        Self { features }
    }

    /// Its CPU features.
    pub fn features(&self) -> FeatureSet {
        self.features
    }

    /// Whether it has the CPU feature of that name.
    pub fn has_feature(&self, name: &str) -> bool {
        FeatureSet::from_names([name]).is_ok_and(|wanted| self.features.contains(wanted))
    }

    /// Calls `with` with what [`crate::Program::load`] asks about.
    pub(crate) fn machine<R>(&self, with: impl FnOnce(&Machine<'_>) -> R) -> R {
        with(&Machine {
            isa: Self::ISA,
            has_feature: &|name| self.has_feature(name),
            resolve: &|name| resolve_for(name, &self.features),
        })
    }
}
