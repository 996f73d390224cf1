//! Giving the queue up where an order is kept, while something at work does not end.

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

/// Hundreds of messages of as many keys, three at work.
fn keyed(late_timeout: Duration) -> (Settings, World) {
    let settings = Settings { prefetch: 6, concurrency: 3, ordered: true, late_timeout, ..settings() };
    let mut world = World::new(settings.clone());
    for number in 0..900 {
        world.queue.push_back(Message { number, attempts: 0, key: Some(number) });
    }
    world.connect();
    world.settle();
    (settings, world)
}

fn another_window(world: &mut World, settings: &Settings) {
    world.step(Event::Configured(Box::new(Settings { prefetch: 9, ..settings.clone() })));
}

#[test]
fn the_queue_is_handed_over_once_calls_whose_channel_is_gone_have_ended_too() {
    for verdict in [Verdict::Ack, Verdict::Later] {
        let (_, mut world) = keyed(MINUTE);
        world.disconnect();
        world.connect();
        world.settle();
        world.step(Event::Drain);
        world.settle();
        world.pass(Duration::from_secs(1));
        let held = world.unacked.len();
        assert!(held > 0 && world.consuming.is_some(), "three calls of before run");
        let later = verdict == Verdict::Later;
        world.answer_all(verdict);
        world.settle();
        if later {
            assert_eq!(world.unacked.len(), held, "and go on");
            world.pass(MINUTE + Duration::from_secs(1));
        }
        assert_eq!((world.unacked.len(), world.consuming), (0, None));
    }
}

#[test]
fn a_copy_that_the_broker_does_not_take_keeps_no_other_key_from_its_turn_when_the_window_changes() {
    let (settings, mut world) = keyed(MINUTE);
    world.copies = Some(PublishResult::Refused);
    world.answer(CallId(1), Verdict::DeadLetter { reason: DeadReason::Rejected, detail: String::new() });
    world.settle();
    another_window(&mut world, &settings);
    world.answering(MINUTE, |_, _| Verdict::Ack);
    assert!(world.handled.len() > 400, "{} handled", world.handled.len());
    assert_eq!((world.consuming, world.dead.len()), (Some(6), 0));
    world.copies = Some(PublishResult::Confirmed);
    world.answering(MINUTE, |_, _| Verdict::Ack);
    assert_eq!((world.consuming, world.dead.len()), (Some(9), 1));
}

#[test]
fn a_copy_that_the_broker_does_not_take_keeps_the_queue_from_nobody_for_long() {
    for copies in [Some(PublishResult::Refused), None] {
        // All else has been handled by the time of the second case.
        for (window_first, held) in [(false, 6), (true, 1)] {
            let (settings, mut world) = keyed(MINUTE);
            world.copies = copies;
            let reason = DeadReason::Rejected;
            world.answer(CallId(1), Verdict::DeadLetter { reason, detail: String::new() });
            world.settle();
            if window_first {
                another_window(&mut world, &settings);
                world.answering(MINUTE, |_, _| Verdict::Ack);
            }
            world.step(Event::Configured(Box::new(Settings { paused: true, ..settings })));
            world.answer_all(Verdict::Ack);
            world.settle();
            world.pass(Duration::from_secs(5));
            let seen = (world.unacked.len(), world.consuming);
            assert_eq!(seen, (held, Some(6)), "{copies:?}: it is tried again for a while");
            world.pass(Duration::from_secs(10));
            assert_eq!((world.unacked.len(), world.consuming, world.dead.len()), (0, None, 0));
        }
    }
}

#[test]
fn a_copy_that_has_just_been_sent_is_waited_for_though_others_have_waited_for_long() {
    let (settings, mut world) = keyed(MINUTE);
    world.copies = None;
    world.step(Event::Configured(Box::new(Settings { paused: true, ..settings })));
    world.pass(Duration::from_secs(15));
    world.answer(CallId(1), Verdict::DeadLetter { reason: DeadReason::Rejected, detail: String::new() });
    world.answer_all(Verdict::Ack);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.consuming, Some(6));
    world.copies = Some(PublishResult::Confirmed);
    world.settle();
    assert_eq!((world.unacked.len(), world.consuming, world.dead.len()), (0, None, 1));
}

#[test]
fn a_long_call_from_before_an_outage_keeps_an_order_from_no_probe() {
    for later in [false, true] {
        let (_, mut world) = keyed(MINUTE * 60);
        let long = CallId(1);
        world.pass(Duration::from_secs(5));
        if later {
            world.answer(long, Verdict::Later);
        }
        world.until(World::is_broken, |world| {
            world.fail_all_but(long);
            world.settle();
            world.pass(Duration::from_secs(1));
        });
        for _ in 0..MINUTE.as_secs() {
            world.fail_all_but(long);
            world.pass(Duration::from_secs(1));
        }
        // The application is well again, and still at work on the long one.
        for _ in 0..MINUTE.as_secs() * 5 {
            for call in world.calls.keys().copied().filter(|call| *call != long).collect::<Vec<_>>() {
                world.answer(call, Verdict::Ack);
            }
            world.settle();
            world.pass(Duration::from_secs(1));
        }
        assert_eq!(world.engine.snapshot().breaker, None, "later: {later}");
        assert!(world.handled.len() > 200, "{} handled, later: {later}", world.handled.len());
    }
}

#[test]
fn what_was_held_without_a_key_goes_back_as_it_came_before_a_key_counts() {
    let without = Settings { prefetch: 6, concurrency: 3, ..settings() };
    let mut world = World::running(without.clone(), 9);
    world.step(Event::Configured(Box::new(Settings { ordered: true, paused: true, ..without.clone() })));
    world.pass(MINUTE);
    assert_eq!((world.calls.len(), world.unacked.len()), (3, 6), "nobody may get a later message yet");
    world.answer_all(Verdict::Ack);
    assert_eq!((world.calls.len(), world.unacked.len(), world.queue.len()), (0, 0, 6));
    world.queue.iter_mut().for_each(|message| message.key = Some(7));
    world.step(Event::Configured(Box::new(Settings { ordered: true, ..without })));
    world.settle();
    assert_eq!((world.calls.len(), world.unacked.len()), (1, 6));
    world.answering(Duration::from_secs(10), |_, _| Verdict::Ack);
    assert_eq!(world.handled, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

/// A handler each of whose calls takes so many seconds; `later`: the application goes on after its answer.
struct Slow<F> {
    later: bool,
    takes: F,
    working: Vec<(Time, DeliveryId)>,
}

impl<F: Fn(CallId) -> u64> Slow<F> {
    fn new(later: bool, takes: F) -> Self {
        Self { later, takes, working: Vec::new() }
    }

    /// Works for a while; returns in how many of the seconds nothing began.
    fn work(&mut self, world: &mut World, time: Duration) -> u64 {
        let mut idle = 0;
        for _ in 0..time.as_secs() {
            let known = world.began.len();
            let mut calls: Vec<CallId> = world.calls.keys().copied().collect();
            calls.sort();
            for call in calls {
                let until = world.began[&call] + Duration::from_secs((self.takes)(call));
                if self.later {
                    self.working.extend(world.calls[&call].iter().map(|called| (until, called.id)));
                    world.answer(call, Verdict::Later);
                } else if until <= world.now {
                    world.answer(call, Verdict::Ack);
                }
            }
            let ended: Vec<_> = self.working.extract_if(.., |(until, _)| *until <= world.now).collect();
            for (_, id) in ended {
                world.finished.insert(id);
                world.step(Event::LateAnswer { id, verdict: Verdict::Ack });
            }
            world.settle();
            world.pass(Duration::from_secs(1));
            idle += u64::from(world.began.len() == known);
        }
        idle
    }
}

#[test]
fn another_window_is_taken_over_also_where_something_is_always_at_work() {
    for later in [false, true] {
        let (settings, mut world) = keyed(MINUTE * 60);
        let mut handler = Slow::new(later, |call| 20 + call.0 % 7);
        handler.work(&mut world, Duration::from_secs(100));
        another_window(&mut world, &settings);
        handler.work(&mut world, Duration::from_secs(100));
        assert_eq!(world.consuming, Some(9), "later: {later}");
    }
}

#[test]
fn what_takes_an_hour_keeps_others_from_nothing_for_long_and_the_other_window_comes_after_it() {
    for later in [false, true] {
        let (settings, mut world) = keyed(MINUTE * 120);
        let mut handler = Slow::new(later, |call| if call.0 == 1 { 3600 } else { 1 });
        handler.work(&mut world, Duration::from_secs(2));
        another_window(&mut world, &settings);
        let idle = handler.work(&mut world, MINUTE * 4);
        assert!(idle <= 10, "{idle} seconds without a call, later: {later}");
        assert_eq!(world.consuming, Some(6));
        world.pass(MINUTE * 60);
        handler.work(&mut world, MINUTE);
        assert_eq!(world.consuming, Some(9), "later: {later}");
    }
}

#[test]
fn a_copy_that_the_broker_does_not_take_keeps_an_outage_from_being_probed_for_a_moment_only() {
    let (_, mut world) = keyed(MINUTE);
    world.copies = Some(PublishResult::Refused);
    world.answer(CallId(1), Verdict::DeadLetter { reason: DeadReason::Rejected, detail: String::new() });
    world.until(World::is_broken, |world| {
        world.answer_all(retry(500));
        world.settle();
        world.pass(Duration::from_secs(1));
    });
    assert_eq!(world.subscribed.len(), 1);
    world.answering(MINUTE, |_, _| retry(500));
    assert!(world.subscribed.len() > 1, "others were to get what is held here");
}

/// Messages of four keys, more than the window takes, through an outage that lasts until it is probed.
fn of_four_keys_in_an_outage(prefetch: u16) -> World {
    let ladder = Ladder { delays_seconds: vec![1], max_attempts: 100 };
    let mut world = World::new(Settings { prefetch, concurrency: 2, ordered: true, ladder, ..settings() });
    world.queue.extend((0..60).map(|number| Message { number, attempts: 0, key: Some(number % 4) }));
    world.connect();
    world.settle();
    world.answering(MINUTE, |_, _| retry(500));
    assert!(world.is_broken() && world.subscribed.len() > 1);
    world
}

/// All go through, those of each key as they came.
fn assert_in_order(mut world: World, case: &str) {
    world.answering(MINUTE * 5, |_, _| Verdict::Ack);
    for key in 0..4 {
        let of_key: Vec<u64> = world.handled.iter().copied().filter(|number| number % 4 == key).collect();
        assert!(of_key.is_sorted(), "{case}, key {key}: {of_key:?}");
    }
    assert_eq!(world.handled.len(), 60, "{case}");
}

#[test]
fn an_outage_that_ends_leaves_each_key_in_order() {
    for prefetch in [8, 20, 40] {
        assert_in_order(of_four_keys_in_an_outage(prefetch), &format!("prefetch {prefetch}"));
    }
}

#[test]
fn a_pod_that_ends_or_loses_its_connection_in_an_outage_leaves_each_key_in_order() {
    for prefetch in [8, 20, 40] {
        let mut world = of_four_keys_in_an_outage(prefetch);
        world.disconnect();
        world.connect();
        world.settle();
        assert_in_order(world, &format!("a lost connection, prefetch {prefetch}"));
        let mut world = of_four_keys_in_an_outage(prefetch);
        let settings = world.engine.settings.clone();
        world.step(Event::Terminate);
        world.answering(MINUTE, |_, _| retry(500));
        assert_eq!(world.exits, 1);
        world.restart(settings);
        world.connect();
        world.settle();
        assert_in_order(world, &format!("another pod, prefetch {prefetch}"));
    }
}
