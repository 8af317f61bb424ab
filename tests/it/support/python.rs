//! Real app servers: a virtual environment under target/, made on first use.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository's root.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The directory of programs of a virtual environment with gunicorn, uvicorn and PyYAML in it
/// (`target/venv/bin`).
/// The first test that asks makes it, the others wait at its lock; a stamp says that it is whole.
pub(crate) fn venv() -> PathBuf {
    let venv = repository().join("target/venv");
    let stamp = venv.join("gunicorn-uvicorn-pyyaml.stamp");
    fs::create_dir_all(repository().join("target")).unwrap();
    let lock = File::create(repository().join("target/venv.lock")).unwrap();
    lock.lock().unwrap();
    if !stamp.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
        run(Command::new(venv.join("bin/pip"))
            .args(["install", "--quiet", "gunicorn", "uvicorn", "pyyaml"]));
        File::create(stamp).unwrap();
    }
    venv.join("bin")
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(status.success(), "{command:?}: {status}");
}
