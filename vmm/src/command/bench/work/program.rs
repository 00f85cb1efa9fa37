//! The user's own program, on both sides: lines `NAME: NUMBER UNIT` of its output become rows.

use std::{
    io,
    process::{Command, Stdio},
};

use super::super::said::{figure, note};

/// More rows than this are no table.
const MOST: usize = 100;

/// Runs it and says what it printed.
pub(super) fn measure(command: &str) -> io::Result<()> {
    let mut words = command.split_whitespace();
    let Some(program) = words.next() else { return Ok(()) };
    let output = Command::new(program)
        .args(words)
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| io::Error::other(format!("{program} does not start: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rows = rows(&text);
    for (name, value, unit) in rows.iter().take(MOST) {
        figure(&format!("workload.{name}"), name, unit, *value, None);
    }
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        note(format!(
            "{program} ended with {}: {}",
            output.status,
            error.lines().next().unwrap_or("")
        ));
    } else if rows.is_empty() {
        note(format!("{program} printed no line of the form NAME: NUMBER UNIT"));
    }
    Ok(())
}

fn rows(text: &str) -> Vec<(String, f64, String)> {
    let parsed = text.lines().filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        let mut words = rest.split_whitespace();
        let value: f64 = words.next()?.parse().ok().filter(|value: &f64| value.is_finite())?;
        let unit = words.collect::<Vec<_>>().join(" ");
        let name = name.trim();
        (!name.is_empty() && name.len() <= 60 && unit.len() <= 20)
            .then(|| (name.to_owned(), value, unit))
    });
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_a_name_a_number_and_a_unit_become_rows() {
        let text =
            "Device 0: Tesla\nhost to device: 12.5 GB/s\ncount: 3\nbad: nan s\n: 1 s\nno colon 5\n";
        let got = rows(text);
        let wanted = [("host to device", 12.5, "GB/s"), ("count", 3.0, "")];
        let wanted: Vec<_> =
            wanted.iter().map(|(n, v, u)| ((*n).to_owned(), *v, (*u).to_owned())).collect();
        assert_eq!(got, wanted);
    }
}
