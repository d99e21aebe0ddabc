//! The alternate screen of the terminal. It is left on drop, and the terminal is as it was.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

use crossterm::style::{Attribute, Color, Print, ResetColor, SetAttribute, SetForegroundColor};
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate, EnterAlternateScreen,
    LeaveAlternateScreen,
};
use crossterm::{cursor, queue, terminal};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::output;
use crate::watch::frame::{Line, Style};

/// Returns whether standard output and input are a terminal that supports drawing.
pub(crate) fn is_there() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    io::stdout().is_terminal() && io::stdin().is_terminal() && !dumb
}

/// Returns whether the terminal has been closed, as by the end of an ssh(1) session.
pub(crate) fn is_gone() -> bool {
    let stdin = io::stdin();
    let mut asked = [PollFd::new(stdin.as_fd(), PollFlags::empty())];
    let closed = PollFlags::POLLHUP | PollFlags::POLLERR;
    let found = poll(&mut asked, PollTimeout::ZERO);
    found.is_ok()
        && asked[0]
            .revents()
            .is_some_and(|seen| seen.intersects(closed))
}

/// The entered alternate screen.
#[derive(Debug)]
pub(crate) struct Screen {
    has_colours: bool,
}

impl Screen {
    pub(crate) fn enter() -> io::Result<Screen> {
        let screen = Screen {
            has_colours: output::has_colours(),
        };
        screen.resume()?;
        Ok(screen)
    }

    /// Takes the terminal, at the start and after [`Screen::leave`].
    pub(crate) fn resume(&self) -> io::Result<()> {
        terminal::enable_raw_mode()?;
        let mut out = io::stdout();
        queue!(out, EnterAlternateScreen, cursor::Hide)?;
        out.flush()
    }

    /// Gives the terminal back.
    pub(crate) fn leave(&self) -> io::Result<()> {
        let mut out = io::stdout();
        queue!(out, ResetColor, cursor::Show, LeaveAlternateScreen)?;
        out.flush()?;
        terminal::disable_raw_mode()
    }

    /// Returns the width and the height.
    pub(crate) fn size() -> (usize, usize) {
        let (width, height) = terminal::size().unwrap_or((80, 24));
        (width.into(), height.into())
    }

    /// Draws in one write, without clearing first, to avoid flicker.
    pub(crate) fn draw(&self, lines: &[Line]) -> io::Result<()> {
        let mut bytes = Vec::new();
        queue!(bytes, BeginSynchronizedUpdate)?;
        for (row, line) in (0..).zip(lines) {
            queue!(bytes, cursor::MoveTo(0, row), Clear(ClearType::CurrentLine))?;
            self.print(&mut bytes, line)?;
        }
        queue!(
            bytes,
            Clear(ClearType::FromCursorDown),
            EndSynchronizedUpdate
        )?;
        let mut out = io::stdout();
        out.write_all(&bytes)?;
        out.flush()
    }

    fn print(&self, bytes: &mut Vec<u8>, line: &Line) -> io::Result<()> {
        if !self.has_colours {
            return queue!(bytes, Print(&line.text));
        }
        match line.style {
            Style::Plain => {}
            Style::Header => queue!(bytes, SetAttribute(Attribute::Bold))?,
            Style::Faint => queue!(bytes, SetForegroundColor(Color::Yellow))?,
            Style::Trouble => queue!(bytes, SetForegroundColor(Color::Red))?,
        }
        queue!(
            bytes,
            Print(&line.text),
            ResetColor,
            SetAttribute(Attribute::Reset)
        )
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = self.leave();
    }
}
