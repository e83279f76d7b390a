//! Makes the files of the web pages that the gateway serves: each module of `player/` in one file with what it imports,
//! pages that refer to these by their content, and each of them also compressed. What the player takes from npm is put
//! beside them. The documentation site is made of `docs/`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use self::web_file::WebFile;

mod bundle;
mod docs_site;
mod web_file;

const PLAYER_FOLDER: &str = "player";
const NPM_FOLDER: &str = "player/npm";
const HLS_JS_PATH: &str = "player/npm/node_modules/hls.js/dist/hls.min.js";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed={NPM_FOLDER}/package-lock.json");
    println!("cargo::rerun-if-changed={HLS_JS_PATH}");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let version = env!("CARGO_PKG_VERSION");
    let mut files = vec![WebFile::new("hls.min.js", read_hls_js())?];
    let mut pages = Vec::new();
    for name in player_file_names()? {
        println!("cargo::rerun-if-changed={PLAYER_FOLDER}/{name}");
        let path = Path::new(PLAYER_FOLDER).join(&name);
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("js") => {
                let mut file = WebFile::new(&name, bundle::bundle_module(&path)?.into_bytes())?;
                file.add_content_hashed_name();
                if name == "player.js" {
                    file.immutable_names.push(format!("player@{version}.js"));
                }
                files.push(file);
            }
            Some("html") => pages.push((name, fs::read_to_string(&path)?)),
            _ => {
                let mut file = WebFile::new(&name, fs::read(&path)?)?;
                file.add_content_hashed_name();
                files.push(file);
            }
        }
    }
    files.extend(docs_site::style_and_script_files()?);
    let docs = docs_site::render_site_files(|page| replace_file_names_with_hashed_names(page, &files))?;
    files.extend(docs);
    let pages = pages
        .into_iter()
        .map(|(name, text)| WebFile::new(&name, replace_file_names_with_hashed_names(text, &files).into_bytes()))
        .collect::<Result<Vec<_>, _>>()?;
    web_file::write_web_files(&out, &files, &pages)?;
    Ok(())
}

/// Names of the files in `player/`, sorted: the outcome does not depend on the order of the file system.
fn player_file_names() -> Result<Vec<String>, Box<dyn Error>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(PLAYER_FOLDER)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Replaces the names of files in a page by those that contain a digest, which browsers keep without asking again.
fn replace_file_names_with_hashed_names(page: String, files: &[WebFile]) -> String {
    files
        .iter()
        .fold(page, |page, file| match file.immutable_names.first() {
            Some(immutable) => page.replace(&format!("\"/{}\"", file.name), &format!("\"/{immutable}\"")),
            None => page,
        })
}

/// Returns hls.js. Empty where there is none: the player notices.
fn read_hls_js() -> Vec<u8> {
    if !Path::new(HLS_JS_PATH).exists() {
        let installed = Command::new("npm")
            .args([
                "ci",
                "--omit=dev",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--silent",
            ])
            .current_dir(NPM_FOLDER)
            .status();
        if !installed.is_ok_and(|status| status.success()) {
            println!(
                "cargo::warning=npm is missing or failed: the player will fall back to the HLS of the browser alone"
            );
        }
    }
    fs::read(HLS_JS_PATH).unwrap_or_default()
}
