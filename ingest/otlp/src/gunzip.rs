//! gzip members, each in one go, by libdeflate: half the price of a decompressor that can be interrupted, which nobody needs
//! who has the whole body. Knows no limit but the room it is given.
#![expect(
    unsafe_code,
    reason = "libdeflate is a C library; its safe wrapper hides how much input a member took"
)]

use std::cell::RefCell;
use std::ptr::NonNull;

use libdeflate_sys::{
    libdeflate_alloc_decompressor, libdeflate_decompressor, libdeflate_free_decompressor,
    libdeflate_gzip_decompress_ex, libdeflate_result_LIBDEFLATE_INSUFFICIENT_SPACE as INSUFFICIENT_SPACE,
    libdeflate_result_LIBDEFLATE_SUCCESS as SUCCESS,
};

/// Why a member was not decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It holds more than the room; what was written of it is not there.
    NoRoom,
    /// It is no complete, intact gzip member.
    Bad,
}

/// Appends the member that `input` begins with to `out`, into the capacity `out` has and at most `room` bytes. Returns how
/// many bytes of `input` it took.
pub(crate) fn member(input: &[u8], out: &mut Vec<u8>, room: usize) -> Result<usize, Failure> {
    thread_local! {
        static DECOMPRESSOR: RefCell<Decompressor> = RefCell::new(Decompressor::new());
    }
    DECOMPRESSOR.with_borrow_mut(|decompressor| decompressor.member(input, out, room))
}

/// libdeflate's state, about 12 KiB.
///
/// Invariant: the pointer came from `libdeflate_alloc_decompressor` and is freed only when this is dropped.
struct Decompressor(NonNull<libdeflate_decompressor>);

impl Decompressor {
    fn new() -> Self {
        // SAFETY: the call has no conditions; it returns null when memory is out.
        let state = unsafe { libdeflate_alloc_decompressor() };
        Self(NonNull::new(state).expect("memory for a decompressor of 12 KiB"))
    }

    fn member(&mut self, input: &[u8], out: &mut Vec<u8>, room: usize) -> Result<usize, Failure> {
        let spare = out.spare_capacity_mut();
        let room = room.min(spare.len());
        let (mut taken, mut written) = (0, 0);
        // SAFETY: the state is alive (invariant); `input` and the first `room` bytes of `spare` are valid for reads and writes
        // of the lengths given; the library writes no further and reads nothing of `spare`.
        let result = unsafe {
            libdeflate_gzip_decompress_ex(
                self.0.as_ptr(),
                input.as_ptr().cast(),
                input.len(),
                spare.as_mut_ptr().cast(),
                room,
                &mut taken,
                &mut written,
            )
        };
        match result {
            SUCCESS => {
                let length = out.len() + written;
                // SAFETY: on success the library has written `written` bytes from the old length on, within the capacity.
                unsafe { out.set_len(length) };
                Ok(taken)
            }
            INSUFFICIENT_SPACE => Err(Failure::NoRoom),
            _ => Err(Failure::Bad),
        }
    }
}

impl Drop for Decompressor {
    fn drop(&mut self) {
        // SAFETY: the state is alive and nobody uses it after this (invariant).
        unsafe { libdeflate_free_decompressor(self.0.as_ptr()) };
    }
}
