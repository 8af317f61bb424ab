//! One measured program: started as a child of the bench, its CPU time and memory read from the
//! kernel's accounting over all of its processes (nginx has a master and a worker), and ended with
//! everything that it started.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::linux::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

/// The kernel's `USER_HZ`, the unit of `/proc/PID/stat`: 100 on every Linux that Rust runs on.
const TICK: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

/// Where the memory controller of version 1 is mounted.
const CGROUPS: &str = "/sys/fs/cgroup/memory";
/// The cgroup that what is started now joins.
static JOINED: Mutex<Option<PathBuf>> = Mutex::new(None);

/// A memory cgroup of its own for all that is started until there is another. What is in it must have ended
/// before it is dropped.
#[derive(Debug)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// With a limit in bytes. Err: not root, or no cgroups of version 1.
    pub(crate) fn limited(bytes: u64) -> io::Result<Cgroup> {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("bufproxy-bench-{}-{number}", std::process::id());
        let path = Path::new(CGROUPS).join(name);
        fs::create_dir(&path)?;
        let cgroup = Cgroup(path);
        fs::write(cgroup.0.join("memory.limit_in_bytes"), bytes.to_string())?;
        *JOINED.lock().unwrap_or_else(PoisonError::into_inner) = Some(cgroup.0.clone());
        Ok(cgroup)
    }

    /// Bytes of files in memory.
    pub(crate) fn cached(&self) -> u64 {
        self.field("memory.stat", "cache ")
    }

    /// Bytes of the kernel for them: sockets, files.
    pub(crate) fn kernel(&self) -> u64 {
        self.field("memory.kmem.usage_in_bytes", "")
    }

    /// The most that all of it took at one time. Files take what is free.
    pub(crate) fn most(&self) -> u64 {
        self.field("memory.max_usage_in_bytes", "")
    }

    /// Processes that the kernel has killed because there was no room.
    pub(crate) fn killed(&self) -> u64 {
        self.field("memory.oom_control", "oom_kill ")
    }

    fn field(&self, file: &str, name: &str) -> u64 {
        let text = read(&self.0.join(file).to_string_lossy());
        number(text.lines().find_map(|line| line.strip_prefix(name)))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        *JOINED.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // Processes that were killed may take a moment.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{} is left", self.0.display());
    }
}

/// CPU time, user and system, of all processes since their start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu {
    /// `schedstat` of every live task: nanoseconds, but a thread that ended takes its time with it.
    tasks: Duration,
    /// `stat`: whole ticks, ended threads included.
    ticks: Duration,
}

impl Cpu {
    /// The time spent since `earlier`: the precise figure, unless the coarse one shows that a thread
    /// ended in between.
    pub(crate) fn since(self, earlier: Cpu) -> Duration {
        let tasks = self.tasks.saturating_sub(earlier.tasks);
        let ticks = self.ticks.saturating_sub(earlier.ticks);
        if ticks > tasks + 4 * TICK { ticks } else { tasks }
    }
}

impl Process {
    /// Starts `command` with its standard output in `log`, its errors in `errors`. It ends when the
    /// bench does, whatever ends that (see `enter`).
    pub(crate) fn start(command: &Command, log: File, errors: File) -> io::Result<Process> {
        let mut shim = Command::new("/proc/self/exe");
        let cgroup = JOINED.lock().unwrap_or_else(PoisonError::into_inner).clone();
        shim.arg("exec").arg(cgroup.unwrap_or_default());
        shim.arg(command.get_program()).args(command.get_args());
        if let Some(dir) = command.get_current_dir() {
            shim.current_dir(dir);
        }
        Ok(Process { child: shim.stdin(Stdio::null()).stdout(log).stderr(errors).spawn()? })
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = Pid::from_raw(self.child.id() as i32).ok_or(io::ErrorKind::NotFound)?;
        Ok(kill_process(pid, signal)?)
    }

    pub(crate) fn cpu(&self) -> Cpu {
        let mut cpu = Cpu { tasks: self.threads().values().sum(), ticks: Duration::ZERO };
        for pid in self.pids() {
            let stat = read(&format!("/proc/{pid}/stat"));
            // After the command's closing parenthesis: field 3 on; utime and stime are 14 and 15.
            let mut times = stat.rsplit(") ").next().unwrap_or("").split(' ').skip(11);
            cpu.ticks += TICK * (number(times.next()) + number(times.next())) as u32;
        }
        cpu
    }

    /// CPU time of each live thread.
    pub(crate) fn threads(&self) -> HashMap<String, Duration> {
        let tasks = self.pids().into_iter().flat_map(|pid| {
            let tasks = list(&format!("/proc/{pid}/task")).into_iter();
            tasks.map(move |task| (read(&format!("/proc/{pid}/task/{task}/schedstat")), task))
        });
        let time = |schedstat: &str| Duration::from_nanos(number(schedstat.split(' ').next()));
        tasks.map(|(schedstat, task)| (task, time(&schedstat))).collect()
    }

    /// Bytes in memory of all processes, program text included; what they share counts once.
    pub(crate) fn memory(&self) -> u64 {
        self.proportional("Pss:")
    }

    /// Of these the allocated ones. Others that run the same program do not change them.
    pub(crate) fn allocated(&self) -> u64 {
        self.proportional("Pss_Anon:")
    }

    fn proportional(&self, field: &str) -> u64 {
        let of = |pid| {
            let rollup = read(&format!("/proc/{pid}/smaps_rollup"));
            let line = rollup.lines().find_map(|line| line.strip_prefix(field));
            number(line.and_then(|line| line.split_whitespace().next())) * 1024
        };
        self.pids().into_iter().map(of).sum()
    }

    /// Open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        self.pids().into_iter().map(|pid| list(&format!("/proc/{pid}/fd")).len()).sum()
    }

    /// Bytes in memory of all processes, program text and what they share counted in each. Quick to
    /// ask for.
    pub(crate) fn resident(&self) -> u64 {
        const PAGE: u64 = 4096;
        let of = |pid| number(read(&format!("/proc/{pid}/statm")).split(' ').nth(1)) * PAGE;
        self.pids().into_iter().map(of).sum()
    }

    /// Bytes in files that are open and have no name any more: spooled bodies.
    pub(crate) fn disk(&self) -> u64 {
        let of = |pid: i32| {
            let fds = list(&format!("/proc/{pid}/fd")).into_iter();
            let unnamed = fds.map(|fd| format!("/proc/{pid}/fd/{fd}")).filter(|path| {
                fs::read_link(path).is_ok_and(|to| to.to_string_lossy().ends_with(" (deleted)"))
            });
            unnamed.filter_map(|path| Some(fs::metadata(path).ok()?.st_blocks() * 512)).sum::<u64>()
        };
        self.pids().into_iter().map(of).sum()
    }

    /// The process and everything that it started.
    fn pids(&self) -> Vec<i32> {
        let mut pids = vec![self.child.id() as i32];
        let mut next = 0;
        while let Some(pid) = pids.get(next).copied() {
            for task in list(&format!("/proc/{pid}/task")) {
                let children = read(&format!("/proc/{pid}/task/{task}/children"));
                pids.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
            }
            next += 1;
        }
        pids
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The parent first: it starts no new worker then.
        for pid in self.pids() {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = self.child.wait();
    }
}

/// `exec CGROUP PROGRAM ARGUMENT…`: becomes the program, which gets TERM when the bench dies.
pub(crate) fn enter(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    if let Some(cgroup) = arguments.next().filter(|cgroup| !cgroup.is_empty())
        && let Err(error) = fs::write(Path::new(&cgroup).join("cgroup.procs"), "0")
    {
        eprintln!("{}: {error}", cgroup.display());
        return ExitCode::FAILURE;
    }
    let Some(program) = arguments.next() else { return ExitCode::FAILURE };
    if set_parent_process_death_signal(Some(Signal::TERM)).is_err() {
        return ExitCode::FAILURE;
    }
    let error = Command::new(&program).args(arguments).exec();
    eprintln!("{}: {error}", program.display());
    ExitCode::FAILURE
}

/// The file's text; empty when the process has just ended.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn list(path: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn number(field: Option<&str>) -> u64 {
    field.and_then(|field| field.parse().ok()).unwrap_or(0)
}
