//! What a client asks for: mostly what it may have, sometimes what it must not get.

use super::h2::List;
use super::ledger::{Exchange, Half, Named, maker};
use super::peer::{Comeback, Stage};
use super::plan::{F1, FUNCTIONS, KEYS, V3};

/// A request before it is sent.
pub(crate) struct Request {
    key: &'static str,
    tenant: &'static str,
    function: &'static str,
    version: &'static str,
    /// The version field is sent even if it is empty.
    versioned: bool,
    named: Named,
    /// The gRPC code with which the request must be refused.
    hopeless: Option<u8>,
    grpc: bool,
    method_head: bool,
    /// The head is the same as in the other twins of the connection.
    twin: bool,
    /// The head has more fields than the gateway allows.
    giant: bool,
}

impl Request {
    pub(crate) fn new(client: usize, twins: bool, stage: &mut Stage<'_>) -> Self {
        let seed = &mut *stage.seed;
        let twin = twins && seed.chance(80);
        let choice = if twin { client } else { seed.below(100) };
        let (key, tenant) = KEYS[choice % KEYS.len()];
        let allowed: Vec<_> = FUNCTIONS.iter().filter(|f| f.2.contains(&tenant)).collect();
        let (function, version, _) = *allowed[choice / KEYS.len() % allowed.len()];
        let mut request = Self {
            key,
            tenant,
            function,
            version: if choice.is_multiple_of(7) { "" } else { version },
            versioned: choice.is_multiple_of(2),
            named: Named::Nothing,
            hopeless: None,
            grpc: twin || seed.chance(60),
            method_head: !twin && seed.chance(3),
            twin,
            giant: false,
        };
        if twin {
            return request;
        }
        if seed.chance(stage.plan.strangers) {
            request.estrange(stage);
        } else if seed.chance(stage.plan.returns) {
            request.come_back(stage);
        }
        if request.hopeless.is_none() && stage.seed.chance(stage.plan.giants) {
            (request.giant, request.hopeless) = (true, Some(8));
        }
        request
    }

    /// A request with which a client comes back to its session.
    pub(crate) fn back(to: &Comeback, stage: &mut Stage<'_>) -> Self {
        Self {
            key: to.key,
            tenant: to.tenant,
            function: to.function,
            version: "",
            versioned: stage.seed.chance(50),
            named: Named::Session(to.id.clone()),
            hopeless: (to.tenant != to.owner).then_some(13),
            grpc: stage.seed.chance(60),
            method_head: false,
            twin: false,
            giant: false,
        }
    }

    /// One of many requests with the same head, sent after the one that named the session.
    pub(crate) fn alike(to: &Comeback) -> Self {
        Self {
            key: to.key,
            tenant: to.tenant,
            function: to.function,
            version: "",
            versioned: false,
            named: Named::Nothing,
            hopeless: None,
            grpc: true,
            method_head: false,
            twin: true,
            giant: false,
        }
    }

    /// Turns this into a request for something that nobody may have.
    fn estrange(&mut self, stage: &mut Stage<'_>) {
        let seed = &mut *stage.seed;
        match seed.below(4) {
            0 => (self.key, self.hopeless) = ("nobodys-key", Some(16)),
            1 => {
                self.function = "99999999-1111-4111-8111-111111111111";
                self.hopeless = Some(5);
            }
            2 => (self.function, self.version, self.hopeless) = (F1, V3, Some(5)),
            _ => {
                let (a, b) = (seed.next(), seed.next());
                self.named = Named::Nobody(uuid::Uuid::from_u64_pair(a, b).to_string());
                self.hopeless = Some(5);
            }
        }
    }

    /// Names a session that was met before, perhaps another tenant's.
    fn come_back(&mut self, stage: &mut Stage<'_>) {
        let met = stage.ledger.met.len();
        if met == 0 {
            return;
        }
        // The sessions that were met last are the likeliest to be alive.
        let at = met - 1 - stage.seed.below(met.min(4));
        let (id, owner, function) = stage.ledger.met[at].clone();
        (self.function, self.version) = (function, "");
        self.hopeless = (owner != self.tenant).then_some(13);
        self.named = Named::Session(id);
    }

    /// The fields of the head, in order.
    pub(crate) fn fields(&self, stage: &mut Stage<'_>) -> List {
        let mut fields: List = Vec::new();
        let mut put = |name: &str, value: &str| fields.push((name.into(), value.into()));
        put(":method", if self.method_head { "HEAD" } else { "POST" });
        put(":scheme", "http");
        put(":path", if self.grpc { "/sim.Service/Call" } else { "/plain?x=1" });
        put(":authority", "gateway");
        put("content-type", if self.grpc { "application/grpc" } else { "text/plain" });
        put("te", "trailers");
        put("authorization", &format!("Bearer {}", self.key));
        put("function-id", self.function);
        if self.versioned || !self.version.is_empty() {
            put("function-version-id", self.version);
        }
        if let Named::Session(id) | Named::Nobody(id) = &self.named {
            put("nvcf-reqid", id);
        }
        if !self.twin && stage.seed.chance(30) {
            put("x-filler", &"f".repeat(stage.seed.size(3000)));
        }
        if self.giant {
            (0..1100).for_each(|_| put("x-giant", "x"));
        }
        fields
    }

    pub(crate) fn exchange(
        self,
        (client, http1): (usize, bool),
        most_down: usize,
        stage: &mut Stage<'_>,
    ) -> Exchange {
        let ledger = &mut *stage.ledger;
        let denied = stage.plan.plane.is_some_and(|manners| manners.enemy == Some(self.key));
        // A head that is too large is refused before the control plane is asked.
        let hopeless = if denied && !self.giant { Some(7) } else { self.hopeless };
        let expects = match &self.named {
            Named::Session(id) if hopeless.is_none() => {
                let first = !ledger.exchanges.iter().any(|other| other.client == client);
                ledger.parking.expects((id, http1, first), stage.now, &mut ledger.exchanges)
            }
            _ => None,
        };
        let ended = |id: &String| maker(id).is_some_and(|node| ledger.dead.contains(&node));
        let too_late = matches!(&self.named, Named::Session(id) if ended(id));
        Exchange {
            client,
            too_late,
            key: self.key,
            began: stage.now,
            expects,
            excuse: ledger.is_risky(client, self.tenant, &self.named)
                || ledger.parking.met_its_end(client, &ledger.exchanges),
            tenant: self.tenant,
            function: self.function,
            version: self.version,
            named: self.named,
            grpc: self.grpc,
            method_head: self.method_head,
            hopeless,
            twin: self.twin,
            http1,
            upgrade: false,
            length: None,
            early: false,
            up: Half::default(),
            down: Half::default(),
            interim_sent: 0,
            interim_got: 0,
            tunnel: None,
            outcome: None,
            quit: false,
            told: 0,
            most_down,
        }
    }
}
