//! The command line: clap's builder is fed from the table, and its errors are said in our own words.
//! Called by `config::parse_args`. Values stay text here; `resolve` parses them.

use std::ffi::OsString;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::resolve::{Flags, nearest};
use super::settings::{Opt, table};
use super::value::any_of;

/// What the command line asks for.
#[derive(Debug)]
pub(super) enum Typed {
    Run(Flags, Vec<OsString>),
    Check(Flags, Vec<OsString>),
    Demo,
    /// Flags, and `--timeout`.
    Healthcheck(Flags, String),
    /// Flags, `--timeout` and `--wait`.
    Drain(Flags, String, bool),
    /// URL, `--clients` and `--timeout`.
    Probe(String, String, String),
    Help(String),
    Version,
}

const SUBCOMMANDS: &[&str] = &["check", "demo", "drain", "healthcheck", "probe"];

const USAGE: &str = "bufproxy [OPTIONS] [-- COMMAND...]
       bufproxy check [OPTIONS] [-- COMMAND...]
       bufproxy healthcheck [--admin ADDRESS] [--timeout TIME]
       bufproxy drain [--admin ADDRESS] [--wait] [--timeout TIME]
       bufproxy demo
       bufproxy probe [--clients N] [--timeout TIME] URL";

const AFTER: &str = "\
An option NAME is also the variable BUFPROXY_NAME and a key of bufproxy.toml. The flag wins, then the \
variable, then the file. Sizes are 64k, 100m, 1g; times are 500ms, 30s, 5m. Several values: repeat the \
flag, or put commas between them. The default is in [ ].

Example:
  bufproxy --upstream unix:/tmp/app.sock -- gunicorn --bind unix:/tmp/app.sock app.wsgi";

/// Reads the arguments, program name not included.
pub(super) fn read(args: &[OsString]) -> Result<Typed, String> {
    let separated = args.iter().any(|arg| arg == "--");
    let matches = match command().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp => return Ok(Typed::Help(error.render().to_string())),
            ErrorKind::DisplayVersion => return Ok(Typed::Version),
            _ => return Err(explain(&error, args)),
        },
    };
    let wrapped = |matches: &ArgMatches| -> Result<Vec<OsString>, String> {
        let words: Vec<OsString> =
            matches.get_many("command").map(|words| words.cloned().collect()).unwrap_or_default();
        match words.first() {
            None if separated => Err("no command follows --: write it, or leave out --".to_owned()),
            Some(first) if first.to_string_lossy().starts_with('-') => Err(format!(
                "the command after -- begins with {first:?}: write options before --, the program after it"
            )),
            _ => Ok(words),
        }
    };
    match matches.subcommand() {
        None => Ok(Typed::Run(flags(&matches), wrapped(&matches)?)),
        Some(("check", check)) => Ok(Typed::Check(flags(check), wrapped(check)?)),
        Some(("healthcheck", healthcheck)) => {
            Ok(Typed::Healthcheck(flags(healthcheck), timeout(healthcheck, "2s")))
        }
        Some(("drain", drain)) => {
            Ok(Typed::Drain(flags(drain), timeout(drain, "30s"), drain.get_flag("wait")))
        }
        Some(("probe", probe)) => {
            let url = probe
                .get_one::<String>("url")
                .ok_or("probe has no URL: write http://localhost:8080/")?;
            let clients = probe.get_one::<String>("clients").map_or("50", |text| text);
            Ok(Typed::Probe(url.clone(), clients.to_owned(), timeout(probe, "5s")))
        }
        Some(_) => Ok(Typed::Demo),
    }
}

fn command() -> Command {
    let wrapped = || {
        Arg::new("command")
            .value_name("COMMAND")
            .last(true)
            .num_args(1..)
            .value_parser(clap::value_parser!(OsString))
            .hide(true)
    };
    let named = |names: &'static [&str]| {
        table().iter().filter(|opt| names.contains(&opt.name)).map(argument)
    };
    let timeout = Arg::new("timeout").long("timeout").value_name("TIME");
    Command::new("bufproxy")
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .version(env!("CARGO_PKG_VERSION"))
        .override_usage(USAGE)
        .after_help(AFTER)
        .term_width(100)
        .no_binary_name(true)
        .disable_help_subcommand(true)
        .args_conflicts_with_subcommands(true)
        .args(table().iter().map(argument))
        .arg(wrapped())
        .subcommand(
            Command::new("check")
                .about("Print what the configuration comes to, and where each value is from")
                .args(table().iter().map(argument))
                .arg(wrapped()),
        )
        .subcommand(
            Command::new("healthcheck")
                .about("Ask the admin listener of a running bufproxy; exit code 0 or 1")
                .args(named(&["admin", "config"]))
                .arg(timeout.clone().help("Longest wait for the answer [2s]")),
        )
        .subcommand(
            Command::new("drain")
                .about("Ask a running bufproxy to stop, as TERM does, over its admin listener")
                .args(named(&["admin", "config"]))
                .arg(
                    Arg::new("wait")
                        .long("wait")
                        .action(ArgAction::SetTrue)
                        .help("Return when it has ended; exit code 1 if it has not by --timeout"),
                )
                .arg(timeout.clone().help("Longest wait in all [30s]")),
        )
        .subcommand(Command::new("demo").about("Show what it does, with an app of its own"))
        .subcommand(
            Command::new("probe")
                .about("Ask your own site how it serves fast clients beside slow ones; exit code 0 or 1")
                .arg(Arg::new("url").value_name("URL").help("What the clients ask for, http://"))
                .arg(
                    Arg::new("clients")
                        .long("clients")
                        .value_name("N")
                        .help("Slow clients of each kind, 1000 at most [50]"),
                )
                .arg(timeout.help("Longest wait of a fast client [5s]")),
        )
}

fn argument(opt: &'static Opt) -> Arg {
    let default = opt.default_text();
    let short = match opt.default {
        "" => opt.short.to_owned(),
        _ => format!("{} [{default}]", opt.short),
    };
    let long = format!("{}\n\n{}\n\nDefault: {default}", opt.short, opt.long);
    Arg::new(opt.name)
        .long(opt.name)
        .visible_aliases(opt.alias)
        .value_name(opt.value)
        .help_heading(opt.group)
        .help(StyledStr::from(short))
        .long_help(StyledStr::from(long))
        .allow_negative_numbers(true)
        // Given twice is an error of ours, which can name both values.
        .action(ArgAction::Append)
}

fn timeout(matches: &ArgMatches, default: &str) -> String {
    matches.get_one::<String>("timeout").map_or(default, |text| text).to_owned()
}

fn flags(matches: &ArgMatches) -> Flags {
    table()
        .iter()
        .filter_map(|opt| {
            let texts = matches.try_get_many::<String>(opt.name).ok()??;
            Some((opt.name, texts.cloned().collect()))
        })
        .collect()
}

/// clap's error in one line.
fn explain(error: &clap::Error, args: &[OsString]) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    };
    let argument = context(ContextKind::InvalidArg).or(context(ContextKind::InvalidSubcommand));
    let argument = argument.unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand if argument.starts_with('-') => {
            let names = table().iter().flat_map(|opt| [Some(opt.name), opt.alias]).flatten();
            let typed = argument.trim_start_matches('-');
            match nearest(typed, names) {
                Some(near) if near == typed => format!(
                    "{argument} is not an option of this subcommand: it is one of bufproxy alone and of \
                     bufproxy check"
                ),
                Some(near) => format!("{argument} is not an option: did you mean --{near}?"),
                None => format!("{argument} is not an option: bufproxy -h has them all"),
            }
        }
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand
            if SUBCOMMANDS.contains(&argument.as_str()) =>
        {
            format!("a subcommand comes first: write bufproxy {argument} [OPTIONS]")
        }
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand => {
            let first = args.first().and_then(|first| first.to_str());
            let subcommand = first.filter(|first| SUBCOMMANDS.contains(first));
            let near = nearest(&argument, SUBCOMMANDS.iter().copied());
            match (subcommand, near) {
                (Some("check"), _) => {
                    format!("{argument:?} is too much after bufproxy check: write it after --")
                }
                (Some(subcommand), _) => format!(
                    "{argument:?} is too much after bufproxy {subcommand}: bufproxy -h has what it takes"
                ),
                _ if argument == "help" => {
                    format!("{argument:?} is not a subcommand: write bufproxy --help")
                }
                (None, Some(near)) => {
                    format!("{argument:?} is not a subcommand: did you mean {near}?")
                }
                (None, None) => format!(
                    "{argument:?} is not a subcommand ({}): write a command to wrap after --",
                    any_of(SUBCOMMANDS)
                ),
            }
        }
        ErrorKind::InvalidUtf8 => "an argument is not UTF-8".to_owned(),
        ErrorKind::InvalidValue | ErrorKind::WrongNumberOfValues | ErrorKind::TooFewValues => {
            // clap's is `--max-body <SIZE>`.
            let flag = argument.split(' ').next().unwrap_or_default();
            let opt = table().iter().find(|opt| flag.strip_prefix("--") == Some(opt.name));
            let example = opt.map_or("VALUE", |opt| opt.example);
            format!("{flag} has no value: write {flag} {example}")
        }
        // What is left has no wording of its own: clap's first line.
        _ => {
            let text = error.render().to_string();
            let line = text.lines().next().unwrap_or_default();
            line.strip_prefix("error: ").unwrap_or(line).to_owned()
        }
    }
}
