//! The text that a broker is started with, as values.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::Options;

/// The user that brokers are made with.
pub const USER: &str = "warren";

/// Ports of one broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// AMQP without TLS.
    pub amqp: u16,
    /// AMQP with TLS, where asked for.
    pub amqps: u16,
    /// Erlang's own, for `rabbitmqctl`.
    pub distribution: u16,
    /// The name server of Erlang nodes: each broker has its own.
    pub names: u16,
}

/// `rabbitmq.conf`. `dir` is the broker's folder as the broker sees it.
pub(super) fn rabbitmq_conf(options: &Options, ports: Ports, password: &str, dir: &str) -> String {
    let mut text = format!(
        "default_user = {USER}\n\
         default_pass = {password}\n\
         default_vhost = /\n\
         default_user_tags.administrator = true\n\
         default_permissions.configure = .*\n\
         default_permissions.read = .*\n\
         default_permissions.write = .*\n\
         loopback_users = none\n\
         disk_free_limit.absolute = 50MB\n\
         log.console = true\n\
         log.console.level = info\n\
         log.file = false\n"
    );
    if options.tls_only {
        text += "listeners.tcp = none\n";
    } else {
        _ = writeln!(text, "listeners.tcp.1 = 0.0.0.0:{}", ports.amqp);
    }
    if let Some(tls) = &options.tls {
        let mutual = tls.mutual;
        let verify = if mutual { "verify_peer" } else { "verify_none" };
        _ = write!(
            text,
            "listeners.ssl.1 = 0.0.0.0:{port}\n\
             ssl_options.cacertfile = {dir}/ca.crt\n\
             ssl_options.certfile = {dir}/tls.crt\n\
             ssl_options.keyfile = {dir}/tls.key\n\
             ssl_options.verify = {verify}\n\
             ssl_options.fail_if_no_peer_cert = {mutual}\n",
            port = ports.amqps,
        );
    }
    for line in &options.config {
        text += line;
        text.push('\n');
    }
    text
}

/// A part of a URI, with everything but letters, digits and `-._~` percent-encoded.
pub(super) fn encode(part: &str) -> String {
    let mut text = String::new();
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// A text as an Erlang binary.
pub(super) fn binary(text: &str) -> String {
    format!("<<{}>>", text.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::super::{Options, Tls};
    use super::*;
    use crate::authority::Authority;

    const PORTS: Ports = Ports { amqp: 1, amqps: 2, distribution: 3, names: 4 };

    #[test]
    fn a_plain_broker_has_no_tls_and_no_management() {
        let text = rabbitmq_conf(&Options::new("a"), PORTS, "secret", "/dir");
        assert!(text.contains("listeners.tcp.1 = 0.0.0.0:1\n"), "{text}");
        assert!(!text.contains("ssl") && !text.contains("management"), "{text}");
    }

    #[test]
    fn mutual_tls_demands_a_certificate() {
        let authority = Authority::new("test").unwrap();
        let tls = Tls::new(&authority, &["localhost".to_owned()]).unwrap().mutual();
        let text = rabbitmq_conf(&Options::new("a").tls_only(tls), PORTS, "secret", "/dir");
        assert!(
            text.contains("listeners.tcp = none") && text.contains("fail_if_no_peer_cert = true"),
            "{text}"
        );
    }

    #[test]
    fn a_slash_in_a_uri_is_encoded() {
        assert_eq!(encode("/"), "%2F");
        assert_eq!(encode("shop-1"), "shop-1");
    }

    #[test]
    fn texts_are_erlang_binaries() {
        assert_eq!(binary("ab"), "<<97,98>>");
    }
}
