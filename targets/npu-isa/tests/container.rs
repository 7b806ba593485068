//! What is wrong with wrong `.npu` files, said exactly.

use lapidary_npu_isa::Program;
use lapidary_npu_isa::asm::assemble;

fn good() -> Vec<u8> {
    let text = ".data a\n.u8 1, 2, 3\n.op \"part\", module=r3\nstart: li r1, a\nloop r2, count=2\nend\nhalt\n";
    assemble(text).expect("a program").to_bytes().expect("bytes")
}

/// Length and checksums that fit the bytes.
fn signed(mut bytes: Vec<u8>) -> Vec<u8> {
    let len = bytes.len() as u64;
    bytes[64..72].copy_from_slice(&len.to_le_bytes());
    let body = crc32fast::hash(&bytes[80..]);
    bytes[72..76].copy_from_slice(&body.to_le_bytes());
    let header = crc32fast::hash(&bytes[..76]);
    bytes[76..80].copy_from_slice(&header.to_le_bytes());
    bytes
}

fn with(at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = good();
    bytes[at..at + value.len()].copy_from_slice(value);
    signed(bytes)
}

#[test]
fn layout() {
    let bytes = good();
    // 80 of header, 4 words, a segment, a label, an op label, names, contents.
    assert_eq!(bytes.len(), 80 + 4 * 16 + 32 + 8 + 12 + "a".len() + "start".len() + "part".len() + 3);
    assert_eq!(&bytes[..8], b"\x89NPU\r\n\x1a\n");
    assert_eq!(bytes[80] & 127, 0x02, "li");
    assert!(bytes.ends_with(b"astartpart\x01\x02\x03"));
    assert_eq!(signed(bytes.clone()), bytes);
}

#[test]
fn errors() {
    let words = 80;
    let segment = words + 4 * 16;
    let label = segment + 32;
    let op_label = label + 8;
    let names = op_label + 12;
    let mut longer = good();
    longer.push(0);
    let mut shorter = good();
    shorter.truncate(shorter.len() - 1);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "byte 0x0, magic: wanted 8 bytes, found 0"),
        (good()[..70].to_vec(), "byte 0x40, length: wanted 8 bytes, found 6"),
        (with(0, b"\x7fELF"), "byte 0x0, magic: wanted \\x89NPU\\r\\n\\x1a\\n, found \\x7fELF\\r\\n\\x1a\\n"),
        (with(8, &[2]), "byte 0x8, version: wanted 1.0, found 2.0"),
        (with(12, &[2]), "byte 0xc, machine: wanted 0 and zeros, or 1 and a hash, found 2"),
        (with(16, &[2]), "byte 0xc, machine: wanted 0 and zeros, or 1 and a hash, found 0"),
        (good()[..good().len() - 1].to_vec(), "byte 0x40, length of the file: wanted 209, found 208"),
        (signed(shorter), "byte 0xce, contents of a segment: wanted 3 bytes, found 2"),
        (signed(longer), "byte 0xd1, bytes behind the program: wanted none, found 1"),
        (
            with(48, &[255, 255, 255, 255]),
            "byte 0x30, number of instructions: wanted at most 16777216, found 4294967295",
        ),
        (with(48, &[255, 255]), "byte 0x90, instruction 4: opcode: wanted the opcode of an instruction, found 0x0"),
        (with(words, &[0x7f]), "byte 0x50, instruction 0: opcode: wanted the opcode of an instruction, found 0x7f"),
        (with(words + 15, &[1]), "byte 0x50, instruction 0: li, reserved bits: wanted zeros, found 0x1000000"),
        (with(words + 1, &[1]), "byte 0x50, instruction 0: li, tokens: wanted none on this instruction, found 0x2"),
        (with(segment + 28, &[1]), "byte 0xac, reserved bytes: wanted 0, found 1"),
        (
            with(segment + 8, &[2]),
            "byte 0x0, length of a segment: wanted 1 byte or more, its contents or more, below 2^40, found 2 at 0",
        ),
        (with(segment + 22, &[1]), "byte 0xce, contents of a segment: wanted 281474976710659 bytes, found 3"),
        (with(label, &[4]), "byte 0x0, position of a label: wanted 0 to 3, found 4"),
        (with(op_label + 8, &[32]), "byte 0xc0, register of an op label: wanted 0 to 31, found 32"),
        (with(names, b"9"), "byte 0x0, name: wanted one that is new and no word of the language, found \"9\""),
        (with(names, &[0xff]), "byte 0xc4, name of a segment: wanted UTF-8, found other bytes"),
    ];
    for (bytes, wanted) in cases {
        let error = Program::from_bytes(&bytes).expect_err(wanted).to_string();
        assert_eq!(error, format!("program, {wanted}"));
    }
    let mut damaged = good();
    damaged[100] ^= 1;
    let error = Program::from_bytes(&damaged).expect_err("damaged").to_string();
    assert!(error.starts_with("program, byte 0x48, checksum: wanted "), "{error}");
    // A loop that says another length than its `end`.
    let mut program = assemble("loop r2, count=2\nli r1, 1\nend\nhalt\n").expect("a program");
    program.instructions.remove(1);
    let error = program.to_bytes().expect_err("no program").to_string();
    assert_eq!(error, "program, instruction 0, latest position of its `end`: wanted 1, found 2");
}
