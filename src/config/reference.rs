//! The table as documentation: `docs/options.md`, `config/bufproxy.toml` and the short help. A test
//! compares the committed files with what the table gives, so that they cannot rot;
//! `BLESS=1 cargo test config` writes them.

use std::path::Path;

use super::settings::{Opt, table};
use super::{Invocation, tests};

#[test]
fn committed_reference_files_are_what_the_table_gives() {
    let help = match tests::parse(&["-h"], &[], &[]) {
        Ok(Invocation::Help(text)) => text,
        other => panic!("{other:?}"),
    };
    compare("docs/options.md", &options_md());
    compare("config/bufproxy.toml", &bufproxy_toml());
    compare("src/config/help.txt", &help);
}

fn compare(file: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, expected).unwrap_or_else(|e| panic!("{file}: {e}"));
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let different = committed.lines().zip(expected.lines()).find(|(is, should)| is != should);
    assert!(committed == expected, "BLESS=1 rewrites {file}; first difference: {different:?}");
}

/// The groups, in the table's order, each with its options.
fn groups() -> impl Iterator<Item = (&'static str, &'static [Opt])> {
    table().chunk_by(|a, b| a.group == b.group).map(|options| (options[0].group, options))
}

fn options_md() -> String {
    let mut text = "\
# Options

Each option is a flag (`--max-body 10m`), a variable (`BUFPROXY_MAX_BODY=10m`) and a key of
`bufproxy.toml` (`max-body = \"10m\"`). The flag wins, then the variable, then the file, then what the
platform says, then the default. `bufproxy check` prints what it comes to, and where each value is from.

Sizes are `64k`, `100m`, `1g` (powers of 1024), times are `500ms`, `30s`, `5m`, `1h`; `off` is off. Options
that may have several values take the flag several times, commas, or a list in the file.

This page is made from `src/config/settings.rs`.
"
    .to_owned();
    for (group, options) in groups() {
        text += &format!("\n## {group}\n\n| option | default | what, and why |\n|---|---|---|\n");
        for opt in options {
            let alias = opt.alias.map_or(String::new(), |alias| format!(", `--{alias}`"));
            let several = if opt.list { " (several)" } else { "" };
            let default = match (opt.default, opt.note) {
                ("", note) => note.to_owned(),
                (default, "") => format!("`{default}`"),
                (default, note) => format!("`{default}`; {note}"),
            };
            let row = format!(
                "`--{} {}`{alias}{several} | {default} | {}. {}",
                opt.name, opt.value, opt.short, opt.long
            );
            // The cells hold no ` | ` but the two that are meant.
            let row = row.replace('|', "\\|").replace(" \\| ", " | ");
            text += &format!("| {row} |\n");
        }
    }
    text
}

fn bufproxy_toml() -> String {
    let mut text = "\
# bufproxy.toml: every option with its default. Remove the # before a name to set it.
# Flags and BUFPROXY_ variables win over this file; `bufproxy check` prints what it comes to.
# The reasons are in docs/options.md.
"
    .to_owned();
    for (group, options) in groups() {
        text += &format!("\n\n# ---- {group} ----\n");
        for opt in options.iter().filter(|opt| opt.name != "config") {
            let value = if opt.default.is_empty() { opt.example } else { opt.default };
            let value = match value.parse::<u64>() {
                Ok(number) => number.to_string(),
                Err(_) => format!("{value:?}"),
            };
            text += &format!("\n# {}.\n", opt.short);
            if !opt.note.is_empty() {
                let note = opt.note[..1].to_uppercase() + &opt.note[1..];
                text += &format!(
                    "# Default: {}{note}.\n",
                    if opt.default.is_empty() { "" } else { "this; " }
                );
            }
            text += &format!("#{} = {value}\n", opt.name);
        }
    }
    text
}
