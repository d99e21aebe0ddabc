//! The files of the tree, and the report, which several processes append to and read as it grows.

use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    /// The path in the report and in the names of locks.
    pub(crate) id: String,
}

/// Returns the regular files under `dir` except the report. Paths are absolute, so that all copies
/// use the same names.
pub(crate) fn list(dir: &Path, report: &Path) -> io::Result<Vec<Entry>> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.canonicalize().map_err(|error| naming(dir, &error))?];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).map_err(|error| naming(&dir, &error))? {
            let entry = entry.map_err(|error| naming(&dir, &error))?;
            let (kind, path) = (entry.file_type()?, entry.path());
            if kind.is_dir() {
                dirs.push(path);
            } else if kind.is_file() && path != report {
                let id = id(&path);
                files.push(Entry { path, id });
            }
        }
    }
    Ok(files)
}

/// Returns a path as text without tabs and line ends. Special and non-UTF-8 bytes become `%` and
/// two digits.
fn id(path: &Path) -> String {
    let mut id = String::new();
    for chunk in path.as_os_str().as_encoded_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '%' | '\0'..' ' | '\x7f' => id.push_str(&format!("%{:02X}", u32::from(c))),
                _ => id.push(c),
            }
        }
        for byte in chunk.invalid() {
            id.push_str(&format!("%{byte:02X}"));
        }
    }
    id
}

/// Rows of five fields with tabs between: night, file, lines, bytes, CRC-32. Other lines are
/// ignored.
pub(crate) struct Report {
    file: File,
    pub(crate) night: String,
    /// Locked during reads, because it contains the offset of the next read.
    seen: Mutex<Seen>,
}

/// Rows of this night so far.
#[derive(Default)]
pub(crate) struct Seen {
    offset: u64,
    /// Number of rows per file; more than one is a duplicate.
    pub(crate) rows: HashMap<String, u32>,
}

impl Report {
    pub(crate) fn open(path: &Path, night: &str) -> io::Result<Report> {
        let mut options = OpenOptions::new();
        let opened = options.read(true).append(true).create(true).open(path);
        Ok(Report {
            file: opened.map_err(|error| naming(path, &error))?,
            night: night.to_owned(),
            seen: Mutex::default(),
        })
    }

    /// Returns whether the report has a row of this night for the file.
    pub(crate) fn has(&self, file: &Entry) -> io::Result<bool> {
        Ok(self.catch_up()?.rows.contains_key(&file.id))
    }

    /// Reads the rows appended since the last call, up to the last whole line.
    pub(crate) fn catch_up(&self) -> io::Result<MutexGuard<'_, Seen>> {
        let mut seen = self.seen.lock();
        let new = self.file.metadata()?.len().saturating_sub(seen.offset);
        let mut fresh = vec![0; usize::try_from(new).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut fresh, seen.offset)?;
        let last = fresh.iter().rposition(|&byte| byte == b'\n');
        let whole = last.map_or(0, |last| last + 1);
        seen.offset += whole as u64;
        for line in String::from_utf8_lossy(&fresh[..whole]).lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            if let [night, id, _, _, sum] = fields[..]
                && night == self.night
                && sum.len() == 8
            {
                *seen.rows.entry(id.to_owned()).or_default() += 1;
            }
        }
        Ok(seen)
    }

    /// Appends the row of a file in one write, so that rows of several processes do not mix.
    pub(crate) fn append(&self, file: &Entry, digest: &str) -> io::Result<()> {
        self.write(&format!("{}\t{}\t{digest}\n", self.night, file.id))
    }

    /// Ends a line that a full disk or a crash left incomplete, so that the next row stays whole.
    pub(crate) fn end_torn_line(&self) -> io::Result<()> {
        let len = self.file.metadata()?.len();
        let mut last = *b"\n";
        if len > 0 {
            self.file.read_exact_at(&mut last, len - 1)?;
        }
        match last {
            [b'\n'] => Ok(()),
            _ => self.write("\n"),
        }
    }

    fn write(&self, line: &str) -> io::Result<()> {
        match (&self.file).write(line.as_bytes())? {
            all if all == line.len() => Ok(()),
            _ => Err(io::Error::other("the row was written only in part")),
        }
    }
}

fn naming(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
