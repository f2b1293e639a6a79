//! The component's allocator. An instance lives for one call, so most memory is never given back: blocks are cut from the
//! end of memory, and what is freed waits in lists by size for the next block of that size. It starts in the memory that
//! the instance has anyway, because asking for more costs a system call, which a call of one row would feel.
#![allow(unsafe_code)]

use core::alloc::{GlobalAlloc, Layout};
use core::arch::wasm32;
use core::cell::UnsafeCell;
use core::ptr;

const PAGE_BYTES: usize = 64 * 1024;
/// Every block is a multiple of this long and begins at one.
const GRAIN_BYTES: usize = 16;
/// Up to here each size has a list of its own; beyond, each power of two.
const SMALL_BYTES_MAX: usize = 512;
const SMALL_CLASSES: usize = SMALL_BYTES_MAX / GRAIN_BYTES;
const LARGE_CLASSES: usize = 32;
/// Memory grows by a quarter, but not by more than this beyond what is needed.
const GROWTH_BYTES_MAX: usize = 1024 * 1024;

struct Heap {
    /// Where the next block begins; 0 before the first.
    next: usize,
    /// End of the memory the instance has.
    end: usize,
    /// Freed blocks, by size class; each holds the address of the one freed before.
    free: [usize; SMALL_CLASSES + LARGE_CLASSES],
}

struct Allocator(UnsafeCell<Heap>);

// SAFETY: a component has one thread.
unsafe impl Sync for Allocator {}

#[global_allocator]
static ALLOCATOR: Allocator =
    Allocator(UnsafeCell::new(Heap { next: 0, end: 0, free: [0; SMALL_CLASSES + LARGE_CLASSES] }));

/// The list in which a block of that size waits; every block in it has at least that size.
#[inline(always)]
fn class_of_freed(block_bytes: usize) -> usize {
    if block_bytes <= SMALL_BYTES_MAX {
        return block_bytes / GRAIN_BYTES - 1;
    }
    SMALL_CLASSES + block_bytes.ilog2() as usize
}

/// The list whose blocks are all long enough.
#[inline(always)]
fn class_for(block_bytes: usize) -> usize {
    if block_bytes <= SMALL_BYTES_MAX {
        return block_bytes / GRAIN_BYTES - 1;
    }
    SMALL_CLASSES + (block_bytes - 1).ilog2() as usize + 1
}

#[inline(always)]
fn block_bytes(layout: Layout) -> usize {
    layout.size().max(1).next_multiple_of(GRAIN_BYTES)
}

impl Heap {
    /// Cuts a block from the end of memory; null if memory cannot grow.
    #[inline(always)]
    unsafe fn cut(&mut self, bytes: usize, align: usize) -> *mut u8 {
        if self.next == 0 {
            unsafe extern "C" {
                static __heap_base: u8;
            }
            self.next = (&raw const __heap_base).addr().next_multiple_of(GRAIN_BYTES);
            self.end = wasm32::memory_size(0) * PAGE_BYTES;
        }
        let begin = self.next.next_multiple_of(align.max(GRAIN_BYTES));
        let Some(end) = begin.checked_add(bytes) else { return ptr::null_mut() };
        if end > self.end && !self.grow(end) {
            return ptr::null_mut();
        }
        self.next = end;
        ptr::with_exposed_provenance_mut(begin)
    }

    #[cold]
    fn grow(&mut self, wanted_end: usize) -> bool {
        let missing = wanted_end - self.end;
        let in_advance = (self.end / 4).min(GROWTH_BYTES_MAX);
        let pages = |bytes: usize| bytes.div_ceil(PAGE_BYTES);
        let added = pages(missing.max(in_advance));
        if wasm32::memory_grow(0, added) == usize::MAX {
            return false;
        }
        self.end += added * PAGE_BYTES;
        true
    }
}

// SAFETY: blocks are disjoint, aligned and at least as long as asked: each is cut once from beyond `next`, and a freed
// one is handed out again only from the list of its own size class.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let heap = unsafe { &mut *self.0.get() };
        let bytes = block_bytes(layout);
        if layout.align() <= GRAIN_BYTES {
            let head = &mut heap.free[class_for(bytes)];
            if *head != 0 {
                let block: *mut usize = ptr::with_exposed_provenance_mut(*head);
                *head = unsafe { *block };
                return block.cast();
            }
        }
        unsafe { heap.cut(bytes, layout.align()) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let heap = unsafe { &mut *self.0.get() };
        let bytes = block_bytes(layout);
        let begin = block.expose_provenance();
        if begin + bytes == heap.next {
            heap.next = begin;
            return;
        }
        let head = &mut heap.free[class_of_freed(bytes)];
        unsafe { *block.cast::<usize>() = *head };
        *head = begin;
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let old_bytes = block_bytes(layout);
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        let new_bytes = block_bytes(new_layout);
        if new_bytes == old_bytes {
            return block;
        }
        let heap = unsafe { &mut *self.0.get() };
        let begin = block.expose_provenance();
        if begin + old_bytes == heap.next {
            // The last block grows and shrinks where it is.
            let end = begin.wrapping_add(new_bytes);
            if end > begin && (end <= heap.end || heap.grow(end)) {
                heap.next = end;
                return block;
            }
            return ptr::null_mut();
        }
        unsafe {
            let moved = self.alloc(new_layout);
            if !moved.is_null() {
                ptr::copy_nonoverlapping(block, moved, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}
