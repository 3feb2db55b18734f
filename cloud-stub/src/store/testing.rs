//! Cases and records for unit tests.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hedge_proto::{
    Captured, Case, CaseDecision, CaseId, CaseKey, DeviceId, Digest, Doubt, Epoch, ModelRef, PayloadForm, Reason,
    ThresholdMode, WIRE_VERSION, labels_hash,
};

use super::{FILE_NAME, RecordsAt};

/// Of the device `d`, with the payload `p`.
pub(crate) fn case(sequence: u64) -> Case {
    Case {
        v: WIRE_VERSION,
        id: CaseId { device: DeviceId::new("d").expect("valid"), key: CaseKey { epoch: Epoch(1), sequence } },
        reference: None,
        source: "s".to_owned(),
        task: "t".to_owned(),
        labels_hash: labels_hash(&["a"]),
        model: ModelRef { name: "m".to_owned(), version: "1".to_owned() },
        said: None,
        doubt: Doubt::NONE,
        view: None,
        decision: CaseDecision { reason: Reason::Unusable, check: false, threshold: 0.5, mode: ThresholdMode::Fixed },
        settings_version: 0,
        captured: Captured { powered_ms: 0, boot: String::new(), wall_ms: None, synced: false },
        form: PayloadForm::Whole,
        content_type: "image/png".to_owned(),
        payload_sha256: Digest::of(b"p"),
        payload: None,
        offer: None,
        metadata: Default::default(),
    }
}

/// Records of a test.
pub(crate) struct Records {
    pub(crate) at: RecordsAt,
    pub(crate) dir: tempfile::TempDir,
    server: Option<Child>,
    /// How the server is started.
    words: Vec<String>,
}

/// Runs a test on records in a file, and on a server where PostgreSQL is installed.
pub(crate) fn everywhere(test: impl Fn(&Records)) {
    let dir = tempfile::tempdir().expect("a directory");
    test(&Records { at: RecordsAt::file(dir.path().join(FILE_NAME)), dir, server: None, words: Vec::new() });
    if let Some(records) = Records::on_server() {
        test(&records);
    }
}

/// Where Debian puts what is needed.
const PROGRAMS: &str = "/usr/lib/postgresql";

/// The user that root becomes: the server refuses root.
const NOBODY: u32 = 65534;

impl Records {
    /// On a server of its own, on a socket in its own folder.
    pub(crate) fn on_server() -> Option<Self> {
        Self::served(|dir| {
            let socket = dir.display().to_string();
            let at = RecordsAt::server(&format!("postgres://hedge@/postgres?host={socket}"), None);
            (at.expect("an address"), ["-h", "", "-k", &socket].map(str::to_owned).to_vec())
        })
    }

    /// On a server that is reached by TCP, and has a certificate of the authority in `ca.pem` in its folder.
    pub(crate) fn by_tls() -> Option<Self> {
        Self::served(|dir| {
            // An address of its own, so that any port is free.
            let [_, _, high, low] = std::process::id().to_be_bytes();
            let address = format!("127.{high}.{low}.54");
            let authority = authority(dir, "ca.pem");
            let (key, mut server) = (rcgen::KeyPair::generate().expect("a key"), rcgen::CertificateParams::default());
            server.subject_alt_names.push(rcgen::SanType::IpAddress(address.parse().expect("an address")));
            let certificate = server.signed_by(&key, &authority).expect("signed");
            for (name, pem) in [("server.pem", certificate.pem()), ("server.key", key.serialize_pem())] {
                let file = dir.join(name);
                std::fs::write(&file, pem).expect("written");
                std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("closed");
                if rustix::process::geteuid().is_root() {
                    std::os::unix::fs::chown(&file, Some(NOBODY), Some(NOBODY)).expect("given away");
                }
            }
            let url = format!("postgres://hedge@{address}/postgres?sslmode=require");
            let at = RecordsAt::server(&url, Some(&dir.join("ca.pem"))).expect("an address");
            let setting = |name: &str, file: &str| format!("{name}={}", dir.join(file).display());
            let (certificate, key) = (setting("ssl_cert_file", "server.pem"), setting("ssl_key_file", "server.key"));
            let words = ["-h", &address, "-k", "", "-c", "ssl=on", "-c", &certificate, "-c", &key];
            (at, words.map(str::to_owned).to_vec())
        })
    }

    fn served(how: impl FnOnce(&Path) -> (RecordsAt, Vec<String>)) -> Option<Self> {
        if !Path::new(PROGRAMS).exists() {
            assert!(std::env::var_os("CI").is_none(), "in CI nothing is skipped: PostgreSQL is not installed");
            eprintln!("skipped on a server: PostgreSQL is not installed (apt-get install postgresql)");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("given away");
        }
        let (at, words) = how(dir.path());
        let mut records = Self { at, dir, server: None, words };
        let made = records.command("initdb").args(["--no-sync", "-A", "trust", "-U", "hedge", "-D", "data"]).status();
        assert!(made.expect("initdb").success());
        records.start();
        Some(records)
    }

    /// Ended as by a crash, and started again with this, too.
    pub(crate) fn restart_with(&mut self, words: &[&str]) {
        self.words.extend(words.iter().map(|word| (*word).to_owned()));
        self.stop();
        self.launch();
    }

    /// Ended as by a crash, and started again.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.start();
    }

    fn command(&self, program: &str) -> Command {
        let version = std::fs::read_dir(PROGRAMS).expect("versions").next().expect("one").expect("readable");
        let mut command = Command::new(version.path().join("bin").join(program));
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.current_dir(self.dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn launch(&mut self) {
        let mut command = self.command("postgres");
        self.server = Some(command.args(["-D", "data", "-F"]).args(&self.words).spawn().expect("postgres"));
    }

    fn start(&mut self) {
        self.launch();
        let until = Instant::now() + Duration::from_secs(60);
        while self.at.open_for_reading().expect("a session").exists("SELECT 1", &[]).is_err() {
            assert!(Instant::now() < until, "the server does not start");
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // SIGQUIT: at once, and its own processes with it.
            let id = rustix::process::Pid::from_child(&server);
            rustix::process::kill_process(id, rustix::process::Signal::QUIT).ok();
            drop(server.wait());
        }
    }
}

/// A new authority, whose certificate is in this file.
pub(crate) fn authority(dir: &Path, name: &str) -> rcgen::Issuer<'static, rcgen::KeyPair> {
    let (key, mut params) = (rcgen::KeyPair::generate().expect("a key"), rcgen::CertificateParams::default());
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    std::fs::write(dir.join(name), params.self_signed(&key).expect("signed").pem()).expect("written");
    rcgen::Issuer::new(params, key)
}

impl Drop for Records {
    fn drop(&mut self) {
        self.stop();
    }
}
