//! Limits of memory that control groups put on this process: version 1, version 2, and both side by side (hybrid).
//!
//! Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst and cgroup-v1/hugetlb.rst; cgroups(7) on
//! /proc/self/cgroup, cgroup_namespaces(7) on what a container sees of it. A process is in one group of each hierarchy, and
//! the limit of every group above counts as well. In a container the hierarchy may begin anywhere: at the container's own
//! group, or above it.

use std::path::{Component, Path};

use super::sysroot::{SysError, Sysroot};

/// A limit of memory, or of one size of huge pages, and what is left of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupLimit {
    /// The group: its path below where the hierarchy is mounted.
    pub group: String,
    /// The file that sets it, `memory.max`.
    pub file: String,
    /// Bytes.
    pub max: u64,
    /// What is left of it, bytes; page cache counts as free.
    pub room: u64,
}

/// The tightest limit of this process's memory; `None` when nothing limits it.
pub fn memory(sysroot: &Sysroot) -> Result<Option<CgroupLimit>, SysError> {
    let mut found = Tightest::default();
    for hierarchy in hierarchies(sysroot, "memory")? {
        for (group, at) in hierarchy.groups() {
            found.add(of_memory(sysroot, &hierarchy, group, &at)?);
        }
    }
    Ok(found.0)
}

/// The tightest limit of this process's huge pages of `page` bytes.
pub fn huge_pages(sysroot: &Sysroot, page: u64) -> Result<Option<CgroupLimit>, SysError> {
    let mut found = Tightest::default();
    for hierarchy in hierarchies(sysroot, "hugetlb")? {
        let (limit, usage) = match hierarchy.version {
            Version::One => ("limit_in_bytes", "usage_in_bytes"),
            Version::Two => ("max", "current"),
        };
        for (group, at) in hierarchy.groups() {
            // Pages in use, and pages that a mapping was promised before it touches them.
            for kind in [page_name(page), format!("{}.rsvd", page_name(page))] {
                let file = format!("hugetlb.{kind}.{limit}");
                let Some(max) = bytes(sysroot, &format!("{at}/{file}"))? else { continue };
                let used = bytes(sysroot, &format!("{at}/hugetlb.{kind}.{usage}"))?.unwrap_or(0);
                let (group, room) = (group.clone(), max.saturating_sub(used));
                found.add([CgroupLimit { group, file, max, room }]);
            }
        }
    }
    Ok(found.0)
}

/// As the kernel writes it in names of files: 2MB, 1GB.
fn page_name(page: u64) -> String {
    match page.trailing_zeros() {
        30.. => format!("{}GB", page >> 30),
        20..30 => format!("{}MB", page >> 20),
        _ => format!("{}KB", page >> 10),
    }
}

#[derive(Default)]
struct Tightest(Option<CgroupLimit>);

impl Tightest {
    fn add(&mut self, limits: impl IntoIterator<Item = CgroupLimit>) {
        for limit in limits {
            if self.0.as_ref().is_none_or(|known| limit.room < known.room) {
                self.0 = Some(limit);
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// One tree of groups, with the place of this process in it.
struct Hierarchy {
    version: Version,
    /// Where it is mounted.
    mount: String,
    /// The process's group below that: empty, or `/user.slice/vm.scope`.
    own: String,
}

impl Hierarchy {
    /// The process's group and all above it, innermost first, each with its directory.
    fn groups(&self) -> Vec<(String, String)> {
        let mut own = self.own.as_str();
        let mut groups = Vec::new();
        loop {
            let name = if own.is_empty() { "/" } else { own };
            groups.push((name.to_owned(), format!("{}{own}", self.mount)));
            match own.rfind('/') {
                Some(at) => own = &own[..at],
                None => return groups,
            }
        }
    }
}

/// The hierarchies that this process is in and that may have `controller`.
fn hierarchies(sysroot: &Sysroot, controller: &str) -> Result<Vec<Hierarchy>, SysError> {
    let text = sysroot.read_if_present("/proc/self/cgroup")?.unwrap_or_default();
    let mounts = sysroot.read_if_present("/proc/self/mountinfo")?.unwrap_or_default();
    let mut found = Vec::new();
    // "0::/user.slice", "11:memory:/docker/abc": number, controllers (none for version 2), path.
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let version = match (number, controllers) {
            ("0", "") => Version::Two,
            (_, list) if list.split(',').any(|name| name == controller) => Version::One,
            _ => continue,
        };
        let mut places: Vec<Mount> =
            mounts.lines().filter_map(|line| Mount::parse(line, version, controller)).collect();
        // Where it is by custom, for a host whose mounts are not shown.
        let custom = match version {
            Version::One => vec![format!("/sys/fs/cgroup/{controller}")],
            Version::Two => vec!["/sys/fs/cgroup".to_owned(), "/sys/fs/cgroup/unified".to_owned()],
        };
        places.extend(custom.into_iter().map(|at| Mount { root: "/".to_owned(), at }));
        for Mount { root, at: mount } in places {
            if !sysroot.exists(&mount) {
                continue;
            }
            let own = place(sysroot, &mount, &root, path);
            found.push(Hierarchy { version, mount, own });
            break;
        }
    }
    Ok(found)
}

/// Where the group `path` is below a hierarchy whose group `root` is mounted at `mount`. A container that has the host's
/// names before it, but only its own group mounted, is at the mount itself.
fn place(sysroot: &Sysroot, mount: &str, root: &str, path: &str) -> String {
    let usable = |below: &str| {
        // A path that leads out of the namespace (`/../..`) is of no use here.
        let below = Path::new(below);
        let plain = below.components().all(|part| part != Component::ParentDir);
        // The outermost group tells whether these are the names that are used here.
        let first = below
            .components()
            .nth(1)
            .map_or_else(String::new, |first| format!("/{}", first.as_os_str().to_string_lossy()));
        plain && sysroot.exists(&format!("{mount}{first}"))
    };
    let trimmed = |text: &str| text.trim_end_matches('/').to_owned();
    let inside = Path::new(path)
        .strip_prefix(root)
        .ok()
        .map(|rest| trimmed(&format!("/{}", rest.to_string_lossy())));
    inside.into_iter().chain([trimmed(path)]).find(|below| usable(below)).unwrap_or_default()
}

/// A mounted hierarchy.
struct Mount {
    /// The group that is seen there.
    root: String,
    /// Where.
    at: String,
}

impl Mount {
    /// proc_pid_mountinfo(5): "36 35 0:30 /root /mount/point options tags - type source options".
    fn parse(line: &str, version: Version, controller: &str) -> Option<Self> {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(3);
        let (root, at) = (unescaped(front.next()?), unescaped(front.next()?));
        let mut back = back.split(' ');
        let (kind, options) = (back.next()?, back.nth(1).unwrap_or_default());
        let fits = match version {
            Version::One => kind == "cgroup" && options.split(',').any(|word| word == controller),
            Version::Two => kind == "cgroup2",
        };
        fits.then_some(Self { root, at })
    }
}

/// Blanks in paths are written as three octal digits.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

/// A number of bytes; `None` without the file, or when the file says that there is no limit: "max" in version 2, and in
/// version 1 the largest number of whole pages, which is a little less than 2^63.
fn bytes(sysroot: &Sysroot, path: &str) -> Result<Option<u64>, SysError> {
    const NO_LIMIT: u64 = 1 << 62;
    match sysroot.read_if_present(path)?.as_deref() {
        None | Some("max" | "-1") => Ok(None),
        Some(text) => match text.parse::<u64>() {
            Ok(bytes) => Ok((bytes < NO_LIMIT).then_some(bytes)),
            Err(_) => Err(SysError::nonsense(path, text)),
        },
    }
}

fn of_memory(
    sysroot: &Sysroot,
    hierarchy: &Hierarchy,
    group: String,
    at: &str,
) -> Result<Vec<CgroupLimit>, SysError> {
    // Above memory.high every allocation waits for memory to be freed, and pinned memory never is.
    let (limits, usage, cache): (&[&str], _, _) = match hierarchy.version {
        Version::One => (
            &["memory.limit_in_bytes"],
            "memory.usage_in_bytes",
            ["total_inactive_file", "total_active_file"],
        ),
        Version::Two => {
            (&["memory.max", "memory.high"], "memory.current", ["inactive_file", "active_file"])
        }
    };
    let stat = sysroot.read_if_present(&format!("{at}/memory.stat"))?.unwrap_or_default();
    let counter = |name: &str| {
        let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(key, _)| *key == name).and_then(|(_, value)| value.trim().parse::<u64>().ok())
    };
    let used = bytes(sysroot, &format!("{at}/{usage}"))?.unwrap_or(0);
    let cached = cache.iter().filter_map(|name| counter(name)).fold(0, u64::saturating_add);
    let used = used.saturating_sub(cached);
    let mut found = Vec::new();
    for file in limits {
        if let Some(max) = bytes(sysroot, &format!("{at}/{file}"))? {
            let (group, room) = (group.clone(), max.saturating_sub(used));
            found.push(CgroupLimit { group, file: (*file).to_owned(), max, room });
        }
    }
    // Version 1 tells the tightest limit of the groups above, also of those that a container does not see.
    const EFFECTIVE: &str = "hierarchical_memory_limit";
    if let Some(max) = counter(EFFECTIVE).filter(|_| hierarchy.version == Version::One) {
        let host = super::memory::memory(sysroot)?.total;
        if max < host && found.iter().all(|limit| limit.max > max) {
            let (file, room) = (format!("memory.stat, {EFFECTIVE}"), max.saturating_sub(used));
            found.push(CgroupLimit { group, file, max, room });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
