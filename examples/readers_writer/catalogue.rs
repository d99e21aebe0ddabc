//! The shared file: written in place, piece by piece. A checksum at its end shows a half-written
//! file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Items per write.
const PIECE: usize = 20;
const ITEMS: usize = 200;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Catalogue {
    /// Number of reloads so far.
    pub(crate) version: u64,
    prices: Vec<u64>,
}

impl Catalogue {
    pub(crate) fn first() -> Catalogue {
        Catalogue::of(0)
    }

    /// Returns the catalogue of the next reload.
    pub(crate) fn next(&self) -> Catalogue {
        Catalogue::of(self.version + 1)
    }

    fn of(version: u64) -> Catalogue {
        let price = |item| (version + 1) * item as u64 % 1_000;
        Catalogue {
            version,
            prices: (0..ITEMS).map(price).collect(),
        }
    }

    /// Returns the sum of all prices.
    pub(crate) fn total(&self) -> u64 {
        self.prices.iter().sum()
    }

    /// Returns `None` if the file is half-written.
    pub(crate) fn load(path: &Path) -> io::Result<Option<Catalogue>> {
        Ok(Catalogue::parse(&fs::read_to_string(path)?))
    }

    fn parse(text: &str) -> Option<Catalogue> {
        let (body, last) = text.strip_suffix('\n')?.rsplit_once('\n')?;
        let sum = format!("crc {:08x}", crc32fast::hash(body.as_bytes()));
        let mut lines = body.lines().filter(|_| last == sum);
        let version = lines.next()?.strip_prefix("version ")?.parse().ok()?;
        let prices = lines.map(|line| line.split_once('\t')?.1.parse().ok());
        let prices = prices.collect::<Option<_>>()?;
        Some(Catalogue { version, prices })
    }

    /// Replaces the content of the file in place. An error of `check`, which is called before each
    /// piece, leaves the file half-written.
    pub(crate) fn store<E: From<io::Error>>(
        &self,
        path: &Path,
        mut check: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut file = File::create(path)?;
        let mut crc = crc32fast::Hasher::new();
        let mut piece = format!("version {}", self.version);
        for (item, price) in self.prices.iter().enumerate() {
            piece += &format!("\nitem-{item}\t{price}");
            if item % PIECE == 0 || item + 1 == ITEMS {
                check()?;
                crc.update(piece.as_bytes());
                file.write_all(piece.as_bytes())?;
                piece.clear();
            }
        }
        check()?;
        writeln!(file, "\ncrc {:08x}", crc.finalize())?;
        Ok(())
    }
}
