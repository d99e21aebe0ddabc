//! A pseudo-terminal with a session on it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::pty::{Winsize, openpty};

use crate::support::process::{WITH_DEFAULTS, clean};
use crate::support::{eventually, eventually_or};

/// How often, in ms, the reader looks whether the terminal is to be closed.
const POLL: u8 = 10;

pub(crate) struct Terminal {
    keyboard: Option<File>,
    screen: Arc<Mutex<Vec<u8>>>,
    child: Child,
    reader: JoinHandle<()>,
    closes: Arc<AtomicBool>,
}

impl Terminal {
    /// Starts a program on a terminal of its own, as the leader of a session.
    pub(crate) fn start(program: &str, args: &[&str], columns: u16) -> Terminal {
        Terminal::start_with(program, args, columns, &[])
    }

    pub(crate) fn start_with(
        program: &str,
        args: &[&str],
        columns: u16,
        variables: &[(&str, &str)],
    ) -> Terminal {
        let size = Winsize {
            ws_row: 24,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None).unwrap();
        // Else the terminal would not end before the processes that other tests start.
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        let slave = File::from(pty.slave);
        let mut command = Command::new("setsid");
        command.arg("--ctty").args(WITH_DEFAULTS);
        command.arg(program).args(args);
        clean(&mut command);
        command.env("TERM", "xterm").env("PS1", "$ ");
        command.envs(variables.iter().copied());
        command.stdin(slave.try_clone().unwrap());
        command.stdout(slave.try_clone().unwrap()).stderr(slave);
        let child = command.spawn().unwrap();
        drop(command); // closes our copies of the slave
        let master = File::from(pty.master);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let closes = Arc::new(AtomicBool::new(false));
        let reader = {
            let (source, shown) = (master.try_clone().unwrap(), Arc::clone(&screen));
            let closes = Arc::clone(&closes);
            thread::spawn(move || read(source, &shown, &closes))
        };
        Terminal {
            keyboard: Some(master),
            screen,
            child,
            reader,
            closes,
        }
    }

    /// Closes the terminal, as the end of an ssh(1) session does.
    pub(crate) fn hang_up(&mut self) {
        self.closes.store(true, Ordering::Release);
        eventually("the reader ends", || self.reader.is_finished());
        self.keyboard = None;
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.keyboard
            .as_mut()
            .unwrap()
            .write_all(keys.as_bytes())
            .unwrap();
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    #[track_caller]
    pub(crate) fn await_text(&self, words: &str) {
        let found = || self.text().contains(words);
        eventually_or(|| format!("{words:?} in {:?}", self.text()), found);
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Returns all that was written. Blocks until every program on the terminal has ended.
    #[track_caller]
    pub(crate) fn whole_text(&self) -> String {
        eventually("the terminal is closed", || self.reader.is_finished());
        self.text()
    }

    /// Blocks until the program has ended; returns its status as a shell shows it.
    pub(crate) fn end(mut self) -> i32 {
        eventually("the program on the terminal ends", || self.has_ended());
        let status = self.child.wait().unwrap();
        status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap())
    }
}

/// Collects what is written to the terminal. A thread in `read` would keep the terminal open.
fn read(mut source: File, shown: &Mutex<Vec<u8>>, closes: &AtomicBool) {
    let mut bytes = [0; 4096];
    while !closes.load(Ordering::Acquire) {
        let mut asked = [PollFd::new(source.as_fd(), PollFlags::POLLIN)];
        if poll(&mut asked, POLL) == Ok(0) {
            continue;
        }
        match source.read(&mut bytes) {
            Ok(length @ 1..) => shown.lock().unwrap().extend(&bytes[..length]),
            _ => return,
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
