//! The `log` crate's output on standard error, looking like our own warnings.

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::{ERROR, QUIET, WARNING, plain, say};

struct Stderr;

/// Warnings and worse; with one `-v` what is done, with two every detail.
pub(crate) fn log_to_stderr(verbose: u8) {
    // Only a second logger is refused, and there is none.
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(level(verbose));
    }
}

const fn level(verbose: u8) -> LevelFilter {
    match verbose {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    }
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // vfio-ioctls warns of each interrupt type and region that a device lacks; strait asks the kernel itself.
        let noise = metadata.target().starts_with("vfio_ioctls") && metadata.level() > Level::Error;
        metadata.level() <= log::max_level() && (!noise || log::max_level() >= LevelFilter::Debug)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            say(&line(record));
        }
    }

    fn flush(&self) {}
}

fn line(record: &Record<'_>) -> String {
    let (style, name) = match record.level() {
        Level::Error => (ERROR, "error"),
        Level::Warn => (WARNING, "warning"),
        Level::Info => (QUIET, "info"),
        Level::Debug => (QUIET, "debug"),
        Level::Trace => (QUIET, "trace"),
    };
    let said = record.args().to_string();
    format!("{style}{name}:{style:#} {}\n", plain(&said))
}

#[cfg(test)]
mod tests {
    use anstream::adapter::strip_str;

    use super::*;

    #[test]
    fn line_of_a_warning_looks_like_ours() {
        let args = format_args!("BAR 1 is trapped");
        let text = line(&Record::builder().level(Level::Warn).args(args).build());
        assert_eq!(strip_str(&text).to_string(), "warning: BAR 1 is trapped\n");
    }

    #[test]
    fn level_rises_with_every_v() {
        let levels: Vec<_> = (0..5).map(level).collect();
        assert!(levels.is_sorted());
        assert_eq!((levels[0], levels[1]), (LevelFilter::Warn, LevelFilter::Info));
    }
}
