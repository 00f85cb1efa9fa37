//! strait: a KVM monitor that hands whole PCI devices to a guest.
//!
//! This file parses the command line, runs the command and turns its end into an exit status. The way of a device
//! from flag to interrupt starts in `cli` and `config`, then `builder` reads as the boot order.

mod ahead;
mod binding;
mod builder;
mod bundle;
mod cli;
mod command;
mod config;
mod console;
mod control;
mod core_sched;
mod descriptors;
mod events;
mod files;
mod inspect;
mod irq;
mod looked;
mod machine;
mod memory;
mod p2p;
mod passthrough;
mod phases;
mod pinning;
mod report;
mod resident;
mod signals;
mod smbios;
mod spare;
mod tsc;
mod vcpu;
mod vm;

use std::process::ExitCode;

use strait_resources::failure::Failure;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    files::keep_to_ourselves();
    phases::take();
    report::end_on_panic(console::restore, binding::leave);
    let words: Vec<_> = std::env::args_os().collect();
    if words.get(1).is_some_and(|command| command == "run") {
        resident::bring_in_code();
        resident::keep_one_heap();
    }
    let cli = match Cli::of(&words) {
        Ok(cli) => cli,
        // Help and version; nobody reads on when standard output is gone.
        Err(asked) if !asked.use_stderr() => {
            return ended(report::out(&asked.render().ansi().to_string()).map(|()| 0));
        }
        Err(wrong) => {
            let failure = cli::misuse(&wrong);
            return ended(report::answered(cli::wants_json(&words), Err(failure)));
        }
    };
    report::log_to_stderr(cli.verbose);
    ended(match cli.command {
        Command::Run(args) => command::run::run(*args),
        Command::Bind(args) => command::bind::bind(&args),
        Command::Unbind(args) => command::bind::unbind(&args),
        Command::Ps(args) => command::ps::run(&args),
        Command::Devices(args) => command::devices::run(&args),
        Command::Doctor(args) => command::doctor::run(&args, cli.verbose),
        Command::Inspect(args) => command::inspect::run(&args),
        Command::Report(args) => command::report::run(&args),
        Command::Completions(args) => command::generate::completions(&args),
        Command::Man(args) => command::generate::man(&args),
        Command::Rom(args) => command::rom::run(&args),
        Command::Bench(args) => command::bench::run(&args),
        Command::BenchGuest(args) => command::bench::guest(&args.task),
        Command::Explain(args) => command::explain::run(&args),
        Command::WriteAttributes => binding::write_attributes(),
        Command::GiveBack => binding::give_back(),
    })
}

fn ended(end: Result<u8, Failure>) -> ExitCode {
    let status = match end {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            report::failure(&failure);
            ExitCode::from(failure.code.exit)
        }
    };
    report::finish();
    status
}
