//! `tidegate completions` and `man`, whose output packages install beside the binary, and `hosts`,
//! which the completions call. `completions` and `man` need no server.

use std::time::Duration;

use clap::{Arg, Args, Command};
use clap_complete::Shell;
use roff::{Inline, Roff, bold, italic, roman};

use super::{DONE, Place, admin::ServerOptions, answers::Apps, failure::Failure, show};

/// Short, because the user waits at a prompt.
const PROMPT_PATIENCE: Duration = Duration::from_millis(500);

/// Options of several commands; the man page explains them once.
const SHARED: [&str; 4] = ["json", "no_wait", "timeout", "wait"];

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self, mut command: Command) -> Result<u8, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "tidegate", &mut script);
        let script = String::from_utf8_lossy(&script);
        show::print(&match self.shell {
            Shell::Bash => format!("{script}\n{BASH_HOSTS}"),
            Shell::Zsh => with_zsh_hosts(&script),
            Shell::Fish => format!("{script}{FISH_HOSTS}"),
            _ => script.into_owned(),
        })?;
        Ok(DONE)
    }
}

/// Prints the hosts of the apps, one per line; nothing if no server answers quickly.
pub(super) fn hosts(place: &Place) -> Result<u8, Failure> {
    let admin = ServerOptions::default().admin(place);
    let apps = admin.and_then(|mut admin| admin.fetch_within::<Apps>("/apps", PROMPT_PATIENCE));
    // An error message would disturb the prompt.
    let rows = apps.map(|answer| answer.value.apps).unwrap_or_default();
    let mut hosts: Vec<String> = rows.into_iter().map(|row| show::clean(&row.host)).collect();
    hosts.sort();
    hosts.dedup();
    show::print(&hosts.iter().map(|host| format!("{host}\n")).collect::<String>())?;
    Ok(DONE)
}

/// Asks the server that the options on the command line name.
const BASH_HOSTS: &str = r#"_tidegate_with_hosts() {
    _tidegate "$@"
    local word previous= named=() command= hosts
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$previous" in
            --admin | --config | --token-file | -c) named+=("$previous" "$word") ;;
            *) [[ $command || $word == -* ]] || command=$word ;;
        esac
        previous=$word
    done
    case "$command:$previous" in
        app:app | remove:remove | drain:drain | resume:resume | replace:replace | \
            deploy:deploy)
            [[ $2 == -* ]] && return
            hosts=$(tidegate hosts "${named[@]}" 2>/dev/null)
            mapfile -t COMPREPLY < <(set -f && compgen -W "$hosts" -- "$2")
            ;;
    esac
}
complete -F _tidegate_with_hosts -o nosort -o bashdefault -o default tidegate 2>/dev/null ||
    complete -F _tidegate_with_hosts -o bashdefault -o default tidegate
"#;

const FISH_HOSTS: &str = "complete -c tidegate -f -n '__fish_seen_subcommand_from app remove drain \
                          resume replace deploy' -a '(tidegate hosts 2>/dev/null)'\n";

const ZSH_HOSTS: &str = r#"_tidegate_hosts() {
    local -a hosts named
    local option
    for option in --admin --config --token-file -c; do
        (( ${words[(I)$option]} )) && named+=($option ${words[${words[(I)$option]}+1]})
    done
    hosts=(${(f)"$(tidegate hosts $named 2>/dev/null)"})
    compadd -a hosts
}
"#;

/// The script with a function to complete the argument HOST.
fn with_zsh_hosts(script: &str) -> String {
    let mut text = String::new();
    for line in script.lines() {
        let is_host = line.starts_with("':name -- ");
        let end = line.rfind(":_default'").filter(|_| is_host);
        match end {
            Some(end) => {
                let (before, behind) = (&line[..end], &line[end + ":_default'".len()..]);
                text += &format!("{before}:_tidegate_hosts'{behind}\n");
            }
            None => text += &format!("{line}\n"),
        }
    }
    // After the line that tells zsh what the file completes.
    match text.split_once('\n') {
        Some((first, rest)) => format!("{first}\n\n{ZSH_HOSTS}{rest}"),
        None => text,
    }
}

/// Prints the man page.
pub(super) fn man(mut command: Command) -> Result<u8, Failure> {
    command.build();
    let mut page = Roff::new();
    let version = concat!("tidegate ", env!("CARGO_PKG_VERSION"));
    page.control("TH", ["TIDEGATE", "1", "", version]);
    section(&mut page, "NAME");
    page.text([roman(
        "tidegate - serves many apps on one machine, and stops without losing a request",
    )]);
    section(&mut page, "SYNOPSIS");
    page.text([bold("tidegate"), roman(" [--config FILE] [--admin ADDR] [COMMAND [ARGUMENTS]]")]);
    section(&mut page, "DESCRIPTION");
    for paragraph in DESCRIPTION {
        page.control("PP", []);
        page.text([roman(paragraph)]);
    }
    section(&mut page, "COMMANDS");
    for command in
        command.get_subcommands().filter(|it| it.get_name() != "help" && !it.is_hide_set())
    {
        describe(&mut page, command);
    }
    section(&mut page, "OPTIONS");
    let global = command.get_arguments().filter(|argument| argument.is_global_set());
    let global: Vec<&Arg> = global.collect();
    global.iter().for_each(|argument| option(&mut page, argument));
    for (name, text) in SHARED_OPTIONS {
        item(&mut page, [bold(name)], text);
    }
    for (name, entries) in SECTIONS {
        section(&mut page, name);
        for (term, text) in entries {
            item(&mut page, [bold(*term)], text);
        }
    }
    section(&mut page, "EXAMPLES");
    page.control("nf", []);
    for example in EXAMPLES {
        page.text([roman(example)]);
    }
    page.control("fi", []);
    section(&mut page, "SEE ALSO");
    page.text([
        bold("tidegate.toml"),
        roman("(5), "),
        bold("systemctl"),
        roman("(1), "),
        bold("curl"),
        roman("(1)"),
    ]);
    show::print(&page.to_roff())?;
    Ok(DONE)
}

const DESCRIPTION: [&str; 2] = [
    "Tidegate serves many apps, routed by hostname, in one process. An app can be added, replaced, \
     drained and removed, the config reloaded, and the server stopped or upgraded, under full load \
     without a lost request; each drain ends with a verdict: drained, cut N, or cancelled.",
    "Without a command it serves the apps of its config. The other commands control a running \
     server through its admin listener, or need no server. Each command has --help.",
];

const SHARED_OPTIONS: [(&str, &str); 4] = [
    ("--json", "Print the server's answer as JSON."),
    (
        "--no-wait",
        "remove, drain, stop: return at once; deploy: after the switch. The drain continues.",
    ),
    (
        "--wait",
        "replace, reload, upgrade: wait until the old lives or the old process have drained.",
    ),
    (
        "--timeout TIME",
        "How long this drain may take before it cuts exchanges: 500ms, 30s, 2m; upgrade: how long \
          the new process may take to serve; drill: how long one request may take.",
    ),
];

type Entries = &'static [(&'static str, &'static str)];

const SECTIONS: [(&str, Entries); 4] = [
    (
        "SIGNALS",
        &[
            ("TERM, INT", "Drain and stop; a second signal cuts the exchanges in flight at once."),
            ("HUP", "Read the config again, like reload."),
            ("USR1", "Open the log files again, for log rotation."),
            ("USR2", "Replace the server's process with a new one, like upgrade."),
        ],
    ),
    (
        "ENVIRONMENT",
        &[
            ("TIDEGATE_ADMIN", "The admin address, if --admin is not given."),
            ("TIDEGATE_TOKEN", "The token for a TCP address, if --token-file is not given."),
            ("NO_COLOR", "No colour on terminals."),
            ("NOTIFY_SOCKET, LISTEN_FDS, WATCHDOG_USEC", "Set by systemd(1)."),
        ],
    ),
    (
        "FILES",
        &[
            ("./config.toml", "The config, if --config is not given."),
            ("tidegate.sock", "The default admin socket, in the config's folder."),
            (
                "/etc/tidegate/config.toml, /run/tidegate/tidegate.sock",
                "Config and admin socket of the Debian package.",
            ),
            (
                "$XDG_RUNTIME_DIR/tidegate, /tmp/tidegate-UID",
                "The admin sockets of servers without a config.",
            ),
        ],
    ),
    (
        "EXIT STATUS",
        &[
            ("0", "Done, or drained: every request was answered."),
            ("1", "Failed: an address in use, no server, an unknown host, a cancelled drain."),
            ("2", "Usage or config error."),
            ("3", "The deadline or a second signal cut exchanges."),
        ],
    ),
];

const EXAMPLES: [&str; 5] = [
    "tidegate serve --files . --listen :8000",
    "tidegate check && tidegate reload",
    "tidegate add shop.example --proxy http://127.0.0.1:9000",
    "tidegate remove shop.example --timeout 30s",
    "tidegate upgrade --wait",
];

fn section(page: &mut Roff, name: &str) {
    page.control("SH", [name]);
}

fn item<const N: usize>(page: &mut Roff, term: [Inline; N], text: &str) {
    page.control("TP", []);
    page.text(term);
    page.text([roman(text)]);
}

/// The options of `deploy` that `add` does not have.
const OF_DEPLOY: [&str; 3] = ["ready", "ready_timeout", "quorum"];

/// The section of one command: its arguments, its description, and its own options.
fn describe(page: &mut Roff, command: &Command) {
    let arguments: Vec<&Arg> = command
        .get_arguments()
        .filter(|argument| !argument.is_global_set() && !argument.is_hide_set())
        .filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version"))
        .filter(|argument| !SHARED.contains(&argument.get_id().as_str()))
        .collect();
    let (positional, mut options): (Vec<&Arg>, Vec<&Arg>) =
        arguments.into_iter().partition(|argument| argument.is_positional());
    let names: String = positional.iter().map(|argument| format!(" {}", value(argument))).collect();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    item(page, [bold(command.get_name()), italic(names)], &format!("{about}."));
    let same = match command.get_name() {
        "replace" => "It has the options of add.",
        "deploy" => "It has the options of add, and:",
        "init" => "It has the options of serve.",
        _ => "",
    };
    if command.get_name() == "drill" {
        let names: Vec<String> = options.iter().map(|option| long(option)).collect();
        page.text([roman(format!("Options: {}; drill --help explains them.", names.join(", ")))]);
        return;
    }
    if !same.is_empty() {
        page.text([roman(same)]);
        options.retain(|argument| OF_DEPLOY.contains(&argument.get_id().as_str()));
    }
    if !options.is_empty() {
        page.control("RS", []);
        options.iter().for_each(|argument| option(page, argument));
        page.control("RE", []);
    }
}

fn option(page: &mut Roff, argument: &Arg) {
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let value = if argument.get_action().takes_values() { value(argument) } else { String::new() };
    let name = match argument.get_short() {
        Some(short) => format!("-{short}, {}", long(argument)),
        None => long(argument),
    };
    item(page, [bold(name), roman(" "), italic(value)], &format!("{help}."));
}

fn long(argument: &Arg) -> String {
    format!("--{}", argument.get_long().unwrap_or_default())
}

fn value(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
