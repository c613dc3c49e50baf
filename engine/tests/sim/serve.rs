//! How a worker answers one request.

use super::h2::{CANCEL, INTERNAL_ERROR, List, REFUSED_STREAM};
use super::peer::Stage;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    AtOnce,
    AfterBytes(usize),
    AfterEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Data,
    Trailers,
    /// The answer is one head with END_STREAM.
    HeadOnly,
    Reset(u32),
}

/// One request being served.
#[derive(Debug)]
pub(crate) struct Serve {
    pub(crate) exchange: usize,
    pub(crate) when: When,
    pub(crate) interim: u32,
    pub(crate) size: usize,
    pub(crate) ending: Ending,
    pub(crate) headed: bool,
    pub(crate) ended: bool,
}

impl Serve {
    pub(crate) fn new(number: usize, stage: &mut Stage<'_>) -> Self {
        let exchange = &stage.ledger.exchanges[number];
        let seed = &mut *stage.seed;
        let size = stage.plan.size(seed).min(exchange.most_down);
        let when = match seed.below(3) {
            0 => When::AtOnce,
            1 => When::AfterBytes(seed.below(5000)),
            _ => When::AfterEnd,
        };
        let reset = stage.plan.resets > 0 && !stage.calm && seed.chance(stage.plan.resets);
        let ending = match seed.below(10) {
            _ if exchange.method_head => Ending::HeadOnly,
            _ if reset => Ending::Reset(seed.pick(&[CANCEL, INTERNAL_ERROR, REFUSED_STREAM, 1, 3])),
            0..5 => Ending::Trailers,
            5..8 => Ending::Data,
            _ => Ending::HeadOnly,
        };
        let size = if ending == Ending::HeadOnly { 0 } else { size };
        let interim = if seed.chance(8) { seed.range(1, 3) as u32 } else { 0 };
        Self { exchange: number, when, interim, size, ending, headed: false, ended: false }
    }
}

pub(crate) fn answer_head(
    serve: &Serve,
    session: &str,
    worker: usize,
    stage: &mut Stage<'_>,
) -> List {
    let exchange = &stage.ledger.exchanges[serve.exchange];
    let mut fields: List = Vec::new();
    let mut put = |name: &str, value: &str| fields.push((name.into(), value.into()));
    put(":status", "200");
    put("content-type", if exchange.grpc { "application/grpc" } else { "text/plain" });
    put("x-sim-worker", &worker.to_string());
    put("x-sim-session", session);
    if !exchange.twin {
        put("x-sim-exchange", &serve.exchange.to_string());
        if stage.seed.chance(20) {
            put("x-filler", &"g".repeat(stage.seed.size(3000)));
        }
        if serve.ending == Ending::Data && stage.seed.chance(20) {
            put("content-length", &serve.size.to_string());
        }
    }
    if serve.ending == Ending::HeadOnly {
        put("grpc-status", "5");
    }
    fields
}
