//! What the surroundings say: the platform (from its environment variables), the descriptor limit, the
//! places for files. `settings` makes defaults of it.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt as _;
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

/// What lies at this path, if it is neither a socket nor nothing.
pub fn no_socket(path: &Path) -> Option<&'static str> {
    let kind = std::fs::metadata(path).ok()?.file_type();
    match kind {
        _ if kind.is_socket() => None,
        _ if kind.is_dir() => Some("a directory"),
        _ => Some("a file"),
    }
}

/// Whether a log can be opened at this path, without making one: it can be written to, or there is
/// nothing and its directory can have it.
pub fn takes_a_log(path: &Path) -> std::io::Result<()> {
    let (place, needs) = match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => return Err(std::io::ErrorKind::IsADirectory.into()),
        Ok(_) => (path, Access::WRITE_OK),
        Err(_) => {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            (dir.unwrap_or(Path::new(".")), Access::WRITE_OK | Access::EXEC_OK)
        }
    };
    Ok(rustix::fs::access(place, needs)?)
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
    fn a_connection_takes_three_descriptors() {
        assert_eq!(max_connections(1024), 320);
        assert_eq!(max_connections(10), 0);
    }

    #[test]
    fn a_log_needs_a_directory_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        assert!(takes_a_log(&dir.path().join("new.log")).is_ok());
        assert!(takes_a_log(Path::new("new.log")).is_ok());
        assert!(takes_a_log(Path::new("/dev/null")).is_ok());
        let nowhere = takes_a_log(&dir.path().join("none/new.log")).unwrap_err();
        assert_eq!(nowhere.kind(), std::io::ErrorKind::NotFound);
        assert_eq!(takes_a_log(dir.path()).unwrap_err().kind(), std::io::ErrorKind::IsADirectory);
        assert!(!dir.path().join("new.log").exists(), "a check makes nothing");
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
