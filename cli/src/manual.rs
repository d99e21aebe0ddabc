//! `completions` and `man`: generated from the definition of the command line.

use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

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

fn render(page: Command) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    Man::new(page).render(&mut text)?;
    Ok(text)
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
}
