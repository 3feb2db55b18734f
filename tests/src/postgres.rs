//! Debian's PostgreSQL on a socket in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::program::{Program, Recipe};

/// Where Debian puts each version.
const PROGRAMS: &str = "/usr/lib/postgresql";

/// The server refuses root, who becomes this user.
const NOBODY: u32 = 65534;

const START_WAIT_MAX: Duration = Duration::from_secs(60);

#[must_use]
pub fn is_installed() -> bool {
    programs().is_ok()
}

fn programs() -> Result<PathBuf> {
    let newest = std::fs::read_dir(PROGRAMS)?.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).max();
    newest.filter(|programs| programs.join("initdb").is_file()).context("PostgreSQL is not installed")
}

/// A running server with one database.
pub struct Postgres {
    program: Program,
    dir: PathBuf,
    // After the program, which still writes there.
    _own: Option<tempfile::TempDir>,
}

impl Postgres {
    /// `dir` is where its output goes.
    pub fn start(dir: &Path) -> Result<Self> {
        // Not below `dir`: whoever the server runs as must be able to go there.
        let own = tempfile::tempdir()?;
        let mut postgres = Self::start_on(dir, own.path())?;
        postgres._own = Some(own);
        Ok(postgres)
    }

    /// With its data in this folder.
    pub fn start_on(dir: &Path, own: &Path) -> Result<Self> {
        let user = rustix::process::geteuid().is_root().then_some(NOBODY);
        if user.is_some() {
            std::os::unix::fs::chown(own, user, user)?;
        }
        let (programs, data) = (programs()?, own.join("data"));
        let mut initdb = Command::new(programs.join("initdb"));
        if let Some(user) = user {
            std::os::unix::process::CommandExt::uid(&mut initdb, user);
        }
        let initdb = initdb.current_dir(own).args(["--no-sync", "-A", "trust", "-U", "hedge", "-D"]);
        let made = initdb.arg(&data).output()?;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let recipe = Recipe::new("postgres", programs.join("postgres"), dir)
            .argument("-D")
            .argument(&data)
            .arguments(["-h", "", "-k"])
            .argument(own);
        let mut postgres = Self { program: recipe.running_as(user).start()?, dir: own.to_owned(), _own: None };
        postgres.wait_until_ready()?;
        Ok(postgres)
    }

    /// `postgres://…` for the cloud.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://hedge@/postgres?host={}", self.dir.display())
    }

    /// The processor time that it has used so far, all its processes together.
    pub fn cpu(&self) -> Result<Duration> {
        let main = self.program.id().context("the server is not running")?;
        let children = std::fs::read_to_string(format!("/proc/{main}/task/{main}/children"))?;
        let ids = children.split_whitespace().filter_map(|id| id.parse().ok()).chain([main]);
        // One that has ended meanwhile has used what nobody can say any more.
        Ok(ids.filter_map(|id| crate::program::cpu(id).ok()).sum())
    }

    /// Ends all sessions in the middle of what they do, and the server.
    pub fn stop_at_once(&mut self) -> Result<()> {
        self.program.signal(Signal::QUIT)?;
        self.program.wait_for_end(START_WAIT_MAX)?;
        Ok(())
    }

    /// After [`Self::stop_at_once`], or if it has ended by itself: without room for its log it does.
    pub fn start_again(&mut self) -> Result<()> {
        if self.program.check_alive().is_ok() {
            return Ok(());
        }
        self.program.start()?;
        self.wait_until_ready()
    }

    /// Nobody is answered any more, and nobody hears why, until [`Self::thaw`]: as behind a cut.
    pub fn freeze(&self) -> Result<()> {
        self.signal_all(Signal::STOP)
    }

    pub fn thaw(&self) -> Result<()> {
        self.signal_all(Signal::CONT)
    }

    fn signal_all(&self, signal: Signal) -> Result<()> {
        let main = self.program.id().context("the server is not running")?;
        // The one that starts others first, so that none is missed.
        self.program.signal(signal)?;
        let children = std::fs::read_to_string(format!("/proc/{main}/task/{main}/children"))?;
        for id in children.split_whitespace() {
            let id = rustix::process::Pid::from_raw(id.parse()?).context("a process id is a positive number")?;
            match rustix::process::kill_process(id, signal) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let ready = |socket: &Path| {
            let asked = Command::new("pg_isready").arg("-q").arg("-h").arg(socket).status();
            asked.is_ok_and(|status| status.success())
        };
        let socket = self.dir.clone();
        self.program.wait_for("PostgreSQL is ready", START_WAIT_MAX, |_| Ok(ready(&socket).then_some(())))
    }
}

impl Drop for Postgres {
    /// `kill -9` of the first process would leave the others behind.
    fn drop(&mut self) {
        if let Err(error) = self.thaw().and_then(|()| self.stop_at_once()) {
            eprintln!("PostgreSQL does not end: {error}");
        }
    }
}
