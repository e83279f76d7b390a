//! Settings of data channels.

/// What the gateway does with messages of data channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataSettings {
    /// Whether answers accept data channels.
    pub is_enabled: bool,
    /// Number of messages of each label that viewers get who join.
    pub retained_messages: usize,
    pub viewer_messages: ViewerMessageRecipients,
}

/// Who gets the messages of viewers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ViewerMessageRecipients {
    /// Nobody: they are dropped.
    #[default]
    Off,
    /// The publisher of the stream.
    Publisher,
    /// The publisher and all viewers of the stream.
    All,
}

impl Default for DataSettings {
    fn default() -> Self {
        Self {
            is_enabled: true,
            retained_messages: 1,
            viewer_messages: ViewerMessageRecipients::Off,
        }
    }
}
