//! The keys of a machine file: names, bounds, meaning. Structs, reading, `--set`, listing and the hash come from these rows.

use alloc::string::{String, ToString};

use super::{DramPreset, MachineError};

/// What a key can be set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// An integer between the two, both allowed.
    Number(u64, u64),
    /// `true` or `false`.
    Flag,
    /// A name of [`DramPreset`].
    Preset,
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct KeyRow {
    /// With its section: `matrix.rows`.
    pub name: &'static str,
    /// What it can be set to.
    pub kind: KeyKind,
    /// What it says.
    pub about: &'static str,
}

/// A value on its way to a key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Given<'a> {
    Number(i128),
    Flag(bool),
    Text(&'a str),
    /// Of a TOML file, what is none of these.
    #[cfg_attr(not(feature = "std"), allow(dead_code))]
    Other(&'static str),
}

impl core::fmt::Display for Given<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Given::Number(n) => write!(f, "{n}"),
            Given::Flag(b) => write!(f, "{b}"),
            Given::Text(t) => write!(f, "{:?}", t.chars().take(40).collect::<String>()),
            Given::Other(kind) => f.write_str(kind),
        }
    }
}

/// A type that a key can have.
pub(super) trait Setting: Sized {
    fn read(row: &KeyRow, given: Given<'_>) -> Result<Self, MachineError>;
    fn text(&self) -> String;
}

impl Setting for u64 {
    fn read(row: &KeyRow, given: Given<'_>) -> Result<Self, MachineError> {
        let KeyKind::Number(least, most) = row.kind else { return Err(MachineError::value(row, given)) };
        match given {
            Given::Number(n) => u64::try_from(n).ok().filter(|n| (least..=most).contains(n)),
            Given::Flag(_) | Given::Text(_) | Given::Other(_) => None,
        }
        .ok_or_else(|| MachineError::value(row, given))
    }
    fn text(&self) -> String {
        self.to_string()
    }
}

impl Setting for bool {
    fn read(row: &KeyRow, given: Given<'_>) -> Result<Self, MachineError> {
        match given {
            Given::Flag(b) => Ok(b),
            Given::Number(_) | Given::Text(_) | Given::Other(_) => Err(MachineError::value(row, given)),
        }
    }
    fn text(&self) -> String {
        self.to_string()
    }
}

impl Setting for DramPreset {
    fn read(row: &KeyRow, given: Given<'_>) -> Result<Self, MachineError> {
        match given {
            Given::Text(t) => DramPreset::by_name(t),
            Given::Flag(_) | Given::Number(_) | Given::Other(_) => None,
        }
        .ok_or_else(|| MachineError::value(row, given))
    }
    fn text(&self) -> String {
        self.name().into()
    }
}

macro_rules! kind {
    (u64 $least:literal $most:literal) => {
        KeyKind::Number($least, $most)
    };
    (bool) => {
        KeyKind::Flag
    };
    (DramPreset) => {
        KeyKind::Preset
    };
}

macro_rules! machine {
    (
        top { $($(#[doc = $tdoc:literal])* $top:ident: $tty:tt $(in $tleast:literal..=$tmost:literal)?;)* }
        $($(#[doc = $sdoc:literal])* $section:ident: $name:ident {
            $($(#[doc = $doc:literal])* $key:ident: $ty:tt $(in $least:literal..=$most:literal)?;)*
        })*
    ) => {
        /// A machine. All values are within the bounds of [`KEYS`] and fit each other.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Machine {
            /// What reports call it.
            pub(super) name: String,
            $($(#[doc = $tdoc])* pub $top: $tty,)*
            $($(#[doc = $sdoc])* pub $section: $name,)*
        }

        $(
            $(#[doc = $sdoc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
            pub struct $name {
                $($(#[doc = $doc])* pub $key: $ty,)*
            }
        )*

        /// Every key but `name`, in the order of listings and of the hash.
        pub const KEYS: &[KeyRow] = &[
            $(KeyRow {
                name: stringify!($top),
                kind: kind!($tty $($tleast $tmost)?),
                about: concat!($($tdoc),*),
            },)*
            $($(KeyRow {
                name: concat!(stringify!($section), ".", stringify!($key)),
                kind: kind!($ty $($least $most)?),
                about: concat!($($doc),*),
            },)*)*
        ];

        impl Machine {
            pub(super) fn empty() -> Machine {
                Machine { name: String::new(), $($top: <$tty>::default(),)* $($section: <$name>::default(),)* }
            }

            pub(super) fn store(&mut self, row: &KeyRow, given: Given<'_>) -> Result<(), MachineError> {
                match row.name {
                    $(stringify!($top) => self.$top = Setting::read(row, given)?,)*
                    $($(concat!(stringify!($section), ".", stringify!($key)) => {
                        self.$section.$key = Setting::read(row, given)?;
                    })*)*
                    _ => return Err(MachineError::unknown(row.name)),
                }
                Ok(())
            }

            /// Every key with its value as text, in the order of [`KEYS`].
            pub fn settings(&self) -> impl Iterator<Item = (&'static KeyRow, String)> {
                let values = [
                    $(self.$top.text(),)*
                    $($(self.$section.$key.text(),)*)*
                ];
                KEYS.iter().zip(values)
            }
        }
    };
}

machine! {
    top {
        /// Clock of all units, MHz.
        clock_mhz: u64 in 1..=10000;
        /// Cores. A program runs on one.
        cores: u64 in 1..=1024;
    }
    /// The array.
    matrix: MatrixUnit {
        /// R: rows of the array, inputs of a tile.
        rows: u64 in 1..=256;
        /// C: columns of the array, outputs of a tile.
        cols: u64 in 1..=256;
        /// Whether the next tile of weights loads while this one computes.
        weight_overlap: bool;
    }
    /// The vector unit.
    vector: VectorUnit {
        /// L: elements per step.
        lanes: u64 in 1..=1024;
        /// Cycles before the first step of an instruction.
        startup_cycles: u64 in 0..=1000;
        /// div: cycles of a step that divides or takes a root.
        divide_cycles: u64 in 1..=64;
        /// exp: cycles of a step that takes an exponential.
        exp_cycles: u64 in 1..=64;
        /// ln: cycles of a step that takes a logarithm.
        ln_cycles: u64 in 1..=64;
        /// tree: cycles from the last step of a reduction to its result.
        tree_cycles: u64 in 0..=64;
    }
    /// The routing unit.
    route: RouteUnit {
        /// Q: elements per cycle.
        lanes: u64 in 1..=1024;
        /// P: cycles before the first element of an instruction.
        startup_cycles: u64 in 0..=1000;
    }
    /// The sequencer.
    sequencer: Sequencer {
        /// Cycles of `lds`.
        load_cycles: u64 in 1..=1000;
    }
    /// The queues.
    queue: QueueUnit {
        /// Instructions that each of the five holds, the one that is executed not counted.
        depth: u64 in 1..=256;
    }
    /// The activation scratchpad.
    scratchpad: Scratchpad {
        /// Its size.
        bytes: u64 in 1024..=1073741824;
        /// Banks: equal parts that follow each other.
        banks: u64 in 1..=1024;
        /// Ports of a bank on the side of the units.
        ports: u64 in 1..=8;
    }
    /// The weight buffer.
    weights: WeightBuffer {
        /// Its size.
        bytes: u64 in 256..=1073741824;
    }
    /// The accumulators.
    accumulators: Accumulators {
        /// Their size; a row has 4·C bytes.
        bytes: u64 in 64..=1073741824;
    }
    /// The DMA engine.
    dma: DmaEngine {
        /// Instructions that it works on at a time, of both queues.
        channels: u64 in 1..=64;
        /// Bytes of a request, a power of two.
        burst_bytes: u64 in 8..=4096;
        /// Requests in flight of a channel.
        outstanding: u64 in 1..=4096;
        /// Cycles before the first request of an instruction.
        setup_cycles: u64 in 0..=10000;
    }
    /// Memory off chip.
    dram: Dram {
        /// Where the keys of this section that are not given come from; `ideal` has no latency and no limit.
        preset: DramPreset;
        /// Its size.
        bytes: u64 in 4096..=1099511627776;
        /// Channels, in turn by requests.
        channels: u64 in 1..=64;
        /// Banks of a channel.
        banks: u64 in 1..=256;
        /// Bytes of a row of a bank.
        row_bytes: u64 in 64..=1048576;
        /// Data lines of a channel.
        bus_bits: u64 in 4..=1024;
        /// Transfers per second and line, in millions.
        rate_mts: u64 in 1..=100000;
        /// Activate to column command, ps.
        trcd_ps: u64 in 0..=1000000;
        /// Precharge to activate, ps.
        trp_ps: u64 in 0..=1000000;
        /// Column command to data, ps.
        tcl_ps: u64 in 0..=1000000;
        /// Activate to precharge, ps.
        tras_ps: u64 in 0..=1000000;
        /// Duration of a refresh, ps.
        trfc_ps: u64 in 0..=10000000;
        /// From refresh to refresh, ps; 0: never.
        trefi_ps: u64 in 0..=1000000000;
    }
    /// Energy, in femtojoules.
    energy: Energy {
        /// Per multiply-add of int8 codes.
        mac_i8_fj: u64 in 0..=1000000000;
        /// Per multiply-add of int8 and int4 codes.
        mac_i4_fj: u64 in 0..=1000000000;
        /// Per lane and cycle of a step of the vector unit.
        vector_op_fj: u64 in 0..=1000000000;
        /// Per element and cycle of the routing unit.
        route_op_fj: u64 in 0..=1000000000;
        /// Per instruction that the sequencer executes or issues.
        instruction_fj: u64 in 0..=1000000000;
        /// Per byte of the scratchpad read or written.
        scratchpad_byte_fj: u64 in 0..=1000000000;
        /// Per byte of the weight buffer read or written.
        weights_byte_fj: u64 in 0..=1000000000;
        /// Per byte of the accumulators read or written.
        accumulators_byte_fj: u64 in 0..=1000000000;
        /// Per byte on the DRAM's bus.
        dram_byte_fj: u64 in 0..=1000000000;
    }
}
