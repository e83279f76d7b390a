//! The key `rtsp` with a list of URLs: streams of one camera, which become the layers of one stream.

use std::time::Duration;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::document::join_key_path;
use super::mistake::ConfigMistake;
use super::reader::ConfigReader;
use super::secret::Redacted;
use millstream_core::hub::name::SourceName;

/// One of the streams of a camera.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CameraLayer {
    /// Its place in the list of URLs.
    pub index: usize,
}

/// The key of the URLs.
const RTSP_KEY: &str = "rtsp";

/// Maximum number of URLs: cameras have two or three streams.
const MAX_CAMERA_LAYERS: usize = 4;

/// How long nothing must have come from a stream of a camera for its viewers to be sent another one. Longer than the pauses of
/// cameras on a wireless network.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(2);

/// Names of the layers, in the order of the list.
const LAYER_NAMES: [&str; MAX_CAMERA_LAYERS] = ["main", "sub", "sub-2", "sub-3"];

/// Whether the key `rtsp` of a stream is a list.
pub(super) fn has_list_of_urls(table: &DeTable<'_>) -> bool {
    matches!(table.get(RTSP_KEY).map(Spanned::get_ref), Some(DeValue::Array(_)))
}

/// Returns the name of the layer with this place in the list.
pub(super) fn layer_name(index: usize) -> Option<SourceName> {
    SourceName::parse(LAYER_NAMES.get(index)?).ok()
}

/// Reads the list, and replaces it in the table by its first URL. `None` if there is a mistake in it.
pub(super) fn take_urls<'a>(
    reader: &mut ConfigReader<'a>,
    path: &str,
    table: &mut DeTable<'a>,
) -> Option<Vec<Redacted<String>>> {
    let (key, value) = table.remove_entry(RTSP_KEY)?;
    let (path, span) = (join_key_path(path, RTSP_KEY), value.span());
    let DeValue::Array(items) = value.into_inner() else {
        return None;
    };
    let first = match items.first().map(Spanned::get_ref) {
        Some(DeValue::String(url)) => url.clone(),
        _ => DeString::default(),
    };
    table.insert(key, Spanned::new(span.clone(), DeValue::String(first)));
    if items.is_empty() || items.len() > MAX_CAMERA_LAYERS {
        let problem = format!(
            "has {} URLs; expected 1 to {MAX_CAMERA_LAYERS}: one for each stream of the same camera, the one with the \
             highest resolution first",
            items.len()
        );
        reader.add_mistake_unless_caused_by_syntax_error(span.start, ConfigMistake::new(path, problem));
        return None;
    }
    let count = items.len();
    let mut urls: Vec<Redacted<String>> = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let problem = match item.get_ref() {
            DeValue::String(url) => match urls.iter().position(|other| other.0 == **url) {
                None => {
                    urls.push(Redacted(url.to_string()));
                    continue;
                }
                Some(same) => format!("is the same URL as `{path}[{same}]`: each stream of the camera has its own"),
            },
            _ => "has to be the URL of a stream of the camera, such as \"rtsp://host/path\"".to_owned(),
        };
        let mistake = ConfigMistake::new(format!("{path}[{index}]"), problem);
        reader.add_mistake_unless_caused_by_syntax_error(item.span().start, mistake);
    }
    (urls.len() == count).then_some(urls)
}
