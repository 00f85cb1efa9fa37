//! The report as one HTML file: nothing in it is fetched from anywhere.

use std::fmt::Write as _;

use super::{
    result::{Report, Row},
    svg::{self, colour, escaped},
    table::{is_best, number},
};

const STYLE: &str = "\
:root{--ink:#1c1f23;--quiet:#626a73;--line:#d9dde2;--paper:#fff;--card:#f6f7f9;--good:#0a7d55}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e8ea;--quiet:#9aa3ad;--line:#3a4149;--paper:#15181b;--card:#1e2327;--good:#3fc08d}}\
*{box-sizing:border-box}body{margin:0 auto;padding:1.2rem;max-width:64rem;color:var(--ink);background:var(--paper);\
font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}\
h1{font-size:1.45rem;line-height:1.25;margin:.2rem 0}h2{font-size:1.05rem;margin:0 0 .6rem}p{margin:.3rem 0}\
.quiet{color:var(--quiet)}.plots .card,.heads .card{margin:0}.plots .card:last-child:nth-child(odd){grid-column:1/-1}.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr));gap:1rem;margin:1rem 0}\
.card{margin:0 0 1rem;background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.9rem;min-width:0}\
.heads{display:flex;flex-wrap:wrap;gap:.8rem;margin:1rem 0}.head{flex:1 1 9rem}.head b{display:block;font-size:1.5rem;line-height:1.2}\
svg{display:block;width:100%;max-width:38rem;height:auto;overflow:visible}svg text{fill:var(--ink)}svg .axis{fill:var(--quiet)}\
svg .strong{font-weight:600}svg .inside{fill:#fff}svg .grid{stroke:var(--line);stroke-width:.7}\
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
th,td{padding:.3rem .55rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}\
th:first-child,td:first-child{text-align:left;min-width:8rem;padding-left:0}td span{display:block;font-weight:400;color:var(--quiet);font-size:.8rem;white-space:nowrap}\
td.best{color:var(--good);font-weight:600}th i{display:inline-block;width:.7rem;height:.7rem;border-radius:.15rem;margin-right:.35rem}\
code{font:.85em/1.5 ui-monospace,'DejaVu Sans Mono',monospace;overflow-wrap:anywhere}li{margin:.25rem 0}ul{padding-left:1.1rem;margin:.3rem 0}\
@media(max-width:34rem){body{padding:.8rem}.card{padding:.7rem}table{font-size:.85rem}th,td{padding:.25rem .3rem}td span{white-space:normal;font-size:.75rem}th:first-child,td:first-child{min-width:6rem}}\
details{margin:.6rem 0}summary{cursor:pointer}";

/// The whole page.
pub(super) fn render(report: &Report) -> String {
    let Report { device, host, settings, .. } = report;
    let title = format!("strait bench: {} {}", device.bdf, device.name);
    let mut out = String::new();
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>{}</title><style>{STYLE}</style></head><body>\n",
        escaped(&title)
    );
    let _ = writeln!(
        out,
        "<h1>{} passed to a guest</h1>\n<p class=\"quiet\">{} &middot; {} &middot; {}, {} CPUs, Linux {} &middot; {}</p>\n\
         <p class=\"quiet\">{} runs of each, interleaved, after {} to warm up. Guest: {} MiB, {} CPU{}, {}.</p>",
        escaped(&device.name),
        escaped(&device.bdf),
        escaped(&device.id),
        escaped(&host.cpu),
        host.cpus,
        escaped(&host.kernel),
        escaped(&report.date),
        settings.runs,
        settings.warm_up,
        settings.memory >> 20,
        settings.cpus,
        if settings.cpus == 1 { "" } else { "s" },
        escaped(&settings.kernel),
    );
    out.push_str(&headlines(report));
    let plots = [
        ("Start, step by step", svg::start(&report.contenders)),
        ("Latency of single operations by percentile", svg::latency(&report.contenders)),
        ("Exits to the monitor, whole run", svg::exits(&report.contenders)),
    ];
    out.push_str("<div class=\"plots\">\n");
    for (title, plot) in plots {
        if let Some(plot) = plot {
            let _ = writeln!(out, "<section class=\"card\"><h2>{title}</h2>{plot}</section>");
        }
    }
    out.push_str("</div>\n");
    out.push_str(&table(report));
    if !report.notes.is_empty() {
        out.push_str("<section class=\"card\"><h2>Not measured, and not equal</h2><ul>\n");
        for note in &report.notes {
            let _ = writeln!(out, "<li>{}</li>", escaped(note));
        }
        out.push_str("</ul></section>\n");
    }
    out.push_str("<details><summary>How to repeat it</summary>\n<ul>\n");
    let _ = writeln!(out, "<li><code>{}</code></li>", escaped(&report.command.join(" ")));
    for contender in &report.contenders {
        let command = escaped(&contender.command.join(" "));
        let (name, version) = (escaped(&contender.name), escaped(&contender.version));
        let _ = writeln!(out, "<li>{name}, {version}: <code>{command}</code></li>");
    }
    out.push_str("</ul></details>\n</body></html>\n");
    out
}

/// The rows that people ask for first, as ratios to the first peer.
fn headlines(report: &Report) -> String {
    let Some(peer) =
        report.contenders.iter().find(|c| !["strait", "host"].contains(&c.name.as_str()))
    else {
        return String::new();
    };
    let mut out = String::from("<div class=\"heads\">\n");
    for (id, what) in [
        ("start.init", "start to init"),
        ("start.first", "start to first work"),
        ("memory.beyond", "memory beyond RAM"),
        ("exits.total", "exits"),
        ("nvme.qd1.median", "read latency"),
        ("net.rtt.median", "round trip"),
    ] {
        let Some(row) = report.rows.iter().find(|row| row.id == id) else { continue };
        let Some((ours, theirs)) = row.results.get("strait").zip(row.results.get(&peer.name))
        else {
            continue;
        };
        if theirs.median > 0.0 {
            let ratio = number(ours.median / theirs.median);
            let name = escaped(&peer.name);
            let _ = writeln!(
                out,
                "<div class=\"card head\"><b>{ratio} &times;</b>{what}, of {name}'s</div>"
            );
        }
    }
    out.push_str("</div>\n");
    out
}

fn table(report: &Report) -> String {
    let mut out = String::from(
        "<section class=\"card wide\"><h2>All figures</h2><table><thead><tr><th></th>",
    );
    for contender in &report.contenders {
        let (name, colour) = (escaped(&contender.name), colour(&contender.name));
        let _ = write!(out, "<th><i style=\"background:{colour}\"></i>{name}</th>");
    }
    out.push_str("</tr></thead><tbody>\n");
    for row in &report.rows {
        let unit = if row.unit.is_empty() { String::new() } else { format!(", {}", row.unit) };
        let _ = write!(out, "<tr><td>{}{}</td>", escaped(&row.title), escaped(&unit));
        for contender in &report.contenders {
            out.push_str(&cell(row, &contender.name));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table><p class=\"quiet\">Median; below it the least and the most. Green: better than every other \
                  monitor in every run.</p></section>\n");
    out
}

fn cell(row: &Row, name: &str) -> String {
    let Some(summary) = row.results.get(name) else {
        return "<td class=\"quiet\">&ndash;</td>".to_owned();
    };
    let class = if is_best(row, name) { " class=\"best\"" } else { "" };
    let spread = match summary.min < summary.max {
        true => format!("<span>{} to {}</span>", number(summary.min), number(summary.max)),
        false => String::new(),
    };
    format!("<td{class}>{}{spread}</td>", number(summary.median))
}

#[cfg(test)]
mod tests {
    use super::{super::result::tests_support::report, *};

    #[test]
    fn page_has_everything_in_it_and_fetches_nothing() {
        let page = render(&report());
        for wanted in [
            "0.392 &times;",
            "A CPU &lt;fast&gt;",
            "a note",
            "class=\"best\">2",
            "&ndash;",
            "strait bench",
        ] {
            assert!(page.contains(wanted), "{wanted}: {page}");
        }
        assert_eq!(page.matches("<svg").count(), 3);
        for fetching in ["http:", "https:", "src=", "@import", "<script", "url("] {
            assert!(!page.contains(fetching), "{fetching}");
        }
    }

    #[test]
    fn every_tag_that_opens_closes() {
        let page = render(&report());
        for tag in [
            "div", "section", "table", "tr", "td", "ul", "li", "svg", "text", "rect", "details",
            "body", "html",
        ] {
            let opens = page.matches(&format!("<{tag}>")).count()
                + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opens, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }
}
