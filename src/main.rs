//! Parse, run, print the error once, choose the exit code. Only here does the process end.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use bufproxy::access_log::diagnostics::{self, Diagnostics};
use bufproxy::config::{self, Invocation, Sources};
use bufproxy::lifecycle::{self, Failure, Passed};
use bufproxy::supervisor::exec;
use bufproxy::{admin, demo, probe};
use tracing::Level;

/// What the diagnostics may take at the end.
const FLUSH: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == exec::SUBCOMMAND) {
        let error = exec::run(args);
        return fail(&error, error.code());
    }
    let passed = match Passed::take() {
        Ok(passed) => passed,
        Err(failure) => return fail(&failure, failure.code),
    };
    match config::parse_args(&Sources::of_process()) {
        Ok(Invocation::Run(config)) => {
            let level = config.log_level;
            with_diagnostics(level, |diagnostics| {
                lifecycle::run(*config, passed, diagnostics.stderr().clone())
            })
        }
        Ok(Invocation::Demo) => with_diagnostics(Level::INFO, |_| demo::run(demo::WINDOW)),
        Ok(Invocation::Healthcheck(check)) => match admin::healthcheck(&check.admin, check.timeout)
        {
            Ok(()) => ExitCode::SUCCESS,
            Err(problem) => fail(&problem, 1),
        },
        Ok(Invocation::Drain(drain)) => {
            match admin::drain(&drain.admin, drain.wait, drain.timeout) {
                Ok(()) => ExitCode::SUCCESS,
                Err(problem) => fail(&problem, 1),
            }
        }
        Ok(Invocation::Probe(site)) => match probe::run(&site) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(problem) => fail(&problem, 1),
        },
        Ok(Invocation::Check(text) | Invocation::Help(text) | Invocation::Version(text)) => {
            // Nobody reads it any more: nothing to say about that.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            // It has a line for each problem. Nobody may be there to read them.
            let _ = std::io::stderr().write_all(error.to_string().as_bytes());
            config::UNUSABLE.into()
        }
    }
}

fn with_diagnostics(
    level: Level,
    run: impl FnOnce(&Diagnostics) -> Result<u8, Failure>,
) -> ExitCode {
    let diagnostics = match diagnostics::init(level, std::io::stderr().is_terminal()) {
        Ok(diagnostics) => diagnostics,
        Err(e) => return fail(&format_args!("cannot start the diagnostics: {e}"), 1),
    };
    let code = run(&diagnostics).unwrap_or_else(|failure| {
        // A reader of stderr that is stuck must not hold the exit.
        tracing::error!("{failure}");
        failure.code
    });
    diagnostics.flush(FLUSH);
    code.into()
}

fn fail(error: &dyn Display, code: u8) -> ExitCode {
    // In one write: others write there, too.
    let line = format!("bufproxy: error: {error}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    code.into()
}
