//! Who wrote a journal. A process ID alone is used again; with the start time, the boot and the PID namespace it names one
//! process for ever.

use serde::{Deserialize, Serialize};

use super::words::BootId;
use crate::{
    codes,
    failure::Failure,
    host::sysroot::{SysError, Sysroot},
};

/// One process of this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// Process ID.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
}

/// What /proc/PID/stat says.
struct Stat {
    process: Process,
    /// `Z` and `X` are dead: only their parent does not know yet.
    state: u8,
}

impl Process {
    /// This one.
    pub fn current(sysroot: &Sysroot) -> Result<Self, Failure> {
        match stat(sysroot, "self")? {
            Some(stat) => Ok(stat.process),
            None => {
                let fix = "mount /proc where strait runs";
                Err(Failure::new(&codes::E1007, "/proc/self/stat makes no sense", fix))
            }
        }
    }

    /// The process that has this ID now.
    pub fn of(sysroot: &Sysroot, pid: u32) -> Result<Option<Self>, SysError> {
        Ok(stat(sysroot, &pid.to_string())?.map(|stat| stat.process))
    }

    /// Does it still run? Only true of processes of this PID namespace: another one has other processes by the same IDs.
    pub fn lives(self, sysroot: &Sysroot) -> Result<bool, SysError> {
        let found = stat(sysroot, &self.pid.to_string())?;
        Ok(found.is_some_and(|stat| stat.process == self && !matches!(stat.state, b'Z' | b'X')))
    }
}

/// proc_pid_stat(5): "pid (name) state ..."; the name may hold anything, the start time is field 22.
fn stat(sysroot: &Sysroot, pid: &str) -> Result<Option<Stat>, SysError> {
    let Some(text) = sysroot.read_if_present(&format!("/proc/{pid}/stat"))? else {
        return Ok(None);
    };
    Ok(parse(&text))
}

fn parse(text: &str) -> Option<Stat> {
    let (front, rest) = text.rsplit_once(')')?;
    let pid = front.split(' ').next()?.parse().ok()?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let state = *fields.first()?.as_bytes().first()?;
    Some(Stat { process: Process { pid, start: fields.get(19)?.parse().ok()? }, state })
}

/// The kernel's name for this boot.
pub fn boot_id(sysroot: &Sysroot) -> Result<BootId, SysError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = sysroot.read(PATH)?;
    BootId::new(&text).map_err(|_| SysError::nonsense(PATH, &text))
}

/// The inode of this process's PID namespace, which no other has (namespaces(7)); `None` where the kernel has none.
pub fn pid_namespace(sysroot: &Sysroot) -> Result<Option<u64>, SysError> {
    let link = sysroot.link_name("/proc/self/ns/pid")?;
    let number = link.as_deref().and_then(|text| text.strip_prefix("pid:[")?.strip_suffix(']'));
    Ok(number.and_then(|number| number.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_survives_a_name_with_brackets() {
        let line = format!("77 (a) b (c) S {} 4242 0 0", "0 ".repeat(18).trim_end());
        let stat = parse(&line).unwrap();
        assert_eq!((stat.process, stat.state), (Process { pid: 77, start: 4242 }, b'S'));
        assert!(parse("77 (x) S 1 2").is_none());
        assert!(parse("").is_none());
    }

    #[test]
    fn current_process_lives_and_a_later_one_of_its_id_does_not() {
        let host = Sysroot::host();
        let current = Process::current(&host).unwrap();
        assert_eq!(current.pid, std::process::id());
        assert!(current.lives(&host).unwrap());
        assert_eq!(Process::of(&host, current.pid).unwrap(), Some(current));
        assert!(!Process { start: current.start + 1, ..current }.lives(&host).unwrap());
    }
}
