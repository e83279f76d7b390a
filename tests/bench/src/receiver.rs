//! One thread that receives for all viewers, as cheaply as it can: batches, clear-text headers, kernel time stamps.
//!
//! The thread's cost matters twice. It takes CPU from the server on a small machine, and waking it is paid by the
//! server's send calls; so the floor is measured with this same thread at the other end.

use std::{
    io,
    net::UdpSocket,
    sync::{
        Arc,
        mpsc::{self, Receiver as Inbox, Sender as Outbox},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    sys::{BATCH, Poller, ReceiveBatch},
    timeline::Timeline,
    viewer::{Tally, Viewer},
};

/// Longest time that a command waits for the thread; media wakes it more often.
const WAIT: Duration = Duration::from_millis(5);

/// How often the viewers' timers are looked at.
const TIMER_STEP: Duration = Duration::from_millis(20);

/// Handle of the receiving thread.
pub(crate) struct Receiver {
    commands: Outbox<Command>,
    thread: Option<JoinHandle<io::Result<()>>>,
    added: usize,
}

enum Command {
    Add(usize, Box<Viewer>),
    Remove(usize),
    /// Begin to count at the publisher's position of that moment. It is read by the receiving thread, so that no packet
    /// can slip between the reading and the counting.
    Open(Outbox<()>),
    /// Count up to these positions and report.
    Close([u64; 2], Outbox<Tally>),
    /// Report whether every viewer knows its place in the stream.
    Synchronised(Outbox<bool>),
}

impl Receiver {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// When the system has no thread or descriptor left.
    pub(crate) fn start(timeline: Arc<Timeline>) -> io::Result<Self> {
        let (commands, inbox) = mpsc::channel();
        let poller = Poller::new()?;
        let thread = thread::Builder::new().name("receiver".into()).spawn(move || {
            let mut work = Work {
                poller,
                batch: ReceiveBatch::new(),
                viewers: Vec::new(),
                tally: Tally::default(),
                timeline,
            };
            work.run(&inbox)
        })?;
        Ok(Self {
            commands,
            thread: Some(thread),
            added: 0,
        })
    }

    /// Hands a viewer over and returns its number.
    ///
    /// # Errors
    ///
    /// When the thread has ended.
    pub(crate) fn add(&mut self, viewer: Viewer) -> io::Result<usize> {
        let number = self.added;
        self.added += 1;
        self.command(Command::Add(number, Box::new(viewer)))?;
        Ok(number)
    }

    /// Closes a viewer's socket.
    ///
    /// # Errors
    ///
    /// When the thread has ended.
    pub(crate) fn remove(&self, number: usize) -> io::Result<()> {
        self.command(Command::Remove(number))
    }

    /// Starts a window at the publisher's current position.
    ///
    /// # Errors
    ///
    /// When the thread has ended.
    pub(crate) fn open(&self) -> io::Result<()> {
        let (reply, answer) = mpsc::channel();
        self.command(Command::Open(reply))?;
        answer.recv().map_err(|_| ended())
    }

    /// Ends the window at this position of the publisher and returns what arrived of it.
    ///
    /// # Errors
    ///
    /// When the thread has ended.
    pub(crate) fn close(&self, position: [u64; 2]) -> io::Result<Tally> {
        let (reply, answer) = mpsc::channel();
        self.command(Command::Close(position, reply))?;
        answer.recv().map_err(|_| ended())
    }

    /// Whether every viewer has matched both its tracks with the publisher's.
    ///
    /// # Errors
    ///
    /// When the thread has ended.
    pub(crate) fn synchronised(&self) -> io::Result<bool> {
        let (reply, answer) = mpsc::channel();
        self.command(Command::Synchronised(reply))?;
        answer.recv().map_err(|_| ended())
    }

    /// Ends the thread and closes all sockets.
    ///
    /// # Errors
    ///
    /// What made the thread end before its time.
    pub(crate) fn stop(mut self) -> io::Result<()> {
        let (dropped, _) = mpsc::channel();
        self.commands = dropped;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => Err(ended()),
        }
    }

    fn command(&self, command: Command) -> io::Result<()> {
        self.commands.send(command).map_err(|_| ended())
    }
}

fn ended() -> io::Error {
    io::Error::other("the receiving thread has ended")
}

/// What the thread owns.
struct Work {
    poller: Poller,
    batch: ReceiveBatch,
    viewers: Vec<Option<Box<Viewer>>>,
    tally: Tally,
    timeline: Arc<Timeline>,
}

impl Work {
    fn run(&mut self, inbox: &Inbox<Command>) -> io::Result<()> {
        let mut ready = Vec::new();
        let mut timers_at = Instant::now();
        loop {
            loop {
                match inbox.try_recv() {
                    Ok(command) => self.handle_gateway_commands(command)?,
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
                }
            }
            self.poller.wait(WAIT, &mut ready)?;
            for &number in &ready {
                self.drain(number)?;
            }
            let now = Instant::now();
            if now >= timers_at {
                timers_at = now + TIMER_STEP;
                for viewer in self.viewers.iter_mut().flatten() {
                    viewer.handle_timeout(now)?;
                }
            }
        }
    }

    fn handle_gateway_commands(&mut self, command: Command) -> io::Result<()> {
        match command {
            Command::Add(number, viewer) => {
                self.poller.add(viewer.socket(), number)?;
                if self.viewers.len() <= number {
                    self.viewers.resize_with(number + 1, || None);
                }
                self.viewers[number] = Some(viewer);
            }
            Command::Remove(number) => {
                if let Some(slot) = self.viewers.get_mut(number) {
                    *slot = None;
                }
            }
            Command::Open(reply) => {
                let position = self.timeline.position();
                self.tally = Tally::default();
                self.viewers
                    .iter_mut()
                    .flatten()
                    .for_each(|viewer| viewer.open(position));
                // Nobody waits for an answer any more only when the whole run is being given up.
                let _ = reply.send(());
            }
            Command::Close(position, reply) => {
                for viewer in self.viewers.iter_mut().flatten() {
                    viewer.close(position, &mut self.tally);
                }
                let _ = reply.send(std::mem::take(&mut self.tally));
            }
            Command::Synchronised(reply) => {
                let _ = reply.send(self.viewers.iter().flatten().all(|viewer| viewer.synchronised()));
            }
        }
        Ok(())
    }

    fn drain(&mut self, number: usize) -> io::Result<()> {
        let Some(Some(viewer)) = self.viewers.get_mut(number) else {
            return Ok(());
        };
        loop {
            let count = receive(&mut self.batch, viewer.socket())?;
            for index in 0..count {
                let (datagram, arrived_ns) = self.batch.datagram(index);
                viewer.handle_datagram(datagram, arrived_ns, &self.timeline, &mut self.tally)?;
            }
            if count < BATCH {
                return Ok(());
            }
        }
    }
}

/// A connected UDP socket reports "connection refused" when the server is gone; the server's state says that better.
fn receive(batch: &mut ReceiveBatch, socket: &UdpSocket) -> io::Result<usize> {
    match batch.receive(socket) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(0),
        other => other,
    }
}
