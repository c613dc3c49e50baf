//! How long a thread beside the cores may keep the CPU of one that wakes up.

use std::time::Duration;

/// The slice that such a thread asks for: longer than any core's turn.
const SLICE: Duration = Duration::from_millis(20);

/// The calling thread asks for long turns on its CPU.
///
/// Since 6.12 Linux lets a thread say how long its slices should be. A thread with shorter slices
/// that wakes up takes the CPU at once. So if a core and the control thread share a CPU, the core
/// does not wait for the end of the other one's slice. Each thread's share of the CPU stays the
/// same. Older kernels ignore the value. Threads that an operator gave another policy keep it.
pub fn take_long_turns() {
    let Some(mut attributes) = attributes() else { return };
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return;
    }
    attributes.sched_runtime = SLICE.as_nanos() as u64;
    // SAFETY: the structure lives for the call and tells its own size.
    let _ = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

/// What the scheduler knows of the calling thread.
fn attributes() -> Option<libc::sched_attr> {
    // SAFETY: sched_attr is plain data of integers, for which zero is a valid value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>();
    // SAFETY: the structure lives for the call, and its size is given.
    let result = unsafe {
        libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size as libc::c_uint, 0)
    };
    attributes.size = size as u32;
    (result == 0).then_some(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_asked_for_long_turns_has_them_and_stays_as_nice_as_it_was() {
        let before = attributes().expect("every thread has attributes");
        take_long_turns();
        let after = attributes().expect("every thread has attributes");
        assert_eq!(
            (after.sched_policy, after.sched_nice),
            (before.sched_policy, before.sched_nice)
        );
        // A kernel that does not know slices reports none.
        if before.sched_policy == libc::SCHED_OTHER as u32 && before.sched_runtime > 0 {
            assert_eq!(after.sched_runtime, SLICE.as_nanos() as u64);
        }
    }
}
