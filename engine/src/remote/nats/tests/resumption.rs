//! Sessions that this gateway does not know: whose they are, and their workers.

use super::*;

const STREAM: &str = "stateful_session_lookup_r-1";

/// Registers a session, as its worker does.
async fn register(client: &async_nats::Client, id: Uuid, record: Vec<u8>) {
    let subject = format!("stateful_session.lookup.{REGION}.{VERSION}.{id}");
    let jetstream = async_nats::jetstream::new(client.clone());
    jetstream.publish(subject, record.into()).await.unwrap().await.unwrap();
}

fn record() -> Vec<u8> {
    StatefulSessionTracking {
        function_id: "Function".into(),
        function_version_id: VERSION.into(),
        invoker_nca_id: "nca".into(),
    }
    .encode_to_vec()
}

/// Waits until there is the stream, and gives its settings.
async fn made(client: &async_nats::Client) -> Config {
    let jetstream = async_nats::jetstream::new(client.clone());
    until("there is the stream of registrations", || async {
        jetstream.get_stream(STREAM).await.is_ok()
    })
    .await;
    jetstream.get_stream(STREAM).await.unwrap().cached_info().config.clone()
}

/// Waits until the server has taken what was sent before on this connection: it answers in order.
async fn taken(client: &async_nats::Client) {
    client.request("nobody", "".into()).await.unwrap_err();
}

#[track_caller]
fn registered(answer: &Answer) {
    let Answer::Registered(found) = answer else { panic!("{answer:?} instead of a registration") };
    assert_eq!((&*found.function, &*found.version, &*found.tenant), ("Function", VERSION, "nca"));
}

#[tokio::test]
async fn a_registration_is_found_missed_or_unusable() {
    let server = Server::start();
    let (nats, client) = plane(&server).await;
    let config = made(&client).await;
    assert_eq!(config.subjects, [format!("stateful_session.lookup.{REGION}.>")]);
    assert_eq!((config.max_messages, config.max_messages_per_subject), (100_000, 1));
    assert_eq!((config.retention, config.discard), (RetentionPolicy::Limits, DiscardPolicy::New));
    assert_eq!((config.max_age, config.storage), (Duration::from_secs(3600), StorageType::Memory));
    // The server is alone.
    assert_eq!((config.num_replicas, config.allow_direct), (1, true));

    let id = fresh();
    register(&client, id, record()).await;
    registered(&nats.lookup(id).await);
    assert_eq!(nats.lookup(fresh()).await, Answer::Unregistered);
    for bad in [b"garbage".to_vec(), vec![], vec![b'x'; 5000], record()[..40].to_vec()] {
        let id = fresh();
        register(&client, id, bad).await;
        let Answer::Failed(why) = nats.lookup(id).await else { panic!("it is unusable") };
        assert!(why.contains("unusable"), "{why}");
    }

    let jetstream = async_nats::jetstream::new(client.clone());
    // What is within a second of the first time is not tried again.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    jetstream.delete_stream(STREAM).await.unwrap();
    assert_eq!(nats.lookup(id).await, Answer::Unregistered);
    jetstream.get_stream(STREAM).await.expect("the lookup has made it again");
}

#[tokio::test]
async fn a_stream_without_direct_access_is_used_as_it_is() {
    let server = Server::start();
    let client = async_nats::connect(server.url()).await.unwrap();
    let config = Config {
        name: STREAM.into(),
        subjects: vec![format!("stateful_session.lookup.{REGION}.>")],
        ..Config::default()
    };
    async_nats::jetstream::new(client.clone()).create_stream(config).await.unwrap();
    let (nats, _) = plane(&server).await;
    let id = fresh();
    register(&client, id, record()).await;
    registered(&nats.lookup(id).await);
    assert_eq!(nats.lookup(fresh()).await, Answer::Unregistered);
    assert!(!made(&client).await.allow_direct, "it is not changed");
}

#[tokio::test]
async fn a_placement_tag_hinders_no_server_that_is_alone() {
    let server = Server::start();
    let mut settings = remote(&[server.url()]);
    settings.nats.placement = "dc:ncp".into();
    let nats = begin(&settings, Secrets::default()).await.unwrap();
    up(&nats).await;
    let client = async_nats::connect(server.url()).await.unwrap();
    let placement = made(&client).await.placement.expect("it is asked for");
    assert_eq!(placement.tags, ["dc:ncp"]);
}

#[tokio::test]
async fn a_worker_that_listens_is_asked() {
    let server = Server::start();
    let (nats, client) = plane(&server).await;
    for kind in [WorkKind::Reconnect, WorkKind::Spare] {
        let id = fresh();
        let mut asked = client.subscribe(format!("stateful_session.reconnect.{id}")).await.unwrap();
        taken(&client).await;
        let begun = Instant::now();
        assert_eq!(nats.submit(ticket(1), &work(kind, id)).await, Answer::Queued);
        assert!(begun.elapsed() < AT_ONCE, "no silence is waited for: {:?}", begun.elapsed());
        let message = timeout(SOON, asked.next()).await.expect("it is asked").unwrap();
        assert!(message.reply.is_some() && message.headers.is_none());
        is_work(&message.payload, id);
    }
    // One that listens a little later is asked, too.
    let id = fresh();
    let later = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        client.subscribe(format!("stateful_session.reconnect.{id}")).await.unwrap()
    };
    let asked = work(WorkKind::Reconnect, id);
    let (answer, mut asked) = tokio::join!(nats.submit(ticket(2), &asked), later);
    assert_eq!(answer, Answer::Queued);
    is_work(&timeout(SOON, asked.next()).await.expect("it is asked").unwrap().payload, id);
}

#[tokio::test]
async fn a_worker_that_does_not_listen_is_found_out() {
    let server = Server::start();
    let (nats, client) = plane(&server).await;
    made(&client).await;
    let (there, gone, unwanted) = (fresh(), fresh(), fresh());
    register(&client, there, record()).await;
    let works = [there, gone, unwanted].map(|id| work(WorkKind::Reconnect, id));
    let begun = Instant::now();
    let withdrawn = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        nats.withdraw(ticket(3));
    };
    let ends_early = async {
        nats.submit(ticket(3), &works[2]).await;
        assert!(begun.elapsed() < Duration::from_secs(3), "nobody waits for it any more");
    };
    let (first, second, (), ()) = tokio::join!(
        nats.submit(ticket(1), &works[0]),
        nats.submit(ticket(2), &works[1]),
        ends_early,
        withdrawn
    );
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(4500) && took < Duration::from_secs(8), "{took:?}");
    assert_eq!((first, second), (Answer::Unheard, Answer::Unregistered));
    // Its worker has crashed, it seems: the client need not come again.
    assert_eq!(nats.submit(ticket(4), &works[0]).await, Answer::Unregistered);
    // Unless it is heard again.
    let listens = client.subscribe(format!("stateful_session.reconnect.{there}")).await.unwrap();
    assert_eq!(nats.submit(ticket(5), &works[0]).await, Answer::Queued);
    drop(listens);
    taken(&client).await;
    assert_eq!(nats.submit(ticket(6), &works[0]).await, Answer::Unheard);
}

#[tokio::test]
async fn a_server_that_is_away_is_nobodys_answer() {
    let mut server = Server::start();
    let (nats, client) = plane(&server).await;
    made(&client).await;
    let id = fresh();
    register(&client, id, record()).await;
    registered(&nats.lookup(id).await);
    let asking = {
        let (nats, id) = (nats.clone(), fresh());
        tokio::spawn(async move { nats.submit(ticket(1), &work(WorkKind::Reconnect, id)).await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.stop();
    unqueued(timeout(SOON, asking).await.expect("it ends").unwrap(), "NATS");
    down(&nats, "refused").await;

    let begun = Instant::now();
    for (number, kind) in [(2, WorkKind::New), (3, WorkKind::Reconnect), (4, WorkKind::Spare)] {
        unqueued(nats.submit(ticket(number), &work(kind, id)).await, "NATS is not there");
    }
    let Answer::Failed(why) = nats.lookup(id).await else { panic!("nobody can know it") };
    assert!(why.contains("refused"), "{why}");
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());

    // Its memory is gone with it: the stream is made again, unasked.
    server.again();
    up(&nats).await;
    made(&client).await;
    assert_eq!(nats.lookup(id).await, Answer::Unregistered);
    register(&client, id, record()).await;
    registered(&nats.lookup(id).await);
    for counted in ["nats_disconnect_total", "nats_reconnect_total", "nats_reconnects"] {
        assert_eq!(metric(&nats, counted), 1, "{counted}");
    }
    assert!(metric(&nats, "nats_failure_total{reason=\"connection\"}") > 0);
}
