//! `watch` and `break` on a terminal.

use crate::support::process::{TIMEOUT, TOOL, signal};
use crate::support::servers::Server;
use crate::support::terminal::Terminal;
use crate::support::{ask, eventually, has_lock, server};

fn watch(node: &Server, columns: u16, variables: &[(&str, &str)]) -> Terminal {
    let addr = node.addr();
    let args = [
        "watch",
        "--timeout",
        TIMEOUT,
        "--redis",
        &addr,
        "-i",
        "0.05",
    ];
    Terminal::start_with(TOOL, &args, columns, variables)
}

fn hold(node: &Server, name: &str, owner: &str, ms: u32) {
    let key = format!("redguard:{name}");
    ask::<()>(
        node,
        &["SET", &key, &format!("{owner}:1"), "PX", &ms.to_string()],
    );
}

const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";
const SHOW_CURSOR: &str = "\x1b[?25h";

#[test]
fn watch_draws_sorts_filters_and_leaves_the_screen_as_it_was() {
    let node = server();
    hold(&node, "alpha", "zoe", 500_000);
    hold(&node, "beta", "adam", 900_000);
    let mut terminal = watch(&node, 100, &[]);
    terminal.await_text(ENTER);
    terminal.await_text("alpha");
    terminal.await_text("by name");
    terminal.press("h");
    terminal.await_text("by holder");
    terminal.press("e");
    terminal.await_text("by end");
    terminal.press("/bet\r");
    terminal.await_text("/bet  by end");
    terminal.press("q");
    eventually("watch ends", || terminal.has_ended());
    terminal.await_text(LEAVE);
    let text = terminal.text();
    let (before, after) = (text.find(ENTER).unwrap(), text.rfind(LEAVE).unwrap());
    assert!(
        before < after && text.rfind(SHOW_CURSOR).unwrap() < after + 32,
        "{text:?}"
    );
    assert_eq!(terminal.end(), 0);
}

#[test]
fn watch_has_colours_unless_no_color_is_set() {
    let node = server();
    hold(&node, "alpha", "zoe", 500_000);
    for (variables, has_colours) in [(&[][..], true), (&[("NO_COLOR", "1")], false)] {
        let mut terminal = watch(&node, 40, variables);
        terminal.await_text("alpha");
        terminal.await_text("zoe");
        terminal.press("\x03");
        eventually("watch ends", || terminal.has_ended());
        terminal.await_text(LEAVE);
        assert_eq!(
            terminal.text().contains("\x1b[1m"),
            has_colours,
            "{:?}",
            terminal.text()
        );
        assert_eq!(terminal.end(), 0);
    }
}

#[test]
fn list_has_colours_on_a_terminal_unless_no_color_is_set() {
    let node = server();
    hold(&node, "alpha", "zoe", 500_000);
    let addr = node.addr();
    let args = ["list", "--timeout", TIMEOUT, "--redis", &addr];
    for (variables, has_colours) in [(&[][..], true), (&[("NO_COLOR", "1")], false)] {
        let terminal = Terminal::start_with(TOOL, &args, 100, variables);
        terminal.await_text("zoe");
        assert_eq!(terminal.text().contains("\x1b[1mKEY"), has_colours);
        assert_eq!(terminal.end(), 0);
    }
}

#[test]
fn watch_gives_the_screen_back_at_a_signal() {
    let node = server();
    for number in [15, 1, 2, 3] {
        let mut terminal = watch(&node, 80, &[]);
        terminal.await_text("by name");
        signal(terminal.pid(), number);
        eventually("watch ends", || terminal.has_ended());
        terminal.await_text(LEAVE);
        assert_eq!(terminal.end(), 0);
    }
}

#[test]
fn watch_ends_with_its_terminal_though_sighup_is_ignored() {
    let node = server();
    let addr = node.addr();
    for trap in ["", "trap '' HUP; "] {
        let script = format!("{trap}exec {TOOL} watch --timeout {TIMEOUT} --redis {addr}");
        let mut terminal = Terminal::start("bash", &["-c", &script], 80);
        terminal.await_text("by name");
        terminal.hang_up();
        assert_eq!(terminal.end(), 0, "{trap}");
    }
}

#[test]
fn break_asks_on_a_terminal() {
    let node = server();
    hold(&node, "k", "zoe", 500_000);
    let addr = node.addr();
    let args = ["break", "--timeout", TIMEOUT, "--redis", &addr, "k"];
    for (answer, status, stays) in [("n\n", 2, true), ("\n", 2, true), ("y\n", 0, false)] {
        let mut terminal = Terminal::start(TOOL, &args, 120);
        terminal.await_text("k: held by zoe");
        terminal.await_text("Break it? [y/N]");
        terminal.press(answer);
        assert_eq!(terminal.end(), status);
        assert_eq!(has_lock(&node, "k"), stays);
    }
}

#[test]
fn break_does_nothing_if_the_lock_has_passed_on_before_the_answer() {
    let node = server();
    hold(&node, "k", "zoe", 500_000);
    let addr = node.addr();
    let args = ["break", "--timeout", TIMEOUT, "--redis", &addr, "k"];
    let mut terminal = Terminal::start(TOOL, &args, 120);
    terminal.await_text("Break it? [y/N]");
    hold(&node, "k", "adam", 500_000);
    terminal.press("y\n");
    assert_eq!(terminal.end(), 2);
    assert!(has_lock(&node, "k"));
}
