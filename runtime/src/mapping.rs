//! Memory from the operating system: mapped files and zeroed pages.
//!
//! The structures that borrow from a mapping live beside it in one owner, so their lifetimes are extended here, and
//! only here.

use std::{boxed::Box, fs::File, io, ops::Range, vec::Vec};

use lapidary_format::abi::KernelFn;
use memmap2::{Mmap, MmapMut, MmapOptions};

/// A file, or a part of one, mapped read-only.
#[derive(Debug)]
pub(crate) struct FileMap {
    map: Mmap,
}

impl FileMap {
    /// Maps `range` of `file`, which begins at a multiple of the page size.
    pub(crate) fn new(file: &File, range: Range<u64>) -> io::Result<Self> {
        let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let mut options = MmapOptions::new();
        // SAFETY: nothing here writes to the map. Artifacts are replaced by renaming, never written in place; whoever
        // truncates one all the same ends this process with SIGBUS.
        let map = unsafe { options.offset(range.start).len(len).map(file)? };
        Ok(Self { map })
    }

    /// Maps `range` of `file` read-execute.
    pub(crate) fn executable(file: &File, range: Range<u64>) -> io::Result<Self> {
        let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let mut options = MmapOptions::new();
        // SAFETY: as above. The kernel keeps instruction caches coherent when it maps pages executable.
        let map = unsafe { options.offset(range.start).len(len).map_exec(file)? };
        Ok(Self { map })
    }

    /// The bytes, for as long as `self` lives.
    ///
    /// # Safety
    /// The result is not used after `self` is dropped.
    pub(crate) unsafe fn bytes(&self) -> &'static [u8] {
        // SAFETY: the map stays at its address until it is dropped; the caller keeps to that.
        unsafe { core::slice::from_raw_parts(self.map.as_ptr(), self.map.len()) }
    }
}

/// Zeroed pages, given memory only when they are touched.
#[derive(Debug)]
pub(crate) struct Pages {
    map: MmapMut,
}

impl Pages {
    /// At least `bytes` bytes.
    pub(crate) fn new(bytes: u64) -> io::Result<Self> {
        let len = usize::try_from(bytes.max(1)).unwrap_or(usize::MAX);
        Ok(Self { map: MmapMut::map_anon(len)? })
    }

    /// The bytes, for as long as `self` lives.
    ///
    /// # Safety
    /// The result is not used after `self` is dropped, and this is called once.
    pub(crate) unsafe fn bytes(&mut self) -> &'static mut [u8] {
        // SAFETY: the map stays at its address until it is dropped, and the caller has the only reference into it.
        unsafe { core::slice::from_raw_parts_mut(self.map.as_mut_ptr(), self.map.len()) }
    }
}

/// The kernel table of a program, at an address of its own.
#[derive(Debug)]
pub(crate) struct KernelTable {
    base: *mut Option<KernelFn>,
    len: usize,
}

impl KernelTable {
    pub(crate) fn new(len: usize) -> Self {
        let slots: Box<[Option<KernelFn>]> = std::vec![None; len].into_boxed_slice();
        Self { base: Box::into_raw(slots).cast(), len }
    }

    /// The slots, for as long as `self` lives.
    ///
    /// # Safety
    /// The result is not used after `self` is dropped, and this is called once.
    pub(crate) unsafe fn slots(&mut self) -> &'static mut [Option<KernelFn>] {
        // SAFETY: base and length came from a boxed slice; the caller has the only reference to it.
        unsafe { core::slice::from_raw_parts_mut(self.base, self.len) }
    }
}

impl Drop for KernelTable {
    fn drop(&mut self) {
        // SAFETY: base, length and therefore capacity came from a boxed slice in `new`.
        drop(unsafe { Vec::from_raw_parts(self.base, self.len, self.len) });
    }
}

// SAFETY: the table owns its slots, and function pointers may go to any thread.
unsafe impl Send for KernelTable {}
// SAFETY: a shared reference gives no access to the slots.
unsafe impl Sync for KernelTable {}
