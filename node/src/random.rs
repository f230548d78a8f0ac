//! The only place that asks for randomness.

/// A random number, different on every call. For ids that must not collide; never for decisions that are replicated.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one place that asks for randomness")]
pub fn random_u64() -> u64 {
    rand::random()
}
