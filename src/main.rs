//! Parse, run, print the error once, choose the exit code. Only here does the process end.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use bufproxy::access_log::diagnostics;
use bufproxy::{admin, demo};
use bufproxy::config::{self, Config, Invocation, Sources};
use bufproxy::lifecycle::{self, Failure};
use bufproxy::supervisor::exec;

/// Exit code of a configuration that cannot be used; nothing was started.
const BAD_CONFIGURATION: u8 = 2;
/// What the diagnostics may take at the end.
const FLUSH: Duration = Duration::from_secs(1);
/// How long the demo drives slow clients at each door.
const DEMO_WINDOW: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).peekable();
    if args.next_if(|first| first == exec::SUBCOMMAND).is_some() {
        let error = exec::run(args);
        return fail(&error, error.code());
    }
    match config::parse_args(&Sources::of_process()) {
        Ok(Invocation::Run(config)) => run(*config),
        Ok(Invocation::Check(text) | Invocation::Help(text) | Invocation::Version(text)) => {
            // Nobody reads it any more: nothing to say about that.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Invocation::Demo) => demo(),
        Ok(Invocation::Healthcheck(ask)) => match admin::healthcheck(&ask.admin, ask.timeout) {
            Ok(()) => ExitCode::SUCCESS,
            Err(what) => fail(&what, 1),
        },
        Err(error) => {
            eprint!("{error}");
            BAD_CONFIGURATION.into()
        }
    }
}

fn run(config: Config) -> ExitCode {
    with_diagnostics(config, lifecycle::run)
}

fn demo() -> ExitCode {
    // The defaults; the demo puts its own addresses in.
    let args = vec!["--upstream".into(), "unix:/demo".into()];
    let sources = Sources { args, env: Default::default(), ..Sources::of_process() };
    match config::parse_args(&sources) {
        Ok(Invocation::Run(config)) => with_diagnostics(*config, |c| demo::run(c, DEMO_WINDOW)),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => fail(&error, BAD_CONFIGURATION),
    }
}

fn with_diagnostics(config: Config, run: fn(Config) -> Result<u8, Failure>) -> ExitCode {
    let diagnostics = match diagnostics::init(config.log_level, std::io::stderr().is_terminal()) {
        Ok(diagnostics) => diagnostics,
        Err(e) => return fail(&format!("cannot start the diagnostics: {e}"), 1),
    };
    let result = run(config);
    diagnostics.flush(FLUSH);
    match result {
        Ok(code) => code.into(),
        Err(failure) => fail(&failure, failure.code),
    }
}

fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("bufproxy: error: {error}");
    code.into()
}
