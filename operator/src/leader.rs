//! Leader election by a Lease: one replica works, the others stand by.
//!
//! **Guarantee**: a replica whose Lease was not renewed in time writes nothing any more, even when it was frozen meanwhile:
//! [`Leadership::guard`] refuses its requests to the API server, and [`Leadership::fenced`] ends its work on brokers, before it
//! notices by itself. Expiry is judged by a monotonic clock from when a
//! renewal was *seen*, never by comparing clocks of two machines, and each update is guarded by the resource version.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::client::Body;
use kube::{Api, Client, ResourceExt};
use tokio::time::Instant;

/// The Lease's name.
pub const LEASE: &str = "warren-operator";
/// Where the API has Leases.
const LEASES: &str = "/apis/coordination.k8s.io/";
/// How long a Lease holds after its last renewal. A standby sees a crash up to two looks later.
const DURATION: Duration = Duration::from_secs(12);
/// How long after its last renewal a leader still writes: well below the duration.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often a leader renews.
const RENEW: Duration = Duration::from_secs(2);
/// How often a standby looks.
const LOOK: Duration = Duration::from_secs(1);
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(5);

/// Whether this process may write.
#[derive(Clone, Debug)]
pub struct Leadership {
    epoch: Instant,
    /// Milliseconds after `epoch` until which it may.
    until: Arc<AtomicU64>,
    writes: Arc<AtomicU64>,
}

impl Leadership {
    /// Of a process that does not lead yet.
    pub fn none() -> Self {
        Self { epoch: Instant::now(), until: Arc::default(), writes: Arc::default() }
    }

    /// Leads for ever: the only replica.
    pub fn permanent(&self) {
        self.until.store(u64::MAX, Ordering::Release);
    }

    fn extend(&self, renewed: Instant) {
        let until = (renewed + DEADLINE).duration_since(self.epoch).as_millis();
        self.until.store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Release);
    }

    fn end(&self) {
        self.until.store(0, Ordering::Release);
    }

    /// Whether this process may write now.
    pub fn may_write(&self) -> bool {
        self.epoch.elapsed().as_millis() < u128::from(self.until.load(Ordering::Acquire))
    }

    /// How long this process may still write if nothing is renewed.
    fn left(&self) -> Duration {
        let until = Duration::from_millis(self.until.load(Ordering::Acquire));
        until.saturating_sub(self.epoch.elapsed())
    }

    /// Does work for as long as this process may write: it is asked before every step, and the work is dropped at the moment
    /// when it may no more, well before another replica leads.
    ///
    /// # Errors
    /// This process does not lead, or did not until the end of the work.
    pub async fn fenced<T>(&self, work: impl Future<Output = T>) -> Result<T, NotLeading> {
        let mut work = std::pin::pin!(work);
        let mut lost = std::pin::pin!(async {
            while !self.left().is_zero() {
                tokio::time::sleep(self.left()).await;
            }
        });
        std::future::poll_fn(|context| {
            if !self.may_write() || lost.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(NotLeading));
            }
            work.as_mut().poll(context).map(Ok)
        })
        .await
    }

    /// Requests so far that changed something, Leases apart.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Lets a request to the API server pass, or refuses it: writes are the leader's, except to the Lease itself.
    ///
    /// # Errors
    /// This process does not lead.
    pub fn guard(&self, request: http::Request<Body>) -> Result<http::Request<Body>, NotLeading> {
        let reads = request.method() == http::Method::GET;
        // A path may hold the word otherwise, such as a Queue of that name.
        if reads || request.uri().path().starts_with(LEASES) {
            return Ok(request);
        }
        if !self.may_write() {
            return Err(NotLeading);
        }
        self.writes.fetch_add(1, Ordering::Relaxed);
        Ok(request)
    }
}

/// A write of a process that does not lead.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("this replica does not lead, so it writes nothing")]
pub struct NotLeading;

/// Whether to take a Lease that has not changed for `unchanged`, or to make one where there has been none for as long.
fn may_take(spec: Option<&LeaseSpec>, unchanged: Duration, me: &str) -> bool {
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref());
    let duration = match (spec, holder) {
        // The holder of one that was deleted makes it again.
        (None, _) => DURATION,
        (Some(_), None | Some("")) => Duration::ZERO,
        (Some(_), Some(holder)) if holder == me => Duration::ZERO,
        (Some(spec), Some(_)) => {
            Duration::from_secs(u64::from(spec.lease_duration_seconds.unwrap_or(0).max(0).unsigned_abs()))
        }
    };
    unchanged >= duration
}

/// The Lease as `me` holds it from `now` on.
fn taken(former: &LeaseSpec, me: &str, now: Timestamp) -> LeaseSpec {
    let mine = former.holder_identity.as_deref() == Some(me);
    let transitions = former.lease_transitions.unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: if mine { former.acquire_time.clone() } else { Some(MicroTime(now)) },
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if mine { transitions } else { transitions.saturating_add(1) }),
        ..former.clone()
    }
}

/// Takes part in the election.
pub struct Elector {
    leases: Api<Lease>,
    identity: String,
    leadership: Leadership,
}

impl Elector {
    /// Takes part in the election in `namespace` as `identity`, which no other living process has.
    pub fn new(client: Client, namespace: &str, identity: String, leadership: Leadership) -> Self {
        Self { leases: Api::namespaced(client, namespace), identity, leadership }
    }

    /// Waits until this process leads; gives the Lease.
    pub async fn acquire(&self) -> Lease {
        let mut seen: Option<(Option<String>, Instant)> = None;
        loop {
            match within(REQUEST, self.try_acquire(&mut seen)).await {
                Ok(Some(lease)) => return lease,
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, lease = LEASE, "the Lease cannot be had yet"),
            }
            tokio::time::sleep(LOOK.mul_f64(rand::random_range(0.8..1.0))).await;
        }
    }

    async fn try_acquire(&self, seen: &mut Option<(Option<String>, Instant)>) -> kube::Result<Option<Lease>> {
        let begun = Instant::now();
        let found = self.leases.get_opt(LEASE).await?;
        let version = found.as_ref().and_then(ResourceExt::resource_version);
        let unchanged = match seen {
            Some((before, since)) if *before == version => since.elapsed(),
            // Who has never seen a Lease has no holder to wait for.
            None if found.is_none() => Duration::MAX,
            _ => {
                // What the answer tells of may have been written while it was waited for.
                *seen = Some((version, Instant::now()));
                Duration::ZERO
            }
        };
        let spec = found.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        if !may_take(spec.as_ref(), unchanged, &self.identity) {
            return Ok(None);
        }
        match self.hold(found).await {
            Ok(lease) => {
                self.leadership.extend(begun);
                Ok(Some(lease))
            }
            // Another was quicker.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes or renews a Lease, or makes it where there is none.
    async fn hold(&self, lease: Option<Lease>) -> kube::Result<Lease> {
        let former = lease.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let spec = Some(taken(&former, &self.identity, Timestamp::now()));
        match lease {
            Some(lease) => self.leases.replace(LEASE, &PostParams::default(), &Lease { spec, ..lease }).await,
            None => {
                let metadata = ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() };
                self.leases.create(&PostParams::default(), &Lease { metadata, spec }).await
            }
        }
    }

    /// Renews the Lease for as long as that works; returns when it is lost, which ends the process.
    pub async fn keep(&self, mut lease: Lease) {
        loop {
            tokio::time::sleep(RENEW.min(self.leadership.left())).await;
            let left = self.leadership.left();
            if left.is_zero() {
                break;
            }
            let begun = Instant::now();
            match within(left.min(REQUEST), self.renew(&lease)).await {
                Ok(Some(next)) => {
                    lease = next;
                    self.leadership.extend(begun);
                }
                Ok(None) => break,
                Err(error) => tracing::warn!(%error, "the Lease was not renewed, tried again"),
            }
        }
        self.leadership.end();
    }

    /// Renews it; none when another holds it.
    async fn renew(&self, lease: &Lease) -> kube::Result<Option<Lease>> {
        match self.hold(Some(lease.clone())).await {
            // A renewal whose answer was lost looks like this too, and so does one of a Lease that was deleted.
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => {
                let found = self.leases.get_opt(LEASE).await?;
                let holder = |lease: &Lease| lease.spec.as_ref()?.holder_identity.clone();
                if found.as_ref().is_some_and(|found| holder(found).as_ref() != Some(&self.identity)) {
                    return Ok(None);
                }
                self.hold(found).await.map(Some)
            }
            renewed => renewed.map(Some),
        }
    }

    /// Gives the Lease back, so that a standby leads within seconds. Whose Lease is lost has none, and is to end at once.
    pub async fn release(&self) {
        if !self.leadership.may_write() {
            return;
        }
        self.leadership.end();
        self.withdraw().await;
    }

    /// Gives the Lease back if it is this process's: the API server may have it that it is, though no answer has said so yet.
    pub async fn withdraw(&self) {
        let release = async {
            match self.give_back().await {
                // A renewal that was on its way when the work ended came between.
                Err(kube::Error::Api(status)) if status.code == 409 => self.give_back().await,
                given => given,
            }
        };
        if let Err(error) = within(REQUEST, release).await {
            tracing::warn!(%error, "the Lease was not given back");
        }
    }

    async fn give_back(&self) -> kube::Result<()> {
        let Some(mut lease) = self.leases.get_opt(LEASE).await? else { return Ok(()) };
        let Some(spec) = lease.spec.as_mut() else { return Ok(()) };
        if spec.holder_identity.as_deref() != Some(self.identity.as_str()) {
            return Ok(());
        }
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        self.leases.replace(LEASE, &PostParams::default(), &lease).await.map(drop)
    }
}

/// Bounds a request: one that hangs must not outlive the Lease.
async fn within<T>(limit: Duration, request: impl Future<Output = kube::Result<T>>) -> anyhow::Result<T> {
    Ok(tokio::time::timeout(limit, request).await??)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::json;

    use super::*;

    fn held(by: &str) -> LeaseSpec {
        taken(&LeaseSpec::default(), by, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_lease_that_is_renewed_is_left_alone_and_one_that_is_not_is_taken() {
        assert!(!may_take(Some(&held("a")), DURATION - LOOK, "b"));
        assert!(may_take(Some(&held("a")), DURATION, "b"));
    }

    #[test]
    fn a_released_lease_and_ones_own_are_taken_at_once() {
        let released = LeaseSpec { holder_identity: None, ..held("a") };
        assert!(may_take(Some(&released), Duration::ZERO, "b"));
        assert!(may_take(Some(&held("a")), Duration::ZERO, "a"));
    }

    /// An API server that keeps one Lease, or none.
    fn one_lease(kept: &Arc<Mutex<Option<Lease>>>) -> Client {
        slow_lease(kept, Duration::ZERO)
    }

    /// The same, which says so late what it did at once.
    fn slow_lease(kept: &Arc<Mutex<Option<Lease>>>, late: Duration) -> Client {
        let kept = kept.clone();
        let server = tower::util::service_fn(move |request: http::Request<Body>| {
            let kept = kept.clone();
            async move {
                let reads = request.method() == http::Method::GET;
                let sent = request.into_body().collect_bytes().await.unwrap();
                let (code, answer) = {
                    let mut kept = kept.lock().unwrap();
                    let status = |code: u16, reason| (code, json!({"code": code, "reason": reason}));
                    if reads {
                        kept.as_ref().map_or(status(404, "NotFound"), |lease| (200, json!(lease)))
                    } else {
                        let mut sent: Lease = serde_json::from_slice(&sent).unwrap();
                        let current = kept.as_ref().and_then(ResourceExt::resource_version);
                        if sent.resource_version() == current {
                            sent.metadata.resource_version = Some(rand::random::<u64>().to_string());
                            *kept = Some(sent.clone());
                            (200, json!(sent))
                        } else {
                            status(409, "Conflict")
                        }
                    }
                };
                tokio::time::sleep(late).await;
                let answer =
                    http::Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, std::convert::Infallible>(answer.unwrap())
            }
        });
        Client::new(server, "warren")
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_was_deleted_is_its_holder_s_to_make_again_before_a_standby_may() {
        let kept = Arc::default();
        let elector =
            |who: &str| Elector::new(one_lease(&kept), "warren", who.to_owned(), Leadership::none());
        let (holder, standby, mut seen) = (elector("a"), elector("b"), None);
        let lease = holder.try_acquire(&mut None).await.unwrap().unwrap();
        assert_eq!(standby.try_acquire(&mut seen).await.unwrap(), None);
        *kept.lock().unwrap() = None;
        assert_eq!(standby.try_acquire(&mut seen).await.unwrap(), None, "the holder does not know yet");
        let lease = holder.renew(&lease).await.unwrap().unwrap();
        assert_eq!(kept.lock().unwrap().as_ref(), Some(&lease));
        assert_eq!(standby.try_acquire(&mut seen).await.unwrap(), None);
        *kept.lock().unwrap() = None;
        assert_eq!(standby.try_acquire(&mut seen).await.unwrap(), None);
        tokio::time::advance(DURATION).await;
        assert!(standby.try_acquire(&mut seen).await.unwrap().is_some(), "the holder is gone");
        assert_eq!(holder.renew(&lease).await.unwrap(), None);
    }

    #[test]
    fn transitions_count_changes_of_holder_alone() {
        let first = held("a");
        assert_eq!(first.lease_transitions, Some(1));
        assert_eq!(taken(&first, "a", Timestamp::UNIX_EPOCH).lease_transitions, Some(1));
        assert_eq!(taken(&first, "b", Timestamp::UNIX_EPOCH).lease_transitions, Some(2));
    }

    fn request(method: &str, path: &str) -> http::Request<Body> {
        http::Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
    }

    #[test]
    fn who_does_not_lead_reads_and_writes_nothing_but_the_lease() {
        let leadership = Leadership::none();
        assert!(leadership.guard(request("GET", "/api/v1/pods")).is_ok());
        assert!(
            leadership.guard(request("PUT", "/apis/coordination.k8s.io/v1/namespaces/w/leases/x")).is_ok()
        );
        assert!(leadership.guard(request("PATCH", "/apis/apps/v1/namespaces/n/deployments/d")).is_err());
        let queue = "/apis/warren.dev/v1alpha1/namespaces/n/queues/leases";
        assert!(leadership.guard(request("PATCH", queue)).is_err(), "only its name says so");
        leadership.permanent();
        assert!(leadership.guard(request("PATCH", "/apis/apps/v1/namespaces/n/deployments/d")).is_ok());
        assert_eq!(leadership.writes(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn work_goes_on_while_the_lease_is_renewed_and_ends_when_it_is_not() {
        let leadership = Leadership::none();
        assert!(leadership.fenced(std::future::ready(())).await.is_err(), "before it leads");
        leadership.extend(Instant::now());
        let (start, renewed) = (Instant::now(), leadership.clone());
        let renewals = async move {
            for _ in 0..10 {
                tokio::time::sleep(RENEW).await;
                renewed.extend(Instant::now());
            }
        };
        let work = tokio::time::sleep(RENEW * 10);
        let (worked, ()) = tokio::join!(leadership.fenced(work), renewals);
        assert!(worked.is_ok());
        assert!(leadership.fenced(std::future::pending::<()>()).await.is_err());
        let ended = start.elapsed();
        assert!(ended >= RENEW * 10 + DEADLINE && ended < RENEW * 10 + DURATION, "{ended:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn work_takes_no_further_step_once_the_lease_is_given_back() {
        let leadership = Leadership::none();
        leadership.permanent();
        let (steps, mut next) = tokio::sync::mpsc::unbounded_channel::<()>();
        let taken = AtomicU64::new(0);
        let work = leadership.fenced(async {
            while next.recv().await.is_some() {
                taken.fetch_add(1, Ordering::Relaxed);
            }
        });
        let rest = async {
            steps.send(()).unwrap();
            while taken.load(Ordering::Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
            leadership.end();
            steps.send(()).unwrap();
        };
        let (worked, ()) = tokio::join!(work, rest);
        assert!(worked.is_err());
        assert_eq!(taken.into_inner(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_whose_api_server_hangs_has_given_up_and_may_end_by_its_deadline() {
        let hangs = tower::util::service_fn(|_: http::Request<Body>| async {
            std::future::pending::<Result<http::Response<Body>, std::convert::Infallible>>().await
        });
        let leadership = Leadership::none();
        let elector =
            Elector::new(Client::new(hangs, "warren"), "warren", "a".to_owned(), leadership.clone());
        leadership.extend(Instant::now());
        let start = Instant::now();
        elector.keep(Lease::default()).await;
        elector.release().await;
        assert!(start.elapsed() <= DEADLINE + Duration::from_millis(10), "{:?}", start.elapsed());
        assert!(!leadership.may_write());
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_was_frozen_past_its_deadline_writes_nothing() {
        let leadership = Leadership::none();
        leadership.extend(Instant::now());
        assert!(leadership.may_write());
        tokio::time::advance(DEADLINE).await;
        assert!(!leadership.may_write());
    }

    #[test]
    fn a_renewal_says_since_when_the_holder_leads() {
        let renewed = taken(&held("a"), "a", Timestamp::MAX);
        assert_eq!(renewed.acquire_time, Some(MicroTime(Timestamp::UNIX_EPOCH)));
        assert_eq!(renewed.renew_time, Some(MicroTime(Timestamp::MAX)));
        assert_eq!(taken(&renewed, "b", Timestamp::MAX).acquire_time, Some(MicroTime(Timestamp::MAX)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_counts_its_time_from_before_it_asked_and_a_standby_from_the_answer() {
        let (kept, late) = (Arc::default(), Duration::from_secs(4));
        let leader = Elector::new(slow_lease(&kept, late), "warren", "a".to_owned(), Leadership::none());
        let (begun, lease) = (Instant::now(), leader.try_acquire(&mut None).await.unwrap().unwrap());
        // It was asked whether there is a Lease, and then made one.
        assert_eq!((begun.elapsed(), leader.leadership.left()), (late * 2, DEADLINE - late * 2));

        let mut seen = None;
        let standby = Elector::new(slow_lease(&kept, late), "warren", "b".to_owned(), Leadership::none());
        assert_eq!(standby.try_acquire(&mut seen).await.unwrap(), None);
        tokio::time::advance(DURATION - late - Duration::from_millis(1)).await;
        // The holder may have renewed it while the first answer was on its way.
        assert_eq!(standby.try_acquire(&mut seen).await.unwrap(), None);
        assert!(standby.try_acquire(&mut seen).await.unwrap().is_some());

        leader.leadership.extend(Instant::now());
        *kept.lock().unwrap() = Some(lease.clone());
        let renewed = Instant::now() + RENEW;
        assert!(
            Box::pin(within(RENEW + late + Duration::from_millis(1), async {
                leader.keep(lease).await;
                Ok(())
            }))
            .await
            .is_err()
        );
        assert_eq!(leader.leadership.left(), DEADLINE - renewed.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_gives_its_own_lease_back_and_leaves_that_of_another_alone() {
        let kept = Arc::default();
        let elector = |who: &str| {
            let leadership = Leadership::none();
            leadership.permanent();
            Elector::new(one_lease(&kept), "warren", who.to_owned(), leadership)
        };
        let (holder, other) = (elector("a"), elector("b"));
        holder.try_acquire(&mut None).await.unwrap().unwrap();
        let held = kept.lock().unwrap().clone();
        other.release().await;
        assert_eq!(*kept.lock().unwrap(), held);
        holder.release().await;
        assert!(!holder.leadership.may_write());
        assert!(other.try_acquire(&mut None).await.unwrap().is_some(), "nobody is to be waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_given_back_also_where_a_renewal_comes_between() {
        let (kept, leadership) = (Arc::default(), Leadership::none());
        leadership.permanent();
        let server = slow_lease(&kept, Duration::from_secs(1));
        let holder = Elector::new(server, "warren", "a".to_owned(), leadership);
        holder.try_acquire(&mut None).await.unwrap().unwrap();
        let renewal = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            kept.lock().unwrap().as_mut().unwrap().metadata.resource_version = Some("renewed".to_owned());
        };
        tokio::join!(holder.release(), renewal);
        let spec = kept.lock().unwrap().clone().unwrap().spec.unwrap();
        assert_eq!(spec.holder_identity, None);
    }
}
