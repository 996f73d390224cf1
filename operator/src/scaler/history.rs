//! What the scaler remembers of a Worker between two decisions: arrivals, seconds per message, what was wanted.
//!
//! Times are seconds of a monotonic clock, given by the caller.

use super::arrivals::{Arrivals, Sample};
use super::beyond::Beyond;
use super::bursts::Bursts;
use super::failures::{Calls, Failures, Took};
use super::inputs::{Inputs, Sidecars};
use super::movement::Movement;
use super::piles::Piles;
use super::reason::Reason;
use super::startup::Startup;

/// Seconds over which arrivals are averaged.
pub const RATE_WINDOW: f64 = 30.0;
/// Seconds that tell a load that has just begun from a burst that has passed.
pub(super) const RECENT_WINDOW: f64 = 10.0;
/// Seconds for which pods that proved too few are not tried again, since they were there: what bounds how often a steady load
/// changes them.
pub const TOO_FEW_SECONDS: f64 = 600.0;
/// Least seconds between two changes of what people read: whether fewer pods would do, or more than are allowed.
const TOLD_SECONDS: f64 = 60.0;
/// Share of the load that pods proved too few for, below which they are tried again: less is noise.
const LOWER_LOAD: f64 = 0.7;
/// The same where few messages come, of which still fewer come by chance.
const LOWER_BY_CHANCE: f64 = 0.5;
/// Seconds from which on what runs tells the load better than what arrives.
const LONG_CALL_SECONDS: f64 = 20.0;
/// So many standard deviations more than before come by chance.
pub(super) const BY_CHANCE: f64 = 2.0;
/// Messages that wait in a burst at least: one or two come together by chance.
pub(super) const LEAST_BURST: f64 = 5.0;
/// Seconds after which half of the weight of a measured handler call is gone.
pub(super) const SERVICE_HALF_LIFE: f64 = 60.0;
/// Readings of the queue's depth are at least this far apart, in seconds.
const SAME_READING: f64 = 0.1;
/// A handler call takes at least this long, in seconds: the broker's round trip counts too.
const LEAST_SERVICE: f64 = 0.001;

/// What is remembered of one Worker. The default is that of a Worker never seen before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    started_at: Option<f64>,
    /// Seconds over which the lasting load was averaged last.
    window: f64,
    arrivals: Arrivals,
    lasting: Arrivals,
    /// The sidecars, as last seen.
    sidecars: Option<Sidecars>,
    service: Option<Service>,
    pub(super) failures: Failures,
    /// Calls that run, on average over the window, and when that was reckoned.
    running: f64,
    seen_at: Option<f64>,
    zero_reads: u32,
    /// When the first of these was.
    zero_since: f64,
    /// Messages held and settled so far, when the queue was not empty last; none where its depth was in doubt since.
    loaded: Option<(u64, u64)>,
    /// Whether that depth was a zero that sidecars contradicted, which may be the last that is known of a load.
    doubted: bool,
    read_at: Option<f64>,
    pub(super) movement: Movement,
    unscraped_since: Option<f64>,
    /// No pod could be scraped for another operator, which stands until this one can scrape one.
    unscraped_before: bool,
    scaled: Scaled,
    /// What `scaled` was before the last change.
    scaled_before: Scaled,
    pub(super) beyond: Beyond,
    pub(super) piles: Piles,
    took_over: bool,
    /// How pods start.
    pub(super) startup: Startup,
    /// Whether fewer pods would do, as it is told, and since when.
    fewer: Option<(bool, f64)>,
    /// When more pods than are allowed were wanted last.
    at_most: Option<f64>,
    /// Since when the queue has not been empty.
    waiting_since: Option<f64>,
}

/// What is remembered of changes of replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Scaled {
    last_in: Option<f64>,
    last_out: Option<f64>,
    bursts: Bursts,
    too_few: Option<TooFew>,
    /// Whether pods were asked for last for a load that lasts.
    grew: bool,
}

/// A load that was too much for the pods that were there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct TooMuch {
    /// Calls at once.
    pub calls: f64,
    /// Most pods that it can be too much for.
    pub pods: u32,
    /// Calls at once of each of them.
    pub at_once: f64,
}

/// Pods that a load proved too few.
#[derive(Clone, Copy, Debug, PartialEq)]
struct TooFew {
    until: f64,
    pods: u32,
    /// Calls at once of each of them: others say nothing of pods that have more.
    at_once: f64,
    /// Calls at once that it amounts to: a handler that has become faster makes less of a load.
    load: f64,
}

/// What arrives, watched for a while.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lasting {
    /// Messages a second.
    pub rate: f64,
    /// Seconds over which that is.
    pub over: f64,
}

impl Lasting {
    /// Whether that is more than `rate`, and not by chance.
    fn is_more_than(self, rate: f64) -> bool {
        (self.rate - rate) * self.over > BY_CHANCE * (self.rate * self.over).max(0.0).sqrt()
    }
}

/// Measured seconds that a message is at the handler.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// How many.
    pub seconds: f64,
    /// Seconds since a call ended that says so; none where none has ended since this operator watches.
    pub age: Option<f64>,
}

/// Decayed sums over messages of the seconds that their handler calls took.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Service {
    at: f64,
    messages: f64,
    seconds: f64,
    /// Whether a call has ended since this operator watches.
    seen: bool,
}

impl History {
    /// A Worker whose seconds per message are known, and weigh as much as a single call.
    pub(super) fn with_service_seconds(seconds: f64) -> Self {
        let service = (seconds.is_finite() && seconds > 0.0).then_some(Service {
            at: 0.0,
            messages: 1.0,
            seconds,
            seen: false,
        });
        Self { service, ..Self::default() }
    }

    /// A Worker of which another operator has decided last for this reason. What took it long to find out takes no such time again:
    /// meanwhile pods would be added that mend nothing.
    pub(super) fn after(mut self, reason: &str, now: f64) -> Self {
        let is = |one: Reason| reason == one.as_str();
        if is(Reason::Stalled) {
            self.movement = Movement::stalled();
        }
        if is(Reason::HandlerFailing) {
            self.failures = Failures::of_another(now);
        }
        self.unscraped_before = is(Reason::MetricsUnreachable);
        self
    }

    /// The queue's depth is not known: what arrived meanwhile is not, and the load is watched anew afterwards.
    pub(super) fn interrupted(&mut self, now: f64) {
        self.started_at = None;
        (self.zero_reads, self.loaded) = (0, None);
        self.startup.interrupted();
        (self.arrivals, self.lasting) = Default::default();
        self.movement.progressed(now);
    }

    /// Takes one reading in. `ready` is the fresh ready count, and `window` the seconds over which the lasting load is averaged.
    pub(super) fn observe(&mut self, ready: u64, inputs: &Inputs, window: f64, now: f64) {
        let before = std::mem::replace(&mut self.window, window);
        if window > before {
            // What is older than the shorter one was not kept: it is as if the Worker had not been watched before.
            self.started_at = self.started_at.map(|at| at.max(now - before));
            self.took_over |= inputs.workload.replicas > 0;
        }
        if self.started_at.is_none() {
            self.started_at = Some(now);
            self.took_over = inputs.workload.replicas > 0;
            // What waits for a Worker that had no pods yet is a burst; what ending pods hold is not.
            if !self.took_over {
                self.count(inputs.sidecars.ending, inputs, window, now);
            }
        }
        let sidecars = &inputs.sidecars;
        self.observe_running(sidecars, window, now);
        // One reading that grows old, while the broker does not answer, is one reading.
        let read_at = now - inputs.ready.map_or(0.0, |(_, age)| age);
        if self.read_at.is_none_or(|before| (read_at - before).abs() > SAME_READING) {
            self.read_at = Some(read_at);
            let zero = ready == 0 && !inputs.contradicted;
            self.zero_reads = if zero { self.zero_reads.saturating_add(1) } else { 0 };
            if self.zero_reads <= 1 {
                self.zero_since = now;
            }
        }
        match ready {
            0 => self.waiting_since = None,
            _ => _ = self.waiting_since.get_or_insert(now),
        }
        self.startup.observe(&inputs.workload, sidecars.able, now);
        let held = ready.saturating_add(sidecars.unsettled).saturating_add(sidecars.ending);
        match ready {
            0 if inputs.contradicted => (self.loaded, self.doubted) = (None, true),
            0 => {}
            _ => (self.loaded, self.doubted) = (Some((held, sidecars.settled)), false),
        }
        // What a queue without a leader says is no news of its messages.
        if ready > 0 || !inputs.contradicted {
            self.count(held, inputs, window, now);
        }
        self.observe_service(inputs, now);
        self.movement.observe(ready, sidecars, now);
        if sidecars.started > 0 && sidecars.scraped == 0 {
            let since = if self.unscraped_before { f64::NEG_INFINITY } else { now };
            self.unscraped_since.get_or_insert(since);
        } else {
            self.unscraped_since = None;
            self.unscraped_before = false;
        }
    }

    fn count(&mut self, held: u64, inputs: &Inputs, window: f64, now: f64) {
        let sample = Sample { at: now, held, settled: inputs.sidecars.settled };
        // Where nobody consumes, a queue without a leader says the same as one that was purged; others may have taken them; and what pods
        // hold that do not answer just now is not lost.
        let all_answer = inputs.sidecars.scraped >= inputs.sidecars.started;
        if all_answer && !inputs.unconsumed && !inputs.shared && !inputs.elsewhere {
            let lost = self.arrivals.lost(sample);
            self.arrivals.forget(lost);
            self.lasting.forget(lost);
        }
        self.arrivals.observe(sample, RATE_WINDOW);
        self.lasting.observe(sample, window);
    }

    fn observe_service(&mut self, inputs: &Inputs, now: f64) {
        let sidecars = &inputs.sidecars;
        let before = self.sidecars.replace(*sidecars);
        // What took its time before, weighed as a single call: at the first look that a pod answers.
        let seconds = sidecars.lifetime_seconds / sidecars.lifetime_calls as f64;
        if self.service.is_none() && self.took_over && seconds.is_finite() && seconds >= 0.0 {
            self.service = Some(Service { at: now, messages: 1.0, seconds, seen: false });
        }
        let Some(before) = before else { return };
        if inputs.workload.rolling || sidecars.calls <= before.calls {
            return;
        }
        let since = |counter: fn(&Sidecars) -> u64| counter(sidecars).saturating_sub(counter(&before));
        let calls = Calls {
            ended: since(|sums| sums.calls),
            failed: since(|sums| sums.failed),
            failed_first: since(|sums| sums.failed_first),
        };
        let new_calls = calls.ended as f64;
        let new_seconds = sidecars.call_seconds - before.call_seconds;
        if !new_seconds.is_finite() || new_seconds < 0.0 {
            return;
        }
        // A full batch tells more than one of a single message: what a pod can do shows when there is much to do.
        let messages = new_calls.max(since(|sums| sums.settled) as f64);
        let took = Took { messages, seconds: new_seconds / new_calls * messages };
        let Some(Took { messages, seconds }) = self.failures.observe(took, calls, now) else {
            return;
        };
        let old = self.service.unwrap_or(Service { at: now, messages: 0.0, seconds: 0.0, seen: false });
        let decay = 0.5_f64.powf((now - old.at).max(0.0) / SERVICE_HALF_LIFE);
        self.service = Some(Service {
            at: now,
            messages: old.messages * decay + messages,
            seconds: old.seconds * decay + seconds,
            seen: true,
        });
    }

    fn observe_running(&mut self, sidecars: &Sidecars, window: f64, now: f64) {
        if sidecars.started > 0 && sidecars.scraped == 0 {
            // What runs is not known: the next that is seen counts for all of the time.
            self.seen_at = None;
            return;
        }
        if sidecars.scraped < sidecars.started {
            // What runs in the others is not known either: it is as it was, if it was known.
            self.seen_at = self.seen_at.map(|_| now);
            return;
        }
        let since = self.seen_at.replace(now).map_or(f64::INFINITY, |before| (now - before).max(0.0));
        let running = sidecars.in_flight.min(sidecars.unsettled) as f64;
        self.running += (running - self.running) * (1.0 - (-since / window).exp());
    }

    /// Arrivals a second that are not still waiting: those are counted once, as backlog, which is due within
    /// `target_wait` seconds.
    pub(super) fn arrival_rate(&self, backlog: f64, target_wait: f64) -> f64 {
        let still_waiting = backlog * (1.0 / RATE_WINDOW).min(1.0 / target_wait);
        (self.rate() - still_waiting).max(0.0)
    }

    /// Arrivals a second of the last [`RATE_WINDOW`], those that still wait included.
    pub(super) fn rate(&self) -> f64 {
        self.arrivals.rate(RATE_WINDOW)
    }

    /// Messages that are held more than [`RATE_WINDOW`] ago.
    pub(super) fn growth(&self) -> f64 {
        self.arrivals.growth()
    }

    /// Messages that were settled within [`RATE_WINDOW`].
    pub(super) fn settled(&self) -> u64 {
        self.arrivals.settled()
    }

    /// Arrivals a second of the last [`RECENT_WINDOW`].
    pub(super) fn recent_rate(&self) -> f64 {
        self.arrivals.rate(RECENT_WINDOW)
    }

    /// Arrivals over `window`. A load that pods were just added for has begun within it, and counts for what it is since.
    pub(super) fn lasting_rate(&self, window: f64, now: f64) -> Lasting {
        let since = self.seconds_since_scale_out(now);
        let windows = [(RECENT_WINDOW, RATE_WINDOW), (RATE_WINDOW, window)];
        let all = Lasting { rate: self.lasting.rate(window), over: window };
        let begun = windows.iter().filter(|(_, until)| since < *until);
        let begun = begun.map(|(short, _)| Lasting { rate: self.arrivals.rate(*short), over: *short });
        let more = begun.filter(|short| short.is_more_than(all.rate));
        more.fold(all, |most, other| if other.rate > most.rate { other } else { most })
    }

    /// Remembers that `pods` are too few for a load. The longer it went well before, the sooner they may be
    /// tried again.
    fn proved_too_few(&mut self, pods: u32, TooMuch { calls: load, at_once, .. }: TooMuch, now: f64) {
        let since =
            self.seconds_since_scale_in(now).min(self.seconds_since_scale_out(now)).min(self.age(now));
        self.scaled.too_few = Some(TooFew { until: now - since + TOO_FEW_SECONDS, pods, at_once, load });
    }

    /// Pods of `at_once` calls each that are too few for a `load` of so many in all, if that is known. Where a message more or less
    /// would be `each` of these, a load that is lower by chance is not lower.
    pub(super) fn too_few(&self, load: f64, at_once: f64, each: f64, now: f64) -> Option<u32> {
        let proved = self.scaled.too_few.filter(|proved| now < proved.until && at_once == proved.at_once)?;
        let by_chance = BY_CHANCE * ((proved.load + load) * each).max(0.0).sqrt();
        (load >= proved.load * LOWER_LOAD
            || load >= proved.load * LOWER_BY_CHANCE && load >= proved.load - by_chance)
            .then_some(proved.pods)
    }

    /// Measured seconds that a message is at the handler, in a batch as long as its call; none before the first.
    pub fn service_seconds(&self) -> Option<f64> {
        let service = self.service.filter(|s| s.messages > 0.0)?;
        let seconds = service.seconds / service.messages;
        seconds.is_finite().then(|| seconds.max(LEAST_SERVICE))
    }

    /// The same, and how long ago a call ended that says so.
    pub(super) fn service_measured(&self, now: f64) -> Option<Measured> {
        let age = self.service.filter(|service| service.seen).map(|service| (now - service.at).max(0.0));
        self.service_seconds().map(|seconds| Measured { seconds, age })
    }

    /// Whether calls take so long that few of them begin within the window.
    pub(super) fn has_long_calls(&self) -> bool {
        self.service_seconds().is_some_and(|seconds| seconds > LONG_CALL_SECONDS)
    }

    /// Calls that run, on average over the window.
    pub(super) const fn running(&self) -> f64 {
        self.running
    }

    /// How many reads in a row said zero.
    pub(super) const fn zero_reads(&self) -> u32 {
        self.zero_reads
    }

    /// Seconds since the first of the reads in a row that said zero.
    pub(super) fn seconds_of_zeros(&self, now: f64) -> f64 {
        now - self.zero_since
    }

    /// Whether messages were there before the queue read zero, or may have been.
    pub(super) const fn was_loaded(&self) -> bool {
        self.loaded.is_some() || self.doubted
    }

    /// Whether sidecars have settled, or have now, what was there when the queue was not empty last: a zero is true then.
    pub(super) fn accounts_for_all(&self, sidecars: &Sidecars) -> bool {
        self.loaded.is_some_and(|(held, settled)| {
            let since = sidecars.settled.saturating_sub(settled);
            since.saturating_add(sidecars.unsettled).saturating_add(sidecars.ending) >= held
        })
    }

    /// Seconds during which no started pod could be scraped.
    pub(super) fn seconds_unscraped(&self, now: f64) -> f64 {
        self.unscraped_since.map_or(0.0, |since| now - since)
    }

    /// Whether there were pods when the Worker was first seen, so that it had a load that is not known.
    pub(super) const fn took_over(&self) -> bool {
        self.took_over
    }

    /// Seconds since the first reading.
    pub(super) fn age(&self, now: f64) -> f64 {
        self.started_at.map_or(0.0, |at| now - at)
    }

    /// Whether fewer pods would do just now: noise about a whole number of pods is no news each second.
    pub(super) fn observe_fewer(&mut self, fewer: bool, now: f64) {
        if self.fewer.is_none_or(|(told, since)| told != fewer && now - since >= TOLD_SECONDS) {
            self.fewer = Some((fewer, now));
        }
    }

    /// More pods than are allowed are wanted.
    pub(super) const fn observe_at_most(&mut self, now: f64) {
        self.at_most = Some(now);
    }

    /// Whether they are, as it is to be told.
    pub(super) fn is_at_most(&self, now: f64) -> bool {
        self.at_most.is_some_and(|at| now - at < TOLD_SECONDS)
    }

    /// Seconds for which the queue has not been empty.
    pub(super) fn seconds_waiting(&self, now: f64) -> f64 {
        self.waiting_since.map_or(0.0, |since| now - since)
    }

    /// Whether fewer pods would do, as it is to be told.
    pub(super) fn fewer_would_do(&self) -> bool {
        self.fewer.is_some_and(|(fewer, _)| fewer)
    }

    /// `pods` were asked for, for a `backlog` of so many messages; a load that was `too_much` has shown that those before were too few.
    pub(super) fn scaled_out(&mut self, pods: u32, backlog: f64, too_much: Option<TooMuch>, now: f64) {
        self.scaled_before = self.scaled;
        self.scaled.grew = too_much.is_some();
        if let Some(load) = too_much {
            self.proved_too_few(load.pods.min(pods - 1), load, now);
        }
        // A load that grows, or comes together by chance, is no further burst, and ends no row of them.
        if too_much.is_none() && backlog >= LEAST_BURST {
            self.scaled.bursts.came(self.scaled.last_in, now);
        }
        self.scaled.last_out = Some(now);
    }

    /// The last change was not made after all.
    pub const fn not_scaled(&mut self) {
        self.scaled = self.scaled_before;
    }

    /// Seconds from one burst to the next, where they come so often that the pods for each of them go and come again.
    pub(super) fn bursts_often(&self, now: f64) -> Option<f64> {
        self.scaled.bursts.often(self.scaled.last_in, now)
    }

    /// A burst is there that even all pods that are allowed would let wait for too long; a message takes `seconds` of a pod.
    pub(super) fn goes_beyond(&mut self, settled: u64, seconds: f64, now: f64) {
        self.beyond.observe(self.scaled.last_in, settled, seconds, now);
    }

    /// Pods were let go.
    pub(super) const fn scaled_in(&mut self, now: f64) {
        self.scaled_before = self.scaled;
        self.scaled.last_in = Some(now);
    }

    /// Whether pods were asked for last for a load that lasts, and not for a burst or on an assumption.
    pub(super) const fn grew(&self) -> bool {
        self.scaled.grew
    }

    /// Seconds since pods were asked for last; infinite before.
    pub(super) fn seconds_since_scale_out(&self, now: f64) -> f64 {
        self.scaled.last_out.map_or(f64::INFINITY, |at| now - at)
    }

    /// Seconds since pods were let go last; infinite before.
    pub(super) fn seconds_since_scale_in(&self, now: f64) -> f64 {
        self.scaled.last_in.map_or(f64::INFINITY, |at| now - at)
    }
}
