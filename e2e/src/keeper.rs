//! The process that holds a cluster: it owns the pipe whose end ends the
//! cluster, relays 127.0.0.1 to the API server, and removes what is left.
//!
//! A test spawns it with a pipe as its standard input and never writes to it:
//! when the test ends, however it ends, the keeper ends the cluster. The
//! command line spawns it `--detached`, and `down` ends it by SIGTERM. If the
//! keeper itself is killed, its pipe ends, and the supervisor in the cluster
//! ends everything and removes the cgroups.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{SigSet, Signal, kill},
    unistd::{Pid, setsid},
};
use serde::{Deserialize, Serialize};

use crate::{
    cgroups::Hierarchies,
    error::{Context as _, Error, Result},
    paths,
    relay::{self, Dialer},
    supervisor::Control,
};

/// The file that a keeper writes once the cluster's namespaces exist.
const STATE_FILE: &str = "keeper.json";
/// The control socket of a cluster's supervisor.
pub(crate) const CONTROL_SOCKET: &str = "control.sock";
/// How long namespaces may take to come or go.
const PATIENCE: Duration = Duration::from_secs(10);

/// The arguments of `creo-e2e internal keeper`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The cluster's folder.
    #[arg(long)]
    dir: PathBuf,
    /// The cgroup of the cluster, below each hierarchy's root.
    #[arg(long)]
    cgroup: PathBuf,
    /// The address of the API server within the cluster.
    #[arg(long)]
    api_server: SocketAddr,
    /// The port of 127.0.0.1 that is relayed to it; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    api_port: u16,
    /// Lives until SIGTERM instead of until its standard input ends.
    #[arg(long)]
    detached: bool,
}

/// What a running keeper says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// Its process id.
    pub pid: i32,
    /// The port of 127.0.0.1 that leads to the API server.
    pub api_port: u16,
}

impl State {
    /// The keeper of the cluster in `dir`, where one is alive.
    #[must_use]
    pub fn alive(dir: &Path) -> Option<Self> {
        let state: Self = serde_json::from_slice(&fs::read(dir.join(STATE_FILE)).ok()?).ok()?;
        // A process id is used again some day; the arguments tell.
        let arguments = fs::read(format!("/proc/{}/cmdline", state.pid)).ok()?;
        let needle = dir.to_string_lossy().into_owned();
        String::from_utf8_lossy(&arguments)
            .split('\0')
            .any(|word| word == needle)
            .then_some(state)
    }
}

/// Keeps a cluster until it is told to end, then removes all of it.
///
/// # Errors
///
/// The namespaces cannot be made, or something of them is left at the end.
pub fn run(arguments: &Arguments) -> Result<()> {
    // Ctrl-C in the terminal is for the program that started the cluster.
    let _ = setsid();
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    signals
        .thread_block()
        .doing(|| "blocking signals".to_owned())?;
    let control = Control::new(arguments.dir.join(CONTROL_SOCKET));
    // Held until the end: its closing is what ends the cluster.
    let (read_end, _write_end) = io::pipe().doing(|| "making a pipe".to_owned())?;
    let mut namespace = start_supervisor(arguments, &control, read_end)?;
    let init = control.wait(PATIENCE).and_then(|()| control.pid())?;
    let api_port = relay_api(arguments, init)?;
    write_state(&arguments.dir, api_port)?;

    let ending = control.clone();
    spawn(move || {
        let _ = signals.wait();
        end(&ending, init);
    })?;
    if !arguments.detached {
        spawn(move || {
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            end(&control, init);
        })?;
    }
    namespace
        .wait()
        .doing(|| "waiting for the end of the cluster".to_owned())?;
    remove(&arguments.dir, &arguments.cgroup)
}

/// Starts a keeper and waits until its cluster's namespaces exist.
///
/// # Errors
///
/// It ends early, or takes too long; the error has its log.
pub fn spawn_keeper(
    program: &Path,
    dir: &Path,
    cgroup: &Path,
    api_server: SocketAddr,
    api_port: u16,
    detached: bool,
) -> Result<(Child, State)> {
    let log = dir.join("logs/keeper.log");
    let output = fs::File::create(&log).doing(|| format!("making {}", log.display()))?;
    let errors = output
        .try_clone()
        .doing(|| "duplicating a log".to_owned())?;
    let mut command = Command::new(program);
    command
        .args(["internal", "keeper", "--dir"])
        .arg(dir)
        .arg("--cgroup")
        .arg(cgroup)
        .args([
            "--api-server",
            &api_server.to_string(),
            "--api-port",
            &api_port.to_string(),
        ])
        .stdin(if detached {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(output)
        .stderr(errors);
    if detached {
        command.arg("--detached");
    }
    let mut child = command
        .spawn()
        .doing(|| format!("starting {}", program.display()))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(state) = State::alive(dir) {
            return Ok((child, state));
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(Error::component(
                "keeper",
                format!("ended with {status}"),
                &log,
            ));
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            return Err(Error::component("keeper", "did not get ready", &log));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Removes what a cluster leaves behind once its processes are gone: cgroup
/// directories, then its folder.
///
/// # Errors
///
/// Something is still in use.
pub fn remove(dir: &Path, cgroup: &Path) -> Result<()> {
    let hierarchies = Hierarchies::find()?;
    let deadline = Instant::now() + PATIENCE;
    // The kernel lets go of a cgroup a moment after its last process has ended.
    while let Err(error) = hierarchies.remove(cgroup) {
        if Instant::now() > deadline {
            return Err(error);
        }
        thread::sleep(Duration::from_millis(20));
    }
    if dir.exists() {
        let mut rm = Command::new("rm");
        rm.args(["-rf", "--one-file-system"]).arg(dir);
        crate::command::output(&mut rm)?;
    }
    Ok(())
}

fn start_supervisor(
    arguments: &Arguments,
    control: &Control,
    stdin: io::PipeReader,
) -> Result<Child> {
    let program = std::env::current_exe().doing(|| "finding this program".to_owned())?;
    Command::new("unshare")
        .args([
            "--mount",
            "--net",
            "--pid",
            "--ipc",
            "--uts",
            "--fork",
            "--mount-proc",
            "--",
        ])
        .arg(program)
        .args(["internal", "supervisor", "--watch-stdin", "--control"])
        .arg(control.dir().join(CONTROL_SOCKET))
        .arg("--remove-cgroup")
        .arg(&arguments.cgroup)
        .stdin(stdin)
        .spawn()
        .doing(|| "starting unshare".to_owned())
}

fn relay_api(arguments: &Arguments, init: i32) -> Result<u16> {
    let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, arguments.api_port));
    let listener = TcpListener::bind(wanted).doing(|| format!("listening on {wanted}"))?;
    let port = listener
        .local_addr()
        .doing(|| "asking for the port".to_owned())?
        .port();
    relay::serve(listener, Dialer::enter(init)?, arguments.api_server)?;
    Ok(port)
}

fn write_state(dir: &Path, api_port: u16) -> Result<()> {
    let state = State {
        pid: std::process::id().cast_signed(),
        api_port,
    };
    let text =
        serde_json::to_string(&state).map_err(|error| Error::malformed(STATE_FILE, error))?;
    let aside = dir.join("keeper.json.new");
    paths::write_file(&aside, text)?;
    fs::rename(&aside, dir.join(STATE_FILE)).doing(|| format!("writing {STATE_FILE}"))
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new()
        .spawn(work)
        .map(drop)
        .doing(|| "starting a thread".to_owned())
}

fn end(control: &Control, init: i32) {
    control.shutdown();
    thread::sleep(PATIENCE / 2);
    // Only reached while the namespace still lives: this process ends with it.
    let _ = kill(Pid::from_raw(init), Signal::SIGKILL);
}
