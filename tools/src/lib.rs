//! Ringway's tools. Today this package holds the house rules as tests (`tests/tidy.rs`), next to
//! the scripts that install what the tests need and run them; the worker comes later.
