//! A restart from within: the agent stops in good order, and the same process becomes the program anew.

use std::ffi::OsString;
use std::path::Path;

use tokio_util::sync::CancellationToken;

/// Asks for a restart. Cheap to clone.
#[derive(Clone, Default)]
pub struct Restart(CancellationToken);

impl Restart {
    /// The agent begins to stop soon after. Refused while the program could not be started again.
    pub fn ask(&self) -> Result<(), String> {
        let program = program().ok_or("this process does not know its own program")?;
        // A name without a folder is looked for on the path, as it was at the start.
        if program.to_string_lossy().contains('/') && !Path::new(&program).is_file() {
            return Err(format!("the program {} is not there any more; it runs on", program.display()));
        }
        self.0.cancel();
        Ok(())
    }

    pub(crate) async fn asked(&self) {
        self.0.cancelled().await;
    }
}

/// How this process was called. After an update that is the new program.
#[must_use]
pub fn program() -> Option<OsString> {
    std::env::args_os().next()
}
