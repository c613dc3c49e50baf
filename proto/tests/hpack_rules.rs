//! HPACK rules beyond the RFC's examples: limits, size updates, table rules, what is indexed.
use ringway_proto::fields::{Field, Fields, Token};
use ringway_proto::hpack::{
    Decoder, Encoder, HeaderLimits, HpackError, Malformation, Verdict, huffman,
};

const LIMITS: HeaderLimits = HeaderLimits { max_size: 64 * 1024, max_fields: 256 };

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<(Verdict, Fields), HpackError> {
    let mut out = Fields::new();
    decoder.decode(block, &mut out, &LIMITS).map(|verdict| (verdict, out))
}

/// Decodes a block for what it does to the table.
fn feed(decoder: &mut Decoder, block: &[u8]) {
    let (verdict, _) = decode(decoder, block).expect("a valid block");
    assert_eq!(verdict, Verdict::Fits);
}

#[track_caller]
fn fails(block: &[u8], error: HpackError) {
    assert_eq!(decode(&mut Decoder::new(4096), block).map(|(verdict, _)| verdict), Err(error));
    assert!(!error.to_string().is_empty());
}

fn malformed(kind: Malformation) -> HpackError {
    HpackError::Malformed(kind)
}

fn encode(encoder: &mut Encoder, list: &[Field<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    encoder.begin(&mut out);
    for &field in list {
        encoder.field(field, &mut out);
    }
    out
}

/// A literal with incremental indexing and a short new name.
fn insertion(name: &[u8], value: &[u8]) -> Vec<u8> {
    assert!(name.len() < 127 && value.len() < 127);
    [&[0x40, name.len() as u8], name, &[value.len() as u8], value].concat()
}

#[test]
fn fresh_state_is_small() {
    assert!(size_of::<Decoder>() <= 150 && size_of::<Encoder>() <= 150);
}

#[test]
fn default_limits_are_those_of_the_table() {
    let limits = HeaderLimits { max_size: 256 * 1024, max_fields: 1024 };
    assert_eq!(HeaderLimits::default(), limits);
}

#[test]
fn an_empty_block_is_an_empty_list() {
    let (verdict, out) = decode(&mut Decoder::new(4096), b"").unwrap();
    assert!(verdict == Verdict::Fits && out.is_empty());
}

#[test]
fn tokens_come_with_static_dynamic_and_literal_fields() {
    let mut block = vec![0x83];
    block.extend(insertion(b"function-id", b"f"));
    block.push(0xbe);
    block.extend_from_slice(b"\x00\x02te\x08trailers");
    let (_, out) = decode(&mut Decoder::new(4096), &block).unwrap();
    let tokens: Vec<Token> = out.iter().map(|field| field.token).collect();
    assert_eq!(tokens, [Token::Method, Token::FunctionId, Token::FunctionId, Token::Te]);
}

#[test]
fn unknown_indexes_are_errors() {
    let index = malformed(Malformation::Index);
    fails(&[0x80], index);
    fails(&[0xbe], index);
    fails(&[0xff, 0x80, 0x80, 0x40], index);
    // Names: literal with indexing at 62, without at 62, never indexed at 63.
    fails(&[0x7e, 0x00], index);
    fails(&[0x0f, 0x2f, 0x00], index);
    fails(&[0x1f, 0x30, 0x00], index);
}

#[test]
fn endless_integers_are_errors() {
    for first in [0xff, 0x7f, 0x0f, 0x1f, 0x3f] {
        fails(&[first, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80], malformed(Malformation::Integer));
    }
}

#[test]
fn bad_huffman_is_an_error_in_names_and_values() {
    let huffman = malformed(Malformation::Huffman);
    fails(&[0x40, 0x81, 0xff, 0x01, b'v'], huffman);
    fails(&[0x40, 0x01, b'n', 0x81, 0xff], huffman);
    fails(&[0x00, 0x01, b'n', 0x84, 0xff, 0xff, 0xff, 0xff], huffman);
}

#[test]
fn size_updates_are_at_the_start_and_at_most_two() {
    let wrong = malformed(Malformation::SizeUpdate);
    let mut decoder = Decoder::new(4096);
    assert!(decode(&mut decoder, &[0x20, 0x3f, 0xe1, 0x1f, 0x82]).is_ok());
    assert!(decode(&mut decoder, &[0x20]).is_ok(), "a block of nothing but an update");
    fails(&[0x20, 0x20, 0x20, 0x82], wrong);
    fails(&[0x82, 0x20], wrong);
    fails(&[0x3f, 0xe2, 0x1f], HpackError::TableSize);
    let allowed = decode(&mut Decoder::new(100), &[0x3f, 0x45]).map(|(verdict, _)| verdict);
    assert_eq!(allowed, Ok(Verdict::Fits));
    let above = decode(&mut Decoder::new(100), &[0x3f, 0x46]).map(|(verdict, _)| verdict);
    assert_eq!(above, Err(HpackError::TableSize));
}

#[test]
fn a_size_update_evicts_and_later_allows_again() {
    let mut decoder = Decoder::new(4096);
    feed(&mut decoder, &insertion(b"a", b"1"));
    feed(&mut decoder, &insertion(b"b", b"2"));
    assert_eq!(decoder.table_size(), 68);
    feed(&mut decoder, &[0x20 | 0x1f, 40 - 31]);
    assert_eq!(decoder.table_size(), 34);
    let (_, out) = decode(&mut decoder, &[0xbe]).unwrap();
    assert_eq!(out.get(0).unwrap().name, b"b");
    // Down to nothing and up to 4096 in one block: the table is empty afterwards.
    assert!(decode(&mut decoder, &[0x20, 0x3f, 0xe1, 0x1f, 0xbe]).is_err());
}

#[test]
fn an_entry_may_take_its_name_from_one_it_evicts() {
    let mut decoder = Decoder::new(100);
    feed(&mut decoder, &insertion(b"name-of-twenty-bytes", b"v"));
    // 20 + 40 + 32 with the old entry's 53 is too much: the old one goes.
    let block = [&[0x7e, 40][..], &[b'w'; 40]].concat();
    let (_, out) = decode(&mut decoder, &block).unwrap();
    assert_eq!(out.get(0).unwrap().name, b"name-of-twenty-bytes");
    assert_eq!(decoder.table_size(), 92);
    let (_, out) = decode(&mut decoder, &[0xbe]).unwrap();
    assert_eq!(out.get(0).unwrap().name, b"name-of-twenty-bytes");
    assert_eq!(out.get(0).unwrap().value, [b'w'; 40]);
}

#[test]
fn an_entry_larger_than_the_table_empties_it_and_is_still_a_field() {
    let mut decoder = Decoder::new(100);
    feed(&mut decoder, &insertion(b"a", b"1"));
    let (_, out) = decode(&mut decoder, &insertion(b"b", &[b'x'; 100])).unwrap();
    assert_eq!(out.get(0).unwrap().value.len(), 100);
    assert_eq!(decoder.table_size(), 0);
    assert!(decode(&mut decoder, &[0xbe]).is_err());
}

#[test]
fn the_generation_tells_whether_the_table_changed() {
    let mut decoder = Decoder::new(4096);
    let mut last = decoder.generation();
    let mut changed = |decoder: &mut Decoder, block: &[u8]| {
        feed(decoder, block);
        std::mem::replace(&mut last, decoder.generation()) != decoder.generation()
    };
    assert!(changed(&mut decoder, &insertion(b"a", b"1")));
    assert!(!changed(&mut decoder, &[0x82, 0xbe]));
    assert!(!changed(&mut decoder, b"\x00\x01a\x01b\x10\x01a\x01b"));
    assert!(!changed(&mut decoder, &[0x3f, 0xe1, 0x1f]), "an update to the size it has");
    assert!(changed(&mut decoder, &[0x20]));
    assert!(!changed(&mut decoder, &insertion(b"a", b"1")), "too large for no table");
}

#[test]
fn invalid_fields_mark_the_list_each_time_they_come() {
    let mut decoder = Decoder::new(4096);
    let mut is_bad = |block: &[u8]| decode(&mut decoder, block).unwrap().1.is_malformed();
    assert!(is_bad(&insertion(b"Upper", b"v")));
    assert!(is_bad(&[0xbe]), "from the table");
    assert!(is_bad(b"\x0f\x2f\x01v"), "a literal that takes the bad name from the table");
    assert!(is_bad(&insertion(b"good", b"bad\nvalue")));
    assert!(is_bad(&[0xbe]));
    assert!(!is_bad(b"\x0f\x2f\x01v"), "the name was good");
    assert!(is_bad(b"\x00\x00\x01v"), "an empty name");
    assert!(is_bad(b"\x01\x01 "), "a value of white space");
    assert!(!is_bad(&[0x82]));
    // The first of the bad fields marks the list even when good ones follow.
    assert!(is_bad(&[0xbe, 0x82]));
}

#[test]
fn too_many_fields_are_refused_but_decoded_to_the_end() {
    let mut decoder = Decoder::new(4096);
    let fits = [0x82; 256];
    assert_eq!(decode(&mut decoder, &fits).unwrap().0, Verdict::Fits);
    let mut block = vec![0x82; 256];
    block.extend(insertion(b"a", b"1"));
    let (verdict, out) = decode(&mut decoder, &block).unwrap();
    assert_eq!((verdict, out.len()), (Verdict::TooLarge, 256));
    let (_, out) = decode(&mut decoder, &[0xbe]).unwrap();
    assert_eq!(out.get(0).unwrap().name, b"a", "the table knows what the list does not");
    assert_eq!(decode(&mut decoder, &[0x82; 1024]).unwrap().0, Verdict::TooLarge);
    assert_eq!(decode(&mut decoder, &[0x82; 1025]).unwrap_err(), HpackError::Flood);
}

#[test]
fn too_large_lists_are_refused_and_bombs_stop_at_once() {
    let limits = HeaderLimits { max_size: 100, max_fields: 256 };
    let mut decoder = Decoder::new(4096);
    let mut out = Fields::new();
    let mut size = |block: &[u8], out: &mut Fields| decoder.decode(block, out, &limits);
    let _ = size(&insertion(b"a", &[b'x'; 67]), &mut out).unwrap();
    assert_eq!((out.len(), out.size()), (1, 100));
    assert_eq!(size(&[0xbe], &mut out), Ok(Verdict::Fits));
    assert_eq!(size(&[0xbe, 0x82], &mut out), Ok(Verdict::TooLarge));
    assert_eq!(out.len(), 1);
    assert_eq!(size(&[0xbe; 4], &mut out), Ok(Verdict::TooLarge));
    assert_eq!(size(&[0xbe, 0xbe, 0xbe, 0xbe, 0x82], &mut out), Err(HpackError::Flood));
    // How a refusal has to look is told by fields that may stand behind the end.
    let large = [&insertion(b"b", &[b'x'; 68])[..], &insertion(b"origin", b"o")].concat();
    let late = [&large[..], &insertion(b"content-type", b"a"), &insertion(b"content-type", b"b")];
    assert_eq!(size(&late.concat(), &mut out), Ok(Verdict::TooLarge));
    let kept: Vec<_> = out.iter().map(|field| (field.name, field.value)).collect();
    assert_eq!(kept, [(&b"origin"[..], &b"o"[..]), (b"content-type", b"a")]);
    // A field that would fit again after one that did not is not stored: the list has no gaps.
    let block = [&[0x82][..], &insertion(b"b", &[b'x'; 67]), &[0x82]].concat();
    assert_eq!(size(&block, &mut out), Ok(Verdict::TooLarge));
    assert_eq!(out.len(), 1);
}

#[test]
fn every_cut_of_a_block_is_an_error_or_a_shorter_list() {
    let mut encoder = Encoder::new();
    encoder.set_max_table(1000);
    let list = [
        Field::new(b":method", b"POST"),
        Field::new(b":path", b"/ringway.echo.v1.Echo/Unary"),
        Field::new(b"grpc-timeout", b"10S"),
        Field { never_indexed: true, ..Field::new(b"authorization", b"Bearer secret") },
        Field::new(b"x-long", &[b'l'; 300]),
        Field::new(b"x-octets", &[0xff; 20]),
    ];
    let block = encode(&mut encoder, &list);
    let mut whole = 0;
    for cut in 0..=block.len() {
        match decode(&mut Decoder::new(4096), &block[..cut]) {
            Ok((Verdict::Fits, out)) => {
                whole += 1;
                assert!(out.iter().zip(list).all(|(got, sent)| got == sent));
            }
            Ok((Verdict::TooLarge, _)) => panic!("cut at {cut}"),
            Err(error) => assert_eq!(error, malformed(Malformation::Truncated), "cut at {cut}"),
        }
    }
    // Nothing, the size update, and each of the six fields.
    assert_eq!(whole, 8);
}

fn constant_head() -> Vec<Field<'static>> {
    [
        (&b":method"[..], &b"POST"[..]),
        (b":scheme", b"http"),
        (b":path", b"/ringway.echo.v1.Echo/Unary"),
        (b":authority", b"gateway.example.com:10081"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"grpc-go/1.75.0"),
        (b"te", b"trailers"),
        (b"authorization", b"Bearer nvapi-abcdefghijklmnopqrstuvwxyz0123456789"),
        (b"function-id", b"11111111-1111-4111-8111-111111111111"),
        (b"grpc-accept-encoding", b"identity, deflate, gzip"),
        (b"x-empty", b""),
        (b"", b"nameless"),
    ]
    .map(|(name, value)| Field::new(name, value))
    .to_vec()
}

#[test]
fn a_repeated_head_is_an_octet_a_field() {
    let mut encoder = Encoder::new();
    let list = constant_head();
    let first = encode(&mut encoder, &list);
    let generation = encoder.generation();
    let second = encode(&mut encoder, &list);
    assert!(first.len() > 150);
    assert_eq!(second.len(), list.len());
    assert_eq!(encode(&mut encoder, &list), second);
    assert_eq!(encoder.generation(), generation);
}

#[test]
fn what_changes_each_time_does_not_flush_the_table() {
    let mut encoder = Encoder::new();
    let mut decoder = Decoder::new(4096);
    let head = constant_head();
    let mut generations = Vec::new();
    for call in 0..1000u32 {
        let trace = format!("00-{:032x}-{call:016x}-01", u128::from(call) << 64 | 7);
        let id = format!("{call:032x}");
        let left = format!("{}m", 10_000 - call);
        let mut list = head.clone();
        list.push(Field::new(b"traceparent", trace.as_bytes()));
        list.push(Field::new(b"x-request-id", id.as_bytes()));
        list.push(Field::new(b"grpc-timeout", left.as_bytes()));
        list.push(Field::new(b"content-length", left.as_bytes()));
        let block = encode(&mut encoder, &list);
        generations.push(encoder.generation());
        let (_, out) = decode(&mut decoder, &block).unwrap();
        assert!(out.iter().eq(list.iter().copied()));
    }
    assert_eq!(generations[0], generations[999]);
}

#[test]
fn values_of_one_name_that_take_turns_are_indexed_in_the_end() {
    let mut encoder = Encoder::new();
    let mut size = 0;
    for call in 0..9 {
        let value = [b"red", b"sea", b"sky"][call % 3];
        size = encode(&mut encoder, &[Field::new(b"x-colour", value)]).len();
    }
    assert_eq!(size, 1);
}

#[test]
fn paths_are_indexed_at_once() {
    let mut encoder = Encoder::new();
    for method in [&b"/a.B/One"[..], b"/a.B/Two", b"/a.B/Three"] {
        assert!(encode(&mut encoder, &[Field::new(b":path", method)]).len() > 1);
        assert_eq!(encode(&mut encoder, &[Field::new(b":path", method)]).len(), 1);
    }
}

#[test]
fn values_that_only_differ_where_the_index_does_not_look_are_told_apart() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
    let values: Vec<Vec<u8>> = (0..25u8)
        .map(|n| {
            let mut value = vec![b'v'; 100];
            value[20] = b'a' + n;
            value
        })
        .collect();
    for round in 0..6 {
        // First few enough to be found, then more than are compared, then more than the table holds.
        let list: Vec<Field<'_>> =
            values.iter().take(5 + 4 * round).map(|value| Field::new(b":path", value)).collect();
        for repeat in 0..3 {
            let block = encode(&mut encoder, &list);
            assert!(round > 0 || repeat == 0 || block.len() == list.len());
            let (_, out) = decode(&mut decoder, &block).unwrap();
            assert!(out.iter().eq(list.iter().copied()));
            assert_eq!(encoder.table_size(), decoder.table_size());
        }
    }
}

#[test]
fn some_fields_never_enter_the_table() {
    let long = [b'j'; 1025];
    let list = [
        Field::new(b"grpc-timeout", b"10S"),
        Field::new(b"grpc-message", b"no"),
        Field::new(b"content-length", b"12"),
        Field::new(b"date", b"Mon, 21 Oct 2013 20:13:21 GMT"),
        Field::new(b"set-cookie", b"a=b"),
        Field::new(b"authorization", &long),
        Field { never_indexed: true, ..Field::new(b":path", b"/secret") },
        Field { never_indexed: true, ..Field::new(b":method", b"GET") },
    ];
    let mut encoder = Encoder::new();
    for _ in 0..3 {
        let block = encode(&mut encoder, &list);
        let (_, out) = decode(&mut Decoder::new(4096), &block).unwrap();
        assert!(out.iter().eq(list));
    }
    assert_eq!((encoder.table_size(), encoder.generation()), (0, 0));
}

#[test]
fn never_indexed_stays_so_although_the_table_has_it() {
    let mut encoder = Encoder::new();
    let open = Field::new(b"authorization", b"Bearer x");
    encode(&mut encoder, &[open]);
    let block = encode(&mut encoder, &[Field { never_indexed: true, ..open }]);
    assert_eq!(block[0] & 0xf0, 0x10);
    assert_eq!(block[1..], *b"\x08\x08Bearer x", "name 23 is 15 + 8");
}

#[test]
fn a_new_value_of_a_dynamic_name_refers_to_the_name() {
    let mut encoder = Encoder::new();
    encode(&mut encoder, &[Field::new(b"function-id", b"one"), Field::new(b"te", b"trailers")]);
    let block = encode(&mut encoder, &[Field::new(b"function-id", b"0%0%")]);
    // 4 octets of 5, 6, 5 and 6 bits are 3 octets of Huffman code; index 63 is the prefix's 63 + 0.
    assert_eq!(block[..3], [0x7f, 0x00, 0x83]);
    assert_eq!(block.len(), 6);
}

#[test]
fn entries_above_three_quarters_of_the_table_stay_out() {
    let mut encoder = Encoder::new();
    encoder.set_max_table(200);
    let fits = vec![b'v'; 150 - 32 - 5];
    encode(&mut encoder, &[Field::new(b":path", &fits)]);
    assert_eq!(encoder.table_size(), 150);
    let mut encoder = Encoder::new();
    encoder.set_max_table(200);
    let above = vec![b'v'; 151 - 32 - 5];
    encode(&mut encoder, &[Field::new(b":path", &above)]);
    assert_eq!(encoder.table_size(), 0);
}

#[test]
fn size_updates_say_the_smallest_and_the_last_maximum() {
    let mut encoder = Encoder::new();
    let begin = |encoder: &mut Encoder| encode(encoder, &[]);
    assert!(begin(&mut encoder).is_empty());
    encoder.set_max_table(65_536);
    assert!(begin(&mut encoder).is_empty(), "more than 4096 is not used");
    encoder.set_max_table(0);
    encoder.set_max_table(10);
    encoder.set_max_table(1 << 31);
    assert_eq!(begin(&mut encoder), [0x20, 0x3f, 0xe1, 0x1f]);
    assert!(begin(&mut encoder).is_empty());
    encoder.set_max_table(20);
    encoder.set_max_table(10);
    assert_eq!(begin(&mut encoder), [0x2a]);
    encoder.set_max_table(20);
    assert_eq!(begin(&mut encoder), [0x34]);
}

#[test]
fn a_shrunk_table_is_shared_by_both_sides() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
    let head = constant_head();
    for size in [4096, 300, 4096, 0, 0, 120, 64, 4096] {
        encoder.set_max_table(size);
        for _ in 0..3 {
            let block = encode(&mut encoder, &head);
            let (_, out) = decode(&mut decoder, &block).unwrap();
            assert!(out.iter().eq(head.iter().copied()));
            assert_eq!(encoder.table_size(), decoder.table_size());
            assert!(encoder.table_size() <= size);
        }
    }
}

#[test]
fn huffman_is_used_where_it_is_shorter() {
    let mut encoder = Encoder::new();
    let block = encode(&mut encoder, &[Field::new(b":path", b"/\\\\\\\\")]);
    assert_eq!(block, b"\x44\x05/\\\\\\\\");
    let block = encode(&mut encoder, &[Field::new(b":path", b"/aaaaaaa")]);
    assert_eq!(block.len(), 2 + huffman::encoded_len(b"/aaaaaaa"));
    assert_eq!(block[1] & 0x80, 0x80);
}
