//! The buildpack, driven as the platform drives it, and its slug, started as a dyno is.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::{Signal, kill_process_group};
use tempfile::TempDir;

use crate::support::{Proxy, bufproxy, free_port, repository, venv};

/// What people have who come from the nginx buildpacks.
const PROCFILE: &str = "web: bin/start-nginx gunicorn -c gunicorn.conf.py app.wsgi\n";
const GUNICORN_CONF: &str = "\
# gunicorn.conf.py (commonest public form)
def when_ready(server):
    # touch app-initialized when ready
    open('/tmp/app-initialized', 'w').close()
bind = 'unix:///tmp/nginx.socket'
workers = 4
";
const WSGI: &str = "\
def application(environ, start_response):
    start_response('200 OK', [('Content-Length', '6')])
    return [b'hello\\n']
";

/// Stands for the binary where only the scripts are looked at.
const BINARY: &str = "\
#!/bin/sh
if [ \"$1\" = --version ]; then echo bufproxy 9.9; else printf '%s\\n' \"$@\"; fi
";

/// An app on its way to a slug. Not in /tmp, which a dyno has for itself.
struct Build {
    dir: TempDir,
}

impl Build {
    fn new(procfile: &str) -> Build {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let build = Build { dir };
        for folder in ["the app", "cache", "env"] {
            fs::create_dir(build.path(folder)).unwrap();
        }
        // Compile writes into the buildpack, too.
        let copied = Command::new("cp")
            .arg("-a")
            .args([&repository().join("buildpack"), &build.path("buildpack")])
            .status();
        assert!(copied.unwrap().success());
        build.write("the app/Procfile", procfile);
        build
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Sets the config vars for this binary, under a URL of its own.
    fn bring(&self, binary: &Path) {
        self.write("env/BUFPROXY_URL", &format!("file://{}", binary.display()));
        self.write("env/BUFPROXY_SHA256", &sha256(binary));
    }

    fn run(&self, script: &str) -> Output {
        Command::new(self.path("buildpack/bin").join(script))
            .args(["the app", "cache", "env"].map(|folder| self.path(folder)))
            .output()
            .unwrap()
    }

    #[track_caller]
    fn compile(&self) -> String {
        let output = self.run("compile");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The message of a compile that fails; the slug has no binary then.
    #[track_caller]
    fn refusal(&self) -> String {
        let output = self.run("compile");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(!self.path("the app/bin/bufproxy").exists(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

fn sha256(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // A name with a space or a backslash has a \ before its sum.
    text.split(' ').next().unwrap().to_owned()
}

#[test]
fn buildpack_detects_apps_that_run_bufproxy() {
    for (procfile, detected) in [
        ("web: bufproxy -- gunicorn app.wsgi\n", true),
        (PROCFILE, true),
        ("web: gunicorn app.wsgi\n", false),
    ] {
        let build = Build::new(procfile);
        let output = build.run("detect");
        assert_eq!(output.status.success(), detected, "{procfile}");
        assert_eq!(output.stdout, if detected { &b"bufproxy\n"[..] } else { b"" });
    }
    let build = Build::new("");
    fs::remove_file(build.path("the app/Procfile")).unwrap();
    assert!(!build.run("detect").status.success());
    build.write("the app/vendor/bufproxy", BINARY);
    assert!(build.run("detect").status.success());
    assert_eq!(build.run("release").stdout, b"--- {}\n");
}

#[test]
fn buildpack_takes_the_binary_that_the_app_brings() {
    let build = Build::new(PROCFILE);
    let missing = build.refusal();
    assert!(missing.contains("no binary: commit vendor/bufproxy with"), "{missing}");

    build.write("the app/vendor/bufproxy", BINARY);
    assert!(build.refusal().contains("vendor/bufproxy.sha256 is missing"));
    build.write("the app/vendor/bufproxy.sha256", &format!("{}  bufproxy\n", "0".repeat(64)));
    assert!(build.refusal().contains("vendor/bufproxy has the SHA-256 "));

    let sum = sha256(&build.path("the app/vendor/bufproxy"));
    build.write("the app/vendor/bufproxy.sha256", &format!("{sum}  vendor/bufproxy\n"));
    let said = build.compile();
    assert_eq!(said, "-----> bufproxy: bufproxy 9.9, also as bin/start-nginx\n");
    let installed = build.path("the app/bin/bufproxy");
    assert_eq!(fs::metadata(&installed).unwrap().permissions().mode() & 0o777, 0o755);

    // For the buildpacks after it, as for the dyno, it is a command.
    let export = format!(". {}; bufproxy --version", build.path("buildpack/export").display());
    let output = Command::new("bash").args(["-c", &export]).output().unwrap();
    assert_eq!(output.stdout, b"bufproxy 9.9\n");
}

#[test]
fn buildpack_fetches_the_binary_once() {
    let build = Build::new(PROCFILE);
    build.write("binary", BINARY);
    build.bring(&build.path("binary"));
    assert!(build.compile().starts_with("-----> bufproxy: fetching file:///"));
    let first = sha256(&build.path("binary"));

    // The next build does not ask for it.
    fs::remove_file(build.path("binary")).unwrap();
    assert!(build.compile().starts_with("-----> bufproxy: from the cache\n"));

    // A new version takes the place of the old one.
    build.write("binary", &BINARY.replace("9.9", "10.0"));
    build.bring(&build.path("binary"));
    assert!(build.compile().contains("bufproxy 10.0"));
    assert!(!build.path("cache/bufproxy").join(first).exists());
}

#[test]
fn buildpack_installs_nothing_that_it_cannot_verify() {
    let build = Build::new(PROCFILE);
    build.write("binary", BINARY);
    let sum = sha256(&build.path("binary"));
    build.write("env/BUFPROXY_URL", &format!("file://{}", build.path("none").display()));
    assert!(build.refusal().contains("BUFPROXY_SHA256 is not set"));
    build.write("env/BUFPROXY_SHA256", "../../the-app");
    assert!(build.refusal().contains("is not a sum"));
    build.write("env/BUFPROXY_SHA256", &sum);
    assert!(build.refusal().contains("cannot fetch BUFPROXY_URL file://"));

    // Another file there, and then the right one: the first try has left nothing in the cache.
    build.bring(&build.path("binary"));
    build.write("binary", "something else");
    let refusal = build.refusal();
    assert!(refusal.contains(&format!(", not {sum}\n")), "{refusal}");
    build.write("binary", BINARY);
    assert!(build.compile().starts_with("-----> bufproxy: fetching "));
    // A cache that has gone bad is no reason to fail.
    build.write(&format!("cache/bufproxy/{sum}"), "something else");
    assert!(build.compile().starts_with("-----> bufproxy: fetching "));

    fs::remove_file(build.path("the app/bin/bufproxy")).unwrap();
    build.write("the app/vendor/bufproxy", BINARY);
    assert!(build.refusal().contains("both vendor/bufproxy and BUFPROXY_URL"));
}

#[test]
fn start_nginx_runs_the_command_behind_bufproxy() {
    let build = Build::new(PROCFILE);
    build.write("binary", BINARY);
    build.bring(&build.path("binary"));
    build.compile();
    let upstream = ["--upstream", "unix:/tmp/nginx.socket"];
    for (typed, options) in [
        (&["gunicorn", "two words"][..], ["--ready-file", "/tmp/app-initialized"]),
        // Without waiting for the app.
        (&["-f", "gunicorn", "two words"], ["--open-port", "early"]),
    ] {
        let output =
            Command::new(build.path("the app/bin/start-nginx")).args(typed).output().unwrap();
        let given = String::from_utf8(output.stdout).unwrap();
        let expected = [&upstream[..], &options, &["--", "gunicorn", "two words"]].concat();
        assert_eq!(given.lines().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn slug_serves_an_app_of_the_nginx_buildpacks_unchanged() {
    let build = Build::new(PROCFILE);
    build.write("the app/gunicorn.conf.py", GUNICORN_CONF);
    build.write("the app/app/wsgi.py", WSGI);
    let built = bufproxy(build.dir.path());
    let built = fs::canonicalize(built.get_program()).unwrap();
    build.bring(&built);
    build.compile();
    // The dyno has the slug in another place than the build.
    fs::rename(build.path("the app"), build.path("app")).unwrap();

    let mut dyno = dyno(&build.path("app"));
    let url = fs::read_to_string(build.path("env/BUFPROXY_URL")).unwrap();
    dyno.env("BUFPROXY_URL", url).env("BUFPROXY_SHA256", sha256(&built));
    let port = free_port();
    dyno.env("PORT", port.to_string());

    let mut proxy = Proxy::spawn(dyno, build.dir);
    proxy.addr = ([127, 0, 0, 1], port).into();
    let open = proxy.stderr.find(1, Duration::from_secs(60), |line| line.contains("port open"));
    let open = open.unwrap_or_else(|| panic!("{:#?}", proxy.stderr.seen()));
    assert!(open.contains("ready-file appeared after "), "{open}");
    let mut client = proxy.connect();
    client.get("/");
    assert_eq!(client.response().text(), "hello\n");
    proxy.wait_workers(4);
    // As the platform does it: to everybody.
    kill_process_group(proxy.pid(), Signal::TERM).unwrap();
    let exit = proxy.wait();
    assert_eq!(exit.code, 0, "{exit:#?}");
    let odd = exit.stderr.iter().find(|line| line.contains("warning") || line.contains("WARN"));
    assert_eq!(odd, None);
}

/// The web process of a slug, with the environment of a dyno and, where the kernel lets us, with a
/// /tmp of its own.
fn dyno(app: &Path) -> Command {
    const OWN_TMP: [&str; 4] = ["unshare", "--mount", "--map-root-user", "sh"];
    let own_tmp = |script: &str| {
        let mut command = Command::new(OWN_TMP[0]);
        command.args(&OWN_TMP[1..]).args(["-c", &format!("mount -t tmpfs tmpfs /tmp && {script}")]);
        command
    };
    // Debian's and Ubuntu's kernels can be told to refuse it.
    let mut command = match own_tmp("true").output().is_ok_and(|tried| tried.status.success()) {
        true => own_tmp("exec \"$0\" \"$@\""),
        false => Command::new("env"),
    };
    let web = PROCFILE.strip_prefix("web: ").unwrap().trim_end();
    let start = "for script in .profile.d/*.sh; do . \"$script\"; done; exec bash -c \"$0\"";
    command.args(["bash", "-c", start, web]).current_dir(app).env_clear();
    let path = format!("{}:{}", venv().display(), std::env::var("PATH").unwrap());
    command.env("PATH", path).env("HOME", app).env("DYNO", "web.1");
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}
