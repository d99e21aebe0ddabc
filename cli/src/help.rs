//! The texts behind the options in `--help` and in the manual pages.

pub(crate) const TOP: &str = "\
redguard run --key backup --no-wait -- pg_dump shop  as flock(1), between hosts
redguard status backup                               its holder, and until when
redguard list 'shop:*'; redguard watch               all holders
redguard doctor                                      are the nodes fit?

Statuses: 64 usage, 69 no quorum of nodes, 71 system, 77 access denied; see each
command. Nodes: host, host:port, redis://user:password@host:port/db, rediss://…,
unix:///path, redis+sentinel://host+host/MASTER, redis+cluster://host+host; the
same list for all programs, or REDIS_URLS, REDGUARD_NODES_FILE, redguard.toml.";

pub(crate) const RUN: &str = "\
Status: the command's; 64 usage, 69 no quorum, 70 lock lost, 71 system, 75 held,
77 denied, 126-127 no command. See also `redguard --help`, `redguard man run`.";

/// For the manual page.
pub(crate) const RUN_PAGE: &str = "\
Environment: REDGUARD_KEY, _TTL (seconds), _OWNER; _FENCING_TOKEN (--fenced), _PERMIT (-n).
While renewals fail: TERM `--grace` before the lock ends, KILL at its end; the status is then 70.
Unlike flock(1) the lock ends with the command, not with its children (see --wait-for-group).
--shared, --exclusive and -n name other locks than KEY without them.
Status: the command's, or 64 usage, 69 no quorum, 70 lock lost, 71 system, 75 held (-E), 77 access
denied, 126 not executable, 127 not found, 128+n signal n.
Nodes and output: see redguard(1).";

pub(crate) const STATUS: &str = "\
To acquire a lock use `run`: a status is out of date when it is printed. Nodes that are down are
reported on standard error. A holder on less than a quorum acquires, releases, or has lost the lock.
Status: 0 held, 1 not held, 64 usage, 69 no quorum, 77 access denied.";

pub(crate) const LIST: &str = "\
SCAN finds the names; it reads all keys of the database but does not block the server as KEYS does.
WAIT is the number of processes that wait. With an empty --prefix each string key counts as a lock.
Status: 0 listed, also if there are none; 64 usage, 69 too few nodes, 77 access denied.";

pub(crate) const WATCH: &str = "\
Keys: q quits; arrows, PgUp, PgDn, Home, End scroll; n, h, e sort by name, holder, end; / filters.
Without a terminal, or with --json, one line per change. SCAN takes at most 5 % of a server's time.
Status: 0 ended by q, Ctrl-C or a signal; 64 usage, 69 no quorum at the start, 77 access denied.";

pub(crate) const BREAK: &str = "\
For locks whose holder is certainly dead. A living one goes on beside the next holder until it
checks or renews its lock. On a terminal break shows the holders and asks; elsewhere it needs --yes.
Only what it has shown is removed: if the lock has passed on meanwhile, nothing is done.
Status: 0 removed, 1 no such lock, 2 not confirmed or passed on, 64 usage, 69 no quorum, 77 denied.";

pub(crate) const DOCTOR: &str = "\
Per node: version, role, persistence, eviction, clock, rights of each kind of lock, latency, a trial
lock. Rights are asked for without side effects, so nothing is written but the trial.
Status: 0 all is well, 1 something to change, 64 usage, 69 no quorum, 77 access denied.";

pub(crate) const COMPLETIONS: &str = "\
  redguard completions bash >/etc/bash_completion.d/redguard
  redguard completions zsh  >\"${fpath[1]}/_redguard\"
  redguard completions fish >~/.config/fish/completions/redguard.fish";

pub(crate) const MAN: &str = "\
  redguard man run | man -l -
  redguard man --dir /usr/local/share/man/man1";
