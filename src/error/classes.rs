//! Sorts errors by the reaction to them: predicates and exit codes.

use std::time::Duration;

use crate::error::contended_lock::ContendedLock;
use crate::error::error::Error;
use crate::error::node_failure::NodeFailure;

impl Error {
    /// Returns whether another holder has the lock: a later attempt may succeed.
    pub fn is_contended(&self) -> bool {
        matches!(
            self,
            Error::Contended { .. }
                | Error::WriteLockTimeout { .. }
                | Error::WriteLockHeld { .. }
                | Error::ReadersTimeout { .. }
        )
    }

    /// Returns whether too few nodes replied in time for a verdict: waiting may help. Returns
    /// `false` for an error that [`is_denied`](Error::is_denied).
    pub fn is_unavailable(&self) -> bool {
        let is_unknown = matches!(
            self,
            Error::InsufficientQuorum { .. }
                | Error::CircuitOpen { .. }
                | Error::ValidityExhausted { .. }
        );
        is_unknown && !self.is_denied()
    }

    /// Returns whether the nodes that deny access leave no quorum: other credentials, rights or
    /// certificates help, waiting does not.
    pub fn is_denied(&self) -> bool {
        let Error::InsufficientQuorum {
            needed,
            total,
            causes,
            ..
        } = self
        else {
            return false;
        };
        let denied = causes
            .iter()
            .filter(|node| matches!(node.failure, NodeFailure::AccessDenied(_)));
        denied.count() > total.saturating_sub(*needed)
    }

    /// Returns the lock that [`is_contended`](Error::is_contended), and its holder if that is
    /// known.
    pub fn contended_lock(&self) -> Option<&ContendedLock> {
        match self {
            Error::Contended { lock, .. }
            | Error::WriteLockTimeout { lock, .. }
            | Error::WriteLockHeld { lock, .. }
            | Error::ReadersTimeout { lock, .. } => Some(lock),
            _ => None,
        }
    }

    /// Returns whether a held lock was lost.
    pub fn is_lost(&self) -> bool {
        matches!(self, Error::LockLost { .. })
    }

    /// Returns the exit code of a program that ends with this error, as in sysexits.h:
    ///
    /// | code | for | what helps |
    /// |---|---|---|
    /// | 64 | a wrong name, address, setting, TTL or lock token | correct it |
    /// | 69 | [`is_unavailable`](Error::is_unavailable) | come back later; look at the nodes |
    /// | 70 | [`is_lost`](Error::is_lost), and all others | stop, and check the work |
    /// | 75 | [`is_contended`](Error::is_contended) | come back later |
    /// | 77 | [`is_denied`](Error::is_denied) | other credentials, rights or certificates |
    ///
    /// ```
    /// use redguard::Error;
    /// use std::process::ExitCode;
    ///
    /// fn exit(result: Result<(), Error>) -> ExitCode {
    ///     let Err(error) = result else {
    ///         return ExitCode::SUCCESS;
    ///     };
    ///     eprintln!("report: {error}");
    ///     ExitCode::from(error.exit_code())
    /// }
    ///
    /// assert_eq!(exit(Err(Error::NoAddresses)), ExitCode::from(64));
    /// ```
    pub fn exit_code(&self) -> u8 {
        match self {
            _ if self.is_contended() => 75,
            _ if self.is_denied() => 77,
            _ if self.is_unavailable() => 69,
            Error::NoAddresses
            | Error::InvalidConfig(_)
            | Error::InvalidKey { .. }
            | Error::InvalidTtl { .. }
            | Error::InvalidLockToken => 64,
            _ => 70,
        }
    }

    /// Returns the remaining time of an error that [`is_contended`](Error::is_contended).
    pub(crate) fn contended_for(&self) -> Option<Duration> {
        match self {
            Error::Contended { remaining, .. }
            | Error::WriteLockTimeout { remaining, .. }
            | Error::WriteLockHeld { remaining, .. }
            | Error::ReadersTimeout { remaining, .. } => *remaining,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::error::contended_lock::ContendedLock;
    use crate::error::error::Error;
    use crate::error::loss_reason::LossReason;
    use crate::error::node_failure::NodeFailure;
    use crate::error::operation::Operation;
    use crate::tests::fixtures::insufficient;

    #[test]
    fn denial_that_leaves_no_quorum_is_denied_and_not_unavailable() {
        let (down, denied) = (
            NodeFailure::TimedOut,
            NodeFailure::AccessDenied("WRONGPASS".into()),
        );
        for (causes, is_denied) in [
            (vec![&denied, &denied], true),
            (vec![&denied, &denied, &denied], true),
            (vec![&down, &denied, &denied], true),
            (vec![&denied, &down], false),
            (vec![&denied, &down, &down], false),
            (vec![&down, &down], false),
        ] {
            let causes: Vec<NodeFailure> = causes.into_iter().cloned().collect();
            let error = insufficient(Operation::Acquire, &causes);
            assert_eq!(error.is_denied(), is_denied, "{error}");
            assert_eq!(error.is_unavailable(), !is_denied, "{error}");
        }
        assert!(!Error::Closed.is_denied());
    }

    #[test]
    fn exit_code_is_one_of_five() {
        let denied = NodeFailure::AccessDenied("WRONGPASS".into());
        let contended = Error::Contended {
            lock: Box::new(ContendedLock {
                key: "x".into(),
                owner_label: None,
                permits: None,
            }),
            attempts: 1,
            waited: Duration::ZERO,
            remaining: None,
        };
        let lost = Error::LockLost {
            key: "x".into(),
            reason: LossReason::Expired,
        };
        let ttl = Duration::ZERO;
        let reason = String::new;
        for (error, code) in [
            (contended, 75),
            (
                insufficient(Operation::Acquire, &[denied.clone(), denied]),
                77,
            ),
            (
                insufficient(Operation::Acquire, &[NodeFailure::TimedOut]),
                69,
            ),
            (Error::ValidityExhausted { attempts: 3, ttl }, 69),
            (lost, 70),
            (Error::Closed, 70),
            (Error::Cancelled, 70),
            (Error::NotOnNodes, 70),
            (Error::NoAddresses, 64),
            (Error::InvalidLockToken, 64),
            (Error::InvalidConfig(reason()), 64),
            (
                Error::InvalidTtl {
                    ttl,
                    reason: reason(),
                },
                64,
            ),
            (
                Error::InvalidKey {
                    name: reason(),
                    reason: reason(),
                },
                64,
            ),
        ] {
            assert_eq!(error.exit_code(), code, "{error}");
        }
    }
}
