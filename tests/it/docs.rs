//! The pages of docs/: what stands in a fenced block is run, or checked where it needs a machine of
//! somebody else's; options, defaults and links are those that exist. (docs/install.md has a test of
//! its own, tests/install.py.)

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::platforms::Invocation;
use crate::support::{Proxy, bufproxy, repository, venv};

/// Programs that need an account, a cluster or root: only the files that they are given are looked at.
const ELSEWHERE: &[&str] = &["docker", "fly", "gcloud", "heroku", "kubectl", "systemctl"];

const WSGI: &str = "\
def application(environ, start_response):
    start_response('200 OK', [('Content-Length', '6')])
    return [b'hello\\n']
";

/// A fenced block.
struct Block {
    language: String,
    text: String,
    section: String,
}

/// A page in docs/, or `../README.md`.
fn read(page: &str) -> String {
    fs::read_to_string(repository().join("docs").join(page)).unwrap()
}

fn blocks(page: &str) -> Vec<Block> {
    let (mut blocks, mut section, mut open) = (Vec::new(), String::new(), false);
    for line in read(page).lines() {
        if let Some(language) = line.strip_prefix("```") {
            open = !open;
            if open {
                let (language, section) = (language.to_owned(), section.clone());
                blocks.push(Block { language, text: String::new(), section });
            }
        } else if open {
            blocks.last_mut().unwrap().text += &format!("{line}\n");
        } else if let Some(title) = line.strip_prefix("## ") {
            section = title.to_owned();
        }
    }
    assert!(!open, "{page}: a block has no end");
    blocks
}

/// Runs and checks all blocks of a page, with the variables that its platform sets.
#[track_caller]
fn assert_page_works(page: &str, env: &[(&str, &str)]) {
    let blocks = blocks(page);
    let mut tried = 0;
    for block in &blocks {
        match block.language.as_str() {
            "sh" => tried += block.text.lines().map(|line| command(line, env)).count(),
            "Procfile" => {
                let line = block.text.strip_prefix("web: ").expect("a web process").trim();
                let conf = blocks
                    .iter()
                    .find(|other| other.language == "python" && other.section == block.section);
                serve(line, conf.map_or("", |conf| &conf.text), env);
                tried += 1;
            }
            // Run with the Procfile of its section.
            "python" => {
                assert!(block.text.starts_with("# gunicorn.conf.py\n"), "{page}: {}", block.text);
                let runs =
                    |other: &Block| other.language == "Procfile" && other.section == block.section;
                assert!(blocks.iter().any(runs), "{page}: nothing runs {}", block.text);
            }
            "toml" => {
                let dir = tempfile::tempdir().unwrap();
                let file = dir.path().join("bufproxy.toml");
                fs::write(&file, &block.text).unwrap();
                assert_right(&format!("bufproxy --config {}", file.display()), env);
                tried += 1;
            }
            "dockerfile" => {
                tried += block.text.lines().filter(|line| dockerfile(line, env)).count()
            }
            // What one comes from.
            "nginx" => {}
            language => panic!("{page}: nobody looks at {language}"),
        }
    }
    assert!(tried > 0, "{page} has no command");
}

/// `check` takes it, and has nothing to say.
#[track_caller]
fn assert_right(line: &str, env: &[(&str, &str)]) {
    let checked = Invocation::new(line, env).check();
    assert_eq!(checked.warnings, [""; 0], "{line}");
}

/// One line of a `sh` block.
#[track_caller]
fn command(line: &str, env: &[(&str, &str)]) {
    let words: Vec<&str> = line.split_whitespace().collect();
    variables(&words, env);
    match words[..] {
        ["bufproxy", subcommand @ ("healthcheck" | "drain"), ref rest @ ..] => {
            let dir = tempfile::tempdir().unwrap();
            // Nobody is there to answer, and the command line is right.
            let status = bufproxy(dir.path()).arg(subcommand).args(rest).output().unwrap().status;
            assert_eq!(status.code(), Some(1), "{line}");
        }
        ["bufproxy", ..] => {
            assert_right(line, env);
            if words.contains(&"gunicorn") && words[1] != "check" {
                serve(line, "", env);
            }
        }
        [program, ref rest @ ..] => {
            assert!(ELSEWHERE.contains(&program), "{line}: nobody runs it");
            for file in rest.iter().filter(|word| word.starts_with("config/")) {
                assert!(repository().join(file).exists(), "{line}");
            }
        }
        [] => panic!("an empty line"),
    }
}

/// `BUFPROXY_…=` among the words are options, with values that can be.
#[track_caller]
fn variables(words: &[&str], env: &[(&str, &str)]) {
    let dir = tempfile::tempdir().unwrap();
    let ours = words.iter().filter_map(|word| word.split_once('='));
    let ours = ours.filter(|(name, _)| name.starts_with("BUFPROXY_"));
    let ours = ours.map(|(name, value)| match name {
        "BUFPROXY_SPOOL_DIR" => (name, dir.path().to_str().unwrap()),
        _ => (name, value),
    });
    let env: Vec<_> = env.iter().copied().chain(ours).collect();
    assert_right("bufproxy --upstream /app.sock", &env);
}

/// A line of a Dockerfile; true if there was something of ours in it.
#[track_caller]
fn dockerfile(line: &str, env: &[(&str, &str)]) -> bool {
    variables(&line.split(' ').collect::<Vec<_>>(), env);
    let Some((_, list)) = line.split_once("CMD ") else { return false };
    let words: Vec<String> = serde_json::from_str(list).unwrap_or_else(|e| panic!("{line}: {e}"));
    let environment = [env, &[("BUFPROXY_ADMIN", "unix:/nowhere/admin.sock")]].concat();
    if words[1] == "healthcheck" {
        let dir = tempfile::tempdir().unwrap();
        let mut asks = bufproxy(dir.path());
        asks.args(&words[1..]).envs(environment);
        assert_eq!(asks.output().unwrap().status.code(), Some(1), "{line}");
    } else {
        command(&words.join(" "), env);
    }
    true
}

/// Runs the line as a platform does, with real gunicorn, this `gunicorn.conf.py` and an app; a request
/// goes through it, and TERM ends it. What it names below /tmp and /run is in the test's directory.
#[track_caller]
fn serve(line: &str, conf: &str, env: &[(&str, &str)]) {
    let dir = tempfile::tempdir().unwrap();
    let here = |text: &str| {
        let below = format!("{}/", dir.path().display());
        ["/tmp/", "/run/bufproxy/", "/run/app/"]
            .iter()
            .fold(text.to_owned(), |text, place| text.replace(place, &below))
            .replace(":8000", "127.0.0.1:0")
    };
    let bin = dir.path().join("bin");
    fs::create_dir_all(dir.path().join("app")).unwrap();
    fs::create_dir(&bin).unwrap();
    fs::write(dir.path().join("app/wsgi.py"), WSGI).unwrap();
    if !conf.is_empty() {
        fs::write(dir.path().join("gunicorn.conf.py"), here(conf)).unwrap();
    }
    // As the buildpack leaves them.
    let script = fs::read_to_string(repository().join("buildpack/start-nginx")).unwrap();
    fs::write(bin.join("start-nginx"), here(&script)).unwrap();
    fs::set_permissions(bin.join("start-nginx"), fs::Permissions::from_mode(0o755)).unwrap();
    let built = bufproxy(dir.path());
    std::os::unix::fs::symlink(built.get_program(), bin.join("bufproxy")).unwrap();

    let path = format!("{}:{}", bin.display(), venv().display());
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("exec {}", here(line))).current_dir(dir.path());
    shell.env_clear().envs(env.iter().copied()).env("PORT", "0").env("TMPDIR", dir.path());
    shell.env("PATH", format!("{path}:{}", std::env::var("PATH").unwrap()));
    shell.env("PYTHONDONTWRITEBYTECODE", "1");
    let proxy = Proxy::spawn(shell, dir);
    let open = proxy.stderr.find(1, Duration::from_secs(60), |line| line.contains("port open"));
    assert!(open.is_some(), "{line}: {:#?}", proxy.stderr.seen());
    let said = proxy.stderr.seen();
    assert!(!said.iter().any(|said| said.contains("warning: ")), "{line}: {said:#?}");
    let mut client = proxy.connect();
    client.get("/");
    assert_eq!(client.response().text(), "hello\n", "{line}");
    drop(client);
    proxy.wait_workers(workers(&said[0], env));
    let exit = proxy.stop();
    assert_eq!(exit.code, 0, "{line}: {exit:#?}");
}

/// How many gunicorn has: by the boot line, `(gunicorn sync, 2 workers`, else by the environment.
fn workers(boot: &str, env: &[(&str, &str)]) -> usize {
    let said =
        boot.split(" worker").next().and_then(|before| before.rsplit(' ').next()?.parse().ok());
    let variable = env.iter().find(|(name, _)| *name == "WEB_CONCURRENCY");
    said.or_else(|| variable?.1.parse().ok()).expect("a number of workers")
}

/// As a dyno of a Python app has them, with the one that heroku.md says.
const HEROKU: &[(&str, &str)] = &[
    ("DYNO", "web.1"),
    ("PORT", "5000"),
    ("WEB_CONCURRENCY", "2"),
    ("FORWARDED_ALLOW_IPS", "*"),
    ("GUNICORN_CMD_ARGS", "--log-level info"),
];

#[test]
fn heroku_page_works() {
    assert_page_works("heroku.md", HEROKU);
}

#[test]
fn nginx_buildpack_page_works() {
    assert_page_works("migrate-from-nginx-buildpack.md", HEROKU);
}

#[test]
fn nginx_page_works() {
    assert_page_works("migrate-from-nginx.md", &[]);
}

#[test]
fn docker_page_works() {
    assert_page_works("docker.md", &[]);
}

#[test]
fn kubernetes_page_works() {
    assert_page_works("kubernetes.md", &[("KUBERNETES_SERVICE_HOST", "10.96.0.1")]);
}

#[test]
fn systemd_page_works() {
    assert_page_works("systemd.md", &[]);
}

#[test]
fn fly_page_works() {
    assert_page_works("fly.md", &[("FLY_APP_NAME", "my-app"), ("PORT", "8080")]);
}

#[test]
fn render_page_works() {
    assert_page_works("render.md", &[("RENDER", "true"), ("PORT", "10000")]);
}

#[test]
fn cloud_run_page_works() {
    assert_page_works("cloud-run.md", &[("K_SERVICE", "web"), ("PORT", "8080")]);
}

/// Every option and its default, as `config/bufproxy.toml` has them.
fn defaults() -> BTreeMap<String, String> {
    let file = fs::read_to_string(repository().join("config/bufproxy.toml")).unwrap();
    let lines = file.lines().filter_map(|line| line.strip_prefix('#')?.split_once(" = "));
    lines.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())).collect()
}

#[test]
fn directive_map_names_options_and_their_defaults() {
    let defaults = defaults();
    let mut rows = 0;
    let page = read("migrate-from-nginx.md");
    let (_, map) = page.split_once("## Directives").unwrap();
    for row in map.lines().filter(|line| line.starts_with("| `")) {
        let [_, _, ours, _] =
            row.split(" | ").flat_map(|cell| cell.split('|')).collect::<Vec<_>>()[..]
        else {
            panic!("{row}")
        };
        rows += 1;
        if ours.starts_with("not here") || ours.starts_with("always") {
            continue;
        }
        // `name` (default), and what follows up to the next name.
        for part in ours.split('`').collect::<Vec<_>>()[1..].chunks(2) {
            let (name, rest) = (part[0], part.get(1).copied().unwrap_or_default());
            let Some(default) = defaults.get(name) else {
                let a_value = ["append", "combined", "log_format", "ALLOWED_HOSTS"].contains(&name);
                let a_default = name.starts_with('[') || name.starts_with('/') || name == "-";
                assert!(a_value || a_default, "{name} is no option: {row}");
                continue;
            };
            let Some(said) = rest.strip_prefix(" (") else { continue };
            let said = said.split([')', ':', ',', ' ']).next().unwrap();
            // `listen` has a condition and `concurrency` depends on the app.
            let known = said.is_empty() || said == "gunicorn's" || said == default;
            assert!(known, "{name} is {default}, not {said}: {row}");
        }
    }
    assert!(rows > 30, "{rows} rows");
}

/// Every Rust file below these directories of the repository: its name and its text.
fn sources(directories: &[&str]) -> Vec<(PathBuf, String)> {
    let mut open: Vec<_> = directories.iter().map(|dir| repository().join(dir)).collect();
    let mut sources = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            sources.push((path, text));
        }
    }
    sources
}

#[test]
fn table_of_http_rules_is_whole() {
    let page = read("http.md");
    let mut said = Vec::new();
    let all = sources(&["src", "tests/it"]);
    for row in page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| rule |")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [rule, what, tests] = cells[..] else { panic!("{row}") };
        assert!(!what.is_empty(), "{row}");
        said.push(rule.trim_matches('`'));
        for test in tests.split(", ") {
            let test = test.strip_prefix('`').and_then(|test| test.strip_suffix('`'));
            let test = format!("#[test]\nfn {}() {{", test.unwrap_or_else(|| panic!("{row}")));
            let is_there = |source: &str| source.replace("\n    fn ", "\nfn ").contains(&test);
            assert!(all.iter().any(|(_, source)| is_there(source)), "no test as in {row}");
        }
    }
    // Each text that a violation can have.
    let mut rules = 0;
    for (path, source) in sources(&["src/http1", "src/upstream"]) {
        if path.ends_with("tests.rs") {
            continue;
        }
        let (code, _) = source.split_once("#[cfg(test)]").unwrap_or((&source, ""));
        let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        for text in code.flat_map(|line| line.split('"').skip(1).step_by(2)) {
            if text.contains("RFC 9") {
                assert!(said.contains(&text), "docs/http.md has no row for {text}");
                rules += 1;
            }
        }
    }
    assert!(rules > 40, "{rules} rules");
}

#[test]
fn readme_says_what_can_be_typed() {
    // Programs that the commands of the README begin with; those with files are looked at below.
    const PROGRAMS: &[&str] = &["bufproxy", "cargo", "curl", "docker", "heroku", "maturin", "pip"];
    let mut tried = 0;
    for block in blocks("../README.md").iter().filter(|block| block.language == "sh") {
        for line in block.text.lines() {
            // As a user of the repository, or of the binary.
            let line = line.split("  ").next().unwrap().replace("cargo run -- ", "bufproxy ");
            let mut words = line.split(' ').skip_while(|word| word.starts_with("RUSTFLAGS="));
            let program = words.find(|word| !word.contains('=') && !word.contains('"')).unwrap();
            assert!(PROGRAMS.contains(&program), "{line}: nobody knows {program}");
            for file in line.split(' ').filter(|word| word.starts_with("config/")) {
                assert!(repository().join(file).exists(), "{line}");
            }
            if program == "bufproxy" && line != "bufproxy demo" {
                assert_right(&line, &[]);
                tried += 1;
            }
        }
    }
    let procfile = blocks("../README.md").into_iter().find(|block| block.text.starts_with("web: "));
    let line = procfile.unwrap().text.replace("web: bin/", "");
    assert_right(line.trim(), HEROKU);
    assert!(tried > 0);

    let defaults = defaults();
    let page = read("../README.md");
    let (_, table) = page.split_once("\n## Options\n").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(rows.len() > 10, "{rows:#?}");
    for row in rows {
        let [_, names, said, _, _] = row.split('|').collect::<Vec<_>>()[..] else {
            panic!("{row}")
        };
        let code = |cell: &str| cell.split('`').skip(1).step_by(2).map(String::from).collect();
        let (names, said): (Vec<String>, Vec<String>) = (code(names), code(said));
        for name in &names {
            assert!(defaults.contains_key(name), "{name} is no option: {row}");
        }
        // Where each has one, and it is a plain value.
        if names.len() == said.len() && !["listen", "trust"].contains(&names[0].as_str()) {
            for (name, said) in names.iter().zip(&said) {
                assert_eq!(&defaults[name], said, "{name}: {row}");
            }
        }
    }
}

/// Figures in sentences, which `cargo bench -- plots` does not write.
#[test]
fn readme_has_the_figures_of_the_tables() {
    let table = |part: &str| -> Vec<Vec<String>> {
        let text = read(&format!("benchmarks/{part}.tsv"));
        let rows = text.lines().filter(|line| !line.starts_with('#'));
        rows.map(|row| row.split('\t').map(str::to_owned).collect()).collect()
    };
    let rescue = table("rescue");
    let memory = |who: &str| -> f64 {
        let row = rescue.iter().find(|row| row[0].starts_with(who)).unwrap();
        row.last().unwrap().parse().unwrap()
    };
    let overload = table("overload");
    let under = |who: &str| {
        let mut rows = overload.iter();
        rows.find(|row| row[0] == "100 ms, 3 times" && row[2] == who).unwrap()
    };
    let (nginx, ours) = (under("nginx"), under("bufproxy"));
    let page = read("../README.md").split_whitespace().collect::<Vec<_>>().join(" ");
    for said in [
        format!(
            "bufproxy and nginx take {:.0} and {:.0} MiB for it, Caddy {:.1} GiB, waitress {:.0} MiB",
            memory("bufproxy"),
            memory("nginx"),
            memory("Caddy") / 1024.0,
            memory("waitress")
        ),
        format!(
            "it answered in time {} of what the workers can do in 10 s, bufproxy {}",
            nginx[3], ours[3]
        ),
        format!("needed {:.0} s more before the next answer", nginx[6].parse::<f64>().unwrap()),
    ] {
        assert!(page.contains(&said), "README.md, by docs/benchmarks: {said}");
    }
}

#[test]
fn links_lead_somewhere() {
    let mut links = 0;
    let pages = fs::read_dir(repository().join("docs")).unwrap().map(|page| page.unwrap().path());
    for page in pages.chain(["README.md", "benches/README.md"].map(|page| repository().join(page)))
    {
        if page.extension().is_none_or(|kind| kind != "md") {
            continue;
        }
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            if file.contains("://") {
                continue;
            }
            let target = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: {link}", page.display());
            assert!(anchor.is_empty() || has_title(&target, anchor), "{}: {link}", page.display());
            links += 1;
        }
    }
    assert!(links > 20, "{links} links");
}

fn has_title(page: &Path, anchor: &str) -> bool {
    let text = fs::read_to_string(page).unwrap();
    let titles = text.lines().filter_map(|line| line.trim_start_matches('#').strip_prefix(' '));
    let as_anchor = |title: &str| {
        let kept = |c: &char| c.is_ascii_alphanumeric() || " -_".contains(*c);
        title.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
    };
    titles.map(as_anchor).any(|title| title == anchor)
}
