//! Disassembly: known bytes, real programs of every target, and bytes that are no program.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use lapidary_compiler::import::{self, ImportOptions};
use lapidary_compiler::passes::{PassContext, Recipe, run_pipeline};
use lapidary_target_cpu::disasm::{Code, Line, Note, Step};
use lapidary_target_cpu::program::Program;
use lapidary_target_cpu::{About, Architecture, CPU_TARGETS, CpuTarget, lower};
use proptest::prelude::*;

const X86: Architecture = Architecture::X86_64;
const ARM: Architecture = Architecture::Aarch64;

/// The lines of one function of so many bytes at the begin of the code section.
fn with_lines<R>(architecture: Architecture, bytes: &[u8], check: impl FnOnce(&[Line<'_>]) -> R) -> R {
    let step = Step { name: "f", op: "op", entry: "prefill", offset: 0, bytes: bytes.len() as u64 };
    let code = Code::new(architecture, bytes, vec![step], vec!["zero", "one", "two"]);
    let functions = code.functions();
    assert_eq!(functions.len(), 1);
    check(&functions[0].lines())
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Text of each instruction.
fn texts(architecture: Architecture, bytes: &[u8]) -> Vec<String> {
    with_lines(architecture, bytes, |lines| lines.iter().map(|l| l.text.clone()).collect())
}

/// Notes that are there, by index of the instruction.
fn notes(architecture: Architecture, bytes: &[u8]) -> Vec<(usize, String)> {
    with_lines(architecture, bytes, |lines| {
        let note = |(i, line): (usize, &Line<'_>)| Some((i, line.note.as_ref()?.to_string()));
        lines.iter().enumerate().filter_map(note).collect()
    })
}

/// Encodings taken apart by hand from the Intel SDM, volume 2: prefix, opcode, ModRM (mod·reg·rm), SIB, displacement.
#[test]
fn x86_64_is_read_as_its_manual_says() {
    let known: &[(&[u8], &str)] = &[
        // 50+r: push.
        (&[0x55], "push rbp"),
        (&[0x41, 0x57], "push r15"),
        // REX.W 89 /r: mov r/m64, r64. ModRM e5 = 11·100·101.
        (&[0x48, 0x89, 0xe5], "mov rbp, rsp"),
        // REX.W 8b /r. ModRM 47 = 01·000·111, disp8.
        (&[0x48, 0x8b, 0x47, 0x18], "mov rax, [rdi+0x18]"),
        // ModRM 84 = 10·000·100, SIB 24 = 00·100·100 (rsp alone), disp32.
        (&[0x48, 0x8b, 0x84, 0x24, 0x80, 0, 0, 0], "mov rax, [rsp+0x80]"),
        // REX.W 83 /5 ib: sub.
        (&[0x48, 0x83, 0xec, 0x40], "sub rsp, 0x40"),
        // REX.W c7 /0 id: mov, sign-extended.
        (&[0x48, 0xc7, 0x44, 0x24, 0x18, 0x40, 0, 0, 0], "mov qword ptr [rsp+0x18], 0x40"),
        // REX.W b8+r io.
        (&[0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8], "mov rax, 0x807060504030201"),
        // REX.W 8d /5: lea. ModRM 35 = 00·110·101, rip-relative: 8 bytes behind an instruction that ends at 0x30.
        (&[0x48, 0x8d, 0x35, 8, 0, 0, 0], "lea rsi, [0x38]"),
        // ff /2: call.
        (&[0xff, 0xd0], "call rax"),
        // VEX.128.0F 58 /r: vaddps. c5 f8: vvvv = xmm0.
        (&[0xc5, 0xf8, 0x58, 0xc9], "vaddps xmm1, xmm0, xmm1"),
        // VEX.128.66.0F38.W0 b8 /r: vfmadd231ps, vvvv = xmm1.
        (&[0xc4, 0xe2, 0x71, 0xb8, 0xc2], "vfmadd231ps xmm0, xmm1, xmm2"),
        // EVEX.512.0F.W0 58 /r: vaddps.
        (&[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1], "vaddps zmm0, zmm0, zmm1"),
        // 74 cb, eb cb, e8 cd: relative to the end of the instruction.
        (&[0x74, 0xfe], "je 0x41"),
        (&[0xeb, 0x00], "jmp 0x45"),
        (&[0xe8, 0, 0, 0, 0], "call 0x4a"),
        (&[0xc3], "ret"),
        // 06: push es, which 64-bit mode does not have.
        (&[0x06], ".byte 0x06"),
        (&[0x90], "nop"),
        // An instruction that would end behind the function: its bytes, one by one.
        (&[0x48], ".byte 0x48"),
        (&[0xb8], ".byte 0xb8"),
    ];
    let bytes: Vec<u8> = known.iter().flat_map(|(bytes, _)| bytes.iter().copied()).collect();
    let wanted: Vec<_> = known.iter().map(|(_, text)| text.to_string()).collect();
    assert_eq!(texts(X86, &bytes), wanted);
}

/// Encodings taken apart by hand from the Arm ARM, C6 and C7.
#[test]
fn aarch64_is_read_as_its_manual_says() {
    let known: &[(u32, &str)] = &[
        // STP pre-index, 64 bits: imm7 = −2, Rt2 = 30, Rn = 31, Rt = 29.
        (0xa9bf_7bfd, "stp x29, x30, [sp, #-0x10]!"),
        // ADD immediate 0 of the stack pointer.
        (0x9100_03fd, "mov x29, sp"),
        // LDR unsigned offset: imm12 = 3, times 8.
        (0xf940_0c00, "ldr x0, [x0, #0x18]"),
        // ADD immediate, shifted by 12.
        (0x9140_6084, "add x4, x4, #0x18, lsl #12"),
        // ORR Xd, XZR, Xm.
        (0xaa0f_03e0, "mov x0, x15"),
        // BLR x1.
        (0xd63f_0020, "blr x1"),
        // FADD and FMUL of four floats, FMLA by element.
        (0x4e22_d420, "fadd v0.4s, v1.4s, v2.4s"),
        (0x6e22_dc20, "fmul v0.4s, v1.4s, v2.4s"),
        (0x4f82_1020, "fmla v0.4s, v1.4s, v2.s[0]"),
        // LDR Q and STR Q, imm12 = 1, times 16.
        (0x3dc0_0401, "ldr q1, [x0, #0x10]"),
        (0x3d80_0401, "str q1, [x0, #0x10]"),
        // BL two words on, at offset 0x2c; B.NE one word back; CBZ to itself.
        (0x9400_0002, "bl 0x34"),
        (0x54ff_ffe1, "b.ne 0x2c"),
        (0xb400_0000, "cbz x0, 0x34"),
        // ADRP of the next page.
        (0xb000_0001, "adrp x1, 0x1000"),
        (0xd503_201f, "nop"),
        (0xd65f_03c0, "ret"),
        // Bits 28..25 = 0000 and bit 31 = 0, but not udf: unallocated.
        (0x0100_0000, ".byte 0x00, 0x00, 0x00, 0x01"),
        // A pair of registers with opc = 11: unallocated.
        (0xe937_45c0, ".byte 0xc0, 0x45, 0x37, 0xe9"),
    ];
    let mut bytes = words(&known.iter().map(|(word, _)| *word).collect::<Vec<_>>());
    bytes.extend([0x1f, 0x20]);
    let mut wanted: Vec<_> = known.iter().map(|(_, text)| text.to_string()).collect();
    wanted.push(".byte 0x1f, 0x20".into());
    assert_eq!(texts(ARM, &bytes), wanted);
}

// Pieces of x86-64 code, and their AArch64 counterparts: what each test below is made of.
const X_KERNELS: &[u8] = &[0x48, 0x8b, 0x47, 0x18]; // mov rax, [rdi+0x18]
const X_SLOT_2: &[u8] = &[0x48, 0x8b, 0x40, 0x10]; // mov rax, [rax+0x10]
const X_CALL: &[u8] = &[0xff, 0xd0]; // call rax
const A_KERNELS: u32 = 0xf940_0c01; // ldr x1, [x0, #0x18]
const A_SLOT_2: u32 = 0xf940_0821; // ldr x1, [x1, #0x10]
const A_CALL: u32 = 0xd63f_0020; // blr x1

fn note(at: usize, text: &str) -> (usize, String) {
    (at, text.to_string())
}

#[test]
fn kernels_are_named() {
    let wanted = [note(0, "ctx.kernels"), note(1, "ctx.kernels[2]"), note(2, "kernel two")];
    assert_eq!(notes(X86, &[X_KERNELS, X_SLOT_2, X_CALL].concat()), wanted);
    assert_eq!(notes(ARM, &words(&[A_KERNELS, A_SLOT_2, A_CALL])), wanted);
    // A slot that the table does not have, and one between slots, have no name.
    let beyond = [X_KERNELS, &[0x48, 0x8b, 0x40, 0x18], X_CALL].concat();
    assert_eq!(notes(X86, &beyond), [note(0, "ctx.kernels"), note(1, "ctx.kernels[3]")]);
    let between = [X_KERNELS, &[0x48, 0x8b, 0x40, 0x0c], X_CALL].concat();
    assert_eq!(notes(X86, &between), [note(0, "ctx.kernels")]);
    // call [rax+8].
    assert_eq!(notes(X86, &[X_KERNELS, &[0xff, 0x50, 0x08]].concat()), [note(0, "ctx.kernels"), note(1, "kernel one")]);
}

#[test]
fn values_are_followed_through_registers_stack_and_loops() {
    // push rbx; sub rsp, 16; mov [rsp+8], rdi; mov rbx, [rsp+8]; call of itself; mov rax, [rbx+0x18]; …: rbx survives the
    // call, and so does what was spilled.
    let spilled = [
        &[0x53, 0x48, 0x83, 0xec, 0x10, 0x48, 0x89, 0x7c, 0x24, 0x08][..],
        &[0x48, 0x8b, 0x5c, 0x24, 0x08, 0xe8, 0xec, 0xff, 0xff, 0xff, 0x48, 0x8b, 0x43, 0x18],
        &[0x48, 0x8b, 0x7c, 0x24, 0x08, 0x48, 0x8b, 0x0f, 0x48, 0x8b, 0x40, 0x08, 0xff, 0xd0],
    ]
    .concat();
    let wanted = [
        note(4, "f"),
        note(5, "ctx.kernels"),
        note(7, "ctx.weights"),
        note(8, "ctx.kernels[1]"),
        note(9, "kernel one"),
    ];
    assert_eq!(notes(X86, &spilled), wanted);
    // stp x29, x30, [sp, #-0x20]!; stp x0, x1, [sp, #0x10]; bl f; ldp x2, x0, [sp, #0x10]; ldr x1, [x2, #0x18]; …
    let spilled = words(&[0xa9be_7bfd, 0xa901_07e0, 0x97ff_fffe, 0xa941_03e2, 0xf940_0c41, A_SLOT_2, A_CALL]);
    let wanted = [note(2, "f"), note(4, "ctx.kernels"), note(5, "ctx.kernels[2]"), note(6, "kernel two")];
    assert_eq!(notes(ARM, &spilled), wanted);
    // mov rbx, [rdi+0x18]; mov rbx, [rbx+0x10]; again: call rbx; jne again.
    let repeated = [0x48, 0x8b, 0x5f, 0x18, 0x48, 0x8b, 0x5b, 0x10, 0xff, 0xd3, 0x75, 0xfc];
    assert_eq!(notes(X86, &repeated)[2], note(2, "kernel two"));
}

#[test]
fn what_is_not_certain_has_no_name() {
    let last_of = |bytes: &[u8]| with_lines(X86, bytes, |lines| lines.last().and_then(|l| l.note.clone()).is_some());
    let slot = [X_KERNELS, X_SLOT_2].concat();
    assert!(last_of(&[&slot[..], X_CALL].concat()));
    // Each of these between load and call: mov eax, ecx; xor eax, eax; add rax, 8; call rcx; pop rax; cmove rax, rcx.
    let spoilers: &[&[u8]] =
        &[&[0x89, 0xc8], &[0x31, 0xc0], &[0x48, 0x83, 0xc0, 0x08], &[0xff, 0xd1], &[0x58], &[0x48, 0x0f, 0x44, 0xc1]];
    for spoiler in spoilers {
        assert!(!last_of(&[&slot[..], spoiler, X_CALL].concat()), "{spoiler:x?}");
    }
    // je over the load: on the other path rax is something else.
    assert!(!last_of(&[&[0x74, 0x08][..], &slot, X_CALL].concat()));
    // jmp rcx in the function: anything may jump to the call.
    assert!(!last_of(&[&slot[..], &[0xff, 0xe1], X_CALL].concat()));
    assert!(!last_of(&[&[0xff, 0xe1][..], &slot, X_CALL].concat()));
    assert!(!last_of(&[&slot[..], &[0x74, 0x02, 0xff, 0xe1], X_CALL].concat()));
    // A loop around the call, after which rax is something else.
    let repeated = with_lines(X86, &[&slot[..], X_CALL, &[0x75, 0xfc]].concat(), |lines| lines[2].note.is_none());
    assert!(repeated);
    // A loop in which the place of the stack that was spilled to is overwritten: mov [rsp-8], rdi; again: mov rdi, [rsp-8];
    // mov rcx, [rdi]; mov [rsp-8], rcx; jne again.
    let spill = [0x48, 0x89, 0x7c, 0x24, 0xf8, 0x48, 0x8b, 0x7c, 0x24, 0xf8];
    let again = [0x48, 0x8b, 0x0f, 0x48, 0x89, 0x4c, 0x24, 0xf8, 0x75, 0xf1];
    let in_loop = |end: usize| {
        with_lines(X86, &[&spill[..], &again[..end]].concat(), |lines| lines[2].note.clone().map(|n| n.to_string()))
    };
    assert_eq!((in_loop(8).as_deref(), in_loop(10)), (Some("ctx.weights"), None));
    // A jump into the middle of an instruction.
    assert!(!last_of(&[&[0x74, 0x01][..], &slot, X_CALL].concat()));
    // A store over the spilled value, of one byte in its middle: mov [rsp-8], rdi; mov byte ptr [rsp-5], 1; mov rdi, [rsp-8].
    let reload = [0x48, 0x89, 0x7c, 0x24, 0xf8, 0xc6, 0x44, 0x24, 0xfb, 0x01, 0x48, 0x8b, 0x7c, 0x24, 0xf8];
    assert!(!last_of(&[&reload[..], &slot, X_CALL].concat()));
    assert!(last_of(&[&reload[..5], &reload[10..], &slot, X_CALL].concat()));

    let last_of = |list: &[u32]| with_lines(ARM, &words(list), |l| l.last().and_then(|l| l.note.clone()).is_some());
    assert!(last_of(&[A_KERNELS, A_SLOT_2, A_CALL]));
    // mov w1, w2; add x1, x1, #8; movk x1, #1; ldrb w1, [x2]; csel x1, x2, x3, eq; umov w1, v0.s[0]; fmov x1, d0; blr x2;
    // ldr x1, [x2, x3]; ldxr x1, [x2]; ldr x2, [x1], #8; mrs x1, tpidr_el0; svc #0; ldp x2, x1, [x3].
    let spoilers = [
        0x2a02_03e1,
        0x9100_2021,
        0xf280_0021,
        0x3940_0041,
        0x9a83_0041,
        0x0e04_3c01,
        0x9e66_0001,
        0xd63f_0040,
        0xf863_6841,
        0xc85f_7c41,
        0xf840_8422,
        0xd53b_d041,
        0xd400_0001,
        0xa940_0462,
    ];
    for spoiler in spoilers {
        assert!(!last_of(&[A_KERNELS, A_SLOT_2, spoiler, A_CALL]), "{spoiler:x}");
    }
    // str w1, [x2]; cmp x1, x2; fadd s1, s1, s1; ldr q1, [x2]; nop; str x1, [x2], #8; ccmp x2, #0, #1, eq: change nothing of x1.
    for harmless in [0xb900_0041, 0xeb02_003f, 0x1e21_2821, 0x3dc0_0041, 0xd503_201f, 0xf800_8441, 0xfa40_0841] {
        assert!(last_of(&[A_KERNELS, A_SLOT_2, harmless, A_CALL]), "{harmless:x}");
    }
    // br x2.
    assert!(!last_of(&[A_KERNELS, A_SLOT_2, 0xd61f_0040, A_CALL]));
}

/// A program of a small model, as a target compiles it.
fn program(target: &CpuTarget) -> Program {
    let model = import::load("preset:gem-tiny", &ImportOptions::default()).unwrap();
    let mut graph = model.graph.clone();
    let context = PassContext::new(&graph, Recipe::default(), graph.info.max_position_embeddings);
    let plan = run_pipeline(&mut graph, &context, None, &mut |_, _, _| ()).unwrap().unwrap();
    let lowered = lower(&graph, &plan, target, &About::default()).unwrap();
    let Program { code, ranges, entries, kernels, stack_bytes } = lowered.program();
    Program {
        code: code.clone(),
        ranges: ranges.clone(),
        entries: entries.clone(),
        kernels: kernels.clone(),
        stack_bytes: *stack_bytes,
    }
}

fn steps(program: &Program) -> Vec<Step<'_>> {
    let step = |range: &lapidary_target_cpu::program::CodeRange| (range.offset as u64, range.size_bytes as u64);
    let ranges = program.ranges.iter();
    ranges
        .map(|range| {
            let (offset, bytes) = step(range);
            Step { name: &range.name, op: &range.op, entry: range.entry.name(), offset, bytes }
        })
        .collect()
}

/// Every target's program: what all tests of real code need.
fn for_every_target(mut check: impl FnMut(&CpuTarget, &Program, &Code<'_>)) {
    for row in CPU_TARGETS {
        let target = CpuTarget::by_name(row.name).unwrap();
        let program = program(&target);
        let code = Code::new(target.architecture, &program.code, steps(&program), program.kernels.clone());
        check(&target, &program, &code);
    }
}

#[test]
fn every_call_of_real_programs_has_a_name() {
    for_every_target(|target, program, code| {
        let mut called = BTreeMap::<&str, usize>::new();
        let mut handed_out = 0;
        for function in code.functions() {
            for line in function.lines() {
                let text = format!("{} {}: {:x} {}", target.name, function.steps()[0].name, line.offset, line.text);
                assert!(!line.text.starts_with(".byte"), "{text}");
                match line.note {
                    Some(Note::Kernel(name)) => *called.entry(name).or_default() += 1,
                    Some(Note::ParallelFor(step)) if line.is_indirect_call => {
                        assert!(step.is_some(), "{text}: hands out a function without a name");
                        handed_out += 1;
                    }
                    Some(Note::Runtime(field)) => assert_eq!(field, "mark", "{text}"),
                    Some(Note::Field(_) | Note::KernelSlot(_) | Note::Function(_) | Note::ParallelFor(_)) | None => {
                        assert!(!line.is_indirect_call, "{text}: calls something without a name");
                    }
                }
            }
        }
        // Every kernel of the table is there because some code calls it.
        let called: Vec<_> = called.into_keys().collect();
        let mut wanted = program.kernels.clone();
        wanted.sort_unstable();
        assert_eq!(called, wanted, "{}", target.name);
        assert!(handed_out > 0, "{}", target.name);
    });
}

/// Every byte of every step is in exactly one line, and lines follow each other.
fn check_cover(code: &Code<'_>, steps: &[Step<'_>], bytes: &[u8]) {
    let mut seen = vec![0u8; bytes.len()];
    for function in code.functions() {
        let mut at = function.offset();
        for line in function.lines() {
            assert_eq!(line.offset, at);
            assert!(!line.bytes.is_empty());
            assert_eq!(line.bytes, &bytes[at as usize..][..line.bytes.len()]);
            seen[at as usize..][..line.bytes.len()].iter_mut().for_each(|n| *n += 1);
            at += line.bytes.len() as u64;
        }
        assert_eq!(at, function.offset() + function.bytes());
    }
    assert!(seen.iter().all(|n| *n <= 1));
    assert!(seen.iter().zip(bytes).all(|(n, byte)| *byte == 0 || *n == 1), "only zeros between steps are left out");
    for step in steps {
        let range = step.offset as usize..(step.offset + step.bytes) as usize;
        assert!(seen[range].iter().all(|n| *n == 1), "{} is not listed whole", step.name);
    }
    let named: usize = code.functions().iter().map(|f| f.steps().len()).sum();
    assert_eq!(named, steps.len(), "every step has a line of its own");
}

#[test]
fn a_listing_has_every_byte_once() {
    for_every_target(|_, program, code| {
        check_cover(code, &steps(program), &program.code);
        assert_eq!(code.functions().len(), program.ranges.len());
    });
}

/// The frame that Cranelift tells is the one that the code makes: return address, pushes, and what is taken off the
/// stack pointer.
#[test]
fn frames_are_as_large_as_the_stack_bound_says() {
    for_every_target(|target, program, code| {
        let mut deepest = 0;
        for (function, range) in code.functions().iter().zip(&program.ranges) {
            let mut bytes = if target.architecture == X86 { 8 } else { 0 };
            for line in function.lines() {
                let text = line.text.as_str();
                let number = |from: &str| {
                    let digits = text.split(from).nth(1).unwrap().trim_start_matches("0x");
                    let end = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
                    u64::from_str_radix(&digits[..end], 16).unwrap()
                };
                if text.starts_with("push ") {
                    bytes += 8;
                } else if text.starts_with("sub rsp, ") {
                    bytes += number("sub rsp, ");
                } else if text.starts_with("sub sp, sp, #") {
                    bytes += number("sub sp, sp, #") << if text.ends_with("lsl #12") { 12 } else { 0 };
                } else if text.starts_with("st") && text.contains("[sp, #-") {
                    bytes += number("[sp, #-");
                }
            }
            // A leaf without a frame of its own is counted with what it would save.
            let leaf = target.architecture == ARM && bytes == 0;
            assert!(bytes == range.frame_bytes || leaf, "{} {}: {bytes}", target.name, range.name);
            deepest = deepest.max(range.frame_bytes);
        }
        let kernel = program.kernels.iter().map(|name| lapidary_kernels::find(name).unwrap().stack_bytes()).max();
        // An entry point and a step at least, and three levels at most.
        assert!(program.stack_bytes > kernel.unwrap() + deepest, "{}", target.name);
        assert!(program.stack_bytes <= kernel.unwrap() + 3 * deepest, "{}", target.name);
    });
}

/// Runs a tool of binutils or LLVM; `None`, and a line that says so, where it is missing.
fn tool(command: &mut Command, input: &str) -> Option<String> {
    let mut child = match command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn() {
        Ok(child) => child,
        Err(error) => {
            let name = command.get_program().to_string_lossy().into_owned();
            writeln!(std::io::stderr().lock(), "skipped: comparison with {name} ({error})").unwrap();
            return None;
        }
    };
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_string();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    Some(String::from_utf8(output.stdout).unwrap())
}

/// Text without what disassemblers write differently: spaces, `#`, bases of numbers, comments.
fn normal(text: &str) -> String {
    let text = text.split("//").next().unwrap_or_default().to_lowercase();
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find("0x") {
        out.push_str(&rest[..at]);
        let digits = &rest[at + 2..];
        let end = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
        out.push_str(&u64::from_str_radix(&digits[..end], 16).unwrap().cast_signed().to_string());
        rest = &digits[end..];
    }
    out.push_str(rest);
    out.retain(|c| !c.is_whitespace() && c != '#');
    out
}

/// LLVM reads every word of the AArch64 programs the same way; only branch targets it writes as distances.
#[test]
fn llvm_agrees_on_aarch64() {
    for_every_target(|target, _, code| {
        if target.architecture != ARM {
            return;
        }
        let functions = code.functions();
        let lines: Vec<Line<'_>> = functions.iter().flat_map(|f| f.lines()).collect();
        let hex = |line: &Line<'_>| line.bytes.iter().map(|b| format!("{b:#04x} ")).collect::<String>() + "\n";
        let input: String = lines.iter().map(hex).collect();
        let Some(output) =
            tool(Command::new("llvm-mc").args(["--disassemble", "-triple=aarch64", "-mattr=+fullfp16"]), &input)
        else {
            return;
        };
        let theirs: Vec<_> = output.lines().filter(|l| !l.trim().is_empty() && !l.contains(".text")).collect();
        assert_eq!(theirs.len(), lines.len());
        let (mut same, mut relative) = (0, 0);
        for (line, theirs) in lines.iter().zip(theirs) {
            let (ours, theirs) = (normal(&line.text), normal(theirs));
            if ours == theirs {
                same += 1;
                continue;
            }
            // b 0x40 at 0x30 is their b 0x10.
            let mnemonic = line.text.split(' ').next().unwrap();
            let is_relative = ["b", "bl", "cbz", "cbnz", "tbz", "tbnz", "adr", "adrp"].contains(&mnemonic);
            assert!(is_relative || mnemonic.starts_with("b."), "{:x}: {} is {theirs}", line.offset, line.text);
            let digits = theirs.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
            let distance: i64 = theirs[digits..].parse().unwrap();
            let distance = if theirs[..digits].ends_with('-') { -distance } else { distance };
            let from = if mnemonic == "adrp" { line.offset & !0xfff } else { line.offset };
            let wanted = format!("{:#x}", from.wrapping_add_signed(distance));
            assert!(line.text.ends_with(&wanted), "{:x}: {} is {theirs}", line.offset, line.text);
            relative += 1;
        }
        assert!(same > 1000 && relative > 100, "{}: {same} the same, {relative} relative", target.name);
    });
}

/// binutils cuts the x86-64 programs into the same instructions.
#[test]
fn objdump_agrees_on_x86_64() {
    for_every_target(|target, program, code| {
        if target.architecture != X86 {
            return;
        }
        let folder = std::env::temp_dir().join(format!("lapidary-disasm-{}-{}", target.name, std::process::id()));
        // Padding as one-byte instructions, so that it does not run into what follows.
        let mut padded = vec![0x90; program.code.len()];
        for range in &program.ranges {
            let whole = range.offset..range.offset + range.size_bytes;
            padded[whole.clone()].copy_from_slice(&program.code[whole]);
        }
        std::fs::write(&folder, &padded).unwrap();
        let mut command = Command::new("objdump");
        command.args(["-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", "--insn-width=16"]).arg(&folder);
        let output = tool(&mut command, "");
        std::fs::remove_file(&folder).unwrap();
        let Some(output) = output.filter(|text| text.contains("<.data>")) else {
            writeln!(std::io::stderr().lock(), "skipped: comparison with objdump, which does not know x86-64").unwrap();
            return;
        };
        let mut theirs = BTreeMap::new();
        for line in output.lines() {
            let mut columns = line.split('\t');
            let offset = columns.next().and_then(|c| u64::from_str_radix(c.trim().strip_suffix(':')?, 16).ok());
            if let (Some(offset), Some(bytes), Some(text)) = (offset, columns.next(), columns.next()) {
                let mnemonic = text.split_whitespace().next().unwrap_or_default().to_string();
                theirs.insert(offset, (bytes.split_whitespace().count(), mnemonic));
            }
        }
        let mut compared = 0;
        for line in code.functions().iter().flat_map(|f| f.lines()) {
            let (length, mnemonic) = &theirs[&line.offset];
            let ours = line.text.split(' ').next().unwrap();
            assert_eq!(line.bytes.len(), *length, "{:x} {}", line.offset, line.text);
            assert!(ours == mnemonic || mnemonic == "movabs", "{:x} {}: {mnemonic}", line.offset, line.text);
            compared += 1;
        }
        assert!(compared > 1000);
    });
}

fn architectures() -> impl Strategy<Value = Architecture> {
    prop_oneof![Just(X86), Just(ARM)]
}

/// Random bytes, or mostly zeros, as padding is.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let sparse = prop_oneof![60 => Just(0u8), 1 => any::<u8>()];
    prop_oneof![proptest::collection::vec(any::<u8>(), 0..600), proptest::collection::vec(sparse, 0..600),]
}

proptest! {
    /// Random bytes under any step table that the format admits: every byte once, and no end of the world.
    #[test]
    fn any_bytes_are_listed(
        architecture in architectures(),
        bytes in bytes(),
        steps in proptest::collection::vec((any::<u16>(), any::<u16>()), 0..12),
    ) {
        let step = |(offset, length): &(u16, u16)| {
            let offset = u64::from(*offset) % (bytes.len() as u64 + 1);
            let bytes = u64::from(*length) % (bytes.len() as u64 - offset + 1);
            Step { name: "step", op: "", entry: "prefill", offset, bytes }
        };
        let steps: Vec<_> = steps.iter().map(step).collect();
        let code = Code::new(architecture, &bytes, steps.clone(), vec!["k"]);
        check_cover(&code, &steps, &bytes);
    }

    /// Random branches among loads of the context: following them ends.
    #[test]
    fn any_control_flow_is_followed(
        picks in proptest::collection::vec((0u8..8, any::<i8>()), 0..400),
    ) {
        let word = |(kind, distance): &(u8, i8)| match kind {
            0 => 0x5400_0000 | (*distance as i32 as u32 & 0x7_ffff) << 5,
            1 => 0x1400_0000 | *distance as i32 as u32 & 0x3ff_ffff,
            2 => A_KERNELS,
            3 => A_SLOT_2,
            4 => 0xf900_03e0 | (*distance as u8 as u32 & 0x3f) << 10,
            5 => 0xf940_03e0 | (*distance as u8 as u32 & 0x3f) << 10,
            6 => A_CALL,
            _ => 0xd100_43ff,
        };
        let list: Vec<u32> = picks.iter().map(word).collect();
        let bytes = words(&list);
        let step = Step { name: "f", op: "", entry: "prefill", offset: 0, bytes: bytes.len() as u64 };
        check_cover(&Code::new(ARM, &bytes, vec![step], vec!["k"; 3]), &[step], &bytes);
    }
}
