//! From steps to machine code: functions, entry points, links between them.

use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::Function;
use cranelift_codegen::isa::{self, OwnedTargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_codegen::{Context, FinalizedRelocTarget, binemit::Reloc, ir::ExternalName};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use lapidary_compiler::ir::Graph;
use lapidary_compiler::plan::Plan;
use lapidary_kernels::Feature;

use crate::LowerError;
use crate::emit::{Emit, FunctionId, KernelImports, new_function};
use crate::layout::WeightLayout;
use crate::lower::{Entry, Lowering, Step, Units};
use crate::stack::{self, Frame};
use crate::targets::{Architecture, CpuTarget};

/// Alignment of functions in the code section.
const FUNCTION_ALIGN: usize = 64;

/// A range of the code section.
#[derive(Clone, Debug)]
pub struct CodeRange {
    /// Function: `prefill/3`, `prefill/3.1` for the second of several steps over the same rows, or the entry point's name.
    pub name: String,
    /// Label and op of the node it computes; empty for functions that only call others.
    pub op: String,
    /// Offset in the section.
    pub offset: usize,
    /// Length.
    pub size_bytes: usize,
    /// Stack that the function takes, without those it calls.
    pub frame_bytes: u64,
    /// Entry point that runs it.
    pub entry: Entry,
    /// The node it computes; `None` for functions that only call others, and for second versions of a step.
    pub node: Option<u32>,
}

/// A compiled program.
#[derive(Debug, Default)]
pub struct Program {
    /// Machine code.
    pub code: Vec<u8>,
    /// Steps and entry points in order.
    pub ranges: Vec<CodeRange>,
    /// Names and offsets of the entry points.
    pub entries: Vec<(&'static str, usize)>,
    /// Kernels in the order of the context's table.
    pub kernels: Vec<&'static str>,
    /// Most bytes of stack that one call of an entry point takes: generated code and kernels.
    pub stack_bytes: u64,
}

/// A function before it is linked.
struct Compiled {
    name: String,
    op: String,
    entry: Entry,
    node: Option<u32>,
    frame_bytes: u64,
    code: Vec<u8>,
    relocations: Vec<Relocation>,
}

struct Relocation {
    offset: usize,
    kind: Reloc,
    target: u32,
    addend: i64,
}

/// Compiles entry points of a planned graph.
pub fn compile(
    graph: &Graph,
    plan: &Plan,
    layout: &WeightLayout,
    target: &CpuTarget,
    entries: &[Entry],
) -> Result<Program, LowerError> {
    let mut compiler = Compiler {
        isa: target_isa(target)?,
        target,
        imports: KernelImports::default(),
        context: Context::new(),
        builder: FunctionBuilderContext::new(),
        functions: Vec::new(),
    };
    let mut entry_functions = Vec::new();
    for entry in entries {
        let lowering = Lowering::new(graph, plan, layout, *entry);
        entry_functions.extend(compiler.entry(&lowering)?);
    }
    link(compiler.functions, &entry_functions, compiler.imports.names().to_vec())
}

struct Compiler<'a> {
    isa: OwnedTargetIsa,
    target: &'a CpuTarget,
    imports: KernelImports,
    context: Context,
    builder: FunctionBuilderContext,
    functions: Vec<Compiled>,
}

impl Compiler<'_> {
    /// An entry point and its twin for profiling, which runs the same steps and reports the end of each.
    ///
    /// Every step is a function of its own. Neighbouring steps over the same rows are joined by one that calls each of
    /// them, so that they are handed to the threads together; the twin calls them one by one.
    fn entry(&mut self, lowering: &Lowering<'_>) -> Result<[(&'static str, FunctionId); 2], LowerError> {
        let entry = lowering.entry;
        let mut calls: Vec<(FunctionId, Units)> = Vec::new();
        let mut profiled: Vec<(FunctionId, Units, u32)> = Vec::new();
        for (at, group) in lowering.join(lowering.steps()?).into_iter().enumerate() {
            let units = group[0].units;
            let joined = group.len() > 1;
            let mut members = Vec::new();
            for (i, step) in group.iter().enumerate() {
                let name = if joined { format!("{}/{at}.{i}", entry.name()) } else { format!("{}/{at}", entry.name()) };
                let id = self.step(&name, lowering, step, None)?;
                members.push(id);
                let reporting = match step.by_module {
                    true => self.step(&format!("{name} by module"), lowering, step, Some(id.0))?,
                    false => id,
                };
                profiled.push((reporting, units, id.0));
            }
            let call = match members[..] {
                [single] => single,
                _ => self.function(format!("{}/{at}", entry.name()), String::new(), entry, None, 3, |e| {
                    let (begin, end) = (e.params[0], e.params[1]);
                    members.iter().for_each(|id| e.call_range(*id, begin, end));
                    Ok(())
                })?,
            };
            calls.push((call, units));
        }
        let plain = self.function(entry.name().into(), String::new(), entry, None, 1, |e| {
            calls.iter().for_each(|(id, units)| lowering.run_step(e, *id, *units));
            Ok(())
        })?;
        let profile = self.function(entry.profile_name().into(), String::new(), entry, None, 1, |e| {
            for (id, units, step) in profiled {
                lowering.run_step(e, id, units);
                e.mark(step, None);
            }
            Ok(())
        })?;
        Ok([(entry.name(), plain), (entry.profile_name(), profile)])
    }

    /// The function of a step; with `report`, one that reports the end of each module's work as that of step `report`.
    fn step(
        &mut self,
        name: &str,
        lowering: &Lowering<'_>,
        step: &Step<'_>,
        report: Option<u32>,
    ) -> Result<FunctionId, LowerError> {
        let node = lowering.graph.node(step.node);
        let op = format!("{} {}", node.label, node.op.row().name);
        let computes = report.is_none().then_some(step.node.0);
        self.function(name.into(), op, lowering.entry, computes, 3, |e| {
            let (begin, end) = (e.params[0], e.params[1]);
            e.report_modules = report;
            (step.body)(e, begin, end)
        })
    }

    fn function(
        &mut self,
        name: String,
        op: String,
        entry: Entry,
        node: Option<u32>,
        params: usize,
        body: impl FnOnce(&mut Emit) -> Result<(), LowerError>,
    ) -> Result<FunctionId, LowerError> {
        let id = FunctionId(self.functions.len() as u32);
        self.context.clear();
        self.context.func = new_function(id, params);
        let b = FunctionBuilder::new(&mut self.context.func, &mut self.builder);
        let mut emit = Emit::new(b, self.target, &mut self.imports);
        body(&mut emit)?;
        emit.finish(self.isa.frontend_config());
        let compiled = self
            .context
            .compile(&*self.isa, &mut ControlPlane::default())
            .map_err(|e| LowerError::Codegen { function: name.clone(), message: format!("{:?}", e.inner) })?;
        let code = compiled.code_buffer().to_vec();
        let frame = compiled.buffer.frame_layout().ok_or_else(|| LowerError::Codegen {
            function: name.clone(),
            message: "no frame layout, so the stack it takes is unknown".into(),
        })?;
        let frame_bytes = u64::from(frame.frame_to_fp_offset) + stack::LINKAGE_BYTES;
        let relocs = compiled.buffer.relocs().to_vec();
        let relocations = relocs
            .into_iter()
            .map(|r| {
                let target = match r.target {
                    FinalizedRelocTarget::ExternalName(name) => target_of(&self.context.func, &name),
                    FinalizedRelocTarget::Func(_) => None,
                };
                let target = target.ok_or_else(|| LowerError::Codegen {
                    function: name.clone(),
                    message: format!("a relocation to something outside the program: {:?}", r.kind),
                })?;
                Ok(Relocation { offset: r.offset as usize, kind: r.kind, target, addend: r.addend })
            })
            .collect::<Result<Vec<_>, LowerError>>()?;
        self.functions.push(Compiled { name, op, entry, node, frame_bytes, code, relocations });
        Ok(id)
    }
}

fn target_of(function: &Function, name: &ExternalName) -> Option<u32> {
    match name {
        ExternalName::User(name) => Some(function.params.user_named_funcs()[*name].index),
        ExternalName::TestCase(_) | ExternalName::LibCall(_) | ExternalName::KnownSymbol(_) => None,
    }
}

/// Cranelift's view of the target.
fn target_isa(target: &CpuTarget) -> Result<OwnedTargetIsa, LowerError> {
    let fail = |message: String| LowerError::Codegen { function: format!("target {}", target.name), message };
    let mut shared = settings::builder();
    for (name, value) in [
        ("opt_level", "speed"),
        ("is_pic", "false"),
        ("enable_probestack", "false"),
        ("unwind_info", "false"),
        ("enable_verifier", if cfg!(debug_assertions) { "true" } else { "false" }),
    ] {
        shared.set(name, value).map_err(|e| fail(e.to_string()))?;
    }
    let (triple, names): (_, &[(Feature, &str)]) = match target.architecture {
        Architecture::X86_64 => (
            "x86_64-unknown-linux-gnu",
            &[(Feature::Avx, "has_avx"), (Feature::Avx2, "has_avx2"), (Feature::Fma, "has_fma")],
        ),
        Architecture::Aarch64 => ("aarch64-unknown-linux-musl", &[]),
    };
    let mut builder = isa::lookup_by_name(triple).map_err(|e| fail(e.to_string()))?;
    for (feature, flag) in names {
        if target.features.iter().any(|f| f == *feature) {
            builder.enable(flag).map_err(|e| fail(e.to_string()))?;
        }
    }
    builder.finish(settings::Flags::new(shared)).map_err(|e| fail(e.to_string()))
}

/// Puts the functions one after the other and resolves their references to each other.
fn link(
    functions: Vec<Compiled>,
    entries: &[(&'static str, FunctionId)],
    kernels: Vec<&'static str>,
) -> Result<Program, LowerError> {
    let kernel_bytes =
        kernels.iter().filter_map(|name| lapidary_kernels::find(name)).map(|row| row.stack_bytes()).max().unwrap_or(0);
    let callees = |f: &Compiled| f.relocations.iter().map(|r| FunctionId(r.target)).collect();
    let frames: Vec<_> = functions.iter().map(|f| Frame { bytes: f.frame_bytes, callees: callees(f) }).collect();
    let stack_bytes = stack::deepest(&frames, kernel_bytes)?;
    let mut program = Program { kernels, stack_bytes, ..Program::default() };
    let mut starts = Vec::with_capacity(functions.len());
    for f in &functions {
        program.code.resize(program.code.len().next_multiple_of(FUNCTION_ALIGN), 0);
        starts.push(program.code.len());
        program.code.extend_from_slice(&f.code);
    }
    for (f, start) in functions.into_iter().zip(&starts) {
        for r in &f.relocations {
            let target = starts.get(r.target as usize).copied().unwrap_or_default() as i64 + r.addend;
            relocate(&mut program.code, start + r.offset, r.kind, target)
                .map_err(|message| LowerError::Codegen { function: f.name.clone(), message })?;
        }
        program.ranges.push(CodeRange {
            name: f.name,
            op: f.op,
            offset: *start,
            size_bytes: f.code.len(),
            frame_bytes: f.frame_bytes,
            entry: f.entry,
            node: f.node,
        });
    }
    program.entries = entries.iter().map(|(name, id)| (*name, starts[id.0 as usize])).collect();
    Ok(program)
}

/// Writes a reference from `at` to `target`, both offsets in the section, which is loaded at a page boundary.
fn relocate(code: &mut [u8], at: usize, kind: Reloc, target: i64) -> Result<(), String> {
    let word = |code: &[u8]| u32::from_le_bytes([code[at], code[at + 1], code[at + 2], code[at + 3]]);
    let distance = target - at as i64;
    let far = || format!("a reference over {distance} bytes is out of reach");
    let value = match kind {
        Reloc::X86PCRel4 | Reloc::X86CallPCRel4 => i32::try_from(distance).map_err(|_| far())? as u32,
        Reloc::Arm64Call => {
            if distance.abs() >= 1 << 27 {
                return Err(far());
            }
            word(code) | (distance >> 2) as u32 & 0x03ff_ffff
        }
        Reloc::Aarch64AdrPrelPgHi21 => {
            let pages = (target >> 12) - (at as i64 >> 12);
            if pages.abs() >= 1 << 20 {
                return Err(far());
            }
            let pages = pages as u32 & 0x1f_ffff;
            word(code) | (pages & 3) << 29 | (pages >> 2) << 5
        }
        Reloc::Aarch64AddAbsLo12Nc => word(code) | (target as u32 & 0xfff) << 10,
        other => return Err(format!("a relocation of kind {other:?}, which no reference inside a program needs")),
    };
    code[at..at + 4].copy_from_slice(&value.to_le_bytes());
    Ok(())
}
