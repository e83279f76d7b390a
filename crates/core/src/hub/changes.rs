//! Notification of changes: a task waits for the next change of a stream or a session instead of asking for its state
//! at an interval.
//!
//! A [`ChangeListener`] is polled with a [`Context`] of any runtime. It reports that something changed, not what: the task
//! reads the state after each notification, so that any number of changes in between cost one reading. What changes with
//! each packet, such as counters, is not notified, and neither is the number of viewers beyond zero and more than zero.

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::id::SessionId;
use super::lock::{LockRank, RankedMutex};
use super::name::StreamName;

/// What a listener waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ChangeTopic {
    /// Source, formats and layers of a stream and of its variants; its first viewer and its last one.
    Stream(StreamName),
    /// Connection and end of a session.
    Session(SessionId),
    /// All of them.
    Everything,
}

/// The listeners of a gateway.
#[derive(Debug)]
pub struct ChangeNotifier {
    listeners: RankedMutex<ChangeListeners>,
}

#[derive(Debug, Default)]
struct ChangeListeners {
    by_id: HashMap<u64, ChangeListenerState>,
    by_topic: HashMap<ChangeTopic, HashSet<u64>>,
    last_listener_id: u64,
}

#[derive(Debug, Default)]
struct ChangeListenerState {
    has_unseen_change: bool,
    waker: Option<Waker>,
}

impl Default for ChangeNotifier {
    fn default() -> Self {
        Self {
            listeners: RankedMutex::new(LockRank::ChangeListeners, ChangeListeners::default()),
        }
    }
}

impl ChangeNotifier {
    /// Returns a listener for changes from now on: read the state once after this call.
    pub fn listen(self: &Arc<Self>, topics: impl IntoIterator<Item = ChangeTopic>) -> ChangeListener {
        let topics: Vec<ChangeTopic> = topics.into_iter().collect();
        let mut listeners = self.listeners.lock();
        listeners.last_listener_id += 1;
        let id = listeners.last_listener_id;
        listeners.by_id.insert(id, ChangeListenerState::default());
        for topic in &topics {
            listeners.by_topic.entry(topic.clone()).or_default().insert(id);
        }
        drop(listeners);
        ChangeListener {
            change_notifier: self.clone(),
            topics,
            id,
        }
    }

    /// Wakes the listeners of a topic, and those of [`ChangeTopic::Everything`].
    pub fn notify(&self, topic: &ChangeTopic) {
        let mut listeners = self.listeners.lock();
        let mut wakers = listeners.mark_topic_changed_and_take_wakers(topic);
        if *topic != ChangeTopic::Everything {
            wakers.extend(listeners.mark_topic_changed_and_take_wakers(&ChangeTopic::Everything));
        }
        drop(listeners);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Wakes all listeners, whatever they wait for.
    pub fn notify_all(&self) {
        let mut listeners = self.listeners.lock();
        let states = listeners.by_id.values_mut();
        let wakers: Vec<Waker> = states
            .filter_map(ChangeListenerState::mark_changed_and_take_waker)
            .collect();
        drop(listeners);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl ChangeListeners {
    fn mark_topic_changed_and_take_wakers(&mut self, topic: &ChangeTopic) -> Vec<Waker> {
        let Some(ids) = self.by_topic.get(topic) else {
            return Vec::new();
        };
        let by_id = &mut self.by_id;
        ids.iter()
            .filter_map(|id| by_id.get_mut(id)?.mark_changed_and_take_waker())
            .collect()
    }
}

impl ChangeListenerState {
    fn mark_changed_and_take_waker(&mut self) -> Option<Waker> {
        self.has_unseen_change = true;
        self.waker.take()
    }
}

/// Waits for changes of its topics. Dropping it ends the notifications.
#[derive(Debug)]
pub struct ChangeListener {
    change_notifier: Arc<ChangeNotifier>,
    topics: Vec<ChangeTopic>,
    id: u64,
}

impl ChangeListener {
    /// Returns ready if something changed since the listener was made or since this last returned ready.
    pub fn poll_changed(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut listeners = self.change_notifier.listeners.lock();
        let Some(state) = listeners.by_id.get_mut(&self.id) else {
            return Poll::Pending;
        };
        if std::mem::take(&mut state.has_unseen_change) {
            return Poll::Ready(());
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(context.waker()),
            None => state.waker = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Waits for the next change.
    pub async fn changed(&mut self) {
        poll_fn(|context| self.poll_changed(context)).await;
    }
}

impl Drop for ChangeListener {
    fn drop(&mut self) {
        let mut listeners = self.change_notifier.listeners.lock();
        listeners.by_id.remove(&self.id);
        for topic in &self.topics {
            if let Some(ids) = listeners.by_topic.get_mut(topic) {
                ids.remove(&self.id);
                if ids.is_empty() {
                    listeners.by_topic.remove(topic);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn stream(name: &str) -> ChangeTopic {
        ChangeTopic::Stream(StreamName::parse(name).expect("a name"))
    }

    #[test]
    fn a_listener_is_woken_once_for_any_number_of_changes_of_its_topics() {
        let (changes, count) = (Arc::new(ChangeNotifier::default()), Arc::new(Count::default()));
        let waker = Waker::from(count.clone());
        let mut context = Context::from_waker(&waker);
        let mut listener = changes.listen([stream("a"), ChangeTopic::Session(SessionId([1; 16]))]);
        assert!(listener.poll_changed(&mut context).is_pending());
        for (topic, woken) in [
            (stream("b"), 0),
            (ChangeTopic::Session(SessionId([2; 16])), 0),
            (ChangeTopic::Everything, 0),
            (ChangeTopic::Session(SessionId([1; 16])), 1),
            (stream("a"), 1),
        ] {
            changes.notify(&topic);
            assert_eq!(count.0.load(Ordering::Relaxed), woken, "{topic:?}");
        }
        assert!(listener.poll_changed(&mut context).is_ready());
        assert!(listener.poll_changed(&mut context).is_pending());
        changes.notify_all();
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_change_before_the_first_poll_is_not_lost() {
        let changes = Arc::new(ChangeNotifier::default());
        let mut listener = changes.listen([ChangeTopic::Everything]);
        changes.notify(&stream("a"));
        assert!(
            listener
                .poll_changed(&mut Context::from_waker(Waker::noop()))
                .is_ready()
        );
    }

    #[test]
    fn a_dropped_listener_leaves_nothing() {
        let changes = Arc::new(ChangeNotifier::default());
        for _ in 0..100 {
            drop(changes.listen([stream("a"), ChangeTopic::Everything]));
        }
        let listeners = changes.listeners.lock();
        assert!(listeners.by_id.is_empty() && listeners.by_topic.is_empty());
    }
}
