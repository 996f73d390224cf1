//! Open channels that are used again, and given up in time. Pure.
//!
//! For a recovery that Warren does not use, the AMQP library keeps in each channel every queue that was declared or asked for
//! on it, with its arguments, and each binding as often as it was made. A channel that lived as long as its connection would
//! come to hold a whole fleet, and grow with every drift check.

/// Uses of a channel before another one takes its place: opening one is cheap, and so is what it holds by then.
const MOST_USES: u32 = 100;

/// Open channels of one connection that wait for use.
#[derive(Debug)]
pub(super) struct Channels<C> {
    generation: u64,
    idle: Vec<Pooled<C>>,
}

/// A channel, and how often it was taken.
#[derive(Debug)]
pub(super) struct Pooled<C> {
    /// The channel.
    pub(super) channel: C,
    uses: u32,
}

impl<C> Pooled<C> {
    /// One that has just been opened.
    pub(super) const fn fresh(channel: C) -> Self {
        Self { channel, uses: 1 }
    }
}

impl<C> Default for Channels<C> {
    fn default() -> Self {
        Self { generation: 0, idle: Vec::new() }
    }
}

impl<C> Channels<C> {
    /// Takes a channel of the connection of a generation; those of an older one are dropped.
    pub(super) fn take(&mut self, generation: u64) -> Option<Pooled<C>> {
        if self.generation != generation {
            (self.generation, self.idle) = (generation, Vec::new());
        }
        let Pooled { channel, uses } = self.idle.pop()?;
        Some(Pooled { channel, uses: uses + 1 })
    }

    /// Gives a channel back that is still open. One that was used often is dropped, which closes it.
    pub(super) fn put_back(&mut self, generation: u64, pooled: Pooled<C>) {
        if self.generation == generation && pooled.uses < MOST_USES {
            self.idle.push(pooled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_that_was_used_often_is_not_used_again() {
        let mut channels = Channels::default();
        assert!(channels.take(1).is_none());
        channels.put_back(1, Pooled::fresh("first"));
        let uses = std::iter::from_fn(|| {
            let taken = channels.take(1)?;
            channels.put_back(1, Pooled { channel: taken.channel, uses: taken.uses });
            Some(())
        });
        assert_eq!(uses.count() as u32 + 1, MOST_USES);
    }

    #[test]
    fn a_channel_of_an_older_connection_is_not_used_again() {
        let mut channels = Channels::default();
        channels.take(1);
        channels.put_back(1, Pooled::fresh("old"));
        assert!(channels.take(2).is_none());
        channels.put_back(1, Pooled::fresh("older"));
        assert!(channels.take(2).is_none());
    }
}
