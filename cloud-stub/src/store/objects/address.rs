//! Where the store is and who we are there, in the words of AWS's own tools.

use std::path::{Path, PathBuf};

use rusty_s3::{Credentials, UrlStyle};

/// One bucket, and what stands before each name in it.
pub(super) struct Address {
    pub(super) bucket: rusty_s3::Bucket,
    /// Empty, or ends with a slash.
    pub(super) prefix: String,
    pub(super) credentials: Credentials,
    /// Authorities that are trusted instead of the system's.
    pub(super) authorities: Option<PathBuf>,
}

/// Reads the URL and the variables; what is wrong names its variable.
pub(super) fn read(url: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Address, String> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let either = |one: &str, other: &str| variable(one).or_else(|| variable(other));
    let rest = url.strip_prefix("s3://").ok_or("write file:///PATH, s3://BUCKET or s3://BUCKET/PREFIX")?;
    let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if name.is_empty() || rest.contains(['?', '#', '@']) {
        return Err("write s3://BUCKET or s3://BUCKET/PREFIX; keys and the server's address stand in AWS_… variables"
            .to_owned());
    }
    let prefix = prefix.trim_matches('/');
    let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    let region = either("AWS_REGION", "AWS_DEFAULT_REGION").unwrap_or_else(|| "us-east-1".to_owned());
    let own = either("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL");
    // Servers of one's own have no name for each bucket.
    let style = if own.is_some() { UrlStyle::Path } else { UrlStyle::VirtualHost };
    let endpoint = own.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
    let wrong = |why: String| format!("AWS_ENDPOINT_URL_S3 is `{endpoint}`: {why}");
    let endpoint_url = endpoint.parse().map_err(|error| wrong(format!("{error}")))?;
    let bucket = rusty_s3::Bucket::new(endpoint_url, style, name.to_owned(), region)
        .map_err(|error| wrong(error.to_string()))?;
    let credentials = match (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) {
        (Some(key), Some(secret)) => with_token(key, secret, variable("AWS_SESSION_TOKEN")),
        (None, None) => {
            let home = || variable("HOME").map(|home| Path::new(&home).join(".aws/credentials"));
            let file = variable("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from).or_else(home);
            let profile = variable("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
            from_file(file.as_deref(), &profile)?
        }
        (Some(_), None) => return Err("AWS_SECRET_ACCESS_KEY is missing: it belongs to AWS_ACCESS_KEY_ID".to_owned()),
        (None, Some(_)) => return Err("AWS_ACCESS_KEY_ID is missing: it belongs to AWS_SECRET_ACCESS_KEY".to_owned()),
    };
    Ok(Address { bucket, prefix, credentials, authorities: variable("AWS_CA_BUNDLE").map(PathBuf::from) })
}

fn with_token(key: String, secret: String, token: Option<String>) -> Credentials {
    match token {
        Some(token) => Credentials::new_with_token(key, secret, token),
        None => Credentials::new(key, secret),
    }
}

fn from_file(file: Option<&Path>, profile: &str) -> Result<Credentials, String> {
    let file = file.ok_or("there are no keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")?;
    let text = hedge_inference::read_text(file).map_err(|error| {
        let advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SHARED_CREDENTIALS_FILE";
        format!("there are no keys: {} cannot be read: {error}; {advice}", file.display())
    })?;
    let mut fields = std::collections::BTreeMap::new();
    let mut is_ours = false;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            is_ours = section.trim() == profile;
        } else if let Some((name, value)) = line.split_once('=').filter(|_| is_ours && !line.starts_with(['#', ';'])) {
            fields.insert(name.trim().to_owned(), value.trim().to_owned());
        }
    }
    let mut field = |name: &str| fields.remove(name);
    match (field("aws_access_key_id"), field("aws_secret_access_key")) {
        (Some(key), Some(secret)) => Ok(with_token(key, secret, field("aws_session_token"))),
        _ => {
            let both = "aws_access_key_id and aws_secret_access_key";
            Err(format!("{}: the profile `{profile}` does not have both of {both}", file.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given<'a>(variables: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| variables.iter().find(|(given, _)| *given == name).map(|(_, value)| (*value).to_owned())
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "secret")];

    #[test]
    fn a_bucket_is_found_by_the_variables_of_aws_s_own_tools() {
        let own = [&KEYS[..], &[("AWS_ENDPOINT_URL", "http://127.0.0.1:9000"), ("AWS_REGION", "home")]].concat();
        for (url, variables, base, prefix) in [
            ("s3://pictures", &KEYS[..], "https://pictures.s3.us-east-1.amazonaws.com/", ""),
            ("s3://pictures/hedge/", &own[..], "http://127.0.0.1:9000/pictures/", "hedge/"),
        ] {
            let address = read(url, &given(variables)).expect("read");
            assert_eq!((address.bucket.base_url().as_str(), address.prefix.as_str()), (base, prefix));
        }
    }

    #[test]
    fn keys_come_from_the_profile_of_a_file_and_what_is_missing_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("credentials");
        let text =
            "[default]\naws_access_key_id = a\n[hedge]\n# ours\naws_access_key_id = b\naws_secret_access_key = c\n";
        std::fs::write(&file, text).expect("written");
        let file = file.display().to_string();
        let at = |profile| [("AWS_SHARED_CREDENTIALS_FILE", file.as_str()), ("AWS_PROFILE", profile)];
        let address = read("s3://b", &given(&at("hedge"))).expect("read");
        assert_eq!((address.credentials.key(), address.credentials.secret()), ("b", "c"));
        let error = |url: &str, variables: &[(&str, &str)]| read(url, &given(variables)).err().expect("refused");
        assert!(error("s3://b", &at("default")).contains("`default` does not have both"));
        assert!(error("s3://b", &[]).contains("AWS_ACCESS_KEY_ID"));
        assert!(error("s3://b", &KEYS[..1]).contains("AWS_SECRET_ACCESS_KEY is missing"));
        assert!(error("s3://id:secret@host/b", &KEYS).contains("s3://BUCKET"));
        assert!(error("/folder", &KEYS).contains("s3://BUCKET"));
        let odd = [&KEYS[..], &[("AWS_ENDPOINT_URL_S3", "127.0.0.1")]].concat();
        assert!(error("s3://b", &odd).contains("AWS_ENDPOINT_URL_S3"));
    }
}
