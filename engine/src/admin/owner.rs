//! A session of another gateway: its id names the gateway that made it, and that gateway is asked.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use bytes::Bytes;
use ringway_proto::id::{Node, RequestIds};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use uuid::Uuid;

use super::{Admin, reply};
use crate::control::port::Located;
use crate::question;
use crate::timeline::IdBegin;

/// How long another gateway may take: whoever has asked this gateway waits for both.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most octets of its answer.
const MOST: usize = 4 << 20;
/// What marks a question that is passed on: it is not passed on again.
const BY_US: &str = "1.1 ringway";

/// Where a gateway's admin port is, as far as it is known.
enum Owner {
    /// At this address.
    At(SocketAddr),
    /// This gateway cannot ask it, for this reason.
    Unasked(Why),
}

/// Why a gateway is not asked.
enum Why {
    /// The gateway has ended, and its sessions with it.
    Dead,
    /// The gateway's record has no admin port that others reach, or there is no record.
    Untold,
    /// The configuration says where its relay port is, and nothing of its admin port.
    Configured(SocketAddr),
}

/// A session that this gateway does not know, from the gateway that made its id. `whole`: the full
/// id may be shown. If `wanted` is none, no gateway is asked.
pub(super) async fn answer(admin: &Admin, wanted: Option<IdBegin>, whole: bool) -> Response<Body> {
    let not_found = |text: String| reply::text(StatusCode::NOT_FOUND, text);
    // The first few digits of an id do not say who made it.
    let id = wanted.filter(|_| admin.has_others()).and_then(IdBegin::whole);
    let made = id.and_then(|id| Some((id, RequestIds::maker_of(id)?)));
    let Some((id, owner)) = made.filter(|(_, maker)| *maker != admin.node) else {
        return not_found("no such session\n".into());
    };
    match locate(admin, owner).await {
        Owner::At(address) => match ask(address, (owner, id), whole).await {
            Ok(told) => reply::json(&told),
            Err(fault) => not_found(told(owner, id, (address, &fault))),
        },
        Owner::Unasked(why) => not_found(untold(owner, id, &why)),
    }
}

async fn locate(admin: &Admin, owner: Node) -> Owner {
    let Some(remote) = &admin.remote else {
        let named = admin.others.iter().find(|(number, _)| *number == owner.number());
        return Owner::Unasked(named.map_or(Why::Untold, |(_, at)| Why::Configured(*at)));
    };
    match remote.admin_of(owner).await {
        Located::At(address) => Owner::At(address),
        Located::Dead => Owner::Unasked(Why::Dead),
        Located::Unknown => Owner::Unasked(Why::Untold),
    }
}

/// Why asking brought no session.
enum Fault {
    /// The gateway answers, and knows nothing of the session.
    Unknown,
    /// The gateway does not answer, or something else does.
    Silent(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("it does not know it: it ended too long ago"),
            Self::Silent(why) => write!(f, "it cannot be asked ({why})"),
        }
    }
}

async fn pass_on(address: SocketAddr, id: Uuid) -> Result<(StatusCode, Bytes), String> {
    let text = |error: &dyn fmt::Display| error.to_string();
    let stream = TcpStream::connect(address).await.map_err(|error| text(&error))?;
    let request = Request::get(format!("/sessions/{id}"))
        .header(header::HOST, address.to_string())
        .header(header::VIA, BY_US)
        .body(Body::empty())
        .map_err(|error| text(&error))?;
    question::ask(stream, request, MOST).await
}

async fn ask(address: SocketAddr, (owner, id): (Node, Uuid), whole: bool) -> Result<Value, Fault> {
    let late = |_| Err(format!("no answer within {} s", PATIENCE.as_secs()));
    let answered = timeout(PATIENCE, pass_on(address, id)).await.unwrap_or_else(late);
    let (status, body) = answered.map_err(Fault::Silent)?;
    if status == StatusCode::NOT_FOUND {
        return Err(Fault::Unknown);
    }
    let told = serde_json::from_slice::<Value>(&body).ok().filter(|_| status == StatusCode::OK);
    // Another gateway may have the owner's address by now.
    let is_own = |told: &Value| told["node"] == owner.to_string();
    let Some(mut told) = told.filter(is_own) else {
        return Err(Fault::Silent(format!("something else answers there, with {status}")));
    };
    if whole && let Some(shown) = told.get_mut("requestId") {
        *shown = id.to_string().into();
    }
    Ok(told)
}

fn told(owner: Node, id: Uuid, (address, fault): (SocketAddr, &Fault)) -> String {
    let told = format!("no such session here: it is gateway {owner}'s, at {address}, and {fault}");
    match fault {
        Fault::Unknown => told + "\n",
        Fault::Silent(_) => told + &format!("; ask it: {}\n", command(id, address)),
    }
}

fn untold(owner: Node, id: Uuid, why: &Why) -> String {
    match why {
        Why::Dead => format!("no such session: it was gateway {owner}'s, which has ended\n"),
        Why::Untold => format!(
            "no such session here: it is gateway {owner}'s, which does not say where it can be \
             asked; on its machine: ringway sessions timeline {id}\n"
        ),
        Why::Configured(relay) => format!(
            "no such session here: it is gateway {owner}'s, which is at {}; ask it: {}\n",
            relay.ip(),
            command(id, relay.ip())
        ),
    }
}

fn command(id: Uuid, address: impl fmt::Display) -> String {
    format!("ringway sessions timeline {id} --admin {address}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_be_asked_is_named_with_the_command_that_asks_it() {
        let (owner, id) = (Node::new(2, 0xab).unwrap(), Uuid::nil());
        let at: SocketAddr = "[2001:db8::1]:10083".parse().unwrap();
        let silent = told(owner, id, (at, &Fault::Silent("refused".into())));
        assert!(silent.contains(&owner.to_string()), "{silent}");
        assert!(silent.ends_with(&format!("timeline {id} --admin {at}\n")), "{silent}");
        let gone = told(owner, id, (at, &Fault::Unknown));
        assert!(gone.contains("ended too long ago") && !gone.contains("--admin"), "{gone}");
        let configured = untold(owner, id, &Why::Configured(at));
        assert!(configured.contains("--admin 2001:db8::1\n"), "{configured}");
        for why in [Why::Dead, Why::Untold] {
            assert!(untold(owner, id, &why).contains(&owner.to_string()));
        }
    }
}
