//! RFC 9112 §6 and §7.1: request bodies by length and in chunks.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use ringway_proto::h1::body::{BodyReader, Part};
use ringway_proto::h1::head::{Body, HeadFault};

/// The body in `input`, shown `step` bytes at a time, and how much of the input it took; of chunks
/// without the trailer section.
fn read(body: Body, input: &[u8], step: usize) -> Result<Option<(Vec<u8>, usize)>, HeadFault> {
    let mut reader = BodyReader::new(body);
    let (mut content, mut taken, mut shown) = (Vec::new(), 0, 0);
    loop {
        match reader.read(&input[taken..shown])? {
            Part::Content { start, len } => {
                assert!(len > 0);
                let start = taken + start;
                taken = start + len;
                content.extend_from_slice(&input[start..taken]);
            }
            Part::More if shown == input.len() => return Ok(None),
            Part::More => {
                taken = shown;
                shown = (shown + step).min(input.len());
            }
            Part::Trailers(read) => {
                assert!(reader.is_done());
                return Ok(Some((content, taken + read)));
            }
            Part::End => {
                assert!(reader.is_done());
                return Ok(Some((content, taken)));
            }
        }
    }
}

#[test]
fn a_length_is_kept_to_the_byte() {
    for step in [1, 3, 100] {
        assert_eq!(read(Body::None, b"next", step), Ok(Some((vec![], 0))));
        assert_eq!(read(Body::Length(0), b"next", step), Ok(Some((vec![], 0))));
        assert_eq!(read(Body::Length(4), b"bodynext", step), Ok(Some((b"body".to_vec(), 4))));
        assert_eq!(read(Body::Length(5), b"body", step), Ok(None));
    }
    assert!(Body::None.is_empty() && Body::Length(0).is_empty());
    assert!(!Body::Length(1).is_empty() && !Body::Chunked.is_empty());
}

#[test]
fn chunks_read_alike_however_they_are_cut() {
    let input =
        b"4\r\nwiki\r\n00A;ext=\"x\"\r\n0123456789\r\nb \r\n\r\n\r\n\n\n\n\n\n\n\n\r\n0\r\nnext";
    let content = b"wiki0123456789\r\n\r\n\n\n\n\n\n\n\n";
    for step in 1..=input.len() {
        let whole = Some((content.to_vec(), input.len() - 4));
        assert_eq!(read(Body::Chunked, input, step), Ok(whole), "{step}");
    }
    for cut in 0..input.len() - 4 {
        assert_eq!(read(Body::Chunked, &input[..cut], 7), Ok(None), "{cut}");
    }
}

#[test]
fn broken_chunks_are_refused() {
    let long = format!("1;{}\r\nx\r\n0\r\n\r\n", "x".repeat(300));
    for input in [
        "\r\n",
        "x\r\n",
        "-1\r\n",
        "+1\r\nx\r\n0\r\n\r\n",
        "0x1\r\nx\r\n0\r\n\r\n",
        " 1\r\nx\r\n0\r\n\r\n",
        "1\nx\n0\n\n",
        "1\r\nxy\r\n0\r\n\r\n",
        "1\r\nx\n0\r\n\r\n",
        "1;a\rb\r\nx\r\n0\r\n\r\n",
        "1000000000000000\r\n",
        "ffffffffffffffffff\r\n",
        "1;a\0b\r\nx\r\n0\r\n\r\n",
        "1;a\nx\r\n0\r\n\r\n",
        "1\r\nx\r\r\n0\r\n\r\n",
        "1\r\n\nx\r\n0\r\n\r\n",
        &long,
        // Each line is within its limit, all together are not.
        &"1;xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\nx\r\n".repeat(600),
    ] {
        for step in [1, 1000] {
            assert!(read(Body::Chunked, input.as_bytes(), step).is_err(), "{input:?}");
        }
    }
}

#[test]
fn extensions_are_free_while_content_pays_for_them() {
    let input = format!("20;{}\r\n{}\r\n", "x".repeat(30), "y".repeat(32)).repeat(5000) + "0\r\n";
    let (content, taken) = read(Body::Chunked, input.as_bytes(), 1000).unwrap().unwrap();
    assert_eq!((content.len(), taken), (5000 * 32, input.len()));
}

#[test]
fn random_chunks_never_panic() {
    const OCTETS: &[u8] = b"0123456789abcdefF;\r\n\r\n x\0";
    let mut source = ChaCha8Rng::seed_from_u64(0x626f);
    for _ in 0..50_000 {
        let length = source.next_u32() % 24;
        let input: Vec<u8> =
            (0..length).map(|_| OCTETS[source.next_u32() as usize % OCTETS.len()]).collect();
        assert_eq!(read(Body::Chunked, &input, 1), read(Body::Chunked, &input, 100), "{input:?}");
    }
}
