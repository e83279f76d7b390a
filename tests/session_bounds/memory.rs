//! What a viewer costs.

use std::time::Duration;

use millstream_test_support::DtlsRole;

use crate::heap;
use crate::world::{SECOND, Setup, receiver_report};

/// Heap of one viewer's session, in bytes.
const MAX_SESSION: isize = 20 << 10;

#[test]
fn a_connected_viewer_costs_at_most_20_kib() {
    for role in [DtlsRole::Client, DtlsRole::Server] {
        let setup = Setup {
            role,
            ..Setup::default()
        };
        let mut world = setup.connected();
        let mut world = {
            for seq in 0..600 {
                world.send_down(1, seq);
                if seq % 10 == 0 {
                    assert!(world.peer.send_rtcp(&receiver_report(1)));
                    assert!(world.session.seal_rtcp(&receiver_report(2)).is_some());
                }
                world.run(Duration::from_millis(100));
            }
            world
        };
        world.run(SECOND);
        assert!(world.session.is_connected());
        let before = heap::live();
        drop(world.session);
        let freed = before - heap::live();
        println!(
            "peer is {role:?}: {freed} bytes of heap, and {} of the session itself",
            size_of::<millstream::session::Session>()
        );
        assert!(freed > 0 && freed <= MAX_SESSION, "{freed} bytes");
    }
}
