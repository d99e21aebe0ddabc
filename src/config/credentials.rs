//! Credentials that a function returns at each connect, because they change while a program runs.
//!
//! Nothing here shows a password.
//!
//! Tests: `tests/it/nodes/acl.rs`.

use std::fmt;
use std::sync::Arc;

/// A user and a password, returned by the function of
/// [`Config::credentials`](crate::Config::credentials). `Debug` hides the password.
///
/// ```
/// use redguard::Credentials;
///
/// let credentials = Credentials::new("worker", "s3cret");
/// assert!(!format!("{credentials:?}").contains("s3cret"));
/// let of_the_default_user = Credentials::password("s3cret");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub(crate) username: Option<String>,
    pub(crate) password: String,
}

impl Credentials {
    /// Creates credentials of an ACL user.
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Credentials {
        Credentials {
            username: Some(username.into()),
            password: password.into(),
        }
    }

    /// Creates credentials of the server's `default` user.
    pub fn password(password: impl Into<String>) -> Credentials {
        Credentials {
            username: None,
            password: password.into(),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// A function from the name of a node to its credentials.
pub(crate) type CredentialsProvider = Arc<dyn Fn(&str) -> Credentials + Send + Sync>;
