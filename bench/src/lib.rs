//! Ringway's bench: see the README.
