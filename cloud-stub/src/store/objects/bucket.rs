//! Single requests to the store.

use std::time::Duration;

use hedge_identity::{http_beginning, http_body, http_client};
use reqwest::{Client, Method, Response, StatusCode, Url};
use rusty_s3::S3Action as _;
use rusty_s3::actions::{ListObjectsV2, ListObjectsV2Response};

use super::Failed;
use super::address::Address;

/// How long a signed address holds: longer than any request, and than clocks differ on a good day.
const SIGNED_FOR: Duration = Duration::from_secs(300);

/// The largest object that is read: the largest payload is 64 MiB.
const OBJECT_BYTES_MAX: usize = 128 * 1024 * 1024;

/// How long a list of a thousand objects may be, and what a server says of an error.
const LIST_BYTES_MAX: usize = 16 * 1024 * 1024;
const ERROR_BYTES_MAX: usize = 16 * 1024;

fn not_there() -> Failed {
    Failed::Refused("it says that there is no such bucket".to_owned())
}

#[derive(Debug)]
pub(super) struct Bucket {
    client: Client,
    bucket: rusty_s3::Bucket,
    prefix: String,
    credentials: rusty_s3::Credentials,
}

impl Bucket {
    pub(super) fn new(address: Address) -> Result<Self, String> {
        let Address { bucket, prefix, credentials, authorities } = address;
        let client = http_client(bucket.base_url().as_str(), authorities.as_deref())
            .map_err(|why| format!("AWS_CA_BUNDLE is {why}"))?;
        let client =
            client.connect_timeout(Duration::from_secs(2)).build().map_err(|error| hedge_proto::in_one_line(&error))?;
        Ok(Self { client, bucket, prefix, credentials })
    }

    pub(super) async fn put(&self, key: String, bytes: Vec<u8>) -> Result<(), Failed> {
        let url = self.bucket.put_object(Some(&self.credentials), &self.named(&key)).sign(SIGNED_FOR);
        self.ask(Method::PUT, url, bytes).await?.map(drop).ok_or_else(not_there)
    }

    pub(super) async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Failed> {
        let url = self.bucket.get_object(Some(&self.credentials), &self.named(key)).sign(SIGNED_FOR);
        match self.ask(Method::GET, url, Vec::new()).await? {
            Some(response) => read(response, OBJECT_BYTES_MAX).await.map(Some),
            None => Ok(None),
        }
    }

    pub(super) async fn delete(&self, key: &str) -> Result<(), Failed> {
        let url = self.bucket.delete_object(Some(&self.credentials), &self.named(key)).sign(SIGNED_FOR);
        self.ask(Method::DELETE, url, Vec::new()).await.map(drop)
    }

    /// Names and times of objects behind this one, without the prefix.
    pub(super) async fn list(&self, after: Option<&str>, most: usize) -> Result<Vec<(String, String)>, Failed> {
        let mut action = self.bucket.list_objects_v2(Some(&self.credentials));
        action.with_max_keys(most);
        action.with_prefix(self.prefix.as_str());
        if let Some(after) = after {
            action.with_start_after(self.named(after));
        }
        let response = self.ask(Method::GET, action.sign(SIGNED_FOR), Vec::new()).await?;
        let response = response.ok_or_else(not_there)?;
        let unread = |error: String| Failed::Away(format!("its list cannot be read: {error}"));
        let text =
            String::from_utf8(read(response, LIST_BYTES_MAX).await?).map_err(|error| unread(error.to_string()))?;
        let list: ListObjectsV2Response =
            ListObjectsV2::parse_response(&text).map_err(|error| unread(error.to_string()))?;
        let own = |key: String| key.strip_prefix(&self.prefix).map(str::to_owned);
        let found = list.contents.into_iter();
        Ok(found.filter_map(|object| Some((own(object.key)?, object.last_modified?))).collect())
    }

    fn named(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Nothing for an object that is not there.
    async fn ask(&self, method: Method, url: Url, body: Vec<u8>) -> Result<Option<Response>, Failed> {
        let request = self.client.request(method, url).body(body);
        let response = request.send().await.map_err(away)?;
        let status = response.status();
        if status.is_success() {
            return Ok(Some(response));
        }
        let text = http_beginning(response, ERROR_BYTES_MAX).await;
        let text = String::from_utf8_lossy(&text);
        let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code);
        // That a whole bucket is away says nothing of what is in it.
        if status == StatusCode::NOT_FOUND && code == Some("NoSuchKey") {
            return Ok(None);
        }
        let said = format!("it answers {status}{}", code.map(|code| format!(" ({code})")).unwrap_or_default());
        Err(if status.is_client_error() { Failed::Refused(said) } else { Failed::Away(said) })
    }
}

async fn read(response: Response, bytes_max: usize) -> Result<Vec<u8>, Failed> {
    let body = http_body(response, bytes_max).await.map_err(away)?;
    body.ok_or_else(|| Failed::Away(format!("its answer is longer than {bytes_max} bytes")))
}

/// The address is signed, and is not for logs.
fn away(error: reqwest::Error) -> Failed {
    Failed::Away(hedge_proto::in_one_line(&error.without_url()))
}
