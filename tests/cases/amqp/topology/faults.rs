//! Brokers that fail, each beside one that does not: nobody waits for a broker.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::net::TcpListener;
use warren_broker::BrokerAccess;
use warren_operator::brokers::Key;
use warren_tests::amqp::Client;
use warren_tests::broker::{Alarm, Broker, Options, Vhost};
use warren_tests::wait::eventually;

use super::kept::{CONNECTION, Keeper, Kept, PATIENCE};
use super::look::connected_at;

warren_tests::on_each_release!(
    two_thousand_queues_on_a_dead_broker_do_not_delay_ten_on_a_live_one,
    a_broker_that_never_answers_is_told_and_delays_nobody,
    another_address_of_the_list_is_used_when_one_goes,
    queues_of_one_broker_share_one_connection,
    a_queue_over_which_the_broker_ends_the_connection_does_so_once_to_the_others,
    a_loss_is_told_though_another_operator_comes_after_the_outage_began,
    a_loss_is_told_though_an_exchange_has_been_missing_all_along,
    a_queue_survives_alarm_silence_crash_and_a_broker_that_comes_back_empty,
);

async fn two_thousand_queues_on_a_dead_broker_do_not_delay_ten_on_a_live_one(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::checking(Duration::from_secs(30));
    let dead = BrokerAccess::from_uri("amqp://u:p@127.0.0.1:1/")?;
    let mut beside = Vec::new();
    for number in 0..2_000 {
        let mut queue = keeper.named(&format!("dead-{number}"), dead.clone(), json!({}))?;
        queue.turn();
        beside.push(queue);
    }
    for number in 0..10 {
        let access = BrokerAccess::from_uri(&vhost.uri())?;
        keeper.named(&format!("live-{number}"), access, json!({}))?.ready().await?;
    }
    for queue in &mut beside {
        queue.until("BrokerReachable", ("False", "BrokerUnreachable"), &["127.0.0.1:1"]).await?;
    }
    Ok(())
}

async fn a_broker_that_never_answers_is_told_and_delays_nobody(vhost: Vhost) -> Result<()> {
    // The kernel takes the connection, and nobody reads from it.
    let hole = TcpListener::bind("127.0.0.1:0").await?;
    let keeper = Keeper::new();
    let mut holed = Vec::new();
    // Twenty brokers to Warren: one after the other they would take longer than anything may take here.
    for number in 0..20 {
        let access = BrokerAccess::from_uri(&format!("amqp://u:p@{}/{number}", hole.local_addr()?))?;
        let mut queue = keeper.named(&format!("holed-{number}"), access, json!({}))?;
        queue.turn();
        holed.push(queue);
    }
    keeper.queue(&vhost.uri(), json!({}))?.ready().await?;
    for queue in &mut holed {
        queue.until("BrokerReachable", ("False", "BrokerUnreachable"), &["no answer within"]).await?;
    }
    Ok(())
}

async fn another_address_of_the_list_is_used_when_one_goes(vhost: Vhost) -> Result<()> {
    let ways = [vhost.by_a_way().await?, vhost.by_a_way().await?];
    let (mut ways, uris): (Vec<_>, Vec<_>) = ways.into_iter().unzip();
    let keys = BTreeMap::from([("uris".to_owned(), uris.join("\n").into_bytes())]);
    // Only a new connection finds what is missing.
    let keeper = Keeper::checking(Duration::from_secs(3600));
    let mut queue = keeper.named("orders", BrokerAccess::parse(&keys, None)?, json!({}))?;
    queue.ready().await?;
    let client = Client::connect(&vhost.uri()).await?;
    client.delete("orders.dlq").await?;
    assert_eq!(ways.iter().filter(|way| way.is_taken()).count(), 1, "one address suffices");
    ways.retain(|way| !way.is_taken());
    comes_back(&client, "orders.dlq").await
}

async fn comes_back(client: &Client, queue: &str) -> Result<()> {
    eventually(PATIENCE, &format!("{queue} is back"), async || {
        ensure!(client.ready(queue).await? == Some(0), "not yet");
        Ok(())
    })
    .await
}

async fn queues_of_one_broker_share_one_connection(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    for number in 0..20 {
        let access = BrokerAccess::from_uri(&vhost.uri())?;
        keeper.named(&format!("queue-{number}"), access, json!({}))?.ready().await?;
    }
    assert_eq!(keeper.brokers.connected(), (1, 0));
    Ok(())
}

/// Has a broker fail over each declaration of a queue of this name, and count them: it ends the connection with 541 then, as over any
/// fault of its own.
async fn break_declarations(broker: &Broker, queue: &str) -> Result<()> {
    let module = format!(
        r#"["-module(broken_queue).", "-behaviour(rabbit_queue_decorator).", "-compile(export_all).",
            "description() -> [].", "startup(_) -> ok.", "shutdown(_) -> ok.", "policy_changed(_, _) -> ok.",
            "consumer_state_changed(_, _, _) -> ok.",
            "active_for(Q) -> case element(4, amqqueue:get_name(Q)) of
                 <<\"{queue}\">> -> application:set_env(rabbit, broken, application:get_env(rabbit, broken, 0) + 1), exit(broken);
                 _ -> false
             end."]"#
    );
    let form =
        "begin {ok, Tokens, _} = erl_scan:string(Line), {ok, Form} = erl_parse:parse_form(Tokens), Form end";
    let expression = format!(
        r#"begin {{ok, Module, Code}} = compile:forms([{form} || Line <- {module}]),
           {{module, _}} = code:load_binary(Module, "", Code),
           ok = rabbit_registry:register(queue_decorator, <<"broken">>, Module) end"#
    );
    broker.eval(&expression).await.map(drop)
}

async fn mend_declarations(broker: &Broker) -> Result<()> {
    broker.eval(r#"rabbit_registry:unregister(queue_decorator, <<"broken">>)"#).await.map(drop)
}

async fn a_queue_over_which_the_broker_ends_the_connection_does_so_once_to_the_others(
    vhost: Vhost,
) -> Result<()> {
    let broker = &vhost.broker;
    break_declarations(broker, "broken-orders").await?;
    let keeper = Keeper::new();
    keeper.queue(&vhost.uri(), json!({}))?.ready().await?;
    let mut broken = keeper.named("broken-orders", BrokerAccess::from_uri(&vhost.uri())?, json!({}))?;
    broken.until("Declared", ("False", "BrokerUnreachable"), &["INTERNAL_ERROR"]).await?;
    let connected = connected_at(&vhost, CONNECTION).await?;
    let tries = async || broker.eval("application:get_env(rabbit, broken, 0)").await;
    // What one has done to the connection shows by the next.
    for _ in 0..2 {
        let before = tries().await?;
        eventually(PATIENCE, "it is tried again", async || {
            ensure!(tries().await? != before, "not yet");
            Ok(())
        })
        .await?;
    }
    assert_eq!(connected_at(&vhost, CONNECTION).await?, connected);
    mend_declarations(broker).await?;
    broken.ready().await
}

/// Waits until it is told that the main queue was lost.
async fn told_as_lost(keeper: &Keeper, queue: &mut Kept<'_>) -> Result<()> {
    eventually(PATIENCE, "the loss is told", async || {
        queue.turn();
        let told = keeper.brokers.take_recreated(&Key::of(&queue.queue));
        ensure!(told, "not yet: {:?}", queue.status());
        Ok(())
    })
    .await
}

async fn a_loss_is_told_though_another_operator_comes_after_the_outage_began(options: Options) -> Result<()> {
    let broker = Broker::start(options).await?;
    let keeper = Keeper::new();
    let mut queue = keeper.queue(&broker.uri("/"), json!({}))?;
    queue.ready().await?;
    broker.kill9().await?;
    queue.until("BrokerReachable", ("False", "BrokerUnreachable"), &[]).await?;
    let as_it_is = queue.queue.clone();
    drop(queue);
    drop(keeper);
    broker.wipe().await?;
    let next = Keeper::new();
    let mut queue = next.queue(&broker.uri("/"), json!({}))?;
    queue.queue = as_it_is;
    told_as_lost(&next, &mut queue).await
}

async fn a_loss_is_told_though_an_exchange_has_been_missing_all_along(vhost: Vhost) -> Result<()> {
    let keeper = Keeper::new();
    let mut queue = keeper.queue(&vhost.uri(), json!({"bindings": [{"exchange": "not-there"}]}))?;
    queue.until("Declared", ("False", "ExchangeNotFound"), &[]).await?;
    // By now it is known that the queue itself is there.
    queue.turn();
    let client = Client::connect(&vhost.uri()).await?;
    eventually(PATIENCE, "the loss is told", async || {
        // Again, where an attempt has just looked for it, and makes it without knowing.
        client.delete("orders").await?;
        queue.turn();
        ensure!(keeper.brokers.take_recreated(&Key::of(&queue.queue)), "not yet: {:?}", queue.status());
        Ok(())
    })
    .await
}

/// A memory alarm, a silence, a crash without and with the data.
async fn a_queue_survives_alarm_silence_crash_and_a_broker_that_comes_back_empty(
    options: Options,
) -> Result<()> {
    let broker = Broker::start(options).await?;
    let beside = Vhost::on(broker.version(), "beside-faults").await?;
    let keeper = Keeper::checking(Duration::from_secs(3600));
    let bindings = json!([{"exchange": "shop", "routingKey": "a", "declare": {"type": "Direct"}}]);
    let mut queue = keeper.queue(&broker.uri("/"), json!({"bindings": bindings}))?;
    queue.ready().await?;

    // What declares publishes nothing, so the broker goes on reading from it.
    broker.set_alarm(Alarm::Memory).await?;
    keeper.named("in-alarm", queue.access.clone(), json!({}))?.ready().await?;
    broker.clear_alarm(Alarm::Memory).await?;

    broker.freeze().await?;
    queue.until("BrokerReachable", ("False", "BrokerUnreachable"), &[]).await?;
    keeper.named("beside", BrokerAccess::from_uri(&beside.uri())?, json!({}))?.ready().await?;
    broker.thaw().await?;
    queue.ready().await?;

    broker.kill9().await?;
    queue.until("BrokerReachable", ("False", "BrokerUnreachable"), &[]).await?;
    broker.start_again().await?;
    queue.ready().await?;
    // Its status says so by now.
    queue.turn();
    let told = |queue: &Kept<'_>| keeper.brokers.take_recreated(&Key::of(&queue.queue));
    assert!(!told(&queue), "nothing was lost");

    broker.kill9().await?;
    queue.until("BrokerReachable", ("False", "BrokerUnreachable"), &[]).await?;
    broker.wipe().await?;
    let client = Client::connect(&broker.uri("/")).await?;
    comes_back(&client, "orders").await?;
    comes_back(&client, "in-alarm").await?;
    // Nothing else is due for an hour, so the loss is told by the attempt that made it good, or never.
    told_as_lost(&keeper, &mut queue).await?;
    queue.ready().await
}
