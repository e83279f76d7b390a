use super::*;
use millstream_core::hub::name::SourceName;

fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Config::parse(text, Path::new("test.toml"), environment)
}

#[test]
fn nothing_configured_gives_the_defaults() {
    let config = parse("", &[]).expect("valid");
    assert_eq!(config.http.listen.to_string(), "[::]:8080");
    assert_eq!(config.webrtc.listen.to_string(), "[::]:8189");
    assert_eq!(config.http.cors_origins, AllowedOrigins::Any);
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
            ("MILLSTREAM_LOG__LEVEL", "info, millstream_core::session=debug"),
            ("MILLSTREAM_CONFIG", "elsewhere.toml"),
            ("MILLSTREAM_BIN", "/bin/true"),
            ("PATH", "/bin"),
        ],
    )
    .expect("valid");
    assert_eq!(config.http.listen.port(), 2);
    let announced: Vec<String> = config.webrtc.announce.iter().map(ToString::to_string).collect();
    assert_eq!(announced, ["192.0.2.7", "2001:db8::7"]);
    assert_eq!(config.log.level, "info,millstream_core::session=debug");
    assert!(config.auth.token_in_query);
    assert_eq!((config.webrtc.shards, config.webrtc.max_sessions), (3, 5));
}

/// Each message, without its place.
fn mistakes(text: &str) -> Vec<String> {
    let (_, mistakes) = Config::parse_with_mistakes(text, Path::new("test.toml"), []);
    let without_place = |mistake: ConfigMistake| {
        ConfigMistake {
            location: None,
            ..mistake
        }
        .to_string()
    };
    ConfigError::new(mistakes)
        .mistakes
        .into_iter()
        .map(without_place)
        .collect()
}

#[test]
fn unknown_keys_are_refused_with_the_one_that_was_meant() {
    for (text, environment, wanted) in [
        (
            "[http]\nlistn = \"a\"",
            None,
            "unknown key `http.listn` (did you mean `listen`?)",
        ),
        (
            "listen = \"a\"",
            None,
            "unknown key `listen` (did you mean `http.listen` or `webrtc.listen`?)",
        ),
        (
            "[http]\nshards = 1",
            None,
            "unknown key `http.shards` (did you mean `webrtc.shards`?)",
        ),
        (
            "[htp]\nlisten = 1\ncors_origins = \"*\"",
            None,
            "unknown section `htp` (did you mean `http`?)",
        ),
        (
            "",
            Some(("MILLSTREAM_HTTP__LISTN", "a")),
            "unknown environment variable (did you mean `MILLSTREAM_HTTP__LISTEN`?)",
        ),
    ] {
        let error = parse(text, environment.as_slice()).expect_err(text);
        assert!(error.to_string().ends_with(wanted), "{error}");
        assert_eq!(error.mistakes.len(), 1, "{error}");
    }
    let nothing_near = parse("[log]\nport = 1", &[]).expect_err("unknown").to_string();
    assert!(
        nothing_near.ends_with("unknown key `log.port`; expected one of `format`, `level` or `otlp`"),
        "{nothing_near}"
    );
}

#[test]
fn bad_values_are_refused_with_key_value_and_what_is_expected() {
    for (key, value) in [
        ("http.listen", "\"8080\""),
        ("http.listen", "8080"),
        ("http.cors_origins", "[\"example.org\"]"),
        ("http.cors_origins", "[\"https://example.org/\"]"),
        ("http.cors_origins", "[\"*\", \"https://example.org\"]"),
        ("http.embed_origins", "[\"https://example.org; script-src *\"]"),
        ("http.embed_origins", "[\"https://example.org;script-src\"]"),
        ("http.wait_for_publisher", "61"),
        ("webrtc.listen", "\"[::]\""),
        ("webrtc.announce", "[\"example.org\"]"),
        ("webrtc.announce", "[\"0.0.0.0\"]"),
        ("webrtc.announce_by_stun", "\"stun:stun.example.org:3478\""),
        ("webrtc.announce_by_stun", "\"https://stun.example.org:3478\""),
        ("webrtc.announce_by_stun", "\"2001:db8::1:3478\""),
        ("webrtc.announce_by_stun", "\"stun.example.org:0\""),
        ("webrtc.shards", "65"),
        ("webrtc.shards", "-1"),
        ("webrtc.shards", "99999999999999999999999"),
        ("webrtc.max_sessions", "true"),
        ("auth.token_in_query", "\"yes\""),
        ("auth.token_in_query", "1"),
        ("ice.turn_lifetime", "3601"),
        ("limits.request_burst", "0"),
        ("limits.half_open_sessions", "0"),
        ("limits.half_open_per_address", "0"),
        ("limits.half_open_reserved", "-1"),
        ("log.format", "\"xml\""),
        ("log.level", "\"loud=very\""),
        ("log.level", "\"verbose\""),
        ("log.level", "\"\""),
    ] {
        let (section, name) = key.split_once('.').expect("dotted");
        let error = parse(&format!("[{section}]\n{name} = {value}"), &[]).expect_err(key);
        assert_eq!(error.mistakes.len(), 1, "{error}");
        let error = error.to_string();
        assert!(error.contains(&format!("`{key}` is {value}: ")), "{error}");
        assert!(error.contains("expected"), "{error}");
    }
}

#[test]
fn a_stun_server_is_a_host_and_a_port() {
    for server in ["stun.example.org:3478", "192.0.2.1:3478", "[2001:db8::1]:3478"] {
        let config = parse(&format!("[webrtc]\nannounce_by_stun = \"{server}\""), &[]).expect("valid");
        assert_eq!(config.webrtc.announce_by_stun.as_deref(), Some(server));
    }
}

#[test]
fn tokens_are_neither_in_errors_nor_in_debug_output() {
    let error = parse("[auth]\npublish_token = \"caf\u{e9} secret\"", &[]).expect_err("not a token");
    assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
    let config = parse("[auth]\npublish_token = \"s3cret\"", &[]).expect("valid");
    assert!(!format!("{config:?}").contains("s3cret"));
    let text = "[streams.a]\nrtsp = \"rtsp://a:s3cret@b/\"\n[streams.b]\nhls = \"https://a/s3cret\"\nheaders = { a = \"s3cret\" }\n\
                [streams.c]\npipeline = \"srt\"\nparams = { passphrase = \"s3cret\" }";
    let config = parse(text, &[]).expect("valid");
    assert_eq!(config.streams.len(), 3);
    assert!(!format!("{config:?}").contains("s3cret"), "{config:?}");
}

#[test]
fn a_file_that_was_named_has_to_exist_and_to_be_toml() {
    let missing = Config::load(Some(Path::new("/nonexistent/millstream.toml")), []).expect_err("missing");
    let missing = missing.to_string();
    assert!(
        missing.starts_with("/nonexistent/millstream.toml: the configuration file cannot be read"),
        "{missing}"
    );
    let error = parse("a = [", &[]).expect_err("not TOML").to_string();
    assert_eq!(
        error,
        "test.toml, line 1, column 5: `a`: the list that begins here has no closing `]`"
    );
}

/// What is declared of a key is what is documented of it, and nothing else is documented.
#[test]
fn the_reference_lists_every_key() {
    let reference = include_str!("../../docs/configuration.md");
    let row = |key: &ConfigKey| {
        let reload = match key.reload_mode {
            ReloadMode::Live => "live",
            ReloadMode::Restart => "restart",
        };
        format!(
            "| `{}` | {} | {reload} | {} |",
            key.path,
            key.default_text,
            key.description()
        )
    };
    let inner = |key: &ConfigKey| format!("| `{}` | {} | {} |", key.name, key.default_text, key.description());
    let mut wanted: Vec<String> = all_keys_except_streams().into_iter().map(row).collect();
    for table in [
        TokenConfig::CONFIG_KEYS,
        WebhookConfig::CONFIG_KEYS,
        RtspConfig::CONFIG_KEYS,
        HlsSourceConfig::CONFIG_KEYS,
        PipelineSourceConfig::CONFIG_KEYS,
        FailoverTimesConfig::CONFIG_KEYS,
        FailoverEntryKeys::CONFIG_KEYS,
    ] {
        wanted.extend(table.iter().map(inner));
    }
    let rows: Vec<&str> = reference.lines().filter(|line| line.starts_with("| `")).collect();
    for (row, wanted) in rows.iter().zip(&wanted) {
        assert_eq!(row, wanted);
    }
    assert_eq!(
        rows.len(),
        wanted.len(),
        "{:#?}",
        &wanted[rows.len().min(wanted.len())..]
    );
}

/// A default that the reference names is the value that a key has without being set.
#[test]
fn defaults_are_documented_as_they_are() {
    let mut checked = 0;
    for key in all_keys_except_streams() {
        let Some(default) = key
            .default_text
            .strip_prefix('`')
            .and_then(|rest| rest.strip_suffix('`'))
        else {
            continue;
        };
        let (section, name) = key.path.split_once('.').expect("dotted");
        let set = [(key.environment_variable_name(), default.to_owned())];
        let config = Config::parse("", Path::new("test.toml"), set).unwrap_or_else(|error| panic!("{error}"));
        let differs = config.changed_keys_except_streams(&Config::default());
        assert!(differs.is_empty(), "{section}.{name}: {differs:?}");
        checked += 1;
    }
    assert!(checked > 15, "{checked}");
}

#[test]
fn a_stream_takes_the_keys_of_its_source_and_no_others() {
    let stream = |keys: &str| mistakes(&format!("[streams.far]\n{keys}"));
    for (keys, wanted) in [
        ("hls = 1", "`streams.far.hls` has an invalid value: expected a string"),
        (
            "hls = \"https://a/\"\nmax_height = 0",
            "expected a whole number from 16 to 8640",
        ),
        (
            "hls = \"https://a/\"\nrepeat = 1",
            "`streams.far.repeat` is 1: expected true or false",
        ),
        (
            "hls = \"https://a/\"\nusername = \"a\"",
            "unknown key `streams.far.username`; expected one of `hls`,",
        ),
        (
            "hls = \"https://a/\"\nrtsp = \"rtsp://a/\"",
            "`streams.far.hls` cannot be combined with `rtsp`",
        ),
        (
            "rtps = \"rtsp://a/\"",
            "unknown key `streams.far.rtps` (did you mean `rtsp`?)",
        ),
        ("on_demand = true", "`streams.far` has no source"),
        (
            "rtsp = \"rtsp://a/\"\nstop_after = 5",
            "`streams.far.stop_after` has no effect without `on_demand = true`",
        ),
    ] {
        let found = stream(keys);
        assert!(matches!(&found[..], [one] if one.contains(wanted)), "{keys}: {found:?}");
    }
    assert_eq!(
        stream("hls = \"https://a/\"\non_demand = true\nstop_after = 5"),
        [""; 0]
    );
}

#[test]
fn only_keys_that_are_set_otherwise_differ() {
    let text = "[http]\nlisten = \"[::]:8080\"\n[webrtc]\nshards = 3\n[auth]\nplay_token = \"a\"";
    let config = parse(text, &[]).expect("valid");
    let differs: Vec<&str> = config
        .changed_keys_except_streams(&Config::default())
        .iter()
        .map(|key| key.path)
        .collect();
    assert_eq!(differs, ["webrtc.shards", "auth.play_token"]);
}

/// A token in a file and one in the file of the configuration: what is set by a variable counts.
#[test]
fn a_variable_takes_precedence_over_the_other_way_to_say_the_same() {
    let text = "[auth]\nplay_token_file = \"/a\"\napi_token = \"a\"\n[ice]\nturn_user = \"a:b\"";
    let config = parse(
        text,
        &[
            ("MILLSTREAM_AUTH__PLAY_TOKEN", "b"),
            ("MILLSTREAM_AUTH__API_TOKEN_FILE", "/b"),
            ("MILLSTREAM_ICE__TURN_SECRET", "c"),
        ],
    )
    .expect("valid");
    assert!(config.auth.play_token.is_some() && config.auth.play_token_file.is_none());
    assert!(config.auth.api_token.is_none() && config.auth.api_token_file.is_some());
    assert!(config.ice.turn_secret.is_some() && config.ice.turn_user.is_none());
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let both = parse("[auth]\nplay_token = \"a\"\nplay_token_file = \"/a\"", &[]).expect("valid");
    assert!(both.auth.play_token.is_none(), "as ever");
    let warnings: Vec<String> = both.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        ["test.toml, line 2, column 1: `auth.play_token` is ignored: `auth.play_token_file` is set too"]
    );
}

const SHOW: &str = "[streams.show]\nsources = [\n{ whip = \"main\" },\n{ whip = \"backup\" },\n\
    { rtsp = \"rtsp://a/\" },\n{ rtsp = \"rtsp://b/\", name = \"yard\", standby = \"cold\" },\n\
    { pipeline = \"slate\", params = { text = \"Back soon\" }, standby = \"cold\" },\n]\nhold_off = 9\n";

#[test]
fn a_stream_has_a_list_of_sources() {
    let config = parse(SHOW, &[]).expect("valid");
    let [failover_group] = &config.failover_groups[..] else {
        panic!("{:?}", config.failover_groups)
    };
    let names: Vec<(&str, FailoverSourceKind)> = failover_group
        .sources
        .iter()
        .map(|source| (source.name.as_str(), source.kind))
        .collect();
    let (warm, cold) = (
        FailoverSourceKind::Pulled(StandbyMode::Warm),
        FailoverSourceKind::Pulled(StandbyMode::Cold),
    );
    assert_eq!(
        names,
        [
            ("main", FailoverSourceKind::Whip),
            ("backup", FailoverSourceKind::Whip),
            ("rtsp", warm),
            ("yard", cold),
            ("pipeline", cold)
        ]
    );
    assert_eq!(
        (
            failover_group.times.hold_off.as_secs(),
            failover_group.times.stall_timeout.as_millis()
        ),
        (9, 400)
    );
    assert_eq!(failover_group.whip_source(None).map(SourceName::as_str), Some("main"));
    assert_eq!(
        failover_group.whip_source(Some("backup")).map(SourceName::as_str),
        Some("backup")
    );
    assert_eq!(failover_group.whip_source(Some("yard")), None, "the gateway pulls it");
    let pulled: Vec<(String, bool)> = config
        .streams
        .iter()
        .map(|stream| (stream.stream_key().to_string(), stream.on_demand_stop_after().is_some()))
        .collect();
    let wanted = [("show#=rtsp", false), ("show#=yard", true), ("show#=pipeline", true)];
    assert_eq!(pulled, wanted.map(|(key, is_on_demand)| (key.to_owned(), is_on_demand)));
    assert_eq!(config.streams[1].config_table_path(), "streams.show.sources[3]");
}

#[test]
fn mistakes_in_a_list_of_sources_name_the_source() {
    let stream = |sources: &str| mistakes(&format!("[streams.far]\nsources = {sources}"));
    for (sources, wanted) in [
        ("1", "`streams.far.sources` has to be a list of tables"),
        ("[]", "`streams.far.sources` has 0 sources; expected 1 to 8"),
        ("[1]", "`streams.far.sources[0]` has to be a table"),
        ("[{}]", "`streams.far.sources[0]` has no source"),
        (
            "[{ whip = true }]",
            "`streams.far.sources[0].whip` is true: expected the name of the source",
        ),
        (
            "[{ whip = \"a\" }, { whip = \"a\" }]",
            "`streams.far.sources[1]` has the name a of another source",
        ),
        (
            "[{ whip = \"a\", standby = \"cold\" }]",
            "`streams.far.sources[0].standby` cannot be combined with `whip`",
        ),
        (
            "[{ whip = \"a\", rtsp = \"rtsp://a/\" }]",
            "`streams.far.sources[0].rtsp` cannot be combined with `whip`",
        ),
        (
            "[{ rtsp = \"rtsp://a/\", on_demand = true }]",
            "`streams.far.sources[0].on_demand` has no effect",
        ),
        (
            "[{ rtsp = \"rtsp://a/\", standby = \"hot\" }]",
            "expected \"warm\" or \"cold\"",
        ),
        (
            "[{ hls = \"https://a/\", repeat = 1 }]",
            "`streams.far.sources[0].repeat` is 1",
        ),
        (
            "[{ whip = \"a\" }]\nrtsp = \"rtsp://a/\"",
            "`streams.far.rtsp` cannot be combined with `sources`",
        ),
        (
            "[{ whip = \"a\" }]\nstall_timeout_ms = 5",
            "expected a whole number of milliseconds from 100 to 60000",
        ),
        (
            "[{ whip = \"a\" }]\non_demand = true",
            "unknown key `streams.far.on_demand`",
        ),
    ] {
        let found = stream(sources);
        assert!(
            matches!(&found[..], [one] if one.contains(wanted)),
            "{sources}: {found:?}"
        );
    }
}

#[test]
fn a_pipeline_with_the_same_parameters_runs_once_for_all_lists() {
    let list = |stream: &str, text: &str, standby: &str| {
        format!(
            "[streams.{stream}]\nsources = [{{ whip = \"main\" }}, {{ pipeline = \"slate\", name = \"{stream}-slate\", \
             params = {{ text = \"{text}\" }}, standby = \"{standby}\" }}]\n"
        )
    };
    let text = [
        list("a", "Back soon", "cold"),
        list("b", "Back soon", "warm"),
        list("c", "Later", "cold"),
    ]
    .concat();
    let config = parse(&text, &[]).expect("valid");
    let running: Vec<(String, bool)> = config
        .streams
        .iter()
        .map(|stream| (stream.stream_key().to_string(), stream.on_demand_stop_after().is_some()))
        .collect();
    assert_eq!(
        running,
        [("a#=a-slate".to_owned(), false), ("c#=c-slate".to_owned(), true)]
    );
    let keys: Vec<String> = config
        .failover_groups
        .iter()
        .map(|failover_group| failover_group.source_key(&failover_group.sources[1]).to_string())
        .collect();
    assert_eq!(keys, ["a#=a-slate", "a#=a-slate", "c#=c-slate"]);
    // The sources of single streams are their own.
    let single = "[streams.x]\npipeline = \"slate\"\n[streams.y]\npipeline = \"slate\"\n";
    assert_eq!(parse(single, &[]).expect("valid").streams.len(), 2);
}

#[test]
fn a_list_of_urls_is_the_layers_of_a_camera() {
    let text = "[streams.door]\nrtsp = [\"rtsp://a/1\", \"rtsp://a/2\"]\nusername = \"u\"\non_demand = true\nstop_after = 7\n\
                [streams.yard]\nrtsp = [\"rtsp://b/\"]\n";
    let config = parse(text, &[]).expect("valid");
    let [failover_group] = &config.failover_groups[..] else {
        panic!("{:?}", config.failover_groups)
    };
    assert_eq!(failover_group.kind, FailoverGroupKind::CameraLayers { on_demand: true });
    let pulled: Vec<(String, String, Option<u64>)> = config
        .streams
        .iter()
        .map(|stream| {
            let StreamSourceConfig::Rtsp(camera) = &stream.source else {
                panic!("{stream:?}")
            };
            let stop_after = stream.on_demand_stop_after().map(|after| after.as_secs());
            (stream.stream_key().to_string(), camera.rtsp.0.clone(), stop_after)
        })
        .collect();
    let wanted = [
        ("door#=main", "rtsp://a/1", Some(7)),
        ("door#=sub", "rtsp://a/2", Some(7)),
        ("yard", "rtsp://b/", None),
    ];
    assert_eq!(
        pulled,
        wanted.map(|(key, url, after)| (key.to_owned(), url.to_owned(), after))
    );
}
