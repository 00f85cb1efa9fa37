//! `strait explain`: the long form of a code.

use std::fmt::Write as _;

use serde::Serialize;
use strait_resources::{
    codes,
    failure::{CODES, Code, Failure},
    nearest::nearest,
};

use crate::{cli::ExplainArgs, report};

/// One code, all of them in a list, or all of them as the page `docs/errors.md`.
pub(crate) fn run(args: &ExplainArgs) -> Result<u8, Failure> {
    report::answered(args.json, explain(args))
}

fn explain(args: &ExplainArgs) -> Result<u8, Failure> {
    if args.json {
        let codes = match &args.code {
            Some(code) => vec![Explained::from(find(code)?)],
            None => CODES.iter().copied().map(Explained::from).collect(),
        };
        return report::json(&Answer { schema: "strait.explain/1", codes }).map(|()| 0);
    }
    let text = match &args.code {
        Some(code) => one(find(code)?),
        None if args.markdown => markdown(),
        None => list(),
    };
    report::out(&text)?;
    Ok(0)
}

/// What `--json` answers; the document is docs/json.md.
#[derive(Serialize)]
struct Answer {
    schema: &'static str,
    codes: Vec<Explained>,
}

#[derive(Serialize)]
struct Explained {
    code: &'static str,
    exit: u8,
    class: &'static str,
    title: &'static str,
    text: &'static str,
}

impl From<&'static Code> for Explained {
    fn from(code: &'static Code) -> Self {
        let Code { id, exit, title, explain } = *code;
        let group = GROUPS.iter().find(|(status, _)| *status == exit);
        let class = group.map_or("", |(_, meaning)| meaning);
        Self { code: id, exit, class, title, text: explain.trim() }
    }
}

/// Takes `E1103`, `e1103`, `1103` and what a terminal shows: `error[E1103]`.
fn find(text: &str) -> Result<&'static Code, Failure> {
    let inner = text.split_once('[').map_or(text, |(_, rest)| rest.trim_end_matches([']', ':']));
    let id = match inner.as_bytes().first() {
        Some(b'0'..=b'9') => format!("E{inner}"),
        _ => inner.to_ascii_uppercase(),
    };
    CODES.iter().copied().find(|code| code.id == id).ok_or_else(|| {
        let fix = match nearest(&id, CODES.iter().map(|code| code.id)) {
            Some(near) => format!("did you mean {near}? strait explain lists all of them"),
            None => "strait explain lists all of them".to_owned(),
        };
        Failure::new(&codes::E2003, format!("there is no code '{text}'"), fix)
    })
}

fn one(code: &Code) -> String {
    let mut text = format!("{}: {}\n", code.id, code.title);
    let _ = match code.exit {
        0 => writeln!(text, "A warning: strait goes on."),
        exit => writeln!(text, "An error: strait ends with status {exit}."),
    };
    let _ = write!(text, "\n{}\n", code.explain.trim());
    text
}

fn list() -> String {
    let mut text = String::new();
    for (exit, meaning) in GROUPS {
        let _ = match exit {
            0 => writeln!(text, "{meaning}"),
            _ => writeln!(text, "{meaning} (exit status {exit})"),
        };
        for code in CODES.iter().filter(|code| code.exit == *exit) {
            let _ = writeln!(text, "  {}  {}", code.id, code.title);
        }
        text.push('\n');
    }
    text.push_str("strait explain CODE tells more about one.\n");
    text
}

/// The exit statuses and what they have in common, in the order of a run.
const GROUPS: &[(u8, &str)] = &[
    (2, "What was asked for"),
    (3, "The host is not ready"),
    (4, "The device or its group"),
    (5, "Addresses for BARs"),
    (6, "Memory and DMA"),
    (7, "Reset"),
    (8, "The guest or the machine died"),
    (9, "strait itself"),
    (0, "Warnings: strait goes on"),
];

fn markdown() -> String {
    let mut page = String::from(
        "# Errors and warnings\n\n\
         Made from `resources/src/codes`; `STRAIT_BLESS=1 cargo test -p strait errors_page` writes it anew.\n\
         `strait explain CODE` prints the same. The exit status tells the kind.\n",
    );
    for (exit, meaning) in GROUPS {
        let _ = match exit {
            0 => write!(page, "\n## {meaning}\n"),
            _ => write!(page, "\n## {meaning}: exit status {exit}\n"),
        };
        for code in CODES.iter().filter(|code| code.exit == *exit) {
            let _ = write!(page, "\n### {}: {}\n", code.id, code.title);
            // The text is laid out for a terminal: keep its lines.
            let _ = write!(page, "\n```text\n{}\n```\n", code.explain.trim());
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::Path};

    use super::*;

    #[test]
    fn find_takes_a_code_in_every_dress() {
        for text in ["E1103", "e1103", "1103", "error[E1103]", "error[E1103]:", "[E1103]"] {
            assert_eq!(find(text).unwrap().id, "E1103", "{text}");
        }
    }

    #[test]
    fn find_unknown_code_suggests_a_near_one() {
        let failure = find("E1193").unwrap_err();
        assert_eq!((failure.code.id, failure.code.exit), ("E2003", 2));
        assert!(failure.fix.contains("E1103"), "{}", failure.fix);
        for text in ["", "[", "banana", "]", "ü"] {
            assert_eq!(find(text).unwrap_err().code.id, "E2003", "{text}");
        }
    }

    #[test]
    fn explanation_of_a_group_names_title_and_status() {
        let text = one(&codes::E1103);
        assert!(text.starts_with("E1103: the IOMMU group is not viable\n"), "{text}");
        assert!(text.contains("status 4"), "{text}");
        assert!(text.contains("/sys/kernel/iommu_groups"), "{text}");
        assert!(one(&codes::E1305).contains("A warning"));
    }

    #[test]
    fn list_has_every_code_once() {
        let text = list();
        for code in CODES {
            assert_eq!(
                text.matches(&format!("  {}  {}\n", code.id, code.title)).count(),
                1,
                "{}",
                code.id
            );
        }
    }

    #[test]
    fn every_exit_status_has_a_group() {
        for code in CODES {
            assert!(GROUPS.iter().any(|(exit, _)| *exit == code.exit), "{}", code.id);
        }
    }

    #[test]
    fn errors_page_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors.md");
        let page = markdown();
        if env::var_os("STRAIT_BLESS").is_some() {
            fs::write(&path, &page).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap();
        assert!(
            found == page,
            "docs/errors.md is out of date: STRAIT_BLESS=1 cargo test -p strait errors_page"
        );
    }
}
