//! What decides cannot act, and what acts holds one TLS.

use hedge_tests::dependencies;

#[test]
fn hedge_core_reaches_no_crate_that_does_io() {
    dependencies::core_is_pure().expect("pure");
}

#[test]
fn the_agent_holds_one_rustls_on_ring() {
    dependencies::agent_has_one_rustls_on_ring().expect("one rustls");
}
