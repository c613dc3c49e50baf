//! Every setting: name, kind, default, meaning. The reader takes its defaults and ranges from
//! here, and the tables of `docs/reference/settings.md` are made from here.

use super::MAX_CORES;
use super::setting::{DAY, MAX_WINDOW, MILLION, in_nvcf, later, setting};
pub(super) use super::setting::{GIB, KIB, Kind, MIB, MS, S, Setting};

/// What clients may speak.
pub(super) const PROTOCOLS: [&str; 2] = ["auto", "h2"];

/// All settings, table by table.
pub(super) const SETTINGS: &[Setting] = &[
    setting(
        "listen.client",
        Kind::Address,
        "0.0.0.0:10081",
        "Where clients connect. Port 0 takes a free one.",
    ),
    setting(
        "listen.worker",
        Kind::Address,
        "0.0.0.0:10086",
        "Where workers poll for work and dial back.",
    ),
    in_nvcf(
        "0.0.0.0:10083",
        setting(
            "listen.admin",
            Kind::Address,
            "127.0.0.1:10083",
            "Metrics, health, sessions, drain.",
        ),
    ),
    setting(
        "listen.client.tls.cert",
        Kind::Own("a path"),
        "",
        "TLS: the certificate, a PEM file, relative to the configuration. `tls = { cert, key }`.",
    ),
    setting("listen.client.tls.key", Kind::Own("a path"), "", "Its private key, likewise."),
    setting(
        "listen.client.proxy_protocol",
        Kind::Flag,
        "false",
        "Every connection begins with a PROXY protocol header, version 2.",
    ),
    setting(
        "listen.client.trusted",
        Kind::List("a list of networks"),
        "[]",
        "Who may connect with such a header; others are closed.",
    ),
    setting(
        "listen.client.protocol",
        Kind::Word(&PROTOCOLS),
        "auto",
        "What clients speak. `auto`: found out from their first octets. `h2`: HTTP/2 only, and the gateway speaks first.",
    ),
    setting("listen.worker.tls.cert", Kind::Own("a path"), "", "As for clients."),
    setting("listen.worker.tls.key", Kind::Own("a path"), "", "As for clients."),
    setting("listen.worker.proxy_protocol", Kind::Flag, "false", "As for clients."),
    setting("listen.worker.trusted", Kind::List("a list of networks"), "[]", "As for clients."),
    setting(
        "cores.count",
        Kind::CountOr("auto", 1, MAX_CORES as u64),
        "\"auto\"",
        "Data cores. `auto`: what the CPU quota (rounded up) or the affinity mask allows.",
    ),
    setting("cores.pin", Kind::Flag, "true", "Whether a core's thread stays on its CPU."),
    setting(
        "cores.busy_poll",
        Kind::Own("\"0us\", \"Nus\", \"auto\" or \"always\""),
        "\"0us\"",
        "How long a core spins before it sleeps. `auto`: up to 100 us while traffic is dense, else not at all.",
    ),
    setting("cores.receive_memory", Kind::Bytes(MIB, GIB), "8MiB", "Receive memory of a core."),
    setting(
        "cores.io",
        Kind::Word(&["auto", "ring", "epoll"]),
        "auto",
        "What drives the cores. `auto`: io_uring, or epoll where the host forbids it.",
    ),
    setting(
        "control.mode",
        Kind::Word(&["local", "nats", "nvcf"]),
        "",
        "Who says who may call, and how work travels: see [Modes](../operating.md#modes). Without it: `local` \
         with a configuration file, else `nvcf` if `NVCF_FQDN_GRPC` is set.",
    ),
    setting(
        "control.advertise",
        Kind::Own("a URL"),
        "",
        "What workers dial back to. Without it: the worker listener's address, if that names one; \
         in `nvcf` mode that port of `POD_IP`.",
    ),
    setting(
        "control.secrets_file",
        Kind::Own("a path"),
        "",
        "The secrets file (JSON), which may change at run time. `nvcf` mode: \
         `/vault/secrets/secrets.json`.",
    ),
    setting(
        "control.red_after",
        Kind::Time(S, DAY),
        "10s",
        "Readiness turns red after so long without NATS or the API.",
    ),
    setting("nvcf.api", Kind::Own("a URL"), "", "NVIDIA's API, `http` or `https`."),
    setting(
        "nvcf.oauth",
        Kind::Own("a URL"),
        "",
        "Base URL of the OAuth2 issuer: tokens are asked for at `/token` below it.",
    ),
    setting("nvcf.limiter", Kind::Own("a URL"), "", "The rate limiter. Without it none is asked."),
    setting(
        "nvcf.ca_file",
        Kind::Own("a path"),
        "",
        "PEM: the authorities that API, limiter and issuer are checked against. Without it the \
         system's.",
    ),
    setting(
        "nats.urls",
        Kind::List("a list of URLs"),
        "[\"nats://127.0.0.1:4222\"]",
        "NATS servers: `nats`, or `tls`.",
    ),
    setting(
        "nats.region",
        Kind::Own("letters, digits, _ and -"),
        "\"ncp\"",
        "The region in the names of subjects and streams.",
    ),
    setting(
        "nats.placement",
        Kind::Own("a text"),
        "",
        "The placement tag of the stream that the gateway makes. Without it: in `nvcf` mode \
         `aws-region:` and the region, else none.",
    ),
    setting("nats.nkey_file", Kind::Own("a path"), "", "A file with the seed of an NKey."),
    setting(
        "nats.credentials_file",
        Kind::Own("a path"),
        "",
        "A credentials file: a JWT and its seed.",
    ),
    setting("nats.user", Kind::Own("a text"), "", "A user's name."),
    setting("nats.password_file", Kind::Own("a path"), "", "A file with that user's password."),
    setting(
        "nats.token_file",
        Kind::Own("a path"),
        "",
        "A file with a token, for servers that want nothing else.",
    ),
    setting(
        "nats.ca_file",
        Kind::Own("a path"),
        "",
        "PEM: the authorities that servers are checked against. Without it the system's.",
    ),
    setting("nats.cert_file", Kind::Own("a path"), "", "PEM: the gateway's own certificate."),
    setting("nats.key_file", Kind::Own("a path"), "", "PEM: its private key."),
    setting("tenant.name", Kind::Own("a text"), "", "The tenant (NCA id)."),
    setting("tenant.client_keys", Kind::List("a list of texts"), "[]", "Keys of its clients."),
    setting(
        "tenant.client_keys_file",
        Kind::Own("a path"),
        "",
        "A file with one key a line, relative to the configuration; `#` begins a comment.",
    ),
    setting("function.id", Kind::Own("a UUID"), "", "The function."),
    setting(
        "function.version",
        Kind::Own("a UUID"),
        "",
        "The version; a function can have several.",
    ),
    setting("function.tenants", Kind::List("a list of tenants"), "", "Who may call it."),
    setting(
        "function.worker_keys",
        Kind::List("a list of texts"),
        "",
        "Keys of the workers that may serve it. Not needed with `dial`, and not used in `nats` \
         mode.",
    ),
    setting(
        "function.worker_keys_file",
        Kind::Own("a path"),
        "",
        "A file with one key a line, relative to the configuration; `#` begins a comment.",
    ),
    setting(
        "function.kind",
        Kind::Word(&["default", "streaming"]),
        "default",
        "The kind of function.",
    ),
    setting(
        "function.dial",
        Kind::Own("HOST:PORT"),
        "",
        "The server that serves it without a worker: the gateway dials it.",
    ),
    setting("session.wait", Kind::Time(MS, DAY), "30s", "How long a request waits for a worker."),
    setting(
        "session.idle",
        Kind::Time(MS, DAY),
        "30s",
        "A tunnel without a stream for so long is closed.",
    ),
    setting(
        "session.scope",
        Kind::Word(&["connection", "tenant", "credential"]),
        "tenant",
        "Who shares a session on one client connection.",
    ),
    setting(
        "session.honour_id",
        Kind::Word(&["always", "unpinned"]),
        "always",
        "Whether a request id wins over the connection's session.",
    ),
    setting(
        "session.park",
        Kind::Word(&["never", "auto", "unclean", "always"]),
        "auto",
        "When a tunnel is kept after its client has gone: see [Coming back](../operating.md#coming-back).",
    ),
    setting("session.park_window", Kind::Time(MS, DAY), "30s", "How long it is kept."),
    setting(
        "session.park_yield",
        Kind::Time(MS, DAY),
        "2s",
        "A new session that has waited so long for a worker takes the oldest one that is kept.",
    ),
    setting(
        "session.tell_cause",
        Kind::Flag,
        "false",
        "A 502 says in `x-ringway-cause` why the tunnel was lost. It is for operators: clients learn \
         what is behind the gateway. `ringway dev` has it on.",
    ),
    in_nvcf(
        "3s",
        setting("drain.delay", Kind::Time(0, DAY), "0s", "From \"not ready\" to the first GOAWAY."),
    ),
    in_nvcf(
        "20s",
        setting("drain.max", Kind::Time(0, DAY), "60s", "How long open streams may take."),
    ),
    setting(
        "cluster.secret_file",
        Kind::Own("a path"),
        "",
        "A file with the gateways' common secret, or with two, one a line: the first signs, both are \
         accepted. Read again on SIGHUP. Without it nothing is relayed.",
    ),
    setting(
        "cluster.listen",
        Kind::Address,
        "0.0.0.0:0",
        "Where other gateways connect to this one. Port 0 takes a free port, which they learn over \
         NATS.",
    ),
    setting(
        "cluster.address",
        Kind::Own("an IP address, or one with a port"),
        "",
        "How the other gateways reach this process. Without it: `POD_IP`, else the address of the \
         connection to NATS.",
    ),
    setting(
        "cluster.fallback",
        Kind::Own("a URL"),
        "",
        "The old proxy's worker listener, such as `http://old-proxy:10086`: a CONNECT goes there \
         whose token no gateway of the cluster has made.",
    ),
    setting(
        "cluster.plaintext",
        Kind::Flag,
        "false",
        "Whether what came over TLS is relayed too: between gateways it is plain TCP.",
    ),
    setting(
        "cluster.direct",
        Kind::Flag,
        "false",
        "Whether workers get the address of this process first, and `control.advertise` second.",
    ),
    setting("cluster.node", Kind::Count(0, 4095), "", "`local` mode: this node's number."),
    setting(
        "cluster.nodes",
        Kind::List("a list of `{ node, relay }`"),
        "",
        "`local` mode: the other nodes' numbers, and their `cluster.listen`.",
    ),
    setting(
        "limits.client_connections",
        Kind::Count(1, MILLION),
        "65536",
        "Client connections of a core.",
    ),
    setting(
        "limits.worker_connections",
        Kind::Count(1, MILLION),
        "65536",
        "Worker connections of a core: polls and tunnels.",
    ),
    setting(
        "limits.handshake",
        Kind::Time(100 * MS, 300 * S),
        "10s",
        "Time for a preface, a request head or a worker's CONNECT.",
    ),
    setting(
        "limits.header_bytes",
        Kind::Bytes(KIB, 16 * MIB),
        "256KiB",
        "Header list, head or trailers, decoded, with 32 bytes a field: see [Large heads](../operating.md#large-heads).",
    ),
    setting("limits.header_fields", Kind::Count(16, 65536), "1024", "Fields of a header list."),
    setting(
        "limits.header_block",
        Kind::Bytes(KIB, 16 * MIB),
        "1MiB",
        "One header block on the wire; a larger one ends the connection.",
    ),
    setting(
        "limits.continuations",
        Kind::Count(1, 255),
        "17",
        "CONTINUATION frames of one header block.",
    ),
    later("limits.hpack_table", "HPACK table, each direction. Always 4KiB."),
    setting(
        "limits.streams",
        Kind::Count(1, MAX_WINDOW),
        "10000",
        "Concurrent streams of one client connection.",
    ),
    setting(
        "limits.glitch_burst",
        Kind::Count(1, MILLION),
        "1000",
        "Suspicious frames (resets, PINGs, SETTINGS, empty DATA, ...) at once.",
    ),
    setting(
        "limits.glitch_refill",
        Kind::Count(1, MILLION),
        "33",
        "Suspicious frames a second, in the long run.",
    ),
    setting(
        "limits.queued_answers",
        Kind::Count(1, 65536),
        "64",
        "Answers (PING, SETTINGS, resets) a peer may leave unread.",
    ),
    setting("limits.empty_data", Kind::Count(1, 65536), "10", "Empty DATA frames in a row."),
    setting(
        "limits.stream_window",
        Kind::Bytes(16 * KIB, MAX_WINDOW),
        "64KiB",
        "Receive window of a new stream.",
    ),
    setting(
        "limits.stream_window_max",
        Kind::Bytes(16 * KIB, MAX_WINDOW),
        "2MiB",
        "What a stream's window may grow to.",
    ),
    setting(
        "limits.connection_buffer",
        Kind::Bytes(64 * KIB, MAX_WINDOW),
        "16MiB",
        "Bytes buffered for one connection.",
    ),
    setting("limits.core_buffer", Kind::Bytes(MIB, 1 << 40), "256MiB", "Bytes buffered by a core."),
    setting(
        "limits.http1_buffer",
        Kind::Bytes(16 * KIB, 1024 * MIB),
        "256KiB",
        "Bytes that wait for the other hop before an HTTP/1 connection is read no further.",
    ),
    setting(
        "limits.h2c_body",
        Kind::Bytes(0, 1024 * MIB),
        "1MiB",
        "Body of a request with `Upgrade: h2c`, which is read whole; over it 413.",
    ),
    setting(
        "limits.stalled_stream",
        Kind::Time(S, DAY),
        "60s",
        "A stream without progress for so long is reset when memory is short.",
    ),
    setting(
        "limits.attachments",
        Kind::Count(1, MILLION),
        "1024",
        "Attachments of one client connection.",
    ),
    setting(
        "limits.dispatch_burst",
        Kind::Count(1, MILLION),
        "256",
        "New sessions of one client connection at once that a worker is asked for.",
    ),
    setting(
        "limits.dispatch_rate",
        Kind::Count(1, MILLION),
        "100",
        "The same a second, in the long run.",
    ),
    setting("limits.token_tries", Kind::Count(1, 1000), "5", "Wrong tries with one worker token."),
    setting(
        "limits.relays",
        Kind::Count(1, MILLION),
        "4096",
        "Connections that a core relays to other gateways.",
    ),
    setting(
        "limits.pending_sessions",
        Kind::Count(1, MILLION),
        "16384",
        "Sessions of a core that wait for a worker.",
    ),
    setting(
        "limits.pending_per_tenant",
        Kind::Count(1, MILLION),
        "8192",
        "Sessions of one tenant on a core that wait for a worker.",
    ),
    later("limits.asks", "Questions to the control plane of a core that wait. Always 4096."),
    later("limits.asks_per_tenant", "Such questions of one tenant on a core. Always 1024."),
    setting(
        "limits.work_queue",
        Kind::Count(1, MILLION),
        "10000",
        "Work queued for one function version.",
    ),
    setting("limits.polls", Kind::Count(1, MILLION), "16384", "Worker polls that wait."),
    setting("limits.poll_ids", Kind::Count(0, MILLION), "4096", "Request ids in one poll."),
    setting("limits.poll_bytes", Kind::Bytes(KIB, 64 * MIB), "256KiB", "Body of one poll."),
    setting(
        "limits.mailbox",
        Kind::Count(64, MILLION),
        "4096",
        "Messages that wait for another thread.",
    ),
    setting(
        "limits.outbox",
        Kind::Count(64, MILLION),
        "65536",
        "Messages of a core that wait for room in another one's mailbox.",
    ),
    later("limits.failed_connects", "Failed CONNECTs of one address."),
    setting(
        "limits.parked_tunnels",
        Kind::Count(1, MILLION),
        "4096",
        "Tunnels a core keeps after their clients have gone; the oldest is closed for one more.",
    ),
    setting(
        "limits.parked_per_tenant",
        Kind::Count(1, MILLION),
        "1024",
        "Such tunnels of one tenant on a core.",
    ),
    setting(
        "limits.trace_records",
        Kind::Count(0, 100 * MILLION),
        "65536",
        "Events of sessions that a core keeps for their timelines; 0 keeps none.",
    ),
    setting(
        "keepalive.idle",
        Kind::Time(S, 9 * 3600 * S),
        "15s",
        "TCP keep-alive begins after so long without data. Whole seconds.",
    ),
    setting(
        "keepalive.interval",
        Kind::Time(S, 9 * 3600 * S),
        "15s",
        "Time between keep-alive probes. Whole seconds.",
    ),
    setting(
        "keepalive.probes",
        Kind::Count(1, 127),
        "9",
        "Probes without an answer until a connection is lost.",
    ),
    setting(
        "keepalive.user_timeout",
        Kind::Time(S, DAY),
        "150s",
        "A connection is lost that acknowledges nothing of what it was sent for so long, keeps its \
         window shut for so long, or does not answer probes.",
    ),
    setting(
        "keepalive.client_timeout",
        Kind::Time(S, DAY),
        "60s",
        "The same for clients, and no longer than `user_timeout` unless it is written. With \
         `session.park_window` it is how long a client that vanished holds its worker.",
    ),
    setting(
        "keepalive.client_ping",
        Kind::Own("\"off\", or 10s to 24h"),
        "\"off\"",
        "A client that is silent for so long is pinged (HTTP/2).",
    ),
    setting(
        "keepalive.client_ping_timeout",
        Kind::Time(S, DAY),
        "15s",
        "How long a client may take to answer.",
    ),
    setting(
        "keepalive.tunnel_ping",
        Kind::Time(S, DAY),
        "30s",
        "A tunnel in use, or parked, that is silent for so long is pinged (HTTP/2), as often as \
         gRPC's servers allow.",
    ),
    setting(
        "keepalive.tunnel_ping_timeout",
        Kind::Time(S, DAY),
        "15s",
        "How long a tunnel may take to answer.",
    ),
    setting(
        "keepalive.tunnel_start",
        Kind::Time(S, DAY),
        "45s",
        "A tunnel that has said nothing at all so long after its first request is closed (HTTP/2).",
    ),
    setting(
        "keepalive.tunnel_write",
        Kind::Time(S, DAY),
        "30s",
        "A tunnel that takes no byte for so long is closed.",
    ),
    setting(
        "admin.allow_remote",
        Kind::Flag,
        "false",
        "Whether calls that change something may come from elsewhere than this machine.",
    ),
    setting(
        "admin.hosts",
        Kind::List("a list of host names"),
        "[]",
        "Names by which the admin port may be called to change something, besides addresses and \
         `localhost`: a web page can have a name of its own lead here.",
    ),
    setting("log.access", Kind::Flag, "false", "One line a request."),
    setting("log.level", Kind::Word(&crate::log::LEVELS), "info", "What is logged."),
    in_nvcf(
        "zap",
        setting(
            "log.keys",
            Kind::Word(&["ringway", "zap"]),
            "ringway",
            "The keys of JSON lines: `zap` are those of NVIDIA's proxy, see [Log](log.md).",
        ),
    ),
];

/// The tables' names in order, each once.
pub(super) fn tables() -> Vec<&'static str> {
    let mut tables: Vec<&str> =
        SETTINGS.iter().map(|s| s.key.split('.').next().unwrap_or_default()).collect();
    tables.dedup();
    tables
}
