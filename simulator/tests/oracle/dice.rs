//! Random choices with fixed seeds (SplitMix64), weighted to edges.

pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// From 0 to n − 1.
    pub fn below(&mut self, n: i64) -> i64 {
        assert!(n > 0, "no number below {n}");
        (self.bits() % n as u64) as i64
    }

    pub fn within(&mut self, least: i64, most: i64) -> i64 {
        least + self.below(most - least + 1)
    }

    /// True once in n times.
    pub fn once_in(&mut self, n: i64) -> bool {
        self.below(n) == 0
    }

    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as i64) as usize]
    }

    /// A count from 0 to `most`: small ones, the surroundings of tile and lane boundaries, and the largest.
    pub fn count(&mut self, most: i64) -> i64 {
        let edges = [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, most - 1, most];
        let count = match self.below(32) {
            0 => 0,
            1..=4 => 1,
            5..=20 => self.of(&edges),
            21..=28 => self.below(most.min(40) + 1),
            _ => self.below(most + 1),
        };
        count.clamp(0, most)
    }

    /// A float's pattern that is worth trying.
    pub fn float(&mut self) -> u32 {
        const SPECIAL: [u32; 24] = [
            0x0000_0000,
            0x8000_0000,
            0x3f80_0000,
            0xbf80_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0000,
            0xffc0_0000,
            0x7f80_0001,
            0xffff_ffff,
            0x0000_0001,
            0x8000_0001,
            0x007f_ffff,
            0x0080_0000,
            0x7f7f_ffff,
            0xff7f_ffff,
            0x3f00_0000,
            0x3fc0_0000,
            0x42fe_0000,
            0x42ff_0000,
            0x477f_e000,
            0x477f_f000,
            0x3380_0000,
            0x0d80_0000,
        ];
        match self.below(8) {
            0 => self.of(&SPECIAL),
            1 => self.bits() as u32,
            // Halves of integers: ties of rounding.
            2 => (self.within(-300, 300) as f32 / 2.0).to_bits(),
            _ => (self.within(-1 << 20, 1 << 20) as f32 / self.of(&[1e3f32, 1e5, 1e6, 1e8])).to_bits(),
        }
    }

    /// Fills memory in blocks that each hold one kind of contents.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for block in bytes.chunks_mut(192) {
            match self.below(6) {
                0 => block.iter_mut().for_each(|b| *b = self.bits() as u8),
                // Masks.
                1 => block.iter_mut().for_each(|b| *b = self.of(&[0, 0, 0, 1, 1, 255])),
                // Scores with ties.
                2 => self.fill_words(block, |dice| dice.of(&[0x3f00_0000, 0x3e80_0000, 0x3f80_0000, 0, 0x8000_0000])),
                // Small integers.
                3 => self.fill_words(block, |dice| dice.within(-40, 40) as u32),
                // Halves.
                4 => self.fill_words(block, |dice| {
                    let half = |dice: &mut Dice| {
                        if dice.once_in(4) { dice.bits() as u32 & 0xffff } else { 0x3a00 + dice.below(0x400) as u32 }
                    };
                    half(dice) << 16 | half(dice)
                }),
                _ => self.fill_words(block, Dice::float),
            }
        }
    }

    fn fill_words(&mut self, bytes: &mut [u8], mut word: impl FnMut(&mut Dice) -> u32) {
        for chunk in bytes.chunks_mut(4) {
            let word = word(self).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}
