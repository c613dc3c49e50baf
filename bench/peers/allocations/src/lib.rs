//! Stands between a process and glibc's allocator (`LD_PRELOAD`) and counts what its cores
//! allocate, in the first eight bytes of the file that `RINGWAY_BENCH_COUNTS` names.
//!
//! A core is a thread whose name begins with `ringway-core`. Everything here runs inside of
//! `malloc`, so nothing in it may allocate.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use libc::{c_int, c_void, size_t};

/// Beginning of a core's name.
const CORE: &[u8] = b"ringway-core";
/// Looks at a thread's name before it counts as none of a core's: a thread is named late.
const LOOKS: u32 = 1000;

unsafe extern "C" {
    fn __libc_malloc(size: size_t) -> *mut c_void;
    fn __libc_calloc(count: size_t, size: size_t) -> *mut c_void;
    fn __libc_realloc(old: *mut c_void, size: size_t) -> *mut c_void;
    fn __libc_memalign(align: size_t, size: size_t) -> *mut c_void;
}

/// Counted here until the file is mapped, and for good without one.
static HERE: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());

thread_local! {
    /// Looks left; `u32::MAX` for a core's thread.
    static LEFT: Cell<u32> = const { Cell::new(LOOKS) };
}

fn is_core() -> bool {
    let look = |left: &Cell<u32>| {
        if left.get() == u32::MAX || left.get() == 0 {
            return left.get() == u32::MAX;
        }
        let mut name = [0_u8; 16];
        // SAFETY: PR_GET_NAME writes at most 16 bytes to `name`.
        unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
        let core = name.starts_with(CORE);
        left.set(if core { u32::MAX } else { left.get() - 1 });
        core
    };
    LEFT.try_with(look).unwrap_or(false)
}

fn count() {
    if is_core() {
        let count = COUNT.load(Ordering::Relaxed);
        // SAFETY: it is null or the mapping below, which is never undone.
        let count = unsafe { count.as_ref() }.unwrap_or(&HERE);
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Maps the file before `main`.
extern "C" fn begin() {
    // SAFETY: the name ends with NUL; the result is checked before it is used as a path, the
    // descriptor before it is mapped, and the mapping before it is published.
    unsafe {
        let path = libc::getenv(c"RINGWAY_BENCH_COUNTS".as_ptr());
        if path.is_null() {
            return;
        }
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_CLOEXEC;
        let file = libc::open(path, flags, 0o644);
        if file < 0 || libc::ftruncate(file, 4096) < 0 {
            return;
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let map = libc::mmap(ptr::null_mut(), 4096, access, libc::MAP_SHARED, file, 0);
        libc::close(file);
        if map != libc::MAP_FAILED {
            COUNT.store(map.cast(), Ordering::Relaxed);
        }
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

/// # Safety
/// As `malloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc(size: size_t) -> *mut c_void {
    count();
    // SAFETY: the caller keeps to `malloc`'s rules.
    unsafe { __libc_malloc(size) }
}

/// # Safety
/// As `calloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn calloc(number: size_t, size: size_t) -> *mut c_void {
    count();
    // SAFETY: as above.
    unsafe { __libc_calloc(number, size) }
}

/// # Safety
/// As `realloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(old: *mut c_void, size: size_t) -> *mut c_void {
    count();
    // SAFETY: as above.
    unsafe { __libc_realloc(old, size) }
}

/// # Safety
/// As `posix_memalign`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(
    out: *mut *mut c_void,
    align: size_t,
    size: size_t,
) -> c_int {
    count();
    // SAFETY: as above; `out` is the caller's to write to.
    let memory = unsafe { __libc_memalign(align, size) };
    if memory.is_null() && size > 0 {
        return libc::ENOMEM;
    }
    // SAFETY: as above.
    unsafe { out.write(memory) };
    0
}

/// # Safety
/// As `aligned_alloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn aligned_alloc(align: size_t, size: size_t) -> *mut c_void {
    count();
    // SAFETY: as above.
    unsafe { __libc_memalign(align, size) }
}
