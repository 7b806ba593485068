//! Assembly text: what it means, and what is wrong with wrong text.

use lapidary_npu_isa::asm::assemble;
use lapidary_npu_isa::disasm::disassemble;
use lapidary_npu_isa::program::Segment;
use lapidary_npu_isa::{Op, Program, Reg};

fn program(text: &str) -> Program {
    assemble(text).unwrap_or_else(|e| panic!("{e}"))
}

fn error(text: &str) -> String {
    assemble(text).expect_err("wrong text").to_string()
}

#[test]
fn expressions_and_names() {
    let text = "
.equ D, 0x40                ; names of numbers,
.equ rows, r7               ; registers
.equ ready, t9              ; and tokens
.equ BIG, (D*2 + -8/2) << 3 & 0xffff | 1
start: li rows, BIG
    li r8, -0.5f
    li r9, 0xffff_ffff_ffff_ffff
    v.add sp[rows+D*2], sp[D], sp[ rows ], cols=D/2-2, rows = rows, b_type=f16 wait(ready, t1), post(ready)
    branch lt, rows, D, done
    add r1, rows, -D
done:
last: halt
";
    let p = program(text);
    let lines: Vec<String> = p.instructions.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "li r7, 993",
            "li r8, 3204448256",
            "li r9, -1",
            "v.add sp[r7+128], sp[64], sp[r7], cols=30, rows=r7, b_type=f16 wait(t9, t1) post(t9)",
            "branch lt, r7, 64, .+1",
            "add r1, r7, -64",
            "halt",
        ]
    );
    let labels: Vec<(&str, u32)> = p.labels.iter().map(|l| (l.name.as_str(), l.at)).collect();
    assert_eq!(labels, [("start", 0), ("done", 6), ("last", 6)]);
    assert!(disassemble(&p, false).contains("branch lt, r7, 64, done\n"));
}

#[test]
fn loops() {
    let p = program("loop r1, count=3\nloop r2, count=r3, max=9\nend\nend\nhalt");
    let heads: Vec<(u32, u32)> = p
        .instructions
        .iter()
        .filter_map(|i| match i.op {
            Op::Loop(head) => Some((head.max.0, head.body.0)),
            _ => None,
        })
        .collect();
    assert_eq!(heads, [(3, 2), (9, 0)]);
}

#[test]
fn data() {
    let p = program(
        ".data a, at=128\n.i4 1, -2, 7\n.u8 255\n.f16 1, -0.5\n.zero 2\n.i32 -2\n.fill u32, 3, 2\n.zero 100\n\
         .space b, 10\n.data c, at=0\n.f32 1.5, 2\n.op \"part\", module=r3\nli r1, b\nhalt",
    );
    let contents = [0xe1, 0x07, 255, 0x00, 0x3c, 0x00, 0xb8, 0, 0, 0xfe, 255, 255, 255, 3, 0, 0, 0, 3, 0, 0, 0];
    let segment = |name: &str, address, len_bytes, bytes: &[u8]| Segment {
        name: name.into(),
        address,
        len_bytes,
        bytes: bytes.into(),
    };
    let c: Vec<u8> = [1.5f32, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(p.segments, [segment("c", 0, 8, &c), segment("a", 128, 121, &contents), segment("b", 256, 10, &[])]);
    assert_eq!(p.instructions[0].to_string(), "li r1, 256");
    assert_eq!(p.op_label(0).map(|l| (l.name.as_str(), l.module)), Some(("part", Reg::new(3))));
}

#[test]
fn errors_show_the_place() {
    assert_eq!(
        error("halt\n  m.pass sp[0], acc[0], rows=9000, k=16 ; too many\n"),
        "line 2, column 30: m.pass, operand rows: wanted 0 to 8191 or a register, found `9000`\n\
         \x20     m.pass sp[0], acc[0], rows=9000, k=16 ; too many\n\
         \x20                                ^^^^"
    );
    let cases = [
        (
            "v.add sp[16], sp[0], sp[0], cols=1",
            "line 1, column 7: v.add, operand dst: wanted an offset from 0 to 1048544 in steps of 32, found 16: put it in a register",
        ),
        (
            "v.add w[0], sp[0], sp[0], cols=1",
            "line 1, column 7: v.add, operand dst: wanted an address like `sp[r1+32]`, found `w[0]`",
        ),
        ("v.add sp[0], sp[0], cols=1", "line 1, column 1: v.add, operand b: wanted one, found none"),
        ("v.add sp[0], sp[0], sp[0]", "line 1, column 1: v.add, operand cols: wanted cols=…, found none"),
        ("v.add sp[0], sp[0], sp[0], sp[0], cols=1", "line 1, column 28: v.add: wanted no such operand, found `sp[0]`"),
        ("v.add sp[0], sp[0], sp[0], cols=1, row=r1", "line 1, column 36: v.add: wanted no such operand, found `row`"),
        ("v.add sp[0], sp[0], sp[0], cols=1, cols=2", "line 1, column 36: v.add: wanted no such operand, found `cols`"),
        (
            "v.add sp[0], sp[0], sp[0], cols=1, b_type=f64",
            "line 1, column 43: v.add, operand b_type: wanted one of `f32`, `f16`, `i8`, `i32`, found `f64`",
        ),
        (
            "v.add sp[0], sp[0], sp[0], cols=1, rows=4",
            "line 1, column 41: v.add, operand rows: wanted a register from r1 to r31, found `4`",
        ),
        (
            "v.add sp[0], sp[0], sp[0], cols=1 wait(t32)",
            "line 1, column 40: v.add, wait: wanted a token from t1 to t31, found `t32`",
        ),
        (
            "v.add sp[0], sp[0], sp[0], cols=1 post(t1, t2, t3)",
            "line 1, column 48: v.add, post: wanted at most two tokens, found `t3`",
        ),
        ("add r1, r2, 3 post(t1)", "line 1, column 15: add, tokens: wanted none on this instruction, found `post`"),
        ("li r0, 1", "line 1, column 4: li, operand rd: wanted a register from r1 to r31, found `r0`"),
        (
            "li r1, x",
            "line 1, column 8: li, operand value: wanted an integer of 64 bits or an f32 like `0.5f`, found `x`",
        ),
        ("li r1, 1 << 63", "line 1, column 8: li, operand value: wanted a result of 64 bits, found 1 and 63"),
        (
            "mul r1, r2, 1 << 40",
            "line 1, column 13: mul, operand b: wanted an integer of 32 bits or a register, found `1099511627776`",
        ),
        ("add1 r1, r2, 3", "line 1, column 1: instruction: wanted a mnemonic of ISA.md, found `add1`"),
        (
            "mix_rows r1",
            "line 1, column 1: instruction: wanted a mnemonic of ISA.md, found `mix_rows` (there is v.mix_rows)",
        ),
        ("a:\na: halt", "line 2, column 1: label: wanted a new name, found `a` a second time"),
        ("loop: halt", "line 1, column 1: label: wanted a name that is no word of the language, found `loop`"),
        (
            "back: li r1, 1\nskip_if_zero r1, back\nhalt",
            "line 2, column 18: skip_if_zero, operand target: wanted a label further down, found `back`, which is behind: use `loop`",
        ),
        (
            "skip_if_zero r1, nowhere\nhalt",
            "line 1, column 18: skip_if_zero, operand target: wanted a label further down, or `.+N`, found `nowhere`",
        ),
        ("loop r1, count=4\nhalt", "line 1, column 1: loop: wanted an `end` further down, found none"),
        ("end\nhalt", "line 1, column 1: end: wanted a `loop` before it, found none"),
        ("loop r1, count=r2\nend\nhalt", "line 1, column 1: loop, operand max: wanted max=…, found none"),
        ("li r1, 1", "line 1, column 1: program: number of `halt`s behind the last instruction: wanted 1, found 0"),
        (
            "skip_if_zero r1, in\nloop r2, count=3\nin: end\nhalt",
            "line 1, column 1: program: loop of the branch's target, by the position behind its head (0: none): wanted 0, found 2",
        ),
        (".u8 3\nhalt", "line 1, column 5: .u8: wanted a `.data` before it, found none"),
        (".data a\n.u8 300\nhalt", "line 2, column 5: .u8: wanted 0 to 255, found 300"),
        (".data a\n.i4 8\nhalt", "line 2, column 5: .i4: wanted -8 to 7, found 8"),
        (".data a\n.f32 x\nhalt", "line 2, column 6: .f32: wanted a number, found `x`"),
        (
            ".data a\n.fill u8, 1, 1 << 40\nhalt",
            "line 2, column 14: .fill: wanted at most 67108864, found 1099511627776",
        ),
        (
            ".data a\n.zero 1 << 39\n.u8 1\nhalt",
            "line 3, column 5: .u8: wanted at most 67108864 bytes of contents, found 549755813889",
        ),
        (
            ".space a, 1 << 41\nhalt",
            "line 1, column 8: .space: wanted a segment below 1099511627776, found 2199023255552 bytes at 0",
        ),
        (".equ x, y\nhalt", "line 1, column 9: .equ: wanted a number, a register or a token, found `y`"),
        (".equ f16, 1\nhalt", "line 1, column 6: .equ: wanted a name that is no word of the language, found `f16`"),
        (".tune a\nhalt", "line 1, column 1: directive: wanted one of the assembler's directives, found `.tune`"),
        (".op part\nhalt", "line 1, column 5: .op: wanted a printable name in quotes, found `part`"),
        (
            ".machine abc\nhalt",
            "line 1, column 10: .machine: wanted a hash of 64 hexadecimal digits or a preset, found `abc`",
        ),
    ];
    for (text, wanted) in cases {
        assert_eq!(error(text).lines().next(), Some(wanted), "{text}");
    }
    let two = error(".data a, at=0\n.u8 1, 2\n.data b, at=1\n.u8 1\nhalt");
    assert!(two.contains("address of a segment: wanted at least 2, found 1"), "{two}");
    let deep = error(&format!("li r1, {}1\nhalt", "(".repeat(100_000)));
    assert!(deep.contains("wanted at most 32 nested signs"), "{deep}");
}
