//! What to do about cameras that keep the standard in their own way. Defaults suit nearly all.

use std::num::NonZeroU32;
use std::str::FromStr;

use retina::client::{
    InitialSequenceNumberPolicy, InitialTimestampPolicy, PlayOptions, SessionIdPolicy, SessionOptions, TeardownPolicy,
    UnassignedChannelDataPolicy, UnknownRtcpSsrcPolicy,
};

/// Policies of one camera.
#[derive(Clone)]
pub struct Policies {
    initial_timestamp: InitialTimestampPolicy,
    initial_seq: InitialSequenceNumberPolicy,
    unknown_rtcp_ssrc: UnknownRtcpSsrcPolicy,
    unassigned_data: UnassignedChannelDataPolicy,
    session_id: SessionIdPolicy,
    teardown: TeardownPolicy,
    max_timestamp_jump: Option<NonZeroU32>,
}

/// Keys of the configuration, and what each may be. They stand below `quirks`.
pub const KEYS: [(&str, &str); 7] = [
    (
        "initial_timestamp",
        "\"permissive\" (default), \"require\" or \"ignore\": the RTP times in the answer to PLAY",
    ),
    (
        "initial_seq",
        "\"default\", \"respect\" or \"ignore\": the sequence numbers in the answer to PLAY",
    ),
    (
        "unknown_rtcp_ssrc",
        "\"drop-packets\" (default), \"process-packets\" or \"abort-session\": RTCP of a source that nobody announced",
    ),
    (
        "unassigned_data",
        "\"auto\" (default), \"ignore\" or \"error\": data in the connection that belongs to no track",
    ),
    (
        "session_id",
        "\"require-match\" (default) or \"use-first\": a session that changes its name between tracks",
    ),
    (
        "teardown",
        "\"auto\" (default), \"always\" or \"never\": whether the camera is told of the end",
    ),
    (
        "max_timestamp_jump",
        "a number of seconds from 1 to 3600: a larger jump of the RTP times ends the session",
    ),
];

impl Default for Policies {
    fn default() -> Self {
        Self {
            // Many cameras leave out the RTP times that retina's own default insists on.
            initial_timestamp: InitialTimestampPolicy::Permissive,
            initial_seq: InitialSequenceNumberPolicy::Default,
            unknown_rtcp_ssrc: UnknownRtcpSsrcPolicy::Default,
            unassigned_data: UnassignedChannelDataPolicy::Auto,
            session_id: SessionIdPolicy::Default,
            teardown: TeardownPolicy::Auto,
            max_timestamp_jump: None,
        }
    }
}

impl Policies {
    /// Sets the policy of a key; `None` for a key or value that is none.
    pub fn set(&mut self, key: &str, value: &toml::Value) -> Option<()> {
        fn read<T: FromStr>(value: &toml::Value) -> Option<T> {
            value.as_str()?.parse().ok()
        }
        match key {
            "initial_timestamp" => self.initial_timestamp = read(value)?,
            "initial_seq" => self.initial_seq = read(value)?,
            "unknown_rtcp_ssrc" => self.unknown_rtcp_ssrc = read(value)?,
            "unassigned_data" => self.unassigned_data = read(value)?,
            "session_id" => self.session_id = read(value)?,
            "teardown" => self.teardown = read(value)?,
            "max_timestamp_jump" => {
                let seconds = u32::try_from(value.as_integer()?).ok().filter(|s| *s <= 3_600);
                self.max_timestamp_jump = Some(NonZeroU32::new(seconds?)?);
            }
            _ => return None,
        }
        Some(())
    }

    pub(super) fn session(&self, options: SessionOptions) -> SessionOptions {
        options
            .teardown(self.teardown)
            .session_id(self.session_id)
            .unassigned_channel_data(self.unassigned_data)
    }

    pub(super) fn play(&self) -> PlayOptions {
        let options = PlayOptions::default()
            .initial_timestamp(self.initial_timestamp)
            .initial_seq(self.initial_seq)
            .unknown_rtcp_ssrc(self.unknown_rtcp_ssrc);
        match self.max_timestamp_jump {
            Some(seconds) => options.enforce_timestamps_with_max_jump_secs(seconds),
            None => options,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_takes_each_of_its_values_and_nothing_else() {
        for (key, allowed) in KEYS {
            let mut policies = Policies::default();
            let words: Vec<&str> = allowed.split('"').skip(1).step_by(2).collect();
            for word in &words {
                assert_eq!(policies.set(key, &(*word).into()), Some(()), "{key} = {word}");
            }
            for wrong in [
                toml::Value::from("sometimes"),
                toml::Value::from(-1),
                toml::Value::from(99_999),
            ] {
                assert_eq!(policies.set(key, &wrong), None, "{key} = {wrong}");
            }
        }
        assert_eq!(Policies::default().set("max_timestamp_jump", &10.into()), Some(()));
        assert_eq!(Policies::default().set("nothing", &true.into()), None);
    }
}
