//! Changes of the streams and tokens that are set through the API: each is checked, kept, and then made.

use std::sync::Arc;

use tracing::info;

use super::ControlPlane;
use super::api_streams::{ApiStreamChange, ApiStreamError, EntityTagPrecondition, build_source};
use crate::access::AccessControl;
use crate::access::issued_tokens::IssuedToken;
use crate::config::state_file::ApiStream;
use crate::sources::fetch::supervisor::ConfiguredSource;
use millstream_core::hub::name::StreamName;

impl ControlPlane {
    /// Sets a stream, or replaces its settings. `may_exist` tells whether it may have been set before.
    ///
    /// # Errors
    ///
    /// An [`ApiStreamError`].
    pub async fn set_api_stream(
        &self,
        stream: ApiStream,
        may_exist: bool,
        precondition: EntityTagPrecondition,
    ) -> Result<ApiStreamChange, ApiStreamError> {
        let api_streams = &self.api_streams;
        let locked = api_streams.lock().await;
        let context = locked.as_ref().ok_or(ApiStreamError::Stopping)?;
        let name = stream.config.name.clone();
        if context.configured_streams.contains(&name) {
            return Err(ApiStreamError::InConfigurationFile);
        }
        let previous = api_streams.get(&name);
        if previous.is_some() && !may_exist {
            return Err(ApiStreamError::Exists);
        }
        check_precondition(previous.as_deref(), &precondition)?;
        let is_new = previous.is_none();
        if let Some(same) = previous.filter(|previous| **previous == stream) {
            return Ok(ApiStreamChange { stream: same, is_new });
        }
        let mut streams = api_streams.read_streams().clone();
        if is_new && streams.len() >= context.max_streams {
            return Err(ApiStreamError::TooMany(streams.len()));
        }
        let source = build_source(&stream, context)
            .map_err(|mistakes| ApiStreamError::Mistakes(stream.add_json_pointers(mistakes)))?;
        let stream = Arc::new(stream);
        streams.insert(name.clone(), stream.clone());
        api_streams.replace_streams(streams).await?;
        let kind = source.kind.label();
        let configured = ConfiguredSource::from_built_source(source, stream.config.clone());
        self.supervisor.replace_and_start_source(configured).await;
        info!(stream = %name, source = kind, is_new, "stream added or changed through the API");
        Ok(ApiStreamChange { stream, is_new })
    }

    /// Returns why a stream that was not set through the API cannot be changed.
    pub async fn missing_api_stream_error(&self, name: &StreamName) -> ApiStreamError {
        match &*self.api_streams.lock().await {
            Some(context) if context.configured_streams.contains(name) => ApiStreamError::InConfigurationFile,
            _ => ApiStreamError::NotFound,
        }
    }

    /// Removes a stream that was set through the API.
    ///
    /// # Errors
    ///
    /// An [`ApiStreamError`].
    pub async fn remove_api_stream(
        &self,
        name: &StreamName,
        precondition: EntityTagPrecondition,
    ) -> Result<(), ApiStreamError> {
        let api_streams = &self.api_streams;
        let locked = api_streams.lock().await;
        let context = locked.as_ref().ok_or(ApiStreamError::Stopping)?;
        let is_configured = context.configured_streams.contains(name);
        let Some(stream) = api_streams.get(name) else {
            return Err(match is_configured {
                true => ApiStreamError::InConfigurationFile,
                false => ApiStreamError::NotFound,
            });
        };
        check_precondition(Some(&stream), &precondition)?;
        let mut streams = api_streams.read_streams().clone();
        streams.remove(name);
        api_streams.replace_streams(streams).await?;
        if !is_configured {
            self.supervisor.remove_source(&name.clone().into()).await;
        }
        info!(stream = %name, "stream removed through the API");
        Ok(())
    }
}

impl ControlPlane {
    /// Keeps a token that the API has issued; from then on it is valid. Tokens that are not valid by `access` are forgotten.
    ///
    /// # Errors
    ///
    /// An [`ApiStreamError`].
    pub async fn add_issued_token(&self, token: IssuedToken, access: &AccessControl) -> Result<(), ApiStreamError> {
        let locked = self.api_streams.lock().await;
        let context = locked.as_ref().ok_or(ApiStreamError::Stopping)?;
        let mut tokens = self.unexpired_issued_tokens();
        tokens.retain(|token| access.is_issued_token_valid(token));
        if tokens.len() >= context.max_tokens {
            return Err(ApiStreamError::TooManyTokens(tokens.len()));
        }
        tokens.push(token);
        self.api_streams.replace_tokens(tokens).await
    }

    /// Removes a token that the API has issued. Returns whether there was one with this id.
    ///
    /// # Errors
    ///
    /// An [`ApiStreamError`].
    pub async fn remove_issued_token(&self, id: &str) -> Result<bool, ApiStreamError> {
        let locked = self.api_streams.lock().await;
        locked.as_ref().ok_or(ApiStreamError::Stopping)?;
        let tokens = self.api_streams.issued_tokens().list_all();
        if tokens.iter().all(|token| token.id != id) {
            return Ok(false);
        }
        let mut tokens = self.unexpired_issued_tokens();
        tokens.retain(|token| token.id != id);
        self.api_streams.replace_tokens(tokens).await?;
        Ok(true)
    }

    fn unexpired_issued_tokens(&self) -> Vec<IssuedToken> {
        let tokens = self.api_streams.issued_tokens().list_all();
        let valid = tokens.iter().filter(|token| !token.is_expired());
        valid.map(|token| IssuedToken::clone(token)).collect()
    }
}

fn check_precondition(stream: Option<&ApiStream>, precondition: &EntityTagPrecondition) -> Result<(), ApiStreamError> {
    let tag = stream.map(ApiStream::opaque_tag);
    precondition(tag.as_deref())
        .then_some(())
        .ok_or(ApiStreamError::PreconditionFailed)
}
