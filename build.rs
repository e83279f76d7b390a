//! Puts what the player takes from npm into the binary.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

const PLAYER_NPM_FOLDER: &str = "player/npm";
const HLS_JS_PATH: &str = "player/npm/node_modules/hls.js/dist/hls.min.js";

fn main() {
    println!("cargo::rerun-if-changed={PLAYER_NPM_FOLDER}/package-lock.json");
    println!("cargo::rerun-if-changed={HLS_JS_PATH}");
    if !Path::new(HLS_JS_PATH).exists() {
        let installed = Command::new("npm")
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"])
            .current_dir(PLAYER_NPM_FOLDER)
            .status();
        if !installed.is_ok_and(|status| status.success()) {
            println!(
                "cargo::warning=npm is missing or failed: the player will fall back to the HLS of the browser alone"
            );
        }
    }
    // Empty where there is none: the player notices.
    let library = fs::read(HLS_JS_PATH).unwrap_or_default();
    let out = env::var_os("OUT_DIR").unwrap_or_default();
    if let Err(error) = fs::write(Path::new(&out).join("hls.min.js"), library) {
        println!("cargo::error=cannot write {}: {error}", out.display());
    }
}
