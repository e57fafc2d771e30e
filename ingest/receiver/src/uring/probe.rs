//! Whether this host lets a process use io_uring as the driver needs it, and if not, why not, in a sentence that says
//! what to do. Keeps nothing: what it tries is gone when it returns.

use std::fs;
use std::io;

use io_uring::opcode;
use rustix::io::Errno;

use super::buffers::Plan;
use super::ring::Ring;

/// Where the administrator switches io_uring off.
const SWITCH: &str = "/proc/sys/kernel/io_uring_disabled";

/// What the driver asks of the ring. Multishot receive came with the last of them (6.0).
const OPERATIONS: [u8; 9] = [
    opcode::AcceptMulti::CODE,
    opcode::PollAdd::CODE,
    opcode::RecvMulti::CODE,
    opcode::Send::CODE,
    opcode::AsyncCancel::CODE,
    opcode::Shutdown::CODE,
    opcode::Close::CODE,
    opcode::SendZc::CODE,
    opcode::Writev::CODE,
];

/// Tries what a thread will do. Returns what the driver makes use of.
///
/// # Errors
/// The reason why it cannot be done here.
pub(crate) fn probe() -> Result<&'static str, String> {
    let switch = fs::read_to_string(SWITCH).ok();
    let ring = Ring::new(1, Plan { count: 1, bytes_each: 4 << 10 });
    match ring.and_then(|ring| Ok((ring.offers(&OPERATIONS)?, ring.is_single_issuer()))) {
        Ok((true, true)) => Ok(ALL),
        Ok((true, false)) => Ok(MOST),
        Ok((false, _)) => Err(TOO_OLD.to_owned()),
        Err(error) => Err(reason(&error, switch.as_deref())),
    }
}

const ALL: &str = "multishot accept and receive, provided buffers, files of the ring's own, SINGLE_ISSUER and DEFER_TASKRUN";
const MOST: &str = "multishot accept and receive, provided buffers, files of the ring's own; SINGLE_ISSUER and \
                    DEFER_TASKRUN, which save interruptions, since Linux 6.1 only";

const TOO_OLD: &str = "this kernel's io_uring lacks what the driver needs: Linux 6.1 or later has it";

/// What `error` of a new ring means, given what the switch says.
fn reason(error: &io::Error, switch: Option<&str>) -> String {
    let setting = switch.map_or("", str::trim);
    match Errno::from_io_error(error) {
        Some(Errno::PERM) if matches!(setting, "1" | "2") => {
            format!("the sysctl kernel.io_uring_disabled is {setting}: 0 allows it")
        }
        Some(Errno::PERM | Errno::ACCESS) => {
            "it is forbidden, most likely by a container's seccomp profile: one that allows io_uring_setup, \
             io_uring_enter and io_uring_register does not need more"
                .to_owned()
        }
        Some(Errno::NOSYS) => "this kernel has no io_uring, or a sandbox hides it".to_owned(),
        Some(Errno::NOMEM) => {
            "there is no memory for a ring: raise the limit of locked memory (ulimit -l) or of the control group"
                .to_owned()
        }
        Some(Errno::MFILE | Errno::NFILE) => {
            "there is no file descriptor left: raise the limit of open files (ulimit -n)".to_owned()
        }
        Some(Errno::INVAL) => TOO_OLD.to_owned(),
        _ => format!("a ring cannot be made here: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(errno: Errno, switch: Option<&str>, expected: &str) {
        let reason = reason(&errno.into(), switch);
        assert!(reason.contains(expected), "{reason}");
    }

    #[test]
    fn a_refusal_says_what_to_change() {
        check(Errno::PERM, Some("2\n"), "kernel.io_uring_disabled is 2");
        check(Errno::PERM, Some("1\n"), "kernel.io_uring_disabled is 1");
        check(Errno::PERM, Some("0\n"), "seccomp");
        check(Errno::PERM, None, "seccomp");
        check(Errno::NOSYS, None, "no io_uring");
        check(Errno::NOMEM, Some("0\n"), "ulimit -l");
        check(Errno::MFILE, Some("0\n"), "ulimit -n");
        check(Errno::INVAL, Some("0\n"), "6.1");
        check(Errno::IO, Some("0\n"), "a ring cannot be made here");
    }
}
