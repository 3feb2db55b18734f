//! Looks closer at a port that closes the connection: what does it speak?
//!
//! Each look is a connection of its own with a first word of another protocol, and only the beginning of the answer is
//! read. What a running agent sees of such a port is nothing at all.

use std::sync::Arc;
use std::time::Duration;

use hedge_core::link::Trouble;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use hedge_agent::uplink::client_config;
use hedge_config::{BrokerConfig, BrokerTransport};

/// How long one look may take.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// CONNECT of MQTT 3.1.1, clean, client id `hedge-check`.
const CONNECT_3: &[u8] = b"\x10\x17\x00\x04MQTT\x04\x02\x00\x0a\x00\x0bhedge-check";

/// CONNECT of MQTT 5, clean, the same client id.
const CONNECT_5: &[u8] = b"\x10\x18\x00\x04MQTT\x05\x02\x00\x0a\x00\x00\x0bhedge-check";

/// Who closes a plain connection without a word: a port for TLS, or a broker of MQTT 3.1.1?
pub(super) async fn behind_a_closed_door(broker: &BrokerConfig) -> Option<Trouble> {
    if speaks_tls(broker).await {
        return Some(Trouble::TlsPort);
    }
    matches!(answer(broker, CONNECT_3).await?[..], [0x20, 0x02, ..]).then_some(Trouble::OnlyMqtt3)
}

/// Who does not speak TLS where it should.
pub(super) async fn behind_no_tls(broker: &BrokerConfig) -> Option<Trouble> {
    match answer(broker, CONNECT_5).await?[..] {
        [b'H', b'T', b'T', b'P', ..] => Some(Trouble::HttpServer),
        [0x20, ..] => Some(Trouble::NoTls),
        _ => None,
    }
}

async fn speaks_tls(broker: &BrokerConfig) -> bool {
    let (Ok(tls), Ok(name), Some(socket)) =
        (client_config(broker), ServerName::try_from(broker.url.host.clone()), dial(broker).await)
    else {
        return false;
    };
    let shaken = timeout(LOOK_MAX, tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, socket)).await;
    match shaken {
        Ok(Ok(_)) => true,
        // Whom it shows is not the question; that it shows somebody, or sends an alert, is.
        Ok(Err(error)) => matches!(
            error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
            Some(rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_))
        ),
        Err(_) => false,
    }
}

/// The first bytes that come back.
async fn answer(broker: &BrokerConfig, said: &[u8]) -> Option<Vec<u8>> {
    let mut socket = dial(broker).await?;
    let mut heard = vec![0; 4];
    let talk = async {
        socket.write_all(said).await?;
        socket.read_exact(&mut heard).await
    };
    timeout(LOOK_MAX, talk).await.ok()?.ok()?;
    Some(heard)
}

/// Not through a proxy, and not where HTTP comes first.
async fn dial(broker: &BrokerConfig) -> Option<TcpStream> {
    let direct = broker.proxy.is_none() && matches!(broker.url.transport, BrokerTransport::Tcp | BrokerTransport::Tls);
    let address = (broker.url.host.as_str(), broker.url.port);
    if direct { timeout(LOOK_MAX, TcpStream::connect(address)).await.ok()?.ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_words_have_the_length_that_they_say() {
        for said in [CONNECT_3, CONNECT_5] {
            assert_eq!(usize::from(said[1]), said.len() - 2);
        }
    }
}
