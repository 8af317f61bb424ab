//! `bufproxy check`: the effective configuration, one line an option, with where each value came
//! from. Called by `config::parse_args`; pure.

use super::resolve::{Resolved, Source};
use super::{Concurrency, Config};

/// The whole text, `ok` at its end.
pub(super) fn text(resolved: &Resolved) -> String {
    let lines: Vec<[String; 3]> = resolved
        .given
        .iter()
        .map(|(opt, given)| {
            let (value, source) = match opt.name {
                "config" => config_file(&resolved.config, &given.source),
                "concurrency" => (concurrency(&resolved.config), given.source.to_string()),
                _ => (given.texts.join(", "), given.source.to_string()),
            };
            [opt.name.to_owned(), value, source]
        })
        .collect();
    let width = |column: usize| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default()
    };
    let (name_width, value_width) = (width(0), width(1).min(32));
    let mut text = String::new();
    for [name, value, source] in &lines {
        text += &format!("{name:name_width$}  {value:value_width$}  {source}\n");
    }
    for warning in &resolved.config.warnings {
        text += &format!("warning: {warning}\n");
    }
    text + "ok\n"
}

fn config_file(config: &Config, source: &Source) -> (String, String) {
    match &config.config_file {
        Some(file) => (file.display().to_string(), source.to_string()),
        None => ("none".to_owned(), source.to_string()),
    }
}

/// The number behind `auto`, too.
pub(super) fn concurrency(config: &Config) -> String {
    let number = match config.concurrency {
        Concurrency::Slots(slots) => slots.to_string(),
        Concurrency::Off => "off".to_owned(),
    };
    match config.concurrency_reason.as_str() {
        "" => number,
        reason => format!("{number} ({reason})"),
    }
}
