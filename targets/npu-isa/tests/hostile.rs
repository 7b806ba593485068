//! Damaged machine files, programs and texts: an error or a result, never a panic, never a large allocation.

mod common;

use common::{Random, cases, program};
use lapidary_npu_isa::asm::assemble;
use lapidary_npu_isa::disasm::disassemble;
use lapidary_npu_isa::machine::PRESETS;
use lapidary_npu_isa::{Machine, Program};

fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() as u64 + 1) as usize;
        let end = (at + 1 + random.below(12) as usize).min(bytes.len());
        match random.below(6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            3 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            4 if at < bytes.len() => {
                bytes[at] = [0, 0xff, b'9', b'[', b'-', b'"', b'\n', b'(', b',', b'='][random.below(10) as usize]
            }
            _ => bytes.insert(at, random.next() as u8),
        }
    }
}

/// Correct checksums, so that what is behind them is reached.
fn sign(bytes: &mut [u8]) {
    if bytes.len() >= 80 {
        let len = bytes.len() as u64;
        bytes[64..72].copy_from_slice(&len.to_le_bytes());
        let body = crc32fast::hash(&bytes[80..]);
        bytes[72..76].copy_from_slice(&body.to_le_bytes());
        let header = crc32fast::hash(&bytes[..76]);
        bytes[76..80].copy_from_slice(&header.to_le_bytes());
    }
}

#[test]
fn damaged_programs() {
    let mut random = Random(2);
    for _ in 0..cases(2000, 100_000) {
        let mut bytes = program(&mut random).to_bytes().expect("a good program");
        damage(&mut random, &mut bytes);
        if random.below(8) > 0 {
            sign(&mut bytes);
        }
        match Program::from_bytes(&bytes) {
            Ok(read) => assert_eq!(read.to_bytes().expect("it was read"), bytes),
            Err(error) => assert!(error.to_string().contains("wanted"), "{error}"),
        }
    }
}

#[test]
fn damaged_texts() {
    let mut random = Random(3);
    for _ in 0..cases(2000, 100_000) {
        let mut bytes = disassemble(&program(&mut random), false).into_bytes();
        damage(&mut random, &mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        match assemble(&text) {
            Ok(read) => {
                let again = assemble(&disassemble(&read, false)).expect("its own text");
                assert_eq!(again.to_bytes(), read.to_bytes());
            }
            Err(error) => {
                let shown = error.to_string();
                assert!(shown.contains("wanted") && error.line >= 1 && error.column >= 1, "{shown}");
            }
        }
    }
}

#[test]
fn damaged_machines() {
    let mut random = Random(4);
    for i in 0..cases(2000, 100_000) {
        let mut bytes = PRESETS[i as usize % PRESETS.len()].1.as_bytes().to_vec();
        // Comments are most of the file; without them damage meets keys and values.
        if random.below(4) > 0 {
            let text = String::from_utf8(bytes).expect("UTF-8");
            bytes = text.lines().filter(|l| !l.starts_with('#')).collect::<Vec<_>>().join("\n").into_bytes();
        }
        damage(&mut random, &mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        match Machine::parse(&text) {
            Ok(machine) => assert!(machine.burst_ps() > 0 && machine.accumulator_rows() > 0),
            Err(error) => assert!(error.to_string().contains("wanted") && error.to_string().len() < 1000, "{error}"),
        }
    }
}
