//! The command line: one file per command or group of similar commands.
//!
//! `serve` runs the server. The other commands talk to a running server through its admin listener,
//! or need no server. Exit codes: 0 done or drained, 1 failed, 2 usage or config error, 3 exchanges
//! were cut.

mod address;
mod admin;
mod answers;
mod apps;
mod certs;
mod check;
mod client;
mod config_page;
mod deploy;
mod deploy_check;
mod drains;
mod drill;
mod events;
mod exit_code;
mod failure;
mod init;
mod launch;
mod locate;
mod names;
mod pages;
mod place;
mod put;
mod quick;
mod reload;
mod report;
mod run_dir;
mod running;
mod serve;
mod serve_options;
mod show;
mod status;
mod stop;
mod times;
mod upgrade;
mod wait;
mod warnings;
mod wire;

use std::{env, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};

use exit_code::{CUT, DONE, FAILED, USAGE};
use names::Host;
use place::Place;
use times::time_argument;

/// Serves many apps on one machine, routed by hostname, and stops without losing a request.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done or drained, 1 failed, 2 usage or config error, \
                  3 exchanges were cut\n\nExample:\n  tidegate --config /etc/tidegate/config.toml"
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the apps of the config (default), or one app from the options below
    #[command(after_help = "Examples:\n  tidegate serve --config /etc/tidegate/config.toml\n  \
                            tidegate serve --proxy http://127.0.0.1:9000 --listen :8000\n  \
                            tidegate serve --files .")]
    Serve(serve_options::Serve),
    /// Write a first config
    #[command(after_help = "Examples:\n  tidegate init\n  tidegate init --config \
                            shop.toml --files ./site --listen :8000\n  \
                            tidegate init --proxy http://127.0.0.1:9000")]
    Init(init::Init),
    /// Check the config and report mistakes in it
    #[command(after_help = "Examples:\n  tidegate check new.toml\n  tidegate check --strict\n  \
                            tidegate check - < new.toml")]
    Check(check::Check),
    /// Print the version
    #[command(after_help = "Example:\n  tidegate version")]
    Version,
    /// Show the server's state at a glance
    #[command(after_help = "Example:\n  tidegate status --admin unix:/run/tidegate.sock")]
    Status(status::Status),
    /// List the apps
    #[command(after_help = "Example:\n  tidegate apps --json")]
    Apps(apps::Apps),
    /// Show one app, or its connections
    #[command(after_help = "Example:\n  tidegate app shop.example --connections")]
    App(apps::App),
    /// List the TLS certificates in use
    #[command(after_help = "Example:\n  tidegate certs --json")]
    Certs(certs::Certs),
    /// Add an app
    #[command(
        override_usage = "tidegate add [OPTIONS] HOST\n         <--respond BODY | \
                          --redirect URL | --files DIR | --proxy URL | --from FILE>",
        after_help = "Examples:\n  tidegate add shop.example --files ./site --alias \
                            www.shop.example\n  tidegate add old.example --redirect \
                            https://shop.example --status 301"
    )]
    Add(put::Add),
    /// Replace an app without a gap
    #[command(
        override_usage = "tidegate replace [OPTIONS] HOST\n         <--respond BODY | \
                          --redirect URL | --files DIR | --proxy URL | --from FILE>",
        after_help = "Examples:\n  tidegate replace shop.example --respond 'back soon' \
                            --status 503\n  tidegate replace shop.example --from app.json --wait"
    )]
    Replace(put::Replace),
    /// Deploy an app: check that the new one is ready, switch, and drain the old one
    #[command(
        override_usage = "tidegate deploy [OPTIONS] HOST\n         <--respond BODY | \
                          --redirect URL | --files DIR | --proxy URL | --from FILE>",
        after_help = "Exit codes: 0 deployed, and the old app has drained; 1 not ready, nothing \
                      changed; 2 usage error; 3 deployed, but the old app's exchanges were cut\n\n\
                      Examples:\n  tidegate deploy shop.example --proxy http://127.0.0.1:9001 \
                      --ready /up\n  tidegate deploy shop.example --from app.json --quorum 2\n  \
                      tidegate deploy www.example --files ./releases/42"
    )]
    Deploy(deploy::Deploy),
    /// Drain an app and remove it
    #[command(after_help = "Example:\n  tidegate remove shop.example --timeout 30s")]
    Remove(drains::Drain),
    /// Drain an app but keep its entry, until `resume`
    #[command(after_help = "Examples:\n  tidegate drain shop.example --timeout 30s\n  \
                            tidegate drain shop.example --upstream http://10.0.0.7:9000")]
    Drain(drains::DrainOne),
    /// Resume a drained app
    #[command(after_help = "Example:\n  tidegate resume shop.example")]
    Resume(drains::Resume),
    /// Make the server read its config again
    #[command(after_help = "Examples:\n  tidegate reload --wait\n  tidegate reload --dry-run")]
    Reload(reload::Reload),
    /// Drain the whole server and stop it
    #[command(after_help = "Example:\n  tidegate stop --timeout 2m")]
    Stop(stop::Stop),
    /// Replace the server's process with a new one, without losing a request
    #[command(after_help = "Examples:\n  tidegate upgrade --wait\n  \
                            tidegate upgrade --binary ./tidegate-next --timeout 10s")]
    Upgrade(upgrade::Upgrade),
    /// Cut one connection
    #[command(after_help = "Example:\n  tidegate cut 1-2a00000007")]
    Cut(apps::Cut),
    /// Print the server's events as they happen, until ^C
    #[command(after_help = "Example:\n  tidegate events --json")]
    Events(events::Events),
    /// Put a server under load, change it repeatedly, and account for every request
    #[command(after_help = "Actions: reload, renew, replace, remove+add, drain+resume, upgrade, \
                            stop+start, command, nothing\n\nExit codes: 0 nothing was lost and \
                            every action succeeded, 1 otherwise, 2 usage error\n\nExamples:\n  \
                            tidegate drill --count 100 --svg drill.svg\n  tidegate drill --tls \
                            --actions renew,upgrade\n  tidegate drill --running --actions \
                            reload\n  tidegate drill --url http://127.0.0.1:8080 --host \
                            shop.example --command 'nginx -s reload'")]
    Drill(drill::Drill),
    /// Print the completion script for a shell
    #[command(after_help = "Example:\n  tidegate completions bash \
                            > /etc/bash_completion.d/tidegate")]
    Completions(pages::Completions),
    /// Print the hosts of the apps, for completions
    #[command(hide = true)]
    Hosts,
    /// Print a man page: tidegate(1) for the commands, tidegate.toml(5) for the config
    #[command(after_help = "Examples:\n  tidegate man > /usr/local/share/man/man1/tidegate.1\n  \
                            tidegate man toml > /usr/local/share/man/man5/tidegate.toml.5")]
    Man(config_page::Man),
}

/// Runs the command in the arguments.
pub fn run() -> ExitCode {
    if let Some(code) = launch::run() {
        return code;
    }
    let Arguments { command, place } = arguments();
    let done = match command.unwrap_or(Command::Serve(serve_options::Serve::default())) {
        Command::Serve(command) => return serve::run(&command, &place),
        Command::Check(command) => return command.run(&place),
        Command::Init(command) => command.run(&place),
        Command::Version => version(),
        Command::Status(command) => command.run(&place),
        Command::Apps(command) => command.run(&place),
        Command::App(command) => command.run(&place),
        Command::Certs(command) => command.run(&place),
        Command::Add(command) => command.run(&place),
        Command::Replace(command) => command.run(&place),
        Command::Deploy(command) => command.run(&place),
        Command::Remove(command) => command.remove(&place),
        Command::Drain(command) => command.run(&place),
        Command::Resume(command) => command.run(&place),
        Command::Reload(command) => command.run(&place),
        Command::Stop(command) => command.run(&place),
        Command::Upgrade(command) => command.run(&place),
        Command::Cut(command) => command.run(&place),
        Command::Events(command) => command.run(&place),
        Command::Drill(command) => command.run(&place),
        Command::Completions(command) => command.run(Arguments::command()),
        Command::Hosts => pages::hosts(&place),
        Command::Man(command) => command.run(Arguments::command()),
    };
    done.map_or_else(|failure| report::report(&failure), ExitCode::from)
}

/// The arguments. A usage error ends the process. Its text is cleaned like all other text.
fn arguments() -> Arguments {
    Arguments::try_parse().unwrap_or_else(|error| {
        let cleaned = env::args_os().map(|argument| show::clean(&argument.to_string_lossy()));
        Arguments::try_parse_from(cleaned).err().unwrap_or(error).exit()
    })
}

fn version() -> Result<u8, failure::Failure> {
    show::print_line(concat!("tidegate ", env!("CARGO_PKG_VERSION")))?;
    Ok(DONE)
}
