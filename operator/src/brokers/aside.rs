//! What is asked of a broker beside the work: nobody waits for it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::locked::locked;

/// How long an answer holds: it may be one of several nodes that has given it, and another that has changed since.
const HOLDS: Duration = Duration::from_secs(600);

/// An answer that each connection is asked for, and again while there was none, or after a while.
#[derive(Debug)]
pub(super) struct Aside<T>(Arc<Mutex<State<T>>>);

#[derive(Debug)]
struct State<T> {
    /// The connection that was asked last, and when; none where that is to be asked again.
    asked: Option<(u64, Instant)>,
    answer: Option<T>,
}

impl<T> Default for Aside<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { asked: None, answer: None })))
    }
}

impl<T: Clone + Send + 'static> Aside<T> {
    /// The last answer, which an older connection may have given. `ask` asks the one of `generation`, if that was not asked lately.
    pub(super) fn answer<F>(&self, generation: u64, ask: impl FnOnce() -> F) -> Option<T>
    where
        F: Future<Output = Option<T>> + Send + 'static,
    {
        let mut state = locked(&self.0);
        let lately = |(asked, at): (u64, Instant)| asked == generation && at.elapsed() < HOLDS;
        if !state.asked.is_some_and(lately) {
            state.asked = Some((generation, Instant::now()));
            let (asked, answer) = (self.0.clone(), ask());
            tokio::spawn(async move {
                let answer = answer.await;
                let mut state = locked(&asked);
                match answer {
                    Some(answer) => state.answer = Some(answer),
                    None => state.asked = None,
                }
            });
        }
        state.answer.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_an_answer_and_one_that_does_not_come_is_asked_for_again() {
        let aside = Aside::default();
        let look = async |generation, answer: Option<&'static str>| {
            let mut asked = false;
            let known = aside.answer(generation, || {
                asked = true;
                std::future::ready(answer)
            });
            tokio::task::yield_now().await;
            (asked, known)
        };
        assert_eq!(look(1, None).await, (true, None));
        assert_eq!(look(1, Some("3.10")).await, (true, None));
        assert_eq!(look(1, None).await, (false, Some("3.10")));
        // What was known holds until the next connection says otherwise.
        assert_eq!(look(2, Some("4.0")).await, (true, Some("3.10")));
        assert_eq!(look(2, None).await, (false, Some("4.0")));
        tokio::time::advance(HOLDS).await;
        assert_eq!(look(2, Some("4.1")).await, (true, Some("4.0")), "another node may have been asked");
        assert_eq!(look(2, None).await, (false, Some("4.1")));
    }
}
