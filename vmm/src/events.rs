//! The main thread's event loop: signals, requests of the machine, devices that die, who asks about the guest.

use std::{io, os::fd::AsRawFd, sync::Arc};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use strait_resources::{codes, failure::Failure};
use vmm_sys_util::eventfd::EventFd;

use crate::{
    control::{Control, Request},
    inspect::socket::Socket,
    signals,
};

type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// Waits for what concerns the whole machine.
pub(crate) struct EventLoop {
    manager: EventManager<Subscriber>,
    control: Arc<Control>,
}

impl EventLoop {
    /// Watches `control`, and the signals that end a program.
    pub(crate) fn new(control: &Arc<Control>) -> io::Result<Self> {
        let manager =
            EventManager::new().map_err(|error| io::Error::other(format!("{error:?}")))?;
        let mut events = Self { manager, control: Arc::clone(control) };
        let wake = control.event().try_clone()?;
        // Readable until the request is taken, so there is nothing to do but to wake up.
        events.add(wake, |_| Flow::Keep);
        let on_signal = Arc::clone(control);
        events.add(signals::event()?.try_clone()?, move |event| {
            let _ = event.read();
            on_signal.request(Request::Quit);
            Flow::Keep
        });
        Ok(events)
    }

    /// Answers who asks about the guest.
    pub(crate) fn add_socket(&mut self, socket: Socket) {
        self.manager.add_subscriber(Box::new(socket));
    }

    /// Ends the machine when `event` fires: a passed device is lost.
    pub(crate) fn add_device_error(&mut self, device: String, event: EventFd) {
        let control = Arc::clone(&self.control);
        self.add(event, move |event| {
            let _ = event.read();
            let cause = format!("{device} reported an unrecoverable error (PCIe AER)");
            let fix = "look at the host's kernel log for AER and IOMMU messages; check power, riser and heat";
            control.request(Request::Crash(Box::new(Failure::new(&codes::E8003, cause, fix))));
            Flow::Remove
        });
    }

    /// Ends the guest when the host wants a device back (its driver is being unbound).
    pub(crate) fn add_device_request(&mut self, device: String, event: EventFd) {
        let control = Arc::clone(&self.control);
        self.add(event, move |event| {
            let _ = event.read();
            log::warn!("the host wants {device} back: stopping the guest");
            control.request(Request::Quit);
            Flow::Remove
        });
    }

    /// Waits for the next request.
    pub(crate) fn wait(&mut self) -> io::Result<Request> {
        loop {
            if let Some(request) = self.control.take_request() {
                return Ok(request);
            }
            self.manager.run().map_err(|error| io::Error::other(format!("{error:?}")))?;
        }
    }

    /// Waits until `ready`, which a [`Control::nudge`] may come with, or for a request that comes before.
    pub(crate) fn wait_until(
        &mut self,
        ready: impl Fn() -> bool,
        mut tick: impl FnMut(),
    ) -> io::Result<Option<Request>> {
        const TICK_MS: i32 = 100;
        // What has come since the last wait counts, however little there is to wait for.
        let mut limit = 0;
        loop {
            self.manager
                .run_with_timeout(limit)
                .map_err(|error| io::Error::other(format!("{error:?}")))?;
            limit = TICK_MS;
            if let Some(request) = self.control.take_request() {
                return Ok(Some(request));
            }
            if ready() {
                return Ok(None);
            }
            tick();
        }
    }

    fn add<F: AsRawFd + Send + 'static>(
        &mut self,
        source: F,
        handle: impl FnMut(&mut F) -> Flow + Send + 'static,
    ) {
        self.manager.add_subscriber(Box::new(Watched { source, handle }));
    }
}

#[derive(PartialEq, Eq)]
enum Flow {
    Keep,
    Remove,
}

/// One readable file and what to do about it.
struct Watched<F, H> {
    source: F,
    handle: H,
}

impl<F: AsRawFd, H: FnMut(&mut F) -> Flow> MutEventSubscriber for Watched<F, H> {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if (self.handle)(&mut self.source) == Flow::Remove {
            let _ = ops.remove(Events::empty_raw(events.fd()));
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.source, EventSet::IN)) {
            log::warn!("fd {} is not watched: {error:?}", self.source.as_raw_fd());
        }
    }
}
