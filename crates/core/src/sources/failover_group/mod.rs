//! The source failover_group: a stream with several sources, the best one first, shows the first that is live.
//!
//! Each source writes to a stream of its own, which nobody watches ([`StreamVariant::FailoverSource`]): its ring caches the
//! last key frame, so that a source that stands by can be shown at once. The failover group copies the packets of the selected one
//! to the stream that viewers have, as part of the delivery of each batch: no other thread and no queue are involved. For
//! that stream a switch is what a takeover is: `StreamState::replace_source`.
//!
//! A source fails when it ends, or when nothing has arrived from it for the stall timeout. Its stream then continues with
//! the cached key frame of the next one. A higher source that has failed returns after the hold-off time, at its next key
//! frame, and until then viewers have the lower one.
//!
//! The sources may be layers: the main and the sub stream of a camera. Each is then copied to the stream of its layer too,
//! and runs only while that is watched ([`source_layers`]).
//!
//! [`StreamVariant::FailoverSource`]: crate::hub::name::StreamVariant::FailoverSource

pub mod map;
mod selection;
pub mod settings;
mod source;
mod source_layers;
pub mod status;
pub mod switcher;
mod track_copy;
