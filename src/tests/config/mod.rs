//! What a user sets, validated.

mod settings;
