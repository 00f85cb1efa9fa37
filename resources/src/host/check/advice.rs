//! How a user gets programs to let go of a device. What a host or a login cannot do without is never to be ended: the
//! first process, the session manager, the message bus, a shell; a service goes by its unit, a container by its engine.

use std::collections::BTreeSet;

use super::super::{
    needs::ancestors,
    sysroot::{SysError, Sysroot},
};

/// Programs that show the desktop, as /proc/PID/comm names them (15 characters at most).
const DISPLAY: [&str; 30] = [
    "X",
    "Xorg",
    "Xwayland",
    "gnome-shell",
    "gnome-session-b",
    "kwin_wayland",
    "kwin_x11",
    "kwin",
    "mutter",
    "plasmashell",
    "sway",
    "Hyprland",
    "weston",
    "wayfire",
    "labwc",
    "river",
    "niri",
    "cage",
    "gamescope",
    "gamescope-wl",
    "cosmic-comp",
    "cinnamon",
    "xfwm4",
    "gdm",
    "gdm3",
    "sddm",
    "lightdm",
    "greetd",
    "ly-dm",
    "xdm",
];

/// Programs that no advice ends: they are the host, or somebody's login.
const NEVER: [&str; 24] = [
    "systemd",
    "init",
    "runit",
    "s6-svscan",
    "openrc-init",
    "systemd-logind",
    "elogind",
    "elogind-daemon",
    "seatd",
    "dbus-daemon",
    "dbus-broker",
    "dbus-broker-lau",
    "polkitd",
    "login",
    "sshd",
    "sshd-session",
    "dropbear",
    "agetty",
    "getty",
    "mosh-server",
    "sudo",
    "su",
    "doas",
    "(sd-pam)",
];

/// Units whose end is the end of the host or of a login.
const NEVER_UNITS: [&str; 8] =
    ["dbus", "systemd-", "ssh", "getty@", "serial-getty@", "user@", "polkit", "elogind"];

/// One program: process ID and name.
pub(in super::super) type Program<'a> = (u32, &'a str);

/// What ends a program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// Together with everybody's windows.
    Desktop,
    /// A command line.
    Command(String),
    /// A process of its own.
    Kill(u32),
    /// Whoever works there does it: a login's first process, or what strait itself runs in.
    Leave(u32, String),
    /// It holds the device for others, and lets go when they do.
    Others(u32, String),
}

/// The words behind "fix:" that free a device from these programs.
pub(in super::super) fn end(
    sysroot: &Sysroot,
    programs: &[Program<'_>],
) -> Result<String, SysError> {
    let own = ancestors(sysroot)?;
    let mut ways = BTreeSet::new();
    for (pid, name) in programs {
        ways.insert(way(sysroot, *pid, name, &own)?);
    }
    let has_desktop = ways.contains(&Way::Desktop);
    let mut words = Vec::new();
    let mut kills = Vec::new();
    for way in &ways {
        match way {
            Way::Desktop => words.push(DESKTOP.to_owned()),
            Way::Command(command) => words.push(command.clone()),
            Way::Kill(pid) => kills.push(pid.to_string()),
            Way::Leave(pid, name) => words.push(format!("log out of {name} (pid {pid})")),
            // They keep it for the desktop that goes.
            Way::Others(..) if has_desktop => {}
            Way::Others(pid, name) => words.push(format!(
                "{name} (pid {pid}) keeps it for a session or a service: log out, or {STOP_DISPLAY}"
            )),
        }
    }
    if !kills.is_empty() {
        words.push(format!("kill {}", kills.join(" ")));
    }
    Ok(words.join("; "))
}

const STOP_DISPLAY: &str = "systemctl stop display-manager";
const DESKTOP: &str = "log out of the graphical session, or systemctl stop display-manager (work by SSH or a text console)";

fn way(sysroot: &Sysroot, pid: u32, name: &str, own: &BTreeSet<u32>) -> Result<Way, SysError> {
    if pid <= 1 || NEVER.contains(&name) || name.starts_with("systemd-") {
        return Ok(Way::Others(pid, name.to_owned()));
    }
    if own.contains(&pid) {
        return Ok(Way::Leave(pid, name.to_owned()));
    }
    let place = cgroup(sysroot, pid)?;
    if let Some(command) = container(&place) {
        return Ok(Way::Command(command));
    }
    if DISPLAY.contains(&name) {
        return Ok(Way::Desktop);
    }
    if let Some(unit) = unit(&place) {
        let is_never = NEVER_UNITS.iter().any(|start| unit.starts_with(start));
        let is_users = place.contains("/user@");
        return Ok(match (is_never, is_users) {
            (true, _) => Way::Others(pid, name.to_owned()),
            (false, true) => Way::Command(format!("systemctl --user stop {unit} (as that user)")),
            (false, false) => Way::Command(format!("systemctl stop {unit}")),
        });
    }
    Ok(match leads_terminal(sysroot, pid) {
        true => Way::Leave(pid, name.to_owned()),
        false => Way::Kill(pid),
    })
}

/// A process's place among the control groups: of version 2, or systemd's own of version 1.
fn cgroup(sysroot: &Sysroot, pid: u32) -> Result<String, SysError> {
    // One that ended since is in none.
    let text = sysroot.read(&format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let place = text.lines().find_map(|line| {
        line.strip_prefix("0::").or_else(|| Some(line.split_once(":name=systemd:")?.1))
    });
    Ok(place.unwrap_or_default().to_owned())
}

/// `/system.slice/docker-0123...scope`: the command that stops a container or a machine.
fn container(place: &str) -> Option<String> {
    /// As many digits of an ID as the engines show.
    const SHORT: usize = 12;
    place.split('/').find_map(|part| {
        let scope = part.strip_suffix(".scope").unwrap_or(part);
        let id = |start: &str| {
            let id = scope.strip_prefix(start)?;
            Some(id.get(..SHORT).unwrap_or(id).to_owned())
        };
        let engine = |engine: &str, id: String| format!("{engine} stop {id}");
        None.or_else(|| Some(engine("docker", id("docker-")?)))
            .or_else(|| Some(engine("podman", id("libpod-")?)))
            .or_else(|| Some(format!("crictl stop {}", id("cri-containerd-")?)))
            .or_else(|| Some(format!("crictl stop {}", id("crio-")?)))
            .or_else(|| Some(format!("lxc-stop {}", scope.strip_prefix("lxc.payload.")?)))
    })
}

/// The service that a process is of: the deepest one.
fn unit(place: &str) -> Option<&str> {
    let services = place.rsplit('/').filter(|part| part.ends_with(".service"));
    services.filter(|unit| !unit.starts_with("user@")).take(1).next()
}

/// Is it the first process of a session with a terminal, a login's shell? Fields 6 and 7 of /proc/PID/stat; the name in
/// field 2 may have spaces and parentheses.
fn leads_terminal(sysroot: &Sysroot, pid: u32) -> bool {
    let text = sysroot.read(&format!("/proc/{pid}/stat")).unwrap_or_default();
    let mut fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(3);
    let (session, terminal) = (fields.next(), fields.next());
    session == Some(pid.to_string().as_str()) && terminal.is_some_and(|terminal| terminal != "0")
}

// Provenance: processes in the form of proc_pid_stat(5) and cgroups(7), by the names of common
// programs; no dump of a host.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::Tree;

    fn advice(tree: &Tree, programs: &[Program<'_>]) -> String {
        end(&tree.sysroot(), programs).unwrap()
    }

    #[test]
    fn advice_never_ends_the_host_or_a_login() {
        let tree = Tree::new();
        tree.file("/proc/self/status", "Name:\tstrait\nPPid:\t77\n");
        tree.file("/proc/77/status", "Name:\tbash\nPPid:\t1\n");
        tree.file("/proc/90/stat", "90 (my ) shell) S 80 90 90 34816 91 4194304");
        tree.file("/proc/91/cgroup", "0::/system.slice/dbus.service\n");
        for (pid, name) in [
            (1, "anything"),
            (500, "systemd"),
            (812, "systemd-logind"),
            (813, "dbus-daemon"),
            (814, "dbus-broker"),
            (815, "sshd"),
            (816, "login"),
            (77, "bash"),
            (90, "my ) shell"),
            (91, "other-bus"),
            (92, "Xorg"),
            (93, "gnome-shell"),
        ] {
            let words = advice(&tree, &[(pid, name)]);
            assert!(!words.contains("kill") && !words.is_empty(), "{name}: {words}");
        }
    }

    /// PID 1 and logind keep the nodes of a desktop's display, and let go with it.
    #[test]
    fn advice_for_a_desktop_is_to_end_its_session() {
        let programs = [(1, "systemd"), (812, "systemd-logind"), (1400, "gnome-shell")];
        let words = advice(&Tree::new(), &programs);
        assert!(words.contains("systemctl stop display-manager"), "{words}");
        assert!(words.contains("log out") && !words.contains("pid"), "{words}");
    }

    #[test]
    fn advice_for_a_service_names_its_unit_and_for_a_container_its_engine() {
        let tree = Tree::new();
        for (pid, place) in [
            (10, "0::/system.slice/nvidia-persistenced.service"),
            (11, "0::/system.slice/docker-0123456789abcdef0123.scope"),
            (12, "12:devices:/x\n1:name=systemd:/system.slice/frigate.service"),
            (13, "0::/user.slice/user-1000.slice/user@1000.service/app.slice/sunshine.service"),
            (14, "0::/user.slice/user-1000.slice/session-3.scope"),
        ] {
            tree.file(&format!("/proc/{pid}/cgroup"), place);
        }
        for (pid, right) in [
            (10, "systemctl stop nvidia-persistenced.service"),
            (11, "docker stop 0123456789ab"),
            (12, "systemctl stop frigate.service"),
            (13, "systemctl --user stop sunshine.service (as that user)"),
            (14, "kill 14"),
        ] {
            assert_eq!(advice(&tree, &[(pid, "program")]), right);
        }
        assert_eq!(advice(&tree, &[(14, "a"), (20, "b")]), "kill 14 20");
    }
}
