//! The TLS of a connection. Where the Secret names an authority, no other counts: whoever has a certificate of a public one could
//! stand between, and be given the password.

use std::io;

use futures::{AsyncRead, AsyncWrite};
use lapin::tcp::{AsyncTcpStream, RustlsConnector, RustlsConnectorConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::access::Tls;

/// Makes a connection as safe as its address asks for.
pub async fn secured<S>(
    stream: AsyncTcpStream<S>,
    uri: &AMQPUri,
    tls: Option<&Tls>,
) -> io::Result<AsyncTcpStream<S>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    match uri.scheme {
        AMQPScheme::AMQP => Ok(stream),
        AMQPScheme::AMQPS => stream.into_rustls(&connector(tls)?, &uri.authority.host).await,
    }
}

fn connector(tls: Option<&Tls>) -> io::Result<RustlsConnector> {
    let authorities = authorities(tls.and_then(|tls| tls.ca.as_deref()))?;
    match tls.and_then(|tls| tls.identity.as_ref()) {
        Some((certificate, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| invalid(&error))?;
            authorities.connector_with_single_cert(certificates(certificate)?, key)
        }
        None => authorities.connector_with_no_client_auth(),
    }
}

/// The Secret's own, or those of the system.
fn authorities(ca: Option<&str>) -> io::Result<RustlsConnectorConfig> {
    match ca {
        Some(ca) => Ok(RustlsConnectorConfig::default().with_parsable_certificates(certificates(ca)?)),
        None => RustlsConnectorConfig::new_with_native_certs(),
    }
}

fn certificates(pem: &str) -> io::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|error| invalid(&error))
}

fn invalid(error: &Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a certificate or key of the Secret: {error}"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;

    use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::{ServerConfig, ServerConnection};

    use super::*;
    use crate::BrokerError;
    use crate::access::BrokerAccess;
    use crate::connect::{ConnectOptions, connect};

    type Issuer = CertifiedIssuer<'static, KeyPair>;

    fn authority() -> Issuer {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// A server that an authority has signed, which says nothing after the handshake with one client: its port.
    fn server(issuer: &Issuer) -> u16 {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, issuer).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key);
        let mut tls = ServerConnection::new(Arc::new(config.unwrap())).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            while tls.is_handshaking() && tls.complete_io(&mut stream).is_ok() {}
        });
        port
    }

    #[tokio::test]
    async fn a_broker_is_verified_against_the_authority_that_the_secret_names() {
        crate::install_crypto_provider();
        let (ours, other) = (authority(), authority());
        for (named, trusted) in [(&ours, true), (&other, false)] {
            let uri = format!("amqps://u:p@localhost:{}/", server(&ours));
            let keys = [("uri", uri), ("ca.crt", named.pem())];
            let keys = keys.map(|(key, value)| (key.to_owned(), value.into_bytes())).into();
            let access = BrokerAccess::parse(&keys, None).unwrap();
            let error = connect(&access, &ConnectOptions::named("test")).await.unwrap_err();
            assert_eq!(matches!(error, BrokerError::Unreachable { .. }), trusted, "{error}");
            assert_eq!(matches!(error, BrokerError::Tls { .. }), !trusted, "{error}");
        }
    }

    #[test]
    fn no_authority_of_the_system_counts_beside_the_one_that_the_secret_names() {
        let own = format!("{:?}", authorities(Some(&authority().pem())).unwrap());
        assert!(own.contains("extra_roots: 1") && own.contains("native_certs: 0"), "{own}");
    }

    #[test]
    fn an_authority_that_cannot_be_read_stands_for_no_other() {
        let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for ca in [nonsense, "-----BEGIN "] {
            let tls = Tls { ca: Some(ca.to_owned()), identity: None };
            let error = connector(Some(&tls)).unwrap_err().to_string();
            assert!(error.contains("certificate"), "{error}");
        }
    }
}
