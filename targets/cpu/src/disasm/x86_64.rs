//! x86-64: text by iced, and what an instruction does to the registers that are followed.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Formatter, Instruction, InstructionInfoFactory, IntelFormatter,
    Mnemonic, OpAccess, OpKind, Register as Name,
};

use super::{Callee, Convention, Decoded, Effect, Flow, Place, Register, data};

const RSI: Register = 6;
const RDI: Register = 7;
const RSP: Register = 4;

/// System V.
pub(super) const CONVENTION: Convention =
    Convention { context: RDI, second: RSI, stack: RSP, changed_by_calls: &[0, 1, 2, RSI, RDI, 8, 9, 10, 11] };

/// Number of a general-purpose register, whatever part of it is named.
fn number(register: Name) -> Option<Register> {
    let full = register.full_register();
    full.is_gpr64().then(|| full.number() as Register)
}

/// Number of a whole 64-bit register.
fn whole(register: Name) -> Option<Register> {
    if register.is_gpr64() { number(register) } else { None }
}

/// The instructions of `bytes`, which begin at `begin` of the code section.
pub(super) fn decode(bytes: &[u8], begin: usize) -> Vec<Decoded> {
    let mut decoder = Decoder::with_ip(64, bytes, begin as u64, DecoderOptions::NONE);
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_small_hex_numbers_in_decimal(false);
    options.set_space_after_operand_separator(true);
    options.set_branch_leading_zeros(false);
    options.set_show_branch_size(false);
    let mut info = InstructionInfoFactory::new();
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let instruction = match decoder.set_position(at) {
            Ok(()) => {
                decoder.set_ip((begin + at) as u64);
                decoder.decode()
            }
            Err(_) => Instruction::default(),
        };
        let one = if instruction.is_invalid() || instruction.len() == 0 || instruction.len() > rest.len() {
            data(begin + at, &rest[..1])
        } else {
            let mut text = String::new();
            formatter.format(&instruction, &mut text);
            Decoded {
                offset: begin + at,
                length: instruction.len(),
                text,
                effects: effects(&instruction, &mut info),
                flow: flow(&instruction),
                // These name an address and do not go there.
                memory: place(&instruction)
                    .filter(|_| !matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Nop)),
            }
        };
        at += one.length;
        decoded.push(one);
    }
    decoded
}

/// The memory operand, where it is a register and a constant.
fn place(instruction: &Instruction) -> Option<Place> {
    let has_memory = (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
    let plain = instruction.memory_index() == Name::None && instruction.segment_prefix() == Name::None;
    let base = whole(instruction.memory_base()).filter(|_| has_memory && plain)?;
    Some(Place { base, offset: instruction.memory_displacement64() as i64 })
}

fn flow(instruction: &Instruction) -> Flow {
    let near = instruction.op0_kind() == OpKind::NearBranch64;
    let target = instruction.near_branch_target();
    match instruction.flow_control() {
        FlowControl::UnconditionalBranch if near => Flow::Jump { target, conditional: false },
        FlowControl::ConditionalBranch if near => Flow::Jump { target, conditional: true },
        FlowControl::Call if near => Flow::Call { target },
        FlowControl::IndirectCall => Flow::CallIndirect(match instruction.op0_kind() {
            OpKind::Register => whole(instruction.op0_register()).map_or(Callee::Unknown, Callee::Register),
            _ => place(instruction).map_or(Callee::Unknown, Callee::Memory),
        }),
        FlowControl::Next | FlowControl::Interrupt => Flow::Next,
        FlowControl::Return | FlowControl::Exception => Flow::End,
        FlowControl::UnconditionalBranch
        | FlowControl::ConditionalBranch
        | FlowControl::IndirectBranch
        | FlowControl::XbeginXabortXend
        | FlowControl::Call => Flow::JumpAnywhere,
    }
}

fn effects(instruction: &Instruction, info: &mut InstructionInfoFactory) -> Vec<Effect> {
    if let Some(known) = known_effects(instruction) {
        return known;
    }
    // A call's own push and pop of the return address leave the stack as it was.
    if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
        return Vec::new();
    }
    let info = info.info(instruction);
    let is_write = |access: OpAccess| {
        matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
    };
    let registers = info.used_registers().iter().filter(|used| is_write(used.access()));
    let mut effects: Vec<_> = registers.filter_map(|used| number(used.register())).map(Effect::Clobber).collect();
    for used in info.used_memory().iter().filter(|used| is_write(used.access())) {
        let Some(base) = number(used.base()) else { continue };
        let at = Place { base, offset: used.displacement() as i64 };
        // Before the registers change: the address is made of what they were.
        effects.insert(
            0,
            match used.index() {
                Name::None if used.memory_size().size() > 0 => {
                    Effect::Spoil { at, bytes: used.memory_size().size() as u64 }
                }
                _ => Effect::SpoilAll { base },
            },
        );
        if let Some(index) = number(used.index()) {
            effects.insert(0, Effect::SpoilAll { base: index });
        }
    }
    effects
}

/// The instructions that move what is followed.
fn known_effects(instruction: &Instruction) -> Option<Vec<Effect>> {
    let op0 = whole(instruction.op0_register());
    let op1 = whole(instruction.op1_register());
    let constant = |i: u32| instruction.try_immediate(i).ok().map(|n| n as i64);
    Some(match (instruction.code(), instruction.mnemonic()) {
        (Code::Mov_r64_rm64 | Code::Mov_rm64_r64, _) => match (op0, op1, place(instruction)) {
            (Some(to), Some(from), None) => vec![Effect::Copy { to, from }],
            (Some(to), None, Some(at)) => vec![Effect::Load { to, at }],
            (None, Some(from), Some(at)) => vec![Effect::Store { at, from }],
            _ => return None,
        },
        (Code::Lea_r64_m, _) if instruction.is_ip_rel_memory_operand() => {
            vec![Effect::Address { to: op0?, target: instruction.ip_rel_memory_address() }]
        }
        (Code::Lea_r64_m, _) => {
            let at = place(instruction)?;
            vec![Effect::Offset { to: op0?, from: at.base, add: at.offset }]
        }
        (Code::Add_rm64_imm8 | Code::Add_rm64_imm32 | Code::Add_RAX_imm32, _) => {
            vec![Effect::Offset { to: op0?, from: op0?, add: constant(1)? }]
        }
        (Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 | Code::Sub_RAX_imm32, _) => {
            vec![Effect::Offset { to: op0?, from: op0?, add: constant(1)?.wrapping_neg() }]
        }
        (Code::Push_r64, _) => {
            let from = op0.filter(|r| *r != RSP)?;
            let at = Place { base: RSP, offset: 0 };
            vec![Effect::Offset { to: RSP, from: RSP, add: -8 }, Effect::Store { at, from }]
        }
        (Code::Pop_r64, _) => {
            let to = op0.filter(|r| *r != RSP)?;
            let at = Place { base: RSP, offset: 0 };
            vec![Effect::Load { to, at }, Effect::Offset { to: RSP, from: RSP, add: 8 }]
        }
        (_, Mnemonic::Cmp | Mnemonic::Test) => Vec::new(),
        _ => return None,
    })
}
