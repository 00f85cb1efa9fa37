//! What a job left behind, read back: serial consoles, exit statuses, and the agent's reports.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    files,
    scenario::{Ending, Vm},
};

/// The results of one scenario.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The job's directory on L0.
    pub job: PathBuf,
    /// The boot's directory on L0: what lies behind the devices.
    pub run: PathBuf,
    /// L0's QEMU process, if there is one.
    pub pid: Option<u32>,
    /// This run's word.
    pub nonce: String,
    /// The script's exit status.
    pub status: i32,
    vms: BTreeMap<String, Run>,
}

/// One run of a monitor.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// The guest's serial console.
    pub serial: String,
    /// What the monitor said.
    pub errors: String,
    /// Its exit status; `None` when it never ended by itself.
    pub status: Option<i32>,
    /// Seconds from start to end.
    pub seconds: Option<f64>,
    /// The agent's reports, in order.
    reports: Vec<(String, String)>,
}

impl Outcome {
    /// Reads a job's directory.
    pub(crate) fn read(job: &Path, run: &Path, pid: Option<u32>, nonce: &str, status: i32) -> Self {
        let mut vms = BTreeMap::new();
        for entry in fs::read_dir(job).into_iter().flatten().filter_map(Result::ok) {
            if let Some(name) = entry.file_name().to_string_lossy().strip_suffix(".command") {
                vms.insert(name.to_owned(), Run::read(job, name));
            }
        }
        let nonce = nonce.to_owned();
        Self { job: job.to_path_buf(), run: run.to_path_buf(), pid, nonce, status, vms }
    }

    /// The run of this name.
    pub(crate) fn vm(&self, name: &str) -> Result<&Run, String> {
        self.vms.get(name).ok_or_else(|| format!("{name} was never started"))
    }

    /// A file the script wrote.
    pub(crate) fn text(&self, name: &str) -> String {
        files::text(&self.job.join(name))
    }

    /// The figures all guests and the script reported.
    pub(crate) fn figures(&self) -> Vec<String> {
        let script = reports(&self.text("job.out"));
        let guests = self.vms.values().flat_map(|run| run.reports.clone());
        let told = guests
            .chain(script)
            .filter_map(|(key, value)| Some(format!("{} {value}", key.strip_prefix("figure.")?)));
        let times = self.vms.iter().filter_map(|(name, run)| {
            run.report("up").ok()?;
            Some(format!("guest {name} {:.1} s", run.seconds?))
        });
        told.chain(times).collect()
    }

    /// What is wrong with how this guest ended, whatever the scenario is about. Its kernel must not complain about
    /// the machine if `clean`.
    pub(crate) fn judge_ending(&self, vm: &Vm, clean: bool) -> Result<(), String> {
        if vm.ending == Ending::Whatever {
            return Ok(());
        }
        let run = self.vm(&vm.name)?;
        let name = &vm.name;
        if let Some((_, failure)) = run.reports.iter().find(|(key, _)| key == "fail") {
            return Err(format!("{name}: {failure}"));
        }
        let wanted = if let Ending::Status(status) = vm.ending { status } else { 0 };
        match run.status {
            Some(status) if status == wanted => {}
            Some(status) => {
                let said = run.errors.lines().next().unwrap_or("nothing on stderr");
                return Err(format!("{name}: exit status {status}, not {wanted}: {said}"));
            }
            None => return Err(format!("{name}: did not end in time")),
        }
        if vm.ending == Ending::Done {
            let steps =
                run.report("steps").map_err(|_| format!("{name}: its agent never finished"))?;
            if steps != "done" {
                return Err(format!("{name}: its steps ended with {steps}"));
            }
            let complaints: Vec<_> = run.all("dmesg.complaint").collect();
            if clean && !complaints.is_empty() && !vm.complaints_allowed {
                let first = complaints.iter().take(3).copied().collect::<Vec<_>>().join(" | ");
                let count = complaints.len();
                return Err(format!("{name}: its kernel complains {count} times: {first}"));
            }
        }
        Ok(())
    }
}

impl Run {
    fn read(job: &Path, name: &str) -> Self {
        let file = |suffix: &str| files::text(&job.join(format!("{name}.{suffix}")));
        let number = |suffix: &str| file(suffix).trim().parse::<f64>().ok();
        let serial = file("serial");
        Self {
            reports: reports(&serial),
            serial,
            errors: file("err"),
            status: file("rc").trim().parse().ok(),
            seconds: number("end").zip(number("begin")).map(|(end, begin)| end - begin),
        }
    }

    /// The last value reported for this key.
    pub(crate) fn report(&self, key: &str) -> Result<&str, String> {
        let found = self.reports.iter().rev().find(|(known, _)| known == key);
        let (_, value) = found.ok_or_else(|| format!("the guest never reported {key}"))?;
        Ok(value)
    }

    /// A reported number.
    pub(crate) fn number(&self, key: &str) -> Result<f64, String> {
        let value = self.report(key)?;
        value.parse().map_err(|_| format!("{key} is {value}, not a number"))
    }

    /// Every value reported for this key.
    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.reports.iter().filter(move |(known, _)| known == key).map(|(_, value)| value.as_str())
    }
}

/// Takes `LAB key=value` lines out of a console.
fn reports(console: &str) -> Vec<(String, String)> {
    console
        .lines()
        .filter_map(|line| line.trim_end().split_once("LAB ")?.1.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_found_among_other_console_lines() {
        let console =
            "[    1.0] Linux\r\nLAB a=1\r\nx LAB b=two words\r\nLAB broken\r\nLAB a=2\r\n";
        let run = Run { reports: reports(console), ..Run::default() };
        assert_eq!(run.report("a"), Ok("2"));
        assert_eq!(run.report("b"), Ok("two words"));
        assert!(run.report("broken").is_err());
    }
}
