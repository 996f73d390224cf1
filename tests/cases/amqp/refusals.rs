//! Each refusal is an error of its own, which says what to do.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use warren_api::queue::{Binding, QueueSpec, QueueType};
use warren_broker::connect::{ConnectOptions, connect};
use warren_broker::error::Difference;
use warren_broker::lapin::options::QueueDeclareOptions;
use warren_broker::topology::plan;
use warren_broker::{BrokerAccess, BrokerError, Category, declare};
use warren_tests::amqp::{Client, queue_type_argument};
use warren_tests::broker::Vhost;
use warren_tests::wait::eventually;

use crate::connection;

async fn refusal(uri: &str) -> BrokerError {
    let access = BrokerAccess::from_uri(uri).unwrap();
    connect(&access, &ConnectOptions::named("test")).await.map(drop).unwrap_err()
}

async fn declaration(uri: &str, name: &str, spec: &QueueSpec) -> BrokerError {
    let connection = connection(uri).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    declare::declare(&channel, &plan(name, spec)).await.unwrap_err().error
}

#[tokio::test]
async fn a_wrong_password_is_a_refused_user() -> Result<()> {
    let vhost = Vhost::new("password").await?;
    let uri = vhost.uri().replace(vhost.broker.password(), "wrong");
    let error = refusal(&uri).await;
    assert!(matches!(&error, BrokerError::AuthRefused { user } if user == "warren"), "{error:?}");
    assert_eq!(error.category(), Category::Terminal);
    Ok(())
}

#[tokio::test]
async fn an_unknown_vhost_is_named() -> Result<()> {
    let broker = Vhost::new("known").await?.broker;
    let error = refusal(&broker.uri("unknown")).await;
    assert!(matches!(&error, BrokerError::VhostRefused { vhost, .. } if vhost == "unknown"), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn a_host_without_a_broker_is_unreachable() -> Result<()> {
    let port = warren_tests::ports::free()?;
    for host in [format!("127.0.0.1:{port}"), "no-such-host.invalid".to_owned()] {
        let error = refusal(&format!("amqp://u:p@{host}")).await;
        assert!(matches!(error, BrokerError::Unreachable { .. }), "{error:?}");
        assert_eq!(error.category(), Category::Retryable);
    }
    Ok(())
}

#[tokio::test]
async fn a_queue_of_other_durability_or_type_is_named_with_what_exists_however_long_its_name_is() -> Result<()>
{
    let vhost = Vhost::new("differences").await?;
    let client = Client::connect(&vhost.uri()).await?;
    let classic = QueueSpec { queue_type: QueueType::Classic, ..QueueSpec::default() };
    let differs = async |name: &str, spec: &QueueSpec| {
        let error = declaration(&vhost.uri(), name, spec).await;
        let BrokerError::Precondition { detail } = &error else { panic!("{error:?}") };
        let Difference { field, values } = Difference::parse(detail).unwrap();
        (field, values.map(|(_, existing)| existing))
    };

    client.declare("work", QueueDeclareOptions::default(), queue_type_argument("classic")).await?;
    assert_eq!(differs("work", &classic).await, ("durable".to_owned(), Some("false".to_owned())));

    client.delete("work").await?;
    client.declare_durable("work", "classic").await?;
    let quorum = QueueSpec::default();
    assert_eq!(differs("work", &quorum).await, ("x-queue-type".to_owned(), Some("classic".to_owned())));
    // The broker's sentence has 255 bytes at most.
    let long = "q".repeat(230);
    client.declare_durable(&long, "classic").await?;
    let (field, existing) = differs(&long, &quorum).await;
    assert!(field.starts_with("x-") && existing.is_none(), "{field}: {existing:?}");
    Ok(())
}

#[tokio::test]
async fn a_missing_right_names_the_queue() -> Result<()> {
    let vhost = Vhost::new("rights").await?;
    vhost.broker.user("reader", "secret").await?;
    vhost.broker.permissions("reader", "rights", "^$", "^$", ".*").await?;
    let uri = vhost.uri().replace(&format!("warren:{}", vhost.broker.password()), "reader:secret");
    let error = declaration(&uri, "work", &QueueSpec::default()).await;
    assert!(
        matches!(&error, BrokerError::AccessRefused { detail } if detail.contains("work.dlq")),
        "{error:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_user_with_all_its_channels_open_is_told_to_wait_and_of_the_limit() -> Result<()> {
    let vhost = Vhost::new("channels").await?;
    vhost.broker.user("thrifty", "secret").await?;
    vhost.broker.permissions("thrifty", "channels", ".*", ".*", ".*").await?;
    vhost.broker.rabbitmqctl(&["set_user_limits", "thrifty", r#"{"max-channels": 1}"#]).await?;
    let uri = vhost.uri().replace(&format!("warren:{}", vhost.broker.password()), "thrifty:secret");
    let connection = connection(&uri).await?;
    let first = connection.create_channel().await?;
    // The broker counts one a moment after it was opened.
    let refused = eventually(Duration::from_secs(60), "one more is refused", async || {
        match connection.create_channel().await {
            Ok(_) => bail!("it was opened"),
            Err(error) => Ok(BrokerError::from(error)),
        }
    });
    let error = refused.await?;
    assert!(
        matches!(&error, BrokerError::ChannelLimit { detail } if detail.contains("thrifty")),
        "{error:?}"
    );
    // So is what was asked for on the channel that was there.
    let error = declare::depth(&first, "work").await.unwrap_err();
    assert_eq!(error.category(), Category::Retryable, "{error:?}");
    Ok(())
}

#[tokio::test]
async fn a_binding_that_amqp_cannot_say_is_refused_and_its_connection_lives_on() -> Result<()> {
    let vhost = Vhost::new("long").await?;
    let connection = connection(&vhost.uri()).await?;
    let binding = |routing_key: String, value: String| Binding {
        exchange: "amq.headers".to_owned(),
        routing_key,
        arguments: BTreeMap::from([("kind".to_owned(), value)]),
        declare: None,
    };
    for (binding, word) in [
        (binding("ж".repeat(128), String::new()), "routing key has 256 bytes"),
        (binding(String::new(), "x".repeat(200_000)), "arguments take"),
    ] {
        let topology = plan("work", &QueueSpec { bindings: vec![binding], ..QueueSpec::default() });
        let channel = connection.create_channel().await?;
        let error = declare::declare(&channel, &topology).await.unwrap_err().error;
        assert_eq!(error.category(), Category::Terminal);
        assert!(error.to_string().contains(word), "{error}");
        // It was never made: there is nothing to take back.
        declare::unbind(&channel, "work", &topology.bindings[0]).await?;
        assert!(declare::depth(&channel, "work").await.is_ok());
    }
    Ok(())
}

#[tokio::test]
async fn a_queue_that_is_missing_is_not_found() -> Result<()> {
    let vhost = Vhost::new("missing").await?;
    let connection = connection(&vhost.uri()).await?;
    let channel = connection.create_channel().await?;
    let error = declare::depth(&channel, "nothing").await.unwrap_err();
    assert!(matches!(error, BrokerError::NotFound { .. }), "{error:?}");
    assert_eq!(error.category(), Category::Waiting);
    Ok(())
}
