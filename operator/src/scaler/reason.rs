//! Why the replicas are what they are.

/// Why the replicas are what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// More pods are needed and asked for.
    ScaledOut,
    /// Fewer pods are needed, and some are let go.
    ScaledIn,
    /// The pods that are there fit the load.
    Steady,
    /// Fewer pods would do, but not for long enough yet.
    Stabilizing,
    /// Fewer pods would do, but a schedule asks for these.
    Scheduled,
    /// More pods are needed than `maxReplicas` allows.
    AtMaximum,
    /// Nothing to do.
    Idle,
    /// Consuming is held: by `consumer.paused`, or as `QueueReady` says.
    Paused,
    /// The ready count is missing or stale.
    DepthUnknown,
    /// Some sidecars cannot be scraped: pods may hold work that is not seen.
    SidecarsUnreachable,
    /// No sidecar can be scraped.
    MetricsUnreachable,
    /// The handlers fail: more pods do not mend what is behind them.
    HandlerFailing,
    /// There is work, and nothing moves.
    Stalled,
    /// A zero that has not been confirmed.
    ZeroUnconfirmed,
    /// Messages are being worked on.
    InFlight,
    /// A rollout is under way.
    RollingOut,
}

impl Reason {
    /// The reason as conditions, events and metric labels show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ScaledOut => "ScaledOut",
            Self::ScaledIn => "ScaledIn",
            Self::Steady => "Steady",
            Self::Stabilizing => "Stabilizing",
            Self::Scheduled => "Scheduled",
            Self::AtMaximum => "AtMaximum",
            Self::Idle => "Idle",
            Self::Paused => "Paused",
            Self::DepthUnknown => "DepthUnknown",
            Self::SidecarsUnreachable => "SidecarsUnreachable",
            Self::MetricsUnreachable => "MetricsUnreachable",
            Self::HandlerFailing => "HandlerFailing",
            Self::Stalled => "Stalled",
            Self::ZeroUnconfirmed => "ZeroUnconfirmed",
            Self::InFlight => "InFlight",
            Self::RollingOut => "RollingOut",
        }
    }

    /// Whether the scaler would move replicas and may not, while nothing is wrong with the Worker: only an event tells of it.
    pub const fn is_hindrance(self) -> bool {
        matches!(self, Self::AtMaximum | Self::SidecarsUnreachable)
    }

    /// Whether the scaler sees what it needs: the status of condition `ScalingActive`.
    pub const fn is_active(self) -> bool {
        !matches!(self, Self::DepthUnknown | Self::MetricsUnreachable | Self::Stalled | Self::HandlerFailing)
    }
}

#[cfg(test)]
mod tests {
    use super::Reason::{self, *};

    const ALL: [Reason; 16] = [
        ScaledOut,
        ScaledIn,
        Steady,
        Stabilizing,
        Scheduled,
        AtMaximum,
        Idle,
        Paused,
        DepthUnknown,
        SidecarsUnreachable,
        MetricsUnreachable,
        HandlerFailing,
        Stalled,
        ZeroUnconfirmed,
        InFlight,
        RollingOut,
    ];

    #[test]
    fn scaling_is_not_active_where_the_scaler_is_blind_or_more_pods_would_mend_nothing() {
        let inactive: Vec<_> = ALL.into_iter().filter(|reason| !reason.is_active()).collect();
        assert_eq!(inactive, [DepthUnknown, MetricsUnreachable, HandlerFailing, Stalled]);
    }

    #[test]
    fn a_warning_tells_of_limits_and_of_sidecars_that_hold_up_a_scale_in() {
        let hindrances: Vec<_> = ALL.into_iter().filter(|reason| reason.is_hindrance()).collect();
        assert_eq!(hindrances, [AtMaximum, SidecarsUnreachable]);
    }

    #[test]
    fn every_reason_is_told_as_it_is_named() {
        assert!(ALL.iter().all(|reason| reason.as_str() == format!("{reason:?}")));
    }
}
