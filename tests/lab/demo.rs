//! The demo: a guest's console on a GPU that was passed to it.

use std::fs;

use anyhow::{Context, Result, anyhow};

use crate::{
    l1::Ingredients,
    outcome::Outcome,
    paths::Paths,
    picture::Picture,
    progress::result,
    report::Report,
    runner::{Options, Runner},
    scenarios,
};

/// Runs the demo; was all well?
pub(crate) fn demo(with: Ingredients<'_>, options: Options) -> Result<bool> {
    let scenario = scenarios::gpu::picture();
    let name = scenario.name.clone();
    let mut report = Report::default();
    Runner::new(with, options, None).run(&[scenario], &mut report);
    if report.failed > 0 {
        return Ok(false);
    }
    let logs = with.paths.logs(&name);
    let outcome = Outcome::read(&logs, &logs, None, "", 0);
    let guest = outcome.vm("a").map_err(|error| anyhow!(error))?;
    result("\nWhat the guest sees:");
    for key in ["pci", "irq"] {
        for line in guest.all(key) {
            result(format!("  {key:<4} {line}"));
        }
    }
    for key in ["display.device", "display.driver", "display.fb"] {
        let value = guest.report(key).map_err(|error| anyhow!(error))?;
        result(format!("  {:<8} {value}", key.trim_start_matches("display.")));
    }
    let picture = Picture::read(&logs.join("picture.ppm"))?;
    let shown = picture.shows_text().map_err(|error| anyhow!(error))?;
    let png = with.paths.lab.join("demo.png");
    picture.write_png(&png)?;
    let size = fs::metadata(&png).context("the picture was not written")?.len();
    result(format!(
        "\nThe guest's console, drawn on the passed GPU: {} ({shown}, {size} bytes)",
        Paths::shown(&png)
    ));
    Ok(true)
}
