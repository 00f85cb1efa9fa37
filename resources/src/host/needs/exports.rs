//! Disks that this host gives to others: targets of LIO and of NVMe over Fabrics, and USB gadgets, as configfs shows
//! them.

use super::{
    super::sysroot::{SysError, Sysroot},
    Loss,
    blocks::Blocks,
    graph::{Graph, Thing},
};

const CONFIG: &str = "/sys/kernel/config";

/// Puts every export of a block device on it.
pub(super) fn stand(sysroot: &Sysroot, blocks: &Blocks, graph: &mut Graph) -> Result<(), SysError> {
    let mut exports: Vec<(String, String)> = Vec::new();
    let core = format!("{CONFIG}/target/core");
    for adapter in sysroot.list_if_present(&core)? {
        for name in sysroot.list_if_present(&format!("{core}/{adapter}"))? {
            let path = format!("{core}/{adapter}/{name}/udev_path");
            exports.push((path, format!("target {name}")));
        }
    }
    let systems = format!("{CONFIG}/nvmet/subsystems");
    for system in sysroot.list_if_present(&systems)? {
        let spaces = format!("{systems}/{system}/namespaces");
        for space in sysroot.list_if_present(&spaces)? {
            let path = format!("{spaces}/{space}/device_path");
            exports.push((path, format!("NVMe target {system}")));
        }
    }
    let gadgets = format!("{CONFIG}/usb_gadget");
    for gadget in sysroot.list_if_present(&gadgets)? {
        let functions = format!("{gadgets}/{gadget}/functions");
        for function in sysroot.list_if_present(&functions)? {
            for unit in sysroot.list_if_present(&format!("{functions}/{function}"))? {
                let path = format!("{functions}/{function}/{unit}/file");
                exports.push((path, format!("USB gadget {gadget}")));
            }
        }
    }
    for (file, words) in exports {
        // Some attributes of configfs refuse to be read before they are set.
        let path = sysroot.read(&file).unwrap_or_default();
        let name = path.lines().next().and_then(|path| blocks.resolve(sysroot, path));
        if let Some(name) = name {
            graph.lose(Thing::Block(name.to_owned()), Loss::Export(words));
        }
    }
    Ok(())
}
