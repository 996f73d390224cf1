//! Copies whose retry queue the spec has dropped before the broker took them.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn with_ladder(delays_seconds: &[u32]) -> Settings {
    Settings { ladder: Ladder { delays_seconds: delays_seconds.to_vec(), max_attempts: 5 }, ..settings() }
}

/// The broker takes no copies, the ladder changes meanwhile, and then there is no queue for what the former one has alone.
fn outage_and_another_ladder(world: &mut World, ladder: &[u32]) {
    world.copies = Some(PublishResult::Failed);
    world.settle();
    world.pass(SECOND);
    world.step(Event::Configured(Box::new(with_ladder(ladder))));
    world.copies = Some(PublishResult::Unroutable);
    world.pass(SECOND * 30);
    world.copies = Some(PublishResult::Confirmed);
    world.pass(SECOND * 30);
}

#[test]
fn a_copy_whose_rung_is_gone_takes_the_first_one_that_is_not_shorter() {
    for (ladder, delay) in [(&[10, 60][..], 10), (&[1, 2], 2), (&[5, 60], 5), (&[1, 5], 5)] {
        let mut world = World::running(with_ladder(&[5, 60]), 1);
        world.answer_all(retry(500));
        outage_and_another_ladder(&mut world, ladder);
        assert_eq!(
            (&world.retried[..], &world.dead[..]),
            (&[(0, Some(delay), 1)][..], &[][..]),
            "{ladder:?}"
        );
    }
}

#[test]
fn a_copy_whose_rung_is_gone_untold_waits_a_minute_for_it_and_then_takes_another() {
    let mut world = World::running(with_ladder(&[5, 60, 600]), 1);
    world.copies = None;
    world.answer_all(retry(500));
    let gone = |copy: &Copy| matches!(copy, Copy::Retry { delay_seconds: Some(5 | 60), .. });
    while world.retried.is_empty() && world.now < SECOND * 300 {
        while let Some((_, copy)) = world.publishes.first() {
            let result = if gone(copy) { PublishResult::Unroutable } else { PublishResult::Confirmed };
            world.publish_done(0, result);
        }
        world.pass(SECOND);
    }
    assert_eq!(world.retried, [(0, Some(600), 1)]);
    assert!(world.now > SECOND * 40, "{:?}", world.now);
}

#[test]
fn a_copy_for_which_no_rung_is_left_is_dead() {
    let mut world = World::running(with_ladder(&[5, 60]), 1);
    world.answer_all(retry(500));
    outage_and_another_ladder(&mut world, &[]);
    assert_eq!((&world.retried[..], &world.dead[..]), (&[][..], &[(0, DeadReason::Exhausted)][..]));
}

#[test]
fn a_copy_that_counts_no_attempt_is_not_dead_where_no_rung_is_left() {
    let mut world = World::running(Settings { prefetch: 40, ..with_ladder(&[5]) }, 40);
    while world.publishes.is_empty() || world.engine.snapshot().breaker.is_none() {
        while !world.publishes.is_empty() {
            world.publish_done(0, PublishResult::Confirmed);
        }
        world.pass(SECOND);
        world.answer_all(retry(500));
    }
    world.retried.clear();
    outage_and_another_ladder(&mut world, &[]);
    assert_eq!((&world.retried[0].1, &world.dead[..]), (&None, &[][..]));
}

#[test]
fn a_copy_that_its_rung_refuses_or_that_is_not_confirmed_waits_for_that_rung_however_long_it_takes() {
    for result in [PublishResult::Refused, PublishResult::Failed] {
        let mut world = World::running(with_ladder(&[5, 60, 600]), 1);
        world.copies = Some(result);
        world.answer_all(retry(500));
        world.settle();
        world.pass(SECOND * 600);
        world.copies = Some(PublishResult::Confirmed);
        world.pass(SECOND * 60);
        assert_eq!(world.retried, [(0, Some(5), 1)], "{result:?}");
    }
}
