//! How large a graph may be: bounds that the verifier and the parser hold every graph to, so that no product of sizes
//! overflows 64 bits later and no file makes the compiler allocate without end.

/// Columns of an activation, and its rows when they are a number.
pub const MAX_COLS: u64 = 1 << 24;
/// `max_per_token` of a symbol, and so clusters of a model.
pub const MAX_PER_TOKEN: u64 = 1 << 12;
/// Longest sequence.
pub const MAX_POSITIONS: u64 = 1 << 20;
/// Elements of a weight.
pub const MAX_WEIGHT_ELEMS: u64 = 1 << 36;
/// Columns of a weight stored in integers: sums of products of codes stay below 2^31.
pub const MAX_QUANTIZED_COLS: u64 = 1 << 17;
/// Elements of all weights together.
pub const MAX_TOTAL_WEIGHT_ELEMS: u64 = 1 << 40;
/// How many derivations may lie between a weight and the numbers it comes from.
pub const MAX_WEIGHT_DEPTH: u32 = 8;
/// Nodes, values, weights and symbols of a graph, each.
pub const MAX_ENTITIES: usize = 1 << 20;
/// Operands of all nodes together.
pub const MAX_OPERANDS: usize = 1 << 22;
/// Bytes of a `.lir` file.
pub const MAX_TEXT_BYTES: usize = 1 << 26;
