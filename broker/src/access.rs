//! How to reach a broker: a Secret's keys, parsed once.
//!
//! Two layouts work unchanged: a hand-written Secret, and the `default-user` Secret of the RabbitMQ cluster operator.
//! URIs are those of <https://www.rabbitmq.com/docs/uri-spec>.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use url::{Host, Url};

const AMQP_PORT: u16 = 5672;
const AMQPS_PORT: u16 = 5671;
/// In bytes. The AMQP library panics over a longer one before it connects.
const LONGEST_VHOST: usize = 255;
/// A cluster has a few nodes: each address is tried, and compared with those of other Secrets.
const MOST_ADDRESSES: usize = 32;

/// Every key that is read.
pub const KEYS: [&str; 11] = [
    "uri",
    "uris",
    "connection_string",
    "host",
    "port",
    "username",
    "password",
    "vhost",
    "ca.crt",
    "tls.crt",
    "tls.key",
];

/// Most bytes of a key's value. All authorities that a system knows have less than `ca.crt` may have.
pub fn longest_value(key: &str) -> usize {
    if key == "ca.crt" { 512 * 1024 } else { 64 * 1024 }
}

/// A broker's addresses (sorted), the identity to present and the virtual host. Equal values may share a connection.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BrokerAccess {
    endpoints: Vec<Endpoint>,
    vhost: String,
    username: String,
    password: String,
    tls: Option<Tls>,
}

/// One address of a broker. An IPv6 address has no brackets here.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Endpoint {
    host: String,
    port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// What TLS needs where the system's root certificates are not to be used, and what it shows of itself, in PEM.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tls {
    pub(crate) ca: Option<String>,
    pub(crate) identity: Option<(String, String)>,
}

/// Why a Secret cannot be used. The text says which key to write, and never holds a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// No key says where the broker is.
    #[error(
        "the Secret has no broker address: set \"uri\" (amqp://user:password@host:5672/vhost), or \"uris\", or \"connection_string\", or \"host\", \"username\" and \"password\""
    )]
    NoAddress,
    /// A key that the layout needs is missing.
    #[error("the Secret lacks the key \"{0}\": add it")]
    Missing(&'static str),
    /// A key's value cannot be read.
    #[error("the Secret's key \"{key}\" is not usable: {problem}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// What is wrong with its value, without the value.
        problem: String,
    },
    /// AMQP cannot say the virtual host.
    #[error("the virtual host has {0} bytes, and AMQP takes at most {LONGEST_VHOST}: name another")]
    VhostTooLong(usize),
}

impl BrokerAccess {
    /// Parses a Secret's keys; `vhost`, from a Queue's spec, wins over the Secret's.
    ///
    /// # Errors
    /// The key that is missing or wrong.
    pub fn parse(keys: &BTreeMap<String, Vec<u8>>, vhost: Option<&str>) -> Result<Self, SecretError> {
        let keys = Keys(keys);
        let tls = keys.tls()?;
        let mut access = match keys.uris()? {
            Some(uris) => Self::from_uris(&uris, &keys, tls.as_ref())?,
            None => Self::from_parts(&keys, tls)?,
        };
        if let Some(vhost) = vhost {
            vhost.clone_into(&mut access.vhost);
        }
        let bytes = access.vhost.len();
        if bytes > LONGEST_VHOST { Err(SecretError::VhostTooLong(bytes)) } else { Ok(access) }
    }

    /// Parses one URI, as the only key of a Secret.
    ///
    /// # Errors
    /// What is wrong with the URI.
    pub fn from_uri(uri: &str) -> Result<Self, SecretError> {
        Self::parse(&BTreeMap::from([("uri".to_owned(), uri.into())]), None)
    }

    fn from_uris(
        uris: &[(&'static str, String)],
        keys: &Keys<'_>,
        tls: Option<&Tls>,
    ) -> Result<Self, SecretError> {
        let vhost = keys.vhost()?;
        if uris.len() > MOST_ADDRESSES {
            let problem = format!("it has {} addresses, and {MOST_ADDRESSES} are enough", uris.len());
            return Err(SecretError::Invalid { key: "uris", problem });
        }
        let mut access: Option<Self> = None;
        for (key, uri) in uris {
            let invalid = |problem: &str| SecretError::Invalid { key, problem: problem.to_owned() };
            let mut parsed = AMQPUri::from_str(uri)
                .map_err(|_| invalid("expected amqp://user:password@host:5672/vhost"))?;
            let url = Url::parse(uri).map_err(|_| invalid("it is no address"))?;
            let mut asked = url.query_pairs().filter(|(name, _)| name == "auth_mechanism");
            if asked.any(|(_, how)| !how.eq_ignore_ascii_case("plain")) {
                return Err(invalid(
                    "it asks for an auth_mechanism that Warren does not know: leave it out, and give user and password, also beside a client certificate",
                ));
            }
            if has_loose_at(uri) || has_loose_end(&url) {
                return Err(invalid(
                    "a \"/\", \"?\", \"#\" or \"@\" in user, password or vhost is written %2F, %3F, %23, %40",
                ));
            }
            // The library takes "localhost" where it finds no domain: also in the place of an IPv6 address.
            match url.host() {
                Some(Host::Domain(_)) if is_host(&parsed.authority.host) => {}
                Some(Host::Ipv6(address)) => parsed.authority.host = address.to_string(),
                // A login that is escaped whole would be shown as a part of the host.
                Some(Host::Domain(_) | Host::Ipv4(_)) => {
                    return Err(invalid(
                        "its host is no name or address: the \":\" and \"@\" around user and password are written as they are",
                    ));
                }
                None => return Err(invalid("it names no host")),
            }
            let userinfo = parsed.authority.userinfo;
            let (username, password) = match (url.username(), url.password().unwrap_or_default()) {
                ("", "") => keys.login()?.unwrap_or((userinfo.username, userinfo.password)),
                (user, "") => match keys.login()?.filter(|(name, _)| *name == userinfo.username) {
                    Some(login) => login,
                    None if user == "guest" => (userinfo.username, userinfo.password),
                    // The library would take a password of its own.
                    None => return Err(invalid("it has a user without a password")),
                },
                _ => (userinfo.username, userinfo.password),
            };
            let tls = match (tls.cloned(), &parsed.scheme) {
                (None, AMQPScheme::AMQPS) => Some(Tls::default()),
                (given, AMQPScheme::AMQP | AMQPScheme::AMQPS) => given,
            };
            // `amqp://` beside a CA means `amqps`: without a port of its own it gets that scheme's.
            let port = match (&tls, parsed.authority.port) {
                (Some(_), AMQP_PORT) if !names_port(uri) => AMQPS_PORT,
                (_, port) => port,
            };
            let one = Self {
                endpoints: vec![Endpoint { host: parsed.authority.host, port }],
                vhost: vhost.clone().unwrap_or_else(|| or_root(parsed.vhost)),
                username,
                password,
                tls,
            };
            match &mut access {
                None => access = Some(one),
                Some(first) => first.add(one).ok_or_else(|| {
                    invalid("all addresses must share user, password, virtual host and scheme")
                })?,
            }
        }
        let mut access = access.ok_or(SecretError::NoAddress)?;
        // They are tried in random order: the same addresses written in another one are the same broker.
        access.endpoints.sort();
        access.endpoints.dedup();
        Ok(access)
    }

    fn from_parts(keys: &Keys<'_>, tls: Option<Tls>) -> Result<Self, SecretError> {
        let host = keys.text("host")?.ok_or(SecretError::NoAddress)?;
        let host = host.trim_matches(['[', ']']).to_owned();
        if !is_host(&host) {
            let problem = "expected a host's name or address alone; a whole address goes into \"uri\"";
            return Err(SecretError::Invalid { key: "host", problem: problem.to_owned() });
        }
        let port = match keys.text("port")? {
            None if tls.is_some() => AMQPS_PORT,
            None => AMQP_PORT,
            Some(text) => text.parse().ok().filter(|port| *port != 0).ok_or(SecretError::Invalid {
                key: "port",
                problem: "expected a number from 1 to 65535".to_owned(),
            })?,
        };
        Ok(Self {
            endpoints: vec![Endpoint { host, port }],
            vhost: or_root(keys.vhost()?.unwrap_or_default()),
            username: keys.text("username")?.ok_or(SecretError::Missing("username"))?,
            password: keys.text("password")?.ok_or(SecretError::Missing("password"))?,
            tls,
        })
    }

    /// Takes over another access's addresses; none where anything else differs.
    fn add(&mut self, other: Self) -> Option<()> {
        let Self { endpoints, vhost, username, password, tls } = other;
        let same =
            vhost == self.vhost && username == self.username && password == self.password && tls == self.tls;
        same.then(|| self.endpoints.extend(endpoints))
    }

    /// The addresses, without credentials, for status and logs: `amqp://host:port,host:port/vhost`.
    pub fn address(&self) -> String {
        let scheme = if self.tls.is_some() { "amqps" } else { "amqp" };
        let vhost = percent_encoding::utf8_percent_encode(&self.vhost, percent_encoding::NON_ALPHANUMERIC);
        format!("{scheme}://{}/{vhost}", self.hosts())
    }

    /// The virtual host of an [`address`](Self::address); none where that is no address.
    pub fn vhost_of(address: &str) -> Option<String> {
        let (_, vhost) = address.rsplit_once('/')?;
        Some(percent_encoding::percent_decode_str(vhost).decode_utf8().ok()?.into_owned())
    }

    /// Hosts and ports alone, which tell one broker from another.
    pub fn hosts(&self) -> String {
        let hosts: Vec<_> = self.endpoints.iter().map(Endpoint::to_string).collect();
        hosts.join(",")
    }

    /// The virtual host.
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// The user.
    pub fn username(&self) -> &str {
        &self.username
    }

    /// How many addresses there are, at least one.
    pub(crate) fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// The address of a number, as the AMQP library takes it.
    pub(crate) fn uri(&self, endpoint: usize, query: AMQPQueryString) -> AMQPUri {
        let Endpoint { host, port } = self.endpoints[endpoint % self.endpoints.len()].clone();
        AMQPUri {
            scheme: if self.tls.is_some() { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo { username: self.username.clone(), password: self.password.clone() },
                host,
                port,
            },
            vhost: self.vhost.clone(),
            query,
        }
    }
}

impl fmt::Debug for BrokerAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerAccess")
            .field("address", &self.address())
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// An empty virtual host means "/": the cluster operator writes `amqp://...:5672/`.
fn or_root(vhost: String) -> String {
    if vhost.is_empty() { "/".to_owned() } else { vhost }
}

/// Whether a URI spells its port out.
fn names_port(uri: &str) -> bool {
    let authority = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let authority = authority.split('/').next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    host.rsplit(']').next().unwrap_or_default().contains(':')
}

/// Whether a URI has an `@` behind its host: a password with a `/` would be taken for a port and a virtual host, and shown.
fn has_loose_at(uri: &str) -> bool {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    rest.split_once(['/', '?', '#']).is_some_and(|(_, behind)| behind.contains('@'))
}

/// Whether what looks like the end of a vhost is no part of it: a fragment, which AMQP has not, or a query without values.
fn has_loose_end(url: &Url) -> bool {
    let loose = |query: &str| query.split('&').any(|part| !part.is_empty() && !part.contains('='));
    url.fragment().is_some() || url.query().is_some_and(loose)
}

/// Whether a text is a host's name or address, and no more: it is shown.
fn is_host(text: &str) -> bool {
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    text.bytes().all(named) || text.parse::<Ipv6Addr>().is_ok()
}

/// A Secret's keys as text.
struct Keys<'a>(&'a BTreeMap<String, Vec<u8>>);

impl Keys<'_> {
    /// A key's value without the newline that `echo` and editors leave; none where it is absent or empty.
    fn text(&self, key: &'static str) -> Result<Option<String>, SecretError> {
        let Some(bytes) = self.0.get(key) else { return Ok(None) };
        let longest = longest_value(key);
        if bytes.len() > longest {
            let problem = format!("it has more than {longest} bytes, which no broker needs");
            return Err(SecretError::Invalid { key, problem });
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|_| SecretError::Invalid { key, problem: "expected UTF-8 text".to_owned() })?
            .trim_end_matches(['\r', '\n']);
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }

    fn uris(&self) -> Result<Option<Vec<(&'static str, String)>>, SecretError> {
        if let Some(lines) = self.text("uris")? {
            let uris = lines.lines().map(str::trim).filter(|line| !line.is_empty());
            return Ok(Some(uris.map(|uri| ("uris", uri.to_owned())).collect()));
        }
        for key in ["uri", "connection_string"] {
            if let Some(uri) = self.text(key)? {
                return Ok(Some(vec![(key, uri.trim().to_owned())]));
            }
        }
        Ok(None)
    }

    /// The user and the password that go with an address that has none.
    fn login(&self) -> Result<Option<(String, String)>, SecretError> {
        match (self.text("username")?, self.text("password")?) {
            (Some(_), None) => Err(SecretError::Missing("password")),
            (None, Some(_)) => Err(SecretError::Missing("username")),
            (username, password) => Ok(username.zip(password)),
        }
    }

    /// The virtual host, which is shown.
    fn vhost(&self) -> Result<Option<String>, SecretError> {
        match self.text("vhost")? {
            Some(text) if text.contains("://") => {
                let problem = "expected a virtual host's name alone; a whole address goes into \"uri\"";
                Err(SecretError::Invalid { key: "vhost", problem: problem.to_owned() })
            }
            other => Ok(other),
        }
    }

    fn tls(&self) -> Result<Option<Tls>, SecretError> {
        let ca = self.pem("ca.crt")?;
        let identity = match (self.pem("tls.crt")?, self.pem("tls.key")?) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => return Err(SecretError::Missing("tls.key")),
            (None, Some(_)) => return Err(SecretError::Missing("tls.crt")),
        };
        Ok((ca.is_some() || identity.is_some()).then_some(Tls { ca, identity }))
    }

    fn pem(&self, key: &'static str) -> Result<Option<String>, SecretError> {
        match self.text(key)? {
            Some(text) if !text.contains("-----BEGIN ") => {
                Err(SecretError::Invalid { key, problem: "expected PEM text".to_owned() })
            }
            other => Ok(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(keys: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
        keys.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect()
    }

    fn parse(keys: &[(&str, &str)]) -> Result<BrokerAccess, SecretError> {
        BrokerAccess::parse(&secret(keys), None)
    }

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";

    #[test]
    fn a_uri_gives_address_user_and_vhost_and_never_shows_the_password() {
        let access = parse(&[("uri", "amqp://bob:s3cr%40t@rabbit:5673/shop\n")]).unwrap();
        assert_eq!(access.address(), "amqp://rabbit:5673/shop");
        assert_eq!((access.username(), access.password.as_str()), ("bob", "s3cr@t"));
        assert!(!format!("{access:?}").contains("s3cr"));
    }

    #[test]
    fn the_cluster_operators_default_user_secret_works_unchanged() {
        let access = parse(&[
            ("connection_string", "amqp://u:p@rabbit.shop.svc:5672/"),
            ("default_user.conf", "default_user = u"),
            ("host", "rabbit.shop.svc"),
            ("password", "p"),
            ("port", "5672"),
            ("provider", "rabbitmq"),
            ("type", "rabbitmq"),
            ("username", "u"),
        ])
        .unwrap();
        assert_eq!(access.address(), "amqp://rabbit.shop.svc:5672/%2F");
        assert_eq!(BrokerAccess::vhost_of(&access.address()).as_deref(), Some("/"));
    }

    #[test]
    fn parts_work_and_the_spec_s_vhost_wins() {
        let keys = secret(&[("host", "h"), ("username", "u"), ("password", "p"), ("vhost", "a")]);
        assert_eq!(BrokerAccess::parse(&keys, None).unwrap().vhost(), "a");
        assert_eq!(BrokerAccess::parse(&keys, Some("b")).unwrap().vhost(), "b");
    }

    #[test]
    fn a_vhost_that_amqp_cannot_say_is_refused_wherever_it_comes_from() {
        let (most, over) = ("x".repeat(255), "ж".repeat(128));
        let parts = |vhost| secret(&[("host", "h"), ("username", "u"), ("password", "p"), ("vhost", vhost)]);
        let uri = |vhost: &str| format!("amqp://u:p@h/{vhost}");
        assert_eq!(BrokerAccess::parse(&parts(&over), Some(&most)).unwrap().vhost(), most);
        let refused = Some(SecretError::VhostTooLong(256));
        assert_eq!(BrokerAccess::parse(&parts(&over), None).err(), refused);
        assert_eq!(BrokerAccess::parse(&parts(&most), Some(&over)).err(), refused);
        assert_eq!(parse(&[("uri", &uri(&over))]).err(), refused);
        assert_eq!(parse(&[("uri", &uri("")), ("vhost", &over)]).err(), refused);
        assert_eq!(BrokerAccess::from_uri(&uri(&over)).err(), refused);
    }

    #[test]
    fn a_ca_certificate_means_amqps_on_its_port() {
        let access = parse(&[("uri", "amqp://u:p@h"), ("ca.crt", PEM)]).unwrap();
        assert_eq!(access.address(), "amqps://h:5671/%2F");
        let access = parse(&[("uri", "amqp://u:p@h:5672"), ("ca.crt", PEM)]).unwrap();
        assert_eq!(access.address(), "amqps://h:5672/%2F");
    }

    #[test]
    fn a_uri_without_a_login_takes_that_of_the_keys_beside_it() {
        let login = |uri| {
            let access = parse(&[("uri", uri), ("username", "bob"), ("password", "s3cret")]).unwrap();
            (access.username, access.password)
        };
        let pair = |user: &str, password: &str| (user.to_owned(), password.to_owned());
        assert_eq!(login("amqp://rabbit/v?heartbeat=10"), pair("bob", "s3cret"));
        assert_eq!(login("amqp://u:p@rabbit/v"), pair("u", "p"));
        assert_eq!(login("amqp://bob@rabbit/v"), pair("bob", "s3cret"));
        let guest = parse(&[("uri", "amqp://guest@h"), ("username", "guest"), ("password", "b")]).unwrap();
        assert_eq!(guest.password, "b");
        assert!(parse(&[("uri", "amqp://u@h"), ("username", "bob"), ("password", "b")]).is_err());
        assert_eq!(parse(&[("uri", "amqp://rabbit/v")]).unwrap().username, "guest");
    }

    #[test]
    fn a_way_to_log_in_that_is_not_known_is_refused_instead_of_passed_over() {
        let asks = |how: &str| parse(&[("uri", &format!("amqps://u:p@h/v?auth_mechanism={how}"))]);
        assert!(asks("external").unwrap_err().to_string().contains("auth_mechanism"));
        assert!(asks("plain").is_ok());
    }

    #[test]
    fn several_addresses_must_share_everything_else() {
        let access = parse(&[("uris", "amqp://u:p@a:1/v\namqp://u:p@b:2/v\n")]).unwrap();
        assert_eq!(access.address(), "amqp://a:1,b:2/v");
        let lines = |count: usize| parse(&[("uris", &"amqp://u:p@a:1/v\n".repeat(count))]);
        assert!(lines(MOST_ADDRESSES).is_ok());
        let error = lines(MOST_ADDRESSES + 1).unwrap_err().to_string();
        assert!(error.contains("33 addresses, and 32 are enough"), "{error}");
        let error = parse(&[("uris", "amqp://u:p@a/v\namqp://other:p@b/v")]).unwrap_err();
        assert!(error.to_string().contains("must share"), "{error}");
    }

    #[test]
    fn the_same_addresses_in_another_order_are_the_same_broker() {
        let one = parse(&[("uris", "amqp://u:p@a:1/v\namqp://u:p@b:2/v\n")]).unwrap();
        let other = parse(&[("uris", "amqp://u:p@b:2/v\namqp://u:p@a:1/v\namqp://u:p@b:2/v\n")]).unwrap();
        assert!(one == other);
        assert_eq!((other.address().as_str(), other.endpoints()), ("amqp://a:1,b:2/v", 2));
        assert!(one != parse(&[("uris", "amqp://u:p@a:1/v")]).unwrap());
    }

    #[test]
    fn an_ipv6_address_is_the_broker_s_in_every_layout() {
        let access = parse(&[("uris", "amqp://u:p@[fd00:0::5]:5673/v\namqp://u:p@[::1]/v")]).unwrap();
        assert_eq!(access.address(), "amqp://[::1]:5672,[fd00::5]:5673/v");
        assert_eq!(access.uri(1, AMQPQueryString::default()).authority.host, "fd00::5");
        for host in ["fd00::5", "[fd00::5]"] {
            let access = parse(&[("host", host), ("username", "u"), ("password", "p")]).unwrap();
            assert_eq!(access.address(), "amqp://[fd00::5]:5672/%2F");
        }
        assert_eq!(parse(&[("uri", "amqp://u:p@10.0.0.5/v")]).unwrap().address(), "amqp://10.0.0.5:5672/v");
    }

    #[test]
    fn credentials_in_the_place_of_something_that_is_shown_are_refused_and_not_shown() {
        let parts = |host, vhost| [("host", host), ("username", "u"), ("password", "p"), ("vhost", vhost)];
        let uri = "amqp://bob:s3cret@rabbit:5672/";
        for host in [uri, "bob:s3cret@rabbit", "bob:s3cret", "rabbit/s3cret", "s3cret rabbit"] {
            let error = parse(&parts(host, "/")).unwrap_err().to_string();
            assert!(error.contains("\"host\"") && !error.contains("s3cret"), "{error}");
        }
        let error = parse(&parts("rabbit", uri)).unwrap_err().to_string();
        assert!(error.contains("\"vhost\"") && !error.contains("s3cret"), "{error}");
        for uri in
            ["amqp://bob:12/s3cret@rabbit/v", "amqp://bob:12?s3cret@rabbit", "amqp://bob:12#s3cret@rabbit"]
        {
            let error = parse(&[("uri", uri)]).unwrap_err().to_string();
            assert!(error.contains("%2F") && !error.contains("s3cret"), "{error}");
        }
        for host in ["bob%3As3cret%40rabbit", "rabbit%0As3cret"] {
            let error = parse(&[("uri", &format!("amqp://{host}:5672/v"))]).unwrap_err().to_string();
            assert!(error.contains("no name or address") && !error.contains("s3cret"), "{error}");
        }
        for host in ["rabbit_1.shop-a.svc", "10.0.0.5"] {
            assert_eq!(parse(&parts(host, "a@b")).unwrap().hosts(), format!("{host}:5672"));
        }
    }

    #[test]
    fn every_bad_secret_names_the_key_and_not_its_value() {
        for (keys, expected) in [
            (vec![], "no broker address"),
            (vec![("uri", "http://secret")], "\"uri\" is not usable"),
            (vec![("uri", "secret nonsense")], "\"uri\" is not usable"),
            (vec![("uri", "amqp:///secret")], "names no host"),
            (vec![("uri", "amqp://u:p@h/secret#1")], "%23"),
            (vec![("uri", "amqp://u:p@h/secret?x")], "%3F"),
            (vec![("uri", "amqp://secret@h/v")], "without a password"),
            (vec![("uri", "amqp://h/v"), ("username", "u")], "lacks the key \"password\""),
            (vec![("host", "h"), ("username", "u")], "lacks the key \"password\""),
            (vec![("host", "h"), ("port", "secret"), ("username", "u"), ("password", "p")], "\"port\""),
            (vec![("uri", "amqp://h"), ("ca.crt", "secret")], "expected PEM"),
            (vec![("uri", "amqp://h"), ("tls.crt", PEM)], "lacks the key \"tls.key\""),
        ] {
            let error = parse(&keys).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        }
        let long = "secret".repeat(longest_value("ca.crt"));
        for key in KEYS {
            let others =
                [("host", "h"), ("username", "u"), ("password", "p"), ("tls.crt", PEM), ("tls.key", PEM)];
            let mut keys = secret(&others);
            keys.insert(key.to_owned(), long.clone().into_bytes());
            let error = BrokerAccess::parse(&keys, None).unwrap_err().to_string();
            let expected = format!("{key:?} is not usable: it has more than {} bytes", longest_value(key));
            assert!(error.contains(&expected), "{error}");
        }
    }

    #[test]
    fn the_parts_of_a_secret_and_what_stands_beside_an_address_count() {
        let parts = [("host", "h"), ("username", "u"), ("password", "p")];
        let with = |more: &[(&str, &str)]| {
            let all = [&parts[..], more].concat();
            parse(&all).map(|access| access.address()).map_err(|error| error.to_string())
        };
        assert_eq!(with(&[]).as_deref(), Ok("amqp://h:5672/%2F"));
        assert_eq!(with(&[("port", "1234"), ("vhost", "v")]).as_deref(), Ok("amqp://h:1234/v"));
        assert_eq!(with(&[("ca.crt", PEM)]).as_deref(), Ok("amqps://h:5671/%2F"));
        let identity = [("tls.crt", PEM), ("tls.key", PEM)];
        assert_eq!(
            with(&identity).as_deref(),
            Ok("amqps://h:5671/%2F"),
            "for mutual TLS with a public authority"
        );
        for (key, lacks) in [("tls.crt", "tls.key"), ("tls.key", "tls.crt")] {
            assert!(with(&[(key, PEM)]).unwrap_err().contains(lacks));
        }
        assert!(with(&[("port", "0")]).unwrap_err().contains("1 to 65535"));
        // The password of a file that was written on Windows.
        let access = parse(&[("host", "h"), ("username", "u"), ("password", "p\r\n")]).unwrap();
        assert_eq!(access.password, "p");

        let uri = |more: &[(&str, &str)]| parse(more).unwrap().address();
        assert_eq!(uri(&[("uri", "amqp://u:p@h/a"), ("vhost", "b")]), "amqp://h:5672/b");
        assert_eq!(uri(&[("uri", "amqps://u:p@h/a")]), "amqps://h:5671/a");
        let all =
            [("uris", "amqp://u:p@a/v"), ("uri", "amqp://u:p@b/v"), ("connection_string", "amqp://u:p@c/v")];
        assert_eq!(
            [&all[..], &all[1..], &all[2..]].map(uri),
            ["a", "b", "c"].map(|host| format!("amqp://{host}:5672/v"))
        );
        let query = AMQPQueryString::default;
        let scheme = |uri| parse(&[("uri", uri)]).unwrap().uri(0, query()).scheme;
        assert_eq!(scheme("amqps://u:p@h/v"), AMQPScheme::AMQPS);
        assert_eq!(scheme("amqp://u:p@h/v"), AMQPScheme::AMQP);
    }

    #[test]
    fn addresses_of_several_brokers_are_not_taken_for_one() {
        for other in ["amqp://u:p@b/w", "amqp://v:p@b/v", "amqp://u:q@b/v", "amqps://u:p@b/v"] {
            let error = parse(&[("uris", &format!("amqp://u:p@a/v\n{other}"))]).unwrap_err();
            assert!(error.to_string().contains("must share"), "{other}: {error}");
        }
    }
}
