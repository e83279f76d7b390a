//! Applies another configuration to a running gateway: access rules first, then sources and streams.

use std::sync::Arc;

use tracing::{info, warn};

use super::sources_and_credentials::{SourcesAndCredentials, api_stream_context};
use super::{Gateway, log_config_warnings};
use crate::access::AccessControl;
use crate::access::credentials::AuthCredentials;
use crate::config::{self, Config, ConfigError, ReloadMode};
use crate::control::client_settings::ClientSettings;
use crate::control::reload::Reloaded;
use millstream_core::hub::name::StreamKey;

impl Gateway {
    /// Applies another configuration, except for keys that need a restart. Only sources that have changed are
    /// restarted.
    ///
    /// # Errors
    ///
    /// All mistakes in the configuration. Nothing has changed then.
    pub async fn replace_config(&mut self, config: Config) -> Result<Reloaded, ConfigError> {
        let parts = SourcesAndCredentials::build(&config, &self.programs)?;
        // First: nothing that the API has set may hold up a revocation.
        let (sessions_ended, tokens_ended) = self.replace_access_control(parts.credentials);
        let differs = self.config.changed_keys_except_streams(&config);
        let control = &self.http_state.control;
        control.set_client_settings(ClientSettings::new(&config));
        self.http_state.webhooks.replace_targets(parts.webhook_targets);
        // From here on to the end no stream is set by the API.
        let mut api_context = control.api_streams.lock().await;
        let new_context = api_stream_context(&config, &parts.pipeline_library, &self.programs);
        let mut sources = parts.configured_sources;
        sources.extend(control.api_streams.build_sources(&new_context));
        let failed = sources.iter().filter(|source| !source.is_ready());
        let failed = failed.map(|source| source.stream_config.name.to_string()).collect();
        let affects_sources =
            |key: &&config::ConfigKey| ["pipelines.", "sources."].iter().any(|part| key.path.starts_with(part));
        let restarts_all = differs
            .iter()
            .any(|key| key.reload_mode == ReloadMode::Live && affects_sources(key));
        control.reconcile_failover_groups(&config.failover_groups);
        let reconciled = control.supervisor.reconcile(sources, restarts_all).await;
        *api_context = Some(new_context);
        drop(api_context);
        let paths = |reload| {
            let keys = differs.iter().filter(move |key| key.reload_mode == reload);
            keys.map(|key| key.path.to_owned()).collect()
        };
        let name = |key: &StreamKey| match key.failover_source() {
            Some(source) => format!("{} ({source})", key.name),
            None => key.name.to_string(),
        };
        let names = |streams: Vec<StreamKey>| streams.iter().map(name).collect();
        let reloaded = Reloaded {
            changed: paths(ReloadMode::Live),
            needs_restart: paths(ReloadMode::Restart),
            started: names(reconciled.started),
            stopped: names(reconciled.stopped),
            restarted: names(reconciled.restarted),
            failed,
            sessions_ended,
            tokens_ended,
        };
        info!(?reloaded, "configuration reloaded");
        if !reloaded.needs_restart.is_empty() {
            warn!(keys = ?reloaded.needs_restart, "some changed configuration keys take effect only after a restart of the gateway");
        }
        log_config_warnings(&config);
        self.config = config;
        Ok(reloaded)
    }

    /// Replaces the access rules and ends the sessions that they do not permit. Returns how many were running, and how many
    /// tokens that the API has issued ended with the credential that issued them.
    fn replace_access_control(&self, credentials: AuthCredentials) -> (usize, usize) {
        let control = &self.http_state.control;
        let configured = credentials.publish_token.clone();
        let publish = configured.unwrap_or_else(|| self.fallback_publish_token.clone());
        let access = AccessControl::new(credentials, &publish);
        let access = Arc::new(access.with_issued_tokens(control.api_streams.issued_tokens().clone()));
        // First of sessions: one that the new rules permit must not meet the old ones there.
        let sessions_ended = control.sessions.replace_access_control_and_end_revoked(access.clone());
        let previous = self.http_state.authenticator.access_control();
        self.http_state.authenticator.replace_access_control(access.clone());
        let tokens = control.api_streams.issued_tokens().list_all();
        let ended = tokens
            .iter()
            .filter(|token| previous.is_issued_token_valid(token) && !access.is_issued_token_valid(token));
        (sessions_ended, ended.count())
    }
}
