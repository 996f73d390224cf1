//! Where the application is, and a connection to it.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderValue};
use http::{Method, Request, Uri};
use http_body_util::Full;
use tokio::net::TcpStream;

/// How long a connection to localhost may take.
const CONNECT: Duration = Duration::from_secs(2);

/// Where the application is.
#[derive(Clone, Debug)]
pub struct Endpoint {
    host: String,
    port: u16,
    authority: HeaderValue,
    uri: Uri,
}

/// Why a handler's address cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no handler address: write it like http://localhost:8080/messages")]
pub struct BadEndpoint(String);

impl Endpoint {
    /// Parses `http://host:port/path`.
    ///
    /// # Errors
    /// If it is not such an address.
    pub fn parse(url: &str) -> Result<Self, BadEndpoint> {
        let bad = || BadEndpoint(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        if uri.scheme_str() != Some("http") {
            return Err(bad());
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(bad)?.to_owned();
        let port = uri.port_u16().unwrap_or(80);
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Self::new(&host, port, path).ok_or_else(bad)
    }

    /// The application at a port of this host.
    ///
    /// # Errors
    /// If the path cannot be one.
    pub fn local(port: u16, path: &str) -> Result<Self, BadEndpoint> {
        Self::new("localhost", port, path)
            .ok_or_else(|| BadEndpoint(format!("http://localhost:{port}{path}")))
    }

    fn new(host: &str, port: u16, path: &str) -> Option<Self> {
        Some(Self {
            host: host.to_owned(),
            port,
            authority: HeaderValue::from_str(&format!("{host}:{port}")).ok()?,
            uri: path.parse().ok()?,
        })
    }

    /// The address, for people.
    pub fn url(&self) -> String {
        format!("http://{}:{}{}", self.host, self.port, self.uri)
    }

    /// The path, without a query.
    pub fn path(&self) -> &str {
        self.uri.path()
    }

    /// The same application at another path.
    ///
    /// # Errors
    /// If the path cannot be one.
    pub fn with_path(&self, path: &str) -> Result<Self, BadEndpoint> {
        Self::new(&self.host, self.port, path).ok_or_else(|| BadEndpoint(path.to_owned()))
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// What the system says: refused, or no answer in time.
    pub async fn connect(&self) -> std::io::Result<TcpStream> {
        let connect = async {
            let stream = match self.host.as_str() {
                // Without a resolver, which would take a thread for what is known.
                "localhost" => match TcpStream::connect(("127.0.0.1", self.port)).await {
                    Ok(stream) => stream,
                    Err(first) => match TcpStream::connect(("::1", self.port)).await {
                        Ok(stream) => stream,
                        Err(_) => return Err(first),
                    },
                },
                host => TcpStream::connect((host.trim_matches(['[', ']']), self.port)).await?,
            };
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        tokio::time::timeout(CONNECT, connect).await.map_err(|_| std::io::ErrorKind::TimedOut)?
    }

    /// A request of this application.
    pub fn request(&self, headers: HeaderMap, body: Bytes) -> Request<Full<Bytes>> {
        let length = HeaderValue::from(body.len());
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers;
        request.headers_mut().insert(HOST, self.authority.clone());
        // Of a body that is empty nothing else says so, and some servers refuse a POST without a length.
        request.headers_mut().insert(CONTENT_LENGTH, length);
        request
    }
}
