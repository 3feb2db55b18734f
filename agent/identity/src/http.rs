//! Whom a program trusts that calls another over HTTP, and how much of an answer it reads.

use std::path::Path;

use reqwest::{Certificate, Client, ClientBuilder, Response, redirect};

/// A client for `url` that trusts the authorities in this file (PEM), or the system's. It follows no redirect: that would
/// repeat a token to whoever it names. What is wrong begins with the file's name.
pub fn http_client(url: &str, authorities: Option<&Path>) -> Result<ClientBuilder, String> {
    let builder = Client::builder().redirect(redirect::Policy::none());
    Ok(match authorities {
        // Without this, a machine without any certificates could not even use plain HTTP.
        None if url.starts_with("http://") => builder.tls_certs_only([]),
        None => builder,
        Some(path) => {
            let wrong = |reason: String| format!("{}: {reason}", path.display());
            let pem = hedge_inference::read_pem(path).map_err(|error| wrong(error.to_string()))?;
            let certificates = Certificate::from_pem_bundle(&pem)
                .map_err(|error| wrong(format!("it is not a PEM file of certificates: {error}")))?;
            builder.tls_certs_only(certificates)
        }
    })
}

/// The body of an answer; `None` if it is longer.
pub async fn http_body(mut response: Response, bytes_max: usize) -> reqwest::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > bytes_max {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

/// The beginning of an answer's body: as much as came of it, whether it ended, broke off, or goes on.
pub async fn http_beginning(mut response: Response, bytes_max: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < bytes_max
        && let Ok(Some(chunk)) = response.chunk().await
    {
        body.extend_from_slice(&chunk);
    }
    body.truncate(bytes_max);
    body
}
