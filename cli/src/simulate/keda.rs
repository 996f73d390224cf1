//! A model of KEDA's RabbitMQ scaler with its defaults, and of the HPA that it drives.
//!
//! KEDA polls each 30 s and takes a workload from zero to one, or back to zero after a cooldown of 300 s without messages
//! (<https://keda.sh/docs/latest/reference/scaledobject-spec/>). In between the HPA syncs each 15 s: the metric's average a
//! pod against the target with a tolerance of 0.1, up by doubling or 4 pods each 15 s, whichever is more, down to the most
//! that was recommended within five minutes, as with the defaults of an HPA's `behavior`
//! (<https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/>).

use std::collections::VecDeque;

use super::setting::Protocol;
use super::world::{Autoscaler, Look, Seen};

const POLL: f64 = 30.0;
const SYNC: f64 = 15.0;
const COOLDOWN: f64 = 300.0;
const STABILISATION: f64 = 300.0;
const TOLERANCE: f64 = 0.1;
const MOST_ADDED: u32 = 4;
/// The HPA knows thousandths.
const LEAST_VALUE: f64 = 0.001;
/// Times that differ by less are the same.
const EPSILON: f64 = 1e-6;

/// The model's state.
#[derive(Clone, Debug)]
pub struct KedaHpa {
    min: u32,
    max: u32,
    /// KEDA's `value`: messages a pod.
    value: f64,
    protocol: Protocol,
    next_poll: f64,
    next_sync: f64,
    last_active: f64,
    recommended: VecDeque<(f64, u32)>,
}

impl KedaHpa {
    /// KEDA with `value` set to the backlog that one pod clears within the target, at `service` seconds a call. Polls and syncs are in the middle of their
    /// intervals, so that a load that begins at a round minute waits for them as long as loads do on average.
    pub fn new(
        min: u32,
        max: u32,
        target_wait: f64,
        service: f64,
        concurrency: u32,
        protocol: Protocol,
    ) -> Self {
        Self {
            min,
            max,
            value: (target_wait * f64::from(concurrency) / service).max(LEAST_VALUE),
            protocol,
            next_poll: POLL / 2.0,
            next_sync: SYNC / 2.0,
            last_active: f64::NEG_INFINITY,
            recommended: VecDeque::new(),
        }
    }

    /// KEDA's own part: between zero and one.
    fn poll(&mut self, messages: u64, replicas: u32, now: f64) -> u32 {
        if messages > 0 {
            self.last_active = now;
            return replicas.max(self.min.max(1));
        }
        if self.min == 0 && now - self.last_active >= COOLDOWN {
            self.recommended.clear();
            return 0;
        }
        replicas
    }

    /// The HPA's part: from one on.
    fn sync(&mut self, messages: u64, replicas: u32, now: f64) -> u32 {
        if replicas == 0 {
            return 0;
        }
        let ratio = messages as f64 / (self.value * f64::from(replicas));
        let wanted = if (ratio - 1.0).abs() <= TOLERANCE {
            replicas
        } else {
            // The cast saturates.
            (messages as f64 / self.value).ceil() as u32
        };
        let (least, most) = (self.min.max(1), self.max.max(1));
        let wanted = wanted.clamp(least, most);
        if self.recommended.is_empty() {
            self.recommended.push_back((now, replicas));
        }
        self.recommended.push_back((now, wanted));
        while self.recommended.front().is_some_and(|(at, _)| now - at >= STABILISATION) {
            self.recommended.pop_front();
        }
        if wanted > replicas {
            return wanted.min((replicas * 2).max(replicas + MOST_ADDED));
        }
        let stabilised = self.recommended.iter().map(|(_, replicas)| *replicas).max().unwrap_or(wanted);
        stabilised.min(replicas)
    }
}

impl Autoscaler for KedaHpa {
    fn look(&mut self, seen: &Seen, now: f64) -> Look {
        let mut replicas = seen.replicas;
        let messages = match self.protocol {
            Protocol::Amqp => seen.ready,
            Protocol::Http => seen.ready + seen.unsettled + seen.ending,
        };
        if now + EPSILON >= self.next_poll {
            self.next_poll += POLL;
            replicas = self.poll(messages, replicas, now);
        }
        if now + EPSILON >= self.next_sync {
            self.next_sync += SYNC;
            replicas = self.sync(messages, replicas, now);
        }
        Look { replicas, again_in: self.next_poll.min(self.next_sync) - now }
    }

    fn spares_the_busy(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(ready: impl Fn(f64) -> u64, until: f64) -> Vec<(f64, u32)> {
        looks_with(0.1, ready, until)
    }

    fn looks_with(service: f64, ready: impl Fn(f64) -> u64, until: f64) -> Vec<(f64, u32)> {
        let mut scaler = KedaHpa {
            next_poll: 0.0,
            next_sync: 0.0,
            ..KedaHpa::new(0, 50, 10.0, service, 1, Protocol::Amqp)
        };
        let (mut now, mut replicas, mut changes) = (0.0, 0, vec![]);
        while now < until {
            let look = scaler.look(&Seen { ready: ready(now), replicas, ..Seen::default() }, now);
            if look.replicas != replicas {
                changes.push((now, look.replicas));
                replicas = look.replicas;
            }
            now += look.again_in;
        }
        changes
    }

    #[test]
    fn the_first_pod_waits_for_a_poll_and_the_rest_come_by_doubling() {
        // 4,000 messages at 100 a pod: 40 pods.
        let changes = looks(|now| if now > 1.0 { 4000 } else { 0 }, 120.0);
        assert_eq!(changes, [(30.0, 5), (45.0, 10), (60.0, 20), (75.0, 40)]);
    }

    #[test]
    fn an_empty_queue_ends_the_pods_after_the_cooldown() {
        let changes = looks(|now| if now < 50.0 { 1000 } else { 0 }, 1000.0);
        assert_eq!(changes, [(0.0, 5), (15.0, 10), (330.0, 0)]);
    }

    #[test]
    fn a_pod_s_backlog_may_be_a_fraction_of_a_message() {
        // 4 messages at 1.43 a pod, then at 0.5 a pod.
        assert_eq!(looks_with(7.0, |_| 4, 15.0), [(0.0, 3)]);
        assert_eq!(looks_with(20.0, |_| 4, 30.0), [(0.0, 5), (15.0, 8)]);
    }

    #[test]
    fn over_http_what_is_not_acknowledged_counts_too() {
        let held = Seen { ready: 300, unsettled: 150, ending: 50, replicas: 1, ..Seen::default() };
        for (protocol, pods) in [(Protocol::Amqp, 3), (Protocol::Http, 5)] {
            let mut scaler =
                KedaHpa { next_poll: 0.0, next_sync: 0.0, ..KedaHpa::new(0, 50, 10.0, 0.1, 1, protocol) };
            assert_eq!(scaler.look(&held, 0.0).replicas, pods, "{protocol:?}");
        }
    }

    #[test]
    fn within_the_tolerance_nothing_moves() {
        assert_eq!(looks(|now| if now < 31.0 { 500 } else { 545 }, 200.0), [(0.0, 5)]);
    }
}
