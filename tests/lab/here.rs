//! Jobs on this machine, for scenarios with a real device: no QEMU, no L1.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{l1::JobEnd, paths::Paths};

/// On a machine that somebody uses, the lab takes no device from its driver.
const NO_BINDING: &str = r#"
bind() {
    for f in "$@"; do
        [ "$(driver $f)" = vfio-pci ] || { echo "FAIL: $f is held by $(driver $f): bind it to vfio-pci first"; exit 90; }
    done
}
give_back() { :; }
"#;

/// Makes the share that L1 would have.
pub(crate) fn prepare(paths: &Paths, strait: &Path) -> Result<()> {
    let run = paths.boot("here");
    crate::files::fresh_directory(&run.join("jobs"))?;
    fs::create_dir_all(run.join("bin"))?;
    let library = include_str!("l1/lib.sh").replace("J=/run/lab/job\n", "J=$S\n");
    fs::write(run.join("lib.sh"), library + NO_BINDING)?;
    fs::copy(strait, run.join("bin/strait")).context("cannot copy strait")?;
    Ok(())
}

/// Runs a job's script with the system's shell.
pub(crate) fn job(job: &Path, limit: Duration) -> Result<JobEnd> {
    let run = job.ancestors().nth(2).unwrap_or(job);
    let path = std::env::var("PATH").unwrap_or_default();
    let out = File::create(job.join("job.out"))?;
    let mut child = Command::new("sh")
        .arg(job.join("job.sh"))
        .env("PATH", format!("{}:{path}", run.join("bin").display()))
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .process_group(0)
        .spawn()
        .context("cannot start sh")?;
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status.code().unwrap_or(137);
        }
        if Instant::now() > end {
            // The whole group: the monitor is the script's child.
            Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]).status()?;
            child.wait()?;
            break 137;
        }
        thread::sleep(Duration::from_millis(100));
    };
    Ok(JobEnd { status, console: String::new() })
}
