//! Processes that are killed and machines that lose their power while they post:
//! nothing that was acknowledged is lost or doubled.
//!
//! `cargo test -p creo-ledger --test crash` tries a sample; with arguments after
//! `--` it tries more: `kill COUNT SEED` or `power COUNT SEED`.

#![cfg(test)]
#![allow(
    clippy::exit,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what does not hold ends the test, which is a program of its own"
)]

mod power;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use creo_ledger::{
    LedgerParameters, Operation, Role, State, Stop,
    simulation::{Script, history, secret},
    store::{Fence, PostError, Store, StoreOptions},
};
use creo_market::simulation::Random;
use futures::future::join_all;

/// Operations that the workload posts at a time.
const AT_ONCE: usize = 8;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().expect("a whole number");
    match words.as_slice() {
        ["work", folder, seed, from, mode] => {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let from = usize::try_from(number(from)).unwrap();
            runtime.block_on(work(Path::new(folder), number(seed), from, *mode == "weak"));
        }
        ["kill", count, seed] => kills(number(count), number(seed)),
        ["power", count, seed] => power::cuts(number(count), number(seed)),
        // Whatever else cargo passes on.
        _ => {
            kills(25, 1);
            power::cuts(60, 1);
        }
    }
}

/// What is posted, in order, and the state after each.
struct Reference {
    operations: Vec<(i64, Operation)>,
    /// The last entry's hash after so many operations.
    heads: Vec<String>,
}

impl Reference {
    fn new(seed: u64) -> Self {
        let script = Script::parse(&history(seed, 400)).expect("a history");
        let operations = script.run(&secret(), 1).expect("it happens").posted;
        let mut state = State::new(LedgerParameters::default());
        let mut heads = vec![state.ledger().head.hash.clone()];
        for (at_ms, operation) in &operations {
            apply(&mut state, *at_ms, operation);
            heads.push(state.ledger().head.hash.clone());
        }
        Self { operations, heads }
    }

    /// Checks that a ledger is what it was after some of the operations, all
    /// that were acknowledged among them. Says after how many.
    fn check(&self, stored: &State, acknowledged: usize) -> Result<usize, String> {
        let head = &stored.ledger().head.hash;
        let after = (0..self.heads.len())
            .rev()
            .find(|index| self.heads[*index] == *head)
            .ok_or("the head is none that there ever was")?;
        if after < acknowledged {
            return Err(format!(
                "{acknowledged} operations were acknowledged, and {after} are there"
            ));
        }
        let mut state = State::new(LedgerParameters::default());
        for (at_ms, operation) in &self.operations[..after] {
            apply(&mut state, *at_ms, operation);
        }
        if state != *stored {
            return Err(format!(
                "after {after} operations the ledger is another one"
            ));
        }
        Ok(after)
    }
}

fn apply(state: &mut State, at_ms: i64, operation: &Operation) {
    match state.apply(operation.role(), at_ms, operation) {
        Ok(_) | Err(Stop::Refused(_)) => {}
        Err(missing) => panic!("{missing}"),
    }
}

/// Posts the reference's operations and acknowledges each in a file, when it was
/// answered.
async fn work(folder: &Path, seed: u64, from: usize, weak: bool) {
    let operations = Reference::new(seed).operations;
    let mut options = StoreOptions::file(&folder.join("ledger.db")).create();
    if weak {
        options = options
            .pragma("synchronous", "OFF".to_owned())
            .allow_unsafe();
    }
    let store = Store::open(options).await.expect("a ledger");
    let mut fences: Vec<Fence> = Vec::new();
    for role in Role::ALL {
        fences.push(store.take_role(role).await.expect("the role"));
    }
    let mut acknowledgements = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("acknowledged"))
        .expect("a file");
    println!("ready");
    for (chunk_number, chunk) in operations[from..].chunks(AT_ONCE).enumerate() {
        let posts = chunk.iter().map(|(at_ms, operation)| {
            let fence = fences.iter().find(|fence| fence.role == operation.role());
            store.post(*fence.expect("a fence"), *at_ms, operation.clone())
        });
        for outcome in join_all(posts).await {
            match outcome {
                Ok(_) | Err(PostError::Refused(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        let count = from + chunk_number * AT_ONCE + chunk.len();
        acknowledgements
            .write_all(format!("{count}\n").as_bytes())
            .expect("it is written");
        println!("{count}");
    }
}

fn start(folder: &Path, seed: u64, from: usize, weak: bool, shim: Option<&Path>) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .arg("work")
        .arg(folder)
        .args([seed.to_string(), from.to_string()])
        .arg(if weak { "weak" } else { "strong" })
        .stdout(Stdio::piped());
    if let Some(shim) = shim {
        command.env("LD_PRELOAD", shim);
        command.env("CREO_TRACE_FOLDER", folder);
        command.env("CREO_TRACE", folder.join("trace"));
    }
    command.spawn().expect("it starts")
}

async fn stored(folder: &Path) -> Result<State, String> {
    let path = folder.join("ledger.db");
    if !path.exists() {
        return Ok(State::new(LedgerParameters::default()));
    }
    let store = Store::open(StoreOptions::file(&path).create())
        .await
        .map_err(|error| error.to_string())?;
    store.load().await.map_err(|error| error.to_string())
}

/// Kills a process while it posts, opens what it left, and lets it go on.
fn kills(count: u64, seed: u64) {
    let begun = Instant::now();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut random = Random::new(seed);
    let (mut killed, mut started, mut finished) = (0, 0, 0);
    while killed < count {
        started += 1;
        let life_seed = seed.wrapping_mul(1_000_003).wrapping_add(started);
        let reference = Reference::new(life_seed);
        let folder = tempfile::tempdir().unwrap();
        let mut after = 0;
        while after < reference.operations.len() && killed < count {
            let mut process = start(folder.path(), life_seed, after, false, None);
            let mut lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
            // Some die before they are ready, some after some answers.
            let mut acknowledged = after;
            for _ in 0..random.below(12) {
                match lines.next() {
                    Some(Ok(line)) => acknowledged = line.parse().unwrap_or(acknowledged),
                    _ => break,
                }
            }
            // Within a transaction, most of them: somewhere in the next millisecond.
            let until = Instant::now() + std::time::Duration::from_micros(random.bits() % 1_500);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            process.kill().expect("it is killed");
            process.wait().expect("it ends");
            for line in lines.map_while(Result::ok) {
                acknowledged = line.parse().unwrap_or(acknowledged);
            }
            killed += 1;
            let found = runtime.block_on(stored(folder.path()));
            after = found
                .and_then(|state| reference.check(&state, acknowledged))
                .unwrap_or_else(|what| panic!("kill {killed} of seed {seed}: {what}"));
        }
        finished += u64::from(after >= reference.operations.len());
    }
    println!(
        "kill: {killed} kills in {started} lives, {finished} of them to their end: nothing lost, nothing doubled ({:.1} s)",
        begun.elapsed().as_secs_f64()
    );
}
