//! What a run is made of, drawn from its seed: the configuration, and how often what goes wrong.
//! Most faults are absent from most runs, so that each also meets a quiet world.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ringway::config::{Config, Park};
use ringway::control::local::Policy;

use super::parking::Terms;
use super::plane::Manners;
use super::seed::Seed;
use super::wire::Cut;

pub(crate) const F1: &str = "11111111-1111-4111-8111-111111111111";
pub(crate) const F2: &str = "33333333-3333-4333-8333-333333333333";
pub(crate) const V1: &str = "22222222-2222-4222-8222-222222222222";
pub(crate) const V2: &str = "22222222-2222-4222-8222-222222222223";
pub(crate) const V3: &str = "44444444-4444-4444-8444-444444444444";

/// Key, tenant.
pub(crate) const KEYS: [(&str, &str); 3] =
    [("dev-key", "dev"), ("dev-key-2", "dev"), ("other-key", "other")];

/// Function, version, tenants.
pub(crate) const FUNCTIONS: [(&str, &str, &[&str]); 3] =
    [(F1, V1, &["dev", "other"]), (F1, V2, &["dev"]), (F2, V3, &["dev", "other"])];

pub(crate) const WORKER_KEY: &str = "worker-key";

/// Lines added to the configuration: limits made small, waits made short.
const VARIANTS: [&str; 5] = [
    "",
    "[session]\nwait = \"2s\"\nidle = \"1s\"",
    "[limits]\nstream_window = \"16KiB\"\nstream_window_max = \"32KiB\"\nconnection_buffer = \"64KiB\"\ncore_buffer = \"1MiB\"",
    "[session]\nscope = \"credential\"\n[limits]\nattachments = 3\ndispatch_burst = 4",
    "[limits]\nwork_queue = 2\npending_sessions = 3\npending_per_tenant = 2\nstreams = 4\nqueued_answers = 3",
];

/// Which tunnels of lost clients are kept, in runs where nobody plans to come back.
const KEEPING: [(Park, u64); 4] =
    [(Park::Never, 30), (Park::Auto, 30), (Park::Always, 30), (Park::Auto, 1)];

/// The same for runs whose clients come back: what is kept, how long, and who yields.
const PARKING: [&str; 10] = [
    "",
    "[session]\npark_window = \"2s\"\npark_yield = \"500ms\"",
    "[session]\npark = \"unclean\"\npark_window = \"1s\"\nwait = \"2s\"",
    "[session]\npark = \"always\"\npark_window = \"3s\"\npark_yield = \"100ms\"",
    "[session]\npark = \"always\"\n[limits]\nparked_tunnels = 2\nparked_per_tenant = 1",
    "[session]\npark = \"never\"",
    "[session]\npark_window = \"300ms\"\nidle = \"1s\"",
    "[session]\npark = \"unclean\"\npark_window = \"5s\"\npark_yield = \"1ms\"",
    "[session]\npark = \"always\"\nscope = \"credential\"\npark_window = \"20s\"",
    "[session]\npark = \"unclean\"\n[limits]\nparked_tunnels = 1\nparked_per_tenant = 1\nattachments = 2",
];

/// The one of these by which everything is kept for long, and nobody yields.
const KEPT_LONG: usize = 8;

/// One machine sends so many preludes that prove nothing to one gateway, which is more than are heard.
const FLOOD: usize = 300;

/// A configuration and what is made of it.
pub(crate) struct Rules {
    pub(crate) config: Arc<Config>,
    pub(crate) policy: Arc<Policy>,
}

static RULES: LazyLock<Vec<Rules>> = LazyLock::new(|| {
    let kept = VARIANTS.iter().flat_map(|more| KEEPING.iter().map(move |kept| (more, Some(*kept))));
    let coming_back = PARKING.iter().map(|more| (more, None));
    kept.chain(coming_back).map(|(more, kept)| rules(more, kept)).collect()
});

/// The configuration with these lines, and with this kept of lost clients.
fn rules(more: &str, kept: Option<(Park, u64)>) -> Rules {
    let functions: String = FUNCTIONS
        .iter()
        .map(|(id, version, tenants)| {
            let kind = if kept.is_none() && streams(version) { "streaming" } else { "default" };
            format!(
                "[[function]]\nid = \"{id}\"\nversion = \"{version}\"\ntenants = {tenants:?}\n\
                 worker_keys = [\"{WORKER_KEY}\"]\nkind = \"{kind}\"\n"
            )
        })
        .collect();
    let text = format!(
        "[listen]\nclient = \"127.0.0.1:10081\"\nworker = \"127.0.0.1:10086\"\n\
         [control]\nmode = \"local\"\nadvertise = \"http://127.0.0.1:10086\"\n\
         [[tenant]]\nname = \"dev\"\nclient_keys = [\"dev-key\", \"dev-key-2\"]\n\
         [[tenant]]\nname = \"other\"\nclient_keys = [\"other-key\"]\n{functions}{more}\n"
    );
    let mut config = Config::parse(&text, "sim.toml", ".".as_ref()).expect("a configuration");
    if let Some((park, window)) = kept {
        config.session.park = park;
        config.session.park_window = Duration::from_secs(window);
    }
    let policy = Arc::new(Policy::new(&config.tenants, &config.functions));
    Rules { config: Arc::new(config), policy }
}

/// Whether the function is of the streaming kind, where that matters.
pub(crate) fn streams(version: &str) -> bool {
    version == V2
}

/// What a run does with sessions that outlive their clients, in percent if nothing else is said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Returns {
    /// Clients cut off, in a thousand ticks.
    pub(crate) cuts: u32,
    /// How many come back for one that was cut off, at most.
    pub(crate) copies: usize,
    /// The percentages of those that come when the window has ended, and at the moment when it ends.
    pub(crate) late: u32,
    pub(crate) racing: u32,
    /// The percentages of those that show another tenant's key, or speak another version of HTTP.
    pub(crate) thieves: u32,
    pub(crate) turncoats: u32,
    /// Workers whose client is gone and that leave, or say GOAWAY, in a thousand ticks.
    pub(crate) fates: u32,
    /// Sessions that an operator ends.
    pub(crate) deletes: usize,
    /// Cores that panic or pause while a tunnel changes hands.
    pub(crate) panics: u32,
    pub(crate) pauses: u32,
    /// Sessions a worker can hold.
    pub(crate) slots: usize,
}

/// How many gateways there are, and how often what becomes of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Many {
    pub(crate) nodes: usize,
    pub(crate) deaths: usize,
    /// Deaths of which nobody is told.
    pub(crate) vanish: usize,
    pub(crate) leaves: usize,
    /// Pairs that are cut off from each other, and single connections that break.
    pub(crate) cuts: usize,
    pub(crate) breaks: usize,
    /// Strangers that come to the port for other gateways, with bad preludes and with good ones.
    pub(crate) strangers: usize,
    /// How many more come from one machine at once, most of which prove nothing.
    pub(crate) flood: usize,
    /// Kernels can keep addresses out.
    pub(crate) filters: bool,
    /// The cluster's secret is replaced.
    pub(crate) rotates: bool,
}

/// How often what goes wrong, in percent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// How many cores each gateway has.
    pub(crate) cores: usize,
    /// What becomes of several gateways, in a run that has several.
    pub(crate) many: Option<Many>,
    pub(crate) variant: usize,
    /// One of [`KEEPING`].
    keeping: usize,
    /// The last stream id on a tunnel, if they run out early.
    pub(crate) last_id: Option<u32>,
    pub(crate) blocks: usize,
    pub(crate) block_bytes: usize,
    pub(crate) mailbox: usize,
    pub(crate) clients: usize,
    pub(crate) calls: usize,
    pub(crate) workers: usize,
    pub(crate) polls: usize,
    pub(crate) largest: usize,
    /// Most bodies are large.
    pub(crate) bulk: bool,
    /// Clients come within so many microseconds, and stay when they have nothing to do.
    pub(crate) within: usize,
    pub(crate) stays: bool,
    pub(crate) cut: Cut,
    pub(crate) delay: (usize, usize),
    pub(crate) capacity: usize,
    pub(crate) short_writes: u32,
    /// Streams reset, connections broken, GOAWAYs.
    pub(crate) resets: u32,
    pub(crate) breaks: u32,
    pub(crate) goaways: u32,
    /// Peers that stop reading, cores that stop turning.
    pub(crate) stalls: u32,
    pub(crate) pauses: u32,
    /// Bad credentials, unknown functions, ids of others.
    pub(crate) strangers: u32,
    /// Ids brought back.
    pub(crate) returns: u32,
    /// Work lost, done late, done twice, tried with wrong tokens.
    pub(crate) sloppy: u32,
    /// Small windows, lazy credit.
    pub(crate) tight: u32,
    /// Changes of SETTINGS, PINGs.
    pub(crate) chatter: u32,
    /// Peers that read only now and then.
    pub(crate) sluggish: u32,
    /// Peers that go mad and send anything.
    pub(crate) vandals: u32,
    /// Heads over the limits.
    pub(crate) giants: u32,
    /// Cores that panic and begin anew.
    pub(crate) crashes: usize,
    /// Clients that speak HTTP/1.1.
    pub(crate) http1: u32,
    /// Clients are cut off and come back.
    pub(crate) parking: Option<Returns>,
    /// Whether the gateway is drained, and when: in the midst of trouble or at the end.
    pub(crate) drain: Option<bool>,
    /// The control plane takes time.
    pub(crate) plane: Option<Manners>,
}

impl Plan {
    pub(crate) fn new(seed: &mut Seed) -> Self {
        let some = |seed: &mut Seed, percent: u32, most: usize| {
            if seed.chance(percent) { seed.range(1, most) as u32 } else { 0 }
        };
        let cut = match seed.below(10) {
            0..4 => Cut::Whole,
            4..6 => Cut::Random(40),
            6..9 => Cut::Random(3000),
            _ => Cut::Single(400),
        };
        let slow = seed.chance(30);
        let bulk = seed.chance(12);
        let plan = Self {
            cores: if seed.chance(40) { 1 } else { seed.range(2, 4) },
            many: None,
            variant: if seed.chance(40) { 0 } else { seed.below(VARIANTS.len()) },
            keeping: 0,
            last_id: None,
            blocks: seed.pick(&[5, 8, 16, 32]),
            block_bytes: seed.pick(&[2048, 16 * 1024, 64 * 1024]),
            mailbox: seed.pick(&[1, 2, 4, 64]),
            clients: seed.range(1, 5),
            calls: seed.range(1, if bulk { 4 } else { 16 }),
            workers: seed.range(1, 5),
            polls: seed.range(1, 3),
            largest: if bulk { 200 * 1024 } else { seed.pick(&[300, 5_000, 60_000, 200 * 1024]) },
            bulk,
            within: seed.pick(&[1_000, 50_000, 1_500_000]),
            stays: seed.chance(40),
            cut,
            delay: if slow { (0, 20_000) } else { (0, 200) },
            capacity: seed.pick(&[600, 10_000, 40_000, 1 << 20]),
            short_writes: some(seed, 40, 50),
            resets: some(seed, 30, 30),
            breaks: some(seed, 25, 30),
            goaways: some(seed, 20, 25),
            stalls: some(seed, 30, 20),
            pauses: some(seed, 30, 10),
            strangers: some(seed, 40, 30),
            returns: some(seed, 70, 80),
            sloppy: some(seed, 35, 50),
            tight: some(seed, 40, 100),
            chatter: some(seed, 50, 15),
            sluggish: some(seed, 35, 100),
            vandals: some(seed, 25, 20),
            giants: some(seed, 15, 10),
            crashes: if seed.chance(15) { seed.range(1, 3) } else { 0 },
            http1: 0,
            parking: None,
            drain: seed.chance(25).then(|| seed.chance(50)),
            plane: None,
        };
        if seed.chance(8) { plan.pressed() } else { plan }
    }

    /// Some runs meet HTTP/1.1. They are drawn by dice of their own, so that all others stay as they were.
    pub(crate) fn with_http1(self, number: u64) -> Self {
        let mut seed = Seed::new(!number);
        Self { http1: if seed.chance(45) { seed.pick(&[30, 70, 100]) } else { 0 }, ..self }
    }

    /// Most runs keep tunnels of lost clients, and in some of them stream ids run out. Both are drawn by
    /// dice of their own.
    pub(crate) fn with_keeping(self, number: u64) -> Self {
        let mut seed = Seed::new(number.rotate_left(32) ^ 0x6b65_6570);
        let last_id = seed.chance(20).then(|| seed.pick(&[4, 10, 30]));
        Self { keeping: seed.below(KEEPING.len()), last_id, ..self }
    }

    /// In some runs the control plane takes time. They are drawn by dice of their own.
    pub(crate) fn with_plane(self, number: u64) -> Self {
        Self { plane: Manners::of(number), ..self }
    }

    /// The same plan with peers that keep to what is agreed, and nothing that breaks.
    fn calm(self) -> Self {
        Self {
            resets: 0,
            breaks: 0,
            goaways: 0,
            stalls: 0,
            pauses: 0,
            strangers: 0,
            sloppy: 0,
            sluggish: 0,
            vandals: 0,
            giants: 0,
            crashes: 0,
            drain: None,
            ..self
        }
    }

    /// Clients come back: there are fewer other faults, and half of the runs have none at all.
    pub(crate) fn with_returns(self, number: u64) -> Self {
        let mut seed = Seed::new(number.rotate_left(32) ^ 0x7061_726b);
        let some = |seed: &mut Seed, percent: u32, most: usize| {
            if seed.chance(percent) { seed.range(1, most) as u32 } else { 0 }
        };
        let returns = Returns {
            cuts: seed.pick(&[20, 60, 150]),
            copies: seed.pick(&[1, 1, 2, 4]),
            late: some(&mut seed, 40, 30),
            racing: some(&mut seed, 40, 50),
            thieves: some(&mut seed, 40, 30),
            turncoats: some(&mut seed, 40, 50),
            fates: some(&mut seed, 40, 60),
            deletes: if seed.chance(25) { seed.range(1, 4) } else { 0 },
            panics: some(&mut seed, 15, 60),
            pauses: some(&mut seed, 25, 60),
            slots: seed.pick(&[1, 1, 2, 100]),
        };
        let plan = if seed.chance(50) { self.calm() } else { self };
        Self {
            variant: VARIANTS.len() + seed.below(PARKING.len()),
            clients: seed.range(1, 6),
            calls: plan.calls.min(6),
            largest: plan.largest.min(60_000),
            parking: Some(returns),
            last_id: seed.chance(15).then(|| seed.pick(&[4, 10])),
            ..plan
        }
    }

    /// There are several gateways, and peers come to any of them: there are fewer other faults, and
    /// most runs have none at all.
    pub(crate) fn with_nodes(self, number: u64) -> Self {
        let mut seed = Seed::new(number.rotate_left(32) ^ 0x006e_6f64_6573);
        let mut some = |percent: u32, most: usize| {
            if seed.chance(percent) { seed.range(1, most) } else { 0 }
        };
        let (deaths, leaves, cuts, breaks) = (some(30, 2), some(40, 2), some(25, 2), some(25, 3));
        let nodes = seed.range(2, 4);
        // These are drawn by dice of their own, so that everything else stays as it was.
        let mut dice = Seed::new(number.rotate_left(16) ^ 0x7661_6e69_7368);
        let vanish = if dice.chance(20) { dice.range(1, 2) } else { 0 };
        let strangers = if dice.chance(50) { dice.range(2, 12) } else { 0 };
        let flood = if dice.chance(6) { FLOOD } else { 0 };
        let (filters, rotates) = (dice.chance(50), dice.chance(20));
        let many = Many {
            nodes,
            deaths,
            vanish,
            leaves,
            cuts,
            breaks,
            strangers,
            flood,
            filters,
            rotates,
        };
        let returns = Returns {
            cuts: seed.pick(&[20, 60, 150]),
            copies: 1,
            late: 0,
            racing: 0,
            thieves: if seed.chance(30) { 20 } else { 0 },
            turncoats: if seed.chance(30) { 20 } else { 0 },
            fates: 0,
            deletes: 0,
            panics: 0,
            pauses: 0,
            slots: 100,
        };
        let plan = if seed.chance(70) { self.calm() } else { self };
        Self {
            many: Some(many),
            cores: seed.pick(&[1, 1, 2]),
            variant: if seed.chance(80) { 0 } else { VARIANTS.len() + KEPT_LONG },
            mailbox: 64,
            clients: seed.range(2, 8),
            calls: plan.calls.min(8),
            workers: seed.range(1, 3),
            polls: seed.range(1, 2),
            largest: plan.largest.min(60_000),
            bulk: false,
            vandals: 0,
            giants: 0,
            crashes: 0,
            drain: seed.chance(20).then_some(false),
            plane: None,
            parking: seed.chance(60).then_some(returns),
            last_id: None,
            ..plan
        }
    }

    /// How many gateways there are.
    pub(crate) fn nodes(&self) -> usize {
        self.many.map_or(1, |many| many.nodes)
    }

    /// The same plan with little receive memory, and much to hold in it.
    fn pressed(self) -> Self {
        Self {
            blocks: 6,
            block_bytes: 16 * 1024,
            cut: Cut::Whole,
            bulk: true,
            largest: 100_000,
            calls: self.calls.min(6),
            capacity: 20_000,
            sluggish: 70,
            tight: 0,
            ..self
        }
    }
}

impl Plan {
    /// The configuration and the policy of the gateways.
    pub(crate) fn rules(&self) -> &'static Rules {
        let kept = VARIANTS.len() * KEEPING.len();
        match self.variant.checked_sub(VARIANTS.len()) {
            None => &RULES[self.variant * KEEPING.len() + self.keeping],
            Some(coming_back) => &RULES[kept + coming_back],
        }
    }

    /// How long the gateway waits for a worker.
    pub(crate) fn wait(&self) -> Duration {
        self.rules().config.session.wait
    }

    /// What the gateway promises to clients that come back.
    pub(crate) fn terms(&self) -> Option<Terms> {
        let session = &self.rules().config.session;
        self.parking.map(|returns| Terms::new(session, &returns, self))
    }

    /// The size of a body.
    pub(crate) fn size(&self, seed: &mut Seed) -> usize {
        if self.bulk { seed.range(0, self.largest) } else { seed.size(self.largest) }
    }
}
