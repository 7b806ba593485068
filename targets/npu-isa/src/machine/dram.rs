//! DRAM presets.

use super::keys::Dram;

/// A kind of DRAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DramPreset {
    /// No latency, no limit: DMA instructions take one cycle.
    #[default]
    Ideal,
    /// LPDDR4 as a Raspberry Pi 4 delivers it.
    Lpddr4,
    /// LPDDR5-6400, two channels of 16 bits.
    Lpddr5,
    /// DDR4-3200, one module of 64 bits.
    Ddr4,
    /// Every key is given.
    Custom,
}

impl DramPreset {
    /// Every preset.
    pub const ALL: &[DramPreset] =
        &[DramPreset::Ideal, DramPreset::Lpddr4, DramPreset::Lpddr5, DramPreset::Ddr4, DramPreset::Custom];

    /// Its name in machine files.
    pub const fn name(self) -> &'static str {
        match self {
            DramPreset::Ideal => "ideal",
            DramPreset::Lpddr4 => "lpddr4",
            DramPreset::Lpddr5 => "lpddr5",
            DramPreset::Ddr4 => "ddr4",
            DramPreset::Custom => "custom",
        }
    }

    /// By its name, in any case.
    pub fn by_name(name: &str) -> Option<DramPreset> {
        DramPreset::ALL.iter().copied().find(|p| p.name().eq_ignore_ascii_case(name))
    }

    /// Its values; `Custom` has none.
    pub const fn values(self) -> Option<Dram> {
        let preset = self;
        match self {
            DramPreset::Custom => None,
            // Nothing of it is used but the size; the numbers are those of an interface that costs nothing.
            DramPreset::Ideal => Some(Dram {
                preset,
                bytes: 4 << 30,
                channels: 1,
                banks: 1,
                row_bytes: 2048,
                bus_bits: 1024,
                rate_mts: 100_000,
                trcd_ps: 0,
                trp_ps: 0,
                tcl_ps: 0,
                tras_ps: 0,
                trfc_ps: 0,
                trefi_ps: 0,
            }),
            // A Raspberry Pi 4 has LPDDR4-3200 on 32 lines, of which about 4 GB/s reach its cores: the figure that this
            // project plans with. Modelled as what delivers that: one channel of 16 lines at 2133 MT/s, 4.27 GB/s less 7.2 %
            // of refresh. JESD209-4: 8 banks, pages of 2 KiB, tRCD and tRP (per bank) 18 ns, tRAS 42 ns, read latency 20
            // clocks of 0.9375 ns at this rate, tRFCab 280 ns for 8 Gb per channel, tREFI 3.904 µs. 4 GiB as the board.
            DramPreset::Lpddr4 => Some(Dram {
                preset,
                bytes: 4 << 30,
                channels: 1,
                banks: 8,
                row_bytes: 2048,
                bus_bits: 16,
                rate_mts: 2133,
                trcd_ps: 18_000,
                trp_ps: 18_000,
                tcl_ps: 18_750,
                tras_ps: 42_000,
                trfc_ps: 280_000,
                trefi_ps: 3_904_000,
            }),
            // JESD209-5: x16 channels, 16 banks, pages of 2 KiB, tRCD and tRP (per bank) 18 ns, tRAS 42 ns, tRFCab 280 ns for
            // 16 Gb, tREFI 3.906 µs; read latency 17 clocks of 1.25 ns at 6400 MT/s. Two channels (25.6 GB/s) as in a phone
            // of the middle class; 8 GiB.
            DramPreset::Lpddr5 => Some(Dram {
                preset,
                bytes: 8 << 30,
                channels: 2,
                banks: 16,
                row_bytes: 2048,
                bus_bits: 16,
                rate_mts: 6400,
                trcd_ps: 18_000,
                trp_ps: 18_000,
                tcl_ps: 21_250,
                tras_ps: 42_000,
                trfc_ps: 280_000,
                trefi_ps: 3_906_000,
            }),
            // JESD79-4, speed bin 3200AA (22-22-22, 0.625 ns): 13.75 ns each, tRAS 32 ns, tRFC1 350 ns and tREFI 7.8 µs for 8 Gb.
            // x8 devices have 16 banks and pages of 1 KiB, eight of them side by side.
            DramPreset::Ddr4 => Some(Dram {
                preset,
                bytes: 8 << 30,
                channels: 1,
                banks: 16,
                row_bytes: 8192,
                bus_bits: 64,
                rate_mts: 3200,
                trcd_ps: 13_750,
                trp_ps: 13_750,
                tcl_ps: 13_750,
                tras_ps: 32_000,
                trfc_ps: 350_000,
                trefi_ps: 7_800_000,
            }),
        }
    }
}
