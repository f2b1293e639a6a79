//! Ports for servers that are told theirs. Test binaries include this file by its path.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below those that the kernel gives to whoever asks for any: between the choice of a port and the start of its server
/// another connection would get it now and then.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// A port that nobody else of the tests gets while this value lives, in whatever process.
pub(crate) struct Port {
    pub(crate) number: u16,
    _claim: File,
}

/// A port at which nobody listens, and nobody listens at those that are `others` higher.
pub(crate) fn free_port(others: &[u16]) -> Port {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let folder = std::env::temp_dir().join("eadem-test-ports");
    std::fs::create_dir_all(&folder).expect("no folder for claims of ports");
    // Processes begin at different places, so that they seldom meet.
    let first = (std::process::id() % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let number = FIRST + (first + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
        let claim = OpenOptions::new().create(true).append(true).open(folder.join(number.to_string()));
        let claim = claim.expect("a port cannot be claimed");
        let mut wanted = std::iter::once(0).chain(others.iter().copied()).map(|other| number + other);
        if claim.try_lock().is_ok() && wanted.all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return Port { number, _claim: claim };
        }
    }
    panic!("no port from {FIRST} to {} is free", FIRST + COUNT - 1);
}
