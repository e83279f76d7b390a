//! A stream that is watched while something else happens to the gateway: its viewers must miss nothing.

use std::{io, net::SocketAddr, sync::Arc, thread, time::Duration};

use crate::{
    endpoint::{Endpoint, Role},
    publisher::Publisher,
    receiver::Receiver,
    timeline::Timeline,
    viewer::{Tally, Viewer},
};

/// Its name.
pub(crate) const WATCHED: &str = "bench/watched";

pub(crate) struct WatchedStream {
    timeline: Arc<Timeline>,
    publisher: Publisher,
    receiver: Receiver,
}

impl WatchedStream {
    /// Starts a publisher and some viewers, with a pause after each. The first viewer compares every packet bit by bit.
    ///
    /// # Errors
    ///
    /// When a peer does not connect.
    pub(crate) fn start(http: SocketAddr, viewers: u64, pause: Duration) -> io::Result<Self> {
        let timeline = Arc::new(Timeline::new());
        let publisher = Publisher::start(http, WATCHED, Arc::clone(&timeline))?;
        thread::sleep(Duration::from_millis(500));
        let mut receiver = Receiver::start(Arc::clone(&timeline))?;
        for number in 0..viewers {
            let endpoint = Endpoint::join(http, Role::Viewer, WATCHED)?.endpoint;
            receiver.add(Viewer::new(endpoint, number == 0))?;
            thread::sleep(pause);
        }
        Ok(Self {
            timeline,
            publisher,
            receiver,
        })
    }

    /// Waits until each viewer knows its position in the stream.
    ///
    /// # Errors
    ///
    /// When the receiver has ended.
    pub(crate) fn synchronise(&self) -> io::Result<()> {
        while !self.receiver.synchronised()? {
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Counts packets from here on.
    ///
    /// # Errors
    ///
    /// When the receiver has ended.
    pub(crate) fn open(&self) -> io::Result<()> {
        self.receiver.open()
    }

    /// What the viewers got of the packets that were sent until now. Packets on the way have half a second to arrive.
    ///
    /// # Errors
    ///
    /// When the receiver has ended.
    pub(crate) fn close(&self) -> io::Result<Tally> {
        let end = self.timeline.position();
        thread::sleep(Duration::from_millis(500));
        self.receiver.close(end)
    }

    /// # Errors
    ///
    /// When the publisher or the receiver failed.
    pub(crate) fn stop(self) -> io::Result<()> {
        self.publisher.stop()?;
        self.receiver.stop()
    }
}
