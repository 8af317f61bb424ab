//! What the surroundings say: the platform (from its environment variables), the cgroup's memory
//! limit, the descriptor limit. `settings` makes defaults of it. Pure functions of what is passed in,
//! so that tests use fakes; only `nofile`, `private_socket` and `in_memory` ask the machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::fs::Access;
use rustix::process::{Resource, getrlimit};

/// Where we run, as far as it changes a default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    Heroku,
    Fly,
    CloudRun,
    Render,
    Ecs,
    Kubernetes,
}

impl Platform {
    /// The first that is recognised; Kubernetes last, because others run on it and say so.
    pub fn detect(env: &BTreeMap<String, String>) -> Option<Platform> {
        use Platform::*;
        [Heroku, Fly, CloudRun, Render, Ecs, Kubernetes]
            .into_iter()
            .find(|platform| env.contains_key(platform.variable()))
    }

    /// The variable that gives the platform away.
    pub fn variable(self) -> &'static str {
        match self {
            Platform::Heroku => "DYNO",
            Platform::Fly => "FLY_APP_NAME",
            Platform::CloudRun => "K_SERVICE",
            Platform::Render => "RENDER",
            Platform::Ecs => "ECS_CONTAINER_METADATA_URI_V4",
            Platform::Kubernetes => "KUBERNETES_SERVICE_HOST",
        }
    }

    /// A little less than the time from its stop signal to its SIGKILL (30 s on Heroku, Kubernetes,
    /// Render and ECS, 10 s on Cloud Run, 5 s on Fly).
    pub fn drain_timeout(self) -> Duration {
        Duration::from_secs(match self {
            Platform::Heroku | Platform::Kubernetes | Platform::Render | Platform::Ecs => 25,
            Platform::CloudRun => 8,
            Platform::Fly => 4,
        })
    }

    /// Longer than the front keeps an idle connection: 90 s (Heroku), 600 s (Google), 120 s (Render).
    pub fn client_keepalive(self) -> Option<Duration> {
        match self {
            Platform::Heroku => Some(Duration::from_secs(95)),
            Platform::CloudRun => Some(Duration::from_secs(620)),
            Platform::Render => Some(Duration::from_secs(150)),
            _ => None,
        }
    }
}

/// Reads a whole file. Everything that `config` reads comes through one of these.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> std::io::Result<Vec<u8>>;

/// The memory that our cgroup, and those around it, may have; None without a limit.
pub fn memory_limit(read: ReadFile<'_>) -> Option<u64> {
    /// "No limit" of v1 is a number near 2^63; no container has more than this.
    const NO_LIMIT: u64 = 1 << 40;
    let text = |path: &str| String::from_utf8(read(Path::new(path)).ok()?).ok();

    let membership = text("/proc/self/cgroup")?;
    let mut limits = Vec::new();
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let path = path.trim_end_matches('/');
        if controllers.is_empty() {
            // v2: every level may have a limit, the smallest counts. Inside a cgroup namespace the
            // path is `/`, and the container's own group is the mount's root.
            for level in Path::new(&format!("{path}/")).ancestors() {
                let level = level.to_string_lossy();
                let file = format!("/sys/fs/cgroup{}/memory.max", level.trim_end_matches('/'));
                limits.extend(text(&file).and_then(|limit| limit.trim().parse::<u64>().ok()));
            }
        } else if controllers.split(',').any(|controller| controller == "memory") {
            // v1: the path is the host's; a container sees its own group as the mount's root. The
            // limits of the groups around it are in `hierarchical_memory_limit`.
            const ROOT: &str = "/sys/fs/cgroup/memory";
            let named = format!("{ROOT}{path}");
            let limit = |group: &str| text(&format!("{group}/memory.limit_in_bytes"));
            let group = if limit(&named).is_some() { named.as_str() } else { ROOT };
            limits.extend(limit(group).and_then(|limit| limit.trim().parse::<u64>().ok()));
            let stat = text(&format!("{group}/memory.stat")).unwrap_or_default();
            limits.extend(stat.lines().find_map(|line| {
                line.strip_prefix("hierarchical_memory_limit ")?.trim().parse::<u64>().ok()
            }));
        }
    }
    limits.into_iter().min().filter(|limit| *limit <= NO_LIMIT)
}

/// How many connections `nofile` descriptors carry: a client, an upstream and a spool file each, 64
/// kept for the rest.
pub fn max_connections(nofile: u64) -> usize {
    usize::try_from(nofile.saturating_sub(64) / 3).unwrap_or(usize::MAX)
}

/// Open descriptors that we may have, once the soft limit is raised to the hard one.
pub fn nofile() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// Where this process makes the app's socket when nobody names one; the same at each call, because a
/// reload must not move it. Not to be guessed by another user, who could take the name first.
pub fn private_socket() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let dir = runtime_dir.filter(|dir| dir.is_absolute() && dir.is_dir());
        let dir = dir.unwrap_or_else(std::env::temp_dir);
        dir.join(format!("bufproxy-{:08x}/app.sock", fastrand::u32(..)))
    });
    path.clone()
}

/// Whether files of `dir` are kept in memory (tmpfs, ramfs): what is spilled there counts against the
/// memory limit. Fails when no file can be made in it.
pub fn in_memory(dir: &Path) -> std::io::Result<bool> {
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    if !std::fs::metadata(dir)?.is_dir() {
        return Err(std::io::ErrorKind::NotADirectory.into());
    }
    rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK)?;
    let kind = rustix::fs::statfs(dir)?.f_type as u64 & 0xffff_ffff;
    Ok(kind == TMPFS || kind == RAMFS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(names: &[&str]) -> BTreeMap<String, String> {
        names.iter().map(|name| (name.to_string(), "1".to_owned())).collect()
    }

    #[test]
    fn platforms_are_recognised_by_their_variables() {
        for (names, platform) in [
            (&[][..], None),
            (&["PATH", "PORT"], None),
            (&["DYNO"], Some(Platform::Heroku)),
            (&["FLY_APP_NAME"], Some(Platform::Fly)),
            (&["K_SERVICE"], Some(Platform::CloudRun)),
            (&["RENDER"], Some(Platform::Render)),
            (&["ECS_CONTAINER_METADATA_URI_V4"], Some(Platform::Ecs)),
            (&["KUBERNETES_SERVICE_HOST"], Some(Platform::Kubernetes)),
            (&["KUBERNETES_SERVICE_HOST", "RENDER"], Some(Platform::Render)),
            (&["KUBERNETES_SERVICE_HOST", "K_SERVICE"], Some(Platform::CloudRun)),
        ] {
            assert_eq!(Platform::detect(&env(names)), platform, "{names:?}");
        }
    }

    #[test]
    fn memory_limit_is_found_in_every_kind_of_cgroup() {
        const V1: &str = "/sys/fs/cgroup/memory";
        let limit = |files: &[(&str, &str)]| {
            memory_limit(&|path: &Path| {
                let found = files.iter().find(|(name, _)| Path::new(name) == path);
                let text = found.map(|(_, text)| text.as_bytes().to_vec());
                text.ok_or(std::io::ErrorKind::NotFound.into())
            })
        };
        let own = "/proc/self/cgroup";

        assert_eq!(limit(&[]), None);
        assert_eq!(limit(&[(own, "")]), None);
        // v2 in a namespace of its own.
        assert_eq!(limit(&[(own, "0::/\n"), ("/sys/fs/cgroup/memory.max", "512\n")]), Some(512));
        assert_eq!(limit(&[(own, "0::/\n"), ("/sys/fs/cgroup/memory.max", "max\n")]), None);
        // v2, nested: the smallest of all levels.
        let nested = |inner, outer| {
            limit(&[
                (own, "0::/system.slice/app.service\n"),
                ("/sys/fs/cgroup/system.slice/app.service/memory.max", inner),
                ("/sys/fs/cgroup/system.slice/memory.max", outer),
            ])
        };
        assert_eq!(nested("max\n", "700\n"), Some(700));
        assert_eq!(nested("300\n", "700\n"), Some(300));
        assert_eq!(nested("900\n", "700\n"), Some(700));
        // v1, the named group; the group around it is smaller.
        let named = format!("{V1}/docker/abc");
        let files = |limit: &'static str| (format!("{named}/memory.limit_in_bytes"), limit);
        let (name, value) = files("1000\n");
        let stat = (format!("{named}/memory.stat"), "cache 1\nhierarchical_memory_limit 400\n");
        let v1 = (own, "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n");
        assert_eq!(limit(&[v1, (&name, value)]), Some(1000));
        assert_eq!(limit(&[v1, (&name, value), (&stat.0, stat.1)]), Some(400));
        // v1 in a container: the path is the host's, the group is the mount's root.
        let root = format!("{V1}/memory.limit_in_bytes");
        assert_eq!(limit(&[v1, (&root, "536870912\n")]), Some(512 << 20));
        assert_eq!(limit(&[v1, (&name, value), (&root, "9223372036854771712\n")]), Some(1000));
        // v1 says "none" with a number.
        assert_eq!(limit(&[v1, (&root, "9223372036854771712\n")]), None);
        // Named with the memory controller among others.
        assert_eq!(limit(&[(own, "4:cpu,memory:/\n"), (&root, "64\n")]), Some(64));
    }

    #[test]
    fn a_connection_takes_three_descriptors() {
        assert_eq!(max_connections(1024), 320);
        assert_eq!(max_connections(10), 0);
    }

    #[test]
    fn a_directory_is_on_disk_or_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        assert!(in_memory(dir.path()).is_ok());
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(in_memory(&file).unwrap_err().kind(), std::io::ErrorKind::NotADirectory);
        assert!(in_memory(&dir.path().join("none")).is_err());
        assert!(in_memory(Path::new("/proc")).is_ok_and(|memory| !memory));
    }
}
