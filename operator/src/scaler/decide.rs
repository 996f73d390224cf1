//! The scaling decision, as a pure function: `need`, then limits, and what forbids a move.
//!
//! Unknown inputs hold, only fresh ones move replicas, and every decision says what it was made from.
//!
//! - **Out**: at once, in one step.
//! - **In**: what was added in a hurry goes in one step when the burst has passed, the rest by halves. Nobody goes while
//!   what waits would have to wait for those that stay.

use std::cmp::Ordering;

use super::history::{History, LEAST_BURST, RATE_WINDOW};
use super::inputs::{Floor, Inputs, Spec};
use super::need::{Need, need};
use super::reason::Reason;

/// A ready count older than this, in seconds, is unknown.
pub const STALE_SECONDS: f64 = 10.0;
/// Zero reads in a row that make a zero believable, unless the sidecars have what was there.
pub const AGREEING_ZEROS: u32 = 3;
/// Seconds without any scraped pod after which the scaler says that it is blind.
pub const BLIND_SECONDS: f64 = 60.0;
/// Share of the target wait beyond which nobody goes: for so long what waits would wait for the pods that stay.
const LEFT_SHARE: f64 = 0.1;
/// Share of the target wait that others who consume the queue have for a few messages before a Worker without pods gets one.
const OTHERS_SHARE: f64 = 0.5;
/// Share of the pods from which on fewer are no change but noise, unless the pods were added in a hurry or as few as may be would do.
const SCALE_IN_TOLERANCE: f64 = 0.9;
/// Seconds between two steps of a scale-in, unless it follows a burst.
const SCALE_IN_SPACING: f64 = 30.0;
/// Seconds beyond the handler's time-out without progress that make a stall.
const STALL_MARGIN: f64 = 30.0;
/// Seconds for which a message of an ordering key that failed waits in its pod at most.
const IN_PLACE_SECONDS: f64 = 60.0;

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

/// Decides how many pods a Worker gets. Takes the history by value and gives the next one back.
pub fn decide(mut history: History, inputs: &Inputs, spec: &Spec, now: f64) -> (Decision, History) {
    let current = inputs.workload.replicas;
    let hold = |reason: Reason, raw: u32, why: String| {
        // What the user allows holds even then.
        let replicas = current.clamp(spec.min, spec.max);
        let message = if replicas == current {
            why
        } else {
            format!("{current} to {replicas} pods, by scaling.minReplicas and {}: {why}", spec.limit())
        };
        Decision { replicas, raw, reason, message }
    };

    let fresh = inputs.ready.filter(|(_, age)| (0.0..=STALE_SECONDS).contains(age));
    let Some((ready, _)) = fresh else {
        let why = match inputs.ready {
            None => {
                "the queue's depth is not known, see QueueReady; replicas are held until it is".to_owned()
            }
            Some(_) => format!(
                "the queue's depth has not been read for more than {STALE_SECONDS:.0} s; replicas are held"
            ),
        };
        history.interrupted(now);
        return (hold(Reason::DepthUnknown, current, why), history);
    };
    if inputs.sidecars.scraped > 0 && history.seconds_unscraped(now) > STALE_SECONDS {
        // What was settled unseen did not all arrive just now.
        history.interrupted(now);
    }
    history.observe(ready, inputs, spec.window(), now);
    let need = need(&history, ready, inputs, spec, now);
    // What a queue without a leader says is no news of its messages.
    if history.service_seconds().is_some() && (ready > 0 || !inputs.contradicted) {
        history.piles.observe(need.backlog * need.seconds, now);
    }
    let raw = to_pods(need.pods);
    if spec.paused {
        history.movement.progressed(now);
        let why = "consuming is held, by consumer.paused or as the condition QueueReady says: what runs ends, the pods stay";
        return (hold(Reason::Paused, raw, format!("{why}: {}", need.text)), history);
    }
    if let Some((reason, why)) = trouble(&history, ready, inputs, spec, now) {
        return (hold(reason, raw, format!("{why}: {}", need.text)), history);
    }
    history.observe_fewer(to_pods(need.arriving) < current, now);
    if need.beyond {
        history.goes_beyond(inputs.sidecars.settled, need.seconds, now);
    }
    if raw > spec.max {
        history.observe_at_most(now);
    }
    let decision = within_limits(&history, &need, raw, ready, inputs, spec, now);
    match decision.replicas.cmp(&current) {
        Ordering::Less => history.scaled_in(now),
        Ordering::Equal => {}
        Ordering::Greater => history.scaled_out(decision.replicas, need.backlog, need.too_much, now),
    }
    (decision, history)
}

/// Pods as a whole number; a hair above one, from rounding, is that one.
fn to_pods(pods: f64) -> u32 {
    // The cast saturates.
    (pods - 1e-9).ceil().max(0.0) as u32
}

/// Seconds within which a call of a handler that works has ended, and the next one of a message that failed has begun.
fn patience(spec: &Spec) -> f64 {
    let in_place = if spec.ordered { IN_PLACE_SECONDS } else { 0.0 };
    spec.handler_timeout + STALL_MARGIN + in_place
}

/// Whether a zero that was read is true. Where nobody consumes, a queue without a leader says the same as one that was purged.
fn is_zero_confirmed(history: &History, inputs: &Inputs, spec: &Spec, now: f64) -> bool {
    let nobody_knows = spec.quorum && inputs.unconsumed && history.was_loaded();
    let agree = history.zero_reads() >= AGREEING_ZEROS
        && !(nobody_knows && history.seconds_of_zeros(now) < BLIND_SECONDS);
    agree || history.accounts_for_all(&inputs.sidecars)
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
    let to_do = ready > 0 || sidecars.unsettled > 0 || sidecars.ending > 0;
    // A pod that has just come fails no less than the others: it has only not been counted yet.
    let most_fail = sidecars.failing > sidecars.started / 2;
    if to_do && sidecars.scraped > 0 && most_fail {
        return Some((
            Reason::HandlerFailing,
            "the handler of most pods fails or is away: more pods would not mend that, replicas are held"
                .to_owned(),
        ));
    }
    let patience = patience(spec);
    let idle = history.movement.seconds_without(now);
    // Of such a queue a pod of another Worker gets the messages.
    let stands_by = spec.single && inputs.shared && sidecars.unsettled == 0;
    if ready > 0 && !stands_by && sidecars.scraped > 0 && !inputs.workload.rolling && idle > patience {
        let see = match history.movement.copies_fail(now) || sidecars.blocked > 0 {
            true => {
                "the broker does not take what is to be tried again or dead-lettered: see the logs of container warren-sidecar, whether a memory or disk alarm of the broker blocks publishes (kubectl warren doctor), whether its user has the right to write to amq.default, and whether DeadLetterAvailable of the Queue says that its dead-letter queue is full"
            }
            false => {
                "see whether the condition Available says that sidecars are not connected, look at the handler's logs, and whether it answers 429 to all"
            }
        };
        return Some((
            Reason::Stalled,
            format!(
                "messages wait and nothing has moved for more than {patience:.0} s, which is longer than a call may take: {see}; replicas are held"
            ),
        ));
    }
    None
}

/// Applies limits, tolerance and stabilisation to the need.
fn within_limits(
    history: &History,
    need: &Need,
    raw: u32,
    ready: u64,
    inputs: &Inputs,
    spec: &Spec,
    now: f64,
) -> Decision {
    let current = inputs.workload.replicas;
    let max = spec.max;
    let scheduled = inputs.floor.as_ref().filter(|floor| floor.replicas.min(max) > spec.min);
    let min = scheduled.map_or(spec.min, |floor| floor.replicas.min(max));
    let decision = |replicas: u32, reason: Reason, why: &str| Decision {
        replicas: replicas.clamp(min, max),
        raw,
        reason,
        message: format!("{why}: {}", need.text),
    };
    let wanted = raw.clamp(min, max);
    if inputs.elsewhere && min == 0 && need.backlog < LEAST_BURST {
        let patience = spec.target_wait * OTHERS_SHARE;
        if wanted > 0 && history.seconds_waiting(now) < patience {
            let why = format!("others consume the queue, and have {patience:.0} s to begin what waits");
            return decision(current, Reason::Idle, &why);
        }
    }
    // One pod tries, or nothing could ever go well.
    let tries = current.max(min).max(1);
    if wanted > tries
        && need.short
        && let Some(failed) = history.failures.in_a_row(patience(spec), now)
    {
        let why = format!(
            "the last {failed} calls for new messages all failed or timed out (see the application's log): more pods would not mend the handler, {wanted} are wanted"
        );
        return decision(tries, Reason::HandlerFailing, &why);
    }
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
        return decision(max, Reason::ScaledIn, &format!("{current} to {max} pods, {}", spec.limit()));
    }
    if history.seconds_unscraped(now) >= BLIND_SECONDS {
        let why = "no pod's port 9400 can be scraped: allow the operator to reach it (NetworkPolicy, mesh); pods are kept";
        return decision(current, Reason::MetricsUnreachable, why);
    }
    if raw > max {
        let why = format!("{raw} pods wanted, {}", allowed(spec, max));
        return decision(current, Reason::AtMaximum, &why);
    }
    // A pod that holds what it does not hand over neither goes nor works.
    let lowest = to_pods(need.lasting).saturating_add(inputs.sidecars.holding).clamp(min, max);
    let lowest = lowest.max(u32::from(inputs.workload.half_rolled));
    // What was added in a hurry, for a burst or on an assumption, goes in one step when the burst has passed. Of long calls each
    // would be a burst.
    let just_added = history.seconds_since_scale_out(now) < spec.target_wait + RATE_WINDOW;
    let hurried = just_added && !history.has_long_calls();
    let noise = (!hurried || history.grew())
        && lowest > min
        && f64::from(lowest) > f64::from(current) * SCALE_IN_TOLERANCE;
    if lowest >= current || noise {
        let (reason, why) = if current == 0 && raw == 0 {
            (Reason::Idle, "nothing to do".to_owned())
        } else if current == max && history.is_at_most(now) {
            (
                Reason::AtMaximum,
                format!("more than {current} pods were wanted just now, {}", allowed(spec, max)),
            )
        } else if lowest < current {
            (
                Reason::Steady,
                format!("{current} pods fit the load, for which {lowest} would do: less than a tenth fewer"),
            )
        } else if current > min && history.fewer_would_do() {
            let why =
                format!("fewer pods would do at times, what arrived within {:.0} s decides", spec.window());
            (Reason::Stabilizing, why)
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
    let (spacing, step) = if hurried { (0.0, current) } else { (SCALE_IN_SPACING, current.div_ceil(2)) };
    let next = lowest.max(current - step);
    if let Some((reason, why)) = scale_in_blocked(history, need, ready, inputs, spec, next, now) {
        return decision(current, reason, &why);
    }
    // Not by `next`, which grows with what waits: a larger backlog would let pods go then.
    let least = to_pods(need.served).max(current - step);
    let left = need.backlog * need.seconds / f64::from(least.max(1));
    if left > spec.target_wait * LEFT_SHARE {
        let why = format!("{:.0} messages wait, which would take {least} pods {left:.1} s", need.backlog);
        return decision(current, Reason::Stabilizing, &why);
    }
    if history.seconds_since_scale_in(now).min(history.seconds_since_scale_out(now)) < spacing {
        return decision(current, Reason::Stabilizing, "replicas were changed just now");
    }
    // What outlasts a drain would be called again.
    let kept = match long_work(history, inputs, spec, now) {
        // Which pods go cannot be told then.
        true if inputs.workload.exposed || inputs.workload.half_rolled => current,
        true => inputs.sidecars.busy.min(current),
        false => 0,
    };
    let next = next.max(kept);
    if next == current {
        let why = format!("{kept} pods have work that asks for more time, or may, and are kept for it");
        return decision(current, Reason::InFlight, &why);
    }
    decision(next, Reason::ScaledIn, &format!("{current} to {next} pods"))
}

/// What allows no more pods.
fn allowed(spec: &Spec, max: u32) -> String {
    format!("{} allows {max}", spec.limit())
}

/// Whether some work may outlast a drain.
pub(super) fn long_work(history: &History, inputs: &Inputs, spec: &Spec, now: f64) -> bool {
    history.movement.has_long_work(&inputs.sidecars, spec.handler_timeout, spec.window(), now)
}

/// What forbids taking pods away until `next` are left.
fn scale_in_blocked(
    history: &History,
    need: &Need,
    ready: u64,
    inputs: &Inputs,
    spec: &Spec,
    next: u32,
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
    if ready == 0 && spec.quorum && inputs.contradicted {
        let why =
            "the queue says empty and without consumers, while sidecars consume: it has no leader just now";
        return Some((Reason::ZeroUnconfirmed, why.to_owned()));
    }
    if ready == 0 && !is_zero_confirmed(history, inputs, spec, now) {
        return Some((
            Reason::ZeroUnconfirmed,
            "the queue says empty, which is not confirmed yet".to_owned(),
        ));
    }
    let unsettled = sidecars.unsettled.max(sidecars.in_flight).saturating_add(sidecars.ending);
    if next == 0 && unsettled > 0 {
        let why = format!("{unsettled} messages are not acknowledged yet");
        return Some((Reason::InFlight, why));
    }
    let waiting = need.backlog;
    if waiting > sidecars.in_flight as f64 {
        let why = format!("{waiting:.0} messages wait, more than the {} that run", sidecars.in_flight);
        return Some((Reason::Stabilizing, why));
    }
    if history.took_over() && history.age(now) < spec.window() {
        return Some((Reason::Stabilizing, "the load has not been watched for long enough yet".to_owned()));
    }
    None
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
