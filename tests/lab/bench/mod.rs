//! `cargo lab bench`: strait measured against QEMU, against L1 without a guest, and against whatever else the
//! environment names, in one boot of L1, interleaved.
//!
//! `cases` says what is run, `contender` how each does it, `run` runs it, `facts` makes figures of what the stopwatch
//! in L1 saw (`agent/stopwatch.rs`), `rows` says which of them the table shows and what the goals are.
//!
//! Two clocks: the wall, of an L1 with two CPUs; and instructions, of an L1 with one, where they hardly differ from run to
//! run however busy the machine is. The second is for what the CPU alone decides.

mod cases;
mod contender;
pub(crate) mod facts;
mod results;
mod rows;
mod run;
mod stats;
mod table;
mod tiny;

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    files,
    l1::Ingredients,
    paths::Paths,
    progress::{result, say},
};

use contender::{Contender, VARIABLE};
use results::About;
use rows::{ROWS, Row};

/// What was asked for.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only these rows; --list tells their names.
    pub rows: Vec<String>,
    /// One round of the quick rows.
    #[arg(long)]
    pub short: bool,
    /// How many rounds.
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Say what rows there are, run nothing.
    #[arg(long)]
    pub list: bool,
    /// Renew the table in this page, e.g. docs/performance.md.
    #[arg(long, value_name = "FILE")]
    pub write: Option<std::path::PathBuf>,
    /// Run nothing: print the results there are.
    #[arg(long)]
    pub no_run: bool,
}

/// Lists the rows; `true`: nothing more was wanted.
pub(crate) fn listed(arguments: &Arguments) -> bool {
    if arguments.list {
        for row in ROWS {
            result(format!("{:<20} {} [{}]", row.id, row.title, row.cases().join(", ")));
        }
    }
    arguments.list
}

/// Runs what was asked for and tells.
pub(crate) fn run(with: Ingredients<'_>, arguments: &Arguments) -> Result<()> {
    let json = with.paths.lab.join("bench.json");
    let earlier = files::text(&json);
    let new = if arguments.no_run { Vec::new() } else { measured(with, arguments)? };
    let results = results::merged(&earlier, new);
    if !arguments.no_run {
        files::write_whole(&json, serde_json::to_string_pretty(&results)?.as_bytes())?;
    }
    let table = table::markdown(&results);
    result(&table);
    if let Some(path) = &arguments.write {
        let page = if path.exists() { fs::read_to_string(path)? } else { table::page() };
        let Some(page) = table::renewed(&page, &table) else {
            bail!("{} has no marks for the table", path.display());
        };
        files::write_whole(path, page.as_bytes())?;
    }
    say(format!("results: {}", Paths::shown(&json)));
    Ok(())
}

fn measured(with: Ingredients<'_>, arguments: &Arguments) -> Result<Vec<serde_json::Value>> {
    let rows = chosen(arguments)?;
    let mut contenders = vec![Contender::Strait, Contender::Qemu, Contender::Bare];
    contenders.extend(Contender::others(&std::env::var(VARIABLE).unwrap_or_default())?);
    let needed: Vec<&str> = rows.iter().flat_map(Row::cases).collect();
    let cases: Vec<_> =
        cases::all().into_iter().filter(|case| needed.contains(&case.name)).collect();
    let rounds = if arguments.short { 1 } else { arguments.rounds };
    ensure!((1..=100).contains(&rounds), "--rounds is 1 to 100");
    let about = about(with)?;
    let runs = run::Bench::new(with, contenders)?.run(&cases, rounds)?;
    Ok(rows.iter().filter_map(|row| results::row(row, &runs, &about)).collect())
}

fn chosen(arguments: &Arguments) -> Result<Vec<Row>> {
    for wanted in &arguments.rows {
        ensure!(ROWS.iter().any(|row| row.id == wanted), "there is no row {wanted}: see --list");
    }
    let by_name = |row: &&Row| arguments.rows.iter().any(|wanted| wanted == row.id);
    Ok(match (arguments.rows.is_empty(), arguments.short) {
        (false, _) => ROWS.iter().filter(by_name).copied().collect(),
        (true, true) => ROWS.iter().filter(|row| row.short).copied().collect(),
        (true, false) => ROWS.to_vec(),
    })
}

fn about(with: Ingredients<'_>) -> Result<About> {
    let strait = with.strait.context("strait is not built")?;
    let mut programs = BTreeMap::new();
    let stripped = with.paths.lab.join("strait-stripped");
    let status = Command::new("strip").arg("-o").arg(&stripped).arg(strait).status();
    let size =
        |path: &Path| Ok::<_, anyhow::Error>(fs::metadata(path)?.len() as f64 / f64::from(1 << 20));
    match status {
        Ok(status) if status.success() => programs.insert("strait".to_owned(), size(&stripped)?),
        _ => {
            say("no strip (binutils): the program's size is that with symbols");
            programs.insert("strait".to_owned(), size(strait)?)
        }
    };
    programs.insert("qemu".to_owned(), size(&with.tools.qemu)?);
    let load = files::text(Path::new("/proc/loadavg"));
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    Ok(About {
        date: output(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"])),
        command: std::iter::once("cargo lab".to_owned())
            .chain(std::env::args().skip(1))
            .collect::<Vec<_>>()
            .join(" "),
        revision: output(
            Command::new("git")
                .current_dir(&with.paths.root)
                .args(["describe", "--always", "--dirty"]),
        ),
        kernel: with.kernel.package.clone(),
        qemu: run::version(&with.tools.qemu),
        machine: format!(
            "{cpus} CPUs, load {} at the start",
            load.split(' ').next().unwrap_or_default()
        ),
        programs,
    })
}

fn output(command: &mut Command) -> String {
    let output = command.output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.unwrap_or_default().trim().to_owned()
}
