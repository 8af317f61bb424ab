//! The whole way from `Sources` to `Config`, on made-up surroundings.

use super::settings::{Opt, table};
use super::*;

const UPSTREAM: &[&str] = &["--upstream", "unix:/tmp/app.sock"];

/// Parses with this environment and these files; nothing else exists, every directory is on disk.
pub(super) fn parse(
    args: &[&str],
    env: &[(&str, &str)],
    files: &[(&str, &str)],
) -> Result<Invocation, ConfigError> {
    with_sources(args, env, files, parse_args)
}

fn with_sources<T>(
    args: &[&str],
    env: &[(&str, &str)],
    files: &[(&str, &str)],
    run: impl FnOnce(&Sources<'_>) -> T,
) -> T {
    let read = |path: &Path| {
        let found = files.iter().find(|(name, _)| Path::new(name) == path);
        let missing = match files.iter().any(|(name, _)| path.starts_with(name)) {
            true => io::ErrorKind::NotADirectory,
            false => io::ErrorKind::NotFound,
        };
        found.map(|(_, text)| text.as_bytes().to_vec()).ok_or(missing.into())
    };
    run(&Sources {
        args: args.iter().map(OsString::from).collect(),
        env: env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        read: &read,
        in_memory: &|dir| match dir.to_str() {
            Some("/nowhere") => Err(io::ErrorKind::NotFound.into()),
            dir => Ok(dir == Some("/dev/shm")),
        },
        no_socket: &|path| (path == Path::new("/etc")).then_some("a directory"),
        takes_a_log: &|path| match path.starts_with("/nowhere") {
            true => Err(io::ErrorKind::NotFound.into()),
            false => Ok(()),
        },
        nofile: 1 << 20,
        private_socket: "/run/bufproxy-1/app.sock".into(),
    })
}

/// The configuration that these arguments give where nothing else is known.
pub(super) fn run(args: &[&str]) -> Config {
    run_with(args, &[], &[])
}

fn run_with(args: &[&str], env: &[(&str, &str)], files: &[(&str, &str)]) -> Config {
    match parse(args, env, files) {
        Ok(Invocation::Run(config)) => *config,
        other => panic!("{other:?}"),
    }
}

fn problems(args: &[&str], env: &[(&str, &str)], files: &[(&str, &str)]) -> Vec<String> {
    match parse(args, env, files) {
        Err(error) => error.problems,
        Ok(invocation) => panic!("no error: {invocation:?}"),
    }
}

/// Value and source of an option as `check` prints them.
fn checked(
    args: &[&str],
    env: &[(&str, &str)],
    files: &[(&str, &str)],
    name: &str,
) -> (String, String) {
    let args = [&["check"], args].concat();
    let Ok(Invocation::Check(text)) = parse(&args, env, files) else {
        panic!("{:?}", parse(&args, env, files));
    };
    assert!(text.ends_with("ok\n"), "{text}");
    let line = text.lines().find(|line| line.split(' ').next() == Some(name));
    let rest = line.and_then(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{text}"));
    let (value, source) = rest.trim().split_once("  ").unwrap_or_else(|| panic!("{rest:?}"));
    (value.trim().to_owned(), source.trim().to_owned())
}

/// Everything but `config`, which is about the file itself.
fn options() -> impl Iterator<Item = &'static Opt> {
    table().iter().filter(|opt| opt.name != "config")
}

#[test]
fn every_option_works_as_flag_variable_and_key() {
    for opt in options() {
        // The examples in the table need an app, and not the one that the defaults are compared with.
        let base: &[&str] = match opt.name {
            "upstream" => &[],
            "open-port" | "pass-socket" => &["--upstream", "/a.sock", "--", "app"],
            _ => &["--upstream", "/a.sock"],
        };
        let files = [("config/error.html", "<p>")];
        let without = match opt.name {
            "upstream" => String::new(),
            _ => format!("{:?}", run_with(base, &[], &files)),
        };
        let flag = format!("--{}={}", opt.name, opt.example);
        let flag_args = [&[flag.as_str()], base].concat();
        let variable = [(opt.variable(), opt.example)];
        let env: Vec<(&str, &str)> = variable.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        let key = format!("{} = {:?}\n", opt.name, opt.example);
        let with_key = [files[0], ("bufproxy.toml", &key)];

        // Warnings name the source; the file is a value of its own.
        let show = |config: Config| {
            let from = BTreeMap::new();
            format!("{:?}", Config { warnings: vec![], config_file: None, from, ..config })
        };
        let by_flag = show(run_with(&flag_args, &[], &files));
        assert_eq!(by_flag, show(run_with(base, &env, &files)), "{}", opt.name);
        assert_eq!(by_flag, show(run_with(base, &[], &with_key)), "{}", opt.name);
        assert!(by_flag != without, "{} sets nothing", opt.name);

        if opt.name != "concurrency" {
            let source = |given: (String, String)| {
                assert_eq!(given.0, opt.example, "{}", opt.name);
                given.1
            };
            assert_eq!(source(checked(&flag_args, &[], &files, opt.name)), "flag");
            assert_eq!(source(checked(base, &env, &files, opt.name)), opt.variable());
            assert_eq!(source(checked(base, &[], &with_key, opt.name)), "bufproxy.toml line 1");
        }
    }
}

#[test]
fn flag_wins_over_variable_over_file_over_platform_over_default() {
    let app_timeout = |args: &[&str], env: &[(&str, &str)], files: &[(&str, &str)]| {
        checked(&[UPSTREAM, args].concat(), env, files, "app-timeout")
    };
    let both = |value: &str, source: &str| (value.to_owned(), source.to_owned());
    let file = [("bufproxy.toml", "\napp-timeout = '3s'")];
    let platform = ("DYNO", "web.1");
    let variable = ("BUFPROXY_APP_TIMEOUT", "2s");
    let flag = ["--app-timeout", "1s"];
    assert_eq!(app_timeout(&flag, &[platform, variable], &file), both("1s", "flag"));
    assert_eq!(app_timeout(&[], &[platform, variable], &file), both("2s", "BUFPROXY_APP_TIMEOUT"));
    assert_eq!(app_timeout(&[], &[platform], &file), both("3s", "bufproxy.toml line 2"));
    assert_eq!(app_timeout(&[], &[platform], &[]), both("29s", "DYNO"));
    assert_eq!(app_timeout(&[], &[], &[]), both("60s", "default"));
    // Set to nothing, as compose files do with ${VARIABLE:-}, is not set.
    assert_eq!(app_timeout(&[], &[("BUFPROXY_APP_TIMEOUT", "")], &[]), both("60s", "default"));
}

#[test]
fn defaults_are_those_of_the_design() {
    let config = Config::for_tests();
    let seconds = Duration::from_secs;
    assert_eq!(config.listen, [Listen::Tcp("[::]:8080".parse().unwrap())]);
    assert_eq!(config.upstream, [UpstreamAddr::Unix("/tmp/app.sock".into())]);
    assert_eq!((config.threads, config.concurrency), (1, Concurrency::Off));
    assert_eq!((config.queue, config.queue_timeout), (2048, seconds(15)));
    assert_eq!((config.app_timeout, config.app_idle_timeout), (seconds(60), seconds(60)));
    assert_eq!((config.connect_retry, config.upstream_keepalive), (seconds(5), None));
    assert_eq!((config.header_timeout, config.body_timeout), (seconds(10), seconds(30)));
    assert_eq!((config.body_min_rate, config.send_timeout), (Some(256), seconds(50)));
    assert_eq!((config.send_min_rate, config.max_requests_per_client), (None, None));
    assert_eq!((config.client_keepalive, config.linger_timeout), (seconds(75), seconds(5)));
    assert_eq!((config.max_body, config.max_head, config.max_fields), (100 << 20, 32 << 10, 100));
    assert_eq!((config.max_connections, config.log_backlog), (10_000, 4 << 20));
    assert_eq!((config.body_memory, config.response_memory), (64 << 10, 256 << 10));
    assert_eq!((config.memory, config.spool_max), (32 << 20, 1 << 30));
    assert_eq!((config.response_spool_max, config.spool_dir), (256 << 20, PathBuf::from("/tmp")));
    assert_eq!((config.trust, config.forwarded), (TrustConfig::default(), Forwarded::Preserve));
    assert_eq!(
        (config.access_log, config.log_format),
        (LogDestination::Stdout, "l2met".to_owned())
    );
    assert_eq!((config.log_time, config.log_query), (true, LogQuery::On));
    assert_eq!((config.retry, config.error_page), (Retry::Idempotent, None));
    assert_eq!((config.open_port, config.ready_path_set), (OpenPort::Early, false));
    assert_eq!((config.ready_path, config.ready_host), ("/".to_owned(), "localhost".to_owned()));
    assert_eq!((config.boot_timeout, config.child_stop_signal), (seconds(60), 15));
    assert_eq!((config.drain_timeout, config.drain_delay), (seconds(8), Duration::ZERO));
    assert_eq!((config.idle_grace, config.admin), (seconds(2), None));
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn platforms_change_the_defaults_that_depend_on_them() {
    let seconds = Duration::from_secs;
    let on = |variable: &str, args: &[&str]| {
        let args = [UPSTREAM, args].concat();
        let c = run_with(&args, &[(variable, "1")], &[]);
        (
            c.app_timeout,
            c.client_keepalive,
            c.boot_timeout,
            c.drain_timeout,
            c.drain_delay,
            c.idle_grace,
        )
    };
    let s = |app, keepalive, boot, drain, delay, grace: u64| {
        let grace = Duration::from_millis(grace);
        (seconds(app), seconds(keepalive), seconds(boot), seconds(drain), seconds(delay), grace)
    };
    assert_eq!(on("DYNO", &[]), s(29, 95, 55, 25, 0, 5000));
    assert_eq!(on("FLY_APP_NAME", &[]), s(60, 75, 60, 4, 0, 1000));
    assert_eq!(on("K_SERVICE", &[]), s(60, 620, 60, 8, 0, 2000));
    assert_eq!(on("RENDER", &[]), s(60, 150, 60, 25, 0, 5000));
    assert_eq!(on("ECS_CONTAINER_METADATA_URI_V4", &[]), s(60, 75, 60, 25, 0, 5000));
    assert_eq!(on("KUBERNETES_SERVICE_HOST", &[]), s(60, 75, 60, 25, 5, 5000));
    assert_eq!(on("OTHER", &["--trust", "gcp"]), s(60, 620, 60, 8, 0, 2000));
    // Derived from each other, defaults never contradict.
    let short = ["--drain-timeout", "6s"];
    let (.., delay, grace) = on("KUBERNETES_SERVICE_HOST", &short);
    assert_eq!((delay, grace), (Duration::from_millis(1500), Duration::from_millis(1500)));

    let heroku = run_with(UPSTREAM, &[("DYNO", "web.1"), ("PORT", "5000")], &[]);
    assert!(heroku.heroku && heroku.trust.any_peer && !heroku.log_time);
    assert_eq!(heroku.trust.presets, ["heroku"]);
    assert_eq!(heroku.listen, [Listen::Tcp("[::]:5000".parse().unwrap())]);
    let off = run_with(&[UPSTREAM, &["--trust", "off"]].concat(), &[("DYNO", "web.1")], &[]);
    assert_eq!(off.trust, TrustConfig::default());
    let elsewhere = run_with(UPSTREAM, &[("TMPDIR", "/var/tmp")], &[]);
    assert_eq!(elsewhere.spool_dir, Path::new("/var/tmp"));
}

#[test]
fn memory_is_a_share_of_the_cgroup() {
    let limited = |limit: &str| {
        let files = [("/proc/self/cgroup", "0::/\n"), ("/sys/fs/cgroup/memory.max", limit)];
        run_with(UPSTREAM, &[], &files).memory
    };
    assert_eq!(limited("536870912\n"), 32 << 20);
    assert_eq!(limited("268435456\n"), 16 << 20);
    assert_eq!(limited("268435457\n"), 16 << 20);
    assert_eq!(limited("4194304\n"), 1 << 20);
    assert_eq!(limited("max\n"), 32 << 20);
}

#[test]
fn limits_of_the_cgroup_are_told_at_start_and_by_check() {
    let files = [
        ("/proc/self/cgroup", "0::/\n"),
        ("/sys/fs/cgroup/memory.max", "536870912\n"),
        ("/sys/fs/cgroup/cpu.max", "150000 100000\n"),
    ];
    let said = |config: Config| (config.boot_line(&[]), config.warnings);
    let (line, warnings) = said(run_with(&[UPSTREAM, &["--threads", "2"]].concat(), &[], &files));
    assert!(line.contains(", memory 32m of 512m, cpu 1.5, spool"), "{line}");
    assert_eq!(warnings, [""; 0]);
    let (_, warnings) = said(run_with(&[UPSTREAM, &["--threads", "3"]].concat(), &[], &files));
    assert_eq!(
        warnings,
        ["--threads \"3\" is more than the cgroup's limit of 1.5 CPUs: they would wait for each \
          other, write 2"]
    );
    let cgroup = checked(UPSTREAM, &[], &files, "cgroup");
    assert_eq!(cgroup, ("memory 512m, cpu 1.5".to_owned(), "limits".to_owned()));
}

#[test]
fn connections_are_what_the_descriptors_carry() {
    let carried = |nofile: u64, args: &[&str]| {
        with_sources(&[UPSTREAM, args].concat(), &[], &[], |sources| {
            let sources = Sources {
                nofile,
                args: sources.args.clone(),
                env: BTreeMap::new(),
                private_socket: PathBuf::new(),
                ..*sources
            };
            match parse_args(&sources) {
                Ok(Invocation::Run(config)) => (config.max_connections, config.warnings),
                other => panic!("{other:?}"),
            }
        })
    };
    assert_eq!(carried(1024, &[]), (320, vec![]));
    assert_eq!(carried(64, &[]), (16, vec![]));
    assert_eq!(carried(u64::MAX, &[]), (10_000, vec![]));
    let warning = "--max-connections \"500\" is more than 1024 open files carry (3 each): 320";
    assert_eq!(carried(1024, &["--max-connections", "500"]), (500, vec![warning.to_owned()]));
}

#[test]
fn lists_come_from_repeated_flags_commas_and_arrays() {
    let expected = ["heroku", "cloudflare"];
    let by = |args: &[&str], env: &[(&str, &str)], files: &[(&str, &str)]| {
        run_with(&[UPSTREAM, args].concat(), env, files).trust.presets
    };
    assert_eq!(by(&["--trust", "heroku", "--trust=cloudflare"], &[], &[]), expected);
    assert_eq!(by(&["--trust", "heroku,cloudflare"], &[], &[]), expected);
    assert_eq!(by(&[], &[("BUFPROXY_TRUST", "heroku, cloudflare")], &[]), expected);
    assert_eq!(by(&[], &[], &[("bufproxy.toml", "trust = ['heroku', 'cloudflare']")]), expected);
    assert_eq!(by(&[], &[], &[("bufproxy.toml", "trust = 'heroku,cloudflare'")]), expected);
    assert!(by(&[], &[("DYNO", "web.1")], &[("bufproxy.toml", "trust = []")]).is_empty());
    // A template is one value, whatever is in it.
    let template = run(&[UPSTREAM, &["--log-format", "$status, $request"]].concat());
    assert_eq!(template.log_format, "$status, $request");
    assert_eq!(
        problems(&[UPSTREAM, &["--queue", "1", "--queue", "2"]].concat(), &[], &[]),
        ["--queue \"1, 2\" is given 2 times: write it once"]
    );
}

#[test]
fn file_values_may_be_numbers_and_booleans() {
    let text = "queue = 10_000\nmax-body = 4096\naccess-log = false\nlog-time = true\n";
    let config = run_with(UPSTREAM, &[("DYNO", "web.1")], &[("config/bufproxy.toml", text)]);
    assert_eq!((config.queue, config.max_body), (10_000, 4096));
    assert_eq!((config.access_log, config.log_time), (LogDestination::Off, true));
    assert_eq!(config.config_file, Some("config/bufproxy.toml".into()));
}

#[test]
fn the_file_is_the_one_that_is_named_or_the_first_that_exists() {
    let files = [
        ("bufproxy.toml", "queue = 1"),
        ("config/bufproxy.toml", "queue = 2"),
        ("/etc/bufproxy.toml", "queue = 3"),
    ];
    let queue = |args: &[&str], env: &[(&str, &str)], files: &[(&str, &str)]| {
        run_with(&[UPSTREAM, args].concat(), env, files).queue
    };
    assert_eq!(queue(&[], &[], &files), 1);
    assert_eq!(queue(&[], &[], &files[1..]), 2);
    assert_eq!(queue(&[], &[], &[("config", "a file of the app's")]), 2048);
    assert_eq!(queue(&["--config", "/etc/bufproxy.toml"], &[], &files), 3);
    assert_eq!(queue(&[], &[("BUFPROXY_CONFIG", "/etc/bufproxy.toml")], &files), 3);
    assert_eq!(
        problems(&[UPSTREAM, &["--config", "/etc/none.toml"]].concat(), &[], &files),
        [
            "--config \"/etc/none.toml\" cannot be read (entity not found): write a file as config/bufproxy.toml"
        ]
    );
}

#[test]
fn every_valid_file_is_taken() {
    for (name, text) in corpus("valid") {
        let files = [("bufproxy.toml", text.as_str())];
        let result = parse(&["--", "gunicorn", "app"], &[], &files);
        assert!(matches!(result, Ok(Invocation::Run(_))), "{name}: {result:?}");
    }
}

#[test]
fn every_invalid_file_gives_exactly_its_messages() {
    for (name, text) in corpus("invalid") {
        let expected: Vec<&str> =
            text.lines().map_while(|line| line.strip_prefix("# expect: ")).collect();
        assert!(!expected.is_empty(), "{name} says nothing of what to expect");
        let args = if text.contains("\nupstream = ") { &[] } else { UPSTREAM };
        let found = problems(args, &[], &[("bufproxy.toml", &text)]);
        assert_eq!(found, expected, "{name}");
    }
}

fn corpus(kind: &str) -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(kind);
    let files: Vec<(String, String)> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .map(|path| (path.display().to_string(), std::fs::read_to_string(&path).unwrap()))
        .collect();
    assert!(!files.is_empty(), "no files in {}", dir.display());
    files
}

#[test]
fn the_commented_file_holds_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/bufproxy.toml");
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(run_with(UPSTREAM, &[], &[("bufproxy.toml", &text)]).max_body, 100 << 20);
    let mut keys = 0;
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => {
                keys += 1;
                format!("{rest}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    assert_eq!(keys, options().count());
    let mut config = run_with(&[], &[], &[("bufproxy.toml", &uncommented)]);
    let default = run(UPSTREAM);
    // What is derived without being named is not in the file; what is named counts as set.
    config.config_file = None;
    config.warnings.clear();
    config.from.clone_from(&default.from);
    config.ready_path_set = false;
    config.idle_grace = default.idle_grace;
    assert_eq!(format!("{config:?}"), format!("{default:?}"));
}

#[test]
fn all_problems_are_told_at_once_with_their_places() {
    let found = problems(
        &["--max-head", "1kb", "--listen", ":99999"],
        &[("BUFPROXY_MAX_BODY", "100mb")],
        &[("bufproxy.toml", "# mine\nqueue-timeout = 15\nmax-feilds = 3\n")],
    );
    assert_eq!(
        found,
        [
            "bufproxy.toml line 3: \"max-feilds\" is not an option: did you mean max-fields?",
            "--listen \":99999\" has no valid port: write a port of 1 to 65535",
            "--queue-timeout \"15\" (from bufproxy.toml line 2) is not a duration: write 15s",
            "--max-body \"100mb\" (from BUFPROXY_MAX_BODY) is not a size: write 100m",
            "--max-head \"1kb\" is not a size: write 1k",
        ]
    );
    let error = ConfigError { problems: found };
    assert_eq!(error.to_string().lines().count(), 5);
    assert!(error.to_string().lines().all(|line| line.starts_with("bufproxy: error: ")));
}

#[test]
fn max_head_has_bounds() {
    assert_eq!(run(&["--upstream", "/a", "--max-head", "1m"]).max_head, 1 << 20);
    assert_eq!(run(&["--upstream", "/a", "--max-head", "1k"]).max_head, 1 << 10);
    for (args, problem) in [
        (["--max-head", "1048577"], "--max-head \"1048577\" is too large: write 1m at most"),
        (["--max-head", "4g"], "--max-head \"4g\" is too large: write 1m at most"),
        (["--max-head", "1023"], "--max-head \"1023\" is too small: write 1k at least"),
    ] {
        assert_eq!(problems(&[&["--upstream", "/a"][..], &args].concat(), &[], &[]), [problem]);
    }
}

#[test]
fn a_path_that_is_no_socket_is_refused() {
    let is = "is a directory, not a socket: write another path";
    assert_eq!(
        problems(&["--upstream", "/etc"], &[], &[]),
        [format!("--upstream \"unix:/etc\" {is}")]
    );
    let env = [("BUFPROXY_LISTEN", ":80,unix:/etc"), ("BUFPROXY_ADMIN", "unix:/a.sock")];
    let found = problems(UPSTREAM, &env, &[]);
    assert_eq!(found, [format!("--listen \"unix:/etc\" (from BUFPROXY_LISTEN) {is}")]);
}

#[test]
fn what_cannot_be_together_is_refused() {
    let one = |args: &[&str], expected: &str| {
        assert_eq!(problems(&[args, UPSTREAM].concat(), &[], &[]), [expected]);
    };
    one(
        &["--drain-delay", "9s"],
        "--drain-delay \"9s\" is too much for --drain-timeout \"8s\" (default), which contains it: \
         write less, or more for --drain-timeout",
    );
    one(
        &["--idle-grace", "10s", "--drain-timeout", "9s"],
        "--idle-grace \"10s\" is too much for --drain-timeout \"9s\", which contains it: write less, \
         or more for --drain-timeout",
    );
    one(
        &["--body-memory", "64m"],
        "--body-memory \"64m\" is too much for --memory \"32m\" (default), which is for all bodies \
         together: write less, or more for --memory",
    );
    one(
        &["--response-memory", "64m"],
        "--response-memory \"64m\" is too much for --memory \"32m\" (default), which is for all bodies \
         together: write less, or more for --memory",
    );
    one(
        &["--response-spool-max", "2g"],
        "--response-spool-max \"2g\" is too much for --spool-max \"1g\" (default), which is for all \
         bodies together: write less, or more for --spool-max",
    );
    one(
        &["--spool-max", "64m"],
        "--max-body \"100m\" (default) is too much for --spool-max \"64m\", where such a body is kept: \
         write less, or more for --spool-max",
    );
    one(
        &["--listen", ":80", "--listen", "[::]:80"],
        "--listen \"[::]:80\" is there twice: write it once",
    );
    one(UPSTREAM, "--upstream \"unix:/tmp/app.sock\" is there twice: write it once");
    one(&["--admin", ":8080"], "--admin \":8080\" is --listen, too: write another");
    one(
        &["--open-port", "ready"],
        "--open-port \"ready\" needs a wrapped command, of which nothing follows --: write early",
    );
    one(&["--listen", "off"], "--listen \"off\" is nowhere: write :8080");
    one(
        &["--listen", "unix:/tmp/app.sock"],
        "--upstream \"unix:/tmp/app.sock\" is --listen \"unix:/tmp/app.sock\", bufproxy itself: write \
         the address on which the app listens",
    );
    one(
        &["--upstream", "localhost:8080"],
        "--upstream \"localhost:8080\" is --listen \"[::]:8080\", bufproxy itself: write the address \
         on which the app listens",
    );
    one(
        &["--spool-dir", "/nowhere"],
        "--spool-dir \"/nowhere\" cannot be used (entity not found): write a directory that can be \
         written to, or --spool-max off",
    );
    one(
        &["--access-log", "/nowhere/access.log"],
        "--access-log \"/nowhere/access.log\" cannot be opened (entity not found): write a file that \
         can be written to, - or off",
    );
    one(
        &["--log-format", "$remot_addr"],
        "--log-format \"$remot_addr\" is not a format: there is no variable $remot_addr; did you mean \
         $remote_addr?",
    );
    run(&[UPSTREAM, &["--spool-dir", "/nowhere", "--spool-max", "off"]].concat());
    run(&[UPSTREAM, &["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]].concat());
    run(&["--listen", "127.0.0.1:80", "--upstream", "127.0.0.2:80"]);
    assert_eq!(
        problems(
            &[UPSTREAM, &["--memory", "1g"]].concat(),
            &[],
            &[("/proc/self/cgroup", "0::/\n"), ("/sys/fs/cgroup/memory.max", "536870912\n")],
        ),
        ["--memory \"1g\" is more than the cgroup's limit: write less than 512m"]
    );
}

#[test]
fn default_spool_dir_that_cannot_be_written_is_warned_of() {
    // An image without a /tmp, here by TMPDIR; what was typed is an error (above).
    let env = [("TMPDIR", "/nowhere")];
    let config = run_with(UPSTREAM, &env, &[]);
    assert_eq!(
        config.warnings,
        [
            "--spool-dir \"/nowhere\" (from TMPDIR) cannot be used (entity not found): bodies beyond \
          memory will be refused. Write a directory that can be written to, or --spool-max off"
        ]
    );
    assert_eq!((config.spool_max, config.response_spool_max), (0, 0));
    assert!(config.boot_line(&[]).contains(", memory 32m, spool off"), "{}", config.boot_line(&[]));
    let off = run_with(&[UPSTREAM, &["--spool-max", "off"]].concat(), &env, &[]);
    assert_eq!(off.warnings, [""; 0]);
}

#[test]
fn what_does_nothing_is_warned_of() {
    let warnings = |args: &[&str], env: &[(&str, &str)]| {
        run_with(&[UPSTREAM, args].concat(), env, &[]).warnings
    };
    assert_eq!(
        warnings(&["--ready-file", "/tmp/x"], &[]),
        ["--ready-file \"/tmp/x\" does nothing without a wrapped command"]
    );
    assert_eq!(
        warnings(&["--real-ip-header", "CF-Connecting-IP"], &[]),
        ["--real-ip-header \"CF-Connecting-IP\" does nothing without --trust"]
    );
    assert_eq!(
        warnings(&["--queue-timeout", "30s", "--app-timeout", "10s"], &[]),
        ["--queue-timeout \"30s\" is never reached: the queue counts in --app-timeout \"10s\""]
    );
    assert_eq!(warnings(&["--app-timeout", "10s"], &[]), [""; 0], "nobody asked for 15s");
    assert_eq!(
        warnings(&["--concurrency", "90", "--max-connections", "80"], &[]),
        ["concurrency 90 is never reached with --max-connections \"80\""]
    );
    let env = [
        ("BUFPROXY_MAX_BDY", "1m"),
        ("BUFPROXY_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("BUFPROXY_PORT", "tcp://10.0.0.1:8080"),
        ("BUFPROXY_SERVICE_HOST", "10.0.0.1"),
    ];
    assert_eq!(
        warnings(&[], &env),
        ["BUFPROXY_MAX_BDY in the environment is not an option: did you mean BUFPROXY_MAX_BODY?"]
    );
}

#[test]
fn command_lines_that_mean_something_else_are_explained() {
    let one = |args: &[&str], expected: &str| assert_eq!(problems(args, &[], &[]), [expected]);
    one(
        &["demo", "--upstream", "/a.sock"],
        "--upstream is not an option of this subcommand: it is one of bufproxy alone and of bufproxy check",
    );
    one(&["--max-bdy", "1m"], "--max-bdy is not an option: did you mean --max-body?");
    one(&["--max-body"], "--max-body has no value: write --max-body 10m");
    one(
        &["gunicorn", "app"],
        "\"gunicorn\" is not a subcommand (check, demo, drain, healthcheck or probe): write a command to wrap after --",
    );
    one(
        &["probe", "http://a/", "http://b/"],
        "\"http://b/\" is too much after bufproxy probe: bufproxy -h has what it takes",
    );
    one(&["check", "gunicorn"], "\"gunicorn\" is too much after bufproxy check: write it after --");
    one(&["chekc"], "\"chekc\" is not a subcommand: did you mean check?");
    one(&["help"], "\"help\" is not a subcommand: write bufproxy --help");
    one(&["--"], "no command follows --: write it, or leave out --");
    one(
        &["--", "--upstream", "/a", "--", "gunicorn"],
        "the command after -- begins with \"--upstream\": write options before --, the program after \
         it",
    );
    one(&["check", "demo"], "a subcommand comes first: write bufproxy demo [OPTIONS]");
    one(&["--queue", "1", "check"], "a subcommand comes first: write bufproxy check [OPTIONS]");
    one(
        &[],
        "--upstream is missing: write --upstream unix:/tmp/app.sock, or the host:port on which the \
         app listens",
    );
}

#[test]
fn everything_after_the_first_separator_is_the_command() {
    let config = run(&["--upstream", "/a", "--", "uv", "run", "--", "gunicorn", "-w", "3", "-h"]);
    assert_eq!(config.command, ["uv", "run", "--", "gunicorn", "-w", "3", "-h"]);
    assert_eq!(config.concurrency, Concurrency::Slots(3));
    assert_eq!(config.open_port, OpenPort::Ready);
}

#[test]
fn upstream_is_the_socket_of_a_wrapped_gunicorn() {
    let args = ["--", "gunicorn", "--bind", "unix:/run/app.sock", "app"];
    assert_eq!(run(&args).upstream, [UpstreamAddr::Unix("/run/app.sock".into())]);
    let expected = ("unix:/run/app.sock".to_owned(), "gunicorn's bind".to_owned());
    assert_eq!(checked(&args, &[], &[], "upstream"), expected);
    let args = ["--", "uvicorn", "--uds", "/run/app.sock", "app:app"];
    let config = run(&args);
    assert_eq!(config.upstream, [UpstreamAddr::Unix("/run/app.sock".into())]);
    assert!(!config.pass_socket && config.command.len() == 4);
}

#[test]
fn app_server_that_names_no_socket_is_passed_a_private_one() {
    let private = || [UpstreamAddr::Unix("/run/bufproxy-1/app.sock".into())];
    for (command, words) in [
        (&["gunicorn", "app"][..], 2),
        (&["gunicorn", "-b", ":8000", "app"], 4),
        (&["uvicorn", "app:app"], 4),
        (&["puma"], 2),
    ] {
        let config = run(&[&["--"], command].concat());
        assert_eq!(config.upstream, private(), "{command:?}");
        assert!(config.pass_socket && config.private_socket, "{command:?}");
        assert_eq!(config.command.len(), words, "{:?}", config.command);
    }
    let expected = ("on".to_owned(), "no socket is named".to_owned());
    assert_eq!(checked(&["--", "gunicorn", "app"], &[], &[], "pass-socket"), expected);

    let missing = |args: &[&str]| {
        let found = problems(args, &[], &[]);
        assert!(found[0].starts_with("--upstream is missing"), "{found:?}");
    };
    missing(&["--", "uv", "run", "gunicorn", "app"]);
    missing(&["--", "node", "app.js"]);
    missing(&["--pass-socket", "off", "--", "gunicorn", "app"]);

    // Asked for: any command, at a path of the user's choice.
    let config = run(&["--upstream", "/a.sock", "--pass-socket", "on", "--", "app"]);
    assert!(config.pass_socket && !config.private_socket);
    let one = |args: &[&str]| {
        let found = problems(args, &[], &[]);
        assert!(
            found.len() == 1 && found[0].starts_with("--pass-socket \"on\" needs"),
            "{found:?}"
        );
    };
    one(&["--upstream", "/a.sock", "--pass-socket", "on"]);
    one(&["--upstream", "localhost:8000", "--pass-socket", "on", "--", "app"]);
}

#[test]
fn boot_line_says_what_was_chosen_and_why() {
    let files = [
        ("config/bufproxy.toml", ""),
        ("/proc/self/cgroup", "4:memory:/\n"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
    ];
    let env = [("DYNO", "web.1"), ("PORT", "5000")];
    let gunicorn = ["--", "gunicorn", "-w", "4", "--bind", "unix:/tmp/app.sock", "app.wsgi"];
    assert_eq!(
        run_with(&gunicorn, &env, &files).boot_line(&["[::]:5000".to_owned()]),
        "bufproxy 0.1.0 listening on [::]:5000 in front of unix:/tmp/app.sock, concurrency 4 (gunicorn \
         sync, 4 workers), trust heroku, memory 32m of 512m, spool /tmp (disk, 1g), config \
         config/bufproxy.toml"
    );
    let sidecar = [
        "--upstream",
        "app:8000",
        "--upstream",
        "[::1]:1",
        "--concurrency=2",
        "--spool-dir=/dev/shm",
    ];
    assert_eq!(
        run(&sidecar).boot_line(&["127.0.0.1:1".to_owned(), "unix:/x".to_owned()]),
        "bufproxy 0.1.0 listening on 127.0.0.1:1 and unix:/x in front of app:8000 and [::1]:1, \
         concurrency 2, trust none, memory 32m, spool /dev/shm (memory, 1g)"
    );
}

#[test]
fn subcommands_have_their_own_invocations() {
    let admin = Listen::Tcp("127.0.0.1:9090".parse().unwrap());
    let asked = |args: &[&str], env: &[(&str, &str)], files: &[(&str, &str)]| match parse(
        &[&["healthcheck"], args].concat(),
        env,
        files,
    ) {
        Ok(Invocation::Healthcheck(healthcheck)) => healthcheck,
        other => panic!("{other:?}"),
    };
    let file = [("bufproxy.toml", "admin = '127.0.0.1:9090'\nqueue = 3")];
    let two = Duration::from_secs(2);
    for found in [
        asked(&["--admin", "127.0.0.1:9090"], &[], &[]),
        asked(&[], &[("BUFPROXY_ADMIN", "127.0.0.1:9090")], &[]),
        asked(&[], &[], &file),
    ] {
        assert_eq!(found, Healthcheck { admin: admin.clone(), timeout: two });
    }
    assert_eq!(asked(&["--timeout", "1s"], &[], &file).timeout, Duration::from_secs(1));
    assert_eq!(
        problems(&["healthcheck", "--timeout", "1"], &[], &file),
        ["--timeout \"1\" is not a duration: write 1s"]
    );
    assert_eq!(
        problems(&["healthcheck"], &[], &[]),
        ["healthcheck asks the admin listener: write --admin, or set BUFPROXY_ADMIN for both"]
    );
    assert!(matches!(parse(&["demo"], &[], &[]), Ok(Invocation::Demo)));
    assert!(
        matches!(parse(&["-V"], &[], &[]), Ok(Invocation::Version(text)) if text == "bufproxy 0.1.0\n")
    );
    assert!(matches!(parse(&["check", "--help"], &[], &[]), Ok(Invocation::Help(_))));
}

#[test]
fn drain_takes_the_admin_address_and_how_long_to_wait() {
    let admin = Listen::Unix("/a.sock".into());
    let drain = |args: &[&str]| match parse(&[&["drain"], args].concat(), &[], &[]) {
        Ok(Invocation::Drain(drain)) => drain,
        other => panic!("{other:?}"),
    };
    let seconds = Duration::from_secs;
    let plain = Drain { admin, wait: false, timeout: seconds(30) };
    assert_eq!(drain(&["--admin", "unix:/a.sock"]), plain);
    assert_eq!(
        drain(&["--admin", "unix:/a.sock", "--wait", "--timeout", "20s"]),
        Drain { wait: true, timeout: seconds(20), ..plain }
    );
    assert_eq!(
        problems(&["drain"], &[], &[]),
        ["drain asks the admin listener: write --admin, or set BUFPROXY_ADMIN for both"]
    );
}

#[test]
fn check_shows_every_option_and_the_warnings() {
    let args = ["check", "--upstream", "/a.sock", "--log-format", "$status $request"];
    let Ok(Invocation::Check(text)) = parse(&args, &[("BUFPROXY_X", "1")], &[]) else { panic!() };
    assert_eq!(text.lines().count(), table().len() + 2);
    assert!(
        text.contains("concurrency              off (no wrapped command to learn it from)"),
        "{text}"
    );
    assert!(text.ends_with("\nwarning: BUFPROXY_X in the environment is not an option\nok\n"));
    assert!(
        matches!(parse(&["check", "--queue", "0"], &[], &[]), Err(error) if error.problems.len() == 1)
    );
}

#[test]
fn error_page_is_read_at_start() {
    let args = [UPSTREAM, &["--error-page", "e.html"]].concat();
    assert_eq!(run_with(&args, &[], &[("e.html", "<p>")]).error_page, Some(b"<p>".to_vec()));
    assert_eq!(
        problems(&args, &[], &[]),
        ["--error-page \"e.html\" cannot be used (entity not found): write a readable file"]
    );
}

#[test]
fn the_table_is_sound() {
    for (index, opt) in table().iter().enumerate() {
        assert!(!table()[..index].iter().any(|other| other.name == opt.name), "{} twice", opt.name);
        assert!(opt.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'));
        // Kubernetes injects BUFPROXY_PORT and BUFPROXY_SERVICE_HOST.
        assert!(!opt.name.starts_with("port") && !opt.name.starts_with("service"));
        assert!(!opt.group.is_empty() && !opt.value.is_empty() && !opt.example.is_empty());
        assert!(!opt.short.ends_with('.') && opt.short.len() <= 80, "{}", opt.name);
        assert!(opt.long.ends_with('.'), "{}", opt.name);
        assert!(opt.default != opt.example || opt.name == "open-port");
    }
    // Options of a group stand together.
    let mut groups: Vec<&str> = table().iter().map(|opt| opt.group).collect();
    groups.dedup();
    let runs = groups.len();
    groups.sort_unstable();
    groups.dedup();
    assert_eq!(groups.len(), runs);
}
