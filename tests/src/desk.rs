//! The desk of a whole-cluster test: the applications in the pods ask it what to do with each message, and tell it when
//! they have done it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::cluster::Cluster;
use crate::{golang, images};

/// The application's image.
const APP: &str = "localhost/warren-test-app:dev";

/// Builds the application and gives its image to the cluster.
pub async fn image(cluster: &Cluster) -> Result<()> {
    images::program(cluster, APP, &golang::program("tests/cluster/app").await?).await.map(drop)
}

/// A handler call in a pod.
#[derive(Debug, Clone, Deserialize)]
pub struct Call {
    /// The pod's name.
    pub pod: String,
    /// The payload.
    pub body: String,
    /// The path that was posted to.
    pub path: String,
    /// The call's headers, names in lower case.
    pub headers: BTreeMap<String, String>,
}

/// What the application is to do with a message.
#[derive(Debug, Clone, Serialize)]
pub struct Order {
    milliseconds: u64,
    status: u16,
    headers: BTreeMap<String, String>,
}

impl Order {
    /// Work so long, then answer 200.
    pub fn work(time: Duration) -> Self {
        Self::answer(200).after(time)
    }

    /// Answer with a status at once.
    pub fn answer(status: u16) -> Self {
        Self { milliseconds: 0, status, headers: BTreeMap::new() }
    }

    /// Work so long before the answer.
    #[must_use]
    pub fn after(mut self, time: Duration) -> Self {
        self.milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// Answer with a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.to_owned(), value.to_owned());
        self
    }
}

/// A handler call and when it began and ended.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The call.
    pub call: Call,
    /// When it began.
    pub began: Instant,
    /// When it ended; none while it runs, or when its pod was killed.
    pub ended: Option<Instant>,
}

type Book = Arc<Mutex<Vec<Entry>>>;
type Decide = Arc<dyn Fn(&Call) -> Order + Send + Sync>;

/// A desk that listens where pods reach it. It closes with the value.
pub struct Desk {
    url: String,
    book: Book,
    server: JoinHandle<()>,
}

impl Desk {
    /// Opens a desk at this machine's address as pods see it.
    pub async fn open(host: IpAddr, decide: impl Fn(&Call) -> Order + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind((host, 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let book = Book::default();
        let decide: Decide = Arc::new(decide);
        let routes = Router::new()
            .route("/begin", post(begin))
            .route("/end", post(end))
            .with_state((Arc::clone(&book), decide));
        let server = tokio::spawn(async move {
            // Ends only when the value is dropped.
            let _ = axum::serve(listener, routes).await;
        });
        Ok(Self { url, book, server })
    }

    /// A container with the application, which asks this desk.
    pub fn container(&self) -> Value {
        json!({
            "name": "app", "image": APP, "imagePullPolicy": "IfNotPresent", "ports": [{"containerPort": 8080}],
            "env": [
                {"name": "DESK_URL", "value": self.url},
                {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ],
        })
    }

    /// Every call so far, in the order of their beginnings.
    pub fn entries(&self) -> Vec<Entry> {
        lock(&self.book).clone()
    }

    /// Payloads of the calls that ended, each once, sorted.
    pub fn handled(&self) -> Vec<String> {
        let mut bodies: Vec<_> =
            self.entries().into_iter().filter(|e| e.ended.is_some()).map(|e| e.call.body).collect();
        bodies.sort();
        bodies.dedup();
        bodies
    }

    /// How many calls each pod ended.
    pub fn shares(&self) -> BTreeMap<String, usize> {
        let mut shares = BTreeMap::new();
        for entry in self.entries().into_iter().filter(|entry| entry.ended.is_some()) {
            *shares.entry(entry.call.pod).or_default() += 1;
        }
        shares
    }

    /// Payloads whose call began more than once.
    pub fn called_again(&self) -> Vec<String> {
        let mut count = BTreeMap::<String, usize>::new();
        for entry in self.entries() {
            *count.entry(entry.call.body).or_default() += 1;
        }
        count.into_iter().filter(|(_, times)| *times > 1).map(|(body, _)| body).collect()
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn lock(book: &Book) -> std::sync::MutexGuard<'_, Vec<Entry>> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn begin(State((book, decide)): State<(Book, Decide)>, Json(call): Json<Call>) -> Json<Order> {
    let order = decide(&call);
    lock(&book).push(Entry { call, began: Instant::now(), ended: None });
    Json(order)
}

async fn end(State((book, _)): State<(Book, Decide)>, Json(call): Json<Call>) {
    let mut book = lock(&book);
    let running = |entry: &&mut Entry| {
        entry.ended.is_none() && entry.call.pod == call.pod && entry.call.body == call.body
    };
    if let Some(entry) = book.iter_mut().find(running) {
        entry.ended = Some(Instant::now());
    }
}
