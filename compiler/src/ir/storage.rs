//! How weights and cached keys and values are stored, and how many bytes that takes.

use core::fmt;

use super::DType;

/// Inputs that share a scale in [`Storage::Int4`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Int4Group {
    /// 32 inputs.
    G32,
    /// 64 inputs.
    G64,
    /// 128 inputs.
    G128,
}

impl Int4Group {
    /// Inputs of a group; the last of a row may have fewer.
    pub const fn elems(self) -> u64 {
        match self {
            Int4Group::G32 => 32,
            Int4Group::G64 => 64,
            Int4Group::G128 => 128,
        }
    }

    /// The group of that many inputs.
    pub fn by_elems(elems: u64) -> Option<Int4Group> {
        [Int4Group::G32, Int4Group::G64, Int4Group::G128].into_iter().find(|g| g.elems() == elems)
    }
}

/// How a weight is stored in the artifact, and so which numbers the kernels read. `docs/quantization.md` has the formulas.
///
/// A matrix in [`Storage::Int8`] or [`Storage::Int4`] also says that what it is multiplied by is quantized: `linear`,
/// `linear.swiglu`, `expert.linear`, `expert.apply` and `expert.ffn` round each activation row to int8 first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Storage {
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// bfloat16, as in checkpoints; no kernel reads it.
    Bf16,
    /// Codes in −127..=127 and one f32 scale per row (output).
    Int8,
    /// Codes in −8..=7, two per byte, and one f16 scale per row and group of inputs.
    Int4(Int4Group),
}

impl Storage {
    /// All storages.
    pub const ALL: [Storage; 7] = [
        Storage::F32,
        Storage::F16,
        Storage::Bf16,
        Storage::Int8,
        Storage::Int4(Int4Group::G32),
        Storage::Int4(Int4Group::G64),
        Storage::Int4(Int4Group::G128),
    ];

    /// Name in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            Storage::F32 => "f32",
            Storage::F16 => "f16",
            Storage::Bf16 => "bf16",
            Storage::Int8 => "int8",
            Storage::Int4(Int4Group::G32) => "int4:32",
            Storage::Int4(Int4Group::G64) => "int4:64",
            Storage::Int4(Int4Group::G128) => "int4:128",
        }
    }

    /// The storage of that name.
    pub fn by_name(name: &str) -> Option<Storage> {
        Storage::ALL.into_iter().find(|s| s.name() == name)
    }

    /// The storage that holds a tensor of floats as it is; `None` for types that are no floats.
    pub const fn of_dtype(dtype: DType) -> Option<Storage> {
        match dtype {
            DType::F32 => Some(Storage::F32),
            DType::F16 => Some(Storage::F16),
            DType::BF16 => Some(Storage::Bf16),
            DType::U32 | DType::U8 => None,
        }
    }

    /// The element type of float storage; `None` for codes with scales.
    pub const fn float(self) -> Option<DType> {
        match self {
            Storage::F32 => Some(DType::F32),
            Storage::F16 => Some(DType::F16),
            Storage::Bf16 => Some(DType::BF16),
            Storage::Int8 | Storage::Int4(_) => None,
        }
    }

    /// Codes with scales.
    pub const fn is_integer(self) -> bool {
        self.float().is_none()
    }

    /// Bytes of a row of `cols` elements: codes and scales, without the padding of any packing.
    pub const fn row_bytes(self, cols: u64) -> u64 {
        match self {
            Storage::F32 => cols * 4,
            Storage::F16 | Storage::Bf16 => cols * 2,
            Storage::Int8 => cols + 4,
            Storage::Int4(group) => cols.div_ceil(2) + cols.div_ceil(group.elems()) * 2,
        }
    }

    /// Bytes of `rows` rows of `cols` elements.
    pub const fn bytes(self, rows: u64, cols: u64) -> u64 {
        rows * self.row_bytes(cols)
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How causal attention keeps keys and values between calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KvStorage {
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// Per token and head: codes in −127..=127, then one f32 scale.
    Int8,
}

impl KvStorage {
    /// All storages.
    pub const ALL: [KvStorage; 3] = [KvStorage::F32, KvStorage::F16, KvStorage::Int8];

    /// Their names, as the `kv_cache` attribute takes them.
    pub const NAMES: [&'static str; 3] = [KvStorage::F32.name(), KvStorage::F16.name(), KvStorage::Int8.name()];

    /// Name in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            KvStorage::F32 => "f32",
            KvStorage::F16 => "f16",
            KvStorage::Int8 => "int8",
        }
    }

    /// The storage of that name.
    pub fn by_name(name: &str) -> Option<KvStorage> {
        KvStorage::ALL.into_iter().find(|s| s.name() == name)
    }

    /// Bytes of one token's key (or value) of one head: `head_dim` elements; for int8 the codes, padded to a multiple of
    /// 4, then the scale. `None` if they are beyond 64 bits.
    pub const fn row_bytes(self, head_dim: u64) -> Option<u64> {
        match self {
            KvStorage::F32 => head_dim.checked_mul(4),
            KvStorage::F16 => head_dim.checked_mul(2),
            KvStorage::Int8 => match head_dim.checked_next_multiple_of(4) {
                Some(codes) => codes.checked_add(4),
                None => None,
            },
        }
    }
}

impl fmt::Display for KvStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
