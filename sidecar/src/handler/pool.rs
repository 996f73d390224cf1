//! Connections to the application, kept alive, one call at a time on each.
//!
//! An application closes idle connections when it likes, and a request that races with the close may or may not have been
//! read. So a connection is only used again within [`IDLE`], which is shorter than the keep-alive of any common server, its
//! end is noticed while it idles, and a request that was provably not sent goes on a new connection.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{HOST, HeaderMap, HeaderValue};
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::core::CallId;

/// How long an unused connection is kept: the shortest keep-alive of a common server is two seconds.
const IDLE: Duration = Duration::from_secs(1);
/// How long a connection to localhost may take.
const CONNECT: Duration = Duration::from_secs(2);
/// The largest head of an answer.
const HEAD: usize = 64 * 1024;

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
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers;
        request.headers_mut().insert(HOST, self.authority.clone());
        request
    }
}

/// A call to make.
#[derive(Debug)]
pub struct Job {
    /// The call.
    pub call: CallId,
    /// The request.
    pub request: Request<Full<Bytes>>,
    /// How long the answer may take, to its last byte.
    pub timeout: Duration,
    /// How much of the answer's body is read; what is longer is cut, and its connection closed.
    pub limit: usize,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, or its beginning.
    pub body: Bytes,
    /// Whether the body was longer than the job's limit.
    pub cut: bool,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The application was not reached.
    #[error("the handler does not accept connections: {0}")]
    Unreached(String),
    /// It did not answer in time.
    #[error("the handler did not answer within {0:?}")]
    TimedOut(Duration),
    /// It answered no HTTP, or half an answer.
    #[error("the handler's answer was broken off: {0}")]
    Broken(String),
}

/// A call that has ended.
#[derive(Debug)]
pub struct Done {
    /// The call.
    pub call: CallId,
    /// How it ended.
    pub result: Result<Answer, CallError>,
    /// How long it took.
    pub took: Duration,
    /// A connection that can be used again.
    worker: Option<mpsc::Sender<Job>>,
}

/// The connections, most recently used first.
#[derive(Debug)]
pub struct Pool<E> {
    endpoint: Arc<Endpoint>,
    idle: Vec<mpsc::Sender<Job>>,
    events: mpsc::UnboundedSender<E>,
}

impl<E: From<Done> + Send + 'static> Pool<E> {
    /// A pool that reports ended calls to `events`.
    pub fn new(endpoint: Endpoint, events: mpsc::UnboundedSender<E>) -> Self {
        Self { endpoint: Arc::new(endpoint), idle: Vec::new(), events }
    }

    /// The application.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Another application: running calls end where they began.
    pub fn set_endpoint(&mut self, endpoint: Endpoint) {
        self.endpoint = Arc::new(endpoint);
        self.idle.clear();
    }

    /// Starts a call.
    pub fn call(&mut self, mut job: Job) {
        while let Some(worker) = self.idle.pop() {
            match worker.try_send(job) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Closed(back) | mpsc::error::TrySendError::Full(back)) => {
                    job = back;
                }
            }
        }
        tokio::spawn(work(Arc::clone(&self.endpoint), job, self.events.clone()));
    }

    /// Takes an ended call's connection back.
    pub fn take_back(&mut self, done: &mut Done) {
        if let Some(worker) = done.worker.take() {
            self.idle.push(worker);
        }
        // Those that idled too long sit at the bottom.
        if self.idle.first().is_some_and(mpsc::Sender::is_closed) {
            self.idle.retain(|worker| !worker.is_closed());
        }
    }
}

/// A connection and the requests on it.
struct Live {
    sender: SendRequest<Full<Bytes>>,
    driver: Option<Connection<TokioIo<TcpStream>, Full<Bytes>>>,
}

impl Live {
    async fn open(endpoint: &Endpoint) -> Result<Self, CallError> {
        let stream = endpoint.connect().await.map_err(|error| CallError::Unreached(error.to_string()))?;
        let (sender, driver) = Builder::new()
            .max_buf_size(HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| CallError::Broken(error.to_string()))?;
        Ok(Self { sender, driver: Some(driver) })
    }

    /// Does something on the connection, which needs to be driven meanwhile.
    async fn drive<T>(
        driver: &mut Option<Connection<TokioIo<TcpStream>, Full<Bytes>>>,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = pin!(work);
        poll_fn(|context| {
            if let Poll::Ready(done) = work.as_mut().poll(context) {
                return Poll::Ready(done);
            }
            if let Some(running) = driver
                && Pin::new(running).poll(context).is_ready()
            {
                *driver = None;
            }
            work.as_mut().poll(context)
        })
        .await
    }

    /// Whether another request may be sent.
    async fn is_ready(&mut self) -> bool {
        Self::drive(&mut self.driver, self.sender.ready()).await.is_ok() && self.driver.is_some()
    }

    /// Ends when the application closes an idle connection.
    async fn ended(&mut self) {
        poll_fn(|context| match &mut self.driver {
            Some(driver) => Pin::new(driver).poll(context).map(|_| ()),
            None => Poll::Ready(()),
        })
        .await;
        self.driver = None;
    }
}

/// One connection's life: a job, then others while they come soon enough.
async fn work<E: From<Done>>(endpoint: Arc<Endpoint>, mut job: Job, events: mpsc::UnboundedSender<E>) {
    let (sender, mut jobs) = mpsc::channel(1);
    let mut live = None;
    loop {
        let Job { call, request, timeout, limit } = job;
        let started = Instant::now();
        let result = match tokio::time::timeout(timeout, exchange(&endpoint, &mut live, request, limit)).await
        {
            Ok(result) => result,
            Err(_) => Err(CallError::TimedOut(timeout)),
        };
        if result.is_err() {
            live = None;
        }
        let worker = live.is_some().then(|| sender.clone());
        let done = Done { call, result, took: started.elapsed(), worker };
        if events.send(done.into()).is_err() {
            return;
        }
        let Some(connection) = &mut live else { return };
        let next = tokio::select! {
            next = jobs.recv() => next,
            () = connection.ended() => None,
            () = tokio::time::sleep(IDLE) => None,
        };
        job = match next {
            Some(next) => next,
            None => {
                // A job may have come in this very moment.
                jobs.close();
                live = None;
                match jobs.recv().await {
                    Some(next) => next,
                    None => return,
                }
            }
        };
    }
}

/// One request on a connection of its own.
///
/// # Errors
/// Why there is no answer.
pub async fn post(
    endpoint: &Endpoint,
    headers: HeaderMap,
    body: Bytes,
    timeout: Duration,
) -> Result<Answer, CallError> {
    let request = endpoint.request(headers, body);
    match tokio::time::timeout(timeout, exchange(endpoint, &mut None, request, HEAD)).await {
        Ok(result) => result,
        Err(_) => Err(CallError::TimedOut(timeout)),
    }
}

/// Sends a request and reads the answer.
async fn exchange(
    endpoint: &Endpoint,
    live: &mut Option<Live>,
    mut request: Request<Full<Bytes>>,
    limit: usize,
) -> Result<Answer, CallError> {
    loop {
        let (mut connection, fresh) = match live.take() {
            Some(connection) => (connection, false),
            None => (Live::open(endpoint).await?, true),
        };
        if !fresh && !connection.is_ready().await {
            continue;
        }
        let sent = Live::drive(&mut connection.driver, connection.sender.try_send_request(request)).await;
        match sent {
            Ok(response) => {
                let (answer, whole) = read(&mut connection, response, limit).await?;
                if whole && connection.driver.is_some() {
                    *live = Some(connection);
                }
                return Ok(answer);
            }
            Err(mut error) => match error.take_message() {
                // Not a byte of it was sent: it goes on a new connection.
                Some(unsent) if !fresh => request = unsent,
                Some(_) | None => return Err(CallError::Broken(error.into_error().to_string())),
            },
        }
    }
}

/// Reads an answer up to the limit; whether the connection is at the end of it.
async fn read(
    connection: &mut Live,
    response: Response<Incoming>,
    limit: usize,
) -> Result<(Answer, bool), CallError> {
    let (head, mut incoming) = response.into_parts();
    let mut body = Bytes::new();
    let mut more: Option<BytesMut> = None;
    let mut cut = false;
    while let Some(frame) = Live::drive(&mut connection.driver, incoming.frame()).await {
        let frame = frame.map_err(|error| CallError::Broken(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        let length = more.as_ref().map_or(body.len(), BytesMut::len);
        cut = length + data.len() > limit;
        let data = if cut { data.slice(..limit.saturating_sub(length)) } else { data };
        if length == 0 && more.is_none() {
            body = data;
        } else {
            more.get_or_insert_with(|| BytesMut::from(body.as_ref())).extend_from_slice(&data);
        }
        if cut {
            break;
        }
    }
    let body = more.map_or(body, BytesMut::freeze);
    Ok((Answer { status: head.status.as_u16(), headers: head.headers, body, cut }, !cut))
}
