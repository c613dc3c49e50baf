//! Warm HPACK does not allocate, and a fresh decoder or encoder owns no heap memory.
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ringway_proto::fields::{Field, Fields};
use ringway_proto::hpack::{Decoder, Encoder, HeaderLimits, Verdict};

thread_local! {
    // Per thread: the test harness allocates on its own.
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to `System` unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.with(|calls| calls.set(calls.get() + 1));
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `System` with this layout, as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.with(|calls| calls.set(calls.get() + 1));
        // SAFETY: as for `dealloc`; the caller's promise about `size` is passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    let before = CALLS.with(Cell::get);
    work();
    CALLS.with(Cell::get) - before
}

#[test]
fn the_count_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![0u8; 100]))), 1);
}

#[test]
fn fresh_state_owns_no_memory() {
    let made = allocations(|| {
        std::hint::black_box((Decoder::new(4096), Encoder::new()));
    });
    assert_eq!(made, 0);
}

#[test]
fn warm_blocks_allocate_nothing_even_while_the_table_churns() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
    let mut block = Vec::with_capacity(16 * 1024);
    let mut out = Fields::new();
    let mut total = 0;
    for call in 0..2000usize {
        let path = format!("/package.Service{}/Method", call % 90);
        let trace = format!("00-{call:032x}-{call:016x}-01");
        let list = [
            Field::new(b":method", b"POST"),
            Field::new(b":path", path.as_bytes()),
            Field::new(b"content-type", b"application/grpc"),
            Field::new(b"traceparent", trace.as_bytes()),
            Field { never_indexed: true, ..Field::new(b"authorization", b"Bearer key") },
            Field::new(b"grpc-timeout", b"10S"),
        ];
        let made = allocations(|| {
            block.clear();
            encoder.begin(&mut block);
            for field in list {
                encoder.field(field, &mut block);
            }
            let verdict = decoder.decode(&block, &mut out, &HeaderLimits::default());
            assert_eq!(verdict, Ok(Verdict::Fits));
        });
        assert!(out.iter().eq(list));
        if call >= 200 {
            total += made;
        }
    }
    assert_eq!(total, 0);
}
