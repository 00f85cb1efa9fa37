//! What a person sees: failures, warnings, the log, a panic's last words.
//!
//! Everything but a command's own output goes to standard error. Text is written with its colours in it;
//! `anstream` takes them out when it is not for a terminal, or when NO_COLOR says so.

mod behind;
pub(crate) mod dry_run;
mod logger;
mod plain;

use std::{
    error::Error,
    fmt::Write as _,
    io::{self, Write as _},
    panic,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use strait_arch::plan::Plan;
use strait_devices::vfio::dma;
use strait_resources::{bdf::Bdf, codes, failure::Failure, names::Names};

use crate::{config::RunConfig, looked::PeerDma, passthrough::Selection};
use behind::say;
pub(crate) use behind::{finish, never_wait};
pub(crate) use logger::log_to_stderr;
pub(crate) use plain::plain;

pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
pub(crate) const ERROR: Style = AnsiColor::Red.on_default().bold();
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default().bold();
pub(crate) const STRONG: Style = Style::new().bold();
pub(crate) const QUIET: Style = Style::new().dimmed();

/// A chain of causes longer than this is a loop.
const MAX_CAUSES: usize = 16;

/// A command's output. That its reader left (`strait explain | head`) is no failure.
pub(crate) fn out(text: &str) -> Result<(), Failure> {
    let text = plain::laid_out(text);
    let mut stdout = anstream::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let cause = "standard output takes no more";
            Err(Failure::new(&codes::E9001, cause, "is the disk behind it full?").source(error))
        }
        _ => Ok(()),
    }
}

/// A command's answer to a program.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| {
        Failure::new(&codes::E9001, "the answer cannot be written as JSON", "please report this")
            .source(error)
    })?;
    out(&(plain::json(&text) + "\n"))
}

/// Columns of the terminal behind standard output, 60 at least; 100 without one.
pub(crate) fn columns() -> usize {
    const NARROW: u16 = 60;
    const USUAL: u16 = 100;
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| size.ws_col);
    // A serial console says 0.
    usize::from(size.filter(|columns| *columns > 0).map_or(USUAL, |columns| columns.max(NARROW)))
}

/// Cut to `room` characters, with an ellipsis for what is gone. For names of others: see [`plain`].
pub(crate) fn shortened(text: &str, room: usize) -> String {
    let text = &*plain(text);
    if text.chars().count() <= room {
        return text.to_owned();
    }
    text.chars().take(room.saturating_sub(3)).chain("...".chars()).collect()
}

/// Lines of `label  value`, the value broken where `columns` end and the label, `width` wide, before the first one only.
pub(crate) fn labelled(text: &mut String, columns: usize, width: usize, label: &str, value: &str) {
    let room = columns.saturating_sub(width + 4);
    for (position, line) in wrapped(value, room).iter().enumerate() {
        let label = if position == 0 { label } else { "" };
        let _ = writeln!(text, "  {QUIET}{label:width$}{QUIET:#}  {line}");
    }
}

/// Broken between words into lines of `room` characters; a longer word has a line of its own. For names of others, see
/// [`plain`]: text with colours of strait's own is put together from lines.
pub(crate) fn wrapped(text: &str, room: usize) -> Vec<String> {
    let text = &*plain(text);
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// `0000:3b:00.1, .2, .3`: functions of one slot in short.
pub(crate) fn addresses(bdfs: &[Bdf]) -> String {
    let mut text = String::new();
    let mut before: Option<Bdf> = None;
    for bdf in bdfs {
        text += if before.is_some() { ", " } else { "" };
        text += &match before {
            Some(before) if before.same_slot(*bdf) => format!(".{:x}", bdf.function()),
            _ => bdf.to_string(),
        };
        before = Some(*bdf);
    }
    text
}

/// Why strait stops.
pub(crate) fn failure(failure: &Failure) {
    say(&rendered(failure, "error", ERROR));
}

/// What the user should know although strait goes on.
pub(crate) fn warnings(warnings: &[Failure]) {
    for warning in warnings {
        say(&rendered(warning, "warning", WARNING));
    }
}

/// The machine that would run, with the passed functions of `selection`.
pub(crate) fn dry_run(
    config: &RunConfig,
    names: &Names,
    selection: &Selection,
    plan: &Plan,
    p2p: PeerDma,
) -> Result<(), Failure> {
    let functions: Vec<_> = selection.shown().collect();
    out(&dry_run::render(config, names, &functions, |bdf| selection.extra(bdf), plan, p2p))
}

/// A command's end; a refusal is an answer too when a program asks, with the same exit status.
pub(crate) fn answered(to_program: bool, end: Result<u8, Failure>) -> Result<u8, Failure> {
    match end {
        Err(failure) if to_program => json(&failure_answer(&failure)).map(|()| failure.code.exit),
        end => end,
    }
}

pub(crate) fn failure_answer(failure: &Failure) -> impl Serialize + use<> {
    FailureAnswer {
        schema: "strait.failure/1",
        exit: failure.code.exit,
        failure: Refusal::from(failure),
    }
}

#[derive(Serialize)]
struct FailureAnswer {
    schema: &'static str,
    exit: u8,
    failure: Refusal,
}

/// A failure or a warning in an answer.
#[derive(Serialize)]
pub(crate) struct Refusal {
    code: &'static str,
    cause: String,
    fix: String,
    details: Vec<String>,
    sources: Vec<String>,
}

impl From<&Failure> for Refusal {
    fn from(failure: &Failure) -> Self {
        Self {
            code: failure.code.id,
            cause: failure.cause.clone(),
            fix: failure.fix.clone(),
            details: failure.details.clone(),
            sources: sources(failure),
        }
    }
}

/// What the system said, outermost first.
fn sources(failure: &Failure) -> Vec<String> {
    let first = Error::source(failure);
    let chain = std::iter::successors(first, |&error| error.source());
    chain.take(MAX_CAUSES).map(ToString::to_string).collect()
}

/// From now on a panic of any thread prints E9001 and ends the process with its status, after `restore` put back
/// what must not stay as it is, the terminal, and `leave` saw to it that somebody else gives devices back. One that is caught, of a device that was pulled from the host while it was
/// closed, is none.
pub(crate) fn end_on_panic(restore: fn(), leave: fn()) {
    static ENDING: AtomicBool = AtomicBool::new(false);
    panic::set_hook(Box::new(move |panic| {
        if dma::is_closing() {
            return;
        }
        // Another thread is at it, and ends this one too.
        while ENDING.swap(true, Ordering::AcqRel) {
            thread::park();
        }
        restore();
        let place = panic.location().map(|at| format!(" at {at}")).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        let fix =
            "this is a mistake in strait: please report it with the command line and these lines";
        failure(&Failure::new(&codes::E9001, format!("panic{place}: {message}"), fix));
        leave();
        // The other threads cannot go on without this one, and the kernel takes devices and memory back.
        finish();
        std::process::exit(codes::E9001.exit.into());
    }));
}

/// What strait did besides what it was asked for.
pub(crate) fn notes(lines: &[String]) {
    for line in lines {
        say(&format!("{STRONG}note:{STRONG:#} {}\n", plain(line)));
    }
}

/// Of a line that is written over: no newline of its own.
pub(crate) fn progress(text: &str) {
    say(text);
}

fn rendered(failure: &Failure, level: &str, style: Style) -> String {
    let Failure { code, cause, fix, details, .. } = failure;
    let (cause, fix) = (plain(cause), plain(fix));
    let mut text = format!("{style}{level}[{}]{style:#}{STRONG}: {cause}{STRONG:#}\n", code.id);
    for detail in details {
        let _ = writeln!(text, "  {}", plain(detail));
    }
    for source in sources(failure) {
        let _ = writeln!(text, "  {QUIET}cause:{QUIET:#} {}", plain(&source));
    }
    let _ = writeln!(text, "  {QUIET}fix:{QUIET:#} {fix}");
    let _ = writeln!(text, "  {QUIET}more:{QUIET:#} strait explain {}", code.id);
    text
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        process::{Command, Output},
        thread,
    };

    use anstream::adapter::strip_str;

    use super::*;

    fn plain(failure: &Failure) -> String {
        strip_str(&rendered(failure, "error", ERROR)).to_string()
    }

    #[test]
    fn name_of_a_process_does_nothing_to_the_terminal() {
        let comm = "x\u{1b}]0;pwned\u{7}\u{1b}[2J\nerror[E9999]: forged";
        let failure = Failure::new(&codes::E1106, format!("{comm} (pid 7) has it"), comm)
            .detail(format!("/mnt/{comm}"))
            .source(io::Error::other(comm));
        let text = strip_str(&rendered(&failure, "error", ERROR)).to_string();
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        assert!(text.lines().all(|line| !line.starts_with("error[E9999]")), "{text:?}");
        let colours = rendered(&failure, "error", ERROR);
        assert!(!colours.contains("\u{1b}]") && !colours.contains("\u{1b}[2J"), "{colours:?}");
    }

    #[test]
    fn failure_with_everything_is_laid_out_in_order() {
        let inner = io::Error::other("the inner reason");
        let outer = io::Error::new(io::ErrorKind::PermissionDenied, Chained(inner));
        let failure = Failure::new(&codes::E1103, "group 1 is not viable", "bind the others too")
            .detail("0000:01:00.1  snd_hda_intel")
            .detail("0000:02:00.0  nvme")
            .source(outer);
        assert_eq!(
            plain(&failure),
            "error[E1103]: group 1 is not viable\n  \
             0000:01:00.1  snd_hda_intel\n  \
             0000:02:00.0  nvme\n  \
             cause: the outer reason\n  \
             cause: the inner reason\n  \
             fix: bind the others too\n  \
             more: strait explain E1103\n"
        );
    }

    #[test]
    fn failure_without_extras_is_three_lines() {
        let failure =
            Failure::new(&codes::E2001, "there is no flag '--vfo'", "did you mean --vfio?");
        assert_eq!(
            plain(&failure),
            "error[E2001]: there is no flag '--vfo'\n  fix: did you mean --vfio?\n  more: strait explain E2001\n"
        );
    }

    #[test]
    fn circular_chain_of_causes_ends() {
        let failure = Failure::new(&codes::E9001, "c", "f").source(Endless);
        assert_eq!(plain(&failure).matches("cause:").count(), MAX_CAUSES);
    }

    /// Set in the child of the next test: the child is the one who panics.
    const CHILD: &str = "STRAIT_TEST_PANIC";

    /// This test in a process of its own, which its panic ends.
    fn again(name: &str) -> Output {
        Command::new(env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap()
    }

    #[test]
    fn panic_of_any_thread_restores_and_ends_with_status_9() {
        if env::var_os(CHILD).is_some() {
            end_on_panic(|| eprintln!("restored"), || eprintln!("left"));
            let _ = thread::spawn(|| panic!("by intent")).join();
            unreachable!("the hook did not end the process");
        }
        let name = "report::tests::panic_of_any_thread_restores_and_ends_with_status_9";
        let child = again(name);
        let told = String::from_utf8_lossy(&child.stderr);
        assert_eq!(child.status.code(), Some(9), "{told}");
        let (before, after) = told.split_once("error[E9001]: panic at ").expect("no E9001");
        assert!(before.contains("restored") && after.contains(": by intent\n"), "{told}");
        assert!(after.contains("left"), "{told}");
    }

    #[test]
    fn panic_of_a_device_that_was_pulled_while_it_was_closed_ends_nothing() {
        struct Pulled;
        impl Drop for Pulled {
            fn drop(&mut self) {
                panic!("no link iommu_group in sysfs");
            }
        }
        if env::var_os(CHILD).is_some() {
            end_on_panic(|| eprintln!("restored"), || eprintln!("left"));
            assert!(!dma::close(Pulled));
            return;
        }
        let name =
            "report::tests::panic_of_a_device_that_was_pulled_while_it_was_closed_ends_nothing";
        let child = again(name);
        let told = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success() && !told.contains("restored"), "{told}");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("the outer reason")]
    struct Chained(#[source] io::Error);

    #[derive(Debug)]
    struct Endless;

    impl std::fmt::Display for Endless {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("again")
        }
    }

    impl Error for Endless {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&Endless)
        }
    }
}
