//! A hint to the processor: this cache line is wanted soon. Changes nothing but time.
#![expect(unsafe_code, reason = "the instruction is reached through an intrinsic that takes a raw pointer")]

/// Asks for the line that `value` begins in. Does nothing where the processor is not known.
#[inline(always)]
pub(crate) fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and never faults, and the pointer comes from a reference anyway.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
