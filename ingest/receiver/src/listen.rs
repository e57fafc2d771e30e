//! Listening sockets, one per core and protocol on shared ports, and the CPUs they are served from. Accepts nothing.

use std::io;
use std::net::{SocketAddr, TcpListener};

use rustix::thread::{CpuSet, sched_setaffinity};
use socket2::{Domain, Socket, Type};

use crate::config::ReceiverConfig;
use crate::error::Error;
use crate::intake::Endpoints;
use crate::metrics::Protocol;

/// Connections that wait to be accepted, per listener.
const BACKLOG: i32 = 1_024;

/// What one core listens on, and what is spoken there. A driver treats them all alike.
pub(crate) type Listeners = Vec<(Protocol, TcpListener)>;

/// Binds the address of every protocol that has one, once for each of `cores`.
pub(crate) fn bind(config: &ReceiverConfig, cores: usize) -> Result<(Endpoints, Vec<Listeners>), Error> {
    let mut all: Vec<_> = (0..cores).map(|_| Listeners::new()).collect();
    let mut endpoints = Endpoints::default();
    for protocol in Protocol::ALL {
        let Some(address) = config.address(protocol) else { continue };
        let failed = |source| Error::Listen { protocol, address, source };
        let (address, sockets) = bind_port(address, cores).map_err(failed)?;
        *endpoints.of_mut(protocol) = Some(address);
        all.iter_mut().zip(sockets).for_each(|(core, socket)| core.push((protocol, socket)));
    }
    Ok((endpoints, all))
}

fn bind_port(wanted: SocketAddr, cores: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    // A port that may be shared is given to a second appliance of the same user without a word, which would then
    // get half of the spans. A socket that does not share finds that out; it never listens.
    drop(socket(wanted, false)?);
    let first: TcpListener = shared_listener(wanted)?;
    let address = first.local_addr()?;
    let rest = (1..cores).map(|_| shared_listener(address));
    let sockets = [Ok(first)].into_iter().chain(rest).collect::<io::Result<Vec<_>>>()?;
    Ok((address, sockets))
}

fn shared_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address, true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn socket(address: SocketAddr, share_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(socket2::Protocol::TCP))?;
    // A restart must not wait for connections of the former process to time out.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share_port)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Keeps this thread on the CPU that `cpus` has for it, if any. A wish, not a need: failing is logged.
pub(crate) fn pin(cpus: &[usize], core: usize) {
    let Some(&cpu) = cpus.get(core) else { return };
    let mut one = CpuSet::new();
    one.set(cpu);
    if let Err(error) = sched_setaffinity(None, &one) {
        tracing::warn!(core, cpu, %error, "receiver thread is not pinned");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn a_second_receiver_on_the_same_port_is_refused() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (address, _sockets) = bind_port(any, 2).unwrap();
        let taken = bind_port(address, 2).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }
}
