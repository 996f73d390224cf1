//! The scaling decision, as a pure function.
//!
//! Little's law: the pods needed are (arrival rate + backlog / time to clear it) x seconds per message / (calls at once x
//! utilisation). Unknown inputs hold, only fresh ones move replicas, and every decision says what it was made from.
//!
//! - **Out**: the backlog is to be cleared within the target wait. Pods that have to start first take their start-up time
//!   out of it, so more of them are asked for, in one step.
//! - **In**: a backlog is a burst that passes; what has to stay for the stabilisation time is what the load amounts to over
//!   [`RATE_WINDOW`]. While more waits than runs, nobody goes. Then the pods beyond that load go at once, the rest by halves.

use std::cmp::Ordering;
use std::fmt::Write as _;

use super::history::{History, RATE_WINDOW};
use super::inputs::{Floor, Inputs, Spec};
use super::reason::Reason;

/// Share of a pod's capacity that is planned for, at least: few messages vary much.
pub const LEAST_UTILISATION: f64 = 0.9;
/// Share of a pod's capacity that is planned for, at most: many messages vary little.
pub const MOST_UTILISATION: f64 = 0.97;
/// Seconds per message before anything is measured: long enough that the first step is the only one.
pub const ASSUMED_SERVICE_SECONDS: f64 = 1.0;
/// Seconds from the request for a pod to its consuming, before any was seen to start.
pub const ASSUMED_STARTUP_SECONDS: f64 = 5.0;
/// A ready count older than this, in seconds, is unknown.
pub const STALE_SECONDS: f64 = 10.0;
/// Zero reads in a row that make a zero of a quorum queue believable.
pub const AGREEING_ZEROS: u32 = 3;
/// Seconds without any scraped pod after which the scaler says that it is blind.
pub const BLIND_SECONDS: f64 = 60.0;
/// Pods are added when the need exceeds those that are there by this factor: less is noise, which the target wait absorbs.
const SCALE_OUT_TOLERANCE: f64 = 1.1;
/// Pods are taken away only where so many times the need still fits.
const SCALE_IN_HEADROOM: f64 = 1.05;
/// Share of the target wait that is planned with: start-up times, looks and scheduling vary.
const PLANNED_SHARE: f64 = 0.75;
/// Share of the target wait that is left for clearing a backlog, however long pods take to start.
const LEAST_CLEARING_SHARE: f64 = 0.25;
/// Seconds between two steps of a scale-in.
const SCALE_IN_SPACING: f64 = 10.0;
/// Seconds beyond the handler's time-out without progress that make a stall.
const STALL_MARGIN: f64 = 30.0;

/// What to do, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Replicas to ask for.
    pub replicas: u32,
    /// What the formula gave, before limits and stabilisation.
    pub raw: u32,
    /// Why.
    pub reason: Reason,
    /// Why, as a sentence with the numbers.
    pub message: String,
}

/// The formula's numbers.
struct Need {
    /// Pods, as a fraction, before limits.
    pods: f64,
    /// Pods, as a fraction, for what the load amounts to when the backlog has passed, with room to spare.
    lasting: f64,
    /// The same for a load that has just begun, by what arrived within the last seconds; 0 otherwise.
    recent: f64,
    /// Whether the pods that are there are too few, by more than noise.
    short: bool,
    /// Seconds per message over the calls at once in a pod: what turns messages a second into pods.
    pod_seconds: f64,
    text: String,
}

/// Decides how many pods a Worker gets. Takes the history by value and gives the next one back.
pub fn decide(mut history: History, inputs: &Inputs, spec: &Spec, now: f64) -> (Decision, History) {
    let current = inputs.workload.replicas;
    let hold =
        |reason: Reason, raw: u32, why: String| Decision { replicas: current, raw, reason, message: why };

    let fresh = inputs.ready.filter(|(_, age)| (0.0..=STALE_SECONDS).contains(age));
    let Some((ready, _)) = fresh else {
        let why = match inputs.ready {
            None => "the queue's depth is not known; replicas are held until the broker answers".to_owned(),
            Some((_, age)) => format!("the queue's depth was last read {age:.0} s ago; replicas are held"),
        };
        return (hold(Reason::DepthUnknown, current, why), history);
    };
    history.observe(ready, inputs, now);
    let need = need(&history, ready, inputs, spec, now);
    let raw = to_pods(need.pods);
    if spec.paused {
        let why = "consumer.paused is set: what runs ends, the pods stay".to_owned();
        return (hold(Reason::Paused, raw, why), history);
    }
    if let Some((reason, why)) = trouble(&history, ready, inputs, spec, now) {
        let load = f64::from(current) / need.pod_seconds;
        history.most_wanted(load, load, spec.stabilization, now);
        return (hold(reason, raw, why), history);
    }
    let decision = within_limits(&mut history, &need, raw, ready, inputs, spec, now);
    match decision.replicas.cmp(&current) {
        Ordering::Less => history.scaled_in(now),
        Ordering::Equal => {}
        Ordering::Greater => history.scaled_out(now),
    }
    (decision, history)
}

/// Little's law over what is waiting, running and arriving.
fn need(history: &History, ready: u64, inputs: &Inputs, spec: &Spec, now: f64) -> Need {
    let sidecars = &inputs.sidecars;
    let current = f64::from(inputs.workload.replicas);
    let at_once = f64::from(spec.concurrency.max(1));
    let in_flight = sidecars.in_flight.min(sidecars.unsettled);
    let backlog = ready.saturating_add(sidecars.unsettled - in_flight) as f64;
    let rate = history.arrival_rate(backlog, spec.target_wait);
    let measured = history.service_seconds();
    let service = measured.unwrap_or(ASSUMED_SERVICE_SECONDS);
    let utilisation = utilisation(rate * spec.target_wait + backlog);
    let pods_per_rate = service / (at_once * utilisation);
    let arriving = rate * pods_per_rate;
    // A pod without a message of its own shortens nothing, and what there is to do needs a pod, or its share of one.
    let useful = ((backlog + in_flight as f64) / at_once).ceil() + arriving;
    let least = 1.0_f64.min(backlog + sidecars.unsettled as f64);
    let within = |seconds: f64, headroom: f64| {
        let pods = (arriving + backlog / seconds * pods_per_rate).min(useful);
        if pods.is_finite() { (pods * headroom).max(least) } else { current }
    };

    let short = within(spec.target_wait, 1.0) > current * SCALE_OUT_TOLERANCE;
    let startup = history.startup_seconds().unwrap_or(ASSUMED_STARTUP_SECONDS);
    // The assumed seconds per message leave room enough.
    let clearing = if short && measured.is_some() {
        (spec.target_wait * PLANNED_SHARE - startup).max(spec.target_wait * LEAST_CLEARING_SHARE)
    } else {
        spec.target_wait
    };
    // A load that has just begun does not fill the window yet.
    let began = history.seconds_since_scale_out(now) < RATE_WINDOW;
    let recent = if began { history.recent_rate() * pods_per_rate * SCALE_IN_HEADROOM } else { 0.0 };
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "({rate:.1} messages/s arriving + {backlog:.0} waiting / {clearing:.1} s) x {service:.3} s per message ({}) / ({} at once x {utilisation:.2}), {in_flight} running",
        if measured.is_some() { "measured" } else { "assumed until measured" },
        spec.concurrency,
    );
    Need {
        pods: within(clearing, 1.0),
        lasting: within(spec.target_wait.max(RATE_WINDOW), SCALE_IN_HEADROOM),
        recent: recent.min(useful.max(current)),
        short,
        pod_seconds: service / at_once,
        text,
    }
}

/// What of a pod's capacity is planned for, given how many messages are expected within the target: their number varies by
/// its square root, so that a small flow needs more room than a large one.
fn utilisation(messages: f64) -> f64 {
    (1.0 / (1.0 + 1.0 / messages.max(1.0).sqrt())).clamp(LEAST_UTILISATION, MOST_UTILISATION)
}

/// Pods as a whole number; a hair above one, from rounding, is that one.
fn to_pods(pods: f64) -> u32 {
    // The cast saturates.
    (pods - 1e-9).ceil().max(0.0) as u32
}

/// What forbids any move.
fn trouble(
    history: &History,
    ready: u64,
    inputs: &Inputs,
    spec: &Spec,
    now: f64,
) -> Option<(Reason, String)> {
    let sidecars = &inputs.sidecars;
    if sidecars.scraped > 0 && sidecars.held >= sidecars.scraped && sidecars.scraped >= sidecars.started {
        return Some((
            Reason::HandlerFailing,
            "the handler of every pod fails or is away: more pods would not mend that, replicas are held"
                .to_owned(),
        ));
    }
    let idle = history.seconds_without_progress(now);
    if ready > 0
        && sidecars.scraped > 0
        && !inputs.workload.rolling
        && idle > spec.handler_timeout + STALL_MARGIN
    {
        return Some((
            Reason::Stalled,
            format!(
                "{ready} messages wait and nothing has moved for {idle:.0} s with {} handler calls running: look at the handler's logs; replicas are held",
                sidecars.in_flight
            ),
        ));
    }
    None
}

/// Applies limits, tolerance and stabilisation to the need.
fn within_limits(
    history: &mut History,
    need: &Need,
    raw: u32,
    ready: u64,
    inputs: &Inputs,
    spec: &Spec,
    now: f64,
) -> Decision {
    let current = inputs.workload.replicas;
    let max = spec.max.max(spec.min);
    let scheduled = inputs.floor.as_ref().filter(|floor| floor.replicas.min(max) > spec.min);
    let min = scheduled.map_or(spec.min, |floor| floor.replicas.min(max));
    let decision = |replicas: u32, reason: Reason, why: &str| Decision {
        replicas: replicas.clamp(min, max),
        raw,
        reason,
        message: format!("{why}: {}", need.text),
    };
    let least_for_in = to_pods(need.lasting).clamp(min, max);
    // Kept as messages a second, so that a better estimate of the seconds per message corrects the past too.
    let (lasting, before) = (need.lasting / need.pod_seconds, f64::from(current) / need.pod_seconds);
    let recently = history.most_wanted(lasting, before, spec.stabilization, now) * need.pod_seconds;

    let wanted = raw.clamp(min, max);
    if wanted > current && (need.short || current < min) {
        let why = match scheduled.filter(|_| raw < wanted) {
            Some(Floor { schedule, .. }) => {
                format!("{current} to {wanted} pods, the least by schedule {schedule}")
            }
            None => format!("{current} to {wanted} pods"),
        };
        return decision(wanted, Reason::ScaledOut, &why);
    }
    if current > max {
        return decision(max, Reason::ScaledIn, &format!("{current} to {max} pods, scaling.maxReplicas"));
    }
    if history.seconds_unscraped(now) >= BLIND_SECONDS {
        let why = "no pod's port 9400 can be scraped: allow the operator to reach it (NetworkPolicy, mesh); pods are kept";
        return decision(current, Reason::MetricsUnreachable, why);
    }
    let lowest = to_pods(recently.max(need.recent)).clamp(min, max);
    if lowest >= current {
        let (reason, why) = if raw > max {
            (Reason::AtMaximum, format!("{raw} pods wanted, scaling.maxReplicas allows {max}"))
        } else if current == 0 && raw == 0 {
            (Reason::Idle, "nothing to do".to_owned())
        } else if least_for_in < current {
            (
                Reason::Stabilizing,
                format!("{least_for_in} pods would do, waiting for {:.0} s of it", spec.stabilization),
            )
        } else if let Some(Floor { schedule, .. }) = scheduled.filter(|_| current == min && raw < current) {
            (
                Reason::Scheduled,
                format!("{current} pods, the least by schedule {schedule}, and {raw} would do"),
            )
        } else {
            (Reason::Steady, format!("{current} pods fit the load"))
        };
        return decision(current, reason, &why);
    }
    if let Some((reason, why)) = scale_in_blocked(history, ready, inputs, spec, lowest, now) {
        return decision(current, reason, &why);
    }
    // What was added in a hurry, for a burst or on an assumption, goes in one step when the burst has passed.
    let hurried = history.seconds_since_scale_out(now) < spec.target_wait + RATE_WINDOW;
    let step = if hurried { current } else { current.div_ceil(2) };
    let next = lowest.max(current - step);
    decision(next, Reason::ScaledIn, &format!("{current} to {next} pods"))
}

/// What forbids taking pods away.
fn scale_in_blocked(
    history: &History,
    ready: u64,
    inputs: &Inputs,
    spec: &Spec,
    lowest: u32,
    now: f64,
) -> Option<(Reason, String)> {
    let sidecars = &inputs.sidecars;
    if sidecars.scraped < sidecars.started {
        let why = format!(
            "{} of {} sidecars cannot be scraped and may hold work; pods are kept",
            sidecars.started - sidecars.scraped,
            sidecars.started
        );
        return Some((Reason::SidecarsUnreachable, why));
    }
    if inputs.workload.rolling {
        return Some((Reason::RollingOut, "a rollout is under way; pods are kept".to_owned()));
    }
    if ready == 0 && spec.quorum && history.zero_reads() < AGREEING_ZEROS {
        return Some((
            Reason::ZeroUnconfirmed,
            "the queue says empty, which is not confirmed yet".to_owned(),
        ));
    }
    if lowest == 0 && (sidecars.unsettled > 0 || sidecars.in_flight > 0) {
        let why = format!("{} messages are not acknowledged yet", sidecars.unsettled.max(sidecars.in_flight));
        return Some((Reason::InFlight, why));
    }
    if ready > sidecars.in_flight {
        let why = format!("{ready} messages wait, more than the {} that run", sidecars.in_flight);
        return Some((Reason::Stabilizing, why));
    }
    if history.took_over() && history.age(now) < RATE_WINDOW {
        return Some((Reason::Stabilizing, "the load has not been watched for long enough yet".to_owned()));
    }
    let since = history.seconds_since_scale_in(now).min(history.seconds_since_scale_out(now));
    (since < SCALE_IN_SPACING).then(|| (Reason::Stabilizing, "replicas were changed just now".to_owned()))
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
