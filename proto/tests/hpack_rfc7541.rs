//! RFC 7541 Appendix C: each example is decoded, and its table compared. The same requests are
//! encoded. (C.1, integers, is tested beside `integer.rs`.)
use ringway_proto::fields::{Field, Fields};
use ringway_proto::hpack::{Decoder, Encoder, HeaderLimits, Verdict};

type List = [(&'static str, &'static str)];

fn octets(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

fn listed(fields: &Fields) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    fields.iter().map(|field| (text(field.name), text(field.value))).collect()
}

fn owned(list: &List) -> Vec<(String, String)> {
    list.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The dynamic table, newest first. It is read by indexes, which do not change it.
fn table(decoder: &mut Decoder) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    let mut out = Fields::new();
    for index in 62..127u8 {
        if decoder.decode(&[0x80 | index], &mut out, &HeaderLimits::default()).is_err() {
            return rows;
        }
        rows.extend(listed(&out));
    }
    rows
}

#[track_caller]
fn block(decoder: &mut Decoder, hex: &str, list: &List, rows: &List, size: usize) {
    let mut out = Fields::new();
    let verdict = decoder.decode(&octets(hex), &mut out, &HeaderLimits::default());
    assert_eq!(verdict, Ok(Verdict::Fits));
    assert!(!out.is_malformed());
    assert_eq!(listed(&out), owned(list));
    assert_eq!(table(decoder), owned(rows));
    assert_eq!(decoder.table_size(), size);
}

#[test]
fn c2_1_literal_with_indexing() {
    let list = [("custom-key", "custom-header")];
    let hex = "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572";
    block(&mut Decoder::new(4096), hex, &list, &list, 55);
}

#[test]
fn c2_2_literal_without_indexing() {
    let hex = "040c 2f73 616d 706c 652f 7061 7468";
    block(&mut Decoder::new(4096), hex, &[(":path", "/sample/path")], &[], 0);
}

#[test]
fn c2_3_literal_never_indexed() {
    let hex = "1008 7061 7373 776f 7264 0673 6563 7265 74";
    block(&mut Decoder::new(4096), hex, &[("password", "secret")], &[], 0);
    let mut out = Fields::new();
    let limits = HeaderLimits::default();
    let _ = Decoder::new(4096).decode(&octets(hex), &mut out, &limits).unwrap();
    assert!(out.get(0).unwrap().never_indexed);
}

#[test]
fn c2_4_indexed() {
    block(&mut Decoder::new(4096), "82", &[(":method", "GET")], &[], 0);
}

const FIRST: &List =
    &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
const SECOND: &List = &[
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/"),
    (":authority", "www.example.com"),
    ("cache-control", "no-cache"),
];
const THIRD: &List = &[
    (":method", "GET"),
    (":scheme", "https"),
    (":path", "/index.html"),
    (":authority", "www.example.com"),
    ("custom-key", "custom-value"),
];
const REQUEST_ROWS: &List = &[
    ("custom-key", "custom-value"),
    ("cache-control", "no-cache"),
    (":authority", "www.example.com"),
];

fn requests(blocks: [&str; 3]) {
    let decoder = &mut Decoder::new(4096);
    block(decoder, blocks[0], FIRST, &REQUEST_ROWS[2..], 57);
    block(decoder, blocks[1], SECOND, &REQUEST_ROWS[1..], 110);
    block(decoder, blocks[2], THIRD, REQUEST_ROWS, 164);
}

const C4: [&str; 3] = [
    "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
    "8286 84be 5886 a8eb 1064 9cbf",
    "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
];

#[test]
fn c3_requests_without_huffman() {
    requests([
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ]);
}

#[test]
fn c4_requests_with_huffman() {
    requests(C4);
}

#[test]
fn c4_is_what_our_encoder_writes() {
    let mut encoder = Encoder::new();
    for (list, hex) in [(FIRST, C4[0]), (SECOND, C4[1]), (THIRD, C4[2])] {
        let mut out = Vec::new();
        encoder.begin(&mut out);
        for (name, value) in list {
            encoder.field(Field::new(name.as_bytes(), value.as_bytes()), &mut out);
        }
        assert_eq!(out, octets(hex));
    }
    assert_eq!(encoder.table_size(), 164);
}

const COOKIE: &str = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
const DATE_21: &str = "Mon, 21 Oct 2013 20:13:21 GMT";
const DATE_22: &str = "Mon, 21 Oct 2013 20:13:22 GMT";
const SITE: &str = "https://www.example.com";

/// C.5 and C.6 have a table of 256 octets, so that entries are evicted.
fn responses(blocks: [&str; 3]) {
    let decoder = &mut Decoder::new(256);
    let first =
        [(":status", "302"), ("cache-control", "private"), ("date", DATE_21), ("location", SITE)];
    let mut rows = first;
    rows.reverse();
    block(decoder, blocks[0], &first, &rows, 222);
    let second =
        [(":status", "307"), ("cache-control", "private"), ("date", DATE_21), ("location", SITE)];
    let rows =
        [(":status", "307"), ("location", SITE), ("date", DATE_21), ("cache-control", "private")];
    block(decoder, blocks[1], &second, &rows, 222);
    let third = [
        (":status", "200"),
        ("cache-control", "private"),
        ("date", DATE_22),
        ("location", SITE),
        ("content-encoding", "gzip"),
        ("set-cookie", COOKIE),
    ];
    let rows = [("set-cookie", COOKIE), ("content-encoding", "gzip"), ("date", DATE_22)];
    block(decoder, blocks[2], &third, &rows, 215);
}

#[test]
fn c5_responses_without_huffman() {
    responses([
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a
         3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04
         677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49
         553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
    ]);
}

#[test]
fn c6_responses_with_huffman() {
    responses([
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e
         919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7
         821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed
         4ee5 b106 3d50 07",
    ]);
}
