//! Test data: random numbers, buffers that end at an unreadable page, and comparison that sees every element.

use std::ops::{Deref, DerefMut};

/// Deterministic random numbers (SplitMix64, Steele et al. 2014).
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// In −1..1.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn flag(&mut self) -> bool {
        self.bits() & 1 == 1
    }

    pub fn floats(&mut self, n: usize, scale: f32) -> Guarded<f32> {
        Guarded::from_fn(n, |_| self.unit() * scale)
    }
}

/// A buffer whose end is the end of a page, and the next page cannot be read or written.
pub struct Guarded<T: Copy> {
    map: *mut libc::c_void,
    map_bytes: usize,
    data: *mut T,
    len: usize,
}

impl<T: Copy> Guarded<T> {
    pub fn from_fn(len: usize, mut f: impl FnMut(usize) -> T) -> Self {
        let bytes = len * size_of::<T>();
        // SAFETY: a fresh anonymous mapping of whole pages, the last of which is made unreadable; the data ends where
        // that page begins, is aligned because sizes are multiples of alignments, and is written before it is read.
        unsafe {
            let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
            let data_bytes = bytes.next_multiple_of(page);
            let map_bytes = data_bytes + page;
            let map = libc::mmap(
                std::ptr::null_mut(),
                map_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(map, libc::MAP_FAILED, "mmap of {map_bytes} bytes");
            let end = map.cast::<u8>().add(data_bytes);
            assert_eq!(libc::mprotect(end.cast(), page, libc::PROT_NONE), 0);
            let data = end.sub(bytes).cast::<T>();
            for i in 0..len {
                data.add(i).write(f(i));
            }
            Self { map, map_bytes, data, len }
        }
    }

    pub fn filled(len: usize, value: T) -> Self {
        Self::from_fn(len, |_| value)
    }

    pub fn of(values: &[T]) -> Self {
        Self::from_fn(values.len(), |i| values[i])
    }
}

impl<T: Copy> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: this value's own mapping.
        unsafe { libc::munmap(self.map, self.map_bytes) };
    }
}

impl<T: Copy> Deref for Guarded<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements were written at `data`.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}

impl<T: Copy> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: `len` elements were written at `data`.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }
}

/// What must not be touched.
pub const UNTOUCHED: f32 = -12_345.678;

/// What each element of a buffer must be: within a tolerance of a value, or untouched.
pub struct Expected(Vec<Option<(f64, f64)>>);

impl Expected {
    pub fn untouched(len: usize) -> Self {
        Self(vec![None; len])
    }

    pub fn set(&mut self, at: usize, value: f64, tolerance: f64) {
        self.0[at] = Some((value, tolerance));
    }

    #[track_caller]
    pub fn check(&self, found: &[f32], what: impl Fn() -> String) {
        assert_eq!(found.len(), self.0.len());
        for (i, (&found, wanted)) in found.iter().zip(&self.0).enumerate() {
            match *wanted {
                None => assert_eq!(found.to_bits(), UNTOUCHED.to_bits(), "{}: element {i} was written", what()),
                Some((wanted, tolerance)) => {
                    let error = (f64::from(found) - wanted).abs();
                    assert!(error <= tolerance, "{}: element {i} is {found}, wanted {wanted} ± {tolerance:e}", what());
                }
            }
        }
    }
}
