//! `--smbios`: what the guest reads of its maker, its model and its number.

use strait_resources::failure::Failure;

use super::{Smbios, bad_value, list::List};

const KEYS: [&str; 9] =
    ["uuid", "manufacturer", "product", "version", "serial", "sku", "family", "asset", "oem"];
/// Characters of a text, and of an OEM string, which programs use for data of theirs.
const LONGEST: usize = 64;
const LONGEST_OEM: usize = 1024;
/// All of them fit into the tables' room.
const MOST_OEM: usize = 32;

/// The `key=value` lists of every `--smbios`. `oem=` may come several times, in lists of their own.
pub(super) fn parse(lists: &[String]) -> Result<Smbios, Failure> {
    let mut smbios = Smbios::default();
    for text in lists {
        let list = List::parse("--smbios", text, &KEYS)?;
        if let Some(word) = list.word {
            let cause = format!("--smbios {text}: '{word}' is no key=value");
            return Err(bad_value(cause, "for example --smbios serial=0042,product=Lab"));
        }
        for (key, value) in list.pairs {
            set(&mut smbios, key, value)?;
        }
    }
    Ok(smbios)
}

fn set(smbios: &mut Smbios, key: &'static str, value: String) -> Result<(), Failure> {
    let twice = || bad_value(format!("--smbios {key}= comes twice"), format!("keep one {key}="));
    let slot = match key {
        "uuid" => {
            let uuid = uuid(&value)?;
            return smbios.uuid.replace(uuid).map_or(Ok(()), |_| Err(twice()));
        }
        "oem" => {
            printable(key, &value, LONGEST_OEM)?;
            smbios.oem.push(value);
            if smbios.oem.len() > MOST_OEM {
                let cause = format!("--smbios oem= comes more than {MOST_OEM} times");
                return Err(bad_value(cause, "put more into one of them"));
            }
            return Ok(());
        }
        "manufacturer" => &mut smbios.manufacturer,
        "product" => &mut smbios.product,
        "version" => &mut smbios.version,
        "serial" => &mut smbios.serial,
        "sku" => &mut smbios.sku,
        "family" => &mut smbios.family,
        _ => &mut smbios.asset,
    };
    printable(key, &value, LONGEST)?;
    slot.replace(value).map_or(Ok(()), |_| Err(twice()))
}

fn printable(key: &str, value: &str, longest: usize) -> Result<(), Failure> {
    let fits = value.len() <= longest && value.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if fits {
        return Ok(());
    }
    let shown: String = value.escape_debug().take(LONGEST).collect();
    let fix = format!("1 to {longest} printable ASCII characters");
    Err(bad_value(format!("'{shown}' is no value of --smbios {key}="), fix))
}

/// `123e4567-e89b-12d3-a456-426614174000`. All zeros and all ones say that a machine has none (SMBIOS 3.6, 7.2.1).
fn uuid(text: &str) -> Result<[u8; 16], Failure> {
    let wrong = || {
        let cause = format!("'{}' is no value of --smbios uuid=", text.escape_debug());
        bad_value(
            cause,
            "32 hexadecimal digits as 8-4-4-4-12, not all of them 0 or f: uuidgen makes one",
        )
    };
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let digits = groups.concat();
    if lengths != [8, 4, 4, 4, 12] || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    match u128::from_str_radix(&digits, 16) {
        Ok(number) if number != 0 && number != u128::MAX => Ok(number.to_be_bytes()),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smbios(lists: &[&str]) -> Result<Smbios, Failure> {
        parse(&lists.iter().map(|&list| list.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn every_key_is_kept_and_oem_strings_add_up() {
        let asked = smbios(&[
            "uuid=123e4567-E89B-12d3-a456-426614174000,serial=S=1,product=a,,b",
            "manufacturer=M,version=V,sku=K,family=F,asset=A,oem=one",
            "oem=two",
        ])
        .unwrap();
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(asked.uuid.map(|uuid| (uuid[0], uuid[15])), Some((0x12, 0)));
        assert_eq!((asked.serial, asked.product), (text("S=1"), text("a,b")));
        assert_eq!((asked.manufacturer, asked.version), (text("M"), text("V")));
        assert_eq!((asked.sku, asked.family, asked.asset), (text("K"), text("F"), text("A")));
        assert_eq!(asked.oem, ["one", "two"]);
        assert_eq!(smbios(&[]).unwrap(), Smbios::default());
    }

    #[test]
    fn refusals_name_the_value() {
        let long = format!("serial={}", "x".repeat(65));
        let many = vec!["oem=x"; 33];
        for (lists, code, says) in [
            (&["serial=a", "serial=b"][..], "E2003", "serial= comes twice"),
            (&["uuid=1"], "E2003", "8-4-4-4-12"),
            (&["uuid=00000000-0000-0000-0000-000000000000"], "E2003", "not all of them 0"),
            (&["uuid=ffffffff-ffff-ffff-ffff-ffffffffffff"], "E2003", "not all of them 0"),
            (&["uuid=123e4567e89b12d3a456426614174000"], "E2003", "8-4-4-4-12"),
            (&["uuid=+23e4567-e89b-12d3-a456-426614174000"], "E2003", "8-4-4-4-12"),
            (&["serial=\u{fc}"], "E2003", "printable ASCII"),
            (&["product=a\nb"], "E2003", "printable ASCII"),
            (&[long.as_str()], "E2003", "1 to 64"),
            (&many, "E2003", "more than 32 times"),
            (&["serial="], "E2003", "has no value"),
            (&["lab"], "E2003", "'lab' is no key=value"),
            (&["seriel=1"], "E2002", "did you mean serial=?"),
        ] {
            let failure = smbios(lists).unwrap_err();
            assert_eq!(failure.code.id, code, "{lists:?}");
            let told = format!("{} {}", failure.cause, failure.fix);
            assert!(told.contains(says), "{lists:?}: {told}");
        }
    }
}
