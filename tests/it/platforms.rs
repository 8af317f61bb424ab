//! The files of config/ for Kubernetes, systemd and the clouds: each is parsed, its command goes through
//! `bufproxy check` with the platform's own variables, and its times fit into one another.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{App, Client, Proxy, bufproxy, repository, venv};

/// A command line for a shell, and the variables that it is started with.
pub(crate) struct Invocation {
    pub(crate) line: String,
    pub(crate) env: BTreeMap<String, String>,
}

/// What `bufproxy check` says of it.
pub(crate) struct Checked {
    pub(crate) text: String,
    pub(crate) warnings: Vec<String>,
}

impl Invocation {
    pub(crate) fn new(line: &str, env: &[(&str, &str)]) -> Invocation {
        let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Invocation { line: line.to_owned(), env: env.collect() }
    }

    /// Of words, quoted.
    fn words(words: &[String], env: &[(&str, &str)]) -> Invocation {
        let quoted: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
        // The program is the shell function.
        Invocation::new(&format!("bufproxy {}", quoted[1..].join(" ")), env)
    }

    /// `bufproxy OPTIONS -- COMMAND` as `bufproxy check OPTIONS -- COMMAND`; every other program is what
    /// it is.
    #[track_caller]
    pub(crate) fn check(&self) -> Checked {
        let dir = tempfile::tempdir().unwrap();
        let program = bufproxy(dir.path());
        let mut shell = Command::new("sh");
        let function = "bufproxy() { case ${1-} in check) shift;; esac; \"$0\" check \"$@\"; }";
        shell.arg("-c").arg(format!("{function}; {}", self.line)).arg(program.get_program());
        let output = shell.env_clear().envs(&self.env).current_dir(&dir).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", self.line);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.ends_with("ok\n"), "{}: {text}", self.line);
        let warnings = text.lines().filter_map(|line| line.strip_prefix("warning: "));
        Checked { warnings: warnings.map(str::to_owned).collect(), text }
    }
}

impl Checked {
    /// The value of an option.
    #[track_caller]
    fn get(&self, option: &str) -> &str {
        let mut lines = self.text.lines().map(str::split_whitespace);
        let line = lines.find_map(|mut words| (words.next() == Some(option)).then_some(words));
        line.and_then(|mut words| words.next()).unwrap_or_else(|| panic!("{}", self.text))
    }

    #[track_caller]
    fn seconds(&self, option: &str) -> u64 {
        seconds(self.get(option))
    }
}

#[track_caller]
fn seconds(text: &str) -> u64 {
    text.strip_suffix('s')
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{text}"))
}

fn read(name: &str) -> String {
    fs::read_to_string(repository().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The documents of a YAML file.
fn yaml(name: &str) -> Vec<Value> {
    let script =
        "import sys, yaml, json; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)";
    let file = fs::File::open(repository().join(name)).unwrap();
    let output = Command::new(venv().join("python")).args(["-c", script]).stdin(file).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn strings(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.map(|word| word.as_str().unwrap().to_owned()).collect()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

fn named<'a>(items: &'a [Value], name: &str) -> &'a Value {
    items.iter().find(|item| item["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

/// `env` of a container.
fn variables(container: &Value) -> Vec<(&str, &str)> {
    list(container, "env")
        .iter()
        .map(|item| (item["name"].as_str().unwrap(), item["value"].as_str().unwrap()))
        .collect()
}

/// Program and arguments; of our own image the program is its entry point.
fn words(container: &Value) -> Vec<String> {
    let mut words = strings(&container["command"]);
    if words.is_empty() {
        words.push("/bufproxy".to_owned());
    }
    words.extend(strings(&container["args"]));
    words
}

fn is_bufproxy(container: &Value) -> bool {
    matches!(words(container)[0].as_str(), "bufproxy" | "/bufproxy")
}

/// Runs a probe or a hook of ours where nobody answers: 1 is that, 2 would be a wrong command line.
#[track_caller]
fn assert_is_understood(command: &Value, env: &[(&str, &str)]) -> Vec<String> {
    let words = strings(command);
    assert!(matches!(words[0].as_str(), "bufproxy" | "/bufproxy"), "{words:?}");
    let dir = tempfile::tempdir().unwrap();
    let mut ours = bufproxy(dir.path());
    ours.args(&words[1..]).envs(env.iter().copied()).stderr(Stdio::null());
    assert_eq!(ours.status().unwrap().code(), Some(1), "{words:?}");
    words
}

/// Everything that the three arrangements have in common. Gives the pod and its bufproxy.
#[track_caller]
fn kubernetes(name: &str) -> (Value, Value) {
    let documents = yaml(name);
    let [deployment, service] = documents.as_slice() else { panic!("{name}") };
    assert_eq!((&deployment["kind"], &service["kind"]), (&"Deployment".into(), &"Service".into()));
    let template = &deployment["spec"]["template"];
    let labels = &template["metadata"]["labels"];
    assert_eq!(&deployment["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(&service["spec"]["selector"], labels);

    let pod = &template["spec"];
    let volumes = list(pod, "volumes");
    let containers = [list(pod, "initContainers"), list(pod, "containers")].concat();
    let mounts = containers.iter().flat_map(|container| list(container, "volumeMounts"));
    let mounted: Vec<_> = mounts.map(|mount| mount["name"].as_str().unwrap()).collect();
    for volume in volumes {
        assert!(mounted.contains(&volume["name"].as_str().unwrap()), "{name}: {volume}");
    }
    for container in &containers {
        assert!(container["resources"]["limits"]["memory"].is_string(), "{name}: {container}");
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        for mount in list(container, "volumeMounts") {
            named(volumes, mount["name"].as_str().unwrap());
        }
    }
    assert!(pod["securityContext"]["fsGroup"].is_u64(), "{name}");

    let ours = containers.iter().find(|container| is_bufproxy(container)).unwrap();
    let env = [variables(ours), vec![("KUBERNETES_SERVICE_HOST", "10.96.0.1")]].concat();
    let checked = Invocation::words(&words(ours), &env).check();
    assert_eq!(checked.warnings, [""; 0], "{name}");
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(checked.seconds("drain-timeout") < grace, "{name}");
    assert_eq!(checked.get("drain-delay"), "5s", "{name}");

    // Its files: sockets and spools go where something is mounted; the disk has room for all of them.
    let mount_of = |path: &str| {
        let mounts = list(ours, "volumeMounts").iter();
        let at = |mount: &&Value| Path::new(path).starts_with(mount["mountPath"].as_str().unwrap());
        mounts.clone().find(at).unwrap_or_else(|| panic!("{name}: {path} is not writable"))
    };
    for option in ["upstream", "admin"] {
        mount_of(checked.get(option).strip_prefix("unix:").unwrap());
    }
    let spool = named(volumes, mount_of(checked.get("spool-dir"))["name"].as_str().unwrap());
    assert_eq!((spool["emptyDir"]["medium"].as_str(), checked.get("spool-max")), (None, "1g"));
    let room = spool["emptyDir"]["sizeLimit"].as_str().unwrap().strip_suffix("Mi").unwrap();
    assert!(room.parse::<u64>().unwrap() > 1024, "{name}: {room}");

    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        if let Some(probe) = ours.get(probe) {
            let words = assert_is_understood(&probe["exec"]["command"], &env);
            assert_eq!(words[1], "healthcheck");
        }
    }
    let port = named(list(ours, "ports"), "http")["containerPort"].as_u64().unwrap();
    assert_eq!(checked.get("listen"), format!("[::]:{port}"));
    assert_eq!(service["spec"]["ports"][0]["targetPort"], "http");
    (pod.clone(), ours.clone())
}

/// The app's probe in the manifest asks it one question, and an answer is enough.
#[track_caller]
fn assert_app_probe_wants_an_answer(container: &Value) {
    let command = strings(&container["startupProbe"]["exec"]["command"]);
    let [python, flag, script] = command.as_slice() else { panic!("{command:?}") };
    assert_eq!((python.as_str(), flag.as_str()), ("python", "-c"));
    let app = App::unix();
    let socket = app.address().strip_prefix("unix:").unwrap();
    let mut probe = Command::new(venv().join("python"));
    probe.arg("-c").arg(script.replace("/run/app/app.sock", socket));
    let mut probe = probe.spawn().unwrap();
    let (worker, request) = app.request();
    assert_eq!((request.line(), request.get("connection")), ("HEAD / HTTP/1.1", Some("close")));
    worker.reply("");
    assert!(probe.wait().unwrap().success());
    // Nobody there.
    let mut probe = Command::new(venv().join("python"));
    probe.arg("-c").arg(script).stderr(Stdio::null());
    assert!(!probe.status().unwrap().success());
}

#[test]
fn kubernetes_one_container_starts_the_app_itself() {
    let (pod, ours) = kubernetes("config/kubernetes/one-container.yaml");
    assert_eq!(list(&pod, "containers").len(), 1);
    assert!(words(&ours).contains(&"--".to_owned()));
    let startup = &ours["startupProbe"];
    let (period, failures) = (&startup["periodSeconds"], &startup["failureThreshold"]);
    // boot-timeout is the one that gives up: it says why.
    assert!(period.as_u64().unwrap() * failures.as_u64().unwrap() >= 60);
}

#[test]
fn kubernetes_app_as_sidecar_starts_first_and_stops_last() {
    let (pod, ours) = kubernetes("config/kubernetes/app-as-sidecar.yaml");
    let app = named(list(&pod, "initContainers"), "app");
    assert_eq!(app["restartPolicy"], "Always");
    assert_eq!(&list(&pod, "containers")[0], &ours);
    assert_app_probe_wants_an_answer(app);
    assert_socket_is_shared(app, &ours);
}

#[test]
fn kubernetes_bufproxy_as_sidecar_is_drained_before_the_app_stops() {
    let (pod, ours) = kubernetes("config/kubernetes/bufproxy-as-sidecar.yaml");
    assert_eq!(&list(&pod, "initContainers")[0], &ours);
    assert_eq!(ours["restartPolicy"], "Always");
    let app = named(list(&pod, "containers"), "app");
    assert_app_probe_wants_an_answer(app);
    assert_socket_is_shared(app, &ours);
    // It may use the socket of the admin listener.
    let user = |container: &Value| container["securityContext"]["runAsUser"].as_u64().unwrap();
    assert_eq!(user(app), user(&ours));
    let hook = assert_is_understood(&app["lifecycle"]["preStop"]["exec"]["command"], &[]);
    assert_eq!(hook[1..3], ["drain", "--wait"]);
    let value = |name: &str| &hook[hook.iter().position(|word| word == name).unwrap() + 1];
    assert!(variables(&ours).contains(&("BUFPROXY_ADMIN", value("--admin"))));
    let (wait, grace) = (seconds(value("--timeout")), &pod["terminationGracePeriodSeconds"]);
    assert!(25 < wait && wait + 3 < grace.as_u64().unwrap());
}

#[test]
fn kubernetes_scales_by_a_metric_that_there_is() {
    let autoscaling = yaml("config/kubernetes/autoscaling.yaml");
    let [scaler, policy] = autoscaling.as_slice() else { panic!("{autoscaling:?}") };
    let adapter = &yaml("config/kubernetes/prometheus-adapter.yaml")[0];
    let [rule] = list(&adapter["rules"], "custom") else { panic!("{adapter}") };
    let pods = &scaler["spec"]["metrics"][0]["pods"];
    assert_eq!(pods["metric"]["name"], rule["name"]["as"]);

    // What its rule adds up is what is under way at a proxy: one at the app, two that wait.
    let app = App::unix();
    let dir = tempfile::tempdir().unwrap();
    let admin = dir.path().join("admin.sock");
    let listen = format!("unix:{}", admin.display());
    let proxy = Proxy::start(&app, &["--concurrency", "1", "--admin", &listen]);
    let mut clients: Vec<_> = (0..3).map(|_| proxy.connect()).collect();
    clients[0].get("/");
    let (worker, _) = app.request();
    clients[1..].iter_mut().for_each(|client| client.get("/"));
    proxy.settle();
    let mut scraper = Client::unix(&admin);
    scraper.get("/metrics");
    let metrics = scraper.response().text();
    let query = rule["metricsQuery"].as_str().unwrap();
    let (_, query) = query.split_once("avg_over_time(").unwrap();
    let (series, labels) = query.split_once("{phase=~\"").unwrap();
    let phases: Vec<_> = labels.split('"').next().unwrap().split('|').collect();
    let value = |phase: &&str| {
        let line = format!("{series}{{phase=\"{phase}\"}} ");
        let value = metrics.lines().find_map(|said| said.strip_prefix(&line)?.parse::<u64>().ok());
        value.unwrap_or_else(|| panic!("no {line}in {metrics}"))
    };
    assert_eq!(phases.iter().map(value).sum::<u64>(), 3);
    let found = rule["seriesQuery"].as_str().unwrap();
    assert!(metrics.contains(&found[..found.find(',').unwrap()]), "{found}");
    worker.reply("");
    (1..3).for_each(|_| app.request().0.reply(""));
    clients.iter_mut().for_each(|client| _ = client.response());

    // The patches of A fit: its admin listener, where Prometheus looks and nobody else may.
    let web = &yaml("config/kubernetes/one-container.yaml")[0];
    assert_eq!(scaler["spec"]["scaleTargetRef"]["name"], web["metadata"]["name"]);
    assert_eq!(policy["spec"]["podSelector"], web["spec"]["selector"]);
    let container = &web["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(variables(container)[0].0, "BUFPROXY_ADMIN");
    let patches = read("config/kubernetes/kustomization.yaml");
    for patch in [
        "path: /spec/template/spec/containers/0/env/0\n        value: {name: BUFPROXY_ADMIN, value: \":9091\"}",
        "value: {name: admin, containerPort: 9091}",
        "prometheus.io/port: \"9091\"",
    ] {
        assert!(patches.contains(patch), "{patch}");
    }
    assert_eq!(policy["spec"]["ingress"][1]["ports"][0]["port"], "admin");
    let env = [("BUFPROXY_ADMIN", ":9091"), ("BUFPROXY_TRUST", "private")];
    let checked = Invocation::words(&words(container), &env).check();
    assert_eq!(checked.warnings, [""; 0]);
    // Three quarters of the workers, as in the queue's model of scaling.
    let target: f64 = pods["target"]["averageValue"].as_str().unwrap().parse().unwrap();
    assert_eq!(target, checked.get("concurrency").parse::<f64>().unwrap() * 0.75);
}

/// What the app binds is what bufproxy looks for, on a volume that both have.
#[track_caller]
fn assert_socket_is_shared(app: &Value, ours: &Value) {
    let after = |words: &[String], flag: &str| {
        words[words.iter().position(|word| word == flag).unwrap() + 1].clone()
    };
    let socket = after(&words(app), "--bind");
    assert_eq!(socket, after(&words(ours), "--upstream"));
    let volume = |container: &Value| {
        let mounts = list(container, "volumeMounts").iter();
        let socket = Path::new(socket.strip_prefix("unix:").unwrap());
        let mut at = mounts.filter(|m| socket.starts_with(m["mountPath"].as_str().unwrap()));
        at.next().unwrap()["name"].clone()
    };
    assert_eq!(volume(app), volume(ours));
}

#[test]
fn systemd_unit_waits_for_the_drain() {
    let unit = read("config/systemd/bufproxy.service");
    let get = |name: &str| {
        let mut lines = unit.lines().filter_map(|line| line.split_once('='));
        lines.find(|(key, _)| *key == name).unwrap_or_else(|| panic!("no {name}")).1
    };
    let (program, arguments) = get("ExecStart").split_once(' ').unwrap();
    // systemd looks into /usr/local/bin, then into /usr/bin.
    assert_eq!(program, "bufproxy");
    let cache = tempfile::tempdir().unwrap();
    assert_eq!(get("CacheDirectory"), "bufproxy");
    let arguments = arguments.replace("/var/cache/bufproxy", cache.path().to_str().unwrap());
    let checked = Invocation::new(&format!("bufproxy {arguments}"), &[]).check();
    assert_eq!(checked.warnings, [""; 0]);
    assert!(checked.seconds("drain-timeout") < get("TimeoutStopSec").parse().unwrap());
    assert_eq!(get("KillMode"), "mixed");
    for option in ["upstream", "admin"] {
        assert!(checked.get(option).starts_with("unix:/run/bufproxy/"), "{option}");
    }
    assert_eq!(get("RuntimeDirectory"), "bufproxy");
    assert_eq!(checked.get("concurrency"), "4");
    assert_eq!((get("Type"), get("NotifyAccess")), ("notify", "main"));
    assert!(checked.seconds("boot-timeout") < get("TimeoutStartSec").parse().unwrap());
    // The socket unit stands for --listen.
    let socket = read("config/systemd/bufproxy.socket");
    let port = socket.lines().find_map(|line| line.strip_prefix("ListenStream=")).unwrap();
    assert_eq!(checked.get("listen"), format!(":{port}"));
}

#[test]
fn fly_waits_for_the_drain() {
    let file: toml::Table = read("config/fly.toml").parse().unwrap();
    let env = file["env"].as_table().unwrap();
    let mut env: Vec<_> =
        env.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap())).collect();
    env.push(("FLY_APP_NAME", "my-app"));
    let line = file["processes"]["web"].as_str().unwrap();
    let checked = Invocation::new(line, &env).check();
    assert_eq!(checked.warnings, [""; 0]);
    let patience = file["kill_timeout"].as_integer().unwrap();
    assert!((checked.seconds("drain-timeout") as i64) < patience);
    let port = file["http_service"]["internal_port"].as_integer().unwrap();
    assert_eq!(checked.get("listen"), format!("[::]:{port}"));
    assert_eq!((checked.get("trust"), checked.get("concurrency")), ("fly", "2"));
}

#[test]
fn render_waits_for_the_drain() {
    let file = &yaml("config/render.yaml")[0];
    let service = &file["services"][0];
    let env = list(service, "envVars").iter();
    let mut env: Vec<_> =
        env.map(|pair| (pair["key"].as_str().unwrap(), pair["value"].as_str().unwrap())).collect();
    env.extend([("RENDER", "true"), ("PORT", "10000")]);
    let checked = Invocation::new(service["dockerCommand"].as_str().unwrap(), &env).check();
    assert_eq!(checked.warnings, [""; 0]);
    assert!(
        checked.seconds("drain-timeout") < service["maxShutdownDelaySeconds"].as_u64().unwrap()
    );
    assert_eq!(checked.get("client-keepalive"), "150s");
}

#[test]
fn cloud_run_keeps_bodies_inside_the_memory() {
    let file = &yaml("config/cloud-run.yaml")[0];
    let spec = &file["spec"]["template"]["spec"];
    let container = &spec["containers"][0];
    let port = container["ports"][0]["containerPort"].as_u64().unwrap().to_string();
    let env = [variables(container), vec![("K_SERVICE", "web"), ("PORT", &port)]].concat();
    let checked = Invocation::words(&words(container), &env).check();
    assert_eq!(checked.warnings, [""; 0]);
    assert_eq!(checked.get("client-keepalive"), "620s");
    // SIGKILL comes 10 s after TERM.
    assert!(checked.seconds("drain-timeout") < 10);
    let slots: u64 = checked.get("concurrency").parse().unwrap();
    assert!(slots < spec["containerConcurrency"].as_u64().unwrap(), "some have to wait for it");
    assert_eq!((checked.get("spool-max"), checked.get("max-body")), ("128m", "32m"));
    assert_eq!(container["startupProbe"]["tcpSocket"]["port"].to_string(), port);
}
