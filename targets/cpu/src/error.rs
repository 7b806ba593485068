//! Why a planned graph did not become code.

use lapidary_compiler::ir::Node;

/// An error of lowering; names the node and what it lacks.
#[derive(Debug, thiserror::Error)]
pub enum LowerError {
    /// The kernel table has no row for it.
    #[error("target {target}: wanted a kernel for {op} with {weight} weights, found none in the kernel table")]
    NoKernel {
        /// Operation.
        op: String,
        /// Weight type.
        weight: String,
        /// Target.
        target: String,
    },
    /// Two kernels that share weights read different panels.
    #[error("target {target}: wanted one panel width for both matrix kernels, found {matrix} and {vector}")]
    PanelWidths {
        /// Of the matrix-matrix kernel.
        matrix: u64,
        /// Of the matrix-vector kernel.
        vector: u64,
        /// Target.
        target: String,
    },
    /// An op that only earlier phases know.
    #[error("{node}: {op} cannot be lowered to CPU code\nhint: {hint}")]
    NotLowerable {
        /// Node label.
        node: String,
        /// Op name.
        op: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A selection policy without a kernel.
    #[error("{node}: wanted a selection policy that this target knows, found {found}")]
    Policy {
        /// Node label.
        node: String,
        /// The policy.
        found: &'static str,
    },
    /// The memory plan left out a node's working memory.
    #[error("{node}: wanted working memory for {role}, found none in the memory plan")]
    MissingScratch {
        /// Node label.
        node: String,
        /// Role.
        role: String,
    },
    /// An activation in a type that no kernel takes.
    #[error("{node}: {op} wants f32 activations, found {found}")]
    ActivationType {
        /// Node label.
        node: String,
        /// Op name.
        op: &'static str,
        /// Type found.
        found: &'static str,
    },
    /// A weight stored in a type that its kernel does not read.
    #[error(
        "{node}: wanted a weight stored as f32, f16, int8 or int4, found {found}\nhint: pass choose-formats sets the storage"
    )]
    WeightStorage {
        /// Node label.
        node: String,
        /// Type found.
        found: &'static str,
    },
    /// A norm, cluster key or cluster value that is not f32.
    #[error(
        "{node}: wanted a weight stored as f32 (norms and routing), found {found}\nhint: pass choose-formats sets the storage"
    )]
    VectorStorage {
        /// Node label.
        node: String,
        /// Storage found.
        found: &'static str,
    },
    /// A weight packed otherwise than its op reads it.
    #[error("{node}: {op} wants its weight packed in {wanted}, found another packing")]
    WeightPacking {
        /// Node label.
        node: String,
        /// Op name.
        op: &'static str,
        /// Packing wanted.
        wanted: &'static str,
    },
    /// Gate and up projections that do not match.
    #[error("{node}: wanted gate and up projections of one type and shape, found {gate} and {up}")]
    UnequalPair {
        /// Node label.
        node: String,
        /// Gate.
        gate: String,
        /// Up.
        up: String,
    },
    /// Modules of one layer that differ in element type or shape.
    #[error("{node}: module {module}: wanted weights of the type and shape of module 0, found others")]
    UnequalModules {
        /// Node label.
        node: String,
        /// Module.
        module: usize,
    },
    /// A weight that the layout left out.
    #[error("weight {weight}: wanted a place in the weights section, found none")]
    NotLaidOut {
        /// Name.
        weight: String,
    },
    /// A count that the artifact format cannot hold.
    #[error("{what}: wanted less than 2^32, found {found}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// The count.
        found: u64,
    },
    /// Inputs other than the token ids, the only thing that the execution context hands to the code.
    #[error("inputs: wanted one input u32[T], the token ids, found {found}")]
    Inputs {
        /// The inputs.
        found: String,
    },
    /// No output that the model's head ends in.
    #[error("output {name}: wanted {wanted}, which models with head {head} end in, found {found}")]
    HeadOutput {
        /// Its name.
        name: &'static str,
        /// Its type.
        wanted: String,
        /// The head.
        head: &'static str,
        /// The type of the output of that name.
        found: String,
    },
    /// A graph output whose rows depend on the routing.
    #[error("output {name}: wanted T, S or 1 rows, found another number of rows")]
    OutputRows {
        /// Output name.
        name: String,
    },
    /// Cranelift refused.
    #[error("{function}: code generation failed: {message}")]
    Codegen {
        /// Function.
        function: String,
        /// Why.
        message: String,
    },
}

impl LowerError {
    /// A [`LowerError::WeightPacking`] at a node.
    pub(crate) fn packing(node: &Node, wanted: &'static str) -> Self {
        LowerError::WeightPacking { node: node.label.clone(), op: node.op.row().name, wanted }
    }
}
