//! A hash in Redis, which keeps the greatest token beside the value.

use redis::{Connection, RedisResult, Script};

/// The server runs a script alone, so nothing comes between the comparison and the write.
pub const WRITE: &str = "
-- KEYS[1]: a hash. ARGV: token, value. Returns 1, or 0 if a later holder has written.
local fence = redis.call('HGET', KEYS[1], 'fence')
if fence and tonumber(fence) > tonumber(ARGV[1]) then
    return 0
end
redis.call('HSET', KEYS[1], 'fence', ARGV[1], 'value', ARGV[2])
return 1
";

/// Writes a value. Returns `false` if a later holder has written the key.
///
/// # Errors
/// The error of the server or the connection.
pub fn write(db: &mut Connection, key: &str, value: &str, token: u64) -> RedisResult<bool> {
    Script::new(WRITE).key(key).arg(token).arg(value).invoke(db)
}

#[cfg(test)]
mod tests {
    use super::*;
    use redguard_servers::Server;

    #[test]
    fn hash_is_written_by_tokens_that_do_not_decrease() {
        let server = Server::start().unwrap();
        let client = redis::Client::open(server.url()).unwrap();
        let mut db = client.get_connection().unwrap();
        // Tokens are of this size; a number of Lua is exact up to 2^53.
        let base = 1_800_000_000_000_000;
        for (token, value, is_written) in [
            (base + 5, "first", true),
            (base + 4, "stale", false),
            (base + 5, "again", true),
            (base + 7, "second", true),
            (base + 6, "stale", false),
        ] {
            assert_eq!(
                write(&mut db, "k", value, token).unwrap(),
                is_written,
                "{value}"
            );
        }
        let mut get = redis::cmd("HGET");
        let value: String = get.arg("k").arg("value").query(&mut db).unwrap();
        assert_eq!(value, "second");
    }
}
