//! `completions` and `man`: generated from the definition of the command line.

use std::fs;
use std::path::Path;

use clap::builder::StyledStr;
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::args::Cli;
use crate::failure::{Failure, Result};
use crate::output::Output;

/// Prints the completion script of a shell.
pub(crate) fn completions(shell: Shell, output: Output) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "redguard", &mut script);
    output.write(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

/// Prints a manual page, or writes all of them to a directory.
pub(crate) fn man(command: Option<&str>, dir: Option<&Path>, output: Output) -> Result<u8> {
    let mut top = Cli::command();
    top.build();
    if let Some(dir) = dir {
        for page in pages(&top) {
            let path = dir.join(format!("{}.1", page.get_name()));
            fs::write(&path, render(page)?)
                .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
        }
        return Ok(0);
    }
    let page = match command {
        None => top,
        Some(name) => {
            let wanted = format!("redguard-{name}");
            let page = pages(&top)
                .into_iter()
                .find(|page| page.get_name() == wanted);
            page.ok_or_else(|| Failure::usage(format!("there is no command {name:?}")))?
        }
    };
    output.write(&String::from_utf8_lossy(&render(page)?))?;
    Ok(0)
}

/// Returns the commands with pages of their own, by the names of the pages.
fn pages(top: &Command) -> Vec<Command> {
    let subs = top.get_subcommands();
    let subs = subs.filter(|sub| !sub.is_hide_set() && sub.get_name() != "help");
    let subs = subs.map(|sub| {
        let name = format!("redguard-{}", sub.get_name());
        sub.clone().name(name)
    });
    std::iter::once(top.clone()).chain(subs).collect()
}

fn notes_of(page: &Command) -> Option<&StyledStr> {
    page.get_after_long_help().or(page.get_after_help())
}

fn render(page: Command) -> Result<Vec<u8>> {
    let notes = notes_of(&page).map(ToString::to_string);
    let mut text = Vec::new();
    let page = page.after_help(None::<&str>).after_long_help(None::<&str>);
    Man::new(page).render(&mut text)?;
    notes_section(&notes.unwrap_or_default()).to_writer(&mut text)?;
    Ok(text)
}

/// Returns the text behind the options, with its lines as they are: `Man` would fill them to one
/// paragraph.
fn notes_section(notes: &str) -> Roff {
    let mut section = Roff::new();
    section
        .control("SH", ["NOTES"])
        .control("na", [])
        .control("nh", []);
    for line in notes.lines() {
        section.text([roman(line)]).control("br", []);
    }
    section
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page() {
        let mut top = Cli::command();
        top.build();
        let names: Vec<String> = pages(&top)
            .iter()
            .map(|page| page.get_name().to_owned())
            .collect();
        assert!(
            names.contains(&"redguard".to_owned()) && names.contains(&"redguard-run".to_owned())
        );
        assert!(!names.iter().any(|name| name.contains("help")));
        for page in pages(&top) {
            let text = String::from_utf8(render(page).unwrap()).unwrap();
            assert!(text.contains(".SH OPTIONS"), "{text}");
        }
    }

    #[test]
    fn notes_of_a_page_keep_their_lines() {
        let mut top = Cli::command();
        top.build();
        for page in pages(&top) {
            let lines = notes_of(&page).unwrap().to_string();
            let text = String::from_utf8(render(page).unwrap()).unwrap();
            let (options, notes) = text.split_once(".SH NOTES\n").unwrap();
            assert!(!options.contains("EXTRA"), "{options}");
            assert_eq!(
                notes.matches("\n.br").count(),
                lines.lines().count(),
                "{notes}"
            );
        }
    }
}
