//! The connection that comes back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use warren_broker::connect::ConnectOptions;
use warren_broker::supervisor::{Link, LinkState, Supervisor};
use warren_broker::{BrokerAccess, BrokerError, channel, declare};
use warren_tests::amqp::Client;
use warren_tests::broker::{Alarm, Broker, Options, Vhost};

const PATIENCE: Duration = Duration::from_secs(60);

async fn link(states: &mut watch::Receiver<LinkState>, wanted: impl Fn(&Link) -> bool) -> Result<Link> {
    let up = states.wait_for(|state| state.link().is_some_and(&wanted));
    let state = tokio::time::timeout(PATIENCE, up).await??;
    Ok(state.link().cloned().unwrap())
}

async fn down(states: &mut watch::Receiver<LinkState>) -> Result<()> {
    let down = states.wait_for(|state| matches!(state, LinkState::Down(_)));
    tokio::time::timeout(PATIENCE, down).await??;
    Ok(())
}

#[tokio::test]
async fn a_lost_connection_comes_back_with_a_new_generation() -> Result<()> {
    let broker = Broker::start(Options::new("supervisor")).await?;
    broker.user("second", "secret").await?;
    broker.permissions("second", "/", ".*", ".*", ".*").await?;
    let access = Arc::new(BrokerAccess::from_uri(&broker.uri("/"))?);
    let (rotate, access) = watch::channel(access);
    let supervisor = Supervisor::spawn(access, ConnectOptions::named("test"));
    let mut states = supervisor.state();
    let first = link(&mut states, |_| true).await?;
    assert_eq!(first.generation, 1);

    broker.kill9().await?;
    down(&mut states).await?;
    broker.start_again().await?;
    assert_eq!(link(&mut states, |link| link.generation > 1).await?.generation, 2);

    broker.set_alarm(Alarm::Memory).await?;
    // A broker tells of an alarm on connections that have published.
    let connection = link(&mut states, |_| true).await?.connection;
    let channel = connection.create_channel().await?;
    let (options, properties) = Default::default();
    channel.basic_publish("".into(), "nowhere".into(), options, b"", properties).await?;
    link(&mut states, |link| link.blocked.is_some()).await?;
    broker.clear_alarm(Alarm::Memory).await?;
    link(&mut states, |link| link.blocked.is_none()).await?;

    first.give_up();
    let uri = broker.uri("/").replace(&format!("warren:{}", broker.password()), "second:secret");
    rotate.send(Arc::new(BrokerAccess::from_uri(&uri)?))?;
    let third = link(&mut states, |link| link.generation > 2).await?;
    assert_eq!(third.generation, 3);

    third.give_up();
    assert_eq!(link(&mut states, |link| link.generation > 3).await?.generation, 4);
    Ok(())
}

#[tokio::test]
async fn a_connection_that_went_silent_is_given_up_within_two_heartbeats() -> Result<()> {
    let broker = Broker::start(Options::new("silent")).await?;
    let (_keep, access) = watch::channel(Arc::new(BrokerAccess::from_uri(&broker.uri("/"))?));
    let options = ConnectOptions { heartbeat_seconds: 2, ..ConnectOptions::named("test") };
    let supervisor = Supervisor::spawn(access, options);
    let mut states = supervisor.state();
    link(&mut states, |_| true).await?;
    broker.freeze().await?;
    tokio::time::timeout(Duration::from_secs(10), down(&mut states)).await??;
    broker.thaw().await?;
    link(&mut states, |link| link.generation > 1).await?;
    Ok(())
}

#[tokio::test]
async fn what_was_refused_on_a_channel_is_no_answer_on_one_that_has_its_number_later() -> Result<()> {
    let vhost = Vhost::new("numbers").await?;
    let (_keep, access) = watch::channel(Arc::new(BrokerAccess::from_uri(&vhost.uri())?));
    let supervisor = Supervisor::spawn(access, ConnectOptions::named("test"));
    let mut states = supervisor.state();
    let first = link(&mut states, |_| true).await?;
    let client = Client::connect(&vhost.uri()).await?;
    client.declare_durable("there", "classic").await?;
    let look = async |link: &Link, queue| {
        let channel = channel::open(link).await?;
        let depth = declare::depth(&channel, queue).await?;
        channel.close(200, "done".into()).await?;
        Ok::<_, BrokerError>(depth)
    };
    let numbers = first.connection.configuration().channel_max();
    // One number is refused something, and all come again.
    look(&first, "missing").await.unwrap_err();
    for _ in 0..=numbers {
        look(&first, "there").await?;
    }
    // All are refused something: the connection is given up for another one.
    let mut refused = 1;
    while let Err(BrokerError::NotFound { .. }) = look(&first, "missing").await {
        refused += 1;
    }
    assert_eq!(refused, numbers);
    let second = link(&mut states, |link| link.generation > 1).await?;
    look(&second, "there").await?;
    Ok(())
}
