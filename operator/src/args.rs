//! The command line, each flag an environment variable too.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// Warren's operator.
#[derive(Parser, Clone, Debug)]
#[command(version, about)]
pub struct Args {
    /// Namespaces to watch, separated by commas; default: all.
    #[arg(long, env = "WARREN_WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,

    /// Seconds between two checks that a Queue is still on its broker as declared.
    #[arg(long, env = "WARREN_DRIFT_CHECK_SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub drift_check_seconds: u32,

    /// The sidecar image that Workers get unless they name one.
    #[arg(long, env = "WARREN_SIDECAR_IMAGE", default_value_t = concat!("localhost/warren-sidecar:", env!("CARGO_PKG_VERSION")).to_owned())]
    pub sidecar_image: String,

    /// How logs are written; RUST_LOG filters them.
    #[arg(long, env = "WARREN_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,

    /// Address of /metrics, /livez and /readyz.
    #[arg(long, env = "WARREN_LISTEN", default_value = "[::]:8080")]
    pub listen: SocketAddr,

    /// Whether to elect a leader by a Lease, so that several replicas can run; one of them works.
    #[arg(long, env = "WARREN_LEADER_ELECT", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_elect: bool,

    /// Namespace of that Lease; default: the pod's own.
    #[arg(long, env = "WARREN_NAMESPACE")]
    pub namespace: Option<String>,

    /// This process's name in the election; default: the pod's name. No two living processes may share it.
    #[arg(long, env = "WARREN_IDENTITY")]
    pub identity: Option<String>,
}

/// How logs are written.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl Args {
    /// The scopes to watch: each namespace, or none for all.
    pub fn scopes(&self) -> Vec<Option<String>> {
        let named: Vec<_> =
            self.watch_namespaces.iter().filter(|n| !n.is_empty()).cloned().map(Some).collect();
        if named.is_empty() { vec![None] } else { named }
    }

    /// This process's name in the election. A pod's name outlives its container, so that a container that was started
    /// again leads at once; elsewhere processes are told apart by their number.
    pub fn identity(&self) -> String {
        if let Some(identity) = &self.identity {
            return identity.clone();
        }
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "warren-operator".to_owned());
        match std::env::var_os("KUBERNETES_SERVICE_HOST") {
            Some(_) => host,
            None => format!("{host}-{}", std::process::id()),
        }
    }

    /// How often a Queue is checked.
    pub fn drift_check(&self) -> Duration {
        Duration::from_secs(u64::from(self.drift_check_seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_namespaces_everything_is_one_scope() {
        let args = Args::parse_from(["operator"]);
        assert_eq!(args.scopes(), [None]);
        let args = Args::parse_from(["operator", "--watch-namespaces", "a,b"]);
        assert_eq!(args.scopes(), [Some("a".to_owned()), Some("b".to_owned())]);
    }
}
