//! Parse, run, print the error once, choose the exit code. Only here does the process end.

use std::process::ExitCode;

use bufproxy::supervisor::exec;
use bufproxy::{lifecycle, standin};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).peekable();
    if args.next_if(|first| first == exec::SUBCOMMAND).is_some() {
        let error = exec::run(args);
        return fail(&error, error.code());
    }
    tracing_subscriber::fmt().with_writer(std::io::stderr).without_time().init();
    if args.next_if(|first| first == "demo").is_some() {
        let _ = bufproxy::demo::run(standin::defaults(), std::time::Duration::from_secs(2));
        return ExitCode::SUCCESS;
    }
    match lifecycle::run(standin::parse_args(args)) {
        Ok(code) => code.into(),
        Err(failure) => fail(&failure, failure.code),
    }
}

fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("bufproxy: error: {error}");
    code.into()
}
