//! Parse, run, print the error once, choose the exit code. Only here does the process end.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use bufproxy::config::{self, Invocation, Sources};
use bufproxy::lifecycle::Failure;
use bufproxy::supervisor::exec;
use bufproxy::{admin, demo, diagnostics, lifecycle};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).peekable();
    if args.next_if(|first| first == exec::SUBCOMMAND).is_some() {
        let error = exec::run(args);
        return fail(&error, error.code());
    }
    let invocation = match config::parse_args(&Sources::of_process()) {
        Ok(invocation) => invocation,
        Err(error) => {
            // It has a line for each problem.
            eprint!("{error}");
            return ExitCode::from(2);
        }
    };
    let result = match invocation {
        Invocation::Run(config) => {
            diagnostics::start(config.log_level);
            lifecycle::run(*config)
        }
        Invocation::Demo => demo::run(demo::WINDOW),
        Invocation::Healthcheck(check) => admin::healthcheck(&check.admin, check.timeout)
            .map(|()| 0)
            .map_err(|message| Failure { message, code: 1 }),
        Invocation::Check(text) | Invocation::Help(text) | Invocation::Version(text) => {
            // A reader that has seen enough (`| head`) is no error.
            let _ = io::stdout().write_all(text.as_bytes());
            Ok(0)
        }
    };
    match result {
        Ok(code) => code.into(),
        Err(failure) => fail(&failure, failure.code),
    }
}

fn fail(error: &dyn Display, code: u8) -> ExitCode {
    eprintln!("bufproxy: error: {error}");
    code.into()
}
