//! One broker: a connection, the Queues that are kept on it, and probes of their depth.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use warren_broker::connect::ConnectOptions;
use warren_broker::declare::{self, DeclareError, QueueDepth};
use warren_broker::lapin::Channel;
use warren_broker::release::{self, Release};
use warren_broker::supervisor::{Link, LinkState, Supervisor};
use warren_broker::topology::QueuePlan;
use warren_broker::{BrokerAccess, BrokerError, Category};

use super::aside::Aside;
use super::channels::Channels;
use super::entries::{Due, Entries};
use super::host::{Host, Prober};
use super::link::{put_back, take};
use super::loss::MOMENT;
use super::misses::Misses;
use super::pace::{Pace, patience};
use super::running::Running;
use super::schedule::interval;
use super::scopes::Scopes;
use super::work::{Patience, carry_out, in_time, of_main};
use super::{Key, LaneOptions, Order, Outcome, Past};
use crate::locked::locked;
use crate::{problem, tick};

/// Depth probes of a lane that are waited for at once, those that wait for their turn included.
const PROBES_AT_ONCE: usize = 24;
/// How long a broker may take to say which release it is.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that is left for the answer to a probe, after its turn has come.
const ANSWERING: Duration = Duration::from_millis(250);
/// How long the answer to a look is listened for, whether or not anybody still waits for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Channels that are used again.
type Pool = Arc<Mutex<Channels<Channel>>>;

/// One broker. Dropping it closes its connection.
#[derive(Debug)]
pub struct Lane {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    supervisor: Supervisor,
    link: watch::Receiver<LinkState>,
    access: BrokerAccess,
    options: LaneOptions,
    entries: Mutex<Entries>,
    changed: Notify,
    channels: Pool,
    release: Aside<Release>,
    probes: Semaphore,
    misses: Mutex<Misses>,
    host: Arc<Host>,
}

impl Lane {
    /// Starts connecting.
    pub(super) fn spawn(
        access: BrokerAccess,
        options: LaneOptions,
        host: Arc<Host>,
        scopes: Arc<Scopes>,
    ) -> Self {
        // Another access is another lane: this one never changes.
        let (_, fixed) = watch::channel(Arc::new(access.clone()));
        let connect = ConnectOptions::named(&options.connection_name).with_least_frames();
        let supervisor = Supervisor::spawn(fixed, connect);
        let shared = Arc::new(Shared {
            link: supervisor.state(),
            supervisor,
            access,
            options,
            entries: Mutex::new(Entries::on(host.clone(), scopes)),
            changed: Notify::new(),
            channels: Arc::default(),
            release: Aside::default(),
            probes: Semaphore::new(PROBES_AT_ONCE),
            misses: Mutex::default(),
            host,
        });
        let task = tokio::spawn(run(shared.clone()));
        Self { shared, task }
    }

    /// How the broker is reached.
    pub(super) fn access(&self) -> &BrokerAccess {
        &self.shared.access
    }

    /// Whether there is a connection.
    pub fn is_up(&self) -> bool {
        self.shared.link.borrow().link().is_some()
    }

    /// Takes an order in; gives what has become of it. `there`: whether the main queue was declared here before, and would be missed.
    pub(super) fn order(&self, key: &Key, order: Order, past: Past, there: bool) -> Option<Outcome> {
        let down = match &*self.shared.link.borrow() {
            LinkState::Down(error) => Some(problem::unreachable(error)),
            LinkState::Connecting | LinkState::Up(_) => None,
        };
        let mut entries = locked(&self.shared.entries);
        let (is_new, now) = (entries.order_of(key).is_none(), Instant::now());
        let outcome = entries.order(key, order, down, now);
        entries.expect(key, there);
        if is_new && (there || past != Past::None) {
            entries.unseen(key, now);
        }
        drop(entries);
        self.shared.changed.notify_one();
        outcome
    }

    pub(super) fn forget(&self, key: &Key) {
        locked(&self.shared.entries).forget(key);
    }

    /// Whether this order of a Queue stands.
    pub(super) fn has(&self, key: &Key, order: &Order) -> bool {
        locked(&self.shared.entries).order_of(key) == Some(order)
    }

    pub(super) fn carries_out(&self, key: &Key) -> bool {
        locked(&self.shared.entries).carries_out(key)
    }

    /// Whether the main queue of a Queue was gone, and is declared again; told once.
    pub(super) fn take_recreated(&self, key: &Key) -> bool {
        locked(&self.shared.entries).take_recreated(key)
    }

    /// Takes a place among those that probe this lane's broker; `former` is kept where it is one.
    pub fn prober(&self, former: Option<Prober>) -> Prober {
        self.shared.host.prober(former)
    }

    /// How many Workers' queues are probed on this lane's broker.
    pub(super) fn probers(&self) -> usize {
        self.shared.host.probers()
    }

    /// How many ready messages a queue has, asked for `within` a time, the wait for a turn included. One that is missing, and was
    /// there, is declared again a second later.
    ///
    /// # Errors
    /// The broker is not connected, did not answer in time, or knows no such queue.
    pub async fn depth(&self, queue: &str, within: Duration) -> Result<QueueDepth, BrokerError> {
        let timeout = BrokerError::TimedOut { what: "queue depth", seconds: within.as_secs() };
        let depth =
            tokio::time::timeout(within, self.shared.depth(queue, within)).await.unwrap_or(Err(timeout));
        if depth.as_ref().is_err_and(|error| error.says_no_queue(queue)) {
            locked(&self.shared.entries).missing(queue, Instant::now());
            self.shared.changed.notify_one();
        }
        depth
    }

    /// The time between two drift checks of a Queue, before jitter.
    pub(super) fn drift_check(&self) -> Duration {
        interval(self.shared.options.drift_check, self.shared.host.queues())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn link(&self) -> Result<Link, BrokerError> {
        match &*self.link.borrow() {
            LinkState::Up(link) => Ok(link.clone()),
            LinkState::Down(error) => Err(error.as_ref().clone()),
            LinkState::Connecting => Err(BrokerError::closed("connecting for the first time")),
        }
    }

    async fn depth(&self, queue: &str, within: Duration) -> Result<QueueDepth, BrokerError> {
        let until = Instant::now() + within;
        if let Some(error) = locked(&self.misses).of(queue, Instant::now()) {
            return Err(error);
        }
        // The semaphore is never closed.
        let _permit = self.probes.acquire().await;
        // One that is down takes no turn from the others.
        self.link()?;
        let now = Instant::now();
        let late = BrokerError::TimedOut { what: "turn to ask", seconds: within.as_secs() };
        // A turn whose answer nobody waits for is lost to all.
        let patience = until.saturating_duration_since(now).saturating_sub(ANSWERING);
        let turn = locked(&self.host.turns).next(tick::before(now), patience).ok_or(late)?;
        if turn > now {
            tokio::time::sleep_until(turn).await;
        }
        let answer = look(&self.link()?, &self.channels, queue).await;
        locked(&self.misses).answered(queue, &answer, Instant::now());
        answer
    }

    /// Whether a main queue that was there is gone. Where that is not known for now, it is not declared either, which would
    /// hide the loss; what the broker refuses is told better by the declaration.
    async fn is_gone(&self, link: &Link, channels: &Pool, due: &Due) -> Result<bool, DeclareError> {
        let order = &due.order;
        let look = async { look(link, channels, &order.main).await.map_err(|error| of_main(order, error)) };
        let gone = match in_time(order, look).await {
            Ok(_) => false,
            Err(DeclareError { error, .. }) if error.says_no_queue(&order.main) => true,
            Err(failed) if failed.error.category() == Category::Retryable => return Err(failed),
            Err(_) => return Ok(false),
        };
        locked(&self.entries).looked(&due.key, gone, Instant::now());
        Ok(gone)
    }

    /// The broker's release, once that is known: the next check tells it.
    fn release(&self, generation: u64) -> Option<Release> {
        self.release.answer(generation, || {
            let access = self.access.clone();
            async move { release::ask(&access, RELEASE_TIMEOUT).await }
        })
    }

    /// Carries out what is due, on a connection of its own if it may end one.
    async fn carry_out(&self, link: &Link, due: &mut Due) -> Result<Outcome, DeclareError> {
        if !due.apart {
            return self.carry_out_on(link, &self.channels, due).await;
        }
        let another = link.another().await.map_err(|error| of_main(&due.order, error))?;
        self.carry_out_on(another.link(), &Pool::default(), due).await
    }

    /// The same on a given connection. A main queue that is gone is told of where that takes longer than a moment.
    async fn carry_out_on(
        &self,
        link: &Link,
        channels: &Pool,
        due: &mut Due,
    ) -> Result<Outcome, DeclareError> {
        if !due.there || !self.is_gone(link, channels, due).await? {
            return self.work(link, channels, due).await;
        }
        due.rest.missed(Instant::now());
        let key = due.key.clone();
        let mut work = Box::pin(self.work(link, channels, due));
        if let Ok(done) = tokio::time::timeout(MOMENT, &mut work).await {
            return done;
        }
        locked(&self.entries).still_gone(&key);
        work.await
    }

    /// Does what an order asks for, for as long as this process may write.
    async fn work(&self, link: &Link, channels: &Pool, due: &mut Due) -> Result<Outcome, DeclareError> {
        let Due { order, stands, age, rest, full, .. } = due;
        let patience = Patience {
            learned: *age >= self.options.sidecars_learn,
            held_back: self.options.held_back,
            stands,
        };
        let work = carry_out(link, channels, order, patience, (rest, *full));
        let done = self.options.leadership.fenced(work).await;
        let done = done.unwrap_or_else(|lost| Err(of_main(order, BrokerError::closed(lost.to_string()))));
        // Over the refusal of a channel that was given up the library ends the connection, and answers all that is asked on it so: what
        // is told, and what is passed over, may be another's.
        let may_be_anothers = match &done {
            Ok(outcome) => matches!(outcome, Outcome::Declared(_)),
            Err(failed) => failed.error.is_of_channel(),
        };
        if may_be_anothers && !link.connection.status().connected() {
            return Err(of_main(order, BrokerError::closed("the connection ended")));
        }
        let mut outcome = done?;
        if let Outcome::Declared(seen) = &mut outcome
            && order.topology.main().is_some_and(QueuePlan::has_consumer_timeout)
        {
            seen.release = self.release(link.generation);
        }
        Ok(outcome)
    }
}

/// Asks for a queue's depth on a channel that is used again, which changes nothing. It ends by its answer, also where nobody
/// waits for that any more: over a refusal on a channel that was dropped meanwhile the library ends the connection.
async fn look(link: &Link, channels: &Pool, queue: &str) -> Result<QueueDepth, BrokerError> {
    let (link, channels, queue) = (link.clone(), channels.clone(), queue.to_owned());
    let looking = tokio::spawn(tokio::time::timeout(ANSWER_TIMEOUT, async move {
        let pooled = take(&link, &channels).await?;
        let depth = declare::depth(&pooled.channel, &queue).await?;
        put_back(&link, &channels, pooled);
        Ok(depth)
    }));
    let timed_out = || BrokerError::TimedOut { what: "queue depth", seconds: ANSWER_TIMEOUT.as_secs() };
    match looking.await {
        Ok(looked) => looked.unwrap_or_else(|_| Err(timed_out())),
        Err(ended) => Err(BrokerError::closed(ended.to_string())),
    }
}

/// The lane's loop: follows the link and declares what is due.
async fn run(shared: Arc<Shared>) {
    let mut states = shared.supervisor.state();
    let mut running = Running::on(shared.host.clone());
    let mut generation = 0;
    let mut pace = Pace::default();
    let mut down: Option<(Instant, Arc<BrokerError>)> = None;
    states.mark_changed();
    loop {
        let link = shared.link().ok();
        let next = if link.is_some() && running.working() < pace.width() {
            locked(&shared.entries).first_due()
        } else {
            None
        };
        let news = down.as_ref().map(|(since, error)| *since + patience(error, generation > 0));
        tokio::select! {
            biased;
            changed = states.changed() => {
                if changed.is_err() {
                    return;
                }
                let state = states.borrow_and_update().clone();
                match state {
                    LinkState::Up(link) if link.generation != generation => {
                        generation = link.generation;
                        down = None;
                        locked(&shared.misses).connected();
                        // The broker may have come back empty.
                        locked(&shared.entries).all_due(Instant::now());
                    }
                    LinkState::Down(error) => {
                        pace.lost();
                        let since = down.map_or_else(Instant::now, |(since, _)| since);
                        down = Some((since, error));
                    }
                    LinkState::Up(_) | LinkState::Connecting => {}
                }
            }
            ended = running.next(), if !running.is_empty() => {
                let Some(ended) = ended else { continue };
                let (due, result): (Due, Result<Outcome, DeclareError>) = ended;
                match &result {
                    // What went wrong on a connection of its own says nothing of the others.
                    Err(error) if error.error.category() == Category::Retryable && due.apart => {}
                    Err(error) if error.error.category() == Category::Retryable => pace.lost(),
                    Err(_) | Ok(_) => pace.succeeded(),
                }
                locked(&shared.misses).declared(&due.order.main, &result);
                locked(&shared.entries).done(&due, result, shared.options.drift_check, Instant::now());
            }
            () = shared.changed.notified() => {}
            () = tokio::time::sleep_until(news.unwrap_or_else(Instant::now)), if news.is_some() => {
                if let Some((_, error)) = &mut down {
                    locked(&shared.entries).broker_is_down(&problem::unreachable(error), Instant::now());
                }
                // The next attempt brings the next error.
                down = None;
            }
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                let Some(link) = link else { continue };
                let due = locked(&shared.entries).take_due(Instant::now());
                if let Some(mut due) = due {
                    let shared = shared.clone();
                    running.push(Box::pin(async move {
                        let result = shared.carry_out(&link, &mut due).await;
                        (due, result)
                    }));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::Brokers;
    use super::*;
    use crate::leader::Leadership;
    use crate::queue::plan;

    fn brokers() -> Brokers {
        Brokers::new(LaneOptions {
            connection_name: "test".to_owned(),
            drift_check: Duration::from_secs(30),
            sidecars_learn: Duration::ZERO,
            held_back: Duration::ZERO,
            leadership: Leadership::none(),
        })
    }

    #[tokio::test]
    async fn a_queue_that_gets_or_loses_a_name_in_favour_of_another_scope_s_is_told_there() {
        let brokers = brokers();
        let [mut of_a, mut of_b] = ["a", "b"].map(|namespace| brokers.register(Some(namespace.to_owned())).1);
        let [older, younger] =
            ["a", "b"].map(|namespace| Key { namespace: namespace.to_owned(), name: "orders".to_owned() });
        let claim = |key, age| brokers.claim(key, age, "amqp://h/v", vec!["orders".to_owned()]);
        assert_eq!(claim(&younger, 2), None);
        assert_eq!(claim(&older, 1), None);
        assert_eq!(of_b.try_recv().ok(), Some((&younger).into()), "it has lost it");
        assert!(claim(&younger, 2).is_some());
        brokers.gone(&older);
        assert_eq!(of_b.try_recv().ok(), Some((&younger).into()), "it may have it");
        assert!(of_a.try_recv().is_err());
    }

    #[tokio::test]
    async fn how_a_queue_was_reached_is_known_without_its_secret_until_its_names_are_given_up() {
        let brokers = brokers();
        let access = BrokerAccess::from_uri("amqp://u:p@127.0.0.1:1/a").unwrap();
        let key = Key { namespace: "shop".to_owned(), name: "orders".to_owned() };
        let order = plan::keep(&warren_api::Queue::new("orders", Default::default()), &access.address());
        brokers.assign(&key, &access, order, Past::None);
        brokers.lapse(&key);
        assert!(brokers.lane_of(&key).is_none());
        brokers.lapse(&key);
        assert_eq!(brokers.access_of(&key), Some(access));
        brokers.gone(&key);
        assert_eq!(brokers.access_of(&key), None);
    }

    #[tokio::test]
    async fn a_lane_that_is_probed_when_its_last_queue_leaves_goes_with_the_next_sweep() {
        let brokers = brokers();
        let key = Key { namespace: "shop".to_owned(), name: "orders".to_owned() };
        let [old, new] = ["old", "new"]
            .map(|user| BrokerAccess::from_uri(&format!("amqp://{user}:p@127.0.0.1:1/")).unwrap());
        let order = || plan::keep(&warren_api::Queue::new("orders", Default::default()), &old.address());
        brokers.assign(&key, &old, order(), Past::None);
        let probed = brokers.lane_of(&key).unwrap();
        brokers.assign(&key, &new, order(), Past::None);
        brokers.retain(None, &BTreeSet::from([key.clone()]));
        assert_eq!(brokers.connected(), (0, 2), "it must not go under a probe");
        drop(probed);
        brokers.retain(None, &BTreeSet::from([key]));
        assert_eq!(brokers.connected(), (0, 1));
    }

    #[tokio::test]
    async fn vhosts_of_one_broker_share_what_it_gets_of_checks_and_declarations() {
        let brokers = brokers();
        let keep = |vhost: &str, number: usize| {
            let access = BrokerAccess::from_uri(&format!("amqp://u:p@127.0.0.1:1/{vhost}")).unwrap();
            let key = Key { namespace: vhost.to_owned(), name: format!("orders-{number}") };
            let order = plan::keep(&warren_api::Queue::new(&key.name, Default::default()), &access.address());
            brokers.assign(&key, &access, order, Past::None);
            key
        };
        let keys: Vec<_> = (0..6_000).map(|number| keep(["a", "b"][number % 2], number)).collect();
        assert_eq!(brokers.drift_check(), Duration::from_secs(60), "6,000 at 100 a second");
        let [a, b] = [&keys[0], &keys[1]].map(|key| brokers.lane_of(key).unwrap());
        assert!(!Arc::ptr_eq(&a, &b) && Arc::ptr_eq(&a.shared.host, &b.shared.host));
        drop((a, b));
        keys.iter().skip(1).step_by(2).for_each(|key| brokers.forget(key));
        assert_eq!((brokers.connected(), brokers.drift_check()), ((0, 1), Duration::from_secs(30)));
    }

    #[tokio::test]
    async fn those_who_probe_are_counted_on_each_broker_for_itself() {
        let brokers = brokers();
        let lane = |uri| brokers.lane(&BrokerAccess::from_uri(uri).unwrap());
        let (one, other) = (lane("amqp://u:p@127.0.0.1:1/a"), lane("amqp://u:p@127.0.0.1:2/a"));
        let another_vhost = lane("amqp://u:p@127.0.0.1:1/b");
        let first = one.prober(None);
        let second = one.prober(None);
        let second = one.prober(Some(second));
        assert_eq!((one.probers(), first.all(), other.probers()), (2, 2, 0));
        assert_eq!(another_vhost.probers(), 2);
        let second = other.prober(Some(second));
        assert_eq!((one.probers(), other.probers(), second.all()), (1, 1, 1));
        drop((first, second));
        assert_eq!((one.probers(), other.probers()), (0, 0));
    }
}
