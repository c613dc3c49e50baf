//! Header blocks: decoded, encoded, and decoded again.

use super::{pairs, take};
use ringway_proto::fields::{FIELD_OVERHEAD, Fields, Token, name_is_valid, value_is_valid};
use ringway_proto::hpack::{Decoder, Encoder, HeaderLimits, LATE_FIELD, TABLE_SIZE, Verdict};

/// Blocks behind a length byte each; what one leaves in the table the next may use.
pub fn hpack(mut input: &[u8]) {
    let limits = HeaderLimits { max_size: 4096, max_fields: 40 };
    let (mut decoder, mut encoder) = (Decoder::new(TABLE_SIZE), Encoder::new());
    let mut peer = Decoder::new(TABLE_SIZE);
    // What is kept of a list that is too large may be over its limits, by little.
    let kept = HeaderLimits {
        max_size: limits.max_size + LATE_FIELDS * LATE_FIELD,
        max_fields: limits.max_fields + LATE_FIELDS,
    };
    let (mut list, mut again, mut block) = (Fields::new(), Fields::new(), Vec::new());
    while !input.is_empty() {
        let len = (take(&mut input) as usize).min(input.len());
        let (this, rest) = input.split_at(len);
        input = rest;
        let generation = decoder.generation();
        let Ok(verdict) = decoder.decode(this, &mut list, &limits) else { return };
        assert!(decoder.table_size() <= TABLE_SIZE);
        check_list(&list, verdict, if verdict == Verdict::Fits { &limits } else { &kept });
        if decoder.generation() == generation && verdict == Verdict::Fits {
            // Nothing was inserted, so the same block means the same list.
            assert_eq!(decoder.decode(this, &mut again, &limits), Ok(Verdict::Fits));
            assert_eq!(pairs(&list), pairs(&again));
        }
        encoder.set_max_table(usize::from(len as u8) * 32);
        block.clear();
        encoder.begin(&mut block);
        list.iter().for_each(|field| encoder.field(field, &mut block));
        assert_eq!(peer.decode(&block, &mut again, &kept), Ok(Verdict::Fits));
        assert!(list.iter().eq(again.iter()), "{list:?} became {again:?}");
        assert_eq!(encoder.table_size(), peer.table_size());
    }
}

/// `content-type` and `origin`, wherever they stand.
const LATE_FIELDS: usize = 2;

fn check_list(list: &Fields, verdict: Verdict, limits: &HeaderLimits) {
    assert!(list.len() <= limits.max_fields && list.size() <= limits.max_size);
    let size = |(name, value): &(Vec<u8>, Vec<u8>)| name.len() + value.len() + FIELD_OVERHEAD;
    assert_eq!(list.size(), pairs(list).iter().map(size).sum());
    assert!(list.iter().all(|field| field.token == Token::of(field.name)));
    let invalid = list.iter().any(|f| !name_is_valid(f.name) || !value_is_valid(f.value));
    // Of a list that does not fit, the fields that were left out count too.
    assert!(list.is_malformed() == invalid || verdict == Verdict::TooLarge && !invalid);
}
