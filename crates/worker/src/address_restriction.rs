//! Keeps a pipeline inside the networks of `sources.allow`. The gateway has checked the configured address, but a server
//! may name others: an RTSP camera by a redirect (RFC 2326 §11.3), or by `source` and `destination` of its Transport
//! (§12.39); an HTTP server by a redirect. Without `sources.allow` only link-local addresses are refused, at which cloud
//! services answer with the credentials of the host.

use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::{Arc, OnceLock};

use gst::prelude::*;
use gstreamer as gst;
use ipnet::IpNet;

use millstream_worker_runtime::addresses::is_link_local;
use millstream_worker_runtime::channel::GatewayMessageSender;
use millstream_worker_runtime::wire::{MessageFromWorker, PipelineJob, WorkerFailure};

/// Code of the progress message that `rtspsrc` posts before it connects, with the URL in its text.
const CONNECT_PROGRESS_CODE: &str = "connect";

/// The networks that a pipeline may connect to, and where a violation is reported.
#[derive(Clone)]
struct AddressRestriction {
    /// Empty allows_address all that are not link-local.
    allowed_networks: Vec<IpNet>,
    /// The host of the first connection.
    configured_host: Arc<OnceLock<String>>,
    gateway: GatewayMessageSender,
}

/// Stops the pipeline before it connects to an address outside the networks of its job, or to one of the link.
pub(crate) fn restrict_pipeline_to_allowed_networks(
    pipeline: &gst::Pipeline,
    job: &PipelineJob,
    gateway: &GatewayMessageSender,
) {
    let networks = job.allowed_networks.iter().filter_map(|network| network.parse().ok());
    let guard = AddressRestriction {
        allowed_networks: networks.collect(),
        configured_host: Arc::default(),
        gateway: gateway.clone(),
    };
    for element in pipeline.iterate_recurse().into_iter().flatten() {
        guard.check_udpsink_or_disable_redirects(&element);
    }
    let watching = guard.clone();
    pipeline.connect_deep_element_added(move |_, _, element| watching.check_udpsink_or_disable_redirects(element));
    let Some(bus) = pipeline.bus() else { return };
    // The handler runs in the thread that posts the message, which is about to connect.
    bus.set_sync_handler(move |_, message| {
        if let gst::MessageView::Progress(progress) = message.view() {
            let (_, code, text) = progress.get();
            if code == CONNECT_PROGRESS_CODE
                && let Some(host) = host_of_first_url(text)
            {
                guard.park_unless_connection_allowed(host);
            }
        }
        gst::BusSyncReply::Pass
    });
}

impl AddressRestriction {
    /// Checks the destination of an element that sends datagrams, and disables redirects of others.
    fn check_udpsink_or_disable_redirects(&self, element: &gst::Element) {
        let Some(factory) = element.factory() else { return };
        if factory.name() == "udpsink" {
            if let Some(host) = element.property::<Option<String>>("host") {
                self.park_unless_host_allowed(&host);
            }
        } else if self.has_network_restriction() {
            Self::disable_redirects(element);
        }
    }

    /// Has an HTTP source follow no redirects.
    fn disable_redirects(element: &gst::Element) {
        if element.find_property("ignore-x-server-reply").is_some() {
            // With RTSP over HTTP the server would name another address in a header.
            element.set_property("ignore-x-server-reply", true);
        } else if element.find_property("automatic-redirect").is_some() {
            element.set_property("automatic-redirect", false);
        }
    }

    /// Returns if the host of a connection is the first one, which is configured, or an address that is allowed. The name
    /// of another host could stand for another address when GStreamer resolves it.
    fn park_unless_connection_allowed(&self, host: Result<String, AmbiguousUrlHost>) {
        let Ok(host) = host else {
            self.report_and_park_thread(
                "the RTSP server redirects to a URL whose host can be read in more than one way: the gateway does not \
                 connect to it"
                    .to_owned(),
            );
        };
        let configured = self.configured_host.get_or_init(|| host.clone());
        if self.has_network_restriction() && host != *configured && host.parse::<IpAddr>().is_err() {
            self.report_and_park_thread(format!(
                "the RTSP server redirects to {host}: while `sources.allow` is set, it may redirect only to the host \
                 of the configured URL, or to an IP address (not a host name) in a network of `sources.allow`"
            ));
        }
        self.park_unless_host_allowed(&host);
    }

    /// Returns if all addresses of a host may be connected to. Otherwise it reports the address and does not return, so
    /// that the calling thread does not connect; the gateway then kills this process.
    fn park_unless_host_allowed(&self, host: &str) {
        let problem = match resolve_host(host) {
            Ok(addresses) => match addresses.into_iter().find(|address| !self.allows_address(*address)) {
                Some(address) if self.has_network_restriction() => {
                    format!(
                        "the RTSP server refers (by a redirect, or in its `Transport` header) to {address}, which is not in \
                         a network of `sources.allow`: the gateway does not connect to it"
                    )
                }
                Some(address) => format!(
                    "the RTSP server refers (by a redirect, or in its `Transport` header) to {address}, which is link-local: \
                     the gateway does not connect to it"
                ),
                None => return,
            },
            Err(_) => format!("cannot resolve the host name {host}, to which the pipeline is about to connect"),
        };
        self.report_and_park_thread(problem);
    }

    fn report_and_park_thread(&self, problem: String) -> ! {
        self.gateway
            .send(&MessageFromWorker::Failed(WorkerFailure::Stream(problem)));
        loop {
            std::thread::park();
        }
    }

    fn has_network_restriction(&self) -> bool {
        !self.allowed_networks.is_empty()
    }

    fn allows_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        if !self.has_network_restriction() {
            return !is_link_local(address);
        }
        self.allowed_networks.iter().any(|network| network.contains(&address))
    }
}

fn resolve_host(host: &str) -> std::io::Result<Vec<IpAddr>> {
    Ok((host, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
}

/// The authority of a URL that two clients may read as two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AmbiguousUrlHost;

/// Returns the host of the first URL in a text. An IPv6 address has no brackets. The authority ends where it does for
/// `gst_rtsp_url_parse`, which takes the first `@` for the end of the credentials.
fn host_of_first_url(text: &str) -> Option<Result<String, AmbiguousUrlHost>> {
    let (_, rest) = text.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let is_ambiguous = |c: char| matches!(c, '#' | '\\') || c.is_whitespace() || c.is_control();
    if authority.matches('@').count() > 1 || authority.contains(is_ambiguous) {
        return Some(Err(AmbiguousUrlHost));
    }
    let host_and_port = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = match host_and_port.strip_prefix('[') {
        Some(address) => address.split(']').next()?,
        None => host_and_port.split(':').next()?,
    };
    Some(Ok(host.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_url_is_what_is_connected_to() {
        for (text, host) in [
            ("Connecting to rtsp://10.0.0.1:554/a", Some(Ok("10.0.0.1"))),
            ("Connecting to rtsp://user:pass@10.0.0.1/10.0.0.2", Some(Ok("10.0.0.1"))),
            (
                "Connecting to rtsp://a:b@127.0.0.2:5540@127.0.0.1/x",
                Some(Err(AmbiguousUrlHost)),
            ),
            (
                "Connecting to rtsp://127.0.0.1:1#@127.0.0.2:5540/",
                Some(Err(AmbiguousUrlHost)),
            ),
            (
                "Connecting to rtsp://127.0.0.1 @127.0.0.2/",
                Some(Err(AmbiguousUrlHost)),
            ),
            ("Connecting to rtsps://[fd00::1]:322/a", Some(Ok("fd00::1"))),
            ("Connecting to rtsp://camera?x=@10.0.0.1", Some(Ok("camera"))),
            ("Connecting", None),
        ] {
            assert_eq!(
                host_of_first_url(text),
                host.map(|host| host.map(str::to_owned)),
                "{text}"
            );
        }
    }
}
