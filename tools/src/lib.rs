//! Ringway's tools: see the README.
