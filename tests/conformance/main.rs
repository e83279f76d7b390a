//! The table of `docs/conformance.md`: each row of `rows.txt`, and the tests that cover it.
//!
//! A test names the rows that it covers in the comment before it. `CONFORMANCE=write cargo test --test conformance`
//! regenerates the table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const ROWS: &str = include_str!("rows.txt");
const TABLE: &str = "docs/conformance.md";
/// Where tests are.
const PLACES: [&str; 6] = [
    "tests/server",
    "tests/core",
    "tests/browser",
    "tests/sources",
    "src",
    "crates/core/src",
];

struct Row {
    id: String,
    level: String,
    rule: String,
    unmet: Option<String>,
}

fn rows() -> Vec<Row> {
    let lines = ROWS.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let (id, rest) = line.split_once(' ').expect("an id");
            let (level, rule) = rest.split_once(' ').expect("a level");
            let (rule, unmet) = match rule.split_once(" !") {
                Some((rule, reason)) => (rule, Some(reason.to_owned())),
                None => (rule, None),
            };
            Row {
                id: id.to_owned(),
                level: level.to_owned(),
                rule: rule.to_owned(),
                unmet,
            }
        })
        .collect()
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .expect("a folder")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    entries.sort();
    for path in entries {
        let is_ours = !path.ends_with("node_modules");
        if path.is_dir() && is_ours {
            files(&path, found);
        } else if path
            .extension()
            .is_some_and(|extension| extension == "rs" || extension == "js")
        {
            found.push(path);
        }
    }
}

/// The ids in a comment: `H-01`, and `B01` for `B-01`.
fn ids(comment: &str) -> Vec<String> {
    let words = comment.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let id = |word: &str| {
        let (letter, number) = word.split_at_checked(1)?;
        let number = number.strip_prefix('-').unwrap_or(number);
        let is_id = "HPDIEXSCTRVB".contains(letter) && number.len() == 2 && number.bytes().all(|b| b.is_ascii_digit());
        is_id.then(|| format!("{letter}-{number}"))
    };
    words.filter_map(id).collect()
}

/// Rows by id, with the tests that name them.
fn shown() -> BTreeMap<String, Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    for place in PLACES {
        files(&root.join(place), &mut all);
    }
    let mut shown: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in all {
        let text = fs::read_to_string(&path).expect("text");
        let file = path.strip_prefix(root).expect("below it").display().to_string();
        let is_script = file.ends_with(".js");
        let mut named: Vec<String> = Vec::new();
        for line in text.lines().map(str::trim) {
            let comment = line
                .strip_prefix("///")
                .or(line.strip_prefix("//").filter(|_| is_script));
            let test = match is_script {
                true => line
                    .strip_prefix("test(")
                    .and_then(|rest| rest.get(1..)?.split(['\'', '"', '`']).next()),
                false => line
                    .trim_start_matches("async ")
                    .strip_prefix("fn ")
                    .and_then(|rest| rest.split('(').next()),
            };
            match (comment, test) {
                (Some(comment), _) => named.extend(ids(comment)),
                (None, Some(test)) => {
                    for id in named.drain(..) {
                        shown.entry(id).or_default().push(format!("`{file}`: {test}"));
                    }
                }
                (None, None) if line.starts_with("#[") || line.starts_with("//") => {}
                (None, None) => named.clear(),
            }
        }
    }
    shown
}

fn table(rows: &[Row], shown: &BTreeMap<String, Vec<String>>) -> String {
    let met = rows.iter().filter(|row| row.unmet.is_none()).count();
    let mut text = format!(
        "# Conformance\n\n\
         Requirements of WHIP (RFC 9725), WHEP (draft-ietf-wish-whep and its extensions) and real clients, and the tests\n\
         that cover them. {met} of {} rows are met. M: must, S: should, O: may, X: our own. Generated from the tests by\n\
         `CONFORMANCE=write cargo test --test conformance`.\n\n\
         | row | | rule | covered by |\n|---|---|---|---|\n",
        rows.len()
    );
    for row in rows {
        let by = match &row.unmet {
            Some(reason) => format!("**not met**: {reason}"),
            None => shown.get(&row.id).map_or_else(String::new, |tests| tests.join("<br>")),
        };
        let _ = writeln!(text, "| {} | {} | {} | {by} |", row.id, row.level, row.rule);
    }
    text
}

#[test]
fn each_row_is_shown_by_a_test_or_says_why_not_and_the_table_says_so() {
    let (rows, shown) = (rows(), shown());
    let known = |id: &String| rows.iter().any(|row| row.id == *id);
    // `T-` also counts threats, in another list.
    let strangers: Vec<_> = shown.keys().filter(|id| !known(id) && !id.starts_with('T')).collect();
    assert!(strangers.is_empty(), "no such rows: {strangers:?}");
    let silent: Vec<_> = rows
        .iter()
        .filter(|row| row.unmet.is_none() && !shown.contains_key(&row.id))
        .map(|row| row.id.as_str())
        .collect();
    let claimed: Vec<_> = rows
        .iter()
        .filter(|row| row.unmet.is_some() && shown.contains_key(&row.id))
        .map(|row| row.id.as_str())
        .collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(TABLE);
    let table = table(&rows, &shown);
    if std::env::var_os("CONFORMANCE").is_some_and(|value| value == "write") {
        fs::write(&path, &table).expect("written");
    }
    assert!(silent.is_empty(), "no test names these rows: {silent:?}");
    assert!(
        claimed.is_empty(),
        "a test shows what is said not to be met: {claimed:?}"
    );
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == table,
        "{TABLE} is old: CONFORMANCE=write cargo test --test conformance"
    );
}
