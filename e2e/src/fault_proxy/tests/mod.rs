//! The proxy between a real kube client and an API server of a few lines.

mod upstream;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::AsyncBufReadExt as _;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use hyper::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tempfile::TempDir;

use self::upstream::Upstream;
use super::*;

const POD: &str = "/api/v1/namespaces/shop/pods/p";
const PODS: &str = "/api/v1/namespaces/shop/pods";
const SOON: Duration = Duration::from_secs(5);

struct Bench {
    upstream: Upstream,
    proxy: FaultProxy,
    controller: kube::Client,
    _directory: TempDir,
}

impl Bench {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let upstream = Upstream::start(directory.path()).await;
        let proxy = FaultProxy::start(&upstream.kubeconfig, &upstream.kubeconfig, directory.path())
            .await
            .expect("a proxy");
        let controller = client(proxy.kubeconfig()).await;
        Self {
            upstream,
            proxy,
            controller,
            _directory: directory,
        }
    }

    fn rule(&self, request: Match, action: Action) -> RuleId {
        self.proxy
            .add_rule(Rule::once(request, 1, action))
            .expect("a sound rule")
    }

    async fn apply(&self, spec: u32) -> Result<Value, u16> {
        let body = json!({"spec": spec}).to_string().into_bytes();
        let request = Request::patch(POD).header("content-type", "application/apply-patch+yaml");
        self.call(request.body(body).expect("a request")).await
    }

    /// A list of any age.
    async fn list(&self) -> Result<Value, u16> {
        self.read(&format!("{PODS}?limit=500&resourceVersion=0"))
            .await
    }

    async fn read(&self, path: &str) -> Result<Value, u16> {
        self.call(Request::get(path).body(Vec::new()).expect("a request"))
            .await
    }

    /// The answer, or the status code of a refusal; 0 where none came.
    async fn call(&self, request: Request<Vec<u8>>) -> Result<Value, u16> {
        self.controller
            .request(request)
            .await
            .map_err(|error| match error {
                kube::Error::Api(status) => status.code,
                _ => 0,
            })
    }

    /// The lines of a watch, as they come.
    async fn watch(&self) -> BoxStream<'static, String> {
        let request = Request::get(format!("{PODS}?watch=true"))
            .body(Vec::new())
            .expect("a request");
        let lines = self
            .controller
            .request_stream(request)
            .await
            .expect("a watch")
            .lines();
        lines
            .map(|line| line.unwrap_or_else(|_| "broken".to_owned()))
            .boxed()
    }

    fn effects(&self) -> Vec<Effect> {
        self.proxy.writes().iter().map(Write::effect).collect()
    }
}

async fn client(kubeconfig: &Path) -> kube::Client {
    let file = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .expect("a configuration");
    config.default_retry = false;
    kube::Client::try_from(config).expect("a client")
}

fn applies() -> Match {
    Match::of(Verb::Apply, "pods")
}

async fn next(events: &mut BoxStream<'static, String>) -> Option<String> {
    let line = tokio::time::timeout(SOON, events.next())
        .await
        .expect("an event in time")?;
    let event: Value = serde_json::from_str(&line).unwrap_or(Value::String(line));
    Some(match event["object"]["state"].as_str() {
        Some(state) => state.to_owned(),
        None => event["object"]["code"].to_string(),
    })
}

#[tokio::test]
async fn a_request_passes_with_the_original_credentials_and_its_effect_is_noted() {
    let bench = Bench::start().await;
    for (spec, effect) in [
        (1, Effect::Created),
        (1, Effect::Unchanged),
        (2, Effect::Changed),
    ] {
        let object = bench.apply(spec).await.expect("an answer");
        assert_eq!(object["spec"], spec);
        assert_eq!(bench.effects().last(), Some(&effect));
    }
    let delete = || Request::delete(POD).body(Vec::new()).expect("a request");
    bench.call(delete()).await.expect("an answer");
    assert_eq!(bench.call(delete()).await, Err(404));
    assert_eq!(bench.effects()[3..], [Effect::Deleted, Effect::Failed]);
    let rights: Vec<_> = bench
        .proxy
        .rights()
        .into_iter()
        .map(|(right, n)| (right.verb, n))
        .collect();
    assert_eq!(rights, [("delete", 2), ("patch", 3)]);
}

#[tokio::test]
async fn a_process_without_the_controllers_certificate_is_not_served() {
    let bench = Bench::start().await;
    let text = std::fs::read_to_string(bench.proxy.kubeconfig()).expect("a kubeconfig");
    let mut file: Value = serde_json::from_str(&text).expect("JSON");
    file["users"][0]["user"] = json!({});
    let path = bench.proxy.kubeconfig().with_file_name("stranger");
    std::fs::write(&path, file.to_string()).expect("a file");
    let request = Request::get("/version")
        .body(Vec::new())
        .expect("a request");
    assert!(client(&path).await.request::<Value>(request).await.is_err());
    assert_eq!(bench.upstream.log(), Vec::<String>::new());
}

#[tokio::test]
async fn a_kill_before_keeps_the_write_away_and_a_kill_after_lets_it_through() {
    for (moment, arrived) in [(Moment::Before, 0), (Moment::After, 1)] {
        let bench = Bench::start().await;
        let kills = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&kills);
        bench.proxy.set_kill_switch(Arc::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }));
        let rule = bench.rule(applies(), Action::KillController(moment));
        assert_eq!(bench.apply(1).await, Err(0));
        assert!(bench.proxy.spent(rule, SOON).await);
        assert_eq!(kills.load(Ordering::SeqCst), 1);
        assert_eq!(bench.upstream.log().len(), arrived, "{moment}");
    }
}

#[tokio::test]
async fn a_kill_without_anything_to_kill_counts_as_never_fired() {
    let bench = Bench::start().await;
    let rule = bench.rule(applies(), Action::KillController(Moment::After));
    assert_eq!(bench.apply(1).await, Err(0));
    assert!(!bench.proxy.is_spent(rule));
    assert_eq!(bench.proxy.stop().await.expect("an end").unfired.len(), 1);
}

#[tokio::test]
async fn a_dropped_reply_is_noted_with_what_the_api_server_did() {
    let bench = Bench::start().await;
    bench.rule(applies(), Action::DropReply(Moment::Before));
    assert_eq!(bench.apply(1).await, Err(0));
    bench.rule(applies(), Action::DropReply(Moment::After));
    assert_eq!(bench.apply(1).await, Err(0));
    assert_eq!(bench.upstream.log().len(), 1);
    assert_eq!(bench.effects(), [Effect::Failed, Effect::Created]);
    assert_eq!(bench.proxy.writes()[0].outcome, Outcome::Withheld);
}

#[tokio::test]
async fn every_refusal_reaches_the_controller_before_and_after_the_write() {
    let refusals = [
        Refusal::Conflict,
        Refusal::TooManyRequests,
        Refusal::InternalError,
        Refusal::Unavailable,
        Refusal::Timeout,
    ];
    let bench = Bench::start().await;
    for (moment, arrives) in [(Moment::Before, 0), (Moment::After, 1)] {
        for refusal in refusals {
            let seen = bench.upstream.log().len();
            bench.rule(applies(), Action::Answer(moment, refusal));
            assert_eq!(bench.apply(1).await, Err(refusal.code()));
            assert_eq!(bench.upstream.log().len() - seen, arrives);
        }
    }
    assert!(
        bench.apply(1).await.is_ok(),
        "a spent rule leaves requests alone"
    );
}

#[tokio::test]
async fn a_hang_delays_the_request_and_then_lets_it_go_on() {
    let bench = Bench::start().await;
    for moment in [Moment::Before, Moment::After] {
        bench.rule(applies(), Action::Hang(moment, Duration::from_millis(80)));
        let start = Instant::now();
        assert!(bench.apply(1).await.is_ok());
        assert!(start.elapsed() >= Duration::from_millis(80), "{moment}");
    }
}

#[tokio::test]
async fn a_controller_that_gives_up_during_a_hang_has_not_written() {
    let bench = Bench::start().await;
    let rule = bench.rule(
        applies(),
        Action::Hang(Moment::Before, Duration::from_mins(1)),
    );
    let gave_up = tokio::time::timeout(Duration::from_millis(200), bench.apply(1)).await;
    assert!(gave_up.is_err() && bench.proxy.is_spent(rule));
    assert!(bench.apply(2).await.is_ok());
    assert_eq!(bench.upstream.log().len(), 1);
    let report = bench
        .proxy
        .stop()
        .await
        .expect("an end without waiting for the hang");
    assert_eq!(report.writes[0].outcome, Outcome::Unfinished);
}

#[tokio::test]
async fn watch_events_flow_one_by_one_while_the_watch_is_open() {
    let bench = Bench::start().await;
    let mut events = bench.watch().await;
    bench.upstream.watched(1).await;
    for state in ["1", "2"] {
        bench.upstream.emit("a", state);
        assert_eq!(next(&mut events).await.as_deref(), Some(state));
    }
    drop(events);
    drop(bench.controller);
    tokio::time::timeout(SOON, bench.upstream.watched(0))
        .await
        .expect("the upstream watch to end");
}

#[tokio::test]
async fn watches_are_cut_in_an_orderly_way_and_expired_with_410() {
    for (action, expected) in [
        (Action::CutWatches, vec![None]),
        (Action::ExpireWatches, vec![Some("410".to_owned()), None]),
    ] {
        let bench = Bench::start().await;
        let mut events = bench.watch().await;
        bench.upstream.watched(1).await;
        bench.rule(applies(), action);
        bench
            .apply(1)
            .await
            .expect("the write itself is left alone");
        for event in expected {
            assert_eq!(next(&mut events).await, event, "{action:?}");
        }
        let mut fresh = bench.watch().await;
        bench.upstream.watched(1).await;
        bench.upstream.emit("a", "1");
        assert_eq!(
            next(&mut fresh).await.as_deref(),
            Some("1"),
            "a later watch is left alone"
        );
    }
}

#[tokio::test]
async fn held_events_come_late_and_in_order() {
    let bench = Bench::start().await;
    let mut events = bench.watch().await;
    bench.upstream.watched(1).await;
    let span = Duration::from_millis(150);
    bench.rule(applies(), Action::HoldWatchEvents(span));
    let start = Instant::now();
    bench.apply(1).await.expect("an answer");
    bench.upstream.emit("a", "1");
    bench.upstream.emit("a", "2");
    assert_eq!(next(&mut events).await.as_deref(), Some("1"));
    assert!(start.elapsed() >= span);
    assert_eq!(next(&mut events).await.as_deref(), Some("2"));
}

#[tokio::test]
async fn held_watches_are_let_go_one_after_the_other() {
    let bench = Bench::start().await;
    let mut first = bench.watch().await;
    let mut second = bench.watch().await;
    bench.upstream.watched(2).await;
    bench.rule(
        applies(),
        Action::HoldWatchEvents(Duration::from_millis(50)),
    );
    bench.apply(1).await.expect("an answer");
    bench.upstream.emit("a", "1");
    assert!(bench.proxy.is_disturbing());
    assert_eq!(next(&mut first).await.as_deref(), Some("1"));
    let start = Instant::now();
    assert_eq!(next(&mut second).await.as_deref(), Some("1"));
    assert!(start.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn repeated_events_bring_the_older_state_and_end_with_the_newest() {
    let bench = Bench::start().await;
    let mut events = bench.watch().await;
    bench.upstream.watched(1).await;
    bench.upstream.emit("a", "old");
    assert_eq!(next(&mut events).await.as_deref(), Some("old"));
    bench.rule(applies(), Action::RepeatWatchEvents(SOON));
    bench.apply(1).await.expect("an answer");
    bench.upstream.emit("a", "new");
    bench.upstream.emit("b", "other");
    for expected in ["new", "old", "new", "other", "other"] {
        assert_eq!(next(&mut events).await.as_deref(), Some(expected));
    }
}

#[tokio::test]
async fn a_controller_that_is_killed_into_the_past_comes_back_to_old_lists_and_no_news() {
    let bench = Bench::start().await;
    bench.proxy.set_kill_switch(Arc::new(|| Ok(())));
    let count = |list: Value| list["items"].as_array().map(Vec::len);
    assert_eq!(bench.list().await.map(count), Ok(Some(0)));
    let span = Duration::from_millis(300);
    bench.rule(applies(), Action::KillIntoThePast(span));
    let start = Instant::now();
    assert_eq!(bench.apply(1).await, Err(0));
    assert_eq!(bench.effects(), [Effect::Created]);
    assert_eq!(bench.list().await.map(count), Ok(Some(0)), "the old answer");
    let consistent = bench.read(&format!("{PODS}?limit=500")).await;
    assert_eq!(
        consistent.map(count),
        Ok(Some(1)),
        "a consistent read is never old"
    );
    let mut events = bench.watch().await;
    bench.upstream.watched(1).await;
    bench.upstream.emit("a", "1");
    assert_eq!(next(&mut events).await.as_deref(), Some("1"));
    assert!(start.elapsed() >= span);
    assert_eq!(bench.list().await.map(count), Ok(Some(1)), "the present");
}

#[tokio::test]
async fn stopping_breaks_open_watches_and_names_the_faults_that_never_fired() {
    let bench = Bench::start().await;
    let mut events = bench.watch().await;
    bench.upstream.watched(1).await;
    bench.rule(Match::of(Verb::Delete, "nodes"), Action::CutWatches);
    let address = bench.proxy.address;
    let report = bench.proxy.stop().await.expect("an end");
    assert_eq!(report.unfired.len(), 1);
    assert!(
        report.unfired[0].to_string().contains("delete of nodes"),
        "{}",
        report.unfired[0]
    );
    assert_ne!(next(&mut events).await.as_deref(), Some("1"));
    assert!(
        TcpStream::connect(address).await.is_err(),
        "the port is closed"
    );
}

#[tokio::test]
async fn a_rule_that_cannot_fire_and_a_kubeconfig_that_leads_nowhere_are_refused() {
    let bench = Bench::start().await;
    let refused = bench
        .proxy
        .add_rule(Rule::once(applies(), 0, Action::CutWatches));
    assert!(refused.is_err_and(|error| error.to_string().contains("nth counts from 1")));
    let missing = Path::new("/nonexistent/kubeconfig");
    let refused = FaultProxy::start(missing, missing, Path::new("/tmp")).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("/nonexistent/kubeconfig")));
}

#[tokio::test]
async fn the_controllers_key_is_readable_by_its_user_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let bench = Bench::start().await;
    let key = bench.proxy.kubeconfig().with_file_name("client.key");
    let mode = std::fs::metadata(key).expect("a key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
