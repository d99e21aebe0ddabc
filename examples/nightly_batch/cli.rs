//! Arguments of the batch.

use lexopt::{Arg, Parser, ValueExt};
use redguard_examples::args;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) const NAME: &str = "nightly_batch";

pub(crate) const HELP: &str = "
Reports lines, bytes and CRC-32 of every file of a tree, each once a night, with any number of copies

Usage: nightly_batch [OPTIONS] [DIR]

  --kill-a-node      The show, about ten seconds: each file takes 0.35 s; a node is killed and restarted,
                     another hangs, and a copy is killed with its locks in hand
  --copies N         Processes that share the tree [default: 2, 1 without Redis, 3 with --kill-a-node]
  --threads N        Threads in each copy [default: 4]
  --redis URL,URL,…  Addresses of the nodes; process lists show them, unlike those in REDIS_URLS
  --out FILE         Report to append to; files with a row of this night are done [default: a new file]
  --night NAME       Name of this night in the report [default: the date in UTC]
  --ttl TIME         TTL of the locks: how long the lock of a killed copy blocks other copies
                     [default: 10s, 2s with --kill-a-node]
  --work TIME        Time that each file takes at least [default: 0s, 350ms with --kill-a-node]
  -h, --help         Shows this help
  DIR                Root of the tree [default: the sources of redguard]

Each thread of a copy reads the files in random order, each file under the lock of its path, and
appends a row to the report. Programs that share a report need the same nodes in --redis or
REDIS_URLS. Without either, the program starts three temporary nodes if redis-server is on the PATH,
else one copy with in-process locks.

Exit status: 0 if each file has exactly one row, 1 if rows are missing or duplicated, 64 for bad
usage, 69 if rows are missing because no quorum of the nodes answered, 77 because they deny access,
70 because of another failure, 130 after Ctrl-C.
";

#[derive(Default)]
pub(crate) struct Cli {
    copies: Option<u16>,
    pub(crate) threads: u16,
    pub(crate) redis: Vec<String>,
    pub(crate) out: Option<PathBuf>,
    pub(crate) night: Option<String>,
    ttl: Option<Duration>,
    work: Option<Duration>,
    pub(crate) kill_a_node: bool,
    /// Run as one of the copies; the end of standard input stops it.
    pub(crate) copy: bool,
    pub(crate) dir: PathBuf,
}

impl Cli {
    pub(crate) fn read(parser: &mut Parser) -> Result<Option<Cli>, lexopt::Error> {
        let mut cli = Cli {
            threads: 4,
            dir: concat!(env!("CARGO_MANIFEST_DIR"), "/../src").into(),
            ..Cli::default()
        };
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Long("kill-a-node") => cli.kill_a_node = true,
                Arg::Long("copies") => cli.copies = Some(args::number(parser, 1..=64)?),
                Arg::Long("threads") => cli.threads = args::number(parser, 1..=256)?,
                Arg::Long("redis") => cli.redis = args::addresses(parser)?,
                Arg::Long("out") => cli.out = Some(parser.value()?.into()),
                Arg::Long("night") => cli.night = Some(parser.value()?.parse_with(night_name)?),
                Arg::Long("ttl") => cli.ttl = Some(args::duration(parser)?),
                Arg::Long("work") => cli.work = Some(args::duration(parser)?),
                Arg::Long("copy") => cli.copy = true,
                Arg::Long("help") | Arg::Short('h') => return Ok(None),
                Arg::Value(dir) => cli.dir = dir.into(),
                other => return Err(other.unexpected()),
            }
        }
        Ok(Some(cli))
    }

    /// Ends the program if the nodes do not suit the other arguments. `own` nodes are temporary
    /// ones.
    pub(crate) fn check_nodes(&self, own: bool) {
        if !own && self.kill_a_node {
            args::end_with_misuse(
                NAME,
                &"--kill-a-node needs temporary nodes: install redis-server, and omit --redis and REDIS_URLS",
            );
        }
        let is_local = self.redis.is_empty() && !own;
        if is_local && self.copies.is_some_and(|copies| copies > 1) {
            args::end_with_misuse(
                NAME,
                &"more than one copy needs Redis: give --redis or REDIS_URLS, or install redis-server",
            );
        }
    }

    pub(crate) fn copies(&self, own: bool) -> usize {
        let usual = match (self.kill_a_node, self.redis.is_empty() && !own) {
            (true, _) => 3,
            (false, true) => 1,
            (false, false) => 2,
        };
        self.copies.map_or(usual, usize::from)
    }

    pub(crate) fn ttl(&self) -> Duration {
        let usual = if self.kill_a_node { 2 } else { 10 };
        self.ttl.unwrap_or(Duration::from_secs(usual))
    }

    pub(crate) fn work(&self) -> Duration {
        let usual = if self.kill_a_node { 350 } else { 0 };
        self.work.unwrap_or(Duration::from_millis(usual))
    }
}

fn night_name(text: &str) -> Result<String, &'static str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match (1..=64).contains(&text.len()) && text.chars().all(fits) {
        true => Ok(text.to_owned()),
        false => Err("1 to 64 letters, digits, '-', '_' and '.'"),
    }
}
