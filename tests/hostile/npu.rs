//! Artifacts for an NPU: damaged as they are, or with all checksums made right again, those of the programs inside too.

use std::path::Path;

use lapidary_format::Artifact;
use lapidary_simulator::{Device, Limits, Options};

use crate::consume::{Outcome, refused};
use crate::mutate::{Subject, damaged, reseal};
use crate::npu_artifact;
use crate::npu_compiled::Compiled;
use crate::{Cases, random, read, verified};

/// What the command allows, made small: a program that is no good has to end.
const LIMITS: Limits = Limits { cycles: 1 << 22, steps: 1 << 18, dram_bytes: 1 << 22 };

/// The cases.
pub fn cases(_: &Path) -> Cases {
    let good = npu_artifact::artifact();
    let hot = verified(&good);
    let code = Artifact::parse(&good).expect("a good artifact").code_range();
    Cases::of(move |n| {
        let mut random = random("npu-artifact", n);
        // Half of the damage to the programs, which are the smallest part of the file.
        let code = code.start as usize..code.end as usize;
        let hot = if random.below(2) == 0 { vec![code.clone()] } else { hot.clone() };
        let (mut bytes, damage) = match n {
            0 => (good.clone(), "nothing".into()),
            _ => damaged(&Subject { bytes: &good, hot: &hot, is_text: false }, &mut random),
        };
        if random.below(4) > 0 {
            reseal_programs(&mut bytes, code.start);
            reseal(&mut bytes, true);
        }
        read(bytes, damage, |bytes| {
            let accepted = consume(bytes)?;
            if n == 0 && !accepted {
                return Err("the undamaged artifact was refused".into());
            }
            Ok(accepted)
        })
    })
}

/// Makes the checksums of the programs from `at` on right, as far as they have lengths.
fn reseal_programs(file: &mut [u8], mut at: usize) {
    for _ in 0..2 {
        let Some(rest) = file.get_mut(at..).filter(|rest| rest.len() >= 80) else { return };
        let length = u64::from_le_bytes(*rest[64..].first_chunk().expect("8 bytes")) as usize;
        let Some(program) = rest.get_mut(..length).filter(|program| program.len() >= 80) else { return };
        let body = crc32fast::hash(&program[80..]);
        program[72..76].copy_from_slice(&body.to_le_bytes());
        let header = crc32fast::hash(&program[..76]);
        program[76..80].copy_from_slice(&header.to_le_bytes());
        at += length.next_multiple_of(16);
    }
}

/// Reads an artifact as `simulate` does, and runs its prefill.
fn consume(bytes: &[u8]) -> Outcome {
    let artifact = match Artifact::parse(bytes) {
        Ok(artifact) => artifact,
        Err(error) => return refused(&error),
    };
    let compiled = match Compiled::parse(&artifact) {
        Ok(compiled) => compiled,
        Err(error) => return refused(&format!("{error:#}")),
    };
    if let Err(error) = compiled.verify(&compiled.machine) {
        return refused(&format!("{error:#}"));
    }
    let mut device = Device::new(&compiled.machine, Options { limits: LIMITS, ..Options::default() });
    let program = &compiled.prefill;
    let mut run = || -> Result<(), lapidary_simulator::SimError> {
        if compiled.weight_bytes > 0 {
            device.write(program, "weights", artifact.weights())?;
        }
        device.write(program, "call", &[2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
        device.write(program, "ids", &[1, 0, 0, 0, 2, 0, 0, 0])?;
        device.run(program, &mut ())?;
        for output in &compiled.outputs {
            device.read(program, &output.segment(), output.row_bytes())?;
        }
        Ok(())
    };
    match run() {
        Ok(()) => Ok(true),
        Err(error) => refused(&error),
    }
}
