//! Pools and file systems of several devices, which claim their members without a word in `holders`: ZFS, btrfs,
//! bcachefs, and volume groups of LVM with members that carry no volume.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::sysroot::{SysError, Sysroot},
    Loss,
    blocks::{Blocks, doubled},
    graph::{Graph, Thing},
    mounts::{Mount, device},
};

/// Puts all pools that are in use between their members and their mounts.
pub(super) fn stand(
    sysroot: &Sysroot,
    blocks: &Blocks,
    mounts: &[Mount],
    graph: &mut Graph,
) -> Result<(), SysError> {
    for (kind, members) in [("btrfs", "devices"), ("bcachefs", "")] {
        file_systems(sysroot, (kind, members), blocks, mounts, graph)?;
    }
    groups(sysroot, blocks, graph)?;
    zfs(sysroot, blocks, mounts, graph)
}

/// The kernel lists a file system in /sys/fs while it is mounted somewhere, with a link to every device of it.
fn file_systems(
    sysroot: &Sysroot,
    (kind, directory): (&str, &str),
    blocks: &Blocks,
    mounts: &[Mount],
    graph: &mut Graph,
) -> Result<(), SysError> {
    let top = format!("/sys/fs/{kind}");
    for uuid in sysroot.list_if_present(&top)? {
        let at = format!("{top}/{uuid}");
        let mut members = BTreeSet::new();
        for name in sysroot.list_if_present(&format!("{at}/{directory}"))? {
            // btrfs names the device itself, bcachefs has dev-0/block.
            members.extend(match directory {
                "" => sysroot.link_name(&format!("{at}/{name}/block"))?,
                _ => Some(name),
            });
        }
        if members.is_empty() {
            continue;
        }
        let label = sysroot.read_if_present(&format!("{at}/label"))?.unwrap_or_default();
        let pool = Thing::Pool(format!("{kind} {}", if label.is_empty() { &uuid } else { &label }));
        for member in &members {
            graph.stand(pool.clone(), Thing::Block(member.clone()));
        }
        let is_of = |mount: &&Mount| {
            let mut parts = mount.source.split(':');
            mount.kind == kind
                && parts
                    .any(|part| device(sysroot, blocks, part).is_some_and(|b| members.contains(b)))
        };
        let mut seen = false;
        for mount in mounts.iter().filter(is_of) {
            graph.stand(mount.thing(), pool.clone());
            seen = true;
        }
        if !seen {
            // Mounted where we cannot see it.
            graph.lose(pool, Loss::Claimed);
        }
    }
    Ok(())
}

/// A property in udev's database, `ID_FS_TYPE`; `None` when udev knows nothing of the device.
fn udev(sysroot: &Sysroot, number: &str) -> Result<Option<BTreeMap<String, String>>, SysError> {
    let text = sysroot.read_if_present(&format!("/run/udev/data/b{number}"))?;
    Ok(text.map(|text| {
        let properties = text.lines().filter_map(|line| line.strip_prefix("E:")?.split_once('='));
        properties.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }))
}

/// A physical volume without a volume on it still belongs to its group, whose other volumes are in use.
fn groups(sysroot: &Sysroot, blocks: &Blocks, graph: &mut Graph) -> Result<(), SysError> {
    let mut active: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, mapped) in blocks.volumes() {
        // A single hyphen stands between group and volume.
        let single = |at: &usize| {
            let bytes = mapped.as_bytes();
            let is = |at: usize| bytes.get(at) == Some(&b'-');
            is(*at) && !is(at + 1) && (*at == 0 || !is(at - 1))
        };
        if let Some(at) = (0..mapped.len()).find(single) {
            active.entry(mapped[..at].to_owned()).or_default().push(name);
        }
    }
    if active.is_empty() {
        return Ok(());
    }
    for (member, group) in physical_volumes(sysroot, blocks)? {
        let Some(volumes) = active.get(&doubled(&group)) else { continue };
        let pool = Thing::Pool(format!("volume group {group}"));
        graph.stand(pool.clone(), Thing::Block(member));
        for volume in volumes {
            graph.stand(Thing::Block((*volume).to_owned()), pool.clone());
        }
    }
    Ok(())
}

/// Block devices and the volume groups that they belong to, as LVM and udev have noted it: /run/lvm/pvs_online has a
/// file for each (`259:1`, then `vg:NAME`), a backup of the group's metadata names the devices.
fn physical_volumes(sysroot: &Sysroot, blocks: &Blocks) -> Result<Vec<(String, String)>, SysError> {
    const ONLINE: &str = "/run/lvm/pvs_online";
    const BACKUP: &str = "/etc/lvm/backup";
    let mut found = Vec::new();
    for file in sysroot.list_if_present(ONLINE)? {
        let text = sysroot.read_if_present(&format!("{ONLINE}/{file}"))?.unwrap_or_default();
        let number = text.lines().next().unwrap_or_default();
        let group = text.lines().find_map(|line| line.strip_prefix("vg:"));
        if let (Some(name), Some(group)) = (blocks.by_number(number), group) {
            found.push((name.to_owned(), group.to_owned()));
        }
    }
    for name in blocks.names() {
        let Some(number) = blocks.number(name) else { continue };
        let group = udev(sysroot, number)?.and_then(|mut all| all.remove("LVM_VG_NAME_COMPLETE"));
        found.extend(group.map(|group| (name.to_owned(), group)));
    }
    for group in sysroot.list_if_present(BACKUP)? {
        // For root alone.
        let Ok(text) = sysroot.read(&format!("{BACKUP}/{group}")) else { continue };
        for line in text.lines().filter_map(|line| line.trim().strip_prefix("device = \"")) {
            let path = line.split('"').next().unwrap_or_default();
            let Some(name) = blocks.resolve(sysroot, path) else { continue };
            // The name may be another disk's since: what udev reads there today decides.
            let number = blocks.number(name).unwrap_or_default();
            let known = udev(sysroot, number)?.and_then(|mut all| all.remove("ID_FS_TYPE"));
            if known.is_none_or(|kind| kind == "LVM2_member") {
                found.push((name.to_owned(), group.clone()));
            }
        }
    }
    Ok(found)
}

/// The type of a partition that ZFS makes.
const ZFS_PARTITION: &str = "6a898cc3-1dd2-11b2-99a6-080020736631";

fn zfs(
    sysroot: &Sysroot,
    blocks: &Blocks,
    mounts: &[Mount],
    graph: &mut Graph,
) -> Result<(), SysError> {
    const KSTAT: &str = "/proc/spl/kstat/zfs";
    let mut imported = BTreeSet::new();
    for name in sysroot.list_if_present(KSTAT)? {
        // Statistics of the module are files beside the directories of pools.
        if !sysroot.list(&format!("{KSTAT}/{name}")).unwrap_or_default().is_empty() {
            imported.insert(name);
        }
    }
    for mount in mounts.iter().filter(|mount| mount.kind == "zfs") {
        let name = mount.source.split(['/', '@']).next().unwrap_or_default();
        imported.insert(name.to_owned());
        graph.stand(mount.thing(), pool(name));
    }
    if imported.is_empty() {
        return Ok(());
    }
    let mut members = members(sysroot, blocks)?;
    members.retain(|(_, name)| name.as_ref().is_none_or(|name| imported.contains(name)));
    let nameless = members.iter().any(|(_, name)| name.is_none());
    let is_known = |name: &String| members.iter().any(|(_, of)| of.as_ref() == Some(name));
    let guessed = match nameless || imported.iter().all(is_known) {
        true => Vec::new(),
        false => suspects(sysroot, blocks, graph)?,
    };
    for name in &imported {
        graph.lose(pool(name), Loss::Pool);
        let is_its = |of: &Option<String>| of.as_ref().is_none_or(|of| of == name);
        for (member, _) in members.iter().filter(|(_, of)| is_its(of)) {
            graph.stand(pool(name), Thing::Block(member.clone()));
        }
        for member in guessed.iter().filter(|_| !is_known(name)) {
            graph.stand(pool(name), Thing::Block(member.clone()));
        }
        // Volumes of a pool are disks of their own.
        for volume in blocks.names().filter(|volume| is_volume(volume)) {
            if volume_pool(sysroot, blocks, volume, &imported)?.is_none_or(|of| of == *name) {
                graph.stand(Thing::Block(volume.to_owned()), pool(name));
            }
        }
    }
    Ok(())
}

fn pool(name: &str) -> Thing {
    Thing::Pool(format!("zpool {name}"))
}

fn is_volume(name: &str) -> bool {
    name.strip_prefix("zd").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// /dev/zvol/POOL/... links to a pool's volumes.
fn volume_pool(
    sysroot: &Sysroot,
    blocks: &Blocks,
    volume: &str,
    pools: &BTreeSet<String>,
) -> Result<Option<String>, SysError> {
    for name in pools {
        for child in sysroot.list_if_present(&format!("/dev/zvol/{name}"))? {
            let path = format!("/dev/zvol/{name}/{child}");
            if blocks.resolve(sysroot, &path) == Some(volume) {
                return Ok(Some(name.clone()));
            }
        }
    }
    Ok(None)
}

/// Members of pools with the pool's name where it is known: what udev read on them, and what the cache file lists.
fn members(sysroot: &Sysroot, blocks: &Blocks) -> Result<Vec<(String, Option<String>)>, SysError> {
    let mut found = Vec::new();
    for name in blocks.names() {
        let Some(number) = blocks.number(name) else { continue };
        let Some(all) = udev(sysroot, number)? else { continue };
        let has = |key: &str, value: &str| all.get(key).is_some_and(|found| found == value);
        // With partitions the signature of the disk is that of one of them.
        let is_member = has("ID_FS_TYPE", "zfs_member") && !blocks.is_parted(name);
        if is_member || !all.contains_key("ID_FS_TYPE") && has("ID_PART_ENTRY_TYPE", ZFS_PARTITION)
        {
            found.push((name.to_owned(), all.get("ID_FS_LABEL").cloned()));
        }
    }
    // For root alone on some systems.
    let cache = sysroot.read_bytes("/etc/zfs/zpool.cache").unwrap_or_default();
    for (pool, path) in cached(&cache) {
        let part = |path: &str| blocks.resolve(sysroot, path).map(str::to_owned);
        // ZFS on a whole disk makes its first partition and may note the disk.
        let name = part(&path).map(|name| {
            let firsts = [format!("{name}p1"), format!("{name}1")];
            let first = firsts.into_iter().find(|first| blocks.number(first).is_some());
            first.filter(|_| blocks.is_parted(&name)).unwrap_or(name)
        });
        found.extend(name.map(|name| (name, Some(pool))));
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Pool and path of every device in a zpool.cache: a list of names and values in XDR (RFC 4506), where a string is a
/// length of 32 bits, the bytes, and zeros up to a multiple of 4. Only strings are looked at: the one behind "name" at
/// the top of a pool and those behind "path" below it.
fn cached(bytes: &[u8]) -> Vec<(String, String)> {
    let string = |at: usize| {
        let length: [u8; 4] = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
        let text = bytes.get(at + 4..(at + 4).checked_add(length)?)?;
        let text = std::str::from_utf8(text).ok().filter(|_| (1..=4096).contains(&length))?;
        text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ').then_some(text)
    };
    /// DATA_TYPE_STRING of an nvpair.
    const STRING: [u8; 8] = [0, 0, 0, 9, 0, 0, 0, 1];
    let (mut pool, mut found) = (None, Vec::new());
    for at in (0..bytes.len()).step_by(4) {
        let Some(key) = string(at).filter(|key| ["name", "path"].contains(key)) else { continue };
        // Both keys have 4 letters: no zeros follow them.
        let value = at + 8;
        if bytes.get(value..value + 8) != Some(&STRING) {
            continue;
        }
        match (key, string(value + 8), &pool) {
            ("name", Some(name), _) => pool = Some(name.to_owned()),
            ("path", Some(path), Some(pool)) => found.push((pool.clone(), path.to_owned())),
            _ => {}
        }
    }
    found
}

/// A pool is imported, and nothing tells of what: then it may be any disk that nothing else explains, unless the kernel
/// lets us have it alone. Of a disk with partitions the largest is named, of equals the last.
fn suspects(sysroot: &Sysroot, blocks: &Blocks, graph: &Graph) -> Result<Vec<String>, SysError> {
    const NO_DISKS: [&str; 6] = ["loop", "ram", "zram", "zd", "sr", "fd"];
    let mut best: BTreeMap<String, (u64, String)> = BTreeMap::new();
    for name in blocks.names() {
        let thing = Thing::Block(name.to_owned());
        if graph.carries(&thing) || NO_DISKS.iter().any(|kind| name.starts_with(kind)) {
            continue;
        }
        let number = blocks.number(name).unwrap_or_default();
        if udev(sysroot, number)?.is_some_and(|all| all.contains_key("ID_FS_TYPE")) {
            continue;
        }
        if sysroot.is_host() && sysroot.try_claim(&format!("/dev/{name}")).is_ok() {
            continue;
        }
        let disk = graph_disk(blocks, graph, name);
        let size = sysroot.read_if_present(&format!("/sys/class/block/{name}/size"))?;
        let size = size.and_then(|size| size.parse().ok()).unwrap_or(0);
        let entry = (size, name.to_owned());
        let known = best.entry(disk).or_insert_with(|| entry.clone());
        *known = entry.max(known.clone());
    }
    Ok(best.into_values().map(|(_, name)| name).collect())
}

/// The disk that a partition is of.
fn graph_disk(blocks: &Blocks, graph: &Graph, name: &str) -> String {
    let part = Thing::Block(name.to_owned());
    let is_of = |disk: &&str| {
        blocks.is_parted(disk) && graph.above(&Thing::Block((*disk).to_owned())).any(|t| *t == part)
    };
    blocks.names().find(is_of).unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(key: &str, value: &str) -> Vec<u8> {
        let text = |text: &str| {
            let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
            bytes.extend(text.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        // Encoded and decoded size, name, type string, one element, value.
        [vec![0, 0, 0, 48, 0, 0, 0, 56], text(key), vec![0, 0, 0, 9, 0, 0, 0, 1], text(value)]
            .concat()
    }

    #[test]
    fn cached_pools_keep_their_devices_apart() {
        let mut file = vec![1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        for (key, value) in [
            ("name", "rpool"),
            ("path", "/dev/disk/by-id/nvme-A-part3"),
            ("path", "/dev/disk/by-id/nvme-B-part3"),
            ("name", "tank"),
            ("devid", "ata-C"),
            ("path", "/dev/sdc1"),
        ] {
            file.extend(pair(key, value));
        }
        let pairs = [
            ("rpool", "/dev/disk/by-id/nvme-A-part3"),
            ("rpool", "/dev/disk/by-id/nvme-B-part3"),
            ("tank", "/dev/sdc1"),
        ];
        assert_eq!(cached(&file), pairs.map(|(pool, path)| (pool.to_owned(), path.to_owned())));
        assert!(cached(&[0xff; 64]).is_empty() && cached(&file[..30]).is_empty());
    }
}
