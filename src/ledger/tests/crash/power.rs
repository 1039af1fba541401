//! Power cuts: a process runs once with everything that it writes and syncs
//! written down; then, for one moment after another, a disk is made that has what
//! was synced by then, and of the rest some writes, some parts of writes, or
//! none. What the ledger makes of that disk is compared.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use creo_market::simulation::Random;

use super::{Reference, start, stored};

/// What a disk writes as a whole.
const SECTOR: usize = 512;

enum Event {
    Write {
        name: String,
        offset: usize,
        data: Vec<u8>,
    },
    Truncate {
        name: String,
        size: usize,
    },
    Sync {
        name: String,
    },
    Remove {
        name: String,
    },
}

/// Builds the library that writes down what is written.
fn shim(folder: &Path) -> PathBuf {
    let library = folder.join("shim.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/shim.c");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .status()
        .expect("a C compiler");
    assert!(status.success(), "the shim cannot be built");
    library
}

fn read_trace(path: &Path) -> Vec<Event> {
    let bytes = fs::read(path).expect("a trace");
    let mut at = 0;
    let mut take = |length: usize| {
        at += length;
        bytes.get(at - length..at)
    };
    let number =
        |bytes: &[u8]| usize::try_from(u64::from_le_bytes(bytes.try_into().unwrap())).unwrap();
    let mut events = Vec::new();
    while let Some(kind) = take(1).map(|kind| kind[0]) {
        let name_length = number(take(8).unwrap());
        let name = String::from_utf8(take(name_length).unwrap().to_vec()).unwrap();
        let (offset, length) = (number(take(8).unwrap()), number(take(8).unwrap()));
        events.push(match kind {
            b'w' => Event::Write {
                name,
                offset,
                data: take(length).unwrap().to_vec(),
            },
            b't' => Event::Truncate { name, size: offset },
            b'u' => Event::Remove { name },
            _ => Event::Sync { name },
        });
    }
    events
}

fn write_at(file: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset..end].copy_from_slice(data);
}

/// The files of the disk when the power is gone before event `cut`, and how many
/// operations had been acknowledged by then.
fn disk(events: &[Event], cut: usize, random: &mut Random) -> (BTreeMap<String, Vec<u8>>, usize) {
    let mut synced: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut waiting: BTreeMap<String, Vec<&Event>> = BTreeMap::new();
    let mut acknowledged = Vec::new();
    for event in &events[..cut] {
        match event {
            Event::Write { name, data, .. } if name == "acknowledged" => acknowledged.extend(data),
            Event::Write { name, .. } | Event::Truncate { name, .. } => {
                waiting.entry(name.clone()).or_default().push(event);
            }
            // A file system keeps the order in which names come and go.
            Event::Remove { name } => {
                synced.remove(name);
                waiting.remove(name);
            }
            Event::Sync { name } => {
                let file = synced.entry(name.clone()).or_default();
                for event in waiting.remove(name).unwrap_or_default() {
                    keep(file, event, |_| true);
                }
            }
        }
    }
    for (name, events) in waiting {
        let file = synced.entry(name).or_default();
        // Nothing, everything, or by the sector, of all that was not synced.
        let kept_of = [0, 1, 2, 8][random.index(4)];
        for event in events {
            keep(file, event, |_| match kept_of {
                0 => false,
                1 => true,
                of => random.below(of) > 0,
            });
        }
    }
    let text = String::from_utf8(acknowledged).unwrap();
    let last = text.lines().last().map_or(0, |line| line.parse().unwrap());
    // What several processes share is memory, and gone; so is the directory's
    // entry of a file that nothing of was kept.
    synced.retain(|name, file| !name.ends_with("-shm") && !file.is_empty());
    (synced, last)
}

fn keep(file: &mut Vec<u8>, event: &Event, mut kept: impl FnMut(usize) -> bool) {
    match event {
        Event::Write { offset, data, .. } => {
            for (index, sector) in data.chunks(SECTOR).enumerate() {
                if kept(index) {
                    write_at(file, offset + index * SECTOR, sector);
                }
            }
        }
        Event::Truncate { size, .. } => {
            if kept(0) {
                file.resize(*size, 0);
            }
        }
        Event::Sync { .. } | Event::Remove { .. } => {}
    }
}

/// Runs the workload to its end and cuts the power at random moments of it.
/// Says what was lost.
fn losses(count: u64, seed: u64, weak: bool) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let shim = shim(folder.path());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut random = Random::new(seed);
    let mut lost = Vec::new();
    let mut done = 0;
    for run in 0.. {
        if done == count {
            break;
        }
        let life_seed = seed.wrapping_mul(1_000_003).wrapping_add(run);
        let reference = Reference::new(life_seed);
        let home = folder.path().join(format!("run-{run}"));
        fs::create_dir(&home).unwrap();
        let mut process = start(&home, life_seed, 0, weak, Some(&shim));
        // It must not wait for someone to read what it says.
        drop(
            process
                .stdout
                .take()
                .map(|mut output| std::io::copy(&mut output, &mut std::io::sink())),
        );
        assert!(process.wait().expect("it ends").success());
        let events = read_trace(&home.join("trace"));
        let syncs = events
            .iter()
            .filter(|event| matches!(event, Event::Sync { .. }))
            .count();
        assert_eq!(
            syncs < 10,
            weak,
            "{syncs} syncs: the shim does not see what is synced"
        );
        for _ in 0..100.min(count - done) {
            done += 1;
            let cut = random.index(events.len() + 1);
            let (files, acknowledged) = disk(&events, cut, &mut random);
            let machine = tempfile::tempdir().unwrap();
            for (name, bytes) in files {
                fs::write(machine.path().join(name), bytes).unwrap();
            }
            let found = runtime.block_on(stored(machine.path()));
            if let Err(what) = found.and_then(|state| reference.check(&state, acknowledged)) {
                lost.push(format!(
                    "cut {done} of seed {seed}, before event {cut}: {what}"
                ));
            }
        }
        fs::remove_dir_all(&home).unwrap();
    }
    lost
}

pub fn cuts(count: u64, seed: u64) {
    let begun = Instant::now();
    let lost = losses(count, seed, false);
    assert!(lost.is_empty(), "{lost:#?}");
    // The same with weakened syncs must lose something, or this proves nothing.
    let weak = losses(count.min(60), seed, true);
    assert!(
        !weak.is_empty(),
        "cuts that lose nothing without syncs prove nothing"
    );
    println!(
        "power: {count} cuts: nothing lost, nothing doubled; without syncs, {} of {} lose something ({:.1} s)",
        weak.len(),
        count.min(60),
        begun.elapsed().as_secs_f64()
    );
}
