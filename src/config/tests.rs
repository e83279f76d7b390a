use super::*;

fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Config::parse(text, Path::new("test.toml"), environment)
}

#[test]
fn nothing_configured_gives_the_defaults() {
    let config = parse("", &[]).expect("valid");
    assert_eq!(config.http.listen.to_string(), "[::]:8080");
    assert_eq!(config.webrtc.listen.to_string(), "[::]:8189");
    assert_eq!(config.http.cors_origins, CorsOrigins::Any);
    assert_eq!(config.webrtc.max_sessions, 10_000);
    assert!(config.auth.publish_token.is_none() && !config.auth.token_in_query);
}

#[test]
fn the_environment_wins_over_the_file() {
    let text = "[http]\nlisten = \"127.0.0.1:1\"\n[webrtc]\nannounce = [\"192.0.2.1\"]\nshards = 3";
    let config = parse(
        text,
        &[
            ("MILLSTREAM_HTTP__LISTEN", "127.0.0.1:2"),
            ("MILLSTREAM_WEBRTC__ANNOUNCE", "192.0.2.7, 2001:db8::7"),
            ("MILLSTREAM_WEBRTC__MAX_SESSIONS", "5"),
            ("MILLSTREAM_AUTH__TOKEN_IN_QUERY", "true"),
            ("MILLSTREAM_LOG__LEVEL", "info, millstream::session=debug"),
            ("MILLSTREAM_CONFIG", "elsewhere.toml"),
            ("MILLSTREAM_BIN", "/bin/true"),
            ("PATH", "/bin"),
        ],
    )
    .expect("valid");
    assert_eq!(config.http.listen.port(), 2);
    let announced: Vec<String> = config.webrtc.announce.iter().map(ToString::to_string).collect();
    assert_eq!(announced, ["192.0.2.7", "2001:db8::7"]);
    assert_eq!(config.log.level, "info,millstream::session=debug");
    assert!(config.auth.token_in_query);
    assert_eq!((config.webrtc.shards, config.webrtc.max_sessions), (3, 5));
}

#[test]
fn unknown_keys_are_refused_by_name() {
    for (text, environment, name) in [
        ("[http]\nlistn = \"a\"", None, "`http.listn`"),
        ("listen = \"a\"", None, "`listen`"),
        ("[nonsense]\na = 1", None, "`nonsense.a`"),
        ("", Some(("MILLSTREAM_HTTP__LISTN", "a")), "MILLSTREAM_HTTP__LISTN"),
    ] {
        let error = parse(text, environment.as_slice()).expect_err(text).to_string();
        assert!(error.contains(name) && error.contains("http.listen"), "{error}");
    }
}

#[test]
fn bad_values_are_refused_with_key_value_and_what_is_allowed() {
    for (key, value) in [
        ("http.listen", "\"8080\""),
        ("http.listen", "8080"),
        ("http.cors_origins", "[\"example.org\"]"),
        ("http.cors_origins", "[\"https://example.org/\"]"),
        ("http.cors_origins", "[\"*\", \"https://example.org\"]"),
        ("webrtc.listen", "\"[::]\""),
        ("webrtc.announce", "[\"example.org\"]"),
        ("webrtc.announce", "[\"0.0.0.0\"]"),
        ("webrtc.shards", "65"),
        ("webrtc.shards", "-1"),
        ("webrtc.max_sessions", "true"),
        ("auth.token_in_query", "\"yes\""),
        ("auth.token_in_query", "1"),
        ("limits.request_burst", "0"),
        ("log.format", "\"xml\""),
        ("log.level", "\"loud=very\""),
        ("log.level", "\"verbose\""),
        ("log.level", "\"\""),
    ] {
        let (section, name) = key.split_once('.').expect("dotted");
        let error = parse(&format!("[{section}]\n{name} = {value}"), &[])
            .expect_err(key)
            .to_string();
        assert!(error.contains(&format!("`{key}`")), "{error}");
        assert!(error.contains(value) && error.contains("has to be"), "{error}");
    }
}

#[test]
fn tokens_are_neither_in_errors_nor_in_debug_output() {
    let error = parse("[auth]\npublish_token = \"caf\u{e9} secret\"", &[]).expect_err("not a token");
    assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
    let config = parse("[auth]\npublish_token = \"s3cret\"", &[]).expect("valid");
    assert!(!format!("{config:?}").contains("s3cret"));
    let token = config.auth.publish_token.expect("set");
    assert!(token.matches("s3cret") && !token.matches("s3cre") && !token.matches(""));
}

#[test]
fn a_file_that_was_named_has_to_exist_and_to_be_toml() {
    let missing = Config::load(Some(Path::new("/nonexistent/millstream.toml")), []);
    assert!(matches!(missing, Err(ConfigError::Read { .. })));
    assert!(matches!(parse("a = [", &[]), Err(ConfigError::Syntax { .. })));
}

#[test]
fn the_reference_lists_every_key() {
    let reference = include_str!("../../docs/configuration.md");
    for key in keys::KEYS {
        assert!(reference.contains(&format!("| `{}` |", key.name)), "{}", key.name);
    }
    let listed = reference
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    for name in listed {
        assert!(keys::KEYS.iter().any(|key| key.name == name), "{name}");
    }
}

#[test]
fn a_stream_by_hls_takes_its_keys_and_no_others() {
    let stream = |keys: &str| parse(&format!("[streams.\"far\"]\n{keys}"), &[]);
    let config = stream(
        "hls = \"https://example.org/a.m3u8?token=s3cret\"\nmax_height = 720\nrepeat = false\n\
         headers = { Referer = \"https://example.org/\" }\non_demand = true",
    )
    .expect("valid");
    let crate::sources::fetch::How::Hls(origin) = &config.streams[0].how else {
        panic!("{:?}", config.streams[0].how)
    };
    assert_eq!(
        (origin.choice.max_height, origin.choice.max_bandwidth, origin.repeats),
        (Some(720), None, false)
    );
    assert_eq!(origin.headers["referer"], "https://example.org/");
    assert!(!format!("{config:?}").contains("s3cret"), "it may be logged");
    for (keys, wanted) in [
        ("hls = \"file:///etc/passwd\"", "has to be an address such as"),
        ("hls = \"example.org/a.m3u8\"", "has to be an address such as"),
        ("hls = \"https://a:s3cret@example.org/\"", "in `headers`"),
        ("hls = \"https://a/\"\nmax_height = 0", "has to be 16 to 8640"),
        ("hls = \"https://a/\"\nrepeat = 1", "has to be true or false"),
        (
            "hls = \"https://a/\"\nheaders = { \"a b\" = \"s3cret\" }",
            "is no line of HTTP",
        ),
        (
            "hls = \"https://a/\"\nheaders = { a = \"s3cret\\n\" }",
            "is no line of HTTP",
        ),
        ("hls = \"https://a/\"\nusername = \"a\"", "is unknown; known are: hls,"),
        ("hls = \"https://a/\"\nrtsp = \"rtsp://a/\"", "exclude each other"),
    ] {
        let error = stream(keys).expect_err(keys).to_string();
        assert!(error.contains(wanted) && !error.contains("s3cret"), "{keys}: {error}");
    }
}
