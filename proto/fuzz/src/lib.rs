//! What must hold for each parser whatever its input: one function a fuzz target.
//!
//! More than "no panic": the same reading however the input is cut, what is written reads as it
//! was meant, and two ways to read the same thing agree. `proto/tests/fuzz_findings.rs` runs these
//! on every kept input, with the ordinary tests.

mod edge;
pub mod h1;
mod h2;
mod hpack;
mod text;

pub use edge::{connect, proxy};
pub use h1::{chunked, h1_request, h1_response};
pub use h2::{h2_client, h2_server};
pub use hpack::hpack;
pub use text::{id, route};

/// Panics if something does not hold for this input.
pub type Check = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Check); 10] = [
    ("hpack", hpack),
    ("h2_server", h2_server),
    ("h2_client", h2_client),
    ("h1_request", h1_request),
    ("h1_response", h1_response),
    ("chunked", chunked),
    ("route", route),
    ("id", id),
    ("proxy", proxy),
    ("connect", connect),
];

/// The ways in which an input is shown: whole, in single bytes, and in pieces that end where the
/// fuzzer says.
fn ways(len: usize, said: [u8; 2]) -> Vec<Vec<usize>> {
    let mut some: Vec<usize> = said
        .iter()
        .flat_map(|&at| [at as usize, at as usize * 7])
        .map(|at| at % (len + 1))
        .collect();
    some.sort_unstable();
    let mut ways = vec![vec![], some];
    if len <= 1024 {
        ways.push((1..len).collect());
    }
    ways
}

/// A byte from the start of the input, 0 if there is none.
fn take(input: &mut &[u8]) -> u8 {
    let Some((&first, rest)) = input.split_first() else { return 0 };
    *input = rest;
    first
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// A list as pairs that can be compared.
fn pairs(fields: &ringway_proto::fields::Fields) -> Pairs {
    fields.iter().map(|field| (field.name.to_vec(), field.value.to_vec())).collect()
}
