//! A value in a directory: each holder renames its file to a name of its own, and the greatest
//! token is the value.
//!
//! `rename` replaces a file whatever is in it, so a store of one file cannot refuse a stale one.
//! Here a stale holder creates a file that nobody reads.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Writes the value. It is whole or not there, also after a crash.
///
/// # Errors
/// The error of the system.
pub fn write(dir: &Path, value: &[u8], token: u64) -> io::Result<()> {
    let name = format!("value.{token:020}"); // of fixed width, so that the order of names is that of tokens
    let temporary = dir.join(format!("tmp.{token:020}.{}", std::process::id()));
    let mut file = File::create(&temporary)?;
    file.write_all(value)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(&name))?;
    File::open(dir)?.sync_all()?; // the new name survives a crash, too
    for former in values(dir)?.iter().filter(|path| **path < dir.join(&name)) {
        match fs::remove_file(former) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Returns the value of the latest holder, or `None` if there is none yet.
///
/// # Errors
/// The error of the system.
pub fn read(dir: &Path) -> io::Result<Option<Vec<u8>>> {
    loop {
        let Some(latest) = values(dir)?.pop() else {
            return Ok(None);
        };
        match fs::read(latest) {
            // A later holder has removed it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result.map(Some),
        }
    }
}

/// Returns the files with values, that of the greatest token last.
fn values(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b"value.") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use redguard_servers::temp_dir::TempDir;

    #[test]
    fn file_of_the_greatest_token_is_the_value() {
        let dir = TempDir::create("files-").unwrap();
        let dir = dir.path();
        assert_eq!(read(dir).unwrap(), None);
        for (token, value, then) in [
            (9, "first", "first"),
            (8, "stale", "first"),
            (9, "again", "again"),
            (100, "second", "second"),
            (99, "stale", "second"),
        ] {
            write(dir, value.as_bytes(), token).unwrap();
            assert_eq!(read(dir).unwrap().unwrap(), then.as_bytes(), "{token}");
        }
        write(dir, b"third", 101).unwrap();
        assert_eq!(values(dir).unwrap().len(), 1, "former values are removed");
    }
}
