//! Notices Ctrl-C and a request to stop, so that the demo can stop its programs in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

/// How often somebody asked for the end.
#[derive(Debug, Clone)]
pub(super) struct Interrupt(Arc<AtomicU32>);

impl Interrupt {
    /// Takes over both signals from now on.
    pub(super) fn listen() -> Result<Self> {
        let interrupt = Self(Arc::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut terminate, mut ctrl_c) = {
            let _guard = runtime.enter();
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
        };
        let asked = Arc::clone(&interrupt.0);
        let waiting = move || {
            runtime.block_on(async {
                loop {
                    tokio::select! { _ = terminate.recv() => {}, _ = ctrl_c.recv() => {} }
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        };
        std::thread::Builder::new().name("interrupt".into()).spawn(waiting).context("cannot listen for Ctrl-C")?;
        Ok(interrupt)
    }

    /// The inputs shall stop.
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// Nothing more shall be waited for.
    pub(super) fn is_urgent(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 1
    }
}
