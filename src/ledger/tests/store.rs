//! The ledger in SQLite: the same as in memory, whoever writes and however often.

#![cfg(test)]

use std::path::Path;

use creo_ledger::{
    Account, Operation, Role, State,
    simulation::{Script, Transcript, history, secret},
    store::{Fence, PostError, Store, StoreError, StoreOptions},
};
use futures::future::join_all;
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

async fn open(folder: &Path) -> Store {
    Store::open(StoreOptions::file(&folder.join("ledger.db")).create())
        .await
        .expect("a ledger")
}

async fn fences(store: &Store) -> Vec<Fence> {
    let mut fences = Vec::new();
    for role in Role::ALL {
        fences.push(store.take_role(role).await.expect("the role"));
    }
    fences
}

fn of(fences: &[Fence], role: Role) -> Fence {
    *fences
        .iter()
        .find(|fence| fence.role == role)
        .expect("a fence")
}

fn transcript(seed: u64, steps: u64) -> Transcript {
    let script = Script::parse(&history(seed, steps)).expect("a history");
    script.run(&secret(), 1).expect("it happens")
}

fn deposit(number: u32) -> Operation {
    Operation::Deposit {
        rail: "bank".to_owned(),
        reference: format!("d-{number}"),
        customer: "acme".to_owned(),
        amount_micro: 1_000,
    }
}

fn acme() -> Operation {
    Operation::Open {
        customer: "acme".to_owned(),
    }
}

fn balance(state: &State, account: &str) -> i64 {
    let account: Account = account.parse().unwrap();
    state
        .accounts()
        .get(&account)
        .map_or(0, |state| state.balance_micro)
}

#[tokio::test]
async fn a_history_ends_in_sqlite_as_it_ends_in_memory() {
    for seed in 0..12 {
        let expected = transcript(seed, 60);
        let folder = folder();
        let store = open(folder.path()).await;
        let fences = fences(&store).await;
        let mut accepted = 0;
        // Batches of every size, some of them with one operation.
        let size = 1 + usize::try_from(seed).unwrap() * 5;
        for chunk in expected.posted.chunks(size) {
            let posts = chunk.iter().map(|(at_ms, operation)| {
                store.post(of(&fences, operation.role()), *at_ms, operation.clone())
            });
            for outcome in join_all(posts).await {
                match outcome {
                    Ok(posted) => accepted += usize::from(!posted.repeated),
                    Err(PostError::Refused(_)) => {}
                    Err(error) => panic!("seed {seed}: {error}"),
                }
            }
        }
        assert!(accepted > 20);
        let stored = store.load().await.expect("it can be read");
        assert_eq!(stored, expected.state, "seed {seed}");
        // And so it does for whoever opens it next.
        drop(store);
        assert_eq!(
            open(folder.path()).await.load().await.unwrap(),
            expected.state
        );
    }
}

#[tokio::test]
async fn of_a_batch_each_operation_succeeds_or_fails_alone() {
    let folder = folder();
    let store = open(folder.path()).await;
    let fences = fences(&store).await;
    let posts = [
        acme(),
        deposit(1),
        // Refused: nobody knows this customer.
        Operation::Unfreeze {
            customer: "nobody".to_owned(),
            reference: "n".to_owned(),
        },
        deposit(2),
        deposit(1),
    ];
    let outcomes =
        join_all(posts.map(|operation| store.post(of(&fences, operation.role()), 5, operation)))
            .await;
    let words: Vec<&str> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Ok(posted) if posted.repeated => "again",
            Ok(_) => "ok",
            Err(PostError::Refused(refusal)) => refusal.reason(),
            Err(_) => "error",
        })
        .collect();
    assert_eq!(words, ["ok", "ok", "unknown", "ok", "again"]);
    assert_eq!(
        balance(&store.load().await.unwrap(), "customer:acme"),
        2_000
    );
}

#[tokio::test]
async fn a_writer_that_lost_its_role_is_refused() {
    let folder = folder();
    let old = open(folder.path()).await;
    let old_fence = old.take_role(Role::Rails).await.unwrap();
    let person = old.take_role(Role::Person).await.unwrap();
    old.post(person, 0, acme()).await.unwrap();
    old.post(old_fence, 0, deposit(1)).await.unwrap();
    // Another process takes the role while the old writer is paused.
    let new = open(folder.path()).await;
    let new_fence = new.take_role(Role::Rails).await.unwrap();
    let refused = old.post(old_fence, 0, deposit(2)).await;
    assert!(
        matches!(refused, Err(PostError::Fenced { role: Role::Rails })),
        "{refused:?}"
    );
    new.post(new_fence, 0, deposit(2)).await.unwrap();
    // Its other roles are still its own.
    old.post(person, 0, acme()).await.unwrap();
    assert_eq!(balance(&new.load().await.unwrap(), "customer:acme"), 2_000);
}

#[tokio::test]
async fn sixteen_writers_of_two_processes_on_one_account_come_to_the_right_sum() {
    let folder = folder();
    let stores = [open(folder.path()).await, open(folder.path()).await];
    let rails = stores[0].take_role(Role::Rails).await.unwrap();
    let person = stores[0].take_role(Role::Person).await.unwrap();
    stores[0].post(person, 0, acme()).await.unwrap();
    let writers = (0..16_u32).map(|writer| {
        let store = stores[writer as usize % 2].clone();
        tokio::spawn(async move {
            for number in 0..25 {
                // Every deposit is told by two writers.
                store
                    .post(rails, 0, deposit(writer / 2 * 25 + number))
                    .await
                    .expect("it is posted");
            }
        })
    });
    for writer in join_all(writers).await {
        writer.unwrap();
    }
    assert_eq!(
        balance(&stores[1].load().await.unwrap(), "customer:acme"),
        8 * 25 * 1_000
    );
}

#[tokio::test]
async fn settings_that_lose_what_was_acknowledged_are_refused() {
    for (name, value, setting) in [
        ("synchronous", "OFF", "synchronous"),
        ("synchronous", "NORMAL", "synchronous"),
        ("journal_mode", "OFF", "journal_mode"),
        ("journal_mode", "MEMORY", "journal_mode"),
    ] {
        let folder = folder();
        let options = StoreOptions::file(&folder.path().join("ledger.db"))
            .create()
            .pragma(name, value.to_owned());
        match Store::open(options).await {
            Err(StoreError::Unsafe { setting: named, .. }) => assert_eq!(named, setting),
            other => panic!("{name} = {value}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_ledger_that_is_not_there_is_not_made_by_reading_it() {
    let folder = folder();
    let path = folder.path().join("none.db");
    let error = Store::open(StoreOptions::file(&path)).await.unwrap_err();
    assert!(
        error.to_string().contains("there is no ledger at"),
        "{error}"
    );
    assert!(!path.exists());
}

#[tokio::test]
async fn a_locked_database_is_waited_for_and_a_read_only_one_loses_nothing() {
    let folder = folder();
    let store = open(folder.path()).await;
    let person = store.take_role(Role::Person).await.unwrap();
    // Someone else holds the lock for a while.
    let lock = open(folder.path()).await;
    let locked = {
        use sqlx::Connection as _;
        let path = folder.path().join("ledger.db");
        let mut other = sqlx::SqliteConnection::connect(&format!("sqlite:{}", path.display()))
            .await
            .unwrap();
        sqlx::query("BEGIN IMMEDIATE")
            .execute(&mut other)
            .await
            .unwrap();
        let posting = tokio::spawn({
            let store = store.clone();
            async move { store.post(person, 0, acme()).await }
        });
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        assert!(!posting.is_finished());
        sqlx::query("COMMIT").execute(&mut other).await.unwrap();
        posting
    };
    locked.await.unwrap().unwrap();
    drop(lock);
    let options =
        StoreOptions::file(&folder.path().join("ledger.db")).pragma("query_only", "ON".to_owned());
    let reading = Store::open(options).await;
    // Even taking a role is writing.
    if let Ok(reading) = reading {
        assert!(matches!(
            reading.take_role(Role::Person).await,
            Err(PostError::Unavailable(_))
        ));
    }
    assert_eq!(store.load().await.unwrap().ledger().head.sequence, 1);
}

/// A ledger of one history, that someone lays hands on.
async fn tampered(statement: &'static str) -> (Vec<String>, Vec<String>) {
    use sqlx::Connection as _;
    let folder = folder();
    let path = folder.path().join("ledger.db");
    let store = open(folder.path()).await;
    let fences = fences(&store).await;
    for (at_ms, operation) in transcript(3, 150).posted {
        let _ = store
            .post(of(&fences, operation.role()), at_ms, operation)
            .await;
    }
    let before = store.verify(None).await.unwrap();
    assert_eq!(before.findings, Vec::<String>::new());
    assert!(before.entries > 100 && before.head == store.load().await.unwrap().ledger().head);
    let mut other = sqlx::SqliteConnection::connect(&format!("sqlite:{}", path.display()))
        .await
        .unwrap();
    for trigger in [
        "entry_is_never_changed",
        "entry_is_never_removed",
        "request_is_never_changed",
        "request_is_never_removed",
    ] {
        let drop = sqlx::AssertSqlSafe(format!("DROP TRIGGER {trigger}"));
        sqlx::query(drop).execute(&mut other).await.unwrap();
    }
    for part in statement.split(';') {
        assert!(
            sqlx::query(part)
                .execute(&mut other)
                .await
                .unwrap()
                .rows_affected()
                > 0,
            "{part}"
        );
    }
    let alone = store.verify(None).await.unwrap().findings;
    let with_head = store.verify(Some(&before.head)).await.unwrap().findings;
    (alone, with_head)
}

#[tokio::test]
async fn verification_names_what_was_changed() {
    for (statement, named) in [
        (
            "UPDATE entry SET amount_micro = amount_micro + 1 WHERE sequence = 7",
            "entry 7",
        ),
        (
            "UPDATE entry SET at_ms = at_ms + 1 WHERE sequence = 7",
            "entry 7",
        ),
        ("DELETE FROM entry WHERE sequence = 7", "entry 7 is missing"),
        (
            "UPDATE entry SET sequence = -1 WHERE sequence = 7;UPDATE entry SET sequence = 7 WHERE sequence = 8;UPDATE entry SET sequence = 8 WHERE sequence = -1",
            "entry 7",
        ),
        (
            "UPDATE account SET balance_micro = balance_micro + 1 WHERE account = 'platform'",
            "platform has",
        ),
        (
            "UPDATE account SET state = replace(state, 'false', 'true') WHERE account = 'customer:customer-1'",
            "account customer:customer-1",
        ),
        (
            "DELETE FROM account WHERE account = 'customer:customer-1'",
            "account customer:customer-1 is missing",
        ),
        (
            "UPDATE request SET operation = replace(operation, 'customer-1', 'customer-2') WHERE key = 'open/customer-1'",
            "open/customer-1 was changed",
        ),
        (
            "UPDATE request SET key = 'open/nobody' WHERE key = 'open/customer-1'",
            "open/customer-1 is missing",
        ),
        (
            "UPDATE charge SET state = replace(state, '\"disputed_micro\":0', '\"disputed_micro\":1')",
            "charge for p-",
        ),
        (
            "UPDATE part SET state = replace(state, '\"gpu_count\":', '\"gpu_count\":1') WHERE kind = 'placement'",
            "placement p-",
        ),
        (
            "UPDATE ledger SET state = replace(state, '\"incarnation\":0', '\"incarnation\":1')",
            "head or totals",
        ),
    ] {
        let (findings, _) = tampered(statement).await;
        assert!(
            findings.iter().any(|finding| finding.contains(named)),
            "{statement}: {findings:?}"
        );
    }
}

#[tokio::test]
async fn a_head_that_was_kept_shows_a_tail_that_was_cut() {
    let cut = "DELETE FROM entry WHERE sequence = (SELECT max(sequence) FROM entry)";
    let (alone, with_head) = tampered(cut).await;
    assert!(!alone.is_empty());
    assert!(
        with_head.iter().any(|finding| finding.contains("old copy")),
        "{with_head:?}"
    );
}

#[tokio::test]
async fn a_statement_has_the_balance_after_each_entry_page_by_page() {
    let folder = folder();
    let store = open(folder.path()).await;
    let fences = fences(&store).await;
    for (at_ms, operation) in transcript(3, 60).posted {
        let _ = store
            .post(of(&fences, operation.role()), at_ms, operation)
            .await;
    }
    let state = store.load().await.unwrap();
    for (account, known) in state.accounts() {
        let mut balance = known.balance_micro;
        let mut before = None;
        loop {
            let page = store.statement(account, before, 3).await.unwrap();
            for line in &page {
                assert_eq!(
                    line.balance_micro, balance,
                    "{account} at {}",
                    line.entry.sequence
                );
                balance -= line.change_micro;
            }
            let Some(last) = page.last() else { break };
            before = Some(last.entry.sequence);
        }
        assert_eq!(balance, 0, "{account}");
    }
}
