//! Policies for cameras that deviate from the standard. The defaults work for nearly all cameras.

use std::num::NonZeroU32;
use std::str::FromStr;

use retina::client::{
    InitialSequenceNumberPolicy, InitialTimestampPolicy, PlayOptions, SessionIdPolicy, SessionOptions, TeardownPolicy,
    UnassignedChannelDataPolicy, UnknownRtcpSsrcPolicy,
};

/// Policies of one camera.
#[derive(Clone)]
pub struct CameraQuirkPolicies {
    initial_timestamp: InitialTimestampPolicy,
    initial_seq: InitialSequenceNumberPolicy,
    unknown_rtcp_ssrc: UnknownRtcpSsrcPolicy,
    unassigned_data: UnassignedChannelDataPolicy,
    session_id: SessionIdPolicy,
    teardown: TeardownPolicy,
    max_timestamp_jump: Option<NonZeroU32>,
}

/// Configuration keys below `quirks`, and the values that each accepts.
pub const QUIRK_KEYS_AND_ALLOWED_VALUES: [(&str, &str); 7] = [
    (
        "initial_timestamp",
        "\"permissive\" (default: they are used if each track has one), \"require\" (the session fails if a track has \
         none) or \"ignore\": how to treat the RTP timestamps in the response to PLAY if there are several tracks",
    ),
    (
        "initial_seq",
        "\"ignore\" (used if the key is not set), \"respect\" or \"default\" (use them, except 0 and 1): how to treat \
         the sequence numbers in the response to PLAY",
    ),
    (
        "unknown_rtcp_ssrc",
        "\"process-packets\" (default), \"drop-packets\" or \"abort-session\": how to treat RTCP packets of an unannounced SSRC",
    ),
    (
        "unassigned_data",
        "\"auto\" (default), \"ignore\" or \"error\" (end the session): how to treat interleaved data of a channel \
         without a track; \"auto\" ends the session only for LIVE555 versions that send data of closed sessions",
    ),
    (
        "session_id",
        "\"use-first\" (default) or \"require-match\": how to treat a session id that differs between tracks",
    ),
    (
        "teardown",
        "\"auto\" (default), \"always\" (until it succeeds or the session expires) or \"never\": whether TEARDOWN is \
         sent at the end of the session; \"auto\" is as \"always\" over UDP and for LIVE555 versions that send \
         data of closed sessions, otherwise it is sent once",
    ),
    (
        "max_timestamp_jump",
        "a number of seconds from 1 to 3600: a larger jump of the RTP timestamps ends the session",
    ),
];

impl Default for CameraQuirkPolicies {
    fn default() -> Self {
        Self {
            // Many cameras omit the RTP timestamps that retina requires by default.
            initial_timestamp: InitialTimestampPolicy::Permissive,
            // The first packet says it, and some cameras announce another number.
            initial_seq: InitialSequenceNumberPolicy::Ignore,
            // Some cameras use an SSRC for RTCP and another for RTP: the one of RTP counts.
            unknown_rtcp_ssrc: UnknownRtcpSsrcPolicy::ProcessPackets,
            unassigned_data: UnassignedChannelDataPolicy::Auto,
            session_id: SessionIdPolicy::UseFirst,
            teardown: TeardownPolicy::Auto,
            max_timestamp_jump: None,
        }
    }
}

impl CameraQuirkPolicies {
    /// Sets the policy of a key. Returns `None` for an unknown key or an invalid value.
    pub fn set(&mut self, key: &str, value: &toml::Value) -> Option<()> {
        fn parse_policy<T: FromStr>(value: &toml::Value) -> Option<T> {
            value.as_str()?.parse().ok()
        }
        match key {
            "initial_timestamp" => self.initial_timestamp = parse_policy(value)?,
            "initial_seq" => self.initial_seq = parse_policy(value)?,
            "unknown_rtcp_ssrc" => self.unknown_rtcp_ssrc = parse_policy(value)?,
            "unassigned_data" => self.unassigned_data = parse_policy(value)?,
            "session_id" => self.session_id = parse_policy(value)?,
            "teardown" => self.teardown = parse_policy(value)?,
            "max_timestamp_jump" => {
                let seconds = u32::try_from(value.as_integer()?).ok().filter(|s| *s <= 3_600);
                self.max_timestamp_jump = Some(NonZeroU32::new(seconds?)?);
            }
            _ => return None,
        }
        Some(())
    }

    pub(super) fn apply_to_session_options(&self, options: SessionOptions) -> SessionOptions {
        options
            .teardown(self.teardown)
            .session_id(self.session_id)
            .unassigned_channel_data(self.unassigned_data)
    }

    pub(super) fn retina_play_options(&self) -> PlayOptions {
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
        for (key, allowed) in QUIRK_KEYS_AND_ALLOWED_VALUES {
            let mut policies = CameraQuirkPolicies::default();
            let values: Vec<&str> = allowed.split('"').skip(1).step_by(2).collect();
            for value in &values {
                assert_eq!(policies.set(key, &(*value).into()), Some(()), "{key} = {value}");
            }
            for wrong in [
                toml::Value::from("sometimes"),
                toml::Value::from(-1),
                toml::Value::from(99_999),
            ] {
                assert_eq!(policies.set(key, &wrong), None, "{key} = {wrong}");
            }
        }
        assert_eq!(
            CameraQuirkPolicies::default().set("max_timestamp_jump", &10.into()),
            Some(())
        );
        assert_eq!(CameraQuirkPolicies::default().set("nothing", &true.into()), None);
    }
}
