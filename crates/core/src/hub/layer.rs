//! The simulcast layers of a stream, and which of them a viewer has selected.

use crate::media::Rid;
use crate::media::track_delivery::SourceTrack;

/// One simulcast layer (RFC 8853). Its packets are in a stream of its own, derived from the main stream.
#[derive(Clone, Debug, PartialEq)]
pub struct SimulcastLayer {
    pub rid: Rid,
    /// Width and height in pixels.
    pub resolution: Option<(u16, u16)>,
    /// Payload bits per second. Of a layer that is pulled and does not run: those of its last connection.
    pub measured_bitrate: u64,
    /// Whether the layer is being received; browsers pause the highest layers when their uplink is too slow.
    pub active: bool,
    /// Whether the main stream carries this layer: the best one, but for a while after another has become better.
    pub is_carried_by_main_stream: bool,
    /// Packets were lost for good on the way from the publisher, now or of late: viewers avoid it, but for those who selected
    /// it or have nothing lower that is whole.
    pub is_lossy: bool,
    pub origin: LayerOrigin,
}

/// How a layer comes to the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LayerOrigin {
    /// The publisher sends it, whether it is watched or not, in the format of the stream.
    #[default]
    Pushed,
    /// The gateway pulls it while it is watched. Viewers of the best layer watch its own stream too, not the main stream.
    Pulled {
        /// Its format, as of its last connection. Layers may differ in it.
        track: Option<SourceTrack>,
        /// It does not run, and will once it is watched.
        can_start: bool,
    },
}

impl SimulcastLayer {
    /// Whether the gateway pulls the layer.
    pub fn is_pulled(&self) -> bool {
        matches!(self.origin, LayerOrigin::Pulled { .. })
    }

    /// Whether a viewer can be sent the layer: it is being received, or will be once it is watched.
    pub fn is_available(&self) -> bool {
        self.active || matches!(self.origin, LayerOrigin::Pulled { can_start: true, .. })
    }

    /// Returns the format of a layer that has one of its own.
    pub fn pulled_source_track(&self) -> Option<SourceTrack> {
        match self.origin {
            LayerOrigin::Pushed => None,
            LayerOrigin::Pulled { track, .. } => track,
        }
    }
}

/// Layer requested by a viewer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LayerSelection {
    /// The best layer that the viewer's path carries, as far as that is known.
    #[default]
    Automatic,
    /// The layer with this RID, while it is available.
    Named(Rid),
    /// The best available layer within this size in pixels.
    WithinSize { width: u16, height: u16 },
}

impl LayerSelection {
    /// Returns the layer to forward, whatever the path carries; `None` selects the main stream, which carries the best
    /// layer.
    pub(crate) fn choose_layer_rid(&self, layers: &[SimulcastLayer]) -> Option<Rid> {
        let mut available = layers.iter().filter(|layer| layer.is_available());
        let chosen = match self {
            Self::Automatic => available.next().filter(|layer| layer.is_pulled()),
            Self::Named(rid) => available.find(|layer| layer.rid == *rid),
            Self::WithinSize { width, height } => {
                let fits = |layer: &&SimulcastLayer| layer.resolution.is_some_and(|(w, h)| w <= *width && h <= *height);
                available.clone().find(fits).or_else(|| available.next_back())
            }
        };
        chosen.map(|layer| layer.rid.clone())
    }
}
