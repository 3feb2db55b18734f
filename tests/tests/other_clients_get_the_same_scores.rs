//! Existing clients of the Open Inference Protocol work unchanged.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use hedge_tests::{AgentConfig, places, skip};

#[test]
fn tritonclient_gets_what_onnx_runtime_gives_directly() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let Some(python) = std::env::var_os("HEDGETEST_PYTHON") else {
        skip::skipped("no Python environment with tritonclient; `cargo xtask test` makes one");
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let mut agent = AgentConfig::new(dir.path(), "device-1").model("fashion-small").http_source("pictures").start()?;
    let address = agent.http.base().trim_start_matches("http://").to_owned();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/tritonclient_scores.py");
    let model = places::model("fashion-small").join("int8.onnx");
    let output = Command::new(python).arg(script).args([&address, "fashion-small"]).arg(model).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\nthe end of the agent's log:\n{}", agent.log_end());
    assert_eq!(agent.http.status()?.samples.deferred, 0, "it defers nothing");
    agent.stop()
}
