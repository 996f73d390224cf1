//! Looks into a broker past AMQP: what it has, as it has it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use warren_tests::broker::Vhost;

/// A resource of the vhost, as an Erlang expression.
fn resource(vhost: &Vhost, kind: &str, name: &str) -> String {
    format!("rabbit_misc:r(<<\"{}\">>, {kind}, <<\"{name}\">>)", vhost.name)
}

/// The text that an Erlang expression gives.
async fn text(vhost: &Vhost, expression: &str) -> Result<String> {
    let answer = vhost.broker.eval(&format!("lists:flatten({expression})")).await?;
    // An empty list is no string to Erlang.
    if answer.contains("{ok, []}") {
        return Ok(String::new());
    }
    let text = answer.split_once('"').and_then(|(_, rest)| rest.rsplit_once('"'));
    Ok(text.with_context(|| format!("no text: {answer}"))?.0.to_owned())
}

/// Erlang: a table as `name=value;`.
const TABLE: &str = "[case V of _ when is_binary(V) -> [K, \"=\", binary_to_list(V), \";\"]; \
    _ -> [K, \"=\", io_lib:format(\"~w\", [V]), \";\"] end || {K, _, V} <- [{binary_to_list(A), B, C} || {A, B, C} <- Table]]";

/// `name=value;...` as pairs.
fn pairs(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// A queue's arguments.
pub async fn arguments(vhost: &Vhost, queue: &str) -> Result<BTreeMap<String, String>> {
    let queue = resource(vhost, "queue", queue);
    let expression = format!(
        "begin {{ok, Q}} = rabbit_amqqueue:lookup({queue}), Table = amqqueue:get_arguments(Q), {TABLE} end"
    );
    Ok(pairs(&text(vhost, &expression).await?))
}

/// The process of a queue: another one means that the queue was made again.
pub async fn process(vhost: &Vhost, queue: &str) -> Result<String> {
    let queue = resource(vhost, "queue", queue);
    let expression = format!(
        "begin {{ok, Q}} = rabbit_amqqueue:lookup({queue}), io_lib:format(\"~w ~w\", [amqqueue:get_pid(Q), amqqueue:get_options(Q)]) end"
    );
    text(vhost, &expression).await
}

/// The bindings of a queue, as `exchange key name=value;`.
pub async fn bindings(vhost: &Vhost, queue: &str) -> Result<Vec<String>> {
    let queue = resource(vhost, "queue", queue);
    let expression = format!(
        "[[binary_to_list(element(4, element(2, B))), \" \", binary_to_list(element(3, B)), \" \", \
         (fun(Table) -> {TABLE} end)(element(5, B)), \"|\"] || B <- rabbit_binding:list_for_destination({queue})]"
    );
    let text = text(vhost, &expression).await?;
    let bindings = text.split('|').map(str::to_owned);
    // Each queue is bound to the default exchange, which has no name.
    Ok(bindings.filter(|binding| !binding.is_empty() && !binding.starts_with(' ')).collect())
}

/// An exchange's type and whether it is durable.
pub async fn exchange(vhost: &Vhost, name: &str) -> Result<String> {
    let exchange = resource(vhost, "exchange", name);
    let expression = format!(
        "begin {{ok, X}} = rabbit_exchange:lookup({exchange}), io_lib:format(\"~w ~w\", [element(3, X), element(4, X)]) end"
    );
    text(vhost, &expression).await
}

/// Stops or starts the only replica of a quorum queue: without it the queue has no leader.
pub async fn replica(vhost: &Vhost, queue: &str, runs: bool) -> Result<()> {
    let queue = resource(vhost, "queue", queue);
    let verb = if runs { "restart_server" } else { "stop_server" };
    let expression = format!(
        "begin {{ok, Q}} = rabbit_amqqueue:lookup({queue}), io_lib:format(\"~w\", [ra:{verb}(quorum_queues, amqqueue:get_pid(Q))]) end"
    );
    let answer = text(vhost, &expression).await?;
    anyhow::ensure!(answer == "ok", "{verb}: {answer}");
    Ok(())
}

/// When the oldest connection of this name to the vhost was made.
pub async fn connected_at(vhost: &Vhost, name: &str) -> Result<u64> {
    let expression = format!(
        "io_lib:format(\"~w\", [lists:min([proplists:get_value(connected_at, Info) || Pid <- rabbit_networking:connections(), \
         Info <- [catch rabbit_networking:connection_info(Pid, [vhost, client_properties, connected_at])], is_list(Info), \
         proplists:get_value(vhost, Info) =:= <<\"{}\">>, \
         lists:keyfind(<<\"connection_name\">>, 1, proplists:get_value(client_properties, Info)) =:= {{<<\"connection_name\">>, longstr, <<\"{name}\">>}}])])",
        vhost.name
    );
    let answer = text(vhost, &expression).await?;
    answer.parse().with_context(|| format!("no such connection: {answer}"))
}
