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
use http::header::HeaderMap;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::endpoint::Endpoint;
use crate::core::CallId;

/// How long an unused connection is kept: the shortest keep-alive of a common server is two seconds.
const IDLE: Duration = Duration::from_secs(1);
/// The largest head of an answer.
const HEAD: usize = 64 * 1024;

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
