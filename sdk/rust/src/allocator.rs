//! The component's allocator. An instance lives for one call, so most memory is never given back: blocks are cut from the
//! end of memory, and what is freed waits in lists by size for the next block of that size. It starts in the memory that
//! the instance has anyway, because asking for more costs a system call, which a call of one row would feel.
#![allow(unsafe_code)]

use core::alloc::{GlobalAlloc, Layout};
use core::arch::wasm32;
use core::cell::UnsafeCell;
use core::ptr;

use crate::size_classes::{CLASSES, GRAIN_BYTES, block_bytes, class_for, class_of_freed, is_small};

const PAGE_BYTES: usize = 64 * 1024;
/// Memory grows by a quarter, but not by more than this beyond what is needed.
const GROWTH_BYTES_MAX: usize = 1024 * 1024;

struct Heap {
    /// Where the next block begins; 0 before the first.
    next: usize,
    /// End of the memory the instance has.
    end: usize,
    /// Address of the block that was freed last, by size class; 0 for none.
    free: [usize; CLASSES],
}

/// What stands in a freed block. The shortest block has room for it.
struct Freed {
    /// Address of the block of its class that was freed before; 0 for none.
    before: usize,
    /// Its length.
    bytes: usize,
}

struct Allocator(UnsafeCell<Heap>);

// SAFETY: a component has one thread.
unsafe impl Sync for Allocator {}

#[global_allocator]
static ALLOCATOR: Allocator = Allocator(UnsafeCell::new(Heap { next: 0, end: 0, free: [0; CLASSES] }));

impl Heap {
    /// A freed block of that length or more; null if none is found without searching.
    #[inline(always)]
    unsafe fn reuse(&mut self, bytes: usize) -> *mut u8 {
        if is_small(bytes) {
            return unsafe { self.take(class_of_freed(bytes), bytes) };
        }
        unsafe { self.reuse_large(bytes) }
    }

    /// Lists of large blocks hold several sizes. The last block freed in this size's own list often has the very size,
    /// as when a buffer is made and dropped in every row; those of the next list are all long enough.
    unsafe fn reuse_large(&mut self, bytes: usize) -> *mut u8 {
        let block = unsafe { self.take(class_of_freed(bytes), bytes) };
        if !block.is_null() {
            return block;
        }
        unsafe { self.take(class_for(bytes), bytes) }
    }

    /// The block that was freed last in this class, if it is long enough.
    #[inline(always)]
    unsafe fn take(&mut self, class: usize, bytes: usize) -> *mut u8 {
        let head = &mut self.free[class];
        if *head == 0 {
            return ptr::null_mut();
        }
        let block: *mut Freed = ptr::with_exposed_provenance_mut(*head);
        let freed = unsafe { &*block };
        if freed.bytes < bytes {
            return ptr::null_mut();
        }
        *head = freed.before;
        block.cast()
    }

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
// one is handed out again only where its length, which it carries, suffices.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let heap = unsafe { &mut *self.0.get() };
        let bytes = block_bytes(layout);
        if layout.align() <= GRAIN_BYTES {
            let block = unsafe { heap.reuse(bytes) };
            if !block.is_null() {
                return block;
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
        unsafe { block.cast::<Freed>().write(Freed { before: *head, bytes }) };
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
