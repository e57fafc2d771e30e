//! A hint to the processor: these cache lines are wanted soon. Changes nothing but time.
#![expect(unsafe_code, reason = "the instruction is reached through an intrinsic that takes a raw pointer")]

/// Asks for the lines that `value` lies in, from its first byte on. Does nothing where the processor is not known.
#[inline(always)]
pub(crate) fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    for position in (0..size_of::<T>()).step_by(64) {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let line = std::ptr::from_ref(value).cast::<i8>().wrapping_add(position);
        // SAFETY: a prefetch reads nothing and never faults, and the pointer lies in `value` anyway.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
