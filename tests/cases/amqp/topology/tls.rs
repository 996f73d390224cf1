//! TLS: a private authority, a wrong one, an expired certificate, and clients that must show one.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::json;
use warren_broker::BrokerAccess;
use warren_tests::authority::{Authority, Certified};
use warren_tests::broker::{Broker, Options, Tls, USER};

use super::kept::Keeper;

warren_tests::on_each_release!(
    a_certificate_is_verified_against_the_secret_s_authority,
    a_broker_that_demands_a_certificate_gets_the_secret_s,
);

/// A Secret's keys for the broker's TLS port at a host.
fn access(broker: &Broker, host: &str, keys: &[(&str, &str)]) -> Result<BrokerAccess> {
    let uri = format!("amqps://{USER}:{}@{host}:{}/", broker.password(), broker.ports().amqps);
    let uri = [("uri", uri.as_str())];
    let keys = keys.iter().chain(&uri).map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()));
    Ok(BrokerAccess::parse(&keys.collect::<BTreeMap<_, _>>(), None)?)
}

async fn ready(access: BrokerAccess) -> Result<()> {
    Keeper::new().named("orders", access, json!({}))?.ready().await
}

async fn refused(access: BrokerAccess, words: &[&str]) -> Result<()> {
    let keeper = Keeper::new();
    let mut queue = keeper.named("orders", access, json!({}))?;
    queue.until("BrokerReachable", ("False", "TlsFailed"), words).await.map(drop)
}

/// The broker shows another certificate from now on, as after its files were renewed.
async fn show(broker: &Broker, Certified { certificate, key }: &Certified) -> Result<()> {
    let write = |option: &str, text: &str| {
        format!("ok = file:write_file(proplists:get_value({option}, O), <<{text:?}>>)")
    };
    let answer = broker
        .eval(&format!(
            "begin {{ok, O}} = application:get_env(rabbit, ssl_options), {}, {}, ssl:clear_pem_cache() end",
            write("certfile", certificate),
            write("keyfile", key)
        ))
        .await?;
    ensure!(answer.contains("{ok, ok}"), "{answer}");
    Ok(())
}

async fn a_certificate_is_verified_against_the_secret_s_authority(options: Options) -> Result<()> {
    let (ours, other) = (Authority::new("ours")?, Authority::new("other")?);
    let hosts = ["localhost".to_owned()];
    let tls = Tls::new(&ours, &hosts)?;
    let broker = Broker::start(options.tls_only(tls)).await?;
    let (ours_pem, other_pem) = (ours.certificate(), other.certificate());
    let with = |ca| access(&broker, "localhost", &[("ca.crt", ca)]);
    ready(with(ours_pem.as_str())?).await?;
    refused(with(other_pem.as_str())?, &["ca.crt"]).await?;
    refused(access(&broker, "localhost", &[])?, &["ca.crt"]).await?;
    // The certificate does not name this host.
    refused(access(&broker, "127.0.0.1", &[("ca.crt", &ours_pem)])?, &["names this host"]).await?;
    show(&broker, &ours.issue_expired("broker", &hosts)?).await?;
    refused(with(ours_pem.as_str())?, &["xpired"]).await?;
    show(&broker, &ours.issue("broker", "warren", &hosts)?).await?;
    ready(with(ours_pem.as_str())?).await
}

async fn a_broker_that_demands_a_certificate_gets_the_secret_s(options: Options) -> Result<()> {
    let (ours, other) = (Authority::new("ours")?, Authority::new("other")?);
    let tls = Tls::new(&ours, &["localhost".to_owned()])?.mutual();
    let broker = Broker::start(options.tls_only(tls)).await?;
    let ca = ours.certificate();
    let shown = |client: &Certified| {
        let Certified { certificate, key } = client;
        access(&broker, "localhost", &[("ca.crt", &ca), ("tls.crt", certificate), ("tls.key", key)])
    };
    ready(shown(&ours.issue("client", "warren", &[])?)?).await?;
    for refused in
        [access(&broker, "localhost", &[("ca.crt", &ca)])?, shown(&other.issue("client", "x", &[])?)?]
    {
        let keeper = Keeper::new();
        let mut queue = keeper.named("orders", refused, json!({}))?;
        queue.until("BrokerReachable", ("False", "TlsFailed"), &[]).await?;
    }
    Ok(())
}
