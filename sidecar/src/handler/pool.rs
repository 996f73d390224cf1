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
use tokio::sync::mpsc;

use super::endpoint::Endpoint;
use super::socket::{Socket, Unheard};
use crate::core::CallId;

/// How long an unused connection is kept: the shortest keep-alive of a common server is two seconds.
const IDLE: Duration = Duration::from_secs(1);
/// How long a connection may still be busy with the request before: an application may answer without having read it whole, and
/// then never read the rest.
const READY: Duration = Duration::from_secs(1);
/// The largest head of an answer.
const HEAD: usize = 64 * 1024;

/// A call to make.
#[derive(Debug)]
pub struct Job {
    /// The call.
    pub call: CallId,
    /// The request.
    pub request: Request<Full<Bytes>>,
    /// How long the answer may take, to its last byte, once there is a connection.
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

type Driver = Connection<TokioIo<Socket>, Full<Bytes>>;

/// A connection and the requests on it.
struct Live {
    sender: SendRequest<Full<Bytes>>,
    driver: Option<Driver>,
    unheard: Unheard,
}

impl Live {
    async fn open(endpoint: &Endpoint) -> Result<Self, CallError> {
        let stream = endpoint.connect().await.map_err(|error| CallError::Unreached(error.to_string()))?;
        let (socket, unheard) = Socket::of(stream);
        let (sender, driver) = Builder::new()
            .max_buf_size(HEAD)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(|error| CallError::Broken(error.to_string()))?;
        Ok(Self { sender, driver: Some(driver), unheard })
    }

    /// Does something on the connection, which needs to be driven meanwhile.
    async fn drive<T>(driver: &mut Option<Driver>, work: impl Future<Output = T>) -> T {
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

    /// Whether another request may be sent, or may be soon.
    async fn is_ready(&mut self) -> bool {
        let ready = Self::drive(&mut self.driver, self.sender.ready());
        let ready = matches!(tokio::time::timeout(READY, ready).await, Ok(Ok(())));
        ready && self.driver.is_some() && !self.unheard.is_so()
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
        let result = exchange(&endpoint, &mut live, request, limit, timeout).await;
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
    exchange(endpoint, &mut None, request, HEAD, timeout).await
}

/// Sends a request and reads the answer.
async fn exchange(
    endpoint: &Endpoint,
    live: &mut Option<Live>,
    mut request: Request<Full<Bytes>>,
    limit: usize,
    timeout: Duration,
) -> Result<Answer, CallError> {
    loop {
        let kept = match live.take() {
            Some(mut connection) => connection.is_ready().await.then_some(connection),
            None => None,
        };
        let (mut connection, fresh) = match kept {
            Some(connection) => (connection, false),
            // Connecting has a time limit of its own, which the call's does not cut short: nothing was attempted until then.
            None => (Live::open(endpoint).await?, true),
        };
        let asking = ask(&mut connection, request, limit, fresh);
        match tokio::time::timeout(timeout, asking).await {
            Err(_) => return Err(CallError::TimedOut(timeout)),
            Ok(Asked::Ended(result)) => {
                // What is left of an answer that was cut stands in the way of the next.
                if result.as_ref().is_ok_and(|answer| !answer.cut) && connection.driver.is_some() {
                    *live = Some(connection);
                }
                return result;
            }
            // It goes on a new connection.
            Ok(Asked::Unsent(unsent)) => request = unsent,
        }
    }
}

/// What came of a request on a connection.
enum Asked {
    /// An answer, or why there is none.
    Ended(Result<Answer, CallError>),
    /// Not a byte of it was sent, since the application had closed the connection.
    Unsent(Request<Full<Bytes>>),
}

async fn ask(connection: &mut Live, request: Request<Full<Bytes>>, limit: usize, fresh: bool) -> Asked {
    let sent = Live::drive(&mut connection.driver, connection.sender.try_send_request(request)).await;
    match sent {
        Ok(response) => Asked::Ended(read(connection, response, limit).await),
        Err(mut error) => match error.take_message() {
            Some(unsent) if !fresh => Asked::Unsent(unsent),
            Some(_) | None => Asked::Ended(Err(CallError::Broken(error.into_error().to_string()))),
        },
    }
}

/// Reads an answer up to the limit.
async fn read(
    connection: &mut Live,
    response: Response<Incoming>,
    limit: usize,
) -> Result<Answer, CallError> {
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
        if length == 0 {
            body = data;
        } else {
            more.get_or_insert_with(|| BytesMut::from(body.as_ref())).extend_from_slice(&data);
        }
        if cut {
            break;
        }
    }
    let body = more.map_or(body, BytesMut::freeze);
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body, cut })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream as Plain};

    use tokio::net::TcpSocket;

    use super::*;

    /// A port whose queue of connections is full: the system answers no more of them.
    fn stuck() -> (tokio::net::TcpListener, Vec<Plain>, SocketAddr) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = Plain::connect_timeout(&address, Duration::from_millis(200)) {
            waiting.push(stream);
        }
        (listener, waiting, address)
    }

    #[tokio::test]
    async fn a_connect_time_out_is_no_attempt_also_where_the_call_may_take_less_time() {
        let (_listener, _waiting, address) = stuck();
        let endpoint = Endpoint::parse(&format!("http://127.0.0.1:{}/", address.port())).unwrap();
        let posted = post(&endpoint, HeaderMap::new(), Bytes::new(), Duration::from_millis(100)).await;
        assert!(matches!(posted, Err(CallError::Unreached(_))), "{posted:?}");
    }

    /// An application that reads a request's head alone and says yes, and the heads that it has read.
    fn answering_heads() -> (u16, mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (heads, read) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept() {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") {
                    stream.read_exact(&mut byte).unwrap();
                    head.extend(byte);
                }
                // The test may have ended.
                let _ = heads.send(String::from_utf8(head).unwrap());
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
                open.push(stream);
            }
        });
        (port, read)
    }

    #[tokio::test]
    async fn an_answer_before_the_body_was_read_costs_the_next_call_no_attempt() {
        let (port, _heads) = answering_heads();
        let (events, mut ended) = mpsc::unbounded_channel::<Done>();
        let mut pool = Pool::new(Endpoint::local(port, "/").unwrap(), events);
        for (call, length) in [(1, 64 << 20), (2, 1)] {
            let body = Bytes::from(vec![b'x'; length]);
            let request = pool.endpoint().request(HeaderMap::new(), body);
            pool.call(Job { call: CallId(call), request, timeout: READY * 4, limit: HEAD });
            let mut done = ended.recv().await.unwrap();
            assert_eq!(done.result.as_ref().unwrap().status, 200, "{call}");
            pool.take_back(&mut done);
        }
    }

    /// As web servers do that refuse a large request.
    #[tokio::test]
    async fn an_answer_counts_though_the_application_has_closed_before_it_read_the_body() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _head = stream.read(&mut [0; 1024]).unwrap();
                stream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n").unwrap();
            }
        });
        let endpoint = Endpoint::local(port, "/").unwrap();
        for _ in 0..20 {
            let body = Bytes::from(vec![b'x'; 16 << 20]);
            let answer = post(&endpoint, HeaderMap::new(), body, READY * 9).await.unwrap();
            assert_eq!(answer.status, 413);
        }
    }

    #[tokio::test]
    async fn an_empty_body_has_a_length_too() {
        let (port, mut heads) = answering_heads();
        let endpoint = Endpoint::local(port, "/").unwrap();
        post(&endpoint, HeaderMap::new(), Bytes::new(), READY).await.unwrap();
        let head = heads.recv().await.unwrap();
        assert_eq!(head.matches("content-length: 0\r\n").count(), 1, "{head}");
    }

    #[tokio::test]
    async fn a_call_has_its_whole_time_once_it_is_connected() {
        // It is connected by the system, and nobody ever reads.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let endpoint = Endpoint::local(port, "/").unwrap();
        let timeout = Duration::from_millis(100);
        let posted = post(&endpoint, HeaderMap::new(), Bytes::new(), timeout).await;
        assert_eq!(posted.err(), Some(CallError::TimedOut(timeout)));
    }
}
