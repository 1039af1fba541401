//! Everything that is stored, computed again from the operations.

use std::collections::{BTreeMap, VecDeque};

use creo_market::money::terms::hexadecimal;
use sha2::{Digest as _, Sha256};
use sqlx::{Connection as _, Row as _, SqliteConnection, sqlite::SqliteRow};

use super::{Store, StoreError, rows};
use crate::{Entry, Head, Operation, State, Stop};

/// Entries that are read at a time.
const PAGE: i64 = 4_096;
/// Findings that are listed at most: of a ledger that is wrong throughout,
/// nobody reads more.
const FINDINGS: usize = 100;

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Entries that were read.
    pub entries: i64,
    /// The last one.
    pub head: Head,
    /// What is not as it must be, the first first; empty where all is well.
    pub findings: Vec<String>,
}

impl Store {
    /// Computes the ledger again from its operations and compares every row. A
    /// `head` that was kept elsewhere shows a tail that was cut, an old copy,
    /// and a chain that was computed anew.
    ///
    /// # Errors
    ///
    /// The store cannot be read. What is wrong with the ledger is no error but a
    /// finding.
    pub async fn verify(&self, head: Option<&Head>) -> Result<Verified, StoreError> {
        let mut connection = self.reader().await?;
        let mut transaction = connection.begin().await?;
        let mut audit = Audit {
            state: State::new(self.options.parameters),
            last: Head::default(),
            expected: VecDeque::new(),
            verified: Verified::default(),
        };
        audit.entries(&mut transaction).await?;
        if audit.verified.findings.is_empty() {
            match rows::everything(&mut transaction, self.options.parameters).await {
                Ok(stored) => audit.compare(&stored),
                Err(error @ StoreError::Damaged { .. }) => audit.found(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        if let Some(head) = head {
            audit.anchor(&mut transaction, head).await?;
        }
        audit.verified.head = audit.last;
        Ok(audit.verified)
    }
}

struct Audit {
    state: State,
    last: Head,
    /// What must follow of the operation that was applied last.
    expected: VecDeque<Entry>,
    verified: Verified,
}

impl Audit {
    fn found(&mut self, what: String) {
        if self.verified.findings.len() < FINDINGS {
            self.verified.findings.push(what);
        }
    }

    /// Goes through all entries; ends at the first that is not as it must be,
    /// because nothing after it can be judged.
    async fn entries(&mut self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        loop {
            let rows = sqlx::query("SELECT e.sequence, e.key, e.digest, e.cause, e.debit, e.credit, e.amount_micro, e.at_ms, e.hash, r.operation FROM entry e LEFT JOIN request r ON r.key = e.key WHERE e.sequence > ? ORDER BY e.sequence LIMIT ?")
                .bind(self.last.sequence)
                .bind(PAGE)
                .fetch_all(&mut *connection)
                .await?;
            if rows.is_empty() {
                if let Some(missing) = self.expected.front() {
                    let what = format!("entry {} is missing", missing.sequence);
                    self.found(what);
                }
                return Ok(());
            }
            for row in rows {
                let sequence: i64 = row.try_get("sequence")?;
                if let Err(what) = self.entry(&row) {
                    self.found(format!("entry {sequence}: {what}"));
                    return Ok(());
                }
                self.verified.entries += 1;
            }
        }
    }

    fn entry(&mut self, row: &SqliteRow) -> Result<(), String> {
        let stored = read(row).map_err(|error| error.to_string())?;
        let next = self.last.sequence + 1;
        if stored.sequence != next {
            return Err(format!("entry {next} is missing before it"));
        }
        if stored.hash != stored.link(&self.last.hash) {
            return Err("it is not what it was when it was linked to the one before".to_owned());
        }
        if self.expected.is_empty() {
            self.operation(row, &stored)?;
        }
        let computed = self.expected.pop_front();
        if computed.as_ref() != Some(&stored) {
            return Err(format!("its operation gives {computed:?} instead"));
        }
        self.last = stored.head();
        Ok(())
    }

    fn operation(&mut self, row: &SqliteRow, entry: &Entry) -> Result<(), String> {
        let text: Option<String> = row
            .try_get("operation")
            .map_err(|error| error.to_string())?;
        let text = text.ok_or_else(|| format!("its operation {} is missing", entry.key))?;
        let digest = hexadecimal(&Sha256::digest(&text));
        if digest != entry.digest {
            return Err(format!("its operation {} was changed", entry.key));
        }
        let operation: Operation =
            serde_json::from_str(&text).map_err(|error| format!("{}: {error}", entry.key))?;
        match self.state.apply(operation.role(), entry.at_ms, &operation) {
            Ok(applied) if applied.is_repetition() => {
                Err(format!("its operation {} was there before", entry.key))
            }
            Ok(applied) => {
                self.expected = applied.entries.into();
                Ok(())
            }
            Err(Stop::Refused(refusal)) => {
                Err(format!("its operation {} is refused: {refusal}", entry.key))
            }
            Err(missing @ Stop::Missing(_)) => Err(missing.to_string()),
        }
    }

    /// Compares what is stored of the state with what was computed.
    fn compare(&mut self, stored: &State) {
        let computed = self.state.clone();
        let mut findings = Vec::new();
        differences(
            "account",
            &stored.accounts,
            &computed.accounts,
            &mut findings,
        );
        differences(
            "placement",
            &stored.placements,
            &computed.placements,
            &mut findings,
        );
        differences("epoch", &stored.epochs, &computed.epochs, &mut findings);
        differences(
            "dispute",
            &stored.disputes,
            &computed.disputes,
            &mut findings,
        );
        differences("owner", &stored.owners, &computed.owners, &mut findings);
        differences(
            "withdrawal",
            &stored.withdrawals,
            &computed.withdrawals,
            &mut findings,
        );
        differences(
            "operation",
            &stored.requests,
            &computed.requests,
            &mut findings,
        );
        let charges = |state: &State| -> BTreeMap<String, _> {
            let charges = state.charges.iter();
            charges
                .map(|((epoch, placement), charge)| {
                    (format!("{placement} in epoch {epoch}"), *charge)
                })
                .collect()
        };
        differences(
            "charge for",
            &charges(stored),
            &charges(&computed),
            &mut findings,
        );
        if stored.ledger != computed.ledger {
            findings.push("the ledger's head or totals are not what its entries give".to_owned());
        }
        for finding in findings {
            self.found(finding);
        }
    }

    async fn anchor(
        &mut self,
        connection: &mut SqliteConnection,
        head: &Head,
    ) -> Result<(), StoreError> {
        if head.sequence == 0 {
            return Ok(());
        }
        let row = sqlx::query("SELECT hash FROM entry WHERE sequence = ?")
            .bind(head.sequence)
            .fetch_optional(connection)
            .await?;
        let Some(row) = row else {
            self.found(format!(
                "entry {} is missing, which was the last when the head was kept: the ledger is an old copy, or its tail was cut",
                head.sequence
            ));
            return Ok(());
        };
        if row.try_get::<String, _>(0)? != head.hash {
            self.found(format!(
                "entry {} is not the one of the head that was kept: the ledger was computed anew",
                head.sequence
            ));
        }
        Ok(())
    }
}

fn read(row: &SqliteRow) -> Result<Entry, StoreError> {
    let account = |column: &str| -> Result<_, StoreError> {
        let text: Option<String> = row.try_get(column)?;
        text.map(|text| text.parse().map_err(StoreError::damaged))
            .transpose()
    };
    Ok(Entry {
        sequence: row.try_get("sequence")?,
        key: row.try_get("key")?,
        digest: row.try_get("digest")?,
        cause: row.try_get("cause")?,
        debit: account("debit")?,
        credit: account("credit")?,
        amount_micro: row.try_get("amount_micro")?,
        at_ms: row.try_get("at_ms")?,
        hash: row.try_get("hash")?,
    })
}

fn differences<K: Ord + std::fmt::Display, V: PartialEq>(
    what: &str,
    stored: &BTreeMap<K, V>,
    computed: &BTreeMap<K, V>,
    findings: &mut Vec<String>,
) {
    for (name, value) in stored {
        match computed.get(name) {
            None => findings.push(format!("{what} {name} follows from no operation")),
            Some(expected) if expected != value => {
                findings.push(format!("{what} {name} is not what its entries give"));
            }
            Some(_) => {}
        }
    }
    for name in computed.keys().filter(|name| !stored.contains_key(name)) {
        findings.push(format!("{what} {name} is missing"));
    }
}

/// A line of a statement.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StatementLine {
    /// The entry.
    pub entry: Entry,
    /// By how much the account's balance changed, in micro-credits.
    #[serde(with = "crate::operation::as_text")]
    pub change_micro: i64,
    /// The balance after it, in micro-credits.
    #[serde(with = "crate::operation::as_text")]
    pub balance_micro: i64,
}

impl Store {
    /// An account's entries before `before` (the newest where it is absent),
    /// newest first, at most `lines` of them (and never more than 1,000), with
    /// the balance after each.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub async fn statement(
        &self,
        account: &crate::Account,
        before: Option<i64>,
        lines: u32,
    ) -> Result<Vec<StatementLine>, StoreError> {
        let mut connection = self.reader().await?;
        let limit = i64::from(lines.min(1_000));
        let before = before.unwrap_or(i64::MAX);
        // Each half walks its own index backwards and stops.
        let rows = sqlx::query("SELECT * FROM (SELECT * FROM entry WHERE debit = ?1 AND sequence < ?2 ORDER BY sequence DESC LIMIT ?3) UNION ALL SELECT * FROM (SELECT * FROM entry WHERE credit = ?1 AND sequence < ?2 ORDER BY sequence DESC LIMIT ?3) ORDER BY sequence DESC LIMIT ?3")
            .bind(account.to_string())
            .bind(before)
            .bind(limit)
            .fetch_all(&mut connection)
            .await?;
        let mut statement = Vec::with_capacity(rows.len());
        for row in rows {
            let entry = read(&row)?;
            let is_debit = entry.debit.as_ref() == Some(account);
            let balance: Option<i64> = row.try_get(if is_debit {
                "debit_balance_micro"
            } else {
                "credit_balance_micro"
            })?;
            statement.push(StatementLine {
                change_micro: if is_debit {
                    -entry.amount_micro
                } else {
                    entry.amount_micro
                },
                balance_micro: balance.unwrap_or_default(),
                entry,
            });
        }
        Ok(statement)
    }
}
