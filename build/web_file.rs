//! A file that the gateway serves, and the source code that embeds it.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::{error, fs};

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

/// Best compression: it is done once for many downloads.
const BROTLI_QUALITY: u32 = 11;
/// Logarithm of the window: the largest of RFC 7932, which holds each file.
const BROTLI_WINDOW: u32 = 22;

pub(crate) struct WebFile {
    /// Its path below the folder of all files.
    pub(crate) name: String,
    /// Path on the gateway.
    path: String,
    /// Further names, of which each stands for this content for ever.
    pub(crate) immutable_names: Vec<String>,
    digest: String,
    content: Vec<u8>,
    gzip: Vec<u8>,
    brotli: Vec<u8>,
}

impl WebFile {
    pub(crate) fn new(name: &str, content: Vec<u8>) -> io::Result<Self> {
        // The time in the header of gzip is 0, so that equal sources make equal programs.
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(&content)?;
        let mut brotli = Vec::new();
        brotli::CompressorWriter::new(&mut brotli, 4096, BROTLI_QUALITY, BROTLI_WINDOW).write_all(&content)?;
        Ok(Self {
            name: name.to_owned(),
            path: format!("/{name}"),
            immutable_names: Vec::new(),
            digest: Sha256::digest(&content)
                .iter()
                .take(8)
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            gzip: gzip.finish()?,
            content,
            brotli,
        })
    }

    /// Sets the path on the gateway, which is `/NAME` otherwise.
    pub(crate) fn with_url_path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// Adds a name such as `watch@0f1e2d3c4b5a6978.js`.
    pub(crate) fn add_content_hashed_name(&mut self) {
        if let Some((stem, extension)) = self.name.rsplit_once('.') {
            self.immutable_names.push(format!("{stem}@{}.{extension}", self.digest));
        }
    }

    fn media_type(&self) -> io::Result<&'static str> {
        match self.name.rsplit_once('.') {
            Some((_, "js")) => Ok("text/javascript; charset=utf-8"),
            Some((_, "css")) => Ok("text/css; charset=utf-8"),
            Some((_, "html")) => Ok("text/html; charset=utf-8"),
            Some((_, "svg")) => Ok("image/svg+xml"),
            Some((_, "png")) => Ok("image/png"),
            Some((_, "json")) => Ok("application/json"),
            _ => Err(io::Error::other(format!("{}: unknown kind of file", self.name))),
        }
    }

    /// Writes the file and its compressed forms; returns the expression that embeds them.
    fn write(&self, folder: &Path) -> io::Result<String> {
        let embed = |suffix: &str, content: &[u8]| {
            let path = folder.join(format!("{}{suffix}", self.name));
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::write(&path, content).map(|()| format!("include_bytes!({:?})", path.display().to_string()))
        };
        // A coding that saves next to nothing, as of images, is not offered.
        let optional = |suffix: &str, coded: &[u8]| {
            if coded.len() < self.content.len() / 10 * 9 {
                embed(suffix, coded).map(|bytes| format!("Some({bytes})"))
            } else {
                Ok("None".to_owned())
            }
        };
        let immutable_paths: Vec<String> = self.immutable_names.iter().map(|name| format!("/{name}")).collect();
        Ok(format!(
            "StaticFile {{ path: {:?}, immutable_paths: &{immutable_paths:?}, media_type: {:?}, digest: {:?}, \
             content: {}, gzip: {}, brotli: {} }}",
            self.path,
            self.media_type()?,
            self.digest,
            embed("", &self.content)?,
            optional(".gz", &self.gzip)?,
            optional(".br", &self.brotli)?,
        ))
    }
}

/// Writes `web_files.rs`: the table `STATIC_FILES`, and a constant such as `WATCH_PAGE` for each page.
pub(crate) fn write_web_files(out: &Path, files: &[WebFile], pages: &[WebFile]) -> Result<(), Box<dyn error::Error>> {
    let folder = out.join("web");
    fs::create_dir_all(&folder)?;
    let mut code = "pub(super) const STATIC_FILES: &[StaticFile] = &[\n".to_owned();
    for file in files {
        writeln!(code, "{},", file.write(&folder)?)?;
    }
    code.push_str("];\n");
    for page in pages {
        let stem = page.name.trim_end_matches(".html").replace('-', "_").to_uppercase();
        writeln!(
            code,
            "pub(super) const {stem}_PAGE: StaticFile = {};",
            page.write(&folder)?
        )?;
    }
    fs::write(out.join("web_files.rs"), code)?;
    Ok(())
}
