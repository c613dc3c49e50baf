use super::*;

fn border() -> (Border, ConnId) {
    let mut border = Border::new(Pool::new(2, 64 * 1024));
    let conn = border.open();
    (border, conn)
}

fn queued_bytes(border: &Border, conn: ConnId) -> Vec<u8> {
    let queue = border.output(conn).unwrap().queue();
    queue.iter().flat_map(|s| border.pool.bytes(*s).to_vec()).collect()
}

#[test]
fn small_writes_become_one_segment() {
    let (mut border, conn) = border();
    border.put(conn, b"abc");
    border.sink(conn).put(b"def");
    assert_eq!(border.output(conn).unwrap().queue().len(), 1);
    assert_eq!(queued_bytes(&border, conn), b"abcdef");
    border.sent(conn, 4);
    border.put(conn, b"g");
    assert_eq!(queued_bytes(&border, conn), b"efg");
    border.sent(conn, 3);
    assert_eq!(border.pool.chunks_live(), 0, "an idle connection owns no chunk");
}

#[test]
fn a_write_longer_than_a_chunk_is_whole() {
    let (mut border, conn) = border();
    let long: Vec<u8> = (0..CHUNK_BYTES * 2 + 5).map(|i| i as u8).collect();
    border.put(conn, &long);
    assert_eq!(queued_bytes(&border, conn), long);
    border.sent(conn, long.len());
    assert_eq!(border.pool.chunks_live(), 0);
}

#[test]
fn adjoining_ranges_of_a_receive_block_are_sent_as_one() {
    let (mut border, conn) = border();
    let block = border.pool.lend().unwrap();
    let whole = border.pool.filled(block, 100, true);
    border.push(conn, whole.part(0, 40));
    border.push(conn, whole.part(40, 60));
    border.pool.release(whole);
    assert_eq!(border.output(conn).unwrap().queue().len(), 1);
    border.copy_out(conn);
    assert_eq!((border.copied_out, border.queued(conn)), (100, 100));
    assert!(!border.pool.is_ring(border.output(conn).unwrap().queue()[0]));
}

#[test]
fn copying_out_keeps_the_order_and_packs_small_pieces() {
    let (mut border, conn) = border();
    let block = border.pool.lend().unwrap();
    let whole = border.pool.filled(block, 90, false);
    for (i, byte) in border.pool.bytes_mut(whole).iter_mut().enumerate() {
        *byte = i as u8;
    }
    for i in 0..30 {
        border.push(conn, whole.part(i * 3, 2));
        border.put(conn, b"-");
    }
    border.pool.release(whole);
    let before = queued_bytes(&border, conn);
    border.copy_out(conn);
    assert_eq!(queued_bytes(&border, conn), before);
    // One chunk of the connection's own, one shared by all that waits.
    assert_eq!((border.copied_out, border.pool.chunks_live()), (60, 2));
    assert_eq!(border.pool.lend(), Some(block), "nothing holds the block any more");
    border.sent(conn, before.len());
    assert_eq!(border.pool.chunks_live(), 0);
}

#[test]
fn a_closed_id_takes_no_output_and_its_slot_returns_with_another_generation() {
    let (mut border, conn) = border();
    border.put(conn, b"last words");
    border.close(conn, Close::Flush);
    border.put(conn, b"too late");
    assert_eq!(queued_bytes(&border, conn), b"last words");
    border.free(conn);
    let next = border.open();
    assert!(next.slot == conn.slot && next != conn);
    border.put(conn, b"to nobody");
    assert_eq!(border.queued(next), 0);
    assert_eq!(border.pool.chunks_live(), 0);
}

#[test]
fn what_waits_shares_chunks_and_frees_them() {
    let (mut border, _) = border();
    let block = border.pool.lend().unwrap();
    let whole = border.pool.filled(block, 30_000, true);
    border.pool.bytes_mut(whole)[29_999] = 9;
    let mut waiting = VecDeque::new();
    border.stash_bytes(b"small", &mut waiting);
    border.stash(whole, &mut waiting);
    border.pool.release(whole);
    assert_eq!(waiting.iter().map(|s| s.len).sum::<u32>(), 30_005);
    assert_eq!(border.pool.bytes(*waiting.back().unwrap()).last(), Some(&9));
    assert_eq!(border.pool.chunks_live(), 2);
    waiting.drain(..).for_each(|s| border.pool.release(s));
    border.end_stash();
    assert_eq!(border.pool.chunks_live(), 0);
}

#[test]
fn an_empty_range_is_not_queued() {
    let (mut border, conn) = border();
    let chunk = border.pool.chunk();
    border.push(conn, chunk.part(5, 0));
    border.put(conn, b"");
    border.pool.release(chunk);
    assert!(border.output(conn).unwrap().queue().is_empty());
    assert_eq!(border.pool.chunks_live(), 0);
}

#[test]
fn dirty_connections_are_listed_once() {
    let (mut border, conn) = border();
    border.put(conn, b"a");
    border.put(conn, b"b");
    let mut dirty = Vec::new();
    border.take_dirty(&mut dirty);
    assert_eq!(dirty, [conn]);
    assert!(border.is_quiet());
}
