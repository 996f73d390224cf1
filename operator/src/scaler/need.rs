//! What a load needs, in pods. Pure.
//!
//! A pod carries `calls at once / seconds per message` messages a second. Three needs follow from that:
//!
//! - **A burst** is to be cleared within a share of the target wait. Pods that have to start first take their start-up time
//!   out of it, so that more of them are asked for, in one step; what those that run do meanwhile is taken off.
//! - **A load that grows slowly** gets what arrives, and one pod more at least, but only when the queue has grown to a share
//!   of the target wait. The queue tells more exactly than any estimate of arrivals whether the pods suffice: planning with
//!   a margin instead costs small Workers a whole pod.
//! - **What lasts** is what arrived over the stabilisation time, on average. That a number of pods proved too few for it is
//!   remembered, so that a load between two whole numbers of pods changes them rarely.

use super::decide::{BLIND_SECONDS, long_work};
use super::history::{BY_CHANCE, History, Lasting, TOO_FEW_SECONDS, TooMuch};
use super::inputs::{Inputs, Spec};

/// Share of a pod's capacity that is planned for: start, end and the way to the broker take some.
const UTILISATION: f64 = 0.95;
/// Seconds per message before anything is measured: long enough that the first step is the only one, for most calls.
const ASSUMED_SERVICE_SECONDS: f64 = 2.0;
/// Share of the target wait that is left for clearing a burst of such messages, however long pods take to start.
const ASSUMED_CLEARING_SHARE: f64 = 0.5;
/// How the seconds per message are known.
const MEASURED: &str = "measured";
/// By how long the first call has run.
const SO_FAR: &str = "expected, none has ended";
/// So many times as long as the first call has run is what calls are expected to take: of what is known by its age alone three of
/// four end by then, and a pod too many costs less than a message that waits for a whole call.
const EXPECTED_OF_SO_FAR: f64 = 4.0;
/// Not at all.
const ASSUMED: &str = "assumed until measured";
/// Seconds from the request for a pod to its consuming, before any was seen to start.
const ASSUMED_STARTUP_SECONDS: f64 = 5.0;
/// A burst gets pods when they are missing by this factor: less is noise.
const SCALE_OUT_TOLERANCE: f64 = 1.1;
/// Share of the target wait within which a burst should begin, start-up included.
const BURST_SHARE: f64 = 0.33;
/// Share of what waits that has come within the last seconds, from which on it is a burst.
const SUDDEN_SHARE: f64 = 0.5;
/// A burst that asks for more than so many times the pods says nothing of the load that lasts.
const LARGE_BURST: f64 = 1.5;
/// Share of the target wait that is left for clearing a burst, however long pods take to start.
const LEAST_CLEARING_SHARE: f64 = 0.1;
/// The same for what the pods that are there, or on their way, would begin within so large a share of it.
const SMALL_BURST_SHARE: f64 = 0.7;
/// Share of the target wait that is left for clearing that.
const SMALL_CLEARING_SHARE: f64 = 0.15;
/// Most that is left where bursts come often, and least for one of a row for which pods are kept.
const MOST_CLEARING_SHARE: f64 = 0.5;
/// Seconds that pods of a burst stay for when its last message has begun.
const LETTING_GO_SECONDS: f64 = 3.0;
/// Share of what arrives on average that pods are kept for between such bursts: they bring most of it, and get pods of their own.
const BETWEEN_BURSTS: f64 = 0.5;
/// So many times the largest of a row of bursts is still one of them.
const AS_BEFORE: f64 = 1.5;
/// Share of the target wait that messages may wait for before pods are added to a load that grows slowly.
const QUEUE_SHARE: f64 = 0.6;
/// What is added to it, over the number of pods: to a Worker of one pod a second one is dear.
const QUEUE_SHARE_OF_ONE: f64 = 0.3;
/// Share of their capacity that pods are kept at at most, however long messages may wait.
const HOTTEST: f64 = 1.1;
/// The same, however short messages may wait.
const COOLEST: f64 = 0.8;
/// Seconds' worth of messages that come early by chance now and then, for which pods are kept.
const CHANCE_SECONDS: f64 = 1.0;
/// Share of the pods' capacity from which on a load, and not a burst, shows that they are too few.
const LOADED: f64 = 0.7;

/// What the load needs.
#[derive(Debug)]
pub(super) struct Need {
    /// Pods, as a fraction, before limits: more than there are only where those are `short`.
    pub pods: f64,
    /// Pods, as a fraction, for what the load amounts to when a burst has passed.
    pub lasting: f64,
    /// The same without what waits of it.
    pub served: f64,
    /// Pods, as a fraction, for what arrives just now.
    pub arriving: f64,
    /// Messages that wait: ready, or delivered and not begun.
    pub backlog: f64,
    /// Seconds of a pod that a message takes.
    pub seconds: f64,
    /// Whether the pods that are there are too few.
    pub short: bool,
    /// Whether all pods that are allowed would be, if they were there.
    pub beyond: bool,
    /// A load that has shown that the pods are too few for it.
    pub too_much: Option<TooMuch>,
    /// The formula with its numbers.
    pub text: String,
}

/// The numbers that everything is made from.
struct Load<'a> {
    spec: &'a Spec,
    current: f64,
    in_flight: u64,
    /// Messages that wait: ready, or delivered and not begun.
    backlog: f64,
    service: f64,
    /// How that is known.
    known: &'static str,
    /// Pods for one message a second.
    per_rate: f64,
    /// Arrivals a second that are not still waiting.
    rate: f64,
    /// Seconds from the request for a pod to its consuming.
    startup: f64,
    /// Seconds since pods were asked for of which most are still on their way.
    waited: Option<f64>,
    /// Most pods that shorten anything.
    useful: f64,
    /// Pods that what there is to do needs at least: one, or a part of it.
    least: f64,
}

/// More pods than there are.
struct More {
    pods: f64,
    text: String,
    /// Whether that the pods were too few says something of the load that lasts.
    tells: bool,
}

impl Load<'_> {
    /// Within what there is to do; nonsense keeps the pods.
    fn sane(&self, pods: f64) -> f64 {
        if pods.is_finite() { pods.min(self.useful.max(self.current)).max(self.least) } else { self.current }
    }

    /// What the text of a formula adds where there is less to do than it asks for.
    fn cut(&self, pods: f64) -> String {
        match self.sane(pods).ceil() < pods.ceil() {
            true => format!("; more than {:.1} would shorten nothing", self.useful),
            false => String::new(),
        }
    }

    /// Seconds for clearing a burst that is to begin within a share of the target wait: what starting pods leaves of it, or a
    /// `least` share.
    fn clearing(&self, share: f64, least: f64) -> f64 {
        let target = self.spec.target_wait;
        (target * share - self.startup).max(target * least)
    }

    /// The least share of the target wait that is left for clearing bursts which come each `gap` seconds: so much that the pods
    /// that start, clear their part and are let go cost no more than pods that are kept and clear it within the target wait.
    fn clearing_share_where_often(&self, gap: f64) -> f64 {
        let beyond = (gap - self.spec.target_wait).max(f64::MIN_POSITIVE);
        ((self.startup + LETTING_GO_SECONDS) / beyond).clamp(LEAST_CLEARING_SHARE, MOST_CLEARING_SHARE)
    }

    /// Share of their capacity at which pods are kept at most: as hot as a queue takes ten minutes to grow to its share of the
    /// target wait, less what comes early by chance. The longer messages may wait, the less of that is seen.
    fn hottest(&self) -> f64 {
        let target = self.spec.target_wait;
        let slowly_grown = (1.0 + target * QUEUE_SHARE / TOO_FEW_SECONDS).min(HOTTEST);
        (slowly_grown - CHANCE_SECONDS / target).max(COOLEST)
    }

    /// Pods for so many calls at once, as busy as they may be.
    fn kept_for(&self, calls: f64) -> f64 {
        calls / self.spec.at_once() / self.hottest()
    }

    /// So many calls at once, which were too much for the pods that are there. The step out of a backlog is larger than the load:
    /// what all those pods would be no warmer for than the coolest that are kept was not shown to be too few.
    fn too_much(&self, calls: f64) -> TooMuch {
        let coolest = calls / self.spec.at_once() / COOLEST;
        TooMuch { calls, pods: coolest.ceil().max(self.current) as u32, at_once: self.spec.at_once() }
    }

    /// Pods that are kept for so many messages a second.
    fn kept(&self, rate: f64) -> f64 {
        let pods = self.kept_for(rate * self.service);
        if pods.is_finite() { pods.max(self.least) } else { self.current }
    }

    /// Seconds of a pod that a message takes.
    fn seconds(&self) -> f64 {
        self.service / self.spec.at_once()
    }

    fn per_message(&self) -> String {
        format!(
            "x {:.3} s per message ({}) / ({} at once x {UTILISATION:.2})",
            self.service, self.known, self.spec.concurrency
        )
    }
}

/// The need of what is waiting, running and arriving.
pub(super) fn need(history: &History, ready: u64, inputs: &Inputs, spec: &Spec, now: f64) -> Need {
    let sidecars = &inputs.sidecars;
    let at_once = spec.at_once();
    let in_flight = sidecars.in_flight.min(sidecars.unsettled);
    let begun_later = sidecars.unsettled.saturating_sub(in_flight).saturating_sub(sidecars.put_off);
    let backlog = ready.saturating_add(begun_later) as f64;
    let rate = history.arrival_rate(backlog, spec.target_wait);
    let expected = history.movement.seconds_of_the_first_call(now) * EXPECTED_OF_SO_FAR;
    let (service, known) = match history.service_seconds() {
        Some(seconds) => (seconds, MEASURED),
        None if expected > ASSUMED_SERVICE_SECONDS => (expected, SO_FAR),
        None => (ASSUMED_SERVICE_SECONDS, ASSUMED),
    };
    let per_rate = service / (at_once * UTILISATION);
    let startup = history.startup.seconds().unwrap_or(ASSUMED_STARTUP_SECONDS);
    let of_ending = if inputs.workload.replicas > 0 { sidecars.ending as f64 } else { 0.0 };
    let load = Load {
        spec,
        current: f64::from(inputs.workload.replicas),
        in_flight,
        backlog,
        known,
        service,
        per_rate,
        rate,
        startup,
        waited: history.startup.on_their_way(now),
        // A pod without a message of its own shortens nothing; some come until it has begun.
        // Nor does one for messages that others hold.
        useful: (((backlog + in_flight as f64) / at_once).ceil() + f64::from(sidecars.away))
            .min(f64::from(inputs.workload.replicas) + (ready as f64 / at_once).ceil())
            + rate * per_rate.min((startup + spec.target_wait) / at_once),
        // What an ending pod holds may come back: one pod stays for it.
        least: 1.0_f64.min(backlog + sidecars.unsettled as f64 + of_ending),
    };
    let lately = history.lasting_rate(spec.window(), now);
    // Sidecars that were there before know it, and say so as soon as one of them answers.
    let unasked = history.took_over() && sidecars.started > 0 && sidecars.scraped == 0;
    let more = match known {
        ASSUMED if unasked && history.seconds_unscraped(now) < BLIND_SECONDS => None,
        ASSUMED => assumed(&load),
        _ => more(&load, history, lately.rate, inputs, now),
    };
    let long_work = long_work(history, inputs, spec, now);
    let (lasting, lasting_text) = lasting(&load, history, lately, long_work, now);
    let served = load.kept((lately.rate - backlog / lately.over).max(0.0));
    let arriving = load.kept(history.rate());
    let seconds = load.seconds();
    // What all of them begin at once does not wait.
    let places = (f64::from(spec.max) * at_once - in_flight as f64).max(0.0);
    let beyond = known == MEASURED && (backlog - places) * seconds / f64::from(spec.max) > spec.target_wait;
    match more {
        Some(More { pods, text, tells }) => {
            let too_much = (tells && load.current > 0.0).then(|| load.too_much(lately.rate * service));
            Need { pods, lasting, served, arriving, backlog, seconds, short: true, beyond, too_much, text }
        }
        None => {
            let pods = lasting.min(load.current);
            let text = match pods.ceil() < lasting.ceil() {
                true => lasting_text + "; no more are added for that before messages wait for too long",
                false => lasting_text,
            };
            Need {
                pods,
                lasting,
                served,
                arriving,
                backlog,
                seconds,
                short: false,
                beyond,
                too_much: None,
                text,
            }
        }
    }
}

/// More pods by an assumed time a message, which leaves room enough: the backlog within what starting leaves of the target
/// wait.
fn assumed(load: &Load<'_>) -> Option<More> {
    let Load { backlog, rate, in_flight, .. } = *load;
    let seconds = load.clearing(1.0, ASSUMED_CLEARING_SHARE);
    let wanted = (rate + backlog / seconds) * load.per_rate;
    let pods = load.sane(wanted);
    let text = format!(
        "({} arriving + {backlog:.0} waiting / {seconds:.1} s) {}, {in_flight} running{}",
        per_second(rate),
        load.per_message(),
        load.cut(wanted)
    );
    (pods > load.current * SCALE_OUT_TOLERANCE).then_some(More { pods, text, tells: false })
}

/// More pods than there are, where those would let messages wait for too long.
fn more(load: &Load<'_>, history: &History, lasting_rate: f64, inputs: &Inputs, now: f64) -> Option<More> {
    let Load { backlog, current, in_flight, startup, waited, .. } = *load;
    let target = load.spec.target_wait;
    // Messages a second that a pod begins.
    let pace = 1.0 / (load.per_rate * UTILISATION);
    let come = f64::from(inputs.sidecars.able).min(current);
    let coming = current - come;
    // What waits still when pods that are asked for now begin: those on their way begin sooner, by what they have waited.
    let begun = come * startup + coming * waited.unwrap_or_default();
    let left = (backlog - begun * pace).max(0.0);
    // How long the last message waits: more pods do not start sooner than those that are on their way.
    let wait = if waited.is_some() { left } else { backlog } / (current * pace);
    // One of a row of bursts for which pods are kept may take the whole target wait.
    let in_a_row =
        history.piles.in_a_row(now).is_some_and(|largest| backlog * load.seconds() <= largest * AS_BEFORE);
    let clearing = if in_a_row {
        load.clearing(1.0, MOST_CLEARING_SHARE)
    } else {
        let least = match history.bursts_often(now) {
            Some(gap) => load.clearing_share_where_often(gap),
            None if backlog > target * SMALL_BURST_SHARE * current * pace => LEAST_CLEARING_SHARE,
            None => SMALL_CLEARING_SHARE,
        };
        load.clearing(BURST_SHARE, least)
    };
    // The last calls need only begin by then: a further pod begins some at once, and as many each time that these have ended. Those
    // of a busy one end at any time.
    let at_once = load.spec.at_once();
    let each = at_once * (1.0 + (clearing * UTILISATION / load.service).floor());
    // Of those that do not answer just now it is not known that they are.
    let answer = (come - f64::from(inputs.sidecars.away)).max(0.0);
    let idle = (answer * at_once - in_flight as f64).max(0.0);
    let missed = left - come * clearing * pace - idle - coming * each;
    let in_time = current + missed / each;
    let by_backlog = in_time.min(load.useful);
    let by_chance = BY_CHANCE * (history.settled() as f64).sqrt();
    let sudden = history.growth() >= by_chance.max(backlog * SUDDEN_SHARE);
    // What came long ago, such as while the handler failed, is cleared like a burst.
    let long = if sudden && !in_a_row { target * BURST_SHARE } else { target };
    let is_burst = wait > long && by_backlog > current * SCALE_OUT_TOLERANCE;
    let loaded = lasting_rate * load.per_rate >= current * LOADED;
    let of_burst = is_burst.then(|| {
        let rate = history.rate();
        let wanted = in_time.max(rate * load.per_rate);
        let pods = load.sane(wanted);
        let text = format!(
            "the larger of {} arriving {}, and {current} pods + {missed:.0} messages that they do not begin within {:.1} s / {each:.0} that each further pod does; {backlog:.0} waiting, {in_flight} running{}",
            per_second(rate),
            load.per_message(),
            startup + clearing,
            load.cut(wanted),
            missed = missed.max(0.0)
        );
        More { pods, text, tells: loaded && pods <= current * LARGE_BURST }
    });
    // Pods that were asked for just now change nothing yet.
    let seen = current == 0.0 || waited.is_none() && history.seconds_since_scale_out(now) >= startup;
    let share =
        if in_a_row { current } else { QUEUE_SHARE * current + QUEUE_SHARE_OF_ONE * current.min(1.0) };
    let is_growth = seen && backlog > target * share * pace;
    let of_growth = is_growth.then(|| {
        let pods = load.sane((lasting_rate * load.per_rate).min(load.useful).max(current + 1.0));
        let wait = match current > 0.0 {
            true => format!("up to {:.1} s", backlog / (current * pace)),
            false => "a first pod".to_owned(),
        };
        let text = format!(
            "{backlog:.0} wait for {wait}; {} arriving {}, {in_flight} running; one pod more at least",
            per_second(lasting_rate),
            load.per_message()
        );
        More { pods, text, tells: loaded }
    });
    let both = [of_growth, of_burst].into_iter().flatten().filter(|more| more.pods > current);
    both.max_by(|one, other| one.pods.total_cmp(&other.pods))
}

/// A rate for people: what others take, or what expires little by little, counts as less than none.
fn per_second(rate: f64) -> String {
    format!("{} messages/s", figure(rate.max(0.0) + 0.0))
}

/// A number of messages a second, of which few are long calls.
fn figure(rate: f64) -> String {
    let digits = if (0.0005..1.0).contains(&rate) { 3 } else { 1 };
    format!("{rate:.digits$}")
}

/// Pods for the load as it has been lately.
fn lasting(
    load: &Load<'_>,
    history: &History,
    Lasting { rate, over }: Lasting,
    long_work: bool,
    now: f64,
) -> (f64, String) {
    // Fewer than usual may have come by chance: pods that go then are wanted again. Of a load that has just begun what came is the most.
    let by_chance = if over < load.spec.window() { 0.0 } else { (rate / over).max(0.0).sqrt() };
    let mut by_rate = load.kept(rate + by_chance);
    let more = if by_chance > 0.0 { format!(" + {} by chance", figure(by_chance)) } else { String::new() };
    let mut text = format!(
        "{}{more} over {over:.0} s x {:.3} s per message ({}) / ({} at once x {:.2}), {:.0} waiting, {} running",
        per_second(rate),
        load.service,
        load.known,
        load.spec.concurrency,
        load.hottest(),
        load.backlog,
        load.in_flight
    );
    // Work that asks for more time keeps its pods by itself.
    let long_calls = history.has_long_calls() && !long_work;
    if long_calls {
        // So few of them arrive within the window that chance would change the pods with each.
        by_rate = by_rate.max(load.kept_for(history.running()).round());
        text.push_str(&format!("; {:.1} ran on average", history.running()));
    }
    if history.bursts_often(now).is_some() {
        // What arrives beside them is served.
        let lately = load.kept(history.recent_rate());
        by_rate = (by_rate * BETWEEN_BURSTS).floor().max(lately).max(load.least).min(by_rate);
        text.push_str(&format!(
            "; bursts come often and get pods of their own: half of that, or {lately:.1} for the last seconds"
        ));
    }
    let too_few = history
        .too_few(rate * load.service, load.spec.at_once(), load.service / over, now)
        .filter(|few| by_rate <= f64::from(*few));
    let mut pods = too_few.map_or(by_rate, |few| f64::from(few.saturating_add(1)));
    if too_few.is_some() {
        text.push_str("; fewer proved too few for that");
    }
    if let Some(largest) = history.piles.in_a_row(now) {
        let kept = largest / load.spec.target_wait;
        if kept > pods {
            pods = kept.min(load.current).max(pods);
            text.push_str(&format!(
                "; bursts of up to {largest:.0} s of one pod's work come each few seconds"
            ));
        }
    }
    if history.beyond.is_often(f64::from(load.spec.max), now) {
        pods = pods.max(load.current);
        text.push_str("; bursts come often that take all allowed pods longer than targetWaitSeconds: these are kept for the next");
    }
    (pods, text)
}
