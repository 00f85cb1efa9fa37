//! Memory: how much, where, and how much of it may be locked.

use super::{
    super::{
        cgroup::{self, CgroupLimit},
        memory::{self, TransparentHugePages},
        pci::HostFunction,
    },
    Answer, Host, Outcome,
};
use crate::size::Size;

/// 34: where the device's own memory and CPUs are.
pub(super) fn numa(host: &Host<'_>, function: &HostFunction) -> Answer {
    let nodes = host.sysroot.list_if_present("/sys/devices/system/node")?;
    let count = nodes
        .iter()
        .filter_map(|name| name.strip_prefix("node"))
        .filter(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
        .count();
    if count < 2 {
        return Ok(vec![Outcome::pass("the machine has one NUMA node")]);
    }
    let Some(node) = function.numa_node else {
        return Ok(vec![Outcome::info("the firmware does not tell which NUMA node it is at")]);
    };
    let cpus = host
        .text(&format!("/sys/devices/system/node/node{node}/cpulist"))?
        .map_or_else(String::new, |cpus| format!(", with CPUs {cpus}"));
    let free = host
        .text(&format!("/sys/devices/system/node/node{node}/meminfo"))?
        .and_then(|text| free_of_node(&text))
        .map_or_else(String::new, |bytes| format!(" and {} free", Size(bytes)));
    Ok(vec![Outcome::info(format!("it is at NUMA node {node} of {count}{cpus}{free}"))])
}

/// "Node 0 MemFree:        1234 kB".
fn free_of_node(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains("MemFree:"))?;
    let (_, value) = line.split_once("MemFree:")?;
    value.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// 35: what a guest's RAM can come from; all of it is pinned.
pub(super) fn free(host: &Host<'_>) -> Answer {
    let memory = memory::memory(host.sysroot)?;
    let mut found = vec![Outcome::info(format!(
        "{} of {} are available, and a guest's RAM is pinned as a whole",
        Size(memory.available),
        Size(memory.total)
    ))];
    if let Some(limit) = cgroup::memory(host.sysroot)? {
        found.push(Outcome::info(format!("the control group {}", leaves(&limit))));
    }
    if let Some(limit) = memory::address_limit(host.sysroot)? {
        found.push(Outcome::info(format!(
            "this process may map {} more (ulimit {})",
            Size(limit.room),
            limit.option
        )));
    }
    Ok(found)
}

fn leaves(limit: &CgroupLimit) -> String {
    let CgroupLimit { group, file, max, room } = limit;
    format!("{group} leaves {} of its {} ({file})", Size(*room), Size(*max))
}

/// 36: pools, and what the kernel does by itself.
pub(super) fn huge_pages(host: &Host<'_>) -> Answer {
    let mut found = Vec::new();
    for size in [2 << 20, 1 << 30] {
        let pool = memory::huge_pages(host.sysroot, size)?;
        if let Some(pool) = pool.filter(|pool| pool.total > 0) {
            let (free, total) = (pool.free, pool.total);
            found.push(Outcome::info(format!(
                "{free} of {total} huge pages of {} are free",
                Size(size)
            )));
            if let Some(limit) = cgroup::huge_pages(host.sysroot, size)? {
                found.push(Outcome::info(format!(
                    "of huge pages the control group {}",
                    leaves(&limit)
                )));
            }
        }
    }
    found.push(match memory::transparent_huge_pages(host.sysroot)? {
        Some(TransparentHugePages::Always | TransparentHugePages::OnRequest) => {
            Outcome::pass("transparent huge pages are there for guest RAM")
        }
        Some(TransparentHugePages::Never) => Outcome::warn(
            "transparent huge pages are off: guests are slower, and pinning takes longer",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        None => Outcome::skip("the kernel shows no transparent huge pages", ""),
    });
    Ok(found)
}

/// 37: what may be pinned.
pub(super) fn lock_limit(host: &Host<'_>) -> Answer {
    let limit = memory::lock_limit(host.sysroot)?;
    if limit.exempt || limit.hard == u64::MAX {
        return Ok(vec![Outcome::pass("this process may lock any amount of memory")]);
    }
    let total = memory::memory(host.sysroot)?.total;
    let fact = format!(
        "this user may lock {}: no guest with a device can have more RAM",
        Size(limit.hard)
    );
    Ok(vec![if limit.hard >= total {
        Outcome::pass(format!("this user may lock {}", Size(limit.hard)))
    } else {
        Outcome::warn(
            fact,
            "echo '@kvm - memlock unlimited' > /etc/security/limits.d/strait.conf, or run as root",
        )
        .code(&crate::codes::E1306)
    }])
}

/// 38: how many pieces VFIO maps; strait needs one for each range of RAM, and one for each BAR with P2P.
pub(super) fn dma_entries(host: &Host<'_>) -> Answer {
    /// More ranges than any plan makes.
    const ENOUGH: u64 = 1024;
    let path = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
    let limit = host.text(path)?.and_then(|text| text.parse::<u64>().ok());
    Ok(vec![match limit {
        Some(limit) if limit < ENOUGH => Outcome::warn(
            format!("VFIO maps {limit} pieces of memory at most"),
            "modprobe vfio_iommu_type1 dma_entry_limit=65535",
        ),
        Some(limit) => Outcome::pass(format!("VFIO maps up to {limit} pieces of memory")),
        None => Outcome::skip("vfio_iommu_type1 is not loaded", "modprobe vfio-pci"),
    }])
}
