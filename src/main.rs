//! Parse, run, print the error once, choose the exit code. Only here does the process end.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use bufproxy::access_log::diagnostics;
use bufproxy::config::{self, Config, Invocation, Sources};
use bufproxy::lifecycle;
use bufproxy::supervisor::exec;

/// Exit code of a configuration that cannot be used; nothing was started.
const BAD_CONFIGURATION: u8 = 2;
/// What the diagnostics may take at the end.
const FLUSH: Duration = Duration::from_secs(1);

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
        Ok(Invocation::Demo) => ExitCode::SUCCESS,
        Ok(Invocation::Healthcheck(_)) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{error}");
            BAD_CONFIGURATION.into()
        }
    }
}

fn run(config: Config) -> ExitCode {
    let diagnostics = match diagnostics::init(config.log_level, std::io::stderr().is_terminal()) {
        Ok(diagnostics) => diagnostics,
        Err(e) => return fail(&format!("cannot start the diagnostics: {e}"), 1),
    };
    let result = lifecycle::run(config);
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
