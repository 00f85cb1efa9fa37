//! Open files: how many strait may have, and how many a machine needs. Each MSI-X vector that a guest uses is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use strait_resources::{
    codes,
    failure::Failure,
    host::{capabilities, sysroot::Sysroot},
};

use crate::{config::RunConfig, passthrough::Candidates};

/// What a machine without devices has open, with something to spare.
const MACHINE: u64 = 128;
/// A device, its group, its other interrupts and events.
const FUNCTION: u64 = 16;
/// Functions of one slot, and vectors of one function, at most: where so many may be open nothing has to be counted.
const MOST: u64 = 8 * (2048 + FUNCTION);

/// Refuses (E1310) a machine whose guest could use more interrupts than strait may have files open, before anything is
/// changed. Who is not root does not see how many vectors a device has; the devices of another host's tree are not this
/// process's.
pub(crate) fn check(sysroot: &Sysroot, config: &RunConfig) -> Result<(), Failure> {
    let Some(limit) = getrlimit(Resource::Nofile).maximum.filter(|_| sysroot.is_host()) else {
        return Ok(());
    };
    let fixed = MACHINE + u64::from(config.cpu.count.get());
    if config.vfio.is_empty() || fixed + config.vfio.len() as u64 * MOST <= limit {
        return Ok(());
    }
    // What is wrong with them is told by those who take them.
    let Ok(candidates) = Candidates::find(sysroot, &config.vfio) else { return Ok(()) };
    fits(candidates.functions().map(|(function, _)| function.config.as_slice()), fixed, limit)
}

fn fits<'a>(
    configs: impl Iterator<Item = &'a [u8]>,
    fixed: u64,
    limit: u64,
) -> Result<(), Failure> {
    let (mut vectors, mut need) = (0, fixed);
    for config in configs {
        let own = capabilities::msix_vectors(config).map_or(0, u64::from);
        vectors += own;
        need += own + FUNCTION;
    }
    if need <= limit {
        return Ok(());
    }
    let cause = format!(
        "the devices have {vectors} MSI-X vectors, a guest that uses them all takes {need} open files, and this process \
         may have {limit}"
    );
    let fix = format!("allow more: ulimit -n {need} as root; systemd: LimitNOFILE={need}");
    Err(Failure::new(&codes::E1310, cause, fix))
}

/// As many as the system allows this process: what is usual is little for a machine. Programs that strait starts get the
/// same; they are its own and the kernel's.
pub(crate) fn raise() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        log::info!("the limit of open files stays at {:?}: {error}", limit.current);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Configuration space with an MSI-X capability (PCI Local Bus 3.0, 6.8.2) of so many vectors, at 0x40.
    fn config(vectors: u16) -> Vec<u8> {
        let mut config = vec![0; 256];
        (config[0x06], config[0x34], config[0x40]) = (0x10, 0x40, 0x11);
        config[0x42..0x44].copy_from_slice(&(vectors - 1).to_le_bytes());
        config
    }

    #[test]
    fn devices_with_more_vectors_than_files_may_be_open_are_refused_with_the_numbers() {
        let configs = [config(2048), config(128), vec![0; 64]];
        let configs = || configs.iter().map(Vec::as_slice);
        let failure = fits(configs(), MACHINE, 1024).unwrap_err();
        assert_eq!(failure.code.id, "E1310");
        assert!(failure.cause.contains("2176 MSI-X vectors"), "{}", failure.cause);
        assert!(failure.cause.contains("takes 2352 open files"), "{}", failure.cause);
        assert!(failure.fix.contains("ulimit -n 2352"), "{}", failure.fix);
        assert!(fits(configs(), MACHINE, 2352).is_ok());
    }
}
