//! ONNX Runtime as a shared library: found, tried out in a child process, loaded once.
//!
//! A library built for a newer processor kills the process that runs it; that must be a sentence at start, not
//! a crash loop. So [`Runtime::find`] first lets a child run a tiny model. Which model runs on the loaded
//! library, and how, is up to `model`.

mod probe;
mod provider;
mod search;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::LoadDynamicError;
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::SessionBuilder;

pub use probe::probe_if_asked;
pub use provider::{Provider, ProviderChoice, RunsOn};
pub use search::LIBRARY_VARIABLE;

/// Why there is no ONNX Runtime to work with. Each text names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error(
        "no ONNX Runtime library (libonnxruntime.so) was found; looked into {searched}; install one there, or name it \
         with `library` in [runtime], --library, or {LIBRARY_VARIABLE}"
    )]
    NotFound { searched: String },
    #[error("the ONNX Runtime library {} (from {from}) cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, from: &'static str, source: std::io::Error },
    #[error("{} is not a shared library; name the file libonnxruntime.so of ONNX Runtime", path.display())]
    NotALibrary { path: PathBuf },
    #[error("{} is a library for another kind of processor; this machine needs one for {}", path.display(), std::env::consts::ARCH)]
    OtherProcessor { path: PathBuf },
    #[error("{} is a shared library, but not ONNX Runtime", path.display())]
    NotOnnxRuntime { path: PathBuf },
    #[error("{} is ONNX Runtime {version}; 1.{minor_min} or newer is needed", path.display())]
    TooOld { path: PathBuf, version: String, minor_min: u32 },
    #[error(
        "{} was built for a newer processor than this one (illegal instruction); install another version of ONNX \
         Runtime (1.21.0 does this on a Raspberry Pi 4, 1.22 does not)",
        path.display()
    )]
    IllegalInstruction { path: PathBuf },
    #[error("{} crashes on this machine when it is tried ({how}); copy it again, or install another version of ONNX Runtime", path.display())]
    Crashes { path: PathBuf, how: String },
    #[error("{} did not finish a tiny model within {seconds} s; install another version of ONNX Runtime", path.display())]
    Hangs { path: PathBuf, seconds: u64 },
    #[error("this process already uses {}; only one library can be loaded, so {} is not", loaded.display(), asked.display())]
    OtherLoaded { loaded: PathBuf, asked: PathBuf },
    #[error("the trial of {} was killed from outside, most likely for want of memory; it is tried again", path.display())]
    Killed { path: PathBuf },
    /// Found earlier; the file has not changed since.
    #[error(transparent)]
    Known(Arc<RuntimeError>),
    #[error("{} cannot be loaded: {reason}", path.display())]
    Failed { path: PathBuf, reason: String },
}

/// ONNX Runtime, loaded. Clones are the same one.
#[derive(Clone)]
pub struct Runtime(Arc<Loaded>);

struct Loaded {
    path: PathBuf,
    version: String,
    environment: Environment,
}

/// A process can hold one library only, whoever asks for it first.
static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);

impl Runtime {
    /// Finds the library, lets a child process try it, and loads it.
    ///
    /// Looks at `library`, else at `ORT_DYLIB_PATH`, else beside the executable, in `/usr/lib/hedge` and in the
    /// system's library folders; what is named must work, it is not searched past. Without
    /// [`probe_if_asked`] at the start of `main` there is no child.
    pub fn find(library: Option<&Path>) -> Result<Self, RuntimeError> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let (None, Some(runtime)) = (library, &*loaded) {
            return Ok(runtime.clone());
        }
        let path = search::find(library)?;
        if let Some(runtime) = &*loaded {
            if runtime.path() == path {
                return Ok(runtime.clone());
            }
            return Err(RuntimeError::OtherLoaded { loaded: runtime.path().to_owned(), asked: path });
        }
        search::check_file(&path)?;
        probe::ask_child_once(&path)?;
        let runtime = Self::load(path)?;
        *loaded = Some(runtime.clone());
        Ok(runtime)
    }

    fn load(path: PathBuf) -> Result<Self, RuntimeError> {
        let builder = match ort::init_from(&path) {
            Ok(builder) => builder,
            Err(error) => return Err(RuntimeError::from_load(path, error)),
        };
        let environment = builder
            .with_name("hedge")
            .with_telemetry(false)
            .with_logger(Arc::new(log))
            .build()
            .map_err(|error| RuntimeError::Failed { path: path.clone(), reason: error.to_string() })?;
        // Otherwise every message is formatted before we drop it.
        environment.set_log_level(LogLevel::Warning);
        let version = search::version_in_name(&path).unwrap_or_else(|| format!("1.{} or newer", ort::MINOR_VERSION));
        Ok(Self(Arc::new(Loaded { path, version, environment })))
    }

    /// The library's version as its file name tells it.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.0.version
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// A session to be committed, with our options: see the comments.
    pub(crate) fn session(&self, threads: u8) -> ort::Result<SessionBuilder> {
        Ok(Session::builder(&self.0.environment)?
            .with_intra_threads(threads.max(1).into())?
            .with_inter_threads(1)?
            // A spinning thread burns power after each answer.
            .with_intra_op_spinning(false)?
            .with_inter_op_spinning(false)?
            // x86 processors without VNNI add INT8 products up in 16 bits, which overflow: our photo model
            // then contradicts itself on 3 of 10 pictures. This makes them calculate exactly; on all others
            // it does nothing.
            .with_config_entry("session.x64quantprecision", "1")?)
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("path", &self.0.path).field("version", &self.0.version).finish()
    }
}

impl RuntimeError {
    fn from_load(path: PathBuf, error: LoadDynamicError) -> Self {
        match error {
            LoadDynamicError::BadVersion { version_str, .. } => {
                Self::TooOld { path, version: version_str, minor_min: ort::MINOR_VERSION }
            }
            LoadDynamicError::MissingApi { .. } | LoadDynamicError::InvalidVersionString => {
                Self::NotOnnxRuntime { path }
            }
            LoadDynamicError::Dlopen { error, .. } => Self::Failed { path, reason: error.to_string() },
        }
    }
}

/// The library's warnings are about its own choices, not about ours: they are for whoever looks closely.
fn log(level: LogLevel, category: &str, _id: &str, _place: &str, message: &str) {
    match level {
        LogLevel::Fatal | LogLevel::Error => tracing::warn!(category, "ONNX Runtime: {message}"),
        _ => tracing::debug!(category, "ONNX Runtime: {message}"),
    }
}
