//! PROXY protocol v2 as HAProxy's specification lays it out.

use ringway_proto::proxy::{EXTRAS_MAX, HEADER_MAX, Header, ProxyFault, SIGNATURE, read};

fn header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let len = (body.len() as u16).to_be_bytes();
    [&SIGNATURE[..], &[command, family], &len, body].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind], &(value.len() as u16).to_be_bytes()[..], value].concat()
}

const V4: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0x1f, 0x90, 0x27, 0x61];

fn v6() -> [u8; 36] {
    let mut body = [0; 36];
    body[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    body[15] = 9;
    body[32..34].copy_from_slice(&[0xff, 0xff]);
    body
}

/// What a header reads as, after every part of it asked for more.
fn whole(header: &[u8]) -> Option<String> {
    for cut in 0..header.len() {
        assert_eq!(read(&header[..cut]), Ok(Header::NeedMore), "{cut}");
    }
    let long = [header, b"PRI * "].concat();
    assert_eq!(read(&long), read(header), "what follows is the client's");
    let Ok(Header::Whole { source, len }) = read(header) else { panic!("{:?}", read(header)) };
    assert_eq!(len, header.len());
    source.map(|source| source.to_string())
}

#[test]
fn the_source_is_told() {
    assert_eq!(whole(&header(0x21, 0x11, &V4)).as_deref(), Some("192.0.2.7:8080"));
    assert_eq!(whole(&header(0x21, 0x21, &v6())).as_deref(), Some("[2001:db8::9]:65535"));
    let with = [&V4[..], &tlv(0x02, b"a.example"), &tlv(0xea, &[]), &tlv(0x04, &[0; 99])].concat();
    assert_eq!(whole(&header(0x21, 0x11, &with)).as_deref(), Some("192.0.2.7:8080"));
}

#[test]
fn who_has_no_address_has_the_connections_own() {
    assert_eq!(whole(&header(0x20, 0x00, b"")), None);
    assert_eq!(whole(&header(0x20, 0x11, &V4)), None, "a health check of the load balancer");
    assert_eq!(whole(&header(0x20, 0xff, b"\x03\0")), None, "whatever stands in it");
    assert_eq!(whole(&header(0x21, 0x00, b"whatever")), None);
    assert_eq!(whole(&header(0x21, 0x31, &[b'/'; 216])), None);
}

#[test]
fn a_checksum_must_be_right() {
    let mut sealed = header(0x21, 0x11, &[&V4[..], &tlv(3, &[0; 4]), &tlv(4, b"pad")].concat());
    let at = 16 + 12 + 3;
    let sum = bitwise_crc32c(&sealed);
    sealed[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(bitwise_crc32c(b"123456789"), 0xe306_9283);
    assert!(whole(&sealed).is_some());
    for bit in 0..sealed.len() * 8 {
        let mut bad = sealed.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        if let Ok(Header::Whole { source, .. }) = read(&bad) {
            // Only a header that reads as another kind, or has no checksum any more, gets through.
            let hidden = bad[12] == 0x20 || bad[13] == 0x00 || bad[16 + 12] != 3;
            assert!(hidden, "bit {bit}: {source:?}");
        }
    }
    let short = [&V4[..], &tlv(3, &[0; 3])].concat();
    assert_eq!(read(&header(0x21, 0x11, &short)), Err(ProxyFault::Malformed));
}

/// The checksum bit by bit, as RFC 3720 appendix B.4 defines it.
fn bitwise_crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| {
            (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg())
        })
    })
}

#[test]
fn what_follows_the_addresses_has_its_limit_whatever_they_are() {
    let v6 = v6();
    for (family, addresses) in [(0x11, &V4[..]), (0x21, &v6[..]), (0x31, &[0; 216])] {
        // As a balancer sends a client's certificate: one value that fills it.
        let most = EXTRAS_MAX - 3;
        let long = [addresses, &tlv(0x20, &vec![7; most])].concat();
        assert_eq!(whole(&header(0x21, family, &long)).is_some(), family != 0x31, "{family:#x}");
    }
    let long = [&[0; 216][..], &tlv(0x20, &vec![7; EXTRAS_MAX - 2])].concat();
    assert_eq!(read(&header(0x21, 0x31, &long)), Err(ProxyFault::TooLarge));
}

#[test]
fn everything_else_is_refused_at_once() {
    use ProxyFault::{Family, Malformed, Missing, Text, TooLarge, Version};
    let cases: [(Vec<u8>, ProxyFault); 22] = [
        (b"G".to_vec(), Missing),
        (b"PRI * HTTP/2.0".to_vec(), Missing),
        (b"\r\n\r\n\0\r\nQUIT\r".to_vec(), Missing),
        (b"\x16\x03\x01".to_vec(), Missing),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n".to_vec(), Text),
        (header(0x22, 0x11, &V4), Version),
        (header(0x11, 0x11, &V4), Version),
        (header(0x31, 0x11, &V4), Version),
        (header(0x21, 0x12, &V4), Family),
        (header(0x21, 0x10, &V4), Family),
        (header(0x21, 0x22, &v6()), Family),
        (header(0x21, 0x41, &V4), Family),
        (header(0x21, 0x01, &V4), Family),
        (header(0x21, 0x11, &V4[..11]), Malformed),
        (header(0x21, 0x21, &V4), Malformed),
        (header(0x21, 0x31, &[0; 215]), Malformed),
        (header(0x21, 0x11, &[&V4[..], &[1]].concat()), Malformed),
        (header(0x21, 0x11, &[&V4[..], &[1, 0]].concat()), Malformed),
        (header(0x21, 0x11, &[&V4[..], &[1, 0, 1]].concat()), Malformed),
        (header(0x21, 0x11, &[&V4[..], &[1, 0xff, 0xff, 0]].concat()), Malformed),
        (header(0x21, 0x00, &vec![0; HEADER_MAX]), TooLarge),
        (header(0x20, 0x00, &vec![0; HEADER_MAX - 15]), TooLarge),
    ];
    for (input, fault) in cases {
        assert_eq!(read(&input), Err(fault), "{}", input.escape_ascii());
    }
    assert_eq!(read(b"PROX"), Ok(Header::NeedMore), "to say that it is the text header");
    assert!(whole(&header(0x21, 0x00, &vec![0; HEADER_MAX - 16])).is_none());
    let huge = [&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat();
    assert_eq!(read(&huge), Err(TooLarge), "before any of it is there");
}

#[test]
fn any_bytes_are_read_alike_however_they_are_cut() {
    let base = header(0x21, 0x11, &[&V4[..], &tlv(3, &[0; 4]), &tlv(1, b"h2")].concat());
    for at in 0..base.len() {
        for octet in 0..=255 {
            let mut input = base.clone();
            input[at] = octet;
            let last = read(&input);
            let first = (0..=input.len())
                .map(|cut| read(&input[..cut]))
                .find(|r| *r != Ok(Header::NeedMore));
            assert_eq!(first.unwrap_or(Ok(Header::NeedMore)), last);
        }
    }
}
