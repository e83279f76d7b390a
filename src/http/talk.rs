//! The endpoint `/talk/{stream}`: WHIP (RFC 9725) with audio alone, which goes to the camera of the stream.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use tracing::{debug, warn};

use super::auth::AccessAction;
use super::problem::Problem;
use super::request::{client_identity, stream_name_from_path};
use super::response::add_no_store_header;
use super::state::HttpState;
use super::whip_whep::{
    ALLOW_HEADER_METHODS, local_transport, new_session_record, options_response, read_offer,
    register_session_and_build_response,
};
use crate::access::Grant;
use crate::control::ControlPlane;
use crate::control::session_record::IceSession;
use crate::control::talk::TalkSession;
use crate::sources::rtsp::back_channel::BackChannel;
use millstream_core::hub::name::StreamName;
use millstream_core::media::Codec;
use millstream_core::sdp::{LocalTransport, Offer, answer_talk_offer, choose_talk_codec};

/// Codecs that are sent to cameras as they come from the talker.
const TALK_CODECS: [Codec; 2] = [Codec::Pcmu, Codec::Pcma];

/// Seconds after which a talker may try again if somebody else talks.
const BUSY_RETRY_SECS: u64 = 1;

/// Handles `/talk/{stream}`. GET tells whether the token permits to talk, and whether the stream has a camera; what the
/// camera takes is asked by POST.
pub async fn serve_talk_endpoint(State(state): State<HttpState>, request: Request) -> Result<Response, Problem> {
    let control = &state.control;
    let (parts, body) = request.into_parts();
    let stream = stream_name_from_path(&parts.uri)?;
    let authorize = || {
        let caller = client_identity(&parts);
        state
            .authenticator
            .authorize_request(caller, AccessAction::Talk, Some(&stream))
    };
    match parts.method {
        Method::POST => {
            let grant = authorize().await?;
            let offer = read_offer(control, &parts.headers, body).await?;
            accept_talker(control, stream.clone(), grant, &parts, &offer).await
        }
        Method::GET | Method::HEAD => {
            authorize().await?;
            control.camera_to_talk_to(&stream).await?;
            Ok(add_no_store_header(StatusCode::NO_CONTENT.into_response()))
        }
        Method::OPTIONS => Ok(options_response(&state, &parts, AccessAction::Talk, &stream).await),
        _ => Err(Problem::method_not_allowed(ALLOW_HEADER_METHODS)),
    }
}

async fn accept_talker(
    control: &Arc<ControlPlane>,
    stream: StreamName,
    grant: Grant,
    request: &Parts,
    offer: &Offer,
) -> Result<Response, Problem> {
    // What no camera takes is refused before one is asked.
    choose_talk_codec(offer, &TALK_CODECS)?;
    let target = control.camera_to_talk_to(&stream).await?;
    let reservation = control
        .talkers
        .reserve(target.source_key())
        .ok_or_else(already_talking_problem)?;
    let connected = BackChannel::connect(&target.camera).await;
    let back_channel = connected.inspect_err(|error| {
        warn!(
            %stream, %error,
            "two-way audio rejected: the camera cannot be reached, or offers no back channel that the gateway can use"
        );
    })?;
    let codec = choose_talk_codec(offer, &back_channel.codecs())?;
    let media = &control.media_plane;
    let placement = media.choose_next_shard_and_make_ice_credentials();
    let candidates = media.candidate_addresses();
    let local = LocalTransport {
        accepts_data_channels: false,
        ..local_transport(control, &placement, &candidates)
    };
    let (publication, answer) = answer_talk_offer(offer, &local, codec)?;
    let started = back_channel.start(codec).await;
    let back_channel = started.inspect_err(
        |error| warn!(%stream, %error, "two-way audio rejected: the back channel to the camera could not be started"),
    )?;
    let ice = IceSession::new(
        publication.transport.remote_credentials.clone(),
        &placement.ice_credentials,
        &answer,
    );
    let record = new_session_record(request, grant, AccessAction::Talk, stream.clone(), None);
    let key = stream.back_channel_key();
    let session = media.open_negotiated_publisher_session(key, placement, publication, record.requester())?;
    debug!(?session, %stream, codec = codec.name(), "two-way audio accepted, waiting for its ICE connection");
    let response = register_session_and_build_response(control, session, ice, record, answer.sdp);
    tokio::spawn(control.clone().forward_talk(TalkSession {
        session,
        stream,
        target,
        back_channel,
        reservation,
    }));
    Ok(response)
}

fn already_talking_problem() -> Problem {
    let detail =
        "somebody else is talking to this camera, which takes one talker at a time: retry when they have finished";
    Problem::new(StatusCode::CONFLICT, "already_talking", detail).with_retry_after(BUSY_RETRY_SECS)
}
