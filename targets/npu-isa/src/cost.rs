//! Cost classes: how many cycles an instruction occupies its unit. The symbols are those of `ISA.md`'s chapter on timing.

macro_rules! cost_classes {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal, $formula:literal;)*) => {
        /// How an instruction's time is computed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum CostClass {
            $($(#[doc = $doc])* $name,)*
        }

        impl CostClass {
            /// Every class.
            pub const ALL: &[CostClass] = &[$(CostClass::$name),*];

            /// Its name in tables.
            pub const fn name(self) -> &'static str {
                match self {
                    $(CostClass::$name => $text,)*
                }
            }

            /// Cycles, as in `ISA.md`.
            pub const fn formula(self) -> &'static str {
                match self {
                    $(CostClass::$name => $formula,)*
                }
            }

            /// What it is for.
            pub const fn about(self) -> &'static str {
                match self {
                    $(CostClass::$name => concat!($($doc),*),)*
                }
            }
        }
    };
}

cost_classes! {
    /// Scalar work and control.
    Scalar = "scalar", "1";
    /// A word of the scratchpad to a register.
    ScalarLoad = "scalar-load", "sequencer.load_cycles";
    /// Waiting and posting alone.
    Sync = "sync", "1, of no unit (Q4)";
    /// DMA of a box.
    Dma = "dma", "rules D1 to D6";
    /// DMA by a list.
    DmaIndexed = "dma-indexed", "rules D1 to D6";
    /// DMA that reads, adds and writes.
    DmaAdd = "dma-add", "rules D1 to D7";
    /// A tile into the array.
    Preload = "preload", "R, rules M1 to M4";
    /// Rows through the array.
    Pass = "pass", "rows + R + C − 2, rules M1 to M4";
    /// One operation per element.
    Simple = "simple", "V(S, 1, 0)";
    /// A division or a root per element.
    Divide = "divide", "V(S, div, 0)";
    /// An exponential per element.
    Exp = "exp", "V(S, exp, 0)";
    /// A logarithm per element.
    Ln = "ln", "V(S, ln, 0)";
    /// An exponential and a division per element.
    Sigmoid = "sigmoid", "V(S, exp + div + 1, 0)";
    /// One result per row or column.
    Reduce = "reduce", "V(S, 1, tree)";
    /// Largest, exponentials, sum, quotients.
    Softmax = "softmax", "V(S, exp + div + 3, 2·tree)";
    /// Sum of squares, then two products per element.
    Norm = "norm", "V(S, 3, tree + 2·div·rows)";
    /// Four products per pair.
    Rotate = "rotate", "V(rows·heads·⌈half/L⌉, 4, 0)";
    /// Largest size, then product and rounding.
    Quantize = "quantize", "V(S, 2, tree + 2·div·rows)";
    /// Two products per element.
    Rescale = "rescale", "V(S, 1, 0)";
    /// A dot product per pair of rows.
    Dot = "dot", "V(rows·b_rows·⌈cols/L⌉, 1, tree)";
    /// A multiply-add per weight and row.
    Mix = "mix", "V(rows·b_rows·⌈cols/L⌉, 1, 0)";
    /// Rows by a list.
    Rows = "rows", "V(rows·⌈row_bytes/(4·L)⌉, 1, 0), v.scatter_add V(rows·⌈cols/L⌉, 1, 0)";
    /// Selection along rows.
    SelectRows = "select-rows", "P + rows·⌈cols/Q⌉·(min(k, 32) + 1)";
    /// Selection along columns.
    SelectColumns = "select-columns", "P + cols·⌈rows/Q⌉·(min(cap, 32) + 1)";
    /// Selection along both.
    SelectBoth = "select-both", "P + rows·⌈cols/Q⌉·(min(k, 32) + 1) + cols·⌈rows/Q⌉·(min(cap, 32) + 1)";
    /// Counting sort: histogram, prefix sum, placing.
    Group = "group", "P + 2·⌈rows·cols/Q⌉ + cols + N";
    /// Elements of a selection in the order of the sort.
    Compact = "compact", "P + ⌈rows·cols/Q⌉ + N";
    /// Two words.
    Ring = "ring", "P + 2";
    /// A merge that writes one key per cycle.
    Admit = "admit", "P + 1 + N";
    /// Consecutive numbers.
    Iota = "iota", "P + ⌈count/Q⌉";
}
