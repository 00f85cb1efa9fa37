//! Mounted file systems and swap: on which block devices, and what stands on their files.

use std::collections::BTreeSet;

use super::{
    super::sysroot::{SysError, Sysroot},
    Loss,
    blocks::Blocks,
    graph::{Graph, Thing},
};

/// One line of a mountinfo file, proc_pid_mountinfo(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// `major:minor`; file systems of several devices have a number of their own.
    pub(super) number: String,
    /// Where.
    pub(super) point: String,
    /// `ext4`.
    pub(super) kind: String,
    /// A device, a pool, another machine.
    pub(super) source: String,
    /// Of the file system, not of the mount.
    pub(super) options: String,
    /// The mount is in the namespace of this process, not in strait's.
    pub(super) elsewhere: Option<String>,
}

impl Mount {
    /// `36 35 98:0 /root /mount/point options tags - type source options`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (number, point) = (words.nth(2)?, words.nth(1)?);
        let mut rest = words.skip_while(|word| *word != "-").skip(1);
        Some(Self {
            number: number.to_owned(),
            point: unescaped(point),
            kind: rest.next()?.to_owned(),
            source: unescaped(rest.next()?),
            options: unescaped(rest.next().unwrap_or_default()),
            elsewhere: None,
        })
    }

    /// What stands for it in the graph.
    pub(super) fn thing(&self) -> Thing {
        Thing::Files(match &self.elsewhere {
            Some(who) => format!("{} for {who}", self.point),
            None => self.point.clone(),
        })
    }

    /// The value of an option: `addr` of `rw,addr=10.0.0.1`.
    pub(super) fn option(&self, name: &str) -> Option<&str> {
        let mut options = self.options.split(',');
        options.find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
    }
}

/// The kernel writes a space as `\040`, and tab, line feed and backslash the same way.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        let octal = others.get(..3).filter(|_| *first == b'\\');
        let value = octal.and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        bytes.push(value.unwrap_or(*first));
        rest = if value.is_some() { &others[3..] } else { others };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The mounts of strait's namespace, then those that other processes have besides: a container's.
pub(super) fn read(sysroot: &Sysroot) -> Result<Vec<Mount>, SysError> {
    let own = sysroot.read_if_present("/proc/self/mountinfo")?.unwrap_or_default();
    let mut mounts: Vec<Mount> = own.lines().filter_map(Mount::parse).collect();
    let mut seen = BTreeSet::new();
    seen.extend(sysroot.link("/proc/self/ns/mnt")?);
    for pid in sysroot.list_if_present("/proc")? {
        if !pid.bytes().all(|digit| digit.is_ascii_digit()) {
            continue;
        }
        // One that ended since has nothing mounted, and one that may not be looked into is for the exclusive open.
        match sysroot.link(&format!("/proc/{pid}/ns/mnt")) {
            Ok(Some(namespace)) if seen.insert(namespace.clone()) => {}
            Ok(None) if !sysroot.is_host() => {}
            _ => continue,
        }
        let Ok(Some(text)) = sysroot.read_if_present(&format!("/proc/{pid}/mountinfo")) else {
            continue;
        };
        let name = sysroot.read(&format!("/proc/{pid}/comm")).unwrap_or_else(|_| "?".to_owned());
        for mut mount in text.lines().filter_map(Mount::parse) {
            let same = |known: &Mount| {
                (&known.number, &known.source, &known.kind)
                    == (&mount.number, &mount.source, &mount.kind)
            };
            if !mounts.iter().any(same) {
                mount.elsewhere = Some(format!("{name} (pid {pid})"));
                mounts.push(mount);
            }
        }
    }
    Ok(mounts)
}

/// Puts mounts, files that stand for disks, and swap on the block devices below them.
pub(super) fn stand(
    sysroot: &Sysroot,
    blocks: &Blocks,
    mounts: &[Mount],
    graph: &mut Graph,
) -> Result<(), SysError> {
    for mount in mounts {
        let mut below: BTreeSet<&str> = blocks.by_number(&mount.number).into_iter().collect();
        // btrfs has a number of its own; bcachefs lists all its devices with colons between them. Where the kernel lists
        // the devices of each, the mount is on that.
        if !is_listed(sysroot, &mount.kind)? {
            below.extend(mount.source.split(':').filter_map(|path| device(sysroot, blocks, path)));
        }
        // A file system may keep its journal or its large files on another device.
        for option in ["logdev", "rtdev", "journal_path"] {
            below.extend(mount.option(option).and_then(|path| blocks.resolve(sysroot, path)));
        }
        for name in below {
            graph.stand(mount.thing(), Thing::Block(name.to_owned()));
        }
        graph.lose(mount.thing(), Loss::Mount);
    }
    for name in blocks.names() {
        for file in ["loop/backing_file", "backing_dev"] {
            let text = sysroot.read_if_present(&format!("/sys/block/{name}/{file}"))?;
            let path = text.as_deref().map(|path| path.trim_end_matches(" (deleted)"));
            let below = path.and_then(|path| home(sysroot, blocks, mounts, path));
            if let Some(below) = below {
                graph.stand(Thing::Block(name.to_owned()), below);
                graph.lose(Thing::Block(name.to_owned()), Loss::Active);
            }
        }
    }
    let swaps = sysroot.read_if_present("/proc/swaps")?.unwrap_or_default();
    for path in swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
        let path = unescaped(path);
        if let Some(below) = home(sysroot, blocks, mounts, &path) {
            graph.lose(below, Loss::Swap(path));
        }
    }
    own(sysroot, blocks, mounts, graph)
}

/// Does the kernel list the devices of the mounted file systems of this kind, each in a directory that its UUID names?
fn is_listed(sysroot: &Sysroot, kind: &str) -> Result<bool, SysError> {
    let names = match kind {
        "btrfs" | "bcachefs" => sysroot.list_if_present(&format!("/sys/fs/{kind}"))?,
        _ => Vec::new(),
    };
    Ok(names.iter().any(|name| name.contains('-')))
}

/// A source of a mount, where `/dev/root` is what the kernel was told to begin with.
pub(super) fn device<'a>(sysroot: &Sysroot, blocks: &'a Blocks, path: &str) -> Option<&'a str> {
    if path != "/dev/root" {
        return blocks.resolve(sysroot, path);
    }
    argument(sysroot, blocks, "root=")
}

/// The block device that an argument of the kernel's names, by path, UUID, label or number of its partition.
fn argument<'a>(sysroot: &Sysroot, blocks: &'a Blocks, name: &str) -> Option<&'a str> {
    let line = sysroot.read_if_present("/proc/cmdline").ok()??;
    let value = line.split_whitespace().rev().find_map(|word| word.strip_prefix(name))?;
    let links = [
        ("UUID=", "by-uuid"),
        ("LABEL=", "by-label"),
        ("PARTUUID=", "by-partuuid"),
        ("PARTLABEL=", "by-partlabel"),
    ];
    let link = links.iter().find_map(|(tag, directory)| {
        Some(format!("/dev/disk/{directory}/{}", value.strip_prefix(tag)?))
    });
    blocks.resolve(sysroot, link.as_deref().unwrap_or(value))
}

/// What a file lies on: a block device, or the file system with the longest mount point above it.
fn home(sysroot: &Sysroot, blocks: &Blocks, mounts: &[Mount], path: &str) -> Option<Thing> {
    if let Some(name) = blocks.resolve(sysroot, path) {
        return Some(Thing::Block(name.to_owned()));
    }
    let is_above = |mount: &&Mount| {
        let rest = path.strip_prefix(mount.point.trim_end_matches('/'));
        mount.elsewhere.is_none() && rest.is_some_and(|rest| rest.starts_with('/'))
    };
    // Of those on one point the last is seen.
    mounts.iter().filter(is_above).max_by_key(|mount| mount.point.len()).map(Mount::thing)
}

/// What strait itself and the next boot of this kernel need.
fn own(
    sysroot: &Sysroot,
    blocks: &Blocks,
    mounts: &[Mount],
    graph: &mut Graph,
) -> Result<(), SysError> {
    for place in ["/proc/self/exe", "/proc/self/cwd"] {
        let Some(number) = sysroot.device_of(place)? else { continue };
        if let Some(name) = blocks.by_number(&number) {
            graph.lose(Thing::Block(name.to_owned()), Loss::Own);
        } else if let Some(mount) = mounts.iter().find(|mount| mount.number == number) {
            graph.lose(mount.thing(), Loss::Own);
        }
    }
    if let Some(name) = argument(sysroot, blocks, "resume=") {
        graph.lose(Thing::Block(name.to_owned()), Loss::Resume);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_with_spaces_tags_and_options_is_read() {
        let line = r"36 35 98:0 /root /mnt/my\040disk rw,noatime shared:1 master:2 - ext4 /dev/sda1 rw,addr=10.0.0.1";
        let mount = Mount::parse(line).unwrap();
        assert_eq!((mount.point.as_str(), mount.kind.as_str()), ("/mnt/my disk", "ext4"));
        assert_eq!(mount.option("addr"), Some("10.0.0.1"));
        assert_eq!(mount.option("add"), None);
        assert_eq!(Mount::parse("36 35 98:0 /root"), None);
    }

    #[test]
    fn unescaped_leaves_what_is_no_escape() {
        assert_eq!(unescaped(r"a\134b\9z\04"), r"a\b\9z\04");
    }
}
