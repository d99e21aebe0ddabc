//! The lines of a child's output, read by a thread so that a wait for one can be bounded.

use std::io::{BufRead, BufReader};
use std::process::ChildStdout;
use std::sync::mpsc::{self, Receiver};
use std::thread;

/// Returns the lines of the output, which end with it.
pub(crate) fn lines(output: ChildStdout) -> Receiver<String> {
    let (line, lines) = mpsc::channel();
    thread::spawn(move || {
        let read = BufReader::new(output)
            .lines()
            .map_while(std::io::Result::ok);
        read.map_while(|text| line.send(text).ok()).for_each(drop);
    });
    lines
}
