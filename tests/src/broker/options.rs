//! What a test asks of a broker.

use anyhow::Result;

use crate::authority::Authority;

/// A release of RabbitMQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// Debian 12's: 3.10. On another Debian in a root of its own, as all that is not this machine's.
    V3_10,
    /// Debian 13's: 4.0.
    V4_0,
}

/// What TLS is spoken with.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The authority that signs the broker's certificate, and clients' where they need one.
    pub ca: String,
    /// The broker's certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// Whether clients must show a certificate of the same authority.
    pub mutual: bool,
}

impl Tls {
    /// A certificate for a broker that is reached at `addresses` (names or IP addresses).
    pub fn new(authority: &Authority, addresses: &[String]) -> Result<Self> {
        let issued = authority.issue("broker", "warren", addresses)?;
        Ok(Self {
            ca: authority.certificate(),
            certificate: issued.certificate,
            key: issued.key,
            mutual: false,
        })
    }

    /// Clients must show a certificate too.
    #[must_use]
    pub fn mutual(self) -> Self {
        Self { mutual: true, ..self }
    }
}

/// What a broker is like.
#[derive(Debug, Clone)]
pub struct Options {
    pub(super) name: String,
    pub(super) version: Version,
    pub(super) tls: Option<Tls>,
    /// AMQP without TLS is not spoken.
    pub(super) tls_only: bool,
    pub(super) config: Vec<String>,
    pub(super) lasting: bool,
}

impl Options {
    /// A broker of 3.10 that speaks AMQP without TLS. The name is for logs.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: Version::V3_10,
            tls: None,
            tls_only: false,
            config: Vec::new(),
            lasting: false,
        }
    }

    /// Another release.
    #[must_use]
    pub fn version(self, version: Version) -> Self {
        Self { version, ..self }
    }

    /// Speaks TLS too.
    #[must_use]
    pub fn tls(self, tls: Tls) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// Speaks TLS only.
    #[must_use]
    pub fn tls_only(self, tls: Tls) -> Self {
        Self { tls: Some(tls), tls_only: true, ..self }
    }

    /// Adds a line to `rabbitmq.conf`.
    #[must_use]
    pub fn config(mut self, line: &str) -> Self {
        self.config.push(line.to_owned());
        self
    }

    /// The broker stays when this process ends, until `cargo xtask down`. Starting it again gives the one that runs.
    #[must_use]
    pub fn lasting(self) -> Self {
        Self { lasting: true, ..self }
    }
}
