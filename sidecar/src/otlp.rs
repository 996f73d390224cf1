//! One span a message, exported over OTLP when the standard `OTEL_*` variables ask for it
//! (<https://opentelemetry.io/docs/specs/otel/protocol/exporter/>).
//!
//! Spans go as OTLP/HTTP with JSON, which every collector takes on port 4318. A full queue or a collector that is down costs
//! spans, which are counted, and never a message. The names are those of the messaging conventions, pinned here.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::Uri;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::handler::endpoint::Endpoint;
use crate::handler::pool::post;
use crate::handler::trace::Context;
use crate::metrics::Metrics;

/// The semantic conventions that the names below are from.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.30.0";
/// Where spans go that are asked for without a place.
const DEFAULT: &str = "http://localhost:4318";
/// Where collectors take gRPC, as an address has it.
const GRPC_PORT: u16 = 4317;
/// Spans that wait for export at most.
const QUEUE: usize = 2048;
/// Spans in one export at most.
const EXPORT: usize = 512;
/// Links of a span at most, as by default in OpenTelemetry (`OTEL_SPAN_LINK_COUNT_LIMIT`).
const LINKS: usize = 128;
/// How long spans wait for others.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long the last export may take.
const LAST: Duration = Duration::from_secs(1);
/// How long an export may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What the environment asks for.
#[derive(Clone, Debug)]
pub struct Config {
    endpoint: Endpoint,
    headers: HeaderMap,
    sampler: Sampler,
    resource: Vec<(String, String)>,
}

/// Which traces are exported.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Obey the message's own trace, if it has one.
    parent: bool,
    /// The share of the others.
    ratio: f64,
}

/// Why the variables cannot be obeyed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadConfig {
    /// The endpoint is no plain HTTP address.
    #[error(
        "OTEL_EXPORTER_OTLP_ENDPOINT \"{0}\" is no address of the form http://host:4318: no spans are exported"
    )]
    Endpoint(String),
    /// The endpoint takes gRPC.
    #[error(
        "OTEL_EXPORTER_OTLP_ENDPOINT \"{0}\" takes gRPC, and the sidecar exports OTLP over HTTP (port 4318): no spans are exported"
    )]
    Grpc(String),
    /// The sampler is not known.
    #[error("OTEL_TRACES_SAMPLER \"{0}\" is not known: no spans are exported")]
    Sampler(String),
}

/// An address as it may be logged, whatever form its login has.
fn without_login(url: &str) -> String {
    let Some((login, place)) = url.rsplit_once('@') else { return url.to_owned() };
    login.split_once("://").map_or_else(|| place.to_owned(), |(scheme, _)| format!("{scheme}://{place}"))
}

impl Config {
    /// Reads the variables; none if they ask for no spans.
    ///
    /// # Errors
    /// If they ask for something that cannot be done.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, BadConfig> {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let lists_otlp =
            get("OTEL_TRACES_EXPORTER").map(|list| list.split(',').any(|one| one.trim() == "otlp"));
        let off = get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || lists_otlp == Some(false);
        let url = get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| {
            let default = || lists_otlp?.then(|| DEFAULT.to_owned());
            let base = get("OTEL_EXPORTER_OTLP_ENDPOINT").or_else(default)?;
            Some(format!("{}/v1/traces", base.trim_end_matches('/')))
        });
        let (false, Some(url)) = (off, url) else { return Ok(None) };
        let protocol =
            get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| get("OTEL_EXPORTER_OTLP_PROTOCOL"));
        let place = url.split_once("://").map_or(&*url, |(_, place)| place);
        let of_grpc =
            || format!("http://{place}").parse::<Uri>().is_ok_and(|url| url.port_u16() == Some(GRPC_PORT));
        if protocol.as_deref().map_or_else(of_grpc, |protocol| protocol == "grpc") {
            return Err(BadConfig::Grpc(without_login(&url)));
        }
        let endpoint = Endpoint::parse(&url).map_err(|_| BadConfig::Endpoint(without_login(&url)))?;
        let mut headers = HeaderMap::new();
        let given = get("OTEL_EXPORTER_OTLP_TRACES_HEADERS").or_else(|| get("OTEL_EXPORTER_OTLP_HEADERS"));
        for (name, value) in pairs(&given.unwrap_or_default()) {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                headers.insert(name, value);
            }
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut resource = pairs(&get("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default());
        if let Some(name) = get("OTEL_SERVICE_NAME") {
            resource.retain(|(key, _)| key != "service.name");
            resource.push(("service.name".to_owned(), name));
        }
        let sampler =
            Sampler::parse(get("OTEL_TRACES_SAMPLER").as_deref(), get("OTEL_TRACES_SAMPLER_ARG").as_deref())?;
        Ok(Some(Self { endpoint, headers, sampler, resource }))
    }
}

/// `a=b,c=d`, percent-encoded.
fn pairs(text: &str) -> Vec<(String, String)> {
    let decode = |part: &str| percent_decode_str(part.trim()).decode_utf8_lossy().into_owned();
    text.split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

impl Sampler {
    /// Reads `OTEL_TRACES_SAMPLER` and its argument.
    ///
    /// # Errors
    /// If the sampler is not known.
    pub fn parse(name: Option<&str>, argument: Option<&str>) -> Result<Self, BadConfig> {
        let ratio = argument.and_then(|text| text.parse::<f64>().ok()).unwrap_or(1.0).clamp(0.0, 1.0);
        match name {
            None | Some("parentbased_always_on") => Ok(Self { parent: true, ratio: 1.0 }),
            Some("parentbased_always_off") => Ok(Self { parent: true, ratio: 0.0 }),
            Some("parentbased_traceidratio") => Ok(Self { parent: true, ratio }),
            Some("always_on") => Ok(Self { parent: false, ratio: 1.0 }),
            Some("always_off") => Ok(Self { parent: false, ratio: 0.0 }),
            Some("traceidratio") => Ok(Self { parent: false, ratio }),
            Some(other) => Err(BadConfig::Sampler(other.to_owned())),
        }
    }

    /// The trace that goes on, or a new one, with the decision about it: the calls that follow are told.
    pub fn decide(self, own: Option<Context>) -> Context {
        let context = own.unwrap_or_else(Context::fresh);
        Context { sampled: self.takes(&context), ..context }
    }

    fn takes(self, context: &Context) -> bool {
        if self.parent && context.parent_id.is_some() {
            return context.sampled;
        }
        // The last 14 digits of a trace id are random by the standard.
        let random = context.trace_id.get(18..).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        random.is_some_and(|random| (random as f64) < self.ratio * (1_u64 << 56) as f64)
    }
}

/// A time of the wall clock, from which the time that passes is counted by a clock that nobody sets.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    wall: SystemTime,
    steady: Instant,
}

impl Moment {
    /// Now.
    pub fn now() -> Self {
        Self { wall: SystemTime::now(), steady: Instant::now() }
    }

    /// Now, as the wall clock would say had it not been set meanwhile.
    fn then(self) -> SystemTime {
        self.wall + self.steady.elapsed()
    }
}

/// A span that has begun.
#[derive(Clone, Debug)]
pub struct Begun {
    /// The trace.
    pub context: Context,
    /// The span's own id.
    pub span_id: String,
    /// The traces of a batch's messages.
    pub links: Vec<Context>,
    /// When.
    pub at: Moment,
    /// What is known at the begin.
    pub attributes: Vec<(&'static str, Value)>,
}

/// The way to the exporter.
#[derive(Debug)]
pub struct Spans {
    exporter: JoinHandle<()>,
    /// Of spans as text, which takes a tenth of a tree.
    sender: mpsc::Sender<String>,
    sampler: Sampler,
    metrics: Arc<Metrics>,
}

impl Spans {
    /// Starts exporting.
    pub fn start(config: Config, defaults: Vec<(String, String)>, metrics: Arc<Metrics>) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let sampler = config.sampler;
        let exporter = tokio::spawn(export(config, defaults, receiver, Arc::clone(&metrics)));
        Self { exporter, sender, sampler, metrics }
    }

    /// Sends the spans that still wait for others, if the collector takes them soon: the process is about to end.
    pub async fn finish(self) {
        let Self { exporter, sender, sampler: _, metrics: _ } = self;
        drop(sender);
        // Spans are worth no more than that.
        let _ = tokio::time::timeout(LAST, exporter).await;
    }

    /// Which traces are exported.
    pub fn sampler(&self) -> Sampler {
        self.sampler
    }

    /// A span has ended: with a status of HTTP, or without an answer.
    pub fn end(&self, begun: &Begun, queue: &str, status: Option<u16>, error: Option<String>) {
        let mut attributes: Vec<Value> =
            begun.attributes.iter().map(|(name, value)| attribute(name, value.clone())).collect();
        attributes.push(attribute("messaging.system", "rabbitmq".into()));
        attributes.push(attribute("messaging.operation.type", "process".into()));
        attributes.push(attribute("messaging.operation.name", "process".into()));
        if let Some(status) = status {
            attributes.push(attribute("http.response.status_code", status.into()));
        }
        if error.is_some() {
            let kind = status.map_or_else(|| "_OTHER".to_owned(), |status| status.to_string());
            attributes.push(attribute("error.type", kind.into()));
        }
        let links: Vec<Value> = begun
            .links
            .iter()
            .take(LINKS)
            .filter_map(|link| Some(json!({"traceId": link.trace_id, "spanId": link.parent_id.as_ref()?})))
            .collect();
        let span = json!({
            "traceId": begun.context.trace_id,
            "spanId": begun.span_id,
            "parentSpanId": begun.context.parent_id.clone().unwrap_or_default(),
            "name": format!("process {queue}"),
            "kind": 5,
            "startTimeUnixNano": nanoseconds(begun.at.wall),
            "endTimeUnixNano": nanoseconds(begun.at.then()),
            "attributes": attributes,
            "links": links,
            "status": error.map_or_else(|| json!({}), |message| json!({"code": 2, "message": message})),
        });
        if self.sender.try_send(span.to_string()).is_err() {
            self.metrics.spans_dropped.inc();
        }
    }
}

fn nanoseconds(at: SystemTime) -> String {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

fn attribute(name: &str, value: Value) -> Value {
    let value = match value {
        Value::Number(number) => json!({"intValue": number.to_string()}),
        Value::String(text) => json!({"stringValue": text}),
        other => json!({"stringValue": other.to_string()}),
    };
    json!({"key": name, "value": value})
}

/// Collects spans and sends them until the process ends.
async fn export(
    config: Config,
    defaults: Vec<(String, String)>,
    mut spans: mpsc::Receiver<String>,
    metrics: Arc<Metrics>,
) {
    let own = config.resource.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let resource: Vec<Value> = defaults
        .into_iter()
        .filter(|(name, _)| !own.contains(name))
        .chain(config.resource)
        .map(|(name, value)| attribute(&name, value.into()))
        .collect();
    let resource = json!({"attributes": resource});
    let scope = json!({"name": "warren-sidecar", "version": env!("CARGO_PKG_VERSION")});
    let mut failing = false;
    loop {
        let mut batch = Vec::new();
        if spans.recv_many(&mut batch, EXPORT).await == 0 {
            return;
        }
        let until = tokio::time::Instant::now() + INTERVAL;
        while batch.len() < EXPORT {
            let room = EXPORT - batch.len();
            match tokio::time::timeout_at(until, spans.recv_many(&mut batch, room)).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        let count = batch.len() as u64;
        let spans_of_it = batch.join(",");
        drop(batch);
        let body = format!(
            r#"{{"resourceSpans": [{{"resource": {resource}, "scopeSpans": [{{"scope": {scope}, "schemaUrl": "{SCHEMA}", "spans": [{spans_of_it}]}}]}}]}}"#
        );
        let sent = post(&config.endpoint, config.headers.clone(), Bytes::from(body), TIMEOUT).await;
        let problem = match sent {
            Ok(answer) if (200..300).contains(&answer.status) => None,
            Ok(answer) => Some(format!("it answered {}", answer.status)),
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = &problem {
            metrics.spans_dropped.inc_by(count);
            if !failing {
                tracing::warn!(url = %config.endpoint.url(), problem, "the collector takes no spans");
            }
        }
        failing = problem.is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> Result<Option<Config>, BadConfig> {
        Config::from_variables(|name| {
            variables.iter().find(|(given, _)| *given == name).map(|(_, value)| (*value).to_owned())
        })
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");

    #[test]
    fn without_an_endpoint_or_when_turned_off_nothing_is_exported() {
        assert!(config(&[]).unwrap().is_none());
        assert!(config(&[ENDPOINT, ("OTEL_SDK_DISABLED", "true")]).unwrap().is_none());
        assert!(config(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]).unwrap().is_none());
        assert!(config(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "console, otlp")]).unwrap().is_some());
        assert!(config(&[("OTEL_TRACES_EXPORTER", "console")]).unwrap().is_none());
    }

    #[test]
    fn what_is_asked_for_by_the_exporter_alone_goes_to_the_standard_s_place() {
        let asked = config(&[("OTEL_TRACES_EXPORTER", "otlp")]).unwrap().unwrap();
        assert_eq!(asked.endpoint.url(), "http://localhost:4318/v1/traces");
        let grpc = [("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
        assert!(matches!(config(&grpc), Err(BadConfig::Grpc(_))));
    }

    #[test]
    fn the_endpoint_gets_the_signals_path_unless_it_is_the_signals_own() {
        let url = |variables: &[(&str, &str)]| config(variables).unwrap().unwrap().endpoint.url();
        assert_eq!(url(&[ENDPOINT]), "http://collector:4318/v1/traces");
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://other:4318/spans");
        assert_eq!(url(&[ENDPOINT, own]), "http://other:4318/spans");
        let tls = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector");
        assert!(matches!(config(&[tls]), Err(BadConfig::Endpoint(_))));
        for scheme in ["https://", ""] {
            let login = format!("{scheme}user:se/cret@collector");
            let said = config(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &login)]).unwrap_err().to_string();
            assert!(said.contains(&format!("\"{scheme}collector")) && !said.contains("cret"), "{said}");
        }
    }

    #[test]
    fn an_endpoint_for_grpc_gets_no_http() {
        let grpc = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");
        assert!(matches!(config(&[grpc]), Err(BadConfig::Grpc(_))));
        assert!(config(&[grpc, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]).is_ok());
        assert!(matches!(
            config(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]),
            Err(BadConfig::Grpc(_))
        ));
    }

    #[test]
    fn the_sampler_obeys_the_parent_and_the_ratio() {
        let context = |parent: bool, sampled, digits: &str| Context {
            trace_id: format!("{digits:0>32}"),
            parent_id: parent.then(|| "b7ad6b7169203331".to_owned()),
            sampled,
        };
        let default = Sampler::parse(None, None).unwrap();
        assert!(default.takes(&context(false, false, "1")) && !default.takes(&context(true, false, "1")));
        let half = Sampler::parse(Some("traceidratio"), Some("0.5")).unwrap();
        assert!(
            half.takes(&context(true, false, "1")) && !half.takes(&context(true, true, "ffffffffffffff"))
        );
        assert!(Sampler::parse(Some("often"), None).is_err());
        let off = Sampler::parse(Some("always_off"), None).unwrap();
        assert!(!off.decide(None).sampled && !off.decide(Some(context(true, true, "1"))).sampled);
        assert!(default.decide(None).sampled);
    }

    #[test]
    fn a_span_is_as_long_as_the_work_was_though_the_wall_clock_is_set_back_an_hour() {
        let begun = Moment { wall: SystemTime::now() + Duration::from_secs(3600), steady: Instant::now() };
        let length = begun.then().duration_since(begun.wall).unwrap();
        assert!(length < Duration::from_secs(600), "{length:?}");
    }

    #[test]
    fn resource_and_headers_are_read_percent_decoded() {
        let config = config(&[
            ENDPOINT,
            ("OTEL_RESOURCE_ATTRIBUTES", "team=a%20b,service.name=x"),
            ("OTEL_SERVICE_NAME", "invoices"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s%3D1"),
        ]);
        let config = config.unwrap().unwrap();
        assert_eq!(
            config.resource,
            [("team".into(), "a b".into()), ("service.name".into(), "invoices".into())]
        );
        assert_eq!(config.headers.get("api-key").unwrap(), "s=1");
    }
}
