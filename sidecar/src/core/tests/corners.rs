//! What is asked twice, ends late or comes too late, and what of it must not be done again.

use super::*;

#[test]
fn a_shorter_time_out_of_the_broker_counts_for_what_is_held_already() {
    let two = Settings { prefetch: 2, ..settings() };
    let mut world = World::running(two.clone(), 2);
    world.step(Event::Configured(Box::new(Settings { consumer_timeout: Duration::from_secs(100), ..two })));
    world.pass(Duration::from_secs(75));
    assert_eq!(
        (world.calls.len(), world.came_back),
        (1, 0),
        "the one that waits was given back, and has come again"
    );
    assert!(world.returned.contains(&1));
}

#[test]
fn the_loss_of_an_older_channel_takes_nothing_from_the_present_one() {
    let mut world = World::running(Settings { prefetch: 3, ..settings() }, 3);
    world.disconnect();
    world.connect();
    world.settle();
    world.step(Event::Lost { generation: 1 });
    world.answering(Duration::from_secs(2), |_, _| Verdict::Ack);
    assert_eq!((world.handled.len(), world.unacked.len(), world.consuming), (3, 0, Some(3)));
}

#[test]
fn a_message_that_is_too_large_ends_nothing_of_its_key() {
    let mut world = World::new(Settings { prefetch: 3, concurrency: 3, ordered: true, ..settings() });
    world.connect();
    world.settle();
    for (tag, oversized) in [(1, None), (2, Some(9)), (3, None)] {
        let id = DeliveryId { generation: 1, tag };
        world.unacked.insert(tag, Message { number: tag, attempts: 0, key: Some(1) });
        world.keys.insert(id, 1);
        let (attempts, redelivered, counted, identity) = (0, false, false, Some(tag));
        let incoming = Incoming { id, attempts, redelivered, counted, identity, key: Some(1), oversized };
        world.step(Event::Delivered(incoming));
        world.settle();
    }
    assert_eq!(world.dead, [(2, DeadReason::TooLarge)]);
    assert_eq!(world.calls.len(), 1, "the third waits for the first");
}

#[test]
fn whose_work_ends_while_there_is_no_channel_is_told_that_it_is_not_waited_for() {
    let mut world = World::running(settings(), 1);
    world.answer_all(Verdict::Later);
    world.disconnect();
    world.step(Event::LateAnswer { id: DeliveryId { generation: 1, tag: 1 }, verdict: Verdict::Ack });
    assert_eq!(world.late_replies, [LateReply::Ended]);
}

#[test]
fn the_next_of_a_key_is_called_in_time_also_where_very_many_others_end_later() {
    let mut world = World::new(Settings { prefetch: 2000, concurrency: 2000, ordered: true, ..settings() });
    world.queue.push_back(Message { number: 0, attempts: 0, key: Some(0) });
    world.connect();
    world.settle();
    world.answer_all(Verdict::Later);
    world.disconnect();
    for number in 1..=1100 {
        world.queue.push_back(Message { number, attempts: 0, key: Some(number) });
    }
    world.connect();
    world.settle();
    world.pass(Duration::from_secs(1));
    assert_eq!(
        world.answer_all(Verdict::Later),
        1100,
        "the first waits for what its application goes on with"
    );
    world.pass(Duration::from_millis(29_500));
    assert_eq!(world.calls.len(), 1);
}

#[test]
fn a_message_that_has_failed_is_in_no_batch_with_others() {
    let batch = Some(Batch { max_messages: 3, max_wait: Duration::from_millis(20) });
    let mut world = World::new(Settings { prefetch: 9, concurrency: 3, batch, ..settings() });
    for (number, attempts) in [(0, 0), (1, 1), (2, 0), (3, 0)] {
        world.queue.push_back(Message { number, attempts, key: None });
    }
    world.connect();
    world.settle();
    world.pass(Duration::from_millis(25));
    let mut calls: Vec<(CallId, Vec<u64>)> = (world.calls.iter())
        .map(|(call, called)| (*call, called.iter().map(|one| one.id.tag).collect()))
        .collect();
    calls.sort();
    let calls: Vec<_> = calls.into_iter().map(|(_, tags)| tags).collect();
    assert_eq!(calls, [vec![1], vec![2], vec![3, 4]]);
}

#[test]
fn a_reply_on_its_way_is_not_given_up_for_others_where_an_order_is_kept() {
    for copies in [None, Some(PublishResult::Failed)] {
        let settings = Settings { prefetch: 2, ordered: true, ..settings() };
        let mut world = World::new(settings.clone());
        world.queue.push_back(Message { number: 0, attempts: 0, key: Some(1) });
        world.connect();
        world.settle();
        world.copies = copies;
        world.answer_all(Verdict::Reply);
        world.step(Event::Configured(Box::new(Settings { paused: true, ..settings })));
        for _ in 0..300 {
            world.pass(Duration::from_millis(100));
            let ready = world.publishes.len();
            for _ in 0..ready {
                if let Some(result) = copies {
                    world.publish_done(0, result);
                }
            }
        }
        assert_eq!((world.unacked.len(), world.queue.len()), (1, 0), "{copies:?}: its work is done");
        world.copies = Some(PublishResult::Confirmed);
        world.settle();
        world.pass(Duration::from_secs(31));
        assert_eq!((world.handled.as_slice(), world.queue.len()), ([0].as_slice(), 0));
    }
}

#[test]
fn a_drain_where_an_order_is_kept_tries_a_copy_again_for_as_long_as_it_may_take() {
    let mut world = World::new(Settings { prefetch: 2, ordered: true, ..settings() });
    world.queue.push_back(Message { number: 0, attempts: 0, key: Some(1) });
    world.connect();
    world.settle();
    world.answer_all(Verdict::DeadLetter { reason: DeadReason::Rejected, detail: String::new() });
    world.step(Event::Drain);
    for _ in 0..590 {
        replying(&mut world, PublishResult::Failed, Duration::from_millis(100));
    }
    assert_eq!((world.unacked.len(), world.drained.len()), (1, 0));
    replying(&mut world, PublishResult::Failed, Duration::from_secs(5));
    assert_eq!((world.unacked.len(), world.queue.len(), world.drained.len()), (0, 1, 1));
}

#[test]
fn whoever_asks_again_for_a_drain_that_has_ended_hears_how_and_what_has_ended_since_is_acknowledged() {
    let mut world = World::running(Settings { prefetch: 10, concurrency: 3, ..settings() }, 3);
    world.step(Event::Drain);
    world.settle();
    world.pass(Duration::from_secs(61));
    world.answer(CallId(2), Verdict::Ack);
    assert_eq!((world.drained.as_slice(), world.acks.len()), ([false].as_slice(), 0));
    world.step(Event::Drain);
    assert_eq!((world.drained.as_slice(), world.acks.len()), ([false, false].as_slice(), 1));
}

#[test]
fn a_pod_that_ends_consumes_no_more_whatever_its_application_s_port_does() {
    let mut world = World::running(settings(), 2);
    world.step(Event::Terminate);
    world.settle();
    for open in [false, true] {
        world.port_open = open;
        world.pass(Duration::from_secs(6));
    }
    assert_eq!((world.consuming, world.saw(&Observation::DrainReversed)), (None, 0));
    world.answer_all(Verdict::Ack);
    assert_eq!((world.exits, world.queue.len()), (1, 1));
}

#[test]
fn a_reply_that_nobody_has_confirmed_when_the_sidecar_goes_leaves_its_work_done() {
    let replied = || {
        let mut world = World::running(settings(), 1);
        world.answer_all(Verdict::Reply);
        world
    };
    let mut turns = replied();
    turns.step(Event::Leaving { over: false });
    assert_eq!(turns.acks.len(), 0, "the channel may stay");
    turns.step(Event::Leaving { over: true });
    assert_eq!(turns.acks.len(), 1);

    // The call has outlasted the drain, and ends with the application.
    let mut ends = World::running(settings(), 1);
    ends.step(Event::Drain);
    ends.settle();
    ends.pass(Duration::from_secs(61));
    assert_eq!(ends.drained, [false]);
    ends.answer_all(Verdict::Reply);
    assert_eq!(ends.acks.len(), 0, "its confirm may still come");
    ends.step(Event::Terminate);
    assert_eq!(ends.acks.len(), 1);
}

#[test]
fn a_reply_that_comes_after_its_drain_is_sent_once_and_its_work_is_not_done_again() {
    for result in [PublishResult::Confirmed, PublishResult::Failed] {
        let mut world = World::running(settings(), 1);
        world.step(Event::Drain);
        world.settle();
        world.pass(Duration::from_secs(61));
        world.answer_all(Verdict::Reply);
        world.publish_done(0, result);
        let dropped = world.observed.iter().filter(|seen| matches!(seen, Observation::ReplyDropped { .. }));
        assert_eq!(dropped.count(), usize::from(result == PublishResult::Failed));
        assert_eq!((world.handled.as_slice(), world.acks.len()), ([0].as_slice(), 1));
    }
}

#[test]
fn a_drain_waits_for_the_end_of_its_consumer_and_of_calls_whose_channel_is_gone() {
    let mut world = World::running(settings(), 0);
    world.step(Event::Drain);
    assert_eq!(world.drained, [] as [bool; 0], "something may still come");
    world.settle();
    assert_eq!(world.drained, [true]);

    let mut world = World::running(settings(), 1);
    world.disconnect();
    world.step(Event::Drain);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.drained, [] as [bool; 0], "the application would be ended at its work");
    world.answer_all(Verdict::Ack);
    assert_eq!(world.drained, [true]);
}

#[test]
fn a_message_of_which_an_answer_says_nothing_is_tried_again() {
    let batch = Some(Batch { max_messages: 2, max_wait: Duration::from_millis(20) });
    let mut world = World::running(Settings { prefetch: 2, batch, ..settings() }, 2);
    let (call, deliveries) = world.calls.drain().next().unwrap();
    world.at_handler.clear();
    world.finished.insert(deliveries[0].id);
    world.step(Event::Answered { call, answers: Answers::Each(vec![Verdict::Ack]) });
    world.settle();
    assert_eq!((world.retried.as_slice(), world.acks.len()), ([(1, Some(5), 1)].as_slice(), 2));
}

#[test]
fn a_batch_that_was_not_taken_keeps_its_order() {
    let batch = Some(Batch { max_messages: 3, max_wait: Duration::from_millis(20) });
    let mut world = World::running(Settings { prefetch: 3, batch, ..settings() }, 3);
    world.port_open = false;
    world.answer_all(Verdict::Unreached);
    world.pass(Duration::from_secs(1));
    world.port_open = true;
    world.pass(Duration::from_secs(6));
    let tags: Vec<_> = world.calls.values().flatten().map(|called| called.id.tag).collect();
    assert_eq!(tags, [1, 2, 3]);
}

#[test]
fn very_many_429_open_no_breaker() {
    let mut world = World::running(Settings { prefetch: 40, concurrency: 40, ..settings() }, 40);
    let not_now = |status| Verdict::NotNow { after: Some(Duration::from_secs(1)), status };
    world.answer_all(not_now(429));
    world.answering(Duration::from_secs(100), |_, _| not_now(429));
    assert_eq!(world.engine.snapshot().breaker, None);
    world.answering(Duration::from_secs(600), |_, _| not_now(503));
    assert_eq!(world.engine.snapshot().breaker, Some(503));
}

#[test]
fn a_message_of_a_key_waits_in_place_for_a_minute_at_most() {
    let ladder = Ladder { delays_seconds: vec![600], max_attempts: 5 };
    let mut world = World::new(Settings { ordered: true, ladder, ..settings() });
    world.queue.push_back(Message { number: 0, attempts: 0, key: Some(1) });
    world.connect();
    world.settle();
    world.answer_all(retry(500));
    world.pass(Duration::from_secs(59));
    assert_eq!(world.calls.len(), 0);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.calls.len(), 1);
}

#[test]
fn a_reply_that_no_queue_takes_is_dropped_at_once() {
    let mut world = World::running(settings(), 2);
    world.answer_all(Verdict::Reply);
    world.publish_done(0, PublishResult::Unroutable);
    assert_eq!((world.handled.as_slice(), world.acks.len()), ([0].as_slice(), 1));
    world.settle();
    assert_eq!(world.calls.len(), 1);
}

#[test]
fn late_work_whose_channel_is_gone_holds_its_key_until_its_extended_time_and_no_longer() {
    let mut world = World::new(Settings { prefetch: 2, concurrency: 2, ordered: true, ..settings() });
    world.queue.push_back(Message { number: 0, attempts: 0, key: Some(1) });
    world.connect();
    world.settle();
    world.answer_all(Verdict::Later);
    world.disconnect();
    world.connect();
    world.settle();
    world.pass(Duration::from_secs(10));
    world.step(Event::Extended { id: DeliveryId { generation: 1, tag: 1 } });
    world.pass(Duration::from_secs(29));
    assert_eq!(world.calls.len(), 0);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.calls.len(), 1);
}

#[test]
fn after_an_outage_the_load_comes_back_call_by_call() {
    let mut world = World::running(Settings { prefetch: 40, concurrency: 40, ..settings() }, 400);
    world.until(World::is_broken, |world| {
        world.answer_all(retry(500));
        world.settle();
        world.pass(Duration::from_secs(1));
    });
    world.answer_all(retry(500));
    world.until(World::calls_something, |world| {
        world.pass(Duration::from_millis(100));
    });
    world.answer_all(Verdict::Ack);
    world.settle();
    assert_eq!(world.engine.snapshot().breaker, None);
    assert!(world.calls.len() <= 2, "{} calls", world.calls.len());
}

#[test]
fn a_drain_in_an_outage_waits_for_no_probe() {
    let mut world = World::running(Settings { prefetch: 5, ..settings() }, 400);
    world.until(World::is_broken, |world| {
        world.answer_all(retry(500));
        world.settle();
    });
    world.step(Event::Drain);
    world.settle();
    world.pass(Duration::from_secs(5));
    assert_eq!((world.calls.len(), world.unacked.len(), world.drained.as_slice()), (0, 0, [true].as_slice()));
}

#[test]
fn the_end_of_an_older_channel_s_consumer_is_not_that_of_the_present_one() {
    let mut world = World::running(Settings { prefetch: 5, ..settings() }, 1);
    world.disconnect();
    world.connect();
    world.settle();
    world.step(Event::Unsubscribed { generation: 1 });
    assert_eq!((world.consuming, world.subscribed.len()), (Some(5), 2));
}

#[test]
fn fewer_calls_at_once_are_half_of_those_that_ran() {
    let mut world = World::running(Settings { prefetch: 8, concurrency: 4, ..settings() }, 8);
    world.answer_all(Verdict::NotNow { after: Some(Duration::from_secs(3)), status: 429 });
    world.pass(Duration::from_millis(3100));
    assert_eq!(world.calls.len(), 2);
}

#[test]
fn a_message_held_from_the_moment_when_a_call_could_begin_no_more_is_warned_of_in_time() {
    let consumer_timeout = Duration::from_secs(1000);
    let late_timeout = Duration::from_secs(300);
    let mut world = World::running(Settings { consumer_timeout, late_timeout, ..settings() }, 1);
    // It is looked at after 700 s, from which on no call of 300 s would end in time.
    world.pass(Duration::from_secs(799));
    assert_eq!(world.held_long(), 0);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.held_long(), 1);
}

#[test]
fn a_message_s_third_failed_probe_is_its_own_fault_if_others_have_succeeded_since_its_first() {
    let not_now = || Verdict::NotNow { after: None, status: 503 };
    for (successes_before, verdict, attempts) in [(0, retry(500), 1), (1, retry(500), 0), (0, not_now(), 0)] {
        let mut world = World::running(Settings { prefetch: 40, ..settings() }, 41);
        world.answer_all(Verdict::Ack);
        world.until(World::is_broken, |world| {
            world.answer_all(retry(500));
            world.settle();
        });
        world.answer_all(retry(500));
        world.until(World::calls_something, |world| {
            world.pass(Duration::from_millis(100));
        });
        world.retried.clear();
        let probed = world.calls.values().next().unwrap()[0].id;
        let slot = world.engine.window.get_mut(probed).unwrap();
        slot.probe_failures = breaker::PROBES - 1;
        slot.successes_then = successes_before;
        assert_eq!(slot.incoming.attempts, 0);
        world.answer_all(verdict);
        world.settle();
        let number = world.unacked.get(&probed.tag).map(|message| message.number);
        let retried: Vec<_> = world.retried.iter().map(|(_, delay, attempts)| (*delay, *attempts)).collect();
        assert_eq!(
            retried,
            [(Some(5), attempts)],
            "{number:?} makes room, {successes_before} successes before"
        );
    }
}

#[test]
fn a_handler_that_went_away_is_told_of_once_and_one_that_is_silent_is_not_back() {
    for silent in [false, true] {
        let mut world = World::running(Settings { prefetch: 4, ..settings() }, 4);
        world.pass(Duration::from_secs(1));
        world.port_open = false;
        world.port_silent = silent;
        world.answer_all(Verdict::Unreached);
        world.settle();
        world.pass(Duration::from_secs(60));
        let told = (world.saw(&Observation::HandlerDown), world.saw(&Observation::HandlerUp));
        assert_eq!((told, world.engine.snapshot().handler_accepts), ((1, 1), false), "silent: {silent}");
        world.port_open = true;
        world.pass(Duration::from_secs(10));
        assert_eq!(world.saw(&Observation::HandlerUp), 2);
    }
}

#[test]
fn attempts_made_in_place_count_for_the_message_that_comes_again_and_not_for_a_new_one_of_its_id() {
    for redelivered in [true, false] {
        let mut world = World::new(settings());
        world.queue.push_back(Message { number: 0, attempts: 0, key: Some(1) });
        world.connect();
        world.settle();
        world.answer_all(retry(500));
        world.disconnect();
        if !redelivered {
            world.returned.clear();
        }
        world.connect();
        world.settle();
        let attempt = world.calls.values().next().unwrap()[0].attempt;
        assert_eq!(attempt, 1 + u32::from(redelivered));
    }
}

#[test]
fn a_batch_to_which_the_window_lets_no_further_message_come_does_not_wait_for_one() {
    let batch = Some(Batch { max_messages: 10, max_wait: Duration::from_secs(1) });
    let world = World::running(Settings { prefetch: 3, batch, ..settings() }, 6);
    assert_eq!(world.calls.values().map(Vec::len).collect::<Vec<_>>(), [3]);
}

#[test]
fn a_pod_that_is_deleted_after_a_restart_of_its_application_began_stays_drained() {
    let mut world = World::running(settings(), 1);
    world.answer_all(Verdict::Ack);
    world.step(Event::Drain);
    world.settle();
    world.pass(Duration::from_secs(2));
    // Killed, and boots again, when the pod is deleted: its SIGTERM may have come before anybody handled it.
    world.port_open = false;
    world.pass(Duration::from_secs(10));
    world.step(Event::Drain);
    world.settle();
    assert_eq!(world.drained, [true, true]);
    world.queue.push_back(Message { number: 9, attempts: 0, key: None });
    world.port_open = true;
    world.pass(Duration::from_secs(6));
    assert_eq!((world.consuming, world.saw(&Observation::DrainReversed)), (None, 0));
}

#[test]
fn the_grace_period_is_that_of_the_last_drain() {
    let mut world = World::running(settings(), 0);
    let grace = world.engine.settings.grace_period;
    world.step(Event::Drain);
    world.settle();
    world.pass(grace - Duration::from_secs(5));
    world.step(Event::Drain);
    world.settle();
    world.pass(Duration::from_secs(10));
    assert_eq!((world.consuming, world.saw(&Observation::DrainReversed)), (None, 0));
    world.pass(grace);
    assert_eq!(world.saw(&Observation::DrainReversed), 1, "the pod lives on after all");
}

#[test]
fn the_grace_period_is_that_of_the_last_drain_also_where_it_came_while_the_first_went_on() {
    let mut world = World::running(settings(), 1);
    let grace = world.engine.settings.grace_period;
    world.step(Event::Drain);
    world.settle();
    world.pass(Duration::from_secs(5));
    world.step(Event::Drain);
    world.answer_all(Verdict::Ack);
    world.settle();
    world.pass(grace - Duration::from_secs(3));
    assert_eq!((world.consuming, world.saw(&Observation::DrainReversed)), (None, 0));
    world.pass(Duration::from_secs(5));
    assert_eq!(world.saw(&Observation::DrainReversed), 1);
}

#[test]
fn an_application_that_hung_is_consumed_for_again_when_it_has_restarted() {
    let mut world = World::running(settings(), 0);
    // Nothing takes connections, and the system's queue of them is full.
    (world.port_open, world.port_silent) = (false, true);
    world.step(Event::Drain);
    world.settle();
    world.pass(Duration::from_secs(5));
    world.port_silent = false;
    world.pass(Duration::from_secs(5));
    world.port_open = true;
    world.pass(Duration::from_secs(6));
    assert_eq!((world.consuming, world.saw(&Observation::DrainReversed)), (Some(1), 1));
}
