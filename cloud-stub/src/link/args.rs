//! The flags that say where the broker is.

use std::path::PathBuf;

use clap::Args;

use super::{Credentials, Endpoint};

/// How the broker is reached, and as whom.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Broker")]
pub struct BrokerArgs {
    /// The broker: mqtt://HOST:PORT, or mqtts:// for TLS
    #[arg(
        long = "broker",
        id = "broker",
        value_name = "URL",
        env = "HEDGE_CLOUD_BROKER",
        default_value = "mqtt://127.0.0.1:1883"
    )]
    pub url: Endpoint,

    /// Authorities that may have signed the broker's certificate (PEM); without it the system's are used
    #[arg(long, value_name = "FILE", env = "HEDGE_CLOUD_CA")]
    pub ca: Option<PathBuf>,

    /// Our certificate (PEM)
    #[arg(long, value_name = "FILE", env = "HEDGE_CLOUD_CERT", requires = "key")]
    pub cert: Option<PathBuf>,

    /// The key of our certificate (PEM)
    #[arg(long, value_name = "FILE", env = "HEDGE_CLOUD_KEY", requires = "cert")]
    pub key: Option<PathBuf>,

    /// User name for the broker
    #[arg(long, value_name = "NAME", env = "HEDGE_CLOUD_USERNAME")]
    pub username: Option<String>,

    /// File that holds the password and nothing else
    #[arg(long, value_name = "FILE", env = "HEDGE_CLOUD_PASSWORD_FILE", requires = "username")]
    pub password_file: Option<PathBuf>,

    /// What stands in front of all topics
    #[arg(long, value_name = "P", env = "HEDGE_CLOUD_PREFIX", default_value = "")]
    pub prefix: String,
}

impl BrokerArgs {
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        Credentials {
            ca: self.ca.clone(),
            certificate: self.cert.clone(),
            key: self.key.clone(),
            username: self.username.clone(),
            password_file: self.password_file.clone(),
        }
    }
}
