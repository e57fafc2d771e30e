//! Listening sockets, one per core and protocol on shared ports, and the CPUs they are served from. Accepts nothing.

use std::io;
use std::net::{SocketAddr, TcpListener};

use rustix::thread::{CpuSet, sched_setaffinity};
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::ReceiverConfig;
use crate::error::Error;
use crate::intake::Endpoints;

/// Connections that wait to be accepted, per listener.
const BACKLOG: i32 = 1_024;

/// What one core listens on.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    pub(crate) grpc: Option<TcpListener>,
    pub(crate) http: Option<TcpListener>,
}

/// Binds both protocols' addresses once for each of `cores`.
pub(crate) fn bind(config: &ReceiverConfig, cores: usize) -> Result<(Endpoints, Vec<Listeners>), Error> {
    let mut all: Vec<_> = (0..cores).map(|_| Listeners::default()).collect();
    let mut endpoints = Endpoints { grpc: None, http: None };
    if let Some(wanted) = config.grpc {
        let (address, sockets) = bind_port(wanted, cores)?;
        endpoints.grpc = Some(address);
        all.iter_mut().zip(sockets).for_each(|(core, socket)| core.grpc = Some(socket));
    }
    if let Some(wanted) = config.http {
        let (address, sockets) = bind_port(wanted, cores)?;
        endpoints.http = Some(address);
        all.iter_mut().zip(sockets).for_each(|(core, socket)| core.http = Some(socket));
    }
    Ok((endpoints, all))
}

fn bind_port(wanted: SocketAddr, cores: usize) -> Result<(SocketAddr, Vec<TcpListener>), Error> {
    let listen = || -> io::Result<_> {
        // A port that may be shared is given to a second appliance of the same user without a word, which would then
        // get half of the spans. A socket that does not share finds that out; it never listens.
        drop(socket(wanted, false)?);
        let first: TcpListener = shared_listener(wanted)?;
        let address = first.local_addr()?;
        let rest = (1..cores).map(|_| shared_listener(address));
        let sockets = [Ok(first)].into_iter().chain(rest).collect::<io::Result<Vec<_>>>()?;
        Ok((address, sockets))
    };
    listen().map_err(|source| Error::Listen { address: wanted, source })
}

fn shared_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address, true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn socket(address: SocketAddr, share_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
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
        assert!(matches!(bind_port(address, 2), Err(Error::Listen { .. })));
    }
}
