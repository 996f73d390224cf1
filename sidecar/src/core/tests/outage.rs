//! What work that lasts, poison and a broker that takes no copies leave of the places to probe with, and of the way back.

use super::*;

/// Ten calls at once, and an application that goes on for hours with as many messages as it is told.
fn with_late_work(late: u64) -> World {
    let hour = Duration::from_secs(3600);
    let settings = Settings { prefetch: 50, concurrency: 10, late_timeout: hour, ..settings() };
    let mut world = World::running(settings, 200);
    for call in (1..=late).map(CallId) {
        world.answer(call, Verdict::Later);
    }
    world.settle();
    world
}

#[test]
fn after_an_outage_work_that_ends_later_keeps_nothing_from_starting() {
    let mut world = with_late_work(3);
    while world.engine.snapshot().breaker.is_none() {
        world.answer_all(retry(500));
        world.pass(Duration::from_millis(3));
        world.settle();
    }
    world.answering(Duration::from_secs(15), |_, _| retry(500));
    assert!(world.calls.is_empty(), "only a probe comes now");
    world.answering(Duration::from_secs(120), |_, _| Verdict::Ack);
    assert_eq!((world.engine.snapshot().breaker, world.queue.len(), world.unacked.len()), (None, 0, 3));
}

#[test]
fn after_an_outage_a_call_that_still_runs_keeps_nothing_from_starting() {
    let mut world = World::running(Settings { prefetch: 50, concurrency: 10, ..settings() }, 200);
    let long = CallId(1);
    let seconds = |world: &mut World, count: u64, verdict: &Verdict| {
        for _ in 0..count {
            for call in world.calls.keys().copied().filter(|call| *call != long).collect::<Vec<_>>() {
                world.answer(call, verdict.clone());
            }
            world.settle();
            world.pass(Duration::from_secs(1));
        }
    };
    seconds(&mut world, 30, &retry(500));
    assert!(world.engine.snapshot().breaker.is_some());
    seconds(&mut world, 120, &Verdict::Ack);
    assert_eq!((world.engine.snapshot().breaker, world.queue.len(), world.unacked.len()), (None, 0, 1));
}

#[test]
fn one_not_now_beside_work_that_ends_later_keeps_nothing_from_starting() {
    let mut world = with_late_work(5);
    assert_eq!(world.calls.len(), 5, "what ends later has its share of the concurrency");
    world.answer_all(Verdict::NotNow { after: None, status: 429 });
    world.answering(Duration::from_secs(60), |_, _| Verdict::Ack);
    assert_eq!((world.queue.len(), world.unacked.len()), (0, 5));
}

#[test]
fn a_batch_that_ends_later_takes_the_place_of_one_call_until_its_last_message_has_ended() {
    let batch = Some(Batch { max_messages: 10, max_wait: Duration::from_millis(20) });
    let settings = Settings { prefetch: 40, concurrency: 2, batch, ..settings() };
    let mut world = World::running(settings, 100);
    world.answer(CallId(1), Verdict::Later);
    world.answer(CallId(2), Verdict::Ack);
    world.settle();
    assert_eq!((world.calls.len(), world.engine.snapshot().late), (1, 10));
    for id in std::mem::take(&mut world.late) {
        assert_eq!(world.calls.len(), 1);
        world.finished.insert(id);
        world.step(Event::LateAnswer { id, verdict: Verdict::Ack });
    }
    assert_eq!((world.calls.len(), world.engine.snapshot().late), (2, 0));
}
