//! Plots as inline SVG: latency distributions, exits by reason, the start as a waterfall. Text inside is escaped; sizes are in
//! the plot's own units, which the page scales to the width it has.

use std::fmt::Write as _;

// Not the methods of f64: with them strait would load the C library's mathematics at every start.
use libm::{exp10, log10};

use super::{
    result::{Contender, Step},
    table::number,
};

/// Width of every plot.
const WIDTH: f64 = 440.0;
const FONT: f64 = 12.0;

/// The colour of a contender or of the n-th part of one.
pub(super) fn colour(name: &str) -> &'static str {
    match name {
        "strait" => "#0a7d55",
        "qemu" => "#d1603d",
        "cloud-hypervisor" => "#3f72c4",
        _ => "#777777",
    }
}

const PARTS: [&str; 8] =
    ["#3f72c4", "#d1603d", "#e0a526", "#7a5bb5", "#2f9e8f", "#b5476b", "#8a8a8a", "#5b7f2b"];

/// What goes on beside the steps of a start.
const BESIDE: &str = "#7a858f";

/// For text and attributes.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            _ => out.push(c),
        }
    }
    out
}

struct Plot {
    body: String,
}

impl Plot {
    fn new() -> Self {
        Self { body: String::new() }
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, class: &str, text: &str) {
        let text = escaped(text);
        let _ = write!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" class="{class}">{text}</text>"#
        );
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = write!(
            self.body,
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" class="grid"/>"#
        );
    }

    fn bar(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str, title: &str) {
        let (width, title) = (width.max(0.8), escaped(title));
        let _ = write!(
            self.body,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{fill}" rx="1.5"><title>{title}</title></rect>"#
        );
    }

    fn done(self, height: f64, label: &str) -> String {
        let label = escaped(label);
        format!(
            r#"<svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="{label}" font-size="{FONT}">{}</svg>"#,
            self.body
        )
    }
}

/// Latency by percentile, both axes logarithmic: to the right are the slow ones, 90, 99, 99.9 of a hundred.
pub(super) fn latency(contenders: &[Contender]) -> Option<String> {
    let with: Vec<&Contender> =
        contenders.iter().filter(|contender| contender.latency.len() > 1).collect();
    let values = || with.iter().flat_map(|contender| contender.latency.iter().map(|point| point.1));
    let (low, high) = (values().reduce(f64::min)?.max(0.1), values().reduce(f64::max)?);
    let (low, high) = (nice_below(low), nice_above(high.max(low * 2.0)));
    let (left, right, top, bottom) = (52.0, WIDTH - 10.0, 12.0, 212.0);
    let nines = |percentile: f64| -log10(1.0 - percentile.min(99.995) / 100.0);
    let x = |percentile: f64| left + (right - left) * nines(percentile) / nines(99.995);
    let y = |micros: f64| {
        let share = log10(micros.max(low) / low) / log10(high / low);
        bottom - (bottom - top) * share
    };
    let mut plot = Plot::new();
    let mut tick = low;
    while tick <= high * 1.001 {
        plot.line((left, y(tick)), (right, y(tick)));
        plot.text(left - 5.0, y(tick) + 4.0, "end", "axis", &microseconds(tick));
        tick = nice_above(tick * 1.01);
    }
    for (percentile, name) in
        [(0.0, "0 %"), (50.0, "50"), (90.0, "90"), (99.0, "99"), (99.9, "99.9"), (99.995, "100 %")]
    {
        plot.line((x(percentile), top), (x(percentile), bottom));
        let anchor = if percentile > 99.95 { "end" } else { "middle" };
        plot.text(x(percentile), bottom + 15.0, anchor, "axis", name);
    }
    for contender in &with {
        let points: Vec<String> = contender
            .latency
            .iter()
            .map(|(at, micros)| format!("{:.1},{:.1}", x(*at), y(*micros)))
            .collect();
        let colour = colour(&contender.name);
        let _ = write!(
            plot.body,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"/>"#,
            points.join(" ")
        );
    }
    // The legend stands where curves that rise to the right leave room.
    for (n, contender) in with.iter().enumerate() {
        let at = bottom - 8.0 - (with.len() - 1 - n) as f64 * 16.0;
        plot.bar(right - 126.0, at - 8.0, 16.0, 4.0, colour(&contender.name), &contender.name);
        plot.text(right - 105.0, at - 2.0, "start", "", &contender.name);
    }
    Some(plot.done(bottom + 24.0, "latency by percentile"))
}

/// Exits to user space, a bar for each contender.
pub(super) fn exits(contenders: &[Contender]) -> Option<String> {
    let counted: Vec<(&Contender, u64)> = contenders
        .iter()
        .filter_map(|contender| Some((contender, contender.exits.as_ref()?.values().sum())))
        .collect();
    let most = counted.iter().map(|(_, sum)| *sum).max()?.max(1) as f64;
    let mut reasons: Vec<(&String, u64)> = Vec::new();
    for (contender, _) in &counted {
        for (reason, count) in contender.exits.iter().flatten() {
            match reasons.iter_mut().find(|(known, _)| *known == reason) {
                Some((_, sum)) => *sum += count,
                None => reasons.push((reason, *count)),
            }
        }
    }
    reasons.sort_by_key(|(_, sum)| std::cmp::Reverse(*sum));
    let part = |n: usize| PARTS[n.min(PARTS.len() - 1)];
    let mut plot = Plot::new();
    let mut y = 4.0;
    for (contender, sum) in &counted {
        plot.text(0.0, y + 10.0, "start", "", &contender.name);
        plot.text(WIDTH, y + 10.0, "end", "strong", &sum.to_string());
        y += 15.0;
        let mut x = 0.0;
        for (n, (reason, _)) in reasons.iter().enumerate() {
            let count =
                contender.exits.as_ref().and_then(|exits| exits.get(*reason)).copied().unwrap_or(0);
            if count > 0 {
                let width = WIDTH * count as f64 / most;
                plot.bar(x, y, width, 16.0, part(n), &format!("{reason}: {count}"));
                x += width;
            }
        }
        y += 27.0;
    }
    let mut x = 0.0;
    for (n, (reason, sum)) in reasons.iter().enumerate() {
        let label = format!("{reason} {sum}");
        let width = 22.0 + label.chars().count() as f64 * 7.4;
        if x + width > WIDTH {
            x = 0.0;
            y += 16.0;
        }
        plot.bar(x, y, 10.0, 10.0, part(n), reason);
        plot.text(x + 14.0, y + 9.0, "start", "axis", &label);
        x += width;
    }
    Some(plot.done(y + 16.0, "exits to user space by reason"))
}

/// The start, step by step, all contenders on one scale.
pub(super) fn start(contenders: &[Contender]) -> Option<String> {
    let with: Vec<&Contender> =
        contenders.iter().filter(|contender| !contender.start.is_empty()).collect();
    let end = with
        .iter()
        .flat_map(|contender| contender.start.iter().map(|step| step.end))
        .reduce(f64::max)?;
    let scale = |seconds: f64| WIDTH * seconds / end.max(1e-9);
    let mut plot = Plot::new();
    let mut y = 4.0;
    for contender in with {
        let total = contender.start.iter().map(|step| step.end).fold(0.0, f64::max);
        plot.text(0.0, y + 10.0, "start", "strong", &contender.name);
        plot.text(WIDTH, y + 10.0, "end", "strong", &seconds(total));
        y += 17.0;
        for Step { name, begin, end, beside } in &contender.start {
            let (x, width) = (scale(*begin), scale(end - begin));
            let label = match beside {
                true => format!("meanwhile: {name}, {}", seconds(end - begin)),
                false => format!("{name}, {}", seconds(end - begin)),
            };
            let fill = if *beside { BESIDE } else { colour(&contender.name) };
            plot.bar(x, y, width, 14.0, fill, &label);
            let room = label.chars().count() as f64 * 5.6 + 6.0;
            // Inside the bar, else where there is room: behind it, or before it.
            let (at, anchor, class) = if x + width + room < WIDTH && width < room {
                (x + width + 4.0, "start", "axis")
            } else if width < room && x > room {
                (x - 4.0, "end", "axis")
            } else {
                (x + 4.0, "start", "inside")
            };
            plot.text(at, y + 11.2, anchor, class, &label);
            y += 17.0;
        }
        y += 8.0;
    }
    Some(plot.done(y, "start, step by step"))
}

fn seconds(value: f64) -> String {
    if value < 1.0 { format!("{} ms", number(value * 1e3)) } else { format!("{} s", number(value)) }
}

fn microseconds(value: f64) -> String {
    if value >= 1e3 {
        format!("{} ms", number(value / 1e3))
    } else {
        format!("{} us", number(value))
    }
}

/// 1, 2 or 5 times a power of ten, at most this.
fn nice_below(value: f64) -> f64 {
    let power = exp10(log10(value).floor());
    [5.0, 2.0, 1.0]
        .into_iter()
        .map(|step| step * power)
        .find(|nice| *nice <= value * 1.0001)
        .unwrap_or(power)
}

/// The same, at least this.
fn nice_above(value: f64) -> f64 {
    let power = exp10(log10(value).floor());
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|step| step * power)
        .find(|nice| *nice >= value * 0.9999)
        .unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::{super::result::tests_support::report, *};

    #[test]
    fn nice_numbers_enclose() {
        for (value, below, above) in
            [(1.0, 1.0, 1.0), (3.0, 2.0, 5.0), (70.0, 50.0, 100.0), (0.3, 0.2, 0.5)]
        {
            assert!((nice_below(value) - below).abs() < 1e-9, "{value}");
            assert!((nice_above(value) - above).abs() < 1e-9, "{value}");
        }
    }

    #[test]
    fn plots_name_everyone_who_has_data_and_stay_inside() {
        let contenders = report().contenders;
        for plot in [latency(&contenders), exits(&contenders), start(&contenders)] {
            let plot = plot.unwrap();
            assert!(["strait", "qemu", "host"].iter().all(|name| plot.contains(name)), "{plot}");
            for number in plot.split(" x=\"").skip(1) {
                let x: f64 = number.split('"').next().unwrap().parse().unwrap();
                assert!((0.0..=WIDTH).contains(&x), "{x}: {plot}");
            }
        }
    }

    #[test]
    fn without_data_there_is_no_plot() {
        let mut contender = report().contenders.remove(0);
        (contender.latency, contender.exits, contender.start) = (Vec::new(), None, Vec::new());
        let none = [contender];
        assert_eq!((latency(&none), exits(&none), start(&none)), (None, None, None));
    }

    #[test]
    fn foreign_text_cannot_become_markup() {
        assert_eq!(escaped("<a b=\"c\">&"), "&lt;a b=&quot;c&quot;&gt;&amp;");
    }
}
