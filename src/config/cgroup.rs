//! What the cgroup allows: memory and CPU, version 1 and 2, nested or in a namespace of its own.
//! `resolve` asks once; `settings` makes defaults of it, the boot line and `check` tell it. Pure: files
//! come through `ReadFile`, so that tests use made-up trees.

use std::path::Path;

use super::platform::ReadFile;
use super::value::show_size;

/// None: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<u64>,
    /// CPUs at once, as 0.5.
    pub cpu: Option<f64>,
}

impl Limits {
    /// `memory 512m, cpu 0.5`; what is not limited is left out.
    pub(super) fn show(&self) -> String {
        let memory = self.memory.map(|limit| format!("memory {}", show_memory(limit)));
        let cpu = self.cpu.map(|limit| format!("cpu {}", show_cpu(limit)));
        memory.into_iter().chain(cpu).collect::<Vec<_>>().join(", ")
    }
}

/// In whole megabytes: the limits that platforms set are not always round.
pub(super) fn show_memory(limit: u64) -> String {
    show_size(limit.max(1 << 20) & !0xfffff)
}

/// With two digits at most.
pub(super) fn show_cpu(limit: f64) -> String {
    format!("{}", (limit * 100.0).round().max(1.0) / 100.0)
}

/// Where all hierarchies are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// The limits of our cgroup and of those around it; the smallest counts.
pub(super) fn limits(read: ReadFile<'_>) -> Limits {
    let text = |path: &str| String::from_utf8(read(Path::new(path)).ok()?).ok();
    let (mut memory, mut cpu) = (Vec::new(), Vec::new());
    for line in text("/proc/self/cgroup").unwrap_or_default().lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        if controllers.is_empty() {
            // Version 2. In a namespace the path is `/`, and our own group is the mount's root.
            for group in groups(MOUNT, path) {
                memory.extend(text(&format!("{group}/memory.max")).and_then(|t| bytes(&t)));
                cpu.extend(text(&format!("{group}/cpu.max")).and_then(|t| {
                    let (quota, period) = t.trim().split_once(' ')?;
                    share(quota, period)
                }));
            }
        }
        // Version 1 mounts each controller by itself, or under the names of those that share it.
        for controller in controllers.split(',') {
            let mounts = [format!("{MOUNT}/{controller}"), format!("{MOUNT}/{controllers}")];
            for mount in &mounts[..1 + usize::from(controller != controllers)] {
                // The path is the host's: a container that does not have it sees its own group as the
                // mount's root.
                let found = |file: &str| {
                    let named: Vec<String> = groups(mount, path).collect();
                    let own = named.first().and_then(|group| text(&format!("{group}/{file}")));
                    if own.is_some() { named } else { vec![mount.clone()] }
                };
                match controller {
                    "memory" => {
                        let own = found("memory.limit_in_bytes").swap_remove(0);
                        memory.extend(
                            text(&format!("{own}/memory.limit_in_bytes")).and_then(|t| bytes(&t)),
                        );
                        // The groups around it, as far as they count.
                        let stat = text(&format!("{own}/memory.stat")).unwrap_or_default();
                        memory.extend(stat.lines().find_map(|line| {
                            bytes(line.strip_prefix("hierarchical_memory_limit ")?)
                        }));
                    }
                    "cpu" => cpu.extend(found("cpu.cfs_quota_us").iter().filter_map(|group| {
                        let quota = text(&format!("{group}/cpu.cfs_quota_us"))?;
                        share(&quota, &text(&format!("{group}/cpu.cfs_period_us"))?)
                    })),
                    _ => {}
                }
            }
        }
    }
    Limits { memory: memory.into_iter().min(), cpu: cpu.into_iter().min_by(f64::total_cmp) }
}

/// The directories of a group and of those around it, innermost first.
fn groups<'t>(mount: &'t str, path: &'t str) -> impl Iterator<Item = String> + 't {
    Path::new(path)
        .ancestors()
        .map(move |group| format!("{mount}{}", group.to_string_lossy().trim_end_matches('/')))
}

/// A limit of memory. `max`, and in version 1 a number near 2^63, are none; no container has more than
/// a terabyte.
fn bytes(text: &str) -> Option<u64> {
    const NONE: u64 = 1 << 40;
    text.trim().parse().ok().filter(|limit| (1..=NONE).contains(limit))
}

/// CPUs of a quota in each period. `max` and -1 are none.
fn share(quota: &str, period: &str) -> Option<f64> {
    let number = |text: &str| text.trim().parse::<u32>().ok().filter(|n| *n > 0);
    Some(f64::from(number(quota)?) / f64::from(number(period)?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// `PATH content` lines, paths below `MOUNT`, and what /proc/self/cgroup says.
    fn found(own: &str, tree: &str) -> Limits {
        let mut files: BTreeMap<String, String> = tree
            .lines()
            .filter_map(|line| line.trim().split_once(' '))
            .map(|(path, content)| (format!("{MOUNT}/{path}"), format!("{content}\n")))
            .collect();
        files.insert("/proc/self/cgroup".to_owned(), own.replace(' ', "\n"));
        limits(&|path: &Path| {
            let text = path.to_str().and_then(|path| files.get(path));
            text.map(|text| text.clone().into_bytes()).ok_or(std::io::ErrorKind::NotFound.into())
        })
    }

    fn memory(own: &str, tree: &str) -> Option<u64> {
        found(own, tree).memory
    }

    fn cpu(own: &str, tree: &str) -> Option<f64> {
        found(own, tree).cpu
    }

    #[test]
    fn without_a_cgroup_nothing_is_limited() {
        assert_eq!(limits(&|_| Err(std::io::ErrorKind::NotFound.into())), Limits::default());
        for own in ["", "0::", "garbage", "0::/ 4:memory:/x", "4:memory"] {
            assert_eq!(found(own, ""), Limits::default(), "{own}");
        }
    }

    #[test]
    fn version_2_in_a_namespace_has_its_limits_at_the_root() {
        assert_eq!(
            found("0::/", "memory.max 536870912\ncpu.max 50000 100000"),
            Limits { memory: Some(512 << 20), cpu: Some(0.5) }
        );
        assert_eq!(found("0::/", "memory.max max\ncpu.max max 100000"), Limits::default());
        assert_eq!(found("0::/", "memory.max 0\ncpu.max 0 100000"), Limits::default());
    }

    #[test]
    fn version_2_nested_has_the_smallest_limit_of_all_levels() {
        let own = "0::/system.slice/app.service";
        for (inner, outer, expected) in
            [("max", "700", Some(700)), ("300", "700", Some(300)), ("900", "700", Some(700))]
        {
            let tree = format!(
                "system.slice/app.service/memory.max {inner}\nsystem.slice/memory.max {outer}"
            );
            assert_eq!(memory(own, &tree), expected);
        }
        let tree = "system.slice/app.service/cpu.max max 100000\nsystem.slice/cpu.max 400000 100000\n\
                    cpu.max 150000 100000";
        assert_eq!(cpu(own, tree), Some(1.5));
    }

    #[test]
    fn version_1_has_the_named_group_where_it_is_and_else_the_mounts_root() {
        let own = "5:cpu:/docker/abc 4:memory:/docker/abc 0::/";
        let named = "memory/docker/abc/memory.limit_in_bytes 1000\n\
                     memory/memory.limit_in_bytes 9223372036854771712";
        assert_eq!(memory(own, named), Some(1000));
        assert_eq!(memory(own, "memory/memory.limit_in_bytes 536870912"), Some(512 << 20));
        let named = "cpu/docker/abc/cpu.cfs_quota_us 200000\ncpu/docker/abc/cpu.cfs_period_us 100000\n\
                     cpu/cpu.cfs_quota_us 50000\ncpu/cpu.cfs_period_us 100000";
        // The group around it counts, too.
        assert_eq!(cpu(own, named), Some(0.5));
        let root = "cpu/cpu.cfs_quota_us 150000\ncpu/cpu.cfs_period_us 100000";
        assert_eq!(cpu(own, root), Some(1.5));
        let none = "cpu/cpu.cfs_quota_us -1\ncpu/cpu.cfs_period_us 100000";
        assert_eq!(cpu(own, none), None);
    }

    #[test]
    fn version_1_says_in_its_statistics_what_the_groups_around_leave() {
        let own = "4:memory:/docker/abc";
        let tree = "memory/docker/abc/memory.limit_in_bytes 1000\n\
                    memory/docker/abc/memory.stat hierarchical_memory_limit 400";
        assert_eq!(memory(own, tree), Some(400));
        // Heroku's, where the group itself says none.
        let tree = "memory/memory.limit_in_bytes 9223372036854771712\n\
                    memory/memory.stat hierarchical_memory_limit 536870912";
        assert_eq!(memory(own, tree), Some(512 << 20));
    }

    #[test]
    fn version_1_controllers_may_share_a_mount() {
        let own = "4:cpu,cpuacct:/x 3:hugetlb,memory:/";
        let tree = "cpu,cpuacct/cpu.cfs_quota_us 100000\ncpu,cpuacct/cpu.cfs_period_us 50000\n\
                    memory/memory.limit_in_bytes 64";
        assert_eq!(found(own, tree), Limits { memory: Some(64), cpu: Some(2.0) });
    }

    #[test]
    fn more_than_a_terabyte_is_no_limit() {
        assert_eq!(memory("0::/", "memory.max 1099511627776"), Some(1 << 40));
        assert_eq!(memory("0::/", "memory.max 1099511627777"), None);
        let root = "memory/memory.limit_in_bytes 9223372036854771712";
        assert_eq!(memory("4:memory:/", root), None);
    }

    #[test]
    fn limits_are_told_in_short() {
        let show = |memory, cpu| Limits { memory, cpu }.show();
        assert_eq!(show(Some(512 << 20), Some(0.5)), "memory 512m, cpu 0.5");
        assert_eq!(show(Some((512 << 20) + 4096), Some(2.0)), "memory 512m, cpu 2");
        assert_eq!(show(None, Some(1.0 / 3.0)), "cpu 0.33");
        assert_eq!(show(None, Some(0.001)), "cpu 0.01");
        assert_eq!(show(None, None), "");
    }
}
