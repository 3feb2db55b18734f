//! Names why there is no connection, in words for people.

/// Why there is no connection, as far as can be told. Words for people; nothing is decided by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// An established connection ended.
    Lost,
    NoName,
    NoRoute,
    NobodyListens,
    NoAnswer,
    /// Not trusted, for none of the reasons below.
    NotTrusted,
    Expired,
    NotYetValid,
    UnknownIssuer,
    OtherName,
    /// X.509 version 1.
    OldCertificate,
    /// The broker shows an authority's certificate as its own.
    AuthorityAsBroker,
    WrongPurpose,
    /// Signed in a way that this device does not check.
    UnknownSignature,
    NoCommonTls,
    /// The broker does not accept the device's certificate, or wants one.
    OwnCertificate,
    /// A reason code of MQTT 5, from CONNACK or DISCONNECT.
    Told(u8),
    /// A CONNACK of MQTT 3.1.1.
    OnlyMqtt3,
    /// TLS answers a plain connection.
    TlsPort,
    /// Something else than TLS answers a TLS connection.
    NoTls,
    HttpServer,
    NotMqtt,
    /// Closed before a word was said, without and with TLS.
    ClosedAtOnce,
    ClosedInHandshake,
    NoWebSocket,
    ProxyRefuses,
    NoRetained,
    NoQos1,
    NoWildcards,
    SmallPackets,
    NotSubscribed,
    SubscriptionUnanswered,
    StatusRefused,
    StatusUnanswered,
    /// What came is no MQTT, or not what MQTT allows there.
    BrokenProtocol,
    /// A larger message than the broker was told.
    TooLarge,
    CaptivePortal,
    WrongClock,
    /// The internet is there, the broker is not.
    OnlyBroker,
}

/// What is wrong, and what to do about it.
struct Words {
    what: &'static str,
    todo: &'static str,
    both: &'static str,
}

macro_rules! words {
    ($what:literal, $todo:literal) => {
        Words { what: $what, todo: $todo, both: concat!($what, "; ", $todo) }
    };
}

impl Trouble {
    /// One sentence for people: what is wrong and what to do.
    #[must_use]
    pub fn text(self) -> &'static str {
        self.words().both
    }

    /// Only what is wrong.
    #[must_use]
    pub fn what(self) -> &'static str {
        self.words().what
    }

    /// Only what to do about it.
    #[must_use]
    pub fn todo(self) -> &'static str {
        self.words().todo
    }

    /// Whether the broker itself said or showed what is wrong, so that nothing else need be asked.
    #[must_use]
    pub fn is_told(self) -> bool {
        !matches!(
            self,
            Self::Lost
                | Self::NoName
                | Self::NoRoute
                | Self::NobodyListens
                | Self::NoAnswer
                | Self::ClosedAtOnce
                | Self::ClosedInHandshake
        ) && !self.is_of_certificate()
    }

    /// A captive portal or a wrong clock looks like a certificate that is not trusted.
    fn is_of_certificate(self) -> bool {
        matches!(self, Self::NotTrusted | Self::Expired | Self::NotYetValid | Self::UnknownIssuer | Self::OtherName)
    }

    fn words(self) -> Words {
        match self {
            Self::Told(code) => told(code),
            Self::NotTrusted
            | Self::Expired
            | Self::NotYetValid
            | Self::UnknownIssuer
            | Self::OtherName
            | Self::OldCertificate
            | Self::AuthorityAsBroker
            | Self::WrongPurpose
            | Self::UnknownSignature
            | Self::NoCommonTls
            | Self::OwnCertificate => self.of_tls(),
            Self::NoRetained
            | Self::NoQos1
            | Self::NoWildcards
            | Self::SmallPackets
            | Self::NotSubscribed
            | Self::SubscriptionUnanswered
            | Self::StatusRefused
            | Self::StatusUnanswered => self.of_session(),
            Self::OnlyMqtt3
            | Self::TlsPort
            | Self::NoTls
            | Self::HttpServer
            | Self::NotMqtt
            | Self::ClosedAtOnce
            | Self::ClosedInHandshake
            | Self::NoWebSocket
            | Self::BrokenProtocol
            | Self::TooLarge => self.of_peer(),
            Self::Lost
            | Self::NoName
            | Self::NoRoute
            | Self::NobodyListens
            | Self::NoAnswer
            | Self::ProxyRefuses
            | Self::CaptivePortal
            | Self::WrongClock
            | Self::OnlyBroker => self.of_way(),
        }
    }

    /// The network between device and broker.
    fn of_way(self) -> Words {
        match self {
            Self::NoName => words!("the broker's name is not known", "no DNS, or a wrong name in `url`"),
            Self::NoRoute => {
                words!("there is no network, or no route to the broker", "see `ip route` and the cable, Wi-Fi or modem")
            }
            Self::NobodyListens => {
                words!("nobody listens at the broker's address and port", "is the broker running, and the port right?")
            }
            Self::NoAnswer => {
                words!("the broker does not answer", "a firewall on the way, or a broker that hangs: see its log")
            }
            Self::ProxyRefuses => {
                words!("the proxy does not connect to the broker", "let it allow CONNECT to the broker's host and port")
            }
            Self::CaptivePortal => {
                words!("something else answers in the internet's place", "a captive portal? log in there")
            }
            Self::WrongClock => {
                words!("this device's clock is wrong, so certificates are not valid", "see `timedatectl status`")
            }
            Self::OnlyBroker => words!("the internet is there, but the broker is not", "is the broker running?"),
            _ => words!("the connection to the broker was lost", "it is dialled again"),
        }
    }

    /// What answers at the broker's address.
    fn of_peer(self) -> Words {
        match self {
            Self::OnlyMqtt3 => words!("the broker speaks MQTT 3.1.1 only", "Hedge needs MQTT 5: update the broker"),
            Self::TlsPort => words!("the broker's port speaks TLS", "write mqtts:// (or wss://) in `url`"),
            Self::NoTls => words!(
                "what answers at the broker's port does not speak TLS",
                "use the broker's TLS port, usually 8883, or mqtt:// in `url`"
            ),
            Self::HttpServer => {
                words!(
                    "an HTTP server answers at the broker's port",
                    "use the broker's MQTT port, or ws:// with its path"
                )
            }
            Self::NotMqtt => {
                words!("what answers at the broker's port does not speak MQTT", "check host and port in `url`")
            }
            Self::ClosedAtOnce => words!(
                "the broker closes the connection before it says a word",
                "is it a port for TLS (mqtts://), a broker without MQTT 5, or an address list that bars this device? its log says more"
            ),
            Self::ClosedInHandshake => words!(
                "the connection is closed in the TLS handshake",
                "is it the broker's TLS port, usually 8883? its log says more"
            ),
            Self::NoWebSocket => {
                words!("the server takes no MQTT over WebSocket there", "check host, port and path in `url`")
            }
            Self::TooLarge => words!(
                "the broker sends a larger message than this device told it to",
                "take back what is retained on this device's topics, or update the broker"
            ),
            _ => words!("the broker breaks the MQTT protocol", "update the broker; this device's log says how"),
        }
    }

    /// What a session needs and the broker does not grant.
    fn of_session(self) -> Words {
        match self {
            Self::NoRetained => {
                words!("the broker keeps no retained messages", "Hedge needs them: allow them in the broker's settings")
            }
            Self::NoQos1 => {
                words!("the broker takes QoS 0 only", "Hedge needs QoS 1: allow it in the broker's settings")
            }
            Self::NoWildcards => words!(
                "the broker takes no subscription with a wildcard",
                "Hedge needs `+` and `#`: allow them in the broker's settings"
            ),
            Self::SmallPackets => words!(
                "the broker takes only messages too small for a device's status",
                "raise its maximum packet size (max_packet_size) to 8 KiB or more"
            ),
            Self::NotSubscribed => words!(
                "the broker does not grant the device's subscriptions",
                "let it read hedge/v1/ID/down/# and hedge/v1/cloud/+/status; see docs/brokers.md"
            ),
            Self::SubscriptionUnanswered => words!(
                "the broker does not answer the device's subscription",
                "see the broker's log; a gateway in between may swallow it"
            ),
            Self::StatusRefused => words!(
                "the broker does not take the device's status",
                "let it write hedge/v1/ID/up/#, retained; see docs/brokers.md"
            ),
            _ => words!("the broker does not acknowledge the device's status", "see the broker's log"),
        }
    }

    /// Certificates and TLS.
    fn of_tls(self) -> Words {
        match self {
            Self::Expired => words!(
                "the broker's certificate has expired",
                "renew it on the broker; if it is not expired there, this device's clock is wrong"
            ),
            Self::NotYetValid => {
                words!("the broker's certificate is not valid yet", "most likely this device's clock is wrong")
            }
            Self::UnknownIssuer => words!(
                "the broker's certificate comes from an authority this device does not know",
                "set ca_file in [broker] to that authority's certificate; if it is set right, the broker lacks the intermediate one"
            ),
            Self::OtherName => words!(
                "the broker's certificate is for another name",
                "use a name from its subjectAltName as host in `url`, or give the broker one for this name; a CN alone does not count"
            ),
            Self::OldCertificate => words!(
                "the broker's certificate is of X.509 version 1, which names no host",
                "issue one of version 3: docs/identity.md, Certificates with openssl"
            ),
            Self::AuthorityAsBroker => words!(
                "the broker shows an authority's certificate (CA:TRUE) as its own",
                "issue it one of its own: docs/identity.md, Certificates with openssl"
            ),
            Self::WrongPurpose => words!(
                "the broker's certificate is not for servers (extendedKeyUsage)",
                "issue one with serverAuth: docs/identity.md, Certificates with openssl"
            ),
            Self::UnknownSignature => words!(
                "the broker's certificate is signed with a kind of key that this device does not check",
                "RSA of 2048 bits or more, P-256, P-384 and Ed25519 work, with SHA-256 or more; P-521 and SHA-1 do not"
            ),
            Self::NoCommonTls => words!(
                "the broker and this device have no TLS version, cipher or kind of key in common",
                "TLS 1.2 or 1.3 with a key of RSA 2048, P-256, P-384 or Ed25519 works; P-521 does not"
            ),
            Self::OwnCertificate => words!(
                "the broker refuses this device's certificate, or wants one",
                "check certificate_file and key_file against the broker's authority (cafile); its log says more"
            ),
            _ => words!("the broker's certificate is not trusted", "check ca_file, the name and the clock"),
        }
    }
}

/// What a reason code of MQTT 5 means for a device (OASIS MQTT 5.0, section 2.4).
fn told(code: u8) -> Words {
    match code {
        0x00 | 0x04 => words!("the broker ended the connection without a reason", "see the broker's log"),
        0x81 => words!("the broker calls a packet of this device malformed", "see its log, and report it to us"),
        0x82 => words!("the broker says that this device broke the protocol", "see its log, and report it to us"),
        0x83 => words!("the broker does not take the connection, for a reason of its own", "see the broker's log"),
        0x84 => words!("the broker does not speak MQTT 5", "Hedge needs MQTT 5: update the broker, or allow it there"),
        0x85 => words!("the broker does not take this client id", "set client_id in [broker] to what it allows"),
        0x86 | 0x87 | 0x8C => words!(
            "the broker refuses this device's user, password or certificate",
            "check username, password_file and certificate_file against the broker's list; its log says more"
        ),
        0x88 => words!("the broker is not available now", "it is dialled again; see the broker's log"),
        0x89 => words!("the broker is busy", "it is dialled again; if it stays so, see its limits"),
        0x8A => words!("the broker has banned this device", "lift the ban on the broker"),
        0x8B => words!("the broker is shutting down", "it is dialled again"),
        0x8D => words!("the broker heard nothing of this device for too long", "a slow link? raise keep_alive_s"),
        0x8E => words!("another client uses this device's client id", "give each device a name of its own"),
        0x8F => words!("the broker takes no subscription of this form", "see its limits on topic filters"),
        0x90 => words!("the broker takes no topic of this form", "see its limits on topics, and `prefix` in [broker]"),
        0x93 => words!("the broker says that it got more at once than it takes", "raise its receive maximum"),
        0x94 => words!("the broker says that this device used a topic alias it must not", "report it to us"),
        0x95 => {
            words!("a message was larger than the broker takes", "raise its maximum packet size, or send thumbnails")
        }
        0x96 => words!("the broker finds this device too fast", "raise its rate limit, or set drain_per_s"),
        0x97 => words!("a quota of the broker is used up", "raise it, or wait until it is filled again"),
        0x98 => words!("the broker's administrator ended the connection", "ask who runs the broker"),
        0x99 => words!("the broker does not take this payload's format", "see the broker's log"),
        0x9A => {
            words!("the broker keeps no retained messages", "Hedge needs them: allow them in the broker's settings")
        }
        0x9B => words!("the broker takes QoS 0 only", "Hedge needs QoS 1: allow it in the broker's settings"),
        0x9C => words!("the broker asks to use another server for now", "set `url` in [broker] to that server"),
        0x9D => words!("the broker has moved", "set `url` in [broker] to the new server"),
        0x9E => words!("the broker has no shared subscriptions", "a device needs none: see the broker's log"),
        0x9F => words!("the broker takes no more connections for now", "it is dialled again; raise its rate limit"),
        0xA0 => words!("the broker ended a connection that had its full time", "it is dialled again"),
        0xA1 => words!("the broker has no subscription identifiers", "a device needs none: see the broker's log"),
        0xA2 => words!(
            "the broker takes no subscription with a wildcard",
            "Hedge needs `+` and `#`: allow them in the broker's settings"
        ),
        _ => words!("the broker refuses the connection without a known reason", "see the broker's log"),
    }
}

/// Why a broker does not take a message or a subscription, by the reason code of PUBACK or SUBACK.
#[must_use]
pub fn refusal(code: u8) -> &'static str {
    match code {
        0x00..=0x02 => "it grants less than was asked for",
        0x83 => "for a reason of its own",
        0x87 => "its access rules do not allow it",
        0x8F => "it takes no topic filter of this form",
        0x90 => "it takes no topic of this form",
        0x91 => "it finds a packet id in use",
        0x97 => "a quota of it is used up",
        0x99 => "it does not take the payload's format",
        0x9E => "it has no shared subscriptions",
        0xA1 => "it has no subscription identifiers",
        0xA2 => "it has no wildcards in subscriptions",
        _ => "it gives no reason",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;

    /// All that CONNACK and DISCONNECT may carry.
    const CODES: [u8; 33] = [
        0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8B, 0x8C, 0x8D, 0x8E, 0x8F,
        0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0,
    ];

    #[test]
    fn every_reason_code_of_mqtt_5_is_a_sentence_of_its_own() {
        let unknown = Trouble::Told(0x80).text();
        let mut said = BTreeMap::new();
        for code in CODES.into_iter().chain([0xA1, 0xA2]).filter(|code| *code != 0x80) {
            let text = Trouble::Told(code).text();
            assert_ne!(text, unknown, "{code:#x}");
            let same = said.insert(text, code);
            let alike = [Some(0x00), Some(0x86), Some(0x87)];
            assert!(same.is_none() || alike.contains(&same), "{code:#x} and {same:x?} both say `{text}`");
        }
    }

    #[test]
    fn a_sentence_says_what_is_wrong_and_what_to_do() {
        for trouble in [Trouble::Lost, Trouble::NoRetained, Trouble::UnknownIssuer, Trouble::Told(0x89)] {
            assert_eq!(trouble.text(), alloc::format!("{}; {}", trouble.what(), trouble.todo()));
        }
    }
}
