//! The supervisor itself: pid 1 of its namespaces.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{net::UnixListener, net::UnixStream, process::CommandExt as _},
    },
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask},
    unistd::{Pid, sethostname},
};

use super::{
    protocol::{Answer, Finished, ProcessState, Request, StartRequest},
    reaper::Reaper,
};
use crate::{
    cgroups::Hierarchies,
    error::{Context as _, Error, Result},
};

/// The longest request that is read, in bytes.
const MAX_REQUEST_BYTES: u64 = 1024 * 1024;
/// How much of a command's output is kept, in bytes.
const MAX_OUTPUT_BYTES: u64 = 4 * 1024 * 1024;
/// How long the end of everything is waited for before the namespace is left.
const LAST_PATIENCE: Duration = Duration::from_secs(3);

/// The arguments of `creo-e2e internal supervisor`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The unix socket to be controlled through.
    #[arg(long)]
    control: PathBuf,
    /// The host name within the namespace.
    #[arg(long)]
    hostname: Option<String>,
    /// Ends when the standard input does.
    #[arg(long)]
    watch_stdin: bool,
    /// The cgroup that is removed at the end.
    #[arg(long)]
    remove_cgroup: Option<PathBuf>,
}

#[derive(Debug)]
struct Supervisor {
    reaper: Reaper,
    processes: Mutex<BTreeMap<String, (i32, PathBuf)>>,
    remove_cgroup: Option<PathBuf>,
}

/// Serves until told to shut down or until its standard input ends. Everything
/// in the namespace ends with it.
///
/// # Errors
///
/// The control socket cannot be made.
pub fn run(arguments: &Arguments) -> Result<()> {
    // The first process of a namespace only gets the signals that it handles,
    // and this one ends over its socket or its standard input.
    if let Some(name) = &arguments.hostname {
        sethostname(name).doing(|| "setting the host name".to_owned())?;
    }
    let listener = UnixListener::bind(&arguments.control)
        .doing(|| format!("listening on {}", arguments.control.display()))?;
    let supervisor = Arc::new(Supervisor {
        reaper: Reaper::default(),
        processes: Mutex::default(),
        remove_cgroup: arguments.remove_cgroup.clone(),
    });
    let collecting = Arc::clone(&supervisor);
    spawn("reaper", move || collecting.reaper.collect())?;
    if arguments.watch_stdin {
        let watching = Arc::clone(&supervisor);
        spawn("stdin", move || {
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            watching.end();
        })?;
    }
    for connection in listener.incoming().flatten() {
        let serving = Arc::clone(&supervisor);
        spawn("control", move || {
            // A peer that went away has no use for an answer.
            let _ = serving.serve(connection);
        })?;
    }
    Ok(())
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
        .doing(|| format!("starting the {name} thread"))
}

impl Supervisor {
    fn serve(&self, connection: UnixStream) -> Result<()> {
        let talk = || "talking over the control socket".to_owned();
        let mut writer = connection.try_clone().doing(talk)?;
        let mut line = String::new();
        BufReader::new(connection)
            .take(MAX_REQUEST_BYTES)
            .read_line(&mut line)
            .doing(talk)?;
        let answer = match serde_json::from_str(&line) {
            Ok(request) => self
                .answer(request)
                .unwrap_or_else(|error| Answer::Refused(error.to_string())),
            Err(error) => Answer::Refused(format!("not a request: {error}")),
        };
        let text =
            serde_json::to_string(&answer).map_err(|error| Error::malformed("an answer", error))?;
        writeln!(writer, "{text}").doing(talk)
    }

    fn answer(&self, request: Request) -> Result<Answer> {
        match request {
            Request::Start(start) => self.start(&start).map(|()| Answer::Done),
            Request::Stop {
                name,
                signal,
                patience_ms,
            } => self
                .stop(&name, signal, Duration::from_millis(patience_ms))
                .map(|()| Answer::Done),
            Request::Run { argv, patience_ms } => self
                .run(&argv, Duration::from_millis(patience_ms))
                .map(Answer::Finished),
            Request::Status => Ok(Answer::Status(self.status())),
            Request::Shutdown => self.end(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (i32, PathBuf)>> {
        self.processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, start: &StartRequest) -> Result<()> {
        let mut processes = self.lock();
        if let Some((pid, _)) = processes.get(&start.name) {
            if self.reaper.exit_status(*pid).is_none() {
                return Err(Error::Supervisor(format!(
                    "{} is running already",
                    start.name
                )));
            }
            self.reaper.forget(*pid);
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&start.log)
            .doing(|| format!("opening {}", start.log.display()))?;
        let errors = log.try_clone().doing(|| "duplicating a log".to_owned())?;
        let mut command = program(&start.argv)?;
        command
            .envs(&start.env)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0);
        let child = self
            .reaper
            .spawn(&mut command)
            .doing(|| format!("starting {}", start.name))?;
        processes.insert(
            start.name.clone(),
            (child.id().cast_signed(), start.log.clone()),
        );
        Ok(())
    }

    fn stop(&self, name: &str, signal: i32, patience: Duration) -> Result<()> {
        let pid = self
            .lock()
            .get(name)
            .map(|(pid, _)| *pid)
            .ok_or_else(|| Error::Supervisor(format!("{name} was never started here")))?;
        if self.reaper.exit_status(pid).is_some() {
            return Ok(());
        }
        let signal = Signal::try_from(signal).doing(|| format!("signal {signal}"))?;
        let _ = kill(Pid::from_raw(pid), signal);
        if self.reaper.wait(pid, patience).is_none() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            if self.reaper.wait(pid, LAST_PATIENCE).is_none() {
                return Err(Error::Supervisor(format!(
                    "{name} does not end, not even by SIGKILL"
                )));
            }
        }
        Ok(())
    }

    fn run(&self, argv: &[String], patience: Duration) -> Result<Finished> {
        let mut command = program(argv)?;
        let (reader, writer) = io::pipe().doing(|| "making a pipe".to_owned())?;
        let errors = writer
            .try_clone()
            .doing(|| "duplicating a pipe".to_owned())?;
        command
            .stdin(Stdio::null())
            .stdout(OwnedFd::from(writer))
            .stderr(OwnedFd::from(errors))
            .process_group(0);
        let child = self
            .reaper
            .spawn(&mut command)
            .doing(|| format!("starting {}", argv.join(" ")))?;
        // The command holds the writing end, and it must be the only one.
        drop(command);
        let output = thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = reader.take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let pid = child.id().cast_signed();
        let status = self.reaper.wait(pid, patience);
        if status.is_none() {
            let _ = kill(Pid::from_raw(-pid), Signal::SIGKILL);
            self.reaper.wait(pid, LAST_PATIENCE);
        }
        self.reaper.forget(pid);
        let output = output.join().unwrap_or_default();
        status
            .map(|status| Finished { status, output })
            .ok_or_else(|| {
                Error::Supervisor(format!(
                    "`{}` did not end within {} s",
                    argv.join(" "),
                    patience.as_secs()
                ))
            })
    }

    fn status(&self) -> BTreeMap<String, ProcessState> {
        self.lock()
            .iter()
            .map(|(name, (pid, log))| {
                let exit_status = self.reaper.exit_status(*pid);
                (
                    name.clone(),
                    ProcessState {
                        pid: *pid,
                        exit_status,
                        log: log.clone(),
                    },
                )
            })
            .collect()
    }

    /// Ends every process of the namespace, removes what it would leave behind,
    /// and ends.
    fn end(&self) -> ! {
        // -1 is every process but this one, here: of this namespace and those below.
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        if let (Some(group), Ok(hierarchies)) = (&self.remove_cgroup, Hierarchies::find()) {
            let deadline = std::time::Instant::now() + LAST_PATIENCE;
            // A directory is busy until the last process in it is collected.
            while hierarchies.remove(group).is_err() && std::time::Instant::now() < deadline {
                thread::sleep(Duration::from_millis(20));
            }
        }
        // The end of the first process is the end of its namespace.
        std::process::exit(0);
    }
}

fn program(argv: &[String]) -> Result<Command> {
    let (name, arguments) = argv
        .split_first()
        .ok_or_else(|| Error::Supervisor("there is no program to start".to_owned()))?;
    let mut command = Command::new(name);
    command.args(arguments);
    // SAFETY: between fork and exec only a signal mask is set, by one system call.
    unsafe {
        command.pre_exec(|| {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
            Ok(())
        });
    }
    Ok(command)
}
