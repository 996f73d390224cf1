//! Keeps a loop a Worker: those that come get one, and those that go are forgotten.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use kube::ResourceExt;
use tokio::task::JoinHandle;
use warren_api::Worker;

use super::asked::spec;
use super::cadence::pause;
use super::follow::follow;
use crate::brokers::Key;
use crate::context::Context;
use crate::worker::dereference::beside;

/// How often the set of Workers is looked through.
const SWEEP: Duration = Duration::from_millis(500);

/// Runs a loop for each Worker of the scope until `context.shutdown`.
pub async fn run(context: Arc<Context>) {
    let mut loops: HashMap<Key, (Option<String>, JoinHandle<()>)> = HashMap::new();
    let mut ended = std::pin::pin!(context.shutdown.clone().cancelled());
    loop {
        let all = context.stores.workers.state();
        context.board.share(sharing(&all, &context));
        let living: HashMap<Key, Option<String>> =
            all.iter().map(|w| (Key::of(w.as_ref()), w.uid())).collect();
        // One that has the place of another begins anew.
        let gone = loops.extract_if(|key, (uid, task)| living.get(key) != Some(uid) || task.is_finished());
        let (gone, tasks): (Vec<Key>, Vec<_>) = gone.map(|(key, (_, task))| (key, task)).unzip();
        end(tasks).await;
        for key in &gone {
            context.board.forget(key);
            context.records.forget(key);
            context.metrics.forget_worker(key);
        }
        context.board.retain(|key| living.contains_key(key));
        for (key, uid) in living {
            let spawn = || (uid.clone(), tokio::spawn(follow(key.clone(), uid, context.clone())));
            loops.entry(key.clone()).or_insert_with(spawn);
        }
        let most = context.brokers.most_probers();
        context.metrics.probe_interval(pause(0, most).as_secs_f64());
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            () = &mut ended => {
                loops.values().for_each(|(_, task)| task.abort());
                return;
            }
        }
    }
}

/// Ends loops, and waits until they have: what one says after its Worker is forgotten would stay.
async fn end(tasks: Vec<JoinHandle<()>>) {
    tasks.iter().for_each(JoinHandle::abort);
    join_all(tasks).await;
}

fn consumes(worker: &Worker, context: &Context) -> bool {
    let queue = context.queue_of(worker);
    let beside = queue.as_deref().and_then(|queue| beside(worker, queue, context));
    !spec(worker, queue.as_deref(), beside.as_deref()).paused
}

/// Each Builtin Worker that shares its Queue with others, with all that do.
fn sharing(workers: &[Arc<Worker>], context: &Context) -> HashMap<Key, Arc<[Key]>> {
    let mut by_queue: HashMap<Key, Vec<Key>> = HashMap::new();
    // Who consumes nothing leaves all to the others.
    let shares = |worker: &Worker| {
        worker.scales_itself() && worker.metadata.deletion_timestamp.is_none() && consumes(worker, context)
    };
    for worker in workers.iter().filter(|worker| shares(worker)) {
        by_queue.entry(Key::named_by(worker)).or_default().push(Key::of(worker.as_ref()));
    }
    let shared = by_queue.into_values().filter(|workers| workers.len() > 1).map(Arc::<[Key]>::from);
    shared.flat_map(|all| all.iter().map(|key| (key.clone(), all.clone())).collect::<Vec<_>>()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_loop_that_is_ended_says_nothing_more() {
        let own = Arc::new(());
        let held = own.clone();
        let task = tokio::spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&own), 2);
        end(vec![task]).await;
        assert_eq!(Arc::strong_count(&own), 1);
    }
}
