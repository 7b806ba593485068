//! Instructions and programs: words, bytes and text say the same.

mod common;

use common::{Random, cases, instruction, program};
use lapidary_npu_isa::asm::assemble;
use lapidary_npu_isa::disasm::disassemble;
use lapidary_npu_isa::{Instruction, Program, ROWS};
use proptest::prelude::*;

/// Every row, with random operands: word → instruction → word, and text → the same word.
#[test]
fn every_row() {
    let mut random = Random(1);
    for row in ROWS {
        for _ in 0..cases(200, 5000) {
            let one = instruction(&mut random, row);
            let word = one.encode().unwrap_or_else(|e| panic!("{one}: {e}"));
            assert_eq!(word & 127, u128::from(row.opcode));
            assert_eq!(Instruction::decode(word), Ok(one));
            assert_eq!(one.op.row().mnemonic, row.mnemonic);
            // Loops and branches need their surroundings.
            let text = one.to_string();
            if !["loop", "end", "branch", "skip_if_zero", "halt"].contains(&row.mnemonic) {
                let read = assemble(&format!("{text}\nhalt\n")).unwrap_or_else(|e| panic!("{text}: {e}"));
                assert_eq!(read.instructions[0], one, "{text}");
            }
        }
    }
}

#[test]
fn table_is_consistent() {
    for (i, row) in ROWS.iter().enumerate() {
        assert!(row.opcode > 0 && row.opcode < 128, "{}", row.mnemonic);
        assert!(ROWS[..i].iter().all(|r| r.opcode != row.opcode && r.mnemonic != row.mnemonic), "{}", row.mnemonic);
        assert!(row.about.trim().ends_with('.') || row.about.trim().ends_with("text."), "{}: a sentence", row.mnemonic);
        let bits: u32 = row.fields.iter().map(|f| f.bits).sum();
        assert!(bits <= 101, "{}", row.mnemonic);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(256, 20_000)))]

    #[test]
    fn programs(seed: u64) {
        let one = program(&mut Random(seed));
        let bytes = one.to_bytes().expect("a good program");
        let read = Program::from_bytes(&bytes).expect("its own bytes");
        prop_assert_eq!(&read, &one);
        for words in [false, true] {
            let text = disassemble(&one, words);
            let assembled = match assemble(&text) {
                Ok(p) => p,
                Err(e) => return Err(TestCaseError::fail(format!("{e}\n{text}"))),
            };
            prop_assert_eq!(assembled.to_bytes().expect("a good program"), bytes.clone(), "{}", text);
        }
    }

    /// A word is one instruction or none, and what it decodes to encodes to it.
    #[test]
    fn any_word(word: u128, opcode in 0u8..128) {
        for word in [word, word & !127 | u128::from(opcode), (word >> 60) & !127 | u128::from(opcode)] {
            if let Ok(one) = Instruction::decode(word) {
                prop_assert_eq!(one.encode(), Ok(word));
            }
        }
    }

    /// Registers with any values: accesses or a fault, no panic.
    #[test]
    fn accesses_of_anything(seed: u64) {
        let mut random = Random(seed);
        let mut regs = lapidary_npu_isa::Registers::default();
        for n in 1..32 {
            let shift = random.below(64);
            regs.set(lapidary_npu_isa::Reg::new(n).expect("a register"), (random.next() as i64) >> shift);
        }
        for row in ROWS {
            if let Ok(list) = instruction(&mut random, row).op.accesses(&regs) {
                for access in list {
                    prop_assert!(access.end() >= access.begin);
                }
            }
        }
    }
}
