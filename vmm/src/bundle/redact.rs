//! Taking out of a text what tells whose host it is: names of the host and of its users, serial numbers, UUIDs, MAC and
//! IP addresses. What is known of the host is looked for by its value, the rest by its form. Addresses of PCI devices
//! look a little like those of networks, and stay.

mod forms;
#[cfg(test)]
mod planted;
mod secrets;

use std::collections::BTreeMap;

use serde_json::Value;
use strait_resources::host::{
    inventory,
    sysroot::{SysError, Sysroot},
};

/// What kind of thing was replaced; its name in the text.
const HOST: &str = "host name";
const USER: &str = "user name";
const SERIAL: &str = "serial number";
const MAC: &str = "MAC address";
const IP: &str = "IP address";
const UUID: &str = "UUID";
const SECRET: &str = "secret";
const PATH: &str = "path";

/// What firmware says when nobody filled the field in.
const NO_SERIAL: &[&str] =
    &["none", "default string", "not specified", "to be filled by o.e.m.", "system serial number"];

/// Keys of JSON whose value is one thing's serial number.
const SERIAL_KEYS: &[&str] = &["serial"];

/// Finds and replaces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Redactor {
    /// By value, longest first, in lower case.
    known: Vec<(String, &'static str)>,
    /// What was found so far, in lower case, and its number among those of its kind.
    found: BTreeMap<(&'static str, String), usize>,
}

impl Redactor {
    /// With everything this host is known by.
    pub(crate) fn of_host(sysroot: &Sysroot) -> Result<Self, SysError> {
        let mut redactor = Self::default();
        if let Some(name) = sysroot.read_if_present("/proc/sys/kernel/hostname")? {
            let short = name.split('.').next().unwrap_or_default().to_owned();
            for name in [name, short] {
                if !["localhost", "(none)"].contains(&name.as_str()) {
                    redactor.know(&name, HOST);
                }
            }
        }
        let users = sysroot.read_if_present("/etc/passwd")?.unwrap_or_default();
        for line in users.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, _, comment, ..] = fields[..] else { continue };
            // Directories of a company number their users above those of a host; 65534 is nobody.
            if matches!(uid.parse::<u32>(), Ok(uid) if uid >= 1000 && uid != 65_534) {
                redactor.know(name, USER);
                // The comment begins with the person's name.
                let person = comment.split(',').next().unwrap_or_default();
                if person.len() >= 4 {
                    redactor.know(person, USER);
                }
            }
        }
        // Users of LDAP and the like are in no file. Whoever runs this is known by the environment.
        if sysroot.is_host() {
            for variable in ["SUDO_USER", "LOGNAME", "USER", "PKEXEC_USER"] {
                let user = std::env::var(variable).unwrap_or_default();
                if user.len() >= 2 && user != "root" {
                    redactor.know(&user, USER);
                }
            }
        }
        for directory in ["/home", "/run/user"] {
            // A home of its own is enough to be somebody.
            for name in sysroot.list_if_present(directory).unwrap_or_default() {
                if name.len() >= 3 && name.contains(|c: char| c.is_ascii_alphabetic()) {
                    redactor.know(&name, USER);
                }
            }
        }
        for (file, kind) in [("/etc/machine-id", UUID), ("/proc/sys/kernel/random/boot_id", UUID)] {
            if let Some(id) = sysroot.read_if_present(file)? {
                redactor.know(&id, kind);
            }
        }
        for interface in sysroot.list_if_present("/sys/class/net")? {
            let address =
                sysroot.read_if_present(&format!("/sys/class/net/{interface}/address"))?;
            let address = address.unwrap_or_default();
            if address.bytes().any(|byte| !b"0:".contains(&byte)) {
                redactor.know(&address, MAC);
                redactor.know(&address.replace(':', ""), MAC);
            }
        }
        for (directory, file) in serial_files(sysroot)? {
            // Some are for root only; then nothing else of strait's could read them either.
            if let Ok(serial) = sysroot.read(&format!("{directory}/{file}")) {
                redactor.know_serial(&serial);
            }
        }
        for entry in inventory::inventory(sysroot)? {
            if let Some(serial) = entry.serial {
                redactor.know_serial(&format!("{serial:016x}"));
            }
        }
        Ok(redactor)
    }

    fn know_serial(&mut self, serial: &str) {
        let lower = serial.trim().to_ascii_lowercase();
        let filled = lower.bytes().any(|byte| byte.is_ascii_alphanumeric() && byte != b'0');
        if lower.len() >= 4 && filled && !NO_SERIAL.contains(&lower.as_str()) {
            self.know(&lower, SERIAL);
        }
    }

    /// From now on `value` is replaced wherever it stands as a word.
    pub(crate) fn know(&mut self, value: &str, kind: &'static str) {
        let value = value.trim().to_ascii_lowercase();
        if value.is_empty() || self.known.iter().any(|(known, _)| *known == value) {
            return;
        }
        self.known.push((value, kind));
        self.known.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
    }

    /// The text without it.
    pub(crate) fn text(&mut self, text: &str) -> String {
        // First what a name before it tells, so that nothing of it is left behind by the others.
        let text = self.replaced_at(text, secrets::finds(text));
        let text = self.by_value(&text);
        let text = self.home_directories(&text);
        let finds = forms::finds(&text);
        self.replaced_at(&text, finds)
    }

    /// Every string in it without it.
    pub(crate) fn json(&mut self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.json(item)),
            Value::Object(fields) => {
                for (key, value) in fields {
                    match value {
                        Value::String(text) if SERIAL_KEYS.contains(&key.as_str()) => {
                            *text = self.replacement(SERIAL, text);
                        }
                        Value::String(text) if secrets::is_secret_name(key) && !text.is_empty() => {
                            *text = self.replacement(SECRET, text);
                        }
                        _ => self.json(value),
                    }
                }
            }
            _ => {}
        }
    }

    /// `2 MAC addresses`, for each kind that was there.
    pub(crate) fn counts(&self) -> Vec<String> {
        [SECRET, HOST, USER, PATH, SERIAL, MAC, IP, UUID]
            .into_iter()
            .filter_map(|kind| {
                let count = self.found.keys().filter(|(found, _)| *found == kind).count();
                let plural = if kind.ends_with("ss") { "es" } else { "s" };
                match count {
                    0 => None,
                    1 => Some(format!("1 {kind}")),
                    count => Some(format!("{count} {kind}{plural}")),
                }
            })
            .collect()
    }

    /// `[MAC address 2]`: the same for the same thing.
    fn replacement(&mut self, kind: &'static str, value: &str) -> String {
        let next = self.found.keys().filter(|(found, _)| *found == kind).count() + 1;
        let key = (kind, value.to_ascii_lowercase());
        let number = *self.found.entry(key).or_insert(next);
        format!("[{kind} {number}]")
    }

    fn by_value(&mut self, text: &str) -> String {
        let mut text = text.to_owned();
        for (value, kind) in self.known.clone() {
            let lower = text.to_ascii_lowercase();
            let mut out = String::new();
            let mut done = 0;
            for (at, _) in lower.match_indices(&value) {
                let end = at + value.len();
                let before = lower.get(..at).and_then(|text| text.chars().next_back());
                let after = lower.get(end..).and_then(|text| text.chars().next());
                if at < done || before.is_some_and(is_word) || after.is_some_and(is_word) {
                    continue;
                }
                out.push_str(text.get(done..at).unwrap_or_default());
                out.push_str(&self.replacement(kind, &value));
                done = end;
            }
            out.push_str(text.get(done..).unwrap_or_default());
            text = out;
        }
        text
    }

    /// /home/NAME, whoever that is: the host may know its users from elsewhere.
    fn home_directories(&mut self, text: &str) -> String {
        const HOME: &str = "/home/";
        let mut pieces = text.split(HOME);
        let mut out = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            out.push_str(HOME);
            let end =
                piece.find(|c: char| !is_word(c) && !"-._".contains(c)).unwrap_or(piece.len());
            let (name, rest) = piece.split_at(end);
            match name {
                "" => {}
                name => out.push_str(&self.replacement(USER, name)),
            }
            out.push_str(rest);
        }
        out
    }

    /// The text with what was found in it replaced.
    fn replaced_at(&mut self, text: &str, finds: Vec<(usize, usize, &'static str)>) -> String {
        let mut out = String::new();
        let mut done = 0;
        for (at, len, kind) in finds {
            out.push_str(text.get(done..at).unwrap_or_default());
            let value = text.get(at..at + len).unwrap_or_default();
            out.push_str(&self.replacement(kind, value));
            done = at + len;
        }
        out.push_str(text.get(done..).unwrap_or_default());
        out
    }
}

/// Part of a longer word: `alicea` is not alice, `alice_vm` is hers.
fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric()
}

/// Files with a serial number in them.
fn serial_files(sysroot: &Sysroot) -> Result<Vec<(String, &'static str)>, SysError> {
    const DMI: [&str; 4] = ["product_serial", "product_uuid", "board_serial", "chassis_serial"];
    let mut files: Vec<(String, &'static str)> =
        DMI.iter().map(|file| ("/sys/class/dmi/id".to_owned(), *file)).collect();
    for disk in sysroot.list_if_present("/sys/block")? {
        for (below, file) in [("", "wwid"), ("/device", "serial"), ("/device", "wwid")] {
            files.push((format!("/sys/block/{disk}{below}"), file));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use strait_resources::host::fixture::Tree;

    use super::*;

    fn host() -> Tree {
        let tree = Tree::two_cards();
        tree.file("/proc/sys/kernel/hostname", "Workbench.example.org\n");
        tree.file(
            "/etc/passwd",
            "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n",
        );
        tree.file("/sys/class/dmi/id/board_serial", "BSN12345\n");
        tree.file("/sys/class/dmi/id/product_serial", "Default string\n");
        tree.file("/sys/block/nvme0n1/device/serial", "S4EWNX0R\n");
        tree.file("/sys/block/nvme0n1/wwid", "eui.0025385b01234567\n");
        tree
    }

    fn redactor() -> Redactor {
        Redactor::of_host(&host().sysroot()).unwrap()
    }

    #[test]
    fn r92_everything_personal_goes() {
        let mut redactor = redactor();
        let text = "workbench kernel: nvme0: S4EWNX0R (eui.0025385b01234567), board BSN12345\n\
                    root=UUID=6f3b1d0e-93c5-4a0f-8a39-3c8a2e4a7b11 by Alice on workbench.example.org\n\
                    e1000e 0000:00:1f.6 eth0: (PCI Express:2.5GT/s:Width x1) 52:54:00:12:34:56\n\
                    --kernel /home/bob/vmlinuz /home/alice/vm ip=192.168.1.7 fe80::5054:ff:fe12:3456\n\
                    52-54-00-AB-CD-EF, and 10.0.0.1.\n";
        let clean = redactor.text(text);
        for secret in [
            "workbench",
            "example.org",
            "S4EWNX0R",
            "0025385b01234567",
            "BSN12345",
            "6f3b1d0e",
            "alice",
            "bob",
            "52:54:00:12:34:56",
            "192.168.1.7",
            "fe80",
            "52-54-00",
            "10.0.0.1",
        ] {
            assert!(!clean.to_lowercase().contains(&secret.to_lowercase()), "{secret}: {clean}");
        }
        assert_eq!(
            redactor.counts(),
            [
                "2 host names",
                "2 user names",
                "3 serial numbers",
                "2 MAC addresses",
                "3 IP addresses",
                "1 UUID"
            ]
        );
    }

    #[test]
    fn r92_what_the_report_is_for_stays() {
        let text = "vfio-pci 0000:3b:00.0: BAR 1 [mem 0x380000000000-0x38000fffffff 64bit pref]\n\
                    [10de:1e07] 3b:00.0 0000:3b:00 16:00.1 kernel 6.1.0-31-amd64, driver 535.183.01\n\
                    12:34:56 DMAR: [DMA Write NO_PASID] Request device [3b:00.0] fault addr 0xdead0000\n\
                    Default string; root; alicea; std::io::Error\n";
        let mut redactor = redactor();
        assert_eq!(redactor.text(text), text);
        assert!(redactor.counts().is_empty());
    }

    #[test]
    fn r92_same_thing_has_the_same_name_everywhere() {
        let mut redactor = redactor();
        let text = redactor.text("52:54:00:00:00:01 52:54:00:00:00:02 52:54:00:00:00:01");
        assert_eq!(text, "[MAC address 1] [MAC address 2] [MAC address 1]");
    }

    #[test]
    fn r92_json_stays_json() {
        let mut redactor = redactor();
        redactor.know("4242", SERIAL);
        let mut value = json!({"serial": "0011223344556677", "pid": 4242, "who": ["alice \"4242\""], "none": null});
        redactor.json(&mut value);
        assert_eq!(
            value,
            json!({"serial": "[serial number 1]", "pid": 4242, "who": ["[user name 1] \"[serial number 2]\""], "none": null})
        );
    }
}
