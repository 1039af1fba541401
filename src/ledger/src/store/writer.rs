//! The one task of a process that writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use sqlx::SqliteConnection;
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::{
    Fence, PostError, Posted, StoreError,
    rows::{self, EntryRow},
};
use crate::{
    Account, Applied, Change, LedgerParameters, Operation, RequestState, Role, State, Stop,
};

/// The most operations of one transaction.
const BATCH: usize = 256;
/// How often a transaction is tried that failed for a passing reason.
const ATTEMPTS: u32 = 8;
/// The most that one operation may need to know: more than the largest needs,
/// and an end where something goes round in circles.
const NEEDS: usize = 4_096;

type Answer<T> = oneshot::Sender<Result<T, PostError>>;

/// What the writer is handed.
#[derive(Debug)]
pub(super) enum Job {
    Post(Box<Request>),
    TakeRole { role: Role, answer: Answer<Fence> },
}

#[derive(Debug)]
pub(super) struct Request {
    pub fence: Fence,
    pub at_ms: i64,
    pub operation: Operation,
    pub answer: Answer<Posted>,
}

/// Starts the writer. It ends when nobody can hand it anything any more.
pub(super) fn start(
    connection: SqliteConnection,
    parameters: LedgerParameters,
    waiting: mpsc::Receiver<Job>,
) {
    tokio::spawn(
        Writer {
            connection,
            parameters,
            waiting,
        }
        .run(),
    );
}

struct Writer {
    connection: SqliteConnection,
    parameters: LedgerParameters,
    waiting: mpsc::Receiver<Job>,
}

/// What a transaction writes.
struct Batch {
    state: State,
    fences: BTreeMap<String, i64>,
    entries: Vec<EntryRow>,
    requests: Vec<(String, RequestState, Operation)>,
    changes: Vec<Change>,
}

impl Writer {
    async fn run(mut self) {
        while let Some(first) = self.waiting.recv().await {
            let mut requests = Vec::new();
            let take = self.gather(first, &mut requests);
            if !requests.is_empty() {
                self.post(requests).await;
            }
            if let Some((role, answer)) = take {
                let taken = self.take_role(role).await;
                // Nobody waits any more: then nobody has the role.
                let _ = answer.send(taken);
            }
        }
    }

    /// Takes what waits already, up to a batch, and never waits for more: while
    /// one batch is written, the next one gathers by itself. A role that is taken
    /// ends the batch.
    fn gather(&mut self, first: Job, requests: &mut Vec<Request>) -> Option<(Role, Answer<Fence>)> {
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Post(request) => requests.push(*request),
                Job::TakeRole { role, answer } => return Some((role, answer)),
            }
            if requests.len() >= BATCH {
                return None;
            }
            next = self.waiting.try_recv().ok();
        }
        None
    }

    async fn take_role(&mut self, role: Role) -> Result<Fence, PostError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match rows::raise_fence(&mut self.connection, role).await {
                Ok(epoch) => return Ok(Fence { role, epoch }),
                Err(error) if attempt < ATTEMPTS && passes(&error) => pause(attempt).await,
                Err(error) => return Err(PostError::Unavailable(error.to_string())),
            }
        }
    }

    /// Posts a batch, again where it failed for a passing reason: what had been
    /// written nevertheless is found by its key.
    async fn post(&mut self, requests: Vec<Request>) {
        let mut attempt = 0;
        let outcome = loop {
            attempt += 1;
            match self.transaction(&requests).await {
                Ok(outcomes) => break Ok(outcomes),
                Err(error) => {
                    // Where there is no transaction any more, there is nothing to undo.
                    let _ = sqlx::query("ROLLBACK").execute(&mut self.connection).await;
                    if attempt >= ATTEMPTS || !passes(&error) {
                        break Err(error.to_string());
                    }
                    tracing::warn!(%error, attempt, "a batch is posted again");
                    pause(attempt).await;
                }
            }
        };
        match outcome {
            Ok(outcomes) => {
                for (request, outcome) in requests.into_iter().zip(outcomes) {
                    // Nobody waits any more; it is written all the same.
                    let _ = request.answer.send(outcome);
                }
            }
            Err(text) => {
                for request in requests {
                    let _ = request
                        .answer
                        .send(Err(PostError::Unavailable(text.clone())));
                }
            }
        }
    }

    async fn transaction(
        &mut self,
        requests: &[Request],
    ) -> Result<Vec<Result<Posted, PostError>>, StoreError> {
        // The write lock first: nothing that is read here may be old.
        sqlx::query("BEGIN IMMEDIATE")
            .execute(&mut self.connection)
            .await?;
        let ledger = rows::ledger(&mut self.connection).await?;
        let mut batch = Batch {
            state: State::partial(self.parameters, ledger),
            fences: rows::fences(&mut self.connection).await?,
            entries: Vec::new(),
            requests: Vec::new(),
            changes: Vec::new(),
        };
        let mut outcomes = Vec::with_capacity(requests.len());
        for request in requests {
            outcomes.push(batch.post(&mut self.connection, request).await?);
        }
        batch.write(&mut self.connection).await?;
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        Ok(outcomes)
    }
}

impl Batch {
    async fn post(
        &mut self,
        connection: &mut SqliteConnection,
        request: &Request,
    ) -> Result<Result<Posted, PostError>, StoreError> {
        let Fence { role, epoch } = request.fence;
        if self.fences.get(role.word()) != Some(&epoch) {
            return Ok(Err(PostError::Fenced { role }));
        }
        let at_ms = request.at_ms.max(self.state.ledger().last_at_ms);
        for _ in 0..NEEDS {
            match self.state.apply(role, at_ms, &request.operation) {
                Ok(applied) => return self.applied(applied, &request.operation).map(Ok),
                Err(Stop::Refused(refusal)) => return Ok(Err(refusal.into())),
                Err(Stop::Missing(need)) => {
                    let loaded = rows::load(connection, &need).await?;
                    self.state.learn(need, loaded);
                }
            }
        }
        Err(StoreError::damaged("an operation needs to know too much"))
    }

    fn applied(&mut self, applied: Applied, operation: &Operation) -> Result<Posted, StoreError> {
        let key = operation.key();
        let request = self
            .state
            .request(&key)
            .ok_or_else(|| StoreError::damaged("an operation was accepted without a trace"))?;
        let posted = Posted {
            first_sequence: request.first_sequence,
            entries: request.entries,
            repeated: applied.is_repetition(),
        };
        if !posted.repeated {
            self.requests
                .push((key, request.clone(), operation.clone()));
            self.entries.extend(with_balances(&applied));
            self.changes.extend(applied.changes);
        }
        Ok(posted)
    }

    /// Writes everything, each part of the state once, as it is in the end.
    async fn write(mut self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        for row in &self.entries {
            rows::save_entry(connection, row).await?;
        }
        for (key, request, operation) in &self.requests {
            rows::save_request(connection, key, request, operation).await?;
        }
        let mut written = BTreeSet::new();
        while let Some(change) = self.changes.pop() {
            if written.insert(change.name()) {
                rows::save(connection, &change).await?;
            }
        }
        Ok(())
    }
}

/// An operation's entries with the balances after each, from what the accounts
/// have in the end.
fn with_balances(applied: &Applied) -> Vec<EntryRow> {
    let mut balances: BTreeMap<&Account, i64> = applied
        .changes
        .iter()
        .filter_map(|change| match change {
            Change::Account(account, state) => Some((account, state.balance_micro)),
            _ => None,
        })
        .collect();
    let mut rows: Vec<EntryRow> = Vec::with_capacity(applied.entries.len());
    for entry in applied.entries.iter().rev() {
        let mut before = |account: &Option<Account>, by_micro: i64| {
            let balance = balances.get_mut(account.as_ref()?)?;
            let after = *balance;
            *balance -= by_micro;
            Some(after)
        };
        rows.push(EntryRow {
            debit_balance_micro: before(&entry.debit, -entry.amount_micro),
            credit_balance_micro: before(&entry.credit, entry.amount_micro),
            entry: entry.clone(),
        });
    }
    rows.reverse();
    rows
}

/// Whether the same may succeed a little later: the database was locked, or it
/// is not known what became of the transaction.
fn passes(error: &StoreError) -> bool {
    let StoreError::Sql(error) = error else {
        return false;
    };
    match error {
        // SQLITE_BUSY is 5 and SQLITE_LOCKED 6, in the lower byte.
        sqlx::Error::Database(error) => error
            .code()
            .and_then(|code| code.parse::<u32>().ok())
            .is_some_and(|code| matches!(code & 0xff, 5 | 6)),
        _ => false,
    }
}

async fn pause(attempt: u32) {
    sleep(Duration::from_millis(5) * 2_u32.pow(attempt.min(8))).await;
}
