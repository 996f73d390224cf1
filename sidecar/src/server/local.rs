//! Port 9401, on localhost: for the application.

use std::time::SystemTime;

use http::header::ORIGIN;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use hyper::body::Incoming;
use tokio::sync::{mpsc, oneshot};

use super::publish::Publish;
use super::{Reply, reply, typed};
use crate::core::{DeadReason, Failure, LateReply, Verdict};
use crate::delivery_id;
use crate::handler::answer;
use crate::inbox::{Inbox, ReplyBody};

/// What the application can ask.
#[derive(Clone, Debug)]
pub struct Local {
    /// The engine's loop; none where messages are only published.
    pub engine: Option<mpsc::UnboundedSender<Inbox>>,
    /// The publish API.
    pub publish: Publish,
}

impl Local {
    /// Answers one request.
    pub async fn handle(self, request: Request<Incoming>) -> Reply {
        if is_of_a_foreign_page(request.headers()) {
            return reply(
                StatusCode::FORBIDDEN,
                "no web page may use this: a proxy that hands requests on must leave the header origin out\n",
            );
        }
        let path = request.uri().path().to_owned();
        match (request.method(), path.as_str()) {
            (&Method::POST, "/publish") => self.publish.single(request).await,
            (&Method::POST, "/publish/batch") => self.publish.batch(request).await,
            (&Method::GET, "/status") => self.status().await,
            (&Method::POST, path) if path.starts_with("/deliveries/") => self.delivery(path, request).await,
            (_, "/publish" | "/publish/batch") => reply(StatusCode::METHOD_NOT_ALLOWED, "use POST\n"),
            _ => reply(
                StatusCode::NOT_FOUND,
                "here are /publish, /publish/batch, /deliveries/{id}/ack and /status\n",
            ),
        }
    }

    async fn delivery(&self, path: &str, request: Request<Incoming>) -> Reply {
        let mut parts = path.trim_start_matches("/deliveries/").split('/');
        let (id, verb, rest) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        // How the delivery ends; none: the application is still at work.
        let verdict: Option<fn(&HeaderMap) -> Verdict> = match (verb, rest) {
            (Some("ack"), None) => Some(|_| Verdict::Ack),
            (Some("retry"), None) => Some(|headers| {
                let after = answer::retry_after_of(headers, SystemTime::now());
                Verdict::Retry(Failure { status: None, after, detail: reason(headers) })
            }),
            (Some("dead-letter"), None) => {
                Some(|headers| Verdict::DeadLetter { reason: DeadReason::Rejected, detail: reason(headers) })
            }
            (Some("extend"), None) => None,
            _ => return reply(StatusCode::NOT_FOUND, "use /ack, /retry, /dead-letter or /extend\n"),
        };
        let Some(id) = delivery_id::parse(id) else {
            return reply(StatusCode::NOT_FOUND, "there is no such delivery\n");
        };
        let Some(engine) = &self.engine else {
            return reply(StatusCode::NOT_FOUND, "nothing is consumed here\n");
        };
        let (head, body) = request.into_parts();
        // The room is kept until the engine has taken the body.
        let (_room, body) = match self.publish.upload(&head.headers, body).await {
            Ok(uploaded) => uploaded,
            Err(ended) => return ended.reply(),
        };
        let body = ReplyBody::of(&head.headers, body);
        let (send, wait) = oneshot::channel();
        let message = match verdict {
            // After the upload: a date to try again at is reckoned from now.
            Some(verdict) => Inbox::LateAnswer { id, verdict: verdict(&head.headers), body, reply: send },
            None => Inbox::Extend { id, reply: send },
        };
        // Without a loop nobody answers.
        let _ = engine.send(message);
        match wait.await {
            Ok(LateReply::Accepted) => reply(StatusCode::OK, ""),
            Ok(LateReply::Unknown) => reply(StatusCode::NOT_FOUND, "there is no such delivery\n"),
            Ok(LateReply::Ended) => reply(
                StatusCode::CONFLICT,
                "the delivery has ended already, has timed out, or was lost with its connection: the broker may deliver it again\n",
            ),
            Err(_) => reply(StatusCode::SERVICE_UNAVAILABLE, "the sidecar is ending\n"),
        }
    }

    async fn status(&self) -> Reply {
        let ending = || reply(StatusCode::SERVICE_UNAVAILABLE, "the sidecar is ending\n");
        let Some(engine) = &self.engine else { return reply(StatusCode::OK, "{\"consuming\":false}\n") };
        let (send, wait) = oneshot::channel();
        if engine.send(Inbox::Status(send)).is_err() {
            return ending();
        }
        let Ok(snapshot) = wait.await else { return ending() };
        let status = serde_json::json!({
            "consuming": snapshot.consuming,
            "prefetch": snapshot.prefetch,
            "unsettled": snapshot.unsettled,
            "inFlight": snapshot.in_flight,
            "handlerAccepts": snapshot.handler_accepts,
            "breakerOpen": snapshot.breaker.is_some(),
            "draining": snapshot.draining,
        });
        typed(StatusCode::OK, "application/json", format!("{status}\n"))
    }
}

/// Why a delivery ends so, for people.
fn reason(headers: &HeaderMap) -> String {
    answer::reason_of(headers).unwrap_or_else(|| "the application said so later".to_owned())
}

/// Whether a browser sends this for a page of another machine, which anybody may have made: it asks nobody before it posts.
pub(super) fn is_of_a_foreign_page(headers: &HeaderMap) -> bool {
    let is_here = |origin: &HeaderValue| {
        let origin = Uri::try_from(origin.as_bytes()).ok();
        origin.is_some_and(|origin| matches!(origin.host(), Some("localhost" | "127.0.0.1" | "[::1]")))
    };
    // An image that a page shows is asked for without an origin.
    headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site")
        || !headers.get_all(ORIGIN).iter().all(is_here)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::SocketAddr;

    use super::*;
    use crate::server::publish::tests::unconnected;
    use crate::server::{Bounds, Closing, listen, serve};

    /// A local API, where it is, and what ends it.
    async fn served() -> (SocketAddr, Closing) {
        let local = Local { engine: None, publish: unconnected() };
        let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let closing = Closing::default();
        let handle = move |request| local.clone().handle(request);
        tokio::spawn(serve(listener, Bounds::APPLICATION, closing.subscribe(), handle));
        (address, closing)
    }

    #[tokio::test]
    async fn a_foreign_page_that_publishes_is_refused() {
        let (address, _closing) = served().await;
        let answer = tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            // An application's would be asked for a better priority.
            let head = "POST /publish HTTP/1.1\r\nhost: x\r\nconnection: close\r\nwarren-priority: none\r\n";
            write!(stream, "{head}origin: https://evil.example\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        assert!(answer.await.unwrap().starts_with("HTTP/1.1 403"));
    }

    #[tokio::test]
    async fn who_sends_too_much_can_send_it_and_learns_why_it_is_refused() {
        let (address, _closing) = served().await;
        // Who waits to be asked for it is not asked.
        for (expects, sends) in [("", true), ("expect: 100-continue\r\n", false)] {
            let answer = tokio::task::spawn_blocking(move || {
                let mut stream = std::net::TcpStream::connect(address).unwrap();
                let (length, mut answer) = (17 << 20, [0; 12]);
                let head =
                    format!("POST /publish HTTP/1.1\r\nhost: x\r\n{expects}content-length: {length}\r\n\r\n");
                stream.write_all(head.as_bytes()).unwrap();
                if sends {
                    stream.write_all(&vec![b'x'; length]).unwrap();
                }
                stream.read_exact(&mut answer).unwrap();
                answer
            });
            assert_eq!(&answer.await.unwrap(), b"HTTP/1.1 413", "{expects}");
        }
    }

    #[test]
    fn pages_of_this_machine_and_programs_that_are_no_browser_may_ask_and_foreign_pages_may_not() {
        let foreign = |origins: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for origin in origins {
                headers.append(ORIGIN, HeaderValue::from_static(origin));
            }
            is_of_a_foreign_page(&headers)
        };
        assert!(!foreign(&[]));
        for here in
            ["http://localhost:3000", "https://localhost", "http://127.0.0.1:9401", "http://[::1]:8080"]
        {
            assert!(!foreign(&[here]), "{here}");
        }
        for page in
            ["https://evil.example", "http://localhost.evil.example", "http://localhost@evil", "null", ""]
        {
            assert!(foreign(&[page]), "{page}");
        }
        assert!(foreign(&["http://localhost", "https://evil.example"]));
        let site = |site| {
            HeaderMap::from_iter([("sec-fetch-site".parse().unwrap(), HeaderValue::from_static(site))])
        };
        assert!(is_of_a_foreign_page(&site("cross-site")));
        assert!(!is_of_a_foreign_page(&site("none")), "typed by the user");
    }
}
