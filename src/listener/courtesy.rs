//! Who releases a lock that others wait for lets them pass: a release tells how many heard of it, and what they have before
//! this `Nodes` asks for it again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::job::Addressee;
use crate::key::{Key, Keys};
use crate::listener::{Desk, Listener};
use crate::script::Answer;
use crate::time;

/// A `Nodes` that let others pass at a key forgets it after this.
const KEPT: Duration = Duration::from_secs(10);

impl Listener {
    /// A lock of ours is being released. If others are known to listen there, they are let pass from now on.
    pub(crate) fn releases(&self, keys: &Keys) {
        if self.desk.courtesies.load(Ordering::Acquire) > 0 {
            let mut state = self.desk.state.lock();
            for key in keys.all() {
                if let Some(until) = state.courtesies.get_mut(key.channel().as_ref()) {
                    *until = self.desk.others_pass();
                }
            }
        }
    }

    /// So many heard on these nodes that a lock of ours was released.
    pub(crate) fn released(&self, keys: &Keys, heard: &[(usize, u64)]) {
        self.desk.released(keys, heard);
    }

    /// Hears how many heard of a release that nobody waits for.
    pub(crate) fn addressee(&self, keys: &Keys) -> Arc<dyn Addressee> {
        Arc::new(Released {
            desk: Arc::clone(&self.desk),
            keys: keys.clone(),
        })
    }

    /// Until when others are let pass at one of these keys.
    pub(crate) fn courtesy(&self, keys: &Keys) -> Option<Instant> {
        if self.desk.courtesies.load(Ordering::Acquire) == 0 {
            return None;
        }
        let state = self.desk.state.lock();
        let until = |key: &Key| state.courtesies.get(key.channel().as_ref()).copied();
        keys.all().iter().filter_map(until).max()
    }
}

/// Where the answers to a release go that nobody waits for.
struct Released {
    desk: Arc<Desk>,
    keys: Keys,
}

impl Addressee for Released {
    fn post(&self, _: u32, node: usize, answer: Answer) {
        match answer {
            Answer::Heard(count) => self.desk.released(&self.keys, &[(node, count)]),
            Answer::Yes => self.desk.unheard(&self.keys, node),
            _ => {}
        }
    }
}

impl Desk {
    /// Of a lock with several keys a node says how many heard of the one that most heard of: those who listen to the others
    /// are let pass as well.
    fn released(&self, keys: &Keys, heard: &[(usize, u64)]) {
        let known = self.courtesies.load(Ordering::Acquire) > 0;
        if heard.is_empty() && !known {
            return;
        }
        let mut state = self.state.lock();
        for key in keys.all() {
            let channel = key.channel();
            let post = state.channels.get(&channel);
            let ours = state.node.filter(|_| post.is_some_and(|p| p.subscribed));
            let others = heard
                .iter()
                .any(|(node, count)| *count > u64::from(ours == Some(*node)));
            if others {
                let now = time::now();
                state.courtesies.retain(|_, until| now < *until + KEPT);
                let until = self.others_pass();
                state.courtesies.insert(channel, until);
            } else {
                state.courtesies.remove(&channel);
            }
        }
        let count = state.courtesies.len();
        self.courtesies.store(count, Ordering::Release);
    }

    /// Nobody heard of it on this node. Where others listen they do so on the first one.
    fn unheard(&self, keys: &Keys, node: usize) {
        if self.nodes.first_up() == Some(node) {
            self.released(keys, &[]);
        }
    }

    /// Two round trips and as much again, more or less, from now on.
    fn others_pass(&self) -> Instant {
        time::now() + (2 * self.nodes.usual_round()).mul_f64(1.0 + rand::random::<f64>())
    }
}
