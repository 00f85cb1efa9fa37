//! `strait devices` and `strait doctor` on the hosts that people have. The pages in `golden/hosts` were read by eye;
//! `STRAIT_BLESS=1 cargo test -p strait --test hosts` writes them anew.

#[allow(dead_code, reason = "these pages are for people")]
mod golden;
mod look;

use golden::assert_golden;
use look::look;
use strait_resources::host::fixture::HOSTS;

const WIDEST: usize = 100;

#[test]
fn every_host_has_its_pages() {
    for (name, make, device) in HOSTS {
        let tree = make();
        let mut page = String::new();
        for words in [&["devices"][..], &["devices", "--group"], &["doctor"], &["doctor", device]] {
            let output = look(&tree, words);
            assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{name}: {words:?}");
            let text = String::from_utf8(output.stdout).unwrap();
            let wide = text.lines().find(|line| line.chars().count() > WIDEST);
            assert_eq!(wide, None, "{name}: {words:?}");
            let status = output.status.code().unwrap();
            page += &format!("$ strait {}\n{text}[{status}]\n\n", words.join(" "));
        }
        assert_golden(&format!("hosts/{name}.txt"), &page);
    }
}
