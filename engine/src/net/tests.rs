use super::*;

fn net() -> (Net, ConnId) {
    let mut net = Net::new(Pool::new(2, 64 * 1024));
    let conn = net.open();
    (net, conn)
}

fn queued_bytes(net: &Net, conn: ConnId) -> Vec<u8> {
    let queue = net.output(conn).unwrap().queue();
    queue.iter().flat_map(|s| net.pool.bytes(*s).to_vec()).collect()
}

#[test]
fn small_writes_become_one_segment() {
    let (mut net, conn) = net();
    net.put(conn, b"abc");
    net.sink(conn).put(b"def");
    assert_eq!(net.output(conn).unwrap().queue().len(), 1);
    assert_eq!(queued_bytes(&net, conn), b"abcdef");
    net.sent(conn, 4);
    net.put(conn, b"g");
    assert_eq!(queued_bytes(&net, conn), b"efg");
    net.sent(conn, 3);
    assert_eq!(net.pool.chunks_live(), 0, "an idle connection owns no chunk");
}

#[test]
fn a_write_longer_than_a_chunk_is_whole() {
    let (mut net, conn) = net();
    let long: Vec<u8> = (0..CHUNK_BYTES * 2 + 5).map(|i| i as u8).collect();
    net.put(conn, &long);
    assert_eq!(queued_bytes(&net, conn), long);
    net.sent(conn, long.len());
    assert_eq!(net.pool.chunks_live(), 0);
}

#[test]
fn adjoining_ranges_of_a_receive_block_are_sent_as_one() {
    let (mut net, conn) = net();
    let block = net.pool.lend().unwrap();
    let whole = net.pool.filled(block, 100, true);
    net.push(conn, whole.part(0, 40));
    net.push(conn, whole.part(40, 60));
    net.pool.release(whole);
    assert_eq!(net.output(conn).unwrap().queue().len(), 1);
    net.copy_out(conn);
    assert_eq!((net.copied_out, net.queued(conn)), (100, 100));
    assert!(!net.pool.is_ring(net.output(conn).unwrap().queue()[0]));
}

#[test]
fn copying_out_keeps_the_order_and_packs_small_pieces() {
    let (mut net, conn) = net();
    let block = net.pool.lend().unwrap();
    let whole = net.pool.filled(block, 90, false);
    for (i, byte) in net.pool.bytes_mut(whole).iter_mut().enumerate() {
        *byte = i as u8;
    }
    for i in 0..30 {
        net.push(conn, whole.part(i * 3, 2));
        net.put(conn, b"-");
    }
    net.pool.release(whole);
    let before = queued_bytes(&net, conn);
    net.copy_out(conn);
    assert_eq!(queued_bytes(&net, conn), before);
    // One chunk is the connection's own, one is shared by all bytes that wait.
    assert_eq!((net.copied_out, net.pool.chunks_live()), (60, 2));
    assert_eq!(net.pool.lend(), Some(block), "nothing holds the block any more");
    net.sent(conn, before.len());
    assert_eq!(net.pool.chunks_live(), 0);
}

#[test]
fn a_closed_id_takes_no_output_and_its_slot_returns_with_another_generation() {
    let (mut net, conn) = net();
    net.put(conn, b"last words");
    net.close(conn, Close::Flush);
    net.put(conn, b"too late");
    assert_eq!(queued_bytes(&net, conn), b"last words");
    net.free(conn);
    let next = net.open();
    assert!(next.slot == conn.slot && next != conn);
    net.put(conn, b"to nobody");
    assert_eq!(net.queued(next), 0);
    assert_eq!(net.pool.chunks_live(), 0);
}

#[test]
fn what_waits_shares_chunks_and_frees_them() {
    let (mut net, _) = net();
    let block = net.pool.lend().unwrap();
    let whole = net.pool.filled(block, 30_000, true);
    net.pool.bytes_mut(whole)[29_999] = 9;
    let mut waiting = VecDeque::new();
    net.stash_bytes(b"small", &mut waiting);
    net.stash(whole, &mut waiting);
    net.pool.release(whole);
    assert_eq!(waiting.iter().map(|s| s.len).sum::<u32>(), 30_005);
    assert_eq!(net.pool.bytes(*waiting.back().unwrap()).last(), Some(&9));
    assert_eq!(net.pool.chunks_live(), 2);
    waiting.drain(..).for_each(|s| net.pool.release(s));
    net.end_stash();
    assert_eq!(net.pool.chunks_live(), 0);
}

#[test]
fn an_empty_range_is_not_queued() {
    let (mut net, conn) = net();
    let chunk = net.pool.chunk();
    net.push(conn, chunk.part(5, 0));
    net.put(conn, b"");
    net.pool.release(chunk);
    assert!(net.output(conn).unwrap().queue().is_empty());
    assert_eq!(net.pool.chunks_live(), 0);
}

#[test]
fn dirty_connections_are_listed_once() {
    let (mut net, conn) = net();
    net.put(conn, b"a");
    net.put(conn, b"b");
    let mut dirty = Vec::new();
    net.take_dirty(&mut dirty);
    assert_eq!(dirty, [conn]);
    assert!(net.is_quiet());
}
