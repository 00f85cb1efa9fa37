//! Limits of both versions of cgroups.
//!
//! Provenance: the form of Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst; what Docker on
//! Debian 10 shows where that is said, numbers made up; no dump of a whole host.

use super::*;
use crate::host::fixture::Tree;

const GIB: u64 = 1 << 30;

/// `/proc/self/cgroup` of a host with both versions, as Docker on Debian 10 shows it.
const HYBRID: &str = "12:pids:/docker/abc\n11:memory:/docker/abc\n10:cpu,cpuacct:/docker/abc\n\
    5:hugetlb:/docker/abc\n1:name=systemd:/docker/abc\n0::/system.slice/containerd.service\n";
/// What a cgroup of version 1 says when nothing limits it.
const UNLIMITED: &str = "9223372036854771712\n";

fn hybrid() -> Tree {
    let tree = Tree::new();
    tree.host_basics();
    tree.file("/proc/self/cgroup", HYBRID);
    tree.directory("/sys/fs/cgroup/unified/system.slice/containerd.service");
    one(&tree, "", UNLIMITED, 0);
    tree
}

/// The files of version 1 for the group `path`, with a GiB of page cache in what it uses.
fn one(tree: &Tree, path: &str, limit: &str, used: u64) {
    let at = format!("/sys/fs/cgroup/memory{path}");
    tree.file(&format!("{at}/memory.limit_in_bytes"), limit);
    tree.file(&format!("{at}/memory.usage_in_bytes"), format!("{}\n", used + GIB));
    tree.file(
        &format!("{at}/memory.stat"),
        format!("cache 5\ntotal_inactive_file {}\ntotal_active_file {}\n", GIB / 2, GIB / 2),
    );
}

fn limit(group: &str, file: &str, max: u64, room: u64) -> Option<CgroupLimit> {
    Some(CgroupLimit { group: group.to_owned(), file: file.to_owned(), max, room })
}

#[test]
fn version_2_limit_of_a_parent_counts_and_cache_is_free() {
    let tree = Tree::new();
    tree.file("/proc/self/cgroup", "0::/user.slice/vm.scope\n");
    tree.file("/sys/fs/cgroup/user.slice/vm.scope/memory.max", "max\n");
    tree.file("/sys/fs/cgroup/user.slice/memory.max", "1000000\n");
    tree.file("/sys/fs/cgroup/user.slice/memory.current", "700000\n");
    tree.file(
        "/sys/fs/cgroup/user.slice/memory.stat",
        "anon 500000\ninactive_file 150000\nactive_file 50000\n",
    );
    let found = memory(&tree.sysroot()).unwrap();
    assert_eq!(found, limit("/user.slice", "memory.max", 1_000_000, 500_000));
    tree.file("/sys/fs/cgroup/user.slice/vm.scope/memory.high", "400000\n");
    let found = memory(&tree.sysroot()).unwrap();
    assert_eq!(found, limit("/user.slice/vm.scope", "memory.high", 400_000, 400_000));
}

#[test]
fn version_2_container_with_names_of_its_own_has_its_limit_at_the_root() {
    let tree = Tree::new();
    tree.file("/proc/self/cgroup", "0::/\n");
    assert_eq!(memory(&tree.sysroot()).unwrap(), None);
    tree.file("/sys/fs/cgroup/memory.max", format!("{}\n", 4 * GIB));
    tree.file("/sys/fs/cgroup/memory.current", format!("{GIB}\n"));
    let found = memory(&tree.sysroot()).unwrap();
    assert_eq!(found, limit("/", "memory.max", 4 * GIB, 3 * GIB));
}

#[test]
fn version_1_limit_counts_beside_version_2_and_its_largest_number_is_none() {
    let tree = hybrid();
    one(&tree, "/docker/abc", UNLIMITED, 0);
    assert_eq!(memory(&tree.sysroot()).unwrap(), None);
    one(&tree, "/docker", "8589934592\n", GIB);
    let found = memory(&tree.sysroot()).unwrap();
    assert_eq!(found, limit("/docker", "memory.limit_in_bytes", 8 * GIB, 7 * GIB));
    one(&tree, "/docker/abc", "4294967296\n", GIB);
    let found = memory(&tree.sysroot()).unwrap();
    assert_eq!(found, limit("/docker/abc", "memory.limit_in_bytes", 4 * GIB, 3 * GIB));
}

#[test]
fn version_1_container_that_sees_its_own_group_alone_is_at_the_mount() {
    let tree = hybrid();
    let mounts = |root: &str| {
        format!(
            "30 25 0:26 /docker/abc /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids\n\
             31 25 0:27 {root} /cg/memory\\040v1 ro,nosuid - cgroup cgroup rw,memory\n"
        )
    };
    let at = "/cg/memory v1";
    tree.file(&format!("{at}/memory.limit_in_bytes"), "4294967296\n");
    tree.file(&format!("{at}/memory.usage_in_bytes"), "0\n");
    let expected = limit("/", "memory.limit_in_bytes", 4 * GIB, 4 * GIB);
    // As Docker mounts it; as a bind mount from another namespace shows; as one whose root is not the group's.
    for root in ["/docker/abc", "/", "/../..", "/kubepods"] {
        tree.file("/proc/self/mountinfo", mounts(root));
        assert_eq!(memory(&tree.sysroot()).unwrap(), expected, "{root}");
    }
    // A group that the container made in its own.
    tree.file("/proc/self/cgroup", "11:memory:/docker/abc/vm\n");
    tree.file("/proc/self/mountinfo", mounts("/docker/abc"));
    tree.file(&format!("{at}/vm/memory.limit_in_bytes"), "1073741824\n");
    let found = memory(&tree.sysroot()).unwrap();
    assert_eq!(found, limit("/vm", "memory.limit_in_bytes", GIB, GIB));
    tree.file("/proc/self/cgroup", "11:memory:/../other\n");
    assert_eq!(memory(&tree.sysroot()).unwrap(), expected);
}

#[test]
fn version_1_tells_limits_of_groups_that_a_container_does_not_see() {
    let tree = hybrid();
    tree.file("/sys/fs/cgroup/memory/memory.limit_in_bytes", UNLIMITED);
    tree.file("/sys/fs/cgroup/memory/memory.usage_in_bytes", "0\n");
    let stat = |bytes: u64| format!("hierarchical_memory_limit {bytes}\n");
    tree.file("/sys/fs/cgroup/memory/memory.stat", stat(2 * GIB));
    let found = memory(&tree.sysroot()).unwrap().unwrap();
    assert_eq!((found.max, found.room), (2 * GIB, 2 * GIB));
    assert!(found.file.contains("hierarchical_memory_limit"), "{}", found.file);
    tree.file("/sys/fs/cgroup/memory/memory.stat", stat(9_223_372_036_854_771_712));
    assert_eq!(memory(&tree.sysroot()).unwrap(), None);
}

#[test]
fn controllers_may_share_a_hierarchy() {
    let tree = Tree::new();
    tree.host_basics();
    tree.file("/proc/self/cgroup", "4:cpu,memory,hugetlb:/a\n");
    tree.file(
        "/proc/self/mountinfo",
        "31 25 0:27 / /cg rw - cgroup cgroup rw,cpu,memory,hugetlb\n",
    );
    tree.file("/cg/a/memory.limit_in_bytes", "1073741824\n");
    tree.file("/cg/memory.limit_in_bytes", UNLIMITED);
    assert_eq!(memory(&tree.sysroot()).unwrap().unwrap().max, GIB);
}

#[test]
fn huge_pages_have_limits_of_their_own_for_use_and_for_promises() {
    let tree = Tree::new();
    tree.file("/proc/self/cgroup", "0::/vm.scope\n");
    let at = "/sys/fs/cgroup/vm.scope";
    tree.file(&format!("{at}/hugetlb.2MB.max"), "max\n");
    tree.file(&format!("{at}/hugetlb.1GB.max"), format!("{}\n", 8 * GIB));
    tree.file(&format!("{at}/hugetlb.1GB.current"), format!("{GIB}\n"));
    assert_eq!(huge_pages(&tree.sysroot(), 2 << 20).unwrap(), None);
    let found = huge_pages(&tree.sysroot(), GIB).unwrap();
    assert_eq!(found, limit("/vm.scope", "hugetlb.1GB.max", 8 * GIB, 7 * GIB));
    tree.file(&format!("{at}/hugetlb.1GB.rsvd.max"), format!("{}\n", 2 * GIB));
    let found = huge_pages(&tree.sysroot(), GIB).unwrap();
    assert_eq!(found, limit("/vm.scope", "hugetlb.1GB.rsvd.max", 2 * GIB, 2 * GIB));
    let old = hybrid();
    old.file("/sys/fs/cgroup/hugetlb/docker/abc/hugetlb.2MB.limit_in_bytes", "4194304\n");
    old.file("/sys/fs/cgroup/hugetlb/docker/abc/hugetlb.2MB.usage_in_bytes", "2097152\n");
    let found = huge_pages(&old.sysroot(), 2 << 20).unwrap();
    assert_eq!(found, limit("/docker/abc", "hugetlb.2MB.limit_in_bytes", 4 << 20, 2 << 20));
}

#[test]
fn garbled_limit_is_an_error_and_no_group_no_limit() {
    let tree = Tree::new();
    assert_eq!(memory(&tree.sysroot()).unwrap(), None);
    tree.file("/proc/self/cgroup", "0::/\n");
    tree.file("/sys/fs/cgroup/memory.max", "plenty\n");
    assert!(memory(&tree.sysroot()).unwrap_err().to_string().contains("memory.max"));
}
