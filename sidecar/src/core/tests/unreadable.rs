//! A message that cannot be read ends the connection before anybody sees it.

use super::*;

/// The connection ends over a message that was never seen, and there is another.
fn unreadable(world: &mut World) {
    world.disconnect();
    world.step(Event::Unreadable);
    world.connect();
    world.settle();
}

fn window(world: &World) -> u16 {
    world.subscribed.last().unwrap().1
}

#[test]
fn one_at_a_time_is_taken_until_a_minute_has_passed_and_as_many_messages_as_came_back() {
    let mut world = World::running(Settings { prefetch: 50, concurrency: 10, ..settings() }, 300);
    assert_eq!((window(&world), world.unacked.len()), (50, 50));
    unreadable(&mut world);
    assert_eq!((window(&world), world.unacked.len()), (1, 1), "nothing but the bad one is counted again");
    world.answering(Duration::from_secs(2), |_, _| Verdict::Ack);
    assert_eq!(window(&world), 1);
    unreadable(&mut world);
    world.pass(Duration::from_secs(70));
    assert_eq!(window(&world), 1, "the bad one may still be among those that came back");
    world.answering(Duration::from_secs(10), |_, _| Verdict::Ack);
    assert_eq!(window(&world), 50);
}

#[test]
fn a_quick_handler_is_cautious_for_a_minute_too_and_the_end_of_that_waits_for_no_message() {
    let mut world = World::running(Settings { prefetch: 2, concurrency: 2, ..settings() }, 10);
    unreadable(&mut world);
    world.answering(Duration::from_secs(30), |_, _| Verdict::Ack);
    assert_eq!((window(&world), world.queue.len(), world.unacked.len()), (1, 0, 0));
    world.pass(Duration::from_secs(31));
    world.settle();
    assert_eq!(window(&world), 2);
}

#[test]
fn in_an_outage_too_one_that_cannot_be_read_is_taken_alone() {
    for ordered in [false, true] {
        let settings = Settings { prefetch: 50, concurrency: 10, ordered, ..settings() };
        let mut world = World::new(settings);
        world.queue.extend((0..300).map(|number| Message { number, attempts: 0, key: Some(number) }));
        world.connect();
        world.settle();
        world.until(World::is_broken, |world| {
            world.answer_all(retry(500));
            world.settle();
        });
        world.pass(Duration::from_secs(15));
        for _ in 0..3 {
            unreadable(&mut world);
            assert_eq!((window(&world), world.unacked.len()), (1, 1), "ordered: {ordered}");
        }
    }
}
