//! The dependency rule of the crate, checked over the `use` lines: a folder uses only what stands below it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Folders from the bottom to the top. Those in one row may use each other, but for [`STRANGERS`].
const LAYERS: [&[&str]; 9] = [
    &["media", "header_list"],
    &["sdp", "session", "hub", "congestion", "pipeline"],
    &["config", "telemetry"],
    &["sources", "outputs"],
    &["shard", "transcode"],
    &["access"],
    &["control"],
    &["http"],
    &["doctor", "gateway", "main", "lib"],
];

/// These do not know each other.
const STRANGERS: [(&str, &str); 2] = [("sources", "outputs"), ("shard", "transcode")];

/// Foreign stacks and the folders that may name them.
const FOREIGN: [(&str, &[&str]); 9] = [
    ("jsonwebtoken", &["access"]),
    ("rtc_dtls", &["session"]),
    ("rtc_srtp", &["session"]),
    ("rtc_stun", &["session"]),
    ("rtc_sdp", &["sdp"]),
    ("sctp_proto", &["session"]),
    ("axum", &["http"]),
    ("libc", &["shard"]),
    ("retina", &["sources"]),
];

/// Folders in which time and randomness are arguments.
const WITHOUT_CLOCK: [&str; 7] = ["media", "hub", "congestion", "session", "sdp", "sources", "outputs"];

const CLOCKS_AND_DICE: [&str; 5] = ["Instant::now", "SystemTime::now", "thread::sleep", "rand::", "tokio::"];

#[test]
fn folders_use_only_what_stands_below_them() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (folder, path, text) in sources() {
        let own = layer(&folder).unwrap_or_else(|| panic!("{} belongs to no layer", path.display()));
        for used in crate_uses(&text) {
            checked += 1;
            let stranger = STRANGERS.iter().any(|(a, b)| {
                (*a, *b) == (folder.as_str(), used.as_str()) || (*b, *a) == (folder.as_str(), used.as_str())
            });
            let above = layer(&used).is_some_and(|theirs| theirs > own);
            if stranger || above {
                wrong.push(format!("{} uses {used}", path.display()));
            }
        }
    }
    assert!(checked > 50, "the test reads nothing: {checked}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A file of a crate by its module path: `["hub", "ring"]` for `src/hub/ring.rs` and `src/hub/ring/mod.rs`.
type Module = Vec<String>;

/// Files import each other neither directly nor around: each can be read after the ones that it imports.
#[test]
fn no_file_imports_a_file_that_imports_it() {
    let mut circles = Vec::new();
    let mut checked = 0;
    for source_folder in CRATES {
        let imports = imports_of(source_folder);
        checked += imports.values().map(BTreeSet::len).sum::<usize>();
        circles.extend(imports.keys().filter_map(|file| circle_from(file, &imports)));
    }
    assert!(checked > 500, "the test reads nothing: {checked}");
    assert!(circles.is_empty(), "{circles:#?}");
}

/// The files that each file of a crate imports.
fn imports_of(source_folder: &str) -> BTreeMap<Module, BTreeSet<Module>> {
    let texts: BTreeMap<Module, String> = sources_of(source_folder)
        .filter(|(_, path, _)| !path.ends_with("tests.rs") && !path.ends_with("main.rs"))
        .map(|(_, path, text)| (module(&path), text))
        .collect();
    let imports = texts.iter().map(|(file, text)| {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let uses = uses_of(code).into_iter();
        let imported = uses.filter_map(|path| resolve(file, &path, |module| texts.contains_key(module)));
        (file.clone(), imported.filter(|imported| imported != file).collect())
    });
    imports.collect()
}

fn module(path: &Path) -> Module {
    let text = path.with_extension("").to_string_lossy().into_owned();
    let parts = text.split('/').filter(|part| *part != "mod" && *part != "lib");
    parts.map(str::to_owned).collect()
}

/// The paths of the `use` declarations of a file, one for each name.
fn uses_of(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let mut rest = code.lines();
    while let Some(line) = rest.next() {
        let declaration = line.trim_start_matches("pub(super) ").trim_start_matches("pub(crate) ");
        let declaration = declaration.trim_start_matches("pub ");
        // In an inline module, which is indented, `super` is the file itself.
        if let Some(first) = declaration.strip_prefix("use ") {
            let mut text = first.to_owned();
            while !text.contains(';') {
                text.push_str(rest.next().expect("a declaration ends"));
            }
            expand("", &text.replace([' ', ';'], ""), &mut paths);
        }
    }
    paths
}

/// Writes `a::{b, c::d}` as `a::b` and `a::c::d`.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let Some((head, group)) = tree.split_once('{') else {
        return paths.push(format!("{prefix}{tree}"));
    };
    let (mut depth, mut begin) = (0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                if begin < at {
                    expand(&format!("{prefix}{head}"), &group[begin..at], paths);
                }
                begin = at + 1;
            }
            _ => {}
        }
    }
}

/// The file that a path of a `use` declaration leads to: the deepest module on it that is a file.
fn resolve(file: &Module, path: &str, exists: impl Fn(&Module) -> bool) -> Option<Module> {
    let mut parts = path.split("::").peekable();
    let mut found = match parts.next()? {
        "crate" => Module::new(),
        "self" => file.clone(),
        "super" => {
            let mut parent = file.clone();
            parent.pop();
            while parts.next_if(|part| *part == "super").is_some() {
                parent.pop();
            }
            parent
        }
        _ => return None,
    };
    for part in parts {
        let next: Module = found.iter().cloned().chain([part.to_owned()]).collect();
        if !exists(&next) {
            break;
        }
        found = next;
    }
    exists(&found).then_some(found)
}

/// A way from a file back to itself.
fn circle_from(file: &Module, imports: &BTreeMap<Module, BTreeSet<Module>>) -> Option<String> {
    let mut ways = vec![vec![file]];
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop() {
        for next in imports.get(*way.last()?).into_iter().flatten() {
            let longer: Vec<&Module> = way.iter().copied().chain([next]).collect();
            if next == file {
                let names: Vec<String> = longer.iter().map(|module| module.join("/")).collect();
                return Some(names.join(" -> "));
            }
            if seen.insert(next) {
                ways.push(longer);
            }
        }
    }
    None
}

#[test]
fn each_foreign_stack_is_named_in_few_places() {
    let mut wrong = Vec::new();
    for (folder, path, text) in sources() {
        // Tests check our own code against the foreign one.
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (stack, allowed) in FOREIGN {
            let named = text.contains(&format!("{stack}::")) || text.contains(&format!("use {stack}"));
            if named && !allowed.contains(&folder.as_str()) {
                wrong.push(format!("{} names {stack}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Clients of other servers: they wait for sockets and read the clock, and hand on what they read with its time.
const SHELLS: [&str; 15] = [
    "sources/onvif",
    "sources/rtsp",
    "sources/fetch",
    "sources/hls/mod.rs",
    "sources/hls/fetcher.rs",
    "sources/hls/http.rs",
    "sources/hls/files.rs",
    "sources/hls/gap.rs",
    "sources/hls/variant_resolver.rs",
    "sources/hls/failed_variants.rs",
    "sources/hls/variant_return.rs",
    "sources/hls/left_out_report.rs",
    "outputs/hls/packaged_stream.rs",
    "outputs/hls/service.rs",
    "outputs/hls/packaging.rs",
];

/// Clippy refuses these calls too, but where an `#[expect]` gives a reason; below the shells there is none.
#[test]
fn invariant_2_time_and_chance_are_arguments_below_the_shells() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    let below = sources().filter(|(folder, path, _)| {
        let is_shell = SHELLS.iter().any(|shell| path.starts_with(shell));
        WITHOUT_CLOCK.contains(&folder.as_str()) && !is_shell && !path.ends_with("tests.rs")
    });
    for (folder, path, text) in below {
        checked += 1;
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let found = CLOCKS_AND_DICE.iter().filter(|call| code.contains(**call));
        wrong.extend(found.map(|call| format!("{folder}: {} calls {call}", path.display())));
    }
    assert!(checked > 30, "the test reads nothing: {checked}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_code_stands_in_the_folder_of_system_calls_only() {
    let with_unsafe: Vec<PathBuf> = sources()
        .filter(|(_, _, text)| text.contains("unsafe {"))
        .map(|(_, path, _)| path)
        .collect();
    assert!(!with_unsafe.is_empty(), "the test reads nothing");
    assert!(
        with_unsafe.iter().all(|path| path.starts_with("shard/system_calls")),
        "{with_unsafe:?}"
    );
}

/// Programs and stacks that belong to one crate: no other one has them among its dependencies.
const WALLS: [(&str, &[&str]); 6] = [
    ("tokio", &["crates/core", "crates/worker-runtime", "crates/worker"]),
    ("socket2", &["crates/core", "crates/worker-runtime", "crates/worker"]),
    ("gstreamer", &[".", "crates/core", "crates/worker-runtime"]),
    ("gstreamer-app", &[".", "crates/core", "crates/worker-runtime"]),
    ("rtc-dtls", &[".", "crates/worker-runtime", "crates/worker"]),
    ("seccompiler", &[".", "crates/core", "crates/worker"]),
];

#[test]
fn walls_between_crates_are_their_dependencies() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (dependency, without) in WALLS {
        let mut found = 0;
        for package in [".", "crates/core", "crates/worker-runtime", "crates/worker"] {
            let manifest = fs::read_to_string(root.join(package).join("Cargo.toml")).expect("a manifest");
            let (_, own) = manifest.split_once("\n[dependencies]").expect("dependencies");
            let own = own.split("\n[").next().unwrap_or_default();
            let has = own.lines().any(|line| {
                let name = line.split([' ', '=', '.']).next();
                name == Some(dependency)
            });
            assert!(!has || !without.contains(&package), "{package} has {dependency}");
            found += usize::from(has);
        }
        assert!(found > 0, "nobody has {dependency}");
    }
}

/// Longest file in lines. Those of the crates are counted without the tests inside them.
const LONGEST_FILE: usize = 600;

/// Files that nobody reads for the code: dependencies, media, recorded and generated files.
const NOT_READ: [&str; 4] = ["node_modules", "data", "target", "__pycache__"];

const READ_TYPES: [&str; 7] = ["rs", "js", "mjs", "py", "sh", "css", "html"];

#[test]
fn files_can_be_read_in_one_sitting() {
    let mut lengths = Vec::new();
    for (_, path, text) in CRATES.into_iter().flat_map(sources_of) {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        lengths.push((code.lines().count(), path));
    }
    assert!(lengths.len() > 150, "the test reads nothing: {}", lengths.len());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["tests", "player", "scripts", "fuzz", "crates/core/examples"] {
        let (before, mut files) = (lengths.len(), Vec::new());
        collect_types(&root.join(folder), &READ_TYPES, &mut files);
        for path in files {
            let text = fs::read_to_string(&path).expect("readable");
            lengths.push((text.lines().count(), path));
        }
        assert!(lengths.len() > before, "{folder} has no files");
    }
    lengths.sort();
    let (lines, path) = lengths.last().expect("files");
    println!("the longest file is {} with {lines} lines", path.display());
    let long: Vec<_> = lengths.iter().filter(|(lines, _)| *lines > LONGEST_FILE).collect();
    assert!(long.is_empty(), "longer than {LONGEST_FILE} lines: {long:#?}");
}

/// Pages that send their reader from file to file.
const PAGES: [&str; 4] = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md"];

const NAMED_FOLDERS: [&str; 8] = [
    "src/",
    "crates/",
    "tests/",
    "docs/",
    "scripts/",
    "player/",
    "deploy/",
    "pipelines/",
];

#[test]
fn pages_name_files_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut missing, mut checked) = (Vec::new(), 0);
    for page in PAGES {
        let text = fs::read_to_string(root.join(page)).expect(page);
        for named in text.split('`').skip(1).step_by(2) {
            let is_path = NAMED_FOLDERS.iter().any(|folder| named.starts_with(folder));
            if is_path && !named.contains(['*', '{', ' ']) {
                checked += 1;
                if !root.join(named).exists() {
                    missing.push(format!("{page}: {named}"));
                }
            }
        }
    }
    assert!(checked > 60, "the test reads nothing: {checked}");
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Words that only this project used, and what stands in their place.
const RETIRED: [(&str, &str); 16] = [
    ("repair", "transcode"),
    ("repaired", "transcoded"),
    ("repairs", "transcode"),
    ("repairer", "transcoder"),
    ("mend", "fix, transcode"),
    ("mended", "fixed, transcoded"),
    ("wish", "request, selection"),
    ("wishes", "requests"),
    ("manners", "client policy"),
    ("fleet", "source supervisor"),
    ("ship", "source task"),
    ("crowd", "connection limiter"),
    ("brought", "start outcome"),
    ("damage", "transcode input"),
    ("heard", "received"),
    ("sound", "audio, valid"),
];

/// Names from outside, and names that stay readable for one version.
const KEPT: [&str; 7] = [
    "RepairedRid",
    "repaired_rid",
    "repaired-rtp-stream-id",
    "millstream_repair_viewers",
    "\"repair\"",
    "\"repairs\"",
    "pipelines.repair",
];

#[test]
fn retired_words_stay_out_of_code_and_messages() {
    let (mut found, mut checked) = (Vec::new(), 0);
    for (_, path, text) in sources() {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for (number, line) in code.enumerate() {
            let line = KEPT.iter().fold(line.to_owned(), |line, kept| line.replace(kept, ""));
            for word in words(&line) {
                checked += 1;
                if let Some((word, instead)) = RETIRED.iter().find(|(retired, _)| *retired == word) {
                    found.push(format!("{}: code line {number}: {word}: {instead}", path.display()));
                }
            }
        }
    }
    assert!(checked > 100_000, "the test reads nothing: {checked}");
    assert!(found.is_empty(), "{found:#?}");
}

/// The words of a line, those inside of `snake_case` and `CamelCase` names too, in lower case.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for c in line.chars() {
        if c.is_ascii_uppercase() || !c.is_ascii_alphabetic() {
            words.push(String::new());
        }
        if c.is_ascii_alphabetic()
            && let Some(word) = words.last_mut()
        {
            word.push(c.to_ascii_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn layer(folder: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&folder))
}

/// The folders that the code of a file names by `crate::`; comments may refer to anything.
fn crate_uses(text: &str) -> BTreeSet<String> {
    let code: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    let code = code.join("\n");
    let after = code.split("crate::").skip(1);
    after
        .map(|rest| {
            rest.chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '_')
                .collect()
        })
        .collect()
}

/// The crates that have layers of folders. The others are small, and their dependencies are their walls.
const LAYERED: [&str; 2] = ["src", "crates/core/src"];

const CRATES: [&str; 4] = [
    "src",
    "crates/core/src",
    "crates/worker-runtime/src",
    "crates/worker/src",
];

/// All source files: the folder of its crate that holds the file, its path within the crate, its text.
fn sources() -> impl Iterator<Item = (String, PathBuf, String)> {
    LAYERED.into_iter().flat_map(sources_of)
}

fn sources_of(source_folder: &str) -> impl Iterator<Item = (String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(source_folder);
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.into_iter().map(move |path| {
        let relative = path.strip_prefix(&root).expect("below the root").to_path_buf();
        let first = relative
            .components()
            .next()
            .expect("has a name")
            .as_os_str()
            .to_string_lossy()
            .into_owned();
        let text = fs::read_to_string(&path).expect("readable");
        (first.trim_end_matches(".rs").to_owned(), relative, text)
    })
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    collect_types(folder, &["rs"], files);
}

/// The files of a folder and those below it whose names end so.
fn collect_types(folder: &Path, types: &[&str], files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            if NOT_READ.iter().any(|name| path.ends_with(name)) {
                continue;
            }
            collect_types(&path, types, files);
        } else if path.extension().is_some_and(|e| types.iter().any(|own| e == *own)) {
            files.push(path);
        }
    }
}
