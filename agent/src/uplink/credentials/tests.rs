use super::*;
use rcgen::{CertificateParams, KeyPair};

/// As `openssl x509 -req` without `-extfile` makes it.
const VERSION_1: &str = "\
-----BEGIN CERTIFICATE-----
MIIBGzCBwgIUIYknYZNjy+m4YX/yCTx43zux+NQwCgYIKoZIzj0EAwIwEjEQMA4G
A1UEAwwHVGVzdCBDQTAeFw0yNjExMjgxNzUyNTJaFw00NjExMjMxNzUyNTJaMA8x
DTALBgNVBAMMBGRldjEwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASVSWXT0rpE
TDYM5BPGZyR6XR80/w9ebXALXuCrgIWrmo8vVneIubrLpRQBaUo/O5wMA+p5TBwx
rD76EATcR4riMAoGCCqGSM49BAMCA0gAMEUCIEj/52uxtPWEll+D+379gR7zO7Dr
zlWSLifOm7xFclfdAiEArQQCO1RwK9ETETWdJD8Yw4jjFziFvEZmwhC6QApAqA8=
-----END CERTIFICATE-----
";
const VERSION_1_KEY: &str = "\
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIL6S3mSrjJpdBu6CesFVm48vPLP40aBE7zykpbzcHfBhoAoGCCqGSM49
AwEHoUQDQgAElUll09K6REw2DOQTxmckel0fNP8PXm1wC17gq4CFq5qPL1Z3iLm6
y6UUAWlKPzucDAPqeUwcMaw++hAE3EeK4g==
-----END EC PRIVATE KEY-----
";
const P_521_KEY: &str = "\
-----BEGIN EC PRIVATE KEY-----
MIHcAgEBBEIBUh5Bq33c/IfF4NC2iXsSKIdDm+9UjtDSpx1AYmAH5qsns9VHWB98
b9qDQ/+Uj83+mhdvHQxxpHTLTAzJ458GXqagBwYFK4EEACOhgYkDgYYABAGriv6w
yLT+iRAhAzZvFQTHl/Tlv2Fnt5VpGjqoQSyaqDtqJoKbN9/b7N1O0KrWm7NIcX0P
a8d8cyi7Hw5eMtXI/AHjRV1sBPzkMl1jif6/HCmpOPW9yWdWHSx3MTFpn6kUHVYo
roFq/FSLGV6m6op6gKNZMzUaQlMOuVO25hN1u8CWnQ==
-----END EC PRIVATE KEY-----
";

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("temporary folder"))
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> std::path::PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).expect("writes");
        path
    }

    /// What is said of this certificate with this key.
    fn said(&self, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> String {
        let (certificate, key) = (self.write("c", certificate), self.write("k", key));
        let text = format!("url = \"mqtts://b\"\ncertificate_file = {certificate:?}\nkey_file = {key:?}\n");
        let ca = self.write("ca", pair().0);
        let config = toml::from_str(&format!("{text}ca_file = {ca:?}\n")).expect("valid");
        client_config(&config).map_or_else(|error| error.to_string(), |_| String::new())
    }
}

fn pair() -> (String, String, Vec<u8>) {
    let key = KeyPair::generate().expect("a key");
    let own = CertificateParams::default().self_signed(&key).expect("a certificate");
    (own.pem(), key.serialize_pem(), own.der().to_vec())
}

#[test]
fn certificates_and_keys_of_the_usual_recipes_are_told_by_what_they_are() {
    let files = Files::new();
    let (certificate, key, der) = pair();
    let (_, other_key, _) = pair();
    assert_eq!(files.said(&certificate, &key), "");
    let pkcs12 = b"\x30\x82\x03\xac\x02\x01\x03\x30\x82\x03\x62\x06\x09\x2a\x86\x48";
    let request = "-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n";
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let old_encrypted = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMAA=\n\
                         -----END RSA PRIVATE KEY-----\n";
    let ssh = "-----BEGIN OPENSSH PRIVATE KEY-----\nMAA=\n-----END OPENSSH PRIVATE KEY-----\n";
    for (of, with, file, what) in [
        (VERSION_1.as_bytes(), VERSION_1_KEY.as_bytes(), "certificate_file", "X.509 version 1"),
        (certificate.as_bytes(), P_521_KEY.as_bytes(), "key_file", "P-521"),
        (certificate.as_bytes(), other_key.as_bytes(), "key_file", "not the key of certificate_file"),
        (certificate.as_bytes(), encrypted.as_bytes(), "key_file", "encrypted"),
        (certificate.as_bytes(), old_encrypted.as_bytes(), "key_file", "encrypted"),
        (certificate.as_bytes(), ssh.as_bytes(), "key_file", "SSH key"),
        (certificate.as_bytes(), certificate.as_bytes(), "key_file", "swapped"),
        (certificate.as_bytes(), b"\n", "key_file", "empty"),
        (certificate.as_bytes(), pkcs12, "key_file", "openssl pkcs12"),
        (certificate.as_bytes(), b"\x30\x77\x02\x01\x01", "key_file", "openssl pkey -inform der"),
        (key.as_bytes(), key.as_bytes(), "certificate_file", "swapped"),
        (&der[..], key.as_bytes(), "certificate_file", "openssl x509 -inform der"),
        (pkcs12, key.as_bytes(), "certificate_file", "openssl pkcs12"),
        (request.as_bytes(), key.as_bytes(), "certificate_file", "request"),
        (b"", key.as_bytes(), "certificate_file", "empty"),
        (b"hello", key.as_bytes(), "certificate_file", "no PEM certificate"),
        (b"-----BEGIN CERT", key.as_bytes(), "certificate_file", "PEM"),
    ] {
        let said = files.said(of, with);
        assert!(said.starts_with(file) && said.contains(what), "`{said}` does not say `{file}` and `{what}`");
    }
}
