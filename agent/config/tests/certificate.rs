//! A device whose configuration and certificate name it differently is refused.

use hedge_config::Config;
use rcgen::{CertificateParams, DnType, KeyPair};

fn certificate(common: &str) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, common);
    params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").pem()
}

#[test]
fn a_configuration_that_disagrees_with_its_certificate_is_refused() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let file = dir.path().join("device.pem");
    std::fs::write(&file, certificate("gate-7")).expect("writes");
    let id = |text: &str| {
        let broker = format!("[broker]\nurl = \"mqtts://b\"\ncertificate_file = \"{}\"\n", file.display());
        let (before, after) = text.split_once('|').expect("two parts");
        let text = format!("{before}{broker}{after}");
        Config::parse(&text, "agent.toml", std::iter::empty()).expect("valid").device_id()
    };
    assert_eq!(id("|").expect("named").as_str(), "gate-7");
    assert_eq!(id("device = \"gate-7\"\n|").expect("named").as_str(), "gate-7");
    assert_eq!(id("device = \"porch\"\n|identity = \"configuration\"\n").expect("named").as_str(), "porch");
    let error = id("device = \"porch\"\n|").expect_err("refused");
    assert!(error.contains("porch") && error.contains("gate-7"), "{error}");
    std::fs::write(&file, "half a").expect("writes");
    assert!(id("|").expect_err("refused").contains("certificate_file = "));
    assert_eq!(id("device = \"porch\"\n|").expect("the dial says what is wrong").as_str(), "porch");
}
