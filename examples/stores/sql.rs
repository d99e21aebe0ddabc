//! A table in SQL, whose rows keep the greatest token. Tried with SQLite; PostgreSQL takes the same
//! statements.

use rusqlite::{Connection, Result, named_params};

/// The token is a column of 64 bits, as `i64`: tokens are microseconds since 1970 or a little more.
pub const TABLE: &str = "
CREATE TABLE account (id BIGINT PRIMARY KEY, balance BIGINT NOT NULL, fence BIGINT NOT NULL DEFAULT 0);
";

/// Changes a row that is there.
pub const UPDATE: &str = "
UPDATE account SET balance = :balance, fence = :token WHERE id = :id AND fence <= :token;
";

/// Changes a row, or writes the first one.
pub const UPSERT: &str = "
INSERT INTO account (id, balance, fence) VALUES (:id, :balance, :token)
ON CONFLICT (id) DO UPDATE SET balance = excluded.balance, fence = excluded.fence
WHERE account.fence <= excluded.fence;
";

/// Runs [`UPDATE`] or [`UPSERT`]. Returns `false` if a later holder has written the row, or there
/// is none to update.
///
/// # Errors
/// The error of the database.
pub fn write(db: &Connection, statement: &str, id: i64, balance: i64, token: u64) -> Result<bool> {
    // Negative above `i64::MAX`, and so refused. Such a token is 290,000 years away.
    let token = token.cast_signed();
    let values = named_params! { ":id": id, ":balance": balance, ":token": token };
    Ok(db.execute(statement, values)? == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(db: &Connection) -> Result<Vec<(i64, i64)>> {
        let mut rows = db.prepare("SELECT balance, fence FROM account")?;
        let rows = rows.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect()
    }

    #[test]
    fn row_is_written_by_tokens_that_do_not_decrease() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(TABLE).unwrap();
        assert!(!write(&db, UPDATE, 7, 1, 5).unwrap(), "no row to update");
        assert!(write(&db, UPSERT, 7, 10, 5).unwrap(), "the first row");
        for statement in [UPDATE, UPSERT] {
            let base = rows(&db).unwrap()[0].1 as u64;
            assert!(!write(&db, statement, 7, 666, base - 1).unwrap());
            assert!(write(&db, statement, 7, 20, base).unwrap(), "once more");
            assert!(write(&db, statement, 7, 30, base + 2).unwrap());
            assert!(!write(&db, statement, 7, 666, base + 1).unwrap());
            assert!(!write(&db, statement, 7, 666, u64::MAX).unwrap());
            assert_eq!(rows(&db).unwrap(), [(30, base as i64 + 2)]);
        }
    }
}
