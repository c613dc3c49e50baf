//! Tests of the loop itself. Components are tested beside their code, and whole shards by the
//! scenarios.

use super::turn::rig::Rig;
use super::*;
use crate::config::Config;

#[test]
fn what_was_put_off_is_seen_to_in_the_next_turn() {
    let mut rig = Rig::with(0, 1, Config::dev());
    let policy = Policy::new(&rig.settings.config.tenants, &rig.settings.config.functions);
    let mut shard = Shard::new(rig.settings, Arc::new(policy));
    let (now, net) = (rig.net.now, &mut rig.net);
    let conn = net.open();
    shard.left.exhaust();
    shard.leave(Fact::Undial { conn });
    shard.settle(net);
    assert!(net.output(conn).is_some_and(|output| output.closing().is_none()));
    assert_eq!(shard.metrics().facts_put_off, 1);
    assert!(!shard.is_empty(), "it is not forgotten");
    shard.now = now;
    assert_eq!(shard.deadline(), Some(now), "nobody sleeps over it");
    shard.turn(net);
    assert!(net.output(conn).is_none_or(|output| output.closing().is_some()));
    assert!(shard.is_empty() && shard.deadline().is_none());
    assert_eq!(shard.metrics().facts_put_off, 1);
}
