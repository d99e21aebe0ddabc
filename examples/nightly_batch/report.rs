//! The tree's files and the report about them, which any number of processes append to and read as it grows.

use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    /// The path as the report and the locks name it.
    pub(crate) id: String,
}

/// The regular files under `dir`, by absolute paths so that all copies name them alike, and without the report.
pub(crate) fn list(dir: &Path, report: &Path) -> io::Result<Vec<Entry>> {
    let mut files = Vec::new();
    for entry in WalkDir::new(dir.canonicalize().map_err(|error| naming(dir, &error))?) {
        let entry = entry?;
        if entry.file_type().is_file() && entry.path() != report {
            let id = id(entry.path());
            let path = entry.into_path();
            files.push(Entry { path, id });
        }
    }
    Ok(files)
}

/// Any path as text without tabs and line ends: `%` and two digits for what is special or not UTF-8.
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

/// Rows of five fields with tabs between: night, file, lines, bytes, CRC-32. Other lines are passed over.
pub(crate) struct Report {
    file: File,
    pub(crate) night: String,
    /// Held across reads, which no lock should be without a reason: how far the file was read is just what it guards.
    seen: Mutex<Seen>,
}

/// This night's rows so far.
#[derive(Default)]
pub(crate) struct Seen {
    offset: u64,
    /// How many rows each file has: one, if all goes well.
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

    /// Whether this night's row for the file is there by now.
    pub(crate) fn has(&self, file: &Entry) -> io::Result<bool> {
        Ok(self.catch_up()?.rows.contains_key(&file.id))
    }

    /// Reads what anybody has appended since the last time, up to the last whole line.
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

    /// Appends this night's row for the file: in one write of a whole line, so that rows of several processes do not mix.
    pub(crate) fn append(&self, file: &Entry, digest: &str) -> io::Result<()> {
        self.write(&format!("{}\t{}\t{digest}\n", self.night, file.id))
    }

    /// A write that was cut short by a full disk or a crash shall not spoil the next row as well.
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
            _ => Err(io::Error::other("the report took only a part of a row")),
        }
    }
}

fn naming(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
