//! Temporary directories.

use std::io;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// New directory below the system's directory for temporary files; removed on drop.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Creates a directory whose name begins with `prefix`, for this user alone.
    ///
    /// # Errors
    /// The error of the system.
    pub fn create(prefix: &str) -> io::Result<TempDir> {
        let template = env::temp_dir().join(format!("{prefix}XXXXXX"));
        Ok(TempDir(nix::unistd::mkdtemp(&template)?))
    }

    /// Returns the path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Keeps the directory: no drop removes it.
    #[must_use]
    pub fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            // What cannot be removed stays with the other temporary files.
            _ = fs::remove_dir_all(&self.0);
        }
    }
}
