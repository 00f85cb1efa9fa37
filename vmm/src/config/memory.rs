//! `--memory`, `--mmio32` and `--mmio64`.

use strait_resources::failure::Failure;

use super::{
    Memory, Pages, Pin, bad_value, choice,
    list::List,
    size::{self, SizeError},
};

/// Less holds no kernel and its tables.
const LEAST: u64 = 16 << 20;
/// Bridge windows come in this granularity (PCI-to-PCI Bridge 1.2, 3.2.5.8).
const WINDOW_GRANULE: u64 = 1 << 20;

const PIN_CHOICES: &[(&str, Pin)] =
    &[("auto", Pin::Auto), ("eager", Pin::Eager), ("behind", Pin::Behind)];

/// `SIZE[,hugepages=2M|1G][,pin=auto|eager|behind]` or `size=SIZE,...`.
pub(super) fn parse(text: &str) -> Result<Memory, Failure> {
    let list = List::parse("--memory", text, &["size", "hugepages", "pin"])?;
    let mut size_text = list.word;
    let (mut pages, mut pin) = (Pages::Default, Pin::Auto);
    for (key, value) in list.pairs {
        match key {
            "size" if size_text.is_some() => {
                return Err(bad_value(format!("--memory {text}: two sizes"), "keep one"));
            }
            "size" => size_text = Some(value),
            "pin" => pin = choice("--memory pin=", Some(&value), PIN_CHOICES)?,
            _ => {
                pages = match size::parse(&value) {
                    Ok(0x20_0000) => Pages::Huge2M,
                    Ok(0x4000_0000) => Pages::Huge1G,
                    _ => {
                        let cause =
                            format!("--memory {text}: x86-64 has no huge pages of '{value}'");
                        return Err(bad_value(cause, "hugepages=2M or hugepages=1G"));
                    }
                }
            }
        }
    }
    let Some(size_text) = size_text else {
        return Err(bad_value(format!("--memory {text}: no size"), "write it first: --memory 8G"));
    };
    let size = bytes("--memory", &size_text)?;
    if size < LEAST {
        let cause = format!("--memory {size_text} is too little for any kernel");
        return Err(bad_value(cause, format!("{} at least", size::exact(LEAST))));
    }
    let granule = pages.granule();
    if !size.is_multiple_of(granule) {
        let unit = size::exact(granule);
        let cause = format!("--memory {text}: {size_text} is no multiple of {unit}");
        let below = size - size % granule;
        let near = match (below >= LEAST, size.checked_next_multiple_of(granule)) {
            (true, Some(above)) => format!("{} or {}", size::exact(below), size::exact(above)),
            (true, None) => size::exact(below),
            (false, above) => size::exact(above.unwrap_or(granule)),
        };
        return Err(bad_value(cause, format!("guest RAM is made of {unit} pieces: {near}")));
    }
    Ok(Memory { size, pages, pin })
}

/// The size of an MMIO window: a multiple of 1 MiB, not 0, less than `limit`.
pub(super) fn window(flag: &str, text: &str, limit: u64) -> Result<u64, Failure> {
    let size = bytes(flag, text)?;
    if size == 0 || !size.is_multiple_of(WINDOW_GRANULE) || size >= limit {
        let cause = format!("{flag} {text} is no size for this window");
        let fix = format!(
            "a multiple of {} below {}, or leave {flag} out: strait sizes the window itself",
            size::exact(WINDOW_GRANULE),
            size::exact(limit)
        );
        return Err(bad_value(cause, fix));
    }
    Ok(size)
}

fn bytes(flag: &str, text: &str) -> Result<u64, Failure> {
    size::parse(text).map_err(|error| {
        let fix = match error {
            SizeError::NoUnit => format!("{text}M or {text}G?"),
            SizeError::Malformed => "a whole number and K, M, G or T: 512M, 8G".to_owned(),
            SizeError::TooLarge => "ask for less".to_owned(),
        };
        bad_value(format!("{flag} {text}: {error}"), fix)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn parse_sizes_and_pages() {
        for (text, size, pages) in [
            ("8G", 8 * GIB, Pages::Default),
            ("size=8G", 8 * GIB, Pages::Default),
            ("16M", 16 << 20, Pages::Default),
            ("8G,hugepages=2M", 8 * GIB, Pages::Huge2M),
            ("hugepages=1G,size=3G", 3 * GIB, Pages::Huge1G),
            ("8192M,hugepages=1GiB", 8 * GIB, Pages::Huge1G),
        ] {
            let pin = Pin::Auto;
            assert_eq!(parse(text).unwrap(), Memory { size, pages, pin }, "{text}");
        }
    }

    #[test]
    fn parse_when_to_pin() {
        for (text, pin) in [
            ("8G,pin=eager", Pin::Eager),
            ("pin=behind,size=8G,hugepages=2M", Pin::Behind),
            ("8G,pin=auto", Pin::Auto),
        ] {
            assert_eq!(parse(text).unwrap().pin, pin, "{text}");
        }
    }

    #[test]
    fn parse_refusals_say_what_would_do() {
        for (text, code, says) in [
            ("4096", "E2003", "4096M or 4096G?"),
            ("8GB", "E2003", "512M, 8G"),
            ("15M", "E2003", "16M at least"),
            ("0M", "E2003", "16M at least"),
            ("17M", "E2003", "16M or 18M"),
            ("1536M,hugepages=1G", "E2003", "1G or 2G"),
            ("512M,hugepages=1G", "E2003", ": 1G"),
            ("8G,hugepages=4M", "E2003", "no huge pages of '4M'"),
            ("8G,hugepages=on", "E2003", "hugepages=2M or hugepages=1G"),
            ("8G,size=4G", "E2003", "two sizes"),
            ("hugepages=2M", "E2003", "no size"),
            ("8G,pin=late", "E2003", "one of: auto, eager, behind"),
            ("8G,hugepage=2M", "E2002", "did you mean hugepages=?"),
            ("99999999999999999999G", "E2003", "64 bits"),
        ] {
            let failure = parse(text).unwrap_err();
            assert_eq!(failure.code.id, code, "{text}");
            let told = format!("{} {}", failure.cause, failure.fix);
            assert!(told.contains(says), "{text}: {told}");
        }
    }

    #[test]
    fn window_takes_multiples_of_a_mebibyte_below_its_limit() {
        assert_eq!(window("--mmio32", "1G", 4 * GIB).unwrap(), GIB);
        assert_eq!(window("--mmio64", "64G", 1 << 57).unwrap(), 64 * GIB);
        for text in ["0M", "1K", "1025K", "4G", "1"] {
            assert_eq!(window("--mmio32", text, 4 * GIB).unwrap_err().code.id, "E2003", "{text}");
        }
    }
}
