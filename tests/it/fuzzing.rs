//! The harness of the fuzz targets (fuzz/) over the committed corpus and some mutants of it, the same
//! in every run. Long runs are libFuzzer's: `.ci/full`.

use std::fs;

use crate::support::{mutate, repository};

pub(crate) mod harness;

/// All inputs of a target, and so many mutants of each.
fn run(name: &str, mutants: usize) {
    let (_, target) = harness::TARGETS.iter().find(|(target, _)| *target == name).unwrap();
    let mut files: Vec<_> = fs::read_dir(repository().join("tests/corpus").join(name))
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 10, "{name}: {} files", files.len());
    let corpus: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    let mut random = fastrand::Rng::with_seed(1);
    for input in &corpus {
        try_out(*target, input);
        for _ in 0..mutants {
            try_out(*target, &mutate(input, &corpus, &mut random));
        }
    }
}

/// Says which input it was.
fn try_out(target: harness::Target, input: &[u8]) {
    struct Shown<'a>(&'a [u8]);
    impl Drop for Shown<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("the input was \"{}\"", self.0.escape_ascii());
            }
        }
    }
    let _shown = Shown(input);
    target(input);
}

#[test]
fn no_request_head_breaks_a_promise() {
    run("request_head", 200);
}

#[test]
fn no_response_head_breaks_a_promise() {
    run("response_head", 200);
}

#[test]
fn no_chunked_body_breaks_a_promise() {
    run("chunked", 200);
}

#[test]
fn no_log_template_breaks_a_promise() {
    run("log_template", 200);
}

#[test]
fn no_forwarded_field_breaks_a_promise() {
    run("forwarded", 200);
}

#[test]
fn no_option_value_breaks_a_promise() {
    run("option_values", 5);
}

#[test]
fn every_target_is_run_here_and_by_the_long_run() {
    let here = include_str!("fuzzing.rs");
    let manifest = fs::read_to_string(repository().join("fuzz/Cargo.toml")).unwrap();
    let long_run = fs::read_to_string(repository().join(".ci/full")).unwrap();
    for (name, _) in harness::TARGETS {
        assert!(here.contains(&format!("run(\"{name}\", ")), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        assert!(long_run.contains(name), "{name}");
    }
}
