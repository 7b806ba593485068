//! The programs of `examples/npu` assemble and pass the verifier on every preset.

use std::fs;
use std::path::Path;

use lapidary_npu_isa::asm::assemble;
use lapidary_npu_isa::disasm::disassemble;
use lapidary_npu_isa::machine::PRESETS;
use lapidary_npu_isa::verify::verify;
use lapidary_npu_isa::{Machine, Program};

#[test]
fn examples_verify() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/npu");
    let mut seen = 0;
    for entry in fs::read_dir(folder).expect("examples/npu") {
        let path = entry.expect("an entry").path();
        let name = path.display();
        let text = fs::read_to_string(&path).expect("text");
        let program = assemble(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        let bytes = program.to_bytes().expect("bytes");
        assert_eq!(Program::from_bytes(&bytes).expect("its own bytes"), program, "{name}");
        assert_eq!(
            assemble(&disassemble(&program, true)).expect("its own text").to_bytes().expect("bytes"),
            bytes,
            "{name}"
        );
        for (machine, _) in PRESETS {
            let machine = Machine::preset(machine).expect("a preset");
            let verified = verify(&program, &machine).unwrap_or_else(|e| panic!("{name} on {}: {e}", machine.name()));
            assert!(verified.paths >= 1);
        }
        seen += 1;
    }
    assert!(seen >= 3, "the examples are gone");
}
