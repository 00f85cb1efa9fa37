//! Secrets planted at random in text at random: none of them may survive.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use strait_resources::host::fixture::Tree;

use super::*;

/// What stands before and behind a secret in logs, command lines and files.
fn around() -> impl Strategy<Value = (String, String)> {
    let before = prop_oneof![
        Just(""),
        Just(" "),
        Just("="),
        Just("\""),
        Just("("),
        Just("["),
        Just("/"),
        Just(", "),
        Just("addr "),
        Just("host="),
        Just("eth0: "),
        Just("from "),
        Just("0000:3b:00.0: "),
        Just("e\u{301}"),
        Just("\u{df}"),
        Just("--id="),
        Just("user-"),
        Just("_"),
    ];
    let after = prop_oneof![
        Just(""),
        Just(" "),
        Just("\""),
        Just(")"),
        Just("]"),
        Just("/x"),
        Just(","),
        Just(". "),
        Just(";"),
        Just("\n"),
        Just(": "),
        Just("%eth0"),
        Just("\u{e4}"),
    ];
    (before, after).prop_map(|(before, after)| (before.to_owned(), after.to_owned()))
}

/// Words that no host name or user name of the test is part of.
fn noise() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[ -~]{0,24}",
        Just("vfio-pci 0000:3b:00.0: enabling device (0000 -> 0003) ".to_owned()),
        Just("NVRM: version 535.183.01 ".to_owned()),
    ]
}

fn by_form() -> impl Strategy<Value = String> {
    let mac = |by: &'static str| {
        any::<[u8; 6]>().prop_map(move |bytes| bytes.map(|b| format!("{b:02x}")).join(by))
    };
    let public = any::<[u8; 4]>().prop_filter("somebody's", |octets| octets[0] != 0);
    prop_oneof![
        mac(":"),
        mac("-"),
        mac(":").prop_map(|mac| mac.to_uppercase()),
        public.prop_map(|octets| Ipv4Addr::from(octets).to_string()),
        any::<[u16; 8]>().prop_map(|groups| Ipv6Addr::from(groups).to_string()),
        (1..=u16::MAX).prop_map(|last| format!("fe80::5054:ff:fe12:{last:x}")),
        any::<[u8; 16]>().prop_map(|bytes| {
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
        }),
        "[a-z]{3,8}[0-9]".prop_map(|name| format!("/home/{name}/x")),
    ]
}

fn known() -> impl Strategy<Value = (String, String, String)> {
    ("[a-z]{4}x[0-9]{4}", "zq[a-z]{4}[0-9]{2}", "[A-Z]{3}[0-9]{7}")
}

proptest! {
    #[test]
    fn r92_nothing_that_is_told_by_its_form_survives(
        secret in by_form(), (before, after) in around(), noise in noise(), upper: bool,
    ) {
        let planted = if upper { secret.to_uppercase() } else { secret.clone() };
        // A home of capitals is nobody's.
        prop_assume!(!(upper && secret.starts_with('/')));
        let text = format!("{noise} {before}{planted}{after} {noise}");
        let clean = Redactor::default().text(&text);
        let core = secret.trim_start_matches("/home/").trim_end_matches("/x").to_lowercase();
        // The noise may hold a short address by chance.
        prop_assume!(!noise.to_lowercase().contains(&core));
        prop_assert!(!clean.to_lowercase().contains(&core), "{text} -> {clean}");
    }

    #[test]
    fn r92_any_text_is_taken_and_what_was_cleaned_stays_as_it_is(text: String) {
        let mut redactor = Redactor::default();
        let clean = redactor.text(&text);
        prop_assert_eq!(redactor.text(&clean), clean);
    }
}

proptest! {
    // Each case writes a host to disk.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn r92_nothing_that_the_host_is_known_by_survives(
        (host, user, serial) in known(), (before, after) in around(), upper: bool,
    ) {
        let tree = Tree::new();
        tree.host_basics();
        tree.file("/proc/sys/kernel/hostname", format!("{host}.example.org\n"));
        tree.file("/etc/passwd", format!("{user}:x:1000:1000:Zoe Zimt,,,:/home/{user}:/bin/sh\n"));
        tree.file("/sys/class/dmi/id/board_serial", format!("{serial}\n"));
        tree.file("/sys/class/net/eth0/address", "52:54:00:ab:cd:ef\n");
        tree.file("/etc/machine-id", "4c9f9a7b1d2e4f60a1b2c3d4e5f60718\n");
        let mut redactor = Redactor::of_host(&tree.sysroot()).unwrap();
        let secrets = [&host, &user, &serial, "zoe zimt", "525400abcdef", "4c9f9a7b1d2e4f60a1b2c3d4e5f60718"];
        for secret in secrets {
            let planted = if upper { secret.to_uppercase() } else { secret.to_owned() };
            let text = format!("x {before}{planted}{after} y /srv/{planted}_vm/a");
            let clean = redactor.text(&text).to_lowercase();
            prop_assert!(!clean.contains(&secret.to_lowercase()), "{text} -> {clean}");
        }
    }
}

/// A secret value: what people and programs make up, without the characters that end a word.
fn value() -> impl Strategy<Value = String> {
    "[A-Za-z0-9/+.!%^*_-]{6,20}[xq]7z"
}

/// How command lines, environments, logs and URLs carry one.
fn carried() -> impl Strategy<Value = (String, String)> {
    let names = prop_oneof![
        Just("password"),
        Just("rd.iscsi.password"),
        Just("PASSWD"),
        Just("db_pass"),
        Just("passphrase"),
        Just("client_secret"),
        Just("access-token"),
        Just("api_key"),
        Just("ssh.key"),
        Just("credential"),
        Just("wifi.psk"),
    ];
    let form = 0..8_usize;
    (names, value(), form).prop_map(|(name, value, form)| {
        let text = match form {
            0 => format!("{name}={value}"),
            1 => format!("--{name}={value}"),
            2 => format!("{name}: {value}"),
            3 => format!("{name}=\"{value}\""),
            4 => format!("x={name}={value}"),
            5 => format!("https://bob:{}@h.example.com/a", value.replace('/', "")),
            6 => format!("https://h.example.com/a?{name}={value}"),
            _ => format!("systemd.set_credential=a:{value}"),
        };
        (text, if form == 5 { value.replace('/', "") } else { value })
    })
}

proptest! {
    #[test]
    fn nothing_that_a_name_calls_a_secret_survives(
        (carried, secret) in carried(), noise in noise(),
    ) {
        prop_assume!(!noise.contains(&secret) && !noise.contains(['"', '\'']));
        let text = format!("{noise} {carried} quiet");
        let clean = Redactor::default().text(&text);
        prop_assert!(!clean.contains(&secret), "{text} -> {clean}");
        prop_assert!(clean.ends_with(" quiet"), "{text} -> {clean}");
    }

    #[test]
    fn whose_host_it_is_does_not_survive(
        user in "[a-z]{4,9}[0-9]q", host in "[a-z]{3,8}[0-9]{2}x", form in 0..6_usize, noise in noise(),
    ) {
        let text = match form {
            0 => format!("nfsroot={host}.corp.example.com:/x"),
            1 => format!("mail {user}@{host}.example.org now"),
            2 => format!("ssh://{user}@{host}.lan/x"),
            3 => format!("/srv/{user}/{host}/vmlinuz"),
            4 => format!("--initramfs=/mnt/{user}/{host}/initrd"),
            _ => format!("http://{host}.internal:8080/{host}"),
        };
        // The last form names the host in a path, which a report keeps.
        let text = if form == 5 { text.replace(&format!("/{host}"), "/") } else { text };
        prop_assume!(!noise.contains(&user) && !noise.contains(&host));
        let clean = Redactor::default().text(&format!("{noise} {text}"));
        prop_assert!(!clean.contains(&host), "{text} -> {clean}");
        prop_assert!(form == 0 || form == 5 || !clean.contains(&user), "{text} -> {clean}");
    }
}

#[test]
fn json_keys_tell_secrets_and_users_of_directories_are_known() {
    let tree = Tree::new();
    tree.host_basics();
    tree.file(
        "/etc/passwd",
        "carol:x:1710001234:100::/home/carol:/bin/sh\nnobody:x:65534:65534:nobody:/:/x\n",
    );
    tree.directory("/home/dieter");
    let mut redactor = Redactor::of_host(&tree.sysroot()).unwrap();
    let mut value = serde_json::json!({
        "apiKey": "abc", "password": "p", "nested": [{"token": "t"}], "who": "carol and dieter", "key_count": 3,
        "passed": ["0000:3b:00.0"],
    });
    redactor.json(&mut value);
    let text = value.to_string();
    for secret in ["\"p\"", "\"t\"", "carol", "dieter"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
    assert!(text.contains("0000:3b:00.0") && text.contains("\"key_count\":3"), "{text}");
    assert_eq!(redactor.text("run as nobody"), "run as nobody");
}
