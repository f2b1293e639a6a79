//! Who steps back behind whom where processors are scarce. A thread that has stepped back never comes forward again, and a
//! thread or process that it starts begins where it stands: so only threads that do nothing else may step back.

/// Work behind which others go first, in steps of `nice`: requests before all of it, and what stands above before what stands
/// below. Checks of uploads come last, in processes of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Background {
    /// Calls in the engine's pool: who waits there waits for a millisecond or more anyway, while what requests do takes
    /// microseconds and must not queue up behind it. A tenth of their share of the processors remains where all are busy.
    LongCall = 10,
    /// Jobs beside serving, for which nobody waits by the millisecond. A third of what is left to long calls remains.
    Job = 15,
}

/// Lets other threads of the process go before this one. It never comes forward thereby, whatever the process was started with;
/// where the system does not give each thread a priority of its own, all are equal.
pub fn step_back(work: Background) {
    #[cfg(target_os = "linux")]
    // SAFETY: the calls take plain numbers. With Linux, where each thread has a niceness of its own, 0 is this thread.
    #[allow(unsafe_code)]
    unsafe {
        let niceness = libc::getpriority(libc::PRIO_PROCESS, 0).max(work as i32);
        libc::setpriority(libc::PRIO_PROCESS, 0, niceness);
    }
    #[cfg(not(target_os = "linux"))]
    let _all_are_equal = work;
}

/// Leaves the processors to everybody else, with the whole of this process, which has one thread yet. Where the system does not
/// let it, it is as others are.
#[allow(unsafe_code)]
pub(crate) fn step_back_as_process() {
    /// The last that there is.
    const NICENESS: i32 = 19;
    // SAFETY: the calls take numbers and a structure of this frame, and change only this process.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS);
        #[cfg(target_os = "linux")]
        {
            let mut parameters: libc::sched_param = std::mem::zeroed();
            parameters.sched_priority = 0;
            libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters);
        }
    }
}
