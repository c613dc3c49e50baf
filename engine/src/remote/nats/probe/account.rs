//! What the gateway's account may, and how much of it.

use async_nats::jetstream::account::Account;
use uuid::Uuid;

use super::super::super::finding::Finding;
use super::super::rights::Right;
use super::asked::{Said, ask, publish};
use super::{Look, is_full};

/// A version that nobody has: nothing is in its way, and nothing comes of it.
const NO_VERSION: &str = "00000000-0000-4000-8000-000000000000";

/// What a right is about.
#[derive(Clone, Copy)]
enum Cost {
    /// Without it there are no sessions, or none is found again: what then is not.
    Much(&'static str),
    /// Without it this is not done.
    Little(Right),
}

/// The account's part in JetStream. False if there is none, or nothing can be asked.
pub(super) async fn examine(look: &Look<'_>, found: &mut Vec<Finding>) -> bool {
    const NAME: &str = "nats_account";
    let answer = match ask(look.link, look.heard, "$JS.API.INFO", "").await {
        Said::Answer(answer) => answer,
        Said::Deaf => {
            let fix = "allow the account to subscribe to _INBOX.>";
            found.push(Finding::broken(NAME, "it hears no answer to what it asks", fix));
            return false;
        }
        // Only the making of the bucket asks about the account: the subjects say what it costs.
        Said::Denied => {
            found.push(Finding::poor(NAME, "it may not be asked about", "allow $JS.API.INFO"));
            return true;
        }
        Said::Nobody => {
            let fix = "start the servers with JetStream (`-js`), and let the account use it";
            found.push(Finding::broken(NAME, "JetStream does not answer", fix));
            return false;
        }
        Said::Silence(why) => {
            let fix = "look at nats-server's log: has JetStream a leader?";
            found.push(Finding::broken(NAME, format!("JetStream does not answer ({why})"), fix));
            return false;
        }
    };
    if let Some(why) = answer["error"]["description"].as_str() {
        let fix = "let the account use JetStream: `jetstream: enabled` in its part of the server's \
                   file, or limits for it in its JWT";
        found.push(Finding::broken(NAME, why, fix));
        return false;
    }
    match serde_json::from_value::<Account>(answer) {
        Ok(account) => found.push(used(NAME, &account)),
        Err(error) => {
            let seen = format!("JetStream's answer is not understood ({error})");
            found.push(Finding::poor(NAME, seen, "update the gateway or nats-server"));
        }
    }
    true
}

/// How much of its limits the account uses. Everything here lies in memory.
fn used(name: &str, account: &Account) -> Finding {
    let limit = |limit: Option<i64>| limit.and_then(|limit| u64::try_from(limit).ok());
    let memory = (account.memory, limit(account.limits.max_memory));
    let streams = (account.streams as u64, limit(account.limits.max_streams));
    let consumers = (account.consumers as u64, limit(account.limits.max_consumers));
    let all = [("octets of memory", memory), ("streams", streams), ("consumers", consumers)];
    let shown = |(what, (used, limit)): &(&str, (u64, Option<u64>))| match limit {
        Some(limit) => format!("{used} of {limit} {what}"),
        None => format!("{used} {what}, without a limit"),
    };
    let full =
        all.iter().find(|(_, (used, limit))| limit.is_some_and(|limit| is_full(*used, limit)));
    match full {
        Some(part) => {
            let fix = "raise the account's limits in JetStream, or take away streams that nobody \
                       uses";
            Finding::poor(name, shown(part), fix)
        }
        None => Finding::fine(name, all.iter().map(shown).collect::<Vec<_>>().join("; ")),
    }
}

/// Each subject that a gateway publishes to.
pub(super) async fn subjects(look: &Look<'_>, found: &mut Vec<Finding>) {
    let region = look.region;
    let version = match look.versions {
        Some([version, ..]) => version.to_string(),
        _ => NO_VERSION.into(),
    };
    let id = Uuid::nil();
    let lookup = format!("stateful_session_lookup_{region}");
    let bucket = format!("KV_ringway_nodes_{region}");
    let (queue, none) = (format!("rq_{region}_{version}"), format!("rq_{region}_{NO_VERSION}"));
    let work = Cost::Much("work cannot be queued, and no session begins");
    let streaming = Cost::Much("streaming functions cannot be called");
    let again = Cost::Much("no session gets another tunnel, and none is resumed elsewhere");
    let resume = Cost::Much("sessions of other gateways cannot be looked up");
    let keep = Cost::Much("the stream of registrations cannot be made");
    let (nodes, make) = (Cost::Little(Right::Nodes), Cost::Little(Right::Make));
    let own = look.versions.is_some();
    // What a stream would take is published so that none does.
    let published = [
        (format!("rq.{region}.{version}.{id}"), work, true),
        (format!("$KV.ringway_nodes_{region}.probe"), nodes, true),
    ];
    // Nobody listens there, or a request without its body is refused.
    let asked = [
        (format!("llsrq.default.{NO_VERSION}.{id}"), streaming, true),
        (format!("stateful_session.reconnect.{id}"), again, true),
        (format!("$JS.API.STREAM.INFO.{lookup}"), resume, true),
        (format!("$JS.API.STREAM.CREATE.{lookup}"), keep, true),
        (
            format!("$JS.API.DIRECT.GET.{lookup}.stateful_session.lookup.{region}.x.{id}"),
            resume,
            true,
        ),
        (format!("$JS.API.STREAM.MSG.GET.{lookup}"), resume, true),
        (format!("$JS.API.STREAM.CREATE.{queue}"), make, own),
        (format!("$JS.API.CONSUMER.CREATE.{queue}.{queue}_workers"), make, own),
        (format!("$JS.API.STREAM.INFO.{queue}"), Cost::Little(Right::List), true),
        ("$JS.API.STREAM.NAMES".into(), Cost::Little(Right::List), true),
        (format!("$JS.API.CONSUMER.INFO.{queue}.{queue}_workers"), Cost::Little(Right::Look), true),
        (format!("$JS.API.STREAM.MSG.GET.{queue}"), Cost::Little(Right::Look), true),
        // With a body it would empty a stream that is there.
        (format!("$JS.API.STREAM.PURGE.{none}"), Cost::Little(Right::Purge), true),
        (format!("$JS.API.STREAM.INFO.{bucket}"), nodes, true),
        (format!("$JS.API.STREAM.CREATE.{bucket}"), nodes, true),
        (format!("$JS.API.DIRECT.GET.{bucket}.$KV.ringway_nodes_{region}.probe"), nodes, true),
    ];
    let (link, heard) = (look.link, look.heard);
    for (subject, cost, wanted) in published {
        if wanted {
            found.push(judged(&subject, cost, &publish(link, heard, &subject).await));
        }
    }
    for (subject, cost, wanted) in asked {
        if wanted {
            found.push(judged(&subject, cost, &ask(link, heard, &subject, "{}").await));
        }
    }
}

fn judged(subject: &str, cost: Cost, said: &Said) -> Finding {
    const NAME: &str = "nats_permission";
    match (said, cost) {
        (Said::Denied | Said::Deaf, Cost::Much(lost)) => {
            let seen = format!("{subject} may not be published to: {lost}");
            Finding::broken(NAME, seen, format!("allow the account to publish to {subject}"))
        }
        (Said::Denied | Said::Deaf, Cost::Little(right)) => {
            let (lost, fix) = right.cost().split_once("; ").unwrap_or((right.cost(), "allow it"));
            Finding::poor(NAME, format!("{subject} may not be published to: {lost}"), fix)
        }
        (Said::Silence(why), _) => {
            let seen = format!("{subject}: no answer ({why})");
            Finding::poor(NAME, seen, "look at nats-server's log: has the stream a leader?")
        }
        (Said::Answer(_) | Said::Nobody, _) => {
            Finding::fine(NAME, format!("{subject} may be used"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::super::finding::Grade;
    use super::*;

    #[test]
    fn a_right_that_is_missing_is_as_bad_as_what_it_costs() {
        let work = Cost::Much("no session begins");
        let broken = judged("rq.r.v.x", work, &Said::Denied);
        assert_eq!(broken.grade, Grade::Broken);
        assert!(broken.fix.contains("publish to rq.r.v.x"), "{broken:?}");
        let poor = judged("$JS.API.STREAM.NAMES", Cost::Little(Right::List), &Said::Denied);
        assert_eq!(poor.grade, Grade::Poor);
        assert!(poor.seen.contains("stays queued"), "{poor:?}");
        assert!(poor.fix.starts_with("allow it to publish to"), "{poor:?}");
        assert_eq!(judged("x", work, &Said::Nobody).grade, Grade::Fine);
    }
}
