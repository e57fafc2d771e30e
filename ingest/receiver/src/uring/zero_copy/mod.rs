//! Zero-copy receive: a network card writes into memory of ours, and the kernel lends us the pieces. Behind a setting, since
//! it takes a receive queue away from everybody else; off, with a reason, wherever it cannot be had.
//!
//! Splitting headers from data and steering flows to the queue is the administrator's (`ethtool -G`, `-X`, `-N`). What
//! arrives elsewhere is copied by the kernel into the same memory, so every connection is received in the same way.
//! <https://docs.kernel.org/networking/iou-zcrx.html>

mod accounts;
mod region;

use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;

pub(super) use self::accounts::Loan;
pub(super) use self::region::Region;

/// A receive queue of a network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Queue {
    pub(super) name: String,
    pub(super) interface: u32,
    pub(super) number: u32,
}

/// The queue that the `core`-th thread may try: of the first real network card, counted from its last queue, which is where
/// an administrator leaves queues free. Its first queue is never taken.
pub(super) fn queue(core: usize) -> Result<Queue, String> {
    queue_in(Path::new("/sys/class/net"), core)
}

fn queue_in(class: &Path, core: usize) -> Result<Queue, String> {
    let mut names: Vec<_> = fs::read_dir(class)
        .map_err(|error| format!("the network interfaces cannot be listed: {error}"))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        // What has no device behind it, like loopback, has no queue of its own either.
        .filter(|name| class.join(name).join("device").exists())
        .collect();
    names.sort_unstable();
    let name = names.into_iter().next().ok_or("no network card is here; loopback has no receive queues")?;
    let read = |file: &str| fs::read_to_string(class.join(&name).join(file)).ok();
    let interface = read("ifindex").and_then(|text| text.trim().parse().ok());
    let queues = fs::read_dir(class.join(&name).join("queues")).map_or(0, |entries| {
        let is_receive = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("rx-");
        entries.filter_map(Result::ok).filter(is_receive).count()
    });
    let number = queues.checked_sub(core + 1).filter(|&number| number > 0);
    let number = number.and_then(|number| u32::try_from(number).ok()).ok_or_else(|| {
        format!("{name} has {queues} receive queue(s), and the first one serves everybody else")
    })?;
    let interface = interface.ok_or_else(|| format!("{name} has no number"))?;
    Ok(Queue { name, interface, number })
}

/// What the refusal of `queue` means.
pub(super) fn reason(queue: &Queue, error: &io::Error) -> String {
    let Queue { name, number, .. } = queue;
    let why = match Errno::from_io_error(error) {
        Some(Errno::PERM | Errno::ACCESS) => "that needs CAP_NET_ADMIN".to_owned(),
        Some(Errno::INVAL | Errno::NOSYS) => {
            "this kernel has no zero-copy receive (Linux 6.15 or later), or the queue does not split headers from data \
             (ethtool -G, tcp-data-split on)"
                .to_owned()
        }
        Some(Errno::OPNOTSUPP) => "its driver has no such queues".to_owned(),
        Some(Errno::BUSY | Errno::EXIST) => "it is in use already".to_owned(),
        Some(Errno::NOMEM) => "memory cannot be pinned for it: raise the limit of locked memory (ulimit -l)".to_owned(),
        _ => error.to_string(),
    };
    format!("queue {number} of {name} cannot be had: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up `/sys/class/net`.
    fn class(interfaces: &[(&str, bool, usize)]) -> tempfile::TempDir {
        let class = tempfile::tempdir().unwrap();
        for (number, (name, is_real, queues)) in (1..).zip(interfaces) {
            let folder = class.path().join(name);
            (0..*queues)
                .for_each(|queue| fs::create_dir_all(folder.join(format!("queues/rx-{queue}"))).unwrap());
            fs::create_dir_all(folder.join("queues/tx-0")).unwrap();
            fs::write(folder.join("ifindex"), format!("{number}\n")).unwrap();
            if *is_real {
                fs::create_dir(folder.join("device")).unwrap();
            }
        }
        class
    }

    #[test]
    fn threads_take_the_last_queues_of_a_real_card_and_never_its_first() {
        let class = class(&[("lo", false, 1), ("eth0", true, 4)]);
        let number_of =
            |core| queue_in(class.path(), core).map(|queue| (queue.name, queue.interface, queue.number));
        assert_eq!(number_of(0), Ok(("eth0".to_owned(), 2, 3)));
        assert_eq!(number_of(2), Ok(("eth0".to_owned(), 2, 1)));
        assert!(number_of(3).unwrap_err().contains("4 receive queue(s)"));
    }

    #[test]
    fn a_host_without_a_card_says_so() {
        let class = class(&[("lo", false, 1)]);
        assert!(queue_in(class.path(), 0).unwrap_err().contains("no network card"));
    }

    #[test]
    fn a_refused_queue_says_why() {
        let queue = Queue { name: "eth0".to_owned(), interface: 2, number: 3 };
        let reason_of = |errno: Errno| reason(&queue, &errno.into());
        assert!(reason_of(Errno::PERM).contains("queue 3 of eth0 cannot be had: that needs CAP_NET_ADMIN"));
        assert!(reason_of(Errno::OPNOTSUPP).contains("driver"));
        assert!(reason_of(Errno::INVAL).contains("6.15"));
    }
}
