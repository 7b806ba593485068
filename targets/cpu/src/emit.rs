//! Emitting one function: loads from the execution context, loops, kernel calls.
//!
//! A thin layer over Cranelift's builder that knows the ABI (`lapidary_format::abi`) and the kernels' argument blocks,
//! and nothing of models.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    AbiParam, Block, BlockArg, ExtFuncData, ExternalName, Function, InstBuilder, MemFlagsData, SigRef, Signature,
    StackSlotData, StackSlotKind, Type, UserExternalName, Value, types,
};
use cranelift_codegen::isa::CallConv;
use cranelift_frontend::FunctionBuilder;
use lapidary_format::abi::{Counter, ExecContext, NO_MODULE};
use lapidary_kernels::{KernelOp, KernelRow, WeightType, select};

use crate::LowerError;
use crate::targets::CpuTarget;

/// Number of a function of the program being compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FunctionId(pub u32);

/// The kernels that a program calls, in the order of its import table.
#[derive(Debug, Default)]
pub struct KernelImports {
    names: Vec<&'static str>,
}

impl KernelImports {
    /// Position of a kernel in the table, added if new.
    pub fn index(&mut self, row: &'static KernelRow) -> u64 {
        let at = self.names.iter().position(|n| *n == row.name).unwrap_or_else(|| {
            self.names.push(row.name);
            self.names.len() - 1
        });
        at as u64
    }

    /// Names in order.
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }
}

/// A field of a kernel's argument block.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// An integer constant; also the null pointer (0).
    Int(u64),
    /// A float constant.
    Float(f32),
    /// A value computed by the code: address or integer.
    Value(Value),
}

/// Builds an argument block's `(offset, value)` list: `args!(GemmArgs { a: x, m: Arg::Int(1) })`. Every field must be
/// given: the block is constructed once with the given names, so that a missing one does not compile.
#[macro_export]
macro_rules! args {
    ($block:ident { $($field:ident : $value:expr),+ $(,)? }) => {{
        #[allow(unused)]
        fn all_fields_named(block: &lapidary_kernels::args::$block) {
            let lapidary_kernels::args::$block { $($field: _),+ } = *block;
        }
        $crate::emit::Block64 {
            size: core::mem::size_of::<lapidary_kernels::args::$block>() as u32,
            fields: vec![$((core::mem::offset_of!(lapidary_kernels::args::$block, $field) as i32, $value)),+],
        }
    }};
}

/// An argument block to be written to the stack.
#[derive(Debug)]
pub struct Block64 {
    /// Bytes.
    pub size: u32,
    /// Fields by offset.
    pub fields: Vec<(i32, Arg)>,
}

/// Signature of a step, of `parallel_for`, of an entry point, of a kernel.
pub fn signature(params: usize) -> Signature {
    let mut sig = Signature::new(CallConv::SystemV);
    sig.params.extend(std::iter::repeat_n(AbiParam::new(types::I64), params));
    sig
}

/// One function being emitted.
pub struct Emit<'a, 'f> {
    /// The builder.
    pub b: FunctionBuilder<'f>,
    /// Target.
    pub target: &'a CpuTarget,
    /// Imports of the program.
    pub imports: &'a mut KernelImports,
    /// The `ctx` parameter.
    pub ctx: Value,
    /// The other parameters: `begin`, `end` of a step; empty for an entry point.
    pub params: Vec<Value>,
    /// The step as which a loop over modules reports the end of each module's work; `None`: it reports nothing.
    pub report_modules: Option<u32>,
    kernel_signature: SigRef,
}

fn memory() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

/// Offset of an [`ExecContext`] field, for [`Emit::context`].
macro_rules! context_field {
    ($name:ident) => {
        core::mem::offset_of!(lapidary_format::abi::ExecContext, $name) as i32
    };
}
pub(crate) use context_field;

impl<'a, 'f> Emit<'a, 'f> {
    /// Starts a function with `params` parameters, the first of which is the context.
    pub fn new(mut b: FunctionBuilder<'f>, target: &'a CpuTarget, imports: &'a mut KernelImports) -> Self {
        let entry = b.create_block();
        b.append_block_params_for_function_params(entry);
        b.switch_to_block(entry);
        b.seal_block(entry);
        let all = b.block_params(entry).to_vec();
        let kernel_signature = b.import_signature(signature(1));
        Emit { b, target, imports, ctx: all[0], params: all[1..].to_vec(), report_modules: None, kernel_signature }
    }

    /// Returns from the function.
    pub fn finish(mut self, frontend: cranelift_codegen::isa::TargetFrontendConfig) {
        self.b.ins().return_(&[]);
        self.b.finalize(frontend);
    }

    /// An integer.
    pub fn int(&mut self, n: u64) -> Value {
        self.b.ins().iconst(types::I64, n as i64)
    }

    /// A float, in every lane of `ty`.
    pub fn float(&mut self, ty: Type, x: f32) -> Value {
        let x = self.b.ins().f32const(x);
        if ty.is_vector() { self.b.ins().splat(ty, x) } else { x }
    }

    /// A field of the context.
    pub fn context(&mut self, offset: i32) -> Value {
        debug_assert!((offset as usize) < size_of::<ExecContext>());
        let flags = memory().with_readonly().with_can_move();
        self.b.ins().load(types::I64, flags, self.ctx, offset)
    }

    /// `base + bytes`.
    pub fn offset(&mut self, base: Value, bytes: u64) -> Value {
        if bytes == 0 {
            return base;
        }
        let n = self.int(bytes);
        self.b.ins().iadd(base, n)
    }

    /// `base + index · stride_bytes`.
    pub fn index(&mut self, base: Value, index: Value, stride_bytes: u64) -> Value {
        let scaled = self.times(index, stride_bytes);
        self.b.ins().iadd(base, scaled)
    }

    /// `value · factor`.
    pub fn times(&mut self, value: Value, factor: u64) -> Value {
        if factor == 1 {
            return value;
        }
        let n = self.int(factor);
        self.b.ins().imul(value, n)
    }

    /// `⌈value / divisor⌉`.
    pub fn ceil_div(&mut self, value: Value, divisor: u64) -> Value {
        let up = self.offset(value, divisor - 1);
        let n = self.int(divisor);
        self.b.ins().udiv(up, n)
    }

    /// An address in the weights section.
    pub fn weights(&mut self, bytes: u64) -> Value {
        let base = self.context(context_field!(weights));
        self.offset(base, bytes)
    }

    /// An address in the arena.
    pub fn arena(&mut self, bytes: u64) -> Value {
        let base = self.context(context_field!(arena));
        self.offset(base, bytes)
    }

    /// An address in the state.
    pub fn state(&mut self, bytes: u64) -> Value {
        let base = self.context(context_field!(state));
        self.offset(base, bytes)
    }

    /// The address of a work counter.
    pub fn counter(&mut self, counter: Counter) -> Value {
        let base = self.context(context_field!(counters));
        self.offset(base, 8 * counter as u64)
    }

    /// A u32 from memory, widened.
    pub fn load_u32(&mut self, address: Value, offset: i32) -> Value {
        self.b.ins().uload32(memory(), address, offset)
    }

    /// A value of any type from memory.
    pub fn load(&mut self, ty: Type, address: Value) -> Value {
        self.b.ins().load(ty, memory(), address, 0)
    }

    /// Stores a value of any type.
    pub fn store(&mut self, value: Value, address: Value) {
        self.b.ins().store(memory(), value, address, 0);
    }

    /// Adds to a work counter; for steps that run on one thread.
    pub fn count(&mut self, counter: Counter, amount: Value) {
        let address = self.counter(counter);
        let old = self.load(types::I64, address);
        let new = self.b.ins().iadd(old, amount);
        self.store(new, address);
    }

    /// Calls a kernel with its argument block.
    pub fn kernel(&mut self, row: &'static KernelRow, block: Block64) {
        let slot = self.b.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, block.size, 3));
        let address = self.b.ins().stack_addr(types::I64, slot, 0);
        for (offset, arg) in block.fields {
            let value = match arg {
                Arg::Int(n) => self.int(n),
                Arg::Float(x) => self.int(u64::from(x.to_bits())),
                Arg::Value(v) => v,
            };
            self.b.ins().store(memory(), value, address, offset);
        }
        let index = self.imports.index(row);
        let table = self.context(context_field!(kernels));
        let flags = memory().with_readonly().with_can_move();
        let function = self.b.ins().load(types::I64, flags, table, 8 * index as i32);
        self.b.ins().call_indirect(self.kernel_signature, function, &[address]);
    }

    /// The row of the kernel table that this target takes for an operation.
    pub fn select(&self, op: KernelOp, weight: WeightType) -> Result<&'static KernelRow, LowerError> {
        select(op, &self.target.features, weight).ok_or_else(|| LowerError::NoKernel {
            op: format!("{op:?}"),
            weight: format!("{weight:?}"),
            target: self.target.name.into(),
        })
    }

    /// A function of the same program.
    fn function(&mut self, id: FunctionId, params: usize) -> cranelift_codegen::ir::FuncRef {
        let name = self.b.func.declare_imported_user_function(UserExternalName { namespace: 0, index: id.0 });
        let signature = self.b.import_signature(signature(params));
        self.b.import_function(ExtFuncData {
            name: ExternalName::user(name),
            signature,
            colocated: true,
            patchable: false,
        })
    }

    /// Calls a step for all its units on this thread.
    pub fn call_step(&mut self, id: FunctionId, units: Value) {
        let zero = self.int(0);
        self.call_range(id, zero, units);
    }

    /// Calls a step for units `begin..end` on this thread.
    pub fn call_range(&mut self, id: FunctionId, begin: Value, end: Value) {
        let function = self.function(id, 3);
        let ctx = self.ctx;
        self.b.ins().call(function, &[ctx, begin, end]);
    }

    /// Tells the runtime that a step, or a module's part of it on this thread, has ended.
    pub fn mark(&mut self, step: u32, module: Option<Value>) {
        let mark = self.context(context_field!(mark));
        let step = self.int(u64::from(step));
        let module = module.unwrap_or_else(|| self.int(NO_MODULE));
        let signature = self.b.import_signature(signature(3));
        let ctx = self.ctx;
        self.b.ins().call_indirect(signature, mark, &[ctx, step, module]);
    }

    /// Hands a step to the runtime's threads.
    pub fn parallel_step(&mut self, id: FunctionId, units: Value) {
        let function = self.function(id, 3);
        let step = self.b.ins().func_addr(types::I64, function);
        let parallel_for = self.context(context_field!(parallel_for));
        let signature = self.b.import_signature(signature(3));
        let ctx = self.ctx;
        self.b.ins().call_indirect(signature, parallel_for, &[ctx, step, units]);
    }

    /// `for i in begin..end { body(i) }`.
    pub fn for_range(
        &mut self,
        begin: Value,
        end: Value,
        step: u64,
        body: impl FnOnce(&mut Self, Value) -> Result<(), LowerError>,
    ) -> Result<(), LowerError> {
        let head = self.b.create_block();
        let inside = self.b.create_block();
        let after = self.b.create_block();
        let i = self.b.append_block_param(head, types::I64);
        self.b.ins().jump(head, &[BlockArg::Value(begin)]);
        self.b.switch_to_block(head);
        let more = self.b.ins().icmp(IntCC::UnsignedLessThan, i, end);
        self.b.ins().brif(more, inside, &[], after, &[]);
        self.b.switch_to_block(inside);
        self.b.seal_block(inside);
        body(self, i)?;
        let next = self.offset(i, step);
        self.b.ins().jump(head, &[BlockArg::Value(next)]);
        self.b.seal_block(head);
        self.b.seal_block(after);
        self.b.switch_to_block(after);
        Ok(())
    }

    /// `if condition { then } else { otherwise }`.
    pub fn if_else(
        &mut self,
        condition: Value,
        then: impl FnOnce(&mut Self) -> Result<(), LowerError>,
        otherwise: impl FnOnce(&mut Self) -> Result<(), LowerError>,
    ) -> Result<(), LowerError> {
        let yes = self.b.create_block();
        let no = self.b.create_block();
        let after = self.b.create_block();
        self.b.ins().brif(condition, yes, &[], no, &[]);
        self.arm(yes, after, then)?;
        self.arm(no, after, otherwise)?;
        self.b.seal_block(after);
        self.b.switch_to_block(after);
        Ok(())
    }

    fn arm(
        &mut self,
        block: Block,
        after: Block,
        body: impl FnOnce(&mut Self) -> Result<(), LowerError>,
    ) -> Result<(), LowerError> {
        self.b.switch_to_block(block);
        self.b.seal_block(block);
        body(self)?;
        self.b.ins().jump(after, &[]);
        Ok(())
    }

    /// `a == n`.
    pub fn equals(&mut self, a: Value, n: u64) -> Value {
        let n = self.int(n);
        self.b.ins().icmp(IntCC::Equal, a, n)
    }

    /// The smaller of two.
    pub fn min(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().umin(a, b)
    }

    /// Element-wise loop over `cols` (a run-time number) f32 elements from `bases`, four at a time with a scalar tail:
    /// `body` gets the vector (or scalar) type and the loaded elements and gives the element to store at `out`.
    pub fn elementwise(
        &mut self,
        inputs: &[Value],
        out: Value,
        cols: Value,
        mut body: impl FnMut(&mut Self, Type, &[Value]) -> Value,
    ) -> Result<(), LowerError> {
        let vectors = self.b.ins().band_imm_s(cols, -4);
        let zero = self.int(0);
        for (begin, end, step, ty) in [(zero, vectors, 4, types::F32X4), (vectors, cols, 1, types::F32)] {
            self.for_range(begin, end, step, |e, i| {
                let loaded: Vec<Value> = inputs
                    .iter()
                    .map(|base| {
                        let address = e.index(*base, i, 4);
                        e.load(ty, address)
                    })
                    .collect();
                let result = body(e, ty, &loaded);
                let address = e.index(out, i, 4);
                e.store(result, address);
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// A new function of the program, named by its number.
pub fn new_function(id: FunctionId, params: usize) -> Function {
    Function::with_name_signature(
        cranelift_codegen::ir::UserFuncName::User(UserExternalName { namespace: 0, index: id.0 }),
        signature(params),
    )
}
