//! `bufproxy check`: the effective configuration, one line an option, with where each value came
//! from. Called by `config::parse_args`; pure.

use super::resolve::Resolved;
use super::{Concurrency, Config};

/// The whole text, `ok` at its end.
pub(super) fn text(resolved: &Resolved) -> String {
    let config = &resolved.config;
    let lines: Vec<[String; 3]> = resolved
        .given
        .iter()
        .map(|(opt, given)| {
            let value = match (opt.name, &config.config_file) {
                ("config", Some(file)) => file.display().to_string(),
                ("concurrency", _) => concurrency(config),
                _ if given.texts.is_empty() => "off".to_owned(),
                _ => given.texts.join(", "),
            };
            // A template may have line ends, a line of this text not.
            let value = value.replace(char::is_control, " ");
            [opt.name.to_owned(), value, given.source.to_string()]
        })
        .collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let (name_width, value_width) = (width(0).unwrap_or(0), width(1).unwrap_or(0).min(40));
    let mut text = String::new();
    for [name, value, source] in &lines {
        text += &format!("{name:name_width$}  {value:value_width$}  {source}\n");
    }
    let limits = config.cgroup.show();
    if !limits.is_empty() {
        text += &format!("{:name_width$}  {limits:value_width$}  limits\n", "cgroup");
    }
    for warning in &config.warnings {
        text += &format!("warning: {warning}\n");
    }
    text + "ok\n"
}

/// The number behind `auto`, too.
pub(super) fn concurrency(config: &Config) -> String {
    let number = match config.concurrency {
        Concurrency::Slots(slots) => slots.to_string(),
        Concurrency::Off if config.workers.is_some() => "auto".to_owned(),
        Concurrency::Off => "off".to_owned(),
    };
    match config.concurrency_reason.as_str() {
        "" => number,
        reason => format!("{number} ({reason})"),
    }
}
