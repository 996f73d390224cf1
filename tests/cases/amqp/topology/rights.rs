//! The rights that the guide asks for suffice, and each of them is needed: a 403 names the one that is missing.

use anyhow::Result;
use serde_json::json;
use warren_tests::amqp::Client;
use warren_tests::broker::{USER, Vhost};

use super::kept::Keeper;

warren_tests::on_each_release!(
    the_rights_of_the_guide_suffice_for_everything,
    each_missing_right_is_named_and_used_once_it_is_granted,
    a_wrong_password_is_told_and_a_rotated_one_is_used_on_a_connection_of_its_own,
);

const QUEUES: &str = r"orders($|\.)";
const EXCHANGE: &str = r"shop\.events$";
const DEFAULT_EXCHANGE: &str = r"amq\.default$";

/// The rights to configure, write and read, as `docs/guide.md` has them.
fn guide() -> [String; 3] {
    let both = format!("^({QUEUES}|{EXCHANGE})");
    [both.clone(), format!("^({QUEUES}|{DEFAULT_EXCHANGE})"), both]
}

/// A user of the vhost with exactly these rights.
async fn user(vhost: &Vhost, name: &str, [configure, write, read]: &[String; 3]) -> Result<String> {
    vhost.broker.user(name, "secret").await?;
    vhost.broker.permissions(name, &vhost.name, configure, write, read).await?;
    Ok(vhost.uri().replace(&format!("{USER}:{}", vhost.broker.password()), &format!("{name}:secret")))
}

fn spec() -> serde_json::Value {
    json!({
        "deletionPolicy": "DeleteIfEmpty", "retry": {"delaysSeconds": [30, 60]},
        "bindings": [{"exchange": "shop.events", "routingKey": "a", "declare": {"type": "Topic"}}],
    })
}

async fn the_rights_of_the_guide_suffice_for_everything(vhost: Vhost) -> Result<()> {
    let uri = user(&vhost, &format!("exact-{}", vhost.name), &guide()).await?;
    let keeper = Keeper::new();
    let mut queue = keeper.queue(&uri, spec())?;
    queue.ready().await?;
    // A rung and a binding less: unbinding and deleting.
    let mut less = spec();
    (less["retry"], less["bindings"]) = (json!({"delaysSeconds": [30]}), json!([]));
    queue.respec(less)?;
    queue.ready().await?;
    queue.respec(spec())?;
    queue.ready().await?;
    queue.gone().await?;
    assert_eq!(Client::connect(&vhost.uri()).await?.ready("orders").await?, None);
    Ok(())
}

async fn each_missing_right_is_named_and_used_once_it_is_granted(vhost: Vhost) -> Result<()> {
    let name = format!("narrow-{}", vhost.name);
    // Without the queues', the exchange's or the default exchange's part of each right.
    for (place, right) in ["configure", "write", "read"].into_iter().enumerate() {
        for part in [QUEUES, EXCHANGE, DEFAULT_EXCHANGE] {
            let mut rights = guide();
            let narrow = rights[place].replace(part, "none");
            if narrow == rights[place] {
                continue;
            }
            rights[place] = narrow;
            let uri = user(&vhost, &name, &rights).await?;
            let keeper = Keeper::new();
            let mut queue = keeper.queue(&uri, spec())?;
            let words = ["the right to ", "set_permissions"];
            let message = queue.until("Declared", ("False", "AccessRefused"), &words).await?;
            let told =
                message.split_once("the right to ").and_then(|(_, rest)| rest.split_once(" is missing"));
            assert!(told.is_some_and(|(told, _)| told.contains(right)), "{right} on {part}: {message}");
            user(&vhost, &name, &guide()).await?;
            queue.ready().await?;
            queue.gone().await?;
        }
    }
    Ok(())
}

async fn a_wrong_password_is_told_and_a_rotated_one_is_used_on_a_connection_of_its_own(
    vhost: Vhost,
) -> Result<()> {
    let name = format!("rotated-{}", vhost.name);
    let uri = user(&vhost, &name, &guide()).await?;
    let keeper = Keeper::new();
    let mut queue = keeper.queue(&uri.replace("secret", "wrong"), spec())?;
    queue.until("BrokerReachable", ("False", "AuthRefused"), &["username and password"]).await?;
    // The Secret is mended, as its next read finds.
    queue.access = warren_broker::BrokerAccess::from_uri(&uri)?;
    queue.ready().await?;
    vhost.broker.user(&name, "second").await?;
    queue.access = warren_broker::BrokerAccess::from_uri(&uri.replace("secret", "second"))?;
    queue.ready().await?;
    assert_eq!(keeper.brokers.connected(), (1, 0), "the connections of the former passwords are gone");
    Ok(())
}
