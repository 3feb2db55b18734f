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
    NotTrusted,
    NotAllowed,
    CaptivePortal,
    WrongClock,
    /// The internet is there, the broker is not.
    OnlyBroker,
}

impl Trouble {
    /// One sentence for people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Lost => "the connection to the broker was lost",
            Self::NoName => "the broker's name is not known: no DNS, or a wrong name",
            Self::NoRoute => "there is no network, or no route to the broker",
            Self::NobodyListens => "nobody listens at the broker's address and port",
            Self::NoAnswer => "the broker does not answer",
            Self::NotTrusted => "the broker's certificate is not trusted: check ca_file, the name and the clock",
            Self::NotAllowed => "the broker refuses this device's user, password or certificate",
            Self::CaptivePortal => "something else answers in the internet's place: a captive portal?",
            Self::WrongClock => "this device's clock is wrong, so certificates are not valid",
            Self::OnlyBroker => "the internet is there, but the broker is not",
        }
    }
}
