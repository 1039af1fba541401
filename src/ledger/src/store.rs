//! The ledger in SQL.
//!
//! One writer task a process applies operations in batches, each batch one
//! transaction that begins by taking the database's write lock; so there is one
//! order of writers, whatever process they are in. An operation is answered
//! after its transaction is on the disk, never before.

mod audit;
mod rows;
mod writer;

use std::{path::Path, time::Duration};

use creo_market::money::{Invalid, pseudonym::Secret};
use sqlx::{
    Connection as _, Row as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

pub use audit::{StatementLine, Verified};

use crate::{LedgerParameters, LedgerState, Operation, Plan, Refusal, Role, Settler, State};

/// Operations that wait for the writer at most; who has more waits to hand them
/// over.
const QUEUE: usize = 1_024;
/// The most that is waited for another process's transaction.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a store does not open or cannot be read.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The database refused.
    #[error("the database: {0}")]
    Sql(#[from] sqlx::Error),
    /// Its tables cannot be brought to what this program knows.
    #[error("the database's tables: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// What is acknowledged might be lost in a power cut.
    #[error(
        "{setting} is {value}, with which a power cut may lose what was acknowledged; use {use_instead}"
    )]
    Unsafe {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// A value that is safe.
        use_instead: &'static str,
    },
    /// What is stored is not what a ledger stores.
    #[error("the ledger is damaged: {what}; run creo ledger verify")]
    Damaged {
        /// What.
        what: String,
    },
    /// A rule refused a value.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// There is no ledger yet.
    #[error("there is no ledger at {path}")]
    None {
        /// Where it was looked for.
        path: String,
    },
}

impl StoreError {
    fn damaged(what: impl std::fmt::Display) -> Self {
        Self::Damaged {
            what: what.to_string(),
        }
    }
}

/// Why an operation was not accepted.
#[derive(Debug, Error)]
pub enum PostError {
    /// A rule refused it; nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Another writer was given the role since; nothing was changed.
    #[error("another writer has had the role {role} since; this one must stop")]
    Fenced {
        /// The role.
        role: Role,
    },
    /// The store could not be written. What became of the operation is not
    /// known; post it again, its key makes that harmless.
    #[error("the ledger cannot be written now: {0}; post it again")]
    Unavailable(String),
}

/// The right to post in a role, until another writer takes the role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The role.
    pub role: Role,
    /// How often the role had been taken by then.
    pub epoch: i64,
}

/// An operation that was accepted and is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posted {
    /// Its first entry.
    pub first_sequence: i64,
    /// How many entries it has.
    pub entries: i64,
    /// Whether it had been accepted before.
    pub repeated: bool,
}

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    connection: SqliteConnectOptions,
    create: bool,
    /// How operations are judged.
    pub parameters: LedgerParameters,
    unsafe_allowed: bool,
}

impl StoreOptions {
    /// The ledger in this file.
    #[must_use]
    pub fn file(path: &Path) -> Self {
        Self {
            connection: SqliteConnectOptions::new()
                .filename(path)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .foreign_keys(true)
                .busy_timeout(LOCK_TIMEOUT),
            create: false,
            parameters: LedgerParameters::default(),
            unsafe_allowed: false,
        }
    }

    /// Makes the ledger if there is none.
    #[must_use]
    pub fn create(mut self) -> Self {
        self.create = true;
        self
    }

    /// Sets a pragma of SQLite. What would make it unsafe is refused when it is
    /// opened.
    #[must_use]
    pub fn pragma(mut self, name: &'static str, value: String) -> Self {
        self.connection = self.connection.pragma(name, value);
        self
    }

    /// Opens it however unsafe it is: for the tests that show what is lost then.
    #[doc(hidden)]
    #[must_use]
    pub fn allow_unsafe(mut self) -> Self {
        self.unsafe_allowed = true;
        self
    }

    async fn connect(&self) -> Result<SqliteConnection, StoreError> {
        let path = self.connection.get_filename();
        if !self.create && !path.exists() {
            let path = path.display().to_string();
            return Err(StoreError::None { path });
        }
        let options = self.connection.clone().create_if_missing(self.create);
        let mut connection = SqliteConnection::connect_with(&options).await?;
        if !self.unsafe_allowed {
            refuse_unsafe(&mut connection).await?;
        }
        Ok(connection)
    }
}

/// Asks the database itself how it writes: what was set may not be what holds.
async fn refuse_unsafe(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let synchronous: i64 = sqlx::query("PRAGMA synchronous")
        .fetch_one(&mut *connection)
        .await?
        .try_get(0)?;
    if synchronous < 2 {
        return Err(StoreError::Unsafe {
            setting: "synchronous",
            value: synchronous.to_string(),
            use_instead: "FULL",
        });
    }
    let journal: String = sqlx::query("PRAGMA journal_mode")
        .fetch_one(&mut *connection)
        .await?
        .try_get(0)?;
    if !["wal", "delete", "truncate", "persist"].contains(&journal.as_str()) {
        return Err(StoreError::Unsafe {
            setting: "journal_mode",
            value: journal,
            use_instead: "WAL",
        });
    }
    Ok(())
}

/// A ledger that is open.
#[derive(Clone, Debug)]
pub struct Store {
    jobs: mpsc::Sender<writer::Job>,
    options: StoreOptions,
}

impl Store {
    /// Opens a ledger, brings its tables up to date, and starts its writer. The
    /// writer ends when the last handle is dropped and all it was handed is
    /// written.
    ///
    /// # Errors
    ///
    /// There is none, it cannot be opened, or its settings are unsafe.
    pub async fn open(options: StoreOptions) -> Result<Self, StoreError> {
        options.parameters.validate()?;
        let mut connection = options.connect().await?;
        sqlx::migrate!("./migrations").run(&mut connection).await?;
        rows::begin_ledger(&mut connection).await?;
        let (jobs, waiting) = mpsc::channel(QUEUE);
        writer::start(connection, options.parameters, waiting);
        Ok(Self { jobs, options })
    }

    /// Takes a role: whoever had it before is refused from now on.
    ///
    /// # Errors
    ///
    /// The store cannot be written.
    pub async fn take_role(&self, role: Role) -> Result<Fence, PostError> {
        let (answer, answered) = oneshot::channel();
        self.hand_over(writer::Job::TakeRole { role, answer })
            .await?;
        answered.await.map_err(|_| ended())?
    }

    /// The right to post in a role beside whoever has it now: for commands, which
    /// are over before anybody else takes it.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub async fn join_role(&self, role: Role) -> Result<Fence, StoreError> {
        let mut connection = self.reader().await?;
        let fences = rows::fences(&mut connection).await?;
        let epoch = fences.get(role.word()).copied().unwrap_or_default();
        Ok(Fence { role, epoch })
    }

    /// Posts an operation at a time in milliseconds since 1970; where that is
    /// before the last entry's, the last entry's time holds.
    ///
    /// # Errors
    ///
    /// It was refused, or the store cannot be written.
    pub async fn post(
        &self,
        fence: Fence,
        at_ms: i64,
        operation: Operation,
    ) -> Result<Posted, PostError> {
        let (answer, answered) = oneshot::channel();
        let request = writer::Request {
            fence,
            at_ms,
            operation,
            answer,
        };
        self.hand_over(writer::Job::Post(Box::new(request))).await?;
        answered.await.map_err(|_| ended())?
    }

    async fn hand_over(&self, job: writer::Job) -> Result<(), PostError> {
        self.jobs.send(job).await.map_err(|_| ended())
    }

    /// A connection of its own, to read with.
    pub(crate) async fn reader(&self) -> Result<SqliteConnection, StoreError> {
        let mut options = self.options.clone();
        options.create = false;
        options.connect().await
    }

    /// What there is once: the head, the rails, the totals.
    ///
    /// # Errors
    ///
    /// The store cannot be read, or is damaged.
    pub async fn ledger(&self) -> Result<LedgerState, StoreError> {
        let mut connection = self.reader().await?;
        rows::ledger(&mut connection).await
    }

    /// All that the ledger knows, as it is now. It is as large as the ledger.
    ///
    /// # Errors
    ///
    /// The store cannot be read, or is damaged.
    pub async fn load(&self) -> Result<State, StoreError> {
        let mut connection = self.reader().await?;
        let mut transaction = connection.begin().await?;
        rows::everything(&mut transaction, self.options.parameters).await
    }

    /// The secret that pseudonyms follow from.
    ///
    /// # Errors
    ///
    /// The store cannot be read, or is damaged.
    pub async fn secret(&self) -> Result<Secret, StoreError> {
        let mut connection = self.reader().await?;
        let text = rows::meta(&mut connection, "secret").await?;
        Ok(Secret::try_from(text)?)
    }

    /// How a closed epoch is settled; none where it is not closed.
    ///
    /// # Errors
    ///
    /// The store cannot be read, or a sum is beyond the range of amounts.
    pub async fn settlement(&self, epoch: i64) -> Result<Option<Plan>, StoreError> {
        let secret = self.secret().await?;
        let mut connection = self.reader().await?;
        let mut transaction = connection.begin().await?;
        let Some(state) = rows::epoch(&mut transaction, epoch).await? else {
            return Ok(None);
        };
        let Some(sealed_at_ms) = state.sealed_at_ms else {
            return Ok(None);
        };
        let mut settler = Settler::new(&state, &secret);
        rows::each_charge(&mut transaction, epoch, |placement, charge| {
            settler.add(&placement, &charge).map_err(StoreError::from)
        })
        .await?;
        let parameters = &self.options.parameters;
        let bonds = rows::bonds(&mut transaction, sealed_at_ms - parameters.bond.pay_ms).await?;
        let mut plan = settler.plan(bonds, parameters)?;
        let posted = rows::posted_pays(&mut transaction, epoch).await?;
        plan.operations.retain(|operation| {
            !matches!(operation, Operation::Pay { .. }) || !posted.contains(&operation.key())
        });
        Ok(Some(plan))
    }
}

fn ended() -> PostError {
    PostError::Unavailable("its writer has ended".to_owned())
}
