//! The one loop: it feeds the engine with what happens and performs what the engine wants.
//!
//! All waiting is done elsewhere, in small tasks that report to the loop's inbox; the loop itself only polls.

mod calls;
mod link;
mod perform;

use std::collections::HashMap;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use warren_api::QueueType;
use warren_api::sidecar::SidecarConfig;
use warren_broker::connect::ConnectOptions;
use warren_broker::supervisor::{LinkState, Supervisor};
use warren_broker::{BrokerAccess, BrokerError};

use crate::amqp::publisher::Publisher;
use crate::amqp::session::{Arrival, Session};
use crate::config::{self, Fixed, Live};
use crate::core::{CallId, DeliveryId, Effect, Engine, Event, Incoming, LateReply, Time};
use crate::handler::endpoint::Endpoint;
use crate::handler::pool::Pool;
use crate::handler::request::Constant;
use crate::health::Health;
use crate::inbox::{Inbox, ReplyBody};
use crate::message::Message;
use crate::metrics::Metrics;
use crate::otlp::Spans;
use crate::repeats::Repeats;

/// How often gauges, the channel and the loop itself are looked at though nothing happens.
const PULSE: Duration = Duration::from_secs(1);
/// Copies that go alone at once.
const ALONE: usize = 256;
/// Things taken in before effects are looked after and others get their turn.
const BURST: usize = 256;

/// What the loop is made of.
#[derive(Debug)]
pub struct Parts {
    /// The live configuration.
    pub live: Live,
    /// What is connected with, which follows the live one once what runs has ended.
    pub access: watch::Sender<Arc<BrokerAccess>>,
    /// What is fixed.
    pub fixed: Fixed,
    /// Where the application is; its path follows the configuration.
    pub endpoint: Endpoint,
    /// What to count.
    pub metrics: Arc<Metrics>,
    /// What probes ask.
    pub health: Arc<Health>,
    /// The loop's inbox.
    pub inbox: mpsc::UnboundedReceiver<Inbox>,
    /// The way into it.
    pub sender: mpsc::UnboundedSender<Inbox>,
    /// Publishes copies.
    pub publisher: Publisher,
    /// Where spans go, if anybody wants them.
    pub spans: Option<Spans>,
}

/// The loop's state.
struct Runtime {
    engine: Engine,
    effects: Vec<Effect>,
    started: Instant,
    config: Arc<SidecarConfig>,
    configs: watch::Receiver<Arc<SidecarConfig>>,
    /// What both connections are made with, which follows `accesses` once what runs has ended.
    access: watch::Sender<Arc<BrokerAccess>>,
    accesses: watch::Receiver<Arc<BrokerAccess>>,
    /// Until when what runs may end before another queue is consumed, or the broker is connected to anew.
    leaving: Option<Time>,
    fixed: Fixed,
    messages: HashMap<DeliveryId, Arc<Message>>,
    /// Answers that go to a message's `reply_to`, until their confirm.
    replies: HashMap<DeliveryId, ReplyBody>,
    /// The ids that copies and replies were given where they had none: each try is of the same message.
    ids: HashMap<DeliveryId, String>,
    /// The messages of each call, which its answer is about.
    calls: HashMap<CallId, calls::Open>,
    spans: Option<Spans>,
    constant: Constant,
    pool: Pool<Inbox>,
    sender: mpsc::UnboundedSender<Inbox>,
    publisher: Publisher,
    /// Publishes replies: what closes its channel, such as a reply that is too large, leaves copies alone.
    replier: Publisher,
    /// Places for copies that go alone, each on a channel: a connection has no channel for each of a large window.
    alone: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    session: Option<Session>,
    opening: link::Opening,
    /// Channels opened so far: the next session's generation.
    generations: u64,
    drains: Vec<oneshot::Sender<bool>>,
    /// Answers to drains on their way.
    drained: JoinSet<()>,
    late_reply: Option<LateReply>,
    repeats: Repeats,
    exit: bool,
}

/// Runs until SIGTERM and the drain after it.
pub async fn run(parts: Parts) {
    let Parts { live, access, fixed, endpoint, metrics, health, mut inbox, sender, publisher, spans } = parts;
    let config = live.config.borrow().clone();
    let options =
        ConnectOptions::named(format!("warren-sidecar {} consume", fixed.instance)).with_large_frames();
    let supervisor = Supervisor::spawn(access.subscribe(), options);
    let mut links = supervisor.state();
    let settings = config::settings(&config, &fixed);
    let constant = Constant::new(&config.queue.name, settings.ladder.attempts());
    let mut runtime = Runtime {
        engine: Engine::new(settings, rand::random()),
        effects: Vec::new(),
        started: Instant::now(),
        constant,
        messages: HashMap::new(),
        replies: HashMap::new(),
        ids: HashMap::new(),
        calls: HashMap::new(),
        spans,
        pool: Pool::new(endpoint, sender.clone()),
        config,
        configs: live.config,
        access,
        accesses: live.access,
        leaving: None,
        fixed,
        sender,
        replier: publisher.on_own_channel(),
        alone: Arc::new(Semaphore::new(ALONE)),
        publisher,
        metrics,
        health,
        session: None,
        opening: link::Opening::default(),
        generations: 0,
        drains: Vec::new(),
        drained: JoinSet::new(),
        late_reply: None,
        repeats: Repeats::default(),
        exit: false,
    };
    runtime.step(Event::Tick);
    let mut pulse = tokio::time::interval(PULSE);
    pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !runtime.exit {
        let wake = runtime.engine.next_wake().map(|at| tokio::time::Instant::from_std(runtime.started + at));
        tokio::select! {
            biased;
            Some(message) = inbox.recv() => {
                runtime.receive(message);
                for _ in 0..BURST {
                    let Ok(message) = inbox.try_recv() else { break };
                    runtime.receive(message);
                }
            }
            arrival = next_arrival(&mut runtime.session) => {
                runtime.arrived(arrival);
                for _ in 0..BURST {
                    let Some(arrival) = ready_arrival(&mut runtime.session) else { break };
                    runtime.arrived(arrival);
                }
            }
            () = changed(&mut links) => {
                let state = links.borrow_and_update().clone();
                runtime.link_changed(&state);
            }
            () = changed(&mut runtime.configs) => runtime.follow(),
            () = changed(&mut runtime.accesses) => runtime.follow(),
            () = sleep_until(wake) => runtime.step(Event::Tick),
            () = runtime.opening.due() => runtime.open_session(),
            _ = pulse.tick() => runtime.pulse(),
        }
        runtime.leave();
        runtime.metrics.set(&runtime.engine.snapshot());
    }
    runtime.goodbye().await;
}

/// The next change; none comes once there is no sender.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn sleep_until(wake: Option<tokio::time::Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

async fn next_arrival(session: &mut Option<Session>) -> Arrival {
    std::future::poll_fn(|context| match session {
        Some(session) => session.poll_arrival(context),
        None => Poll::Pending,
    })
    .await
}

/// What has arrived already, without waiting.
fn ready_arrival(session: &mut Option<Session>) -> Option<Arrival> {
    use futures::FutureExt;
    next_arrival(session).now_or_never()
}

impl Runtime {
    fn now(&self) -> Time {
        self.started.elapsed()
    }

    /// One step of the engine, and what it wants.
    fn step(&mut self, event: Event) {
        let now = self.now();
        let mut effects = std::mem::take(&mut self.effects);
        self.engine.step(event, now, &mut effects);
        for effect in effects.drain(..) {
            self.perform(effect);
        }
        self.effects = effects;
        // A channel that broke while effects were performed is news for the engine.
        self.check_session();
    }

    fn pulse(&mut self) {
        self.health.beat();
        self.metrics.blocked.set(i64::from(self.publisher.blocked().is_some()));
        self.check_session();
    }

    /// Follows the configuration and the broker's Secret: at once, unless that ends the channel, or another ordering key must
    /// count for all that is held. Then what runs may end first.
    fn follow(&mut self) {
        let config = self.configs.borrow_and_update().clone();
        let same_broker = *self.accesses.borrow_and_update() == *self.access.borrow();
        let same_key = !config::orders_anew(&self.config, &config);
        let stays = same_broker && same_key && config.queue.name == self.config.queue.name;
        // Calls may outlive their channel, and their key with them.
        let nothing_runs = self.session.is_none() && (same_key || !self.engine.snapshot().works);
        if stays || nothing_runs {
            return self.configure(config);
        }
        if self.leaving.is_none() {
            tracing::info!(queue = %config.queue.name, same_broker, same_key, "the queue, the way to it or the ordering key changes: what runs may end first");
            self.leaving = Some(self.now() + self.fixed.drain_timeout);
            // Until then everything stays as it was, the queues of retries and of dead messages too.
            let settings = config::leaving(&self.config, &config, &self.fixed);
            self.step(Event::Configured(Box::new(settings)));
        }
    }

    /// Turns to the queue, the broker and the ordering key that are wanted, once the channel holds nothing here any more.
    fn leave(&mut self) {
        let Some(until) = self.leaving else { return };
        let snapshot = self.engine.snapshot();
        let config = self.configs.borrow().clone();
        let holds = self.session.is_some() && (snapshot.unsettled > 0 || snapshot.prefetch > 0);
        let works = snapshot.works && config::orders_anew(&self.config, &config);
        if (holds || works) && self.now() < until {
            return;
        }
        self.configure(config);
    }

    /// Does as a configuration says from now on.
    fn configure(&mut self, config: Arc<SidecarConfig>) {
        if let Some(until) = self.leaving.take() {
            self.step(Event::Leaving { over: self.now() >= until });
        }
        let access = self.accesses.borrow().clone();
        if access != *self.access.borrow() {
            self.link_down("the broker's Secret or its vhost has changed");
            self.access.send_replace(access);
        }
        if config.queue.name != self.config.queue.name {
            tracing::info!(queue = %config.queue.name, "another queue is consumed from now on");
            self.lose_session("the configuration names another queue");
            self.metrics.follow(&config.queue.name);
        }
        if config::orders_anew(&self.config, &config) {
            self.give_up_held();
        }
        match self.pool.endpoint().with_path(&config.handler.path) {
            Ok(endpoint) => self.pool.set_endpoint(endpoint),
            Err(error) => tracing::error!(%error, "the handler's path stays as it was"),
        }
        let settings = config::settings(&config, &self.fixed);
        self.constant = Constant::new(&config.queue.name, settings.ladder.attempts());
        self.config = config;
        self.step(Event::Configured(Box::new(settings)));
    }

    /// Hands back what has not ended in a drain's time, to come again by the ordering key that counts from now on.
    fn give_up_held(&mut self) {
        if self.engine.snapshot().unsettled > 0
            && let Some(Session { generation, .. }) = self.session
        {
            self.hand_back(generation);
            self.step(Event::Lost { generation });
        }
    }

    fn link_changed(&mut self, state: &LinkState) {
        match state {
            LinkState::Up(link) => self.link_up(link),
            LinkState::Connecting => {}
            LinkState::Down(error) => {
                self.link_down("the connection was lost");
                if let BrokerError::Unreadable { .. } = **error {
                    self.step(Event::Unreadable);
                }
            }
        }
    }

    fn arrived(&mut self, arrival: Arrival) {
        let Some(session) = &self.session else { return };
        let generation = session.generation;
        match arrival {
            Arrival::Cancelled => self.step(Event::Unsubscribed { generation }),
            Arrival::Lost(reason) => self.lose_session(&reason),
            Arrival::Message(delivery) => {
                let id = DeliveryId { generation, tag: delivery.delivery_tag };
                let message = Message::from_delivery(*delivery, &self.config.queue.name);
                self.count(&message);
                let incoming = Incoming {
                    id,
                    attempts: message.attempts,
                    redelivered: message.redelivered,
                    counted: message.delivery_count().is_some_and(|count| count > 0),
                    identity: message.identity(),
                    key: self
                        .config
                        .consumer
                        .ordering_key
                        .as_deref()
                        .and_then(|name| message.ordering_key(name)),
                    oversized: self.oversized(&message),
                };
                self.messages.insert(id, Arc::new(message));
                self.step(Event::Delivered(incoming));
            }
        }
    }

    /// The body's size, if the handler does not take so much.
    fn oversized(&self, message: &Message) -> Option<u64> {
        let size = message.body.len() as u64;
        self.config.handler.max_body_bytes.filter(|most| size > *most).map(|_| size)
    }

    fn count(&self, message: &Message) {
        self.metrics.deliveries.inc();
        if message.redelivered {
            self.metrics.redeliveries.inc();
        }
        // A quorum queue keeps every message.
        if self.config.queue.queue_type == QueueType::Classic && message.is_transient() {
            self.metrics.transient.inc();
        }
        if message.id().is_none() {
            self.metrics.without_id.inc();
        }
    }

    /// Acknowledgements are with the broker when it has answered once more; then the connections may go.
    async fn goodbye(mut self) {
        if let Some(session) = self.session.take() {
            crate::amqp::session::close(session).await;
        }
        if let Some(closed) = self.opening.closed() {
            let _ = closed.await;
        }
        for waiting in self.drains.drain(..) {
            // Cut off before the drain's end. Whoever asked may be gone.
            let _ = waiting.send(false);
        }
        // Each has its own time limit, and the flush above has waited for the same broker.
        while self.drained.join_next().await.is_some() {}
        if let Some(spans) = self.spans.take() {
            spans.finish().await;
        }
        tracing::info!("the sidecar ends");
    }
}
