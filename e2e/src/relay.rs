//! A TCP relay from 127.0.0.1 of the machine into a network namespace.
//!
//! A socket belongs to the namespace of the thread that made it, so one thread
//! that has entered the namespace dials for all connections.

use std::{
    fs::File,
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};

use crate::error::{Context as _, Error, Result};

/// How long a dial may take before the connection is given up.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

type Answer = mpsc::Sender<io::Result<TcpStream>>;

/// Dials from within another network namespace.
#[derive(Debug, Clone)]
pub struct Dialer {
    requests: mpsc::Sender<(SocketAddr, Answer)>,
}

impl Dialer {
    /// Enters the network namespace of the process `pid` with a thread of its own.
    ///
    /// # Errors
    ///
    /// The namespace cannot be entered.
    pub fn enter(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        let namespace = File::open(Path::new(&path)).doing(|| format!("opening {path}"))?;
        let (requests, incoming) = mpsc::channel::<(SocketAddr, Answer)>();
        let (entered, has_entered) = mpsc::channel();
        thread::Builder::new()
            .name("dialer".to_owned())
            .spawn(move || {
                let result = setns(namespace, CloneFlags::CLONE_NEWNET);
                let failed = result.is_err();
                let _ = entered.send(result);
                if failed {
                    return;
                }
                for (address, answer) in incoming {
                    let _ = answer.send(TcpStream::connect_timeout(&address, DIAL_TIMEOUT));
                }
            })
            .doing(|| "starting the dialer".to_owned())?;
        has_entered
            .recv()
            .map_err(|_| Error::Supervisor("the dialer ended".to_owned()))?
            .doing(|| format!("entering {path}"))?;
        Ok(Self { requests })
    }

    /// Opens a connection from within the namespace.
    ///
    /// # Errors
    ///
    /// Nothing answers at the address.
    pub fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let (answer, result) = mpsc::channel();
        let gone = || io::Error::other("the dialer has ended");
        self.requests.send((address, answer)).map_err(|_| gone())?;
        result.recv().map_err(|_| gone())?
    }
}

/// Relays each connection of `listener` to `target`, until the process ends.
///
/// # Errors
///
/// The thread cannot be started.
pub fn serve(listener: TcpListener, dialer: Dialer, target: SocketAddr) -> Result<()> {
    thread::Builder::new()
        .name("relay".to_owned())
        .spawn(move || {
            for connection in listener.incoming().flatten() {
                let dialer = dialer.clone();
                // Dialling and copying in a thread a connection: a handful of
                // clients of one machine, each with a few connections.
                let _ = thread::Builder::new().spawn(move || {
                    if let Ok(inside) = dialer.dial(target) {
                        let _ = copy_both_ways(connection, inside);
                    }
                });
            }
        })
        .map(drop)
        .doing(|| "starting the relay".to_owned())
}

fn copy_both_ways(outside: TcpStream, inside: TcpStream) -> io::Result<()> {
    outside.set_nodelay(true)?;
    inside.set_nodelay(true)?;
    let (mut from_outside, mut to_inside) = (outside.try_clone()?, inside.try_clone()?);
    let up = thread::spawn(move || {
        let _ = io::copy(&mut from_outside, &mut to_inside);
        let _ = to_inside.shutdown(Shutdown::Write);
    });
    let (mut from_inside, mut to_outside) = (inside, outside);
    let _ = io::copy(&mut from_inside, &mut to_outside);
    let _ = to_outside.shutdown(Shutdown::Write);
    let _ = up.join();
    Ok(())
}
