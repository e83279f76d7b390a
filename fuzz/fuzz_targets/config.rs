//! The configuration file and the environment.
//!
//! After the file, variables may follow, each behind a byte of zero. Mistakes stand in lines that exist. What is read
//! again, beside a variable that is not one of ours, is the same.
#![no_main]

use std::path::Path;

use millstream::config::{Config, ConfigLocation};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or_default();
    let variables: Vec<(String, String)> = parts
        .filter_map(|part| part.split_once('='))
        .map(|(name, value)| (format!("MILLSTREAM_{name}"), value.to_owned()))
        .collect();
    let parse = |variables: Vec<(String, String)>| Config::parse(file, Path::new("fuzz.toml"), variables);
    let others = [variables.clone(), vec![("PATH".to_owned(), "/bin".to_owned())]].concat();
    match (parse(variables), parse(others)) {
        (Ok(config), Ok(again)) => {
            assert!(config.changed_keys_except_streams(&again).is_empty());
            assert_eq!(format!("{:?}", config.streams), format!("{:?}", again.streams));
        }
        (Err(error), Err(again)) => {
            assert_eq!(error, again);
            assert!(!error.mistakes.is_empty());
            let lines = file.split('\n').count();
            for mistake in &error.mistakes {
                if let Some(ConfigLocation::Line { line, column, .. }) = &mistake.location {
                    assert!(
                        (1..=lines).contains(line) && *column >= 1,
                        "{mistake}: there are {lines} lines"
                    );
                }
                let shown = mistake.to_string();
                assert!(shown.len() <= 4 * text.len() + 2_048, "{} bytes: {shown}", shown.len());
            }
            let _ = error.to_string();
        }
        (first, again) => panic!("{first:?}, and then {again:?}"),
    }
});
