//! `tidegate completions` and `man`: what packages install beside the binary. Needs no server.

use std::io;

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use roff::{Roff, roman};

use super::{DONE, failure::Failure, show};

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell that is to complete commands
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self, mut command: Command) -> Result<u8, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "tidegate", &mut script);
        show::print(&String::from_utf8_lossy(&script))?;
        Ok(DONE)
    }
}

/// Prints the man page: the command's own, and the help of each of its commands.
pub(super) fn man(mut command: Command) -> Result<u8, Failure> {
    command.build();
    let mut page = Vec::new();
    head(&command, &mut page).map_err(Failure::Output)?;
    let mut roff = Roff::new();
    for command in command.get_subcommands_mut().filter(|it| it.get_name() != "help") {
        roff.control("SH", [command.get_name().to_uppercase().as_str()]);
        roff.control("nf", []);
        roff.text([roman(command.render_long_help().to_string())]);
        roff.control("fi", []);
    }
    let text = String::from_utf8_lossy(&page).into_owned() + &roff.to_roff();
    show::print(&text)?;
    Ok(DONE)
}

fn head(command: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    let man = Man::new(command.clone().disable_help_subcommand(true));
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    man.render_extra_section(page)
}
