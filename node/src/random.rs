//! The only place that asks for randomness.

/// A random number, different on every call. For ids that must not collide; never for decisions that are replicated.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one place that asks for randomness")]
pub fn random_u64() -> u64 {
    rand::random()
}

/// 128 random bits as text, for names that nobody else may have or guess.
#[must_use]
pub fn random_name() -> String {
    format!("{:016x}{:016x}", random_u64(), random_u64())
}
