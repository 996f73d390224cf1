//! What work that lasts, poison and a broker that takes no copies leave of the places to probe with, and of the way back.

use super::super::flow::Subscription;
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
fn one_not_now_beside_a_long_call_keeps_nothing_from_starting() {
    let mut world = World::running(Settings { prefetch: 50, concurrency: 2, ..settings() }, 20);
    let long = CallId(1);
    world.answer(CallId(2), Verdict::NotNow { after: None, status: 429 });
    for _ in 0..120 {
        for call in world.calls.keys().copied().filter(|call| *call != long).collect::<Vec<_>>() {
            world.answer(call, Verdict::Ack);
        }
        world.settle();
        world.pass(Duration::from_secs(1));
    }
    assert_eq!((world.queue.len(), world.unacked.len()), (0, 1));
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

/// An outage of an application whose messages keep the order of these keys, until everything has been handed back once.
fn ordered_outage(prefetch: u16, keys: impl Iterator<Item = u64>) -> World {
    // A single place sees several messages only if they run out of attempts.
    let max_attempts = if prefetch == 1 { 5 } else { 100 };
    let ladder = Ladder { delays_seconds: vec![1], max_attempts };
    let settings = Settings { prefetch, concurrency: 2.min(prefetch), ordered: true, ladder, ..settings() };
    let mut world = World::new(settings);
    for (number, key) in (0..).zip(keys) {
        world.queue.push_back(Message { number, attempts: 0, key: Some(key) });
    }
    world.connect();
    world.settle();
    world.answering(Duration::from_secs(60), |_, _| retry(500));
    assert_eq!((world.engine.snapshot().breaker, world.subscribed.len() > 1), (Some(500), true));
    world
}

#[test]
fn messages_behind_one_that_is_poison_take_no_place_from_probes_and_stay() {
    for (prefetch, behind) in [(1, 3), (8, 3), (8, 12), (50, 60)] {
        // Three others go first, for a breaker to open.
        let keys = (100..103).chain(std::iter::repeat_n(0, behind + 1)).chain(1..50);
        let mut world = ordered_outage(prefetch, keys);
        let returned = world.saw(&Observation::Settled(Outcome::Returned));
        let poison = |number: u64| number <= 3;
        world.answering(Duration::from_secs(3000), |world, calls| {
            let number = world.unacked.get(&calls[0].id.tag).map_or(0, |message| message.number);
            if world.saw(&Observation::BreakerClosed) == 0 {
                let now = world.saw(&Observation::Settled(Outcome::Returned));
                assert_eq!(now, returned, "each time would count for the delivery limit");
            }
            if poison(number) { retry(500) } else { Verdict::Ack }
        });
        assert!(world.saw(&Observation::BreakerClosed) > 0, "at prefetch {prefetch}, {behind} behind it");
        assert!(world.handled.len() >= 49, "{} handled at prefetch {prefetch}", world.handled.len());
    }
}

#[test]
fn a_queue_of_one_key_alone_is_not_taken_in_as_a_whole_to_get_past_its_poison() {
    let mut world =
        ordered_outage(8, std::iter::repeat_n(0, 2).chain(1..8).chain(std::iter::repeat_n(0, 5000)));
    world.answering(Duration::from_secs(1500), |_, _| retry(500));
    assert!((20..700).contains(&world.unacked.len()), "{} held", world.unacked.len());
    world.answering(Duration::from_secs(600), |_, _| Verdict::Ack);
    assert_eq!((world.engine.snapshot().breaker, world.queue.len(), world.unacked.len()), (None, 0, 0));
}

#[test]
fn copies_that_the_broker_does_not_take_leave_places_to_probe_with() {
    for result in [Some(PublishResult::Failed), Some(PublishResult::Refused), None] {
        for prefetch in [1, 10] {
            let mut world = World::running(Settings { prefetch, concurrency: 4, ..settings() }, 60);
            while world.engine.snapshot().breaker.is_none() {
                world.answer_all(retry(500));
                world.settle();
            }
            world.copies = result;
            world.answering(Duration::from_secs(600), |_, _| retry(500));
            let consumers = world.subscribed.len();
            assert!((3..20).contains(&consumers), "{consumers} consumers: no new one for each try of a copy");
            world.answering(Duration::from_secs(60), |_, _| Verdict::Ack);
            let after = (world.engine.snapshot().breaker, world.queue.len());
            assert_eq!(after, (None, 0), "{result:?}, prefetch {prefetch}: the application is well again");
            world.copies = Some(PublishResult::Confirmed);
            world.settle();
            world.answering(Duration::from_secs(60), |_, _| Verdict::Ack);
            assert!(world.queue.is_empty() && world.unacked.is_empty());
        }
    }
}

#[test]
fn what_an_outage_is_probed_with_goes_back_in_order_too_when_the_queue_is_given_up() {
    let leave: [fn(&mut World); 3] = [
        |world| world.step(Event::Drain),
        |world| {
            let settings = Settings { paused: true, ..world.engine.settings.clone() };
            world.step(Event::Configured(Box::new(settings)));
        },
        |world| {
            world.port_open = false;
            world.answer_all(Verdict::Unreached);
        },
    ];
    for (index, leave) in leave.into_iter().enumerate() {
        for cancelled in [false, true] {
            let mut world = ordered_outage(40, (0..60).map(|number| number / 2));
            let probing: fn(&World) -> bool = match cancelled {
                // Another window is wanted, and what is held leaves no room for its consumer yet.
                true => |world| world.engine.subscription == Subscription::None && world.calls_something(),
                false => World::calls_something,
            };
            world.until(probing, |world| {
                world.answer_all(retry(504));
                world.settle();
                world.pass(Duration::from_secs(1));
            });
            let probed = world.calls.len();
            assert!(world.unacked.len() > probed, "{} held, {probed} at the handler", world.unacked.len());
            leave(&mut world);
            world.settle();
            world.pass(Duration::from_secs(5));
            world.answer_all(retry(504));
            world.settle();
            world.pass(Duration::from_secs(15));
            let queue: Vec<u64> = world.queue.iter().map(|message| message.number).collect();
            assert!(queue.is_sorted(), "case {index}, cancelled: {cancelled}: {queue:?}");
            assert_eq!((world.unacked.len(), world.consuming), (0, None), "case {index}");
        }
    }
}

#[test]
fn batches_that_fail_in_turn_are_an_outage_however_few_they_are() {
    let batch = Some(Batch { max_messages: 100, max_wait: Duration::from_millis(20) });
    let settings = Settings { prefetch: 200, concurrency: 200, batch, ..settings() };
    let mut world = World::running(settings, 1000);
    world.answering(Duration::from_secs(600), |_, _| Verdict::NotNow { after: None, status: 503 });
    assert_eq!((world.engine.snapshot().breaker, world.unacked.len()), (Some(503), 2));
}
