//! docs/quantization.md: what a product gives in instructions is what that page says, and how far codes are from numbers.

use crate::dice::Dice;
use crate::memory::Memories;
use crate::products::{product, shape};
use crate::programs::word;
use crate::sequencer::Oracle;
use crate::tests_oracle::machine;

#[test]
fn products_are_those_of_the_page() {
    let mut dice = Dice::new(5);
    for round in 0..200 {
        let (rows, cols) = dice.of(&[(16, 16), (8, 8), (32, 16)]);
        let shape = shape(&mut dice, rows, cols);
        let product = product(&mut dice, shape);
        let mut oracle = Oracle::new(Memories::new(&machine(rows as u64, cols as u64, false)));
        oracle.memories.dram[..product.dram.len()].copy_from_slice(&product.dram);
        oracle.run(&product.words).unwrap_or_else(|stop| panic!("{round}, {shape:?}: {stop:?}"));
        for (i, wanted) in product.wanted.iter().enumerate() {
            let found = oracle.memories.float(4 * i as i64);
            assert_eq!(found.to_bits(), wanted.to_bits(), "{round}, {shape:?}: number {i} is {found}, not {wanted}");
        }
    }
}

/// A code is no further than half a step from its number, and the largest number is 127 or −127.
#[test]
fn codes_are_near_their_numbers() {
    let mut dice = Dice::new(6);
    for _ in 0..500 {
        let mut oracle = Oracle::new(Memories::new(&machine(8, 8, false)));
        let cols = dice.within(1, 200);
        let size = 2f32.powi(dice.within(-110, 100) as i32);
        let numbers: Vec<f32> = (0..cols).map(|_| dice.within(-1000, 1000) as f32 / 777.0 * size).collect();
        for (j, x) in numbers.iter().enumerate() {
            oracle.memories.put_float(4 * j as i64, *x);
        }
        let operands = [("dst", (8192 / 32) << 5), ("a", 0), ("scales", (12288 / 32) << 5), ("cols", cols as u64)];
        let quantize = word("v.quantize", &operands);
        oracle.run(&[quantize, word("halt", &[])]).expect("no fault");
        let scale = oracle.memories.float(12288);
        let amax = numbers.iter().fold(0f32, |amax, x| amax.max(x.abs()));
        assert_eq!(scale == 0.0, f64::from(amax) < 2f64.powi(-100));
        for (j, x) in numbers.iter().enumerate() {
            let code = oracle.memories.scratchpad[8192 + j] as i8;
            let error = (f64::from(code) * f64::from(scale) - f64::from(*x)).abs();
            assert!(error <= f64::from(scale) * 0.500_01 || scale == 0.0, "{x}: {code}·{scale}");
            assert!(x.abs() != amax || scale == 0.0 || code.unsigned_abs() == 127);
            assert!(scale != 0.0 || code == 0);
        }
    }
}
