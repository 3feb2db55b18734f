//! A registry of containers as the place where bundles are published: one artifact whose layers are the files of the folder,
//! each with its path as its title, as common tools push them (OCI Image and Distribution Specification 1.1). No IO.

use std::collections::BTreeMap;

use anyhow::{Context as _, anyhow, bail, ensure};
use hedge_config::HttpUrl;
use reqwest::Url;
use serde::Deserialize;

/// What is asked for: an artifact, or what older registries make of one.
pub(super) const MANIFEST_TYPES: &str =
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

const TITLE: &str = "org.opencontainers.image.title";

/// `NAME:TAG` or `NAME@sha256:DIGEST` at a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Artifact {
    base: Url,
    name: String,
    reference: String,
}

impl Artifact {
    pub(super) fn new(at: &HttpUrl) -> anyhow::Result<Self> {
        let base = Url::parse(&format!("{}://{}/", if at.tls { "https" } else { "http" }, at.authority()))?;
        let path = at.path.trim_start_matches('/');
        let (name, reference) = match path.split_once('@') {
            Some((name, digest)) => (name, digest),
            None => path.rsplit_once(':').unwrap_or((path, "latest")),
        };
        // The specification's own rule for names, which leaves nothing that a path could mean something by.
        let is_part = |part: &str| {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            part.bytes().all(|byte| plain(byte) || b"._-".contains(&byte)) && part.bytes().next().is_some_and(plain)
        };
        let is_reference = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
        ensure!(
            name.split('/').all(is_part) && !reference.is_empty() && reference.bytes().all(is_reference),
            "`{path}` is no artifact of a registry; write oci://HOST/NAME:TAG or oci://HOST/NAME@sha256:DIGEST"
        );
        Ok(Self { base, name: name.to_owned(), reference: reference.to_owned() })
    }

    pub(super) fn manifest(&self) -> anyhow::Result<Url> {
        Ok(self.base.join(&format!("v2/{}/manifests/{}", self.name, self.reference))?)
    }

    pub(super) fn blob(&self, digest: &str) -> anyhow::Result<Url> {
        Ok(self.base.join(&format!("v2/{}/blobs/{digest}", self.name))?)
    }

    /// The digest of each file, by its path.
    pub(super) fn files(&self, manifest: &[u8]) -> anyhow::Result<BTreeMap<String, String>> {
        if let Some(wanted) = self.reference.strip_prefix("sha256:") {
            let came = hedge_proto::Digest::of(manifest).to_string();
            ensure!(came == wanted, "its manifest has the digest sha256:{came}");
        }
        let Manifest { layers } = serde_json::from_slice(manifest).map_err(|error| anyhow!("its manifest: {error}"))?;
        let layers = layers.context("it is an index of several artifacts; name one of them by its digest")?;
        let mut files = BTreeMap::new();
        for Layer { digest, annotations } in layers {
            // What has no title is no file.
            let Some(title) = annotations.get(TITLE) else { continue };
            let is_sum = |sum: &str| sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit());
            ensure!(
                digest.strip_prefix("sha256:").is_some_and(is_sum),
                "its file {title} has the digest {digest}; only sha256 is read"
            );
            files.insert(title.trim_start_matches("./").to_owned(), digest);
        }
        ensure!(!files.is_empty(), "none of its layers has a title; push the folder's files with their paths");
        Ok(files)
    }

    /// Where a token for reading it is had, and whether the registry wants none but a name and a password.
    pub(super) fn login(&self, challenge: &str) -> anyhow::Result<Login> {
        let (scheme, fields) = challenge.split_once(' ').unwrap_or((challenge, ""));
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => Ok(Login::Basic),
            "bearer" => {
                let field = |name: &str| {
                    let quoted = fields.split(&format!("{name}=\"")).nth(1)?;
                    quoted.split('"').next().filter(|value| !value.is_empty())
                };
                let realm = field("realm").context("it asks for a token and does not say where one is had")?;
                let mut realm: Url = realm.parse().with_context(|| format!("it names {realm} for tokens"))?;
                ensure!(
                    realm.scheme() == "https" || (realm.scheme() == "http" && self.base.scheme() == "http"),
                    "it wants the password shown to {realm}, which is not HTTPS"
                );
                let scope = format!("repository:{}:pull", self.name);
                let mut query = realm.query_pairs_mut();
                query.append_pair("scope", field("scope").unwrap_or(&scope));
                if let Some(service) = field("service") {
                    query.append_pair("service", service);
                }
                drop(query);
                Ok(Login::Token(realm))
            }
            other => bail!("it wants a login of the kind `{other}`; Basic and Bearer are known"),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Login {
    /// With every request.
    Basic,
    /// Once, here, for a token.
    Token(Url),
}

#[derive(Deserialize)]
struct Manifest {
    layers: Option<Vec<Layer>>,
}

#[derive(Deserialize)]
struct Layer {
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The token in what a registry's login answers.
pub(super) fn token(answer: &[u8]) -> anyhow::Result<String> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let Answer { token, access_token } =
        serde_json::from_slice(answer).map_err(|error| anyhow!("its login answers no token: {error}"))?;
    token.or(access_token).context("its login answers no token")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(path: &str) -> anyhow::Result<Artifact> {
        let url = HttpUrl { tls: true, host: "registry.example".into(), port: 443, path: path.to_owned() };
        Artifact::new(&url)
    }

    #[test]
    fn an_artifact_is_a_name_with_a_tag_or_a_digest() {
        let asked = |path: &str| artifact(path).map(|artifact| artifact.manifest().expect("an address").to_string());
        let at = |rest: &str| format!("https://registry.example/v2/{rest}");
        assert_eq!(asked("/models").expect("a name"), at("models/manifests/latest"));
        assert_eq!(asked("/farm/models:v1.2").expect("a tag"), at("farm/models/manifests/v1.2"));
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(asked(&format!("/models@{digest}")).expect("a digest"), at(&format!("models/manifests/{digest}")));
        for bad in ["", "/", "/Models", "/../models", "/models:", "/models:a/b", "/models:a?b", "/a//b", "/.hidden"] {
            let said = artifact(bad).expect_err(bad).to_string();
            assert!(said.contains("oci://HOST/NAME:TAG"), "{said}");
        }
    }

    #[test]
    fn files_are_known_by_their_titles_and_an_artifact_by_its_digest() {
        let sum = "b".repeat(64);
        let layer =
            |title: &str| format!("{{\"digest\":\"sha256:{sum}\",\"annotations\":{{\"{TITLE}\":\"{title}\"}}}}");
        let manifest = |layers: &str| format!("{{\"layers\":[{layers}]}}");
        let whole = manifest(&[layer("list.json"), layer("./root/1.json"), "{\"digest\":\"x\"}".to_owned()].join(","));
        let files = artifact("/m").expect("a name").files(whole.as_bytes()).expect("files");
        assert_eq!(files.keys().collect::<Vec<_>>(), ["list.json", "root/1.json"]);
        let refuses = |path: &str, manifest: &str, because: &str| {
            let said = artifact(path).expect("a name").files(manifest.as_bytes()).expect_err(manifest).to_string();
            assert!(said.contains(because), "{said}");
        };
        refuses("/m", "{\"manifests\":[]}", "an index of several artifacts");
        refuses("/m", &manifest("{\"digest\":\"x\"}"), "none of its layers has a title");
        refuses("/m", &whole.replace("sha256", "sha512"), "only sha256 is read");
        refuses("/m", "<html>", "its manifest: expected value");
        refuses(&format!("/m@sha256:{sum}"), &whole, "its manifest has the digest sha256:");
        let named = format!("/m@sha256:{}", hedge_proto::Digest::of(whole.as_bytes()));
        assert!(artifact(&named).expect("a digest").files(whole.as_bytes()).is_ok());
    }

    #[test]
    fn a_token_is_asked_for_where_the_registry_says_and_never_in_the_clear() {
        let login = |challenge: &str| artifact("/farm/models:1").expect("a name").login(challenge);
        let asked = login("Bearer realm=\"https://auth.example/token\",service=\"registry.example\"").expect("a login");
        let Login::Token(url) = asked else { panic!("{asked:?}") };
        assert_eq!(
            url.as_str(),
            "https://auth.example/token?scope=repository%3Afarm%2Fmodels%3Apull&service=registry.example"
        );
        assert_eq!(login("Basic realm=\"x\"").expect("a login"), Login::Basic);
        for (challenge, because) in [
            ("Bearer realm=\"http://auth.example/token\"", "not HTTPS"),
            ("Bearer service=\"x\"", "does not say where"),
            ("Negotiate", "of the kind `negotiate`"),
        ] {
            let said = format!("{:#}", login(challenge).expect_err(challenge));
            assert!(said.contains(because), "{said}");
        }
        assert_eq!(token(b"{\"access_token\":\"t\"}").expect("a token"), "t");
        assert!(token(b"{}").is_err() && token(b"no").is_err());
    }
}
