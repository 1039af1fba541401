//! Rows of the tables, and what they are in the state.

use std::collections::{BTreeMap, BTreeSet};

use creo_market::money::{settlement::BondState, terms::hexadecimal};
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};

use super::StoreError;
use crate::{
    Account, AccountState, Change, ChargeState, Entry, EpochState, Kind, LedgerParameters,
    LedgerState, Need, Operation, OwnerState, PlacementState, RequestState, Role, State,
};

fn json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(StoreError::damaged)
}

fn parsed<T: DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(StoreError::damaged)
}

fn state<T: DeserializeOwned>(row: &SqliteRow) -> Result<T, StoreError> {
    parsed(row.try_get("state")?)
}

/// Gives a new database what every ledger has.
pub(super) async fn begin_ledger(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let mut secret = [0; 32];
    let read = std::fs::File::open("/dev/urandom")
        .and_then(|mut source| std::io::Read::read_exact(&mut source, &mut secret));
    read.map_err(sqlx::Error::Io)?;
    let new = json(&LedgerState::default())?;
    sqlx::query("INSERT INTO ledger (one, state) VALUES (1, ?) ON CONFLICT DO NOTHING")
        .bind(new)
        .execute(&mut *connection)
        .await?;
    for (name, value) in [
        ("currency", "credit".to_owned()),
        ("scale", "6".to_owned()),
        ("secret", hexadecimal(&secret)),
    ] {
        sqlx::query("INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(name)
            .bind(value)
            .execute(&mut *connection)
            .await?;
    }
    for role in Role::ALL {
        sqlx::query("INSERT INTO fence (role, epoch) VALUES (?, 0) ON CONFLICT DO NOTHING")
            .bind(role.word())
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

pub(super) async fn meta(
    connection: &mut SqliteConnection,
    name: &str,
) -> Result<String, StoreError> {
    let row = sqlx::query("SELECT value FROM meta WHERE name = ?")
        .bind(name)
        .fetch_one(connection)
        .await?;
    Ok(row.try_get(0)?)
}

pub(super) async fn ledger(connection: &mut SqliteConnection) -> Result<LedgerState, StoreError> {
    let row = sqlx::query("SELECT state FROM ledger WHERE one = 1")
        .fetch_one(connection)
        .await?;
    state(&row)
}

pub(super) async fn fences(
    connection: &mut SqliteConnection,
) -> Result<BTreeMap<String, i64>, StoreError> {
    let rows = sqlx::query("SELECT role, epoch FROM fence")
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect()
}

pub(super) async fn raise_fence(
    connection: &mut SqliteConnection,
    role: Role,
) -> Result<i64, StoreError> {
    let row = sqlx::query("UPDATE fence SET epoch = epoch + 1 WHERE role = ? RETURNING epoch")
        .bind(role.word())
        .fetch_one(connection)
        .await?;
    Ok(row.try_get(0)?)
}

fn account_change(row: &SqliteRow) -> Result<Change, StoreError> {
    let account: String = row.try_get("account")?;
    let account = account.parse().map_err(StoreError::damaged)?;
    let known: AccountState = state(row)?;
    let balance_micro: i64 = row.try_get("balance_micro")?;
    if known.balance_micro != balance_micro {
        let what = format!("{account} has {balance_micro} and {}", known.balance_micro);
        return Err(StoreError::damaged(what));
    }
    Ok(Change::Account(account, known))
}

fn request_change(row: &SqliteRow) -> Result<Change, StoreError> {
    let request = RequestState {
        digest: row.try_get("digest")?,
        first_sequence: row.try_get("first_sequence")?,
        entries: row.try_get("entries")?,
    };
    Ok(Change::Request(row.try_get("key")?, request))
}

fn part_change(row: &SqliteRow) -> Result<Change, StoreError> {
    let (kind, name): (String, String) = (row.try_get("kind")?, row.try_get("name")?);
    Ok(match kind.as_str() {
        "placement" => Change::Placement(name, state(row)?),
        "dispute" => Change::Dispute(name, state(row)?),
        "owner" => Change::Owner(name, state(row)?),
        "withdrawal" => Change::Withdrawal(name, state(row)?),
        "epoch" => Change::Epoch(name.parse().map_err(StoreError::damaged)?, state(row)?),
        _ => {
            return Err(StoreError::damaged(format!(
                "there is a part {kind} {name}"
            )));
        }
    })
}

fn charge_change(row: &SqliteRow) -> Result<Change, StoreError> {
    let (epoch, placement) = (row.try_get("epoch")?, row.try_get("placement")?);
    Ok(Change::Charge(epoch, placement, state(row)?))
}

type ReadChange = fn(&SqliteRow) -> Result<Change, StoreError>;

/// What is stored of something that the core needs to know.
pub(super) async fn load(
    connection: &mut SqliteConnection,
    need: &Need,
) -> Result<Vec<Change>, StoreError> {
    let part = |kind: &'static str, name: &str| {
        sqlx::query("SELECT kind, name, state FROM part WHERE kind = ? AND name = ?")
            .bind(kind)
            .bind(name.to_owned())
    };
    let (query, change): (_, ReadChange) = match need {
        Need::Account(account) => (
            sqlx::query("SELECT account, balance_micro, state FROM account WHERE account = ?")
                .bind(account.to_string()),
            account_change,
        ),
        Need::Payouts(owner) => {
            let range = Account::payouts_of(owner);
            let query = "SELECT account, balance_micro, state FROM account WHERE account >= ? AND account < ? AND balance_micro <> 0";
            let query = sqlx::query(query)
                .bind(range.start.to_string())
                .bind(range.end.to_string());
            (query, account_change)
        }
        Need::Placement(name) => (part("placement", name), part_change),
        Need::Epoch(epoch) => (part("epoch", &epoch.to_string()), part_change),
        Need::Dispute(id) => (part("dispute", id), part_change),
        Need::Owner(name) => (part("owner", name), part_change),
        Need::Withdrawal(id) => (part("withdrawal", id), part_change),
        Need::Charge(epoch, placement) => (
            sqlx::query(
                "SELECT epoch, placement, state FROM charge WHERE epoch = ? AND placement = ?",
            )
            .bind(*epoch)
            .bind(placement.clone()),
            charge_change,
        ),
        Need::Request(key) => (
            sqlx::query("SELECT key, digest, first_sequence, entries FROM request WHERE key = ?")
                .bind(key.clone()),
            request_change,
        ),
    };
    let rows = query.fetch_all(connection).await?;
    rows.iter().map(change).collect()
}

/// Everything that is stored.
pub(super) async fn everything(
    connection: &mut SqliteConnection,
    parameters: LedgerParameters,
) -> Result<State, StoreError> {
    let mut all = State::new(parameters);
    all.learn_all([Change::Ledger(ledger(connection).await?)]);
    for (query, change) in [
        (
            "SELECT account, balance_micro, state FROM account",
            account_change as ReadChange,
        ),
        ("SELECT kind, name, state FROM part", part_change),
        ("SELECT epoch, placement, state FROM charge", charge_change),
        (
            "SELECT key, digest, first_sequence, entries FROM request",
            request_change,
        ),
    ] {
        let rows = sqlx::query(query).fetch_all(&mut *connection).await?;
        let changes: Result<Vec<Change>, StoreError> = rows.iter().map(change).collect();
        all.learn_all(changes?);
    }
    Ok(all)
}

/// Writes one part of the state as it is now.
pub(super) async fn save(
    connection: &mut SqliteConnection,
    change: &Change,
) -> Result<(), StoreError> {
    let part = |kind: &'static str, name: String, state: String| {
        sqlx::query("INSERT INTO part (kind, name, state) VALUES (?, ?, ?) ON CONFLICT (kind, name) DO UPDATE SET state = excluded.state")
            .bind(kind)
            .bind(name)
            .bind(state)
    };
    let query = match change {
        // With its operation, by `save_request`.
        Change::Request(..) => return Ok(()),
        Change::Ledger(state) => {
            sqlx::query("UPDATE ledger SET state = ? WHERE one = 1").bind(json(state)?)
        }
        Change::Account(account, state) => {
            sqlx::query("INSERT INTO account (account, balance_micro, state) VALUES (?, ?, ?) ON CONFLICT (account) DO UPDATE SET balance_micro = excluded.balance_micro, state = excluded.state")
                .bind(account.to_string())
                .bind(state.balance_micro)
                .bind(json(state)?)
        }
        Change::Charge(epoch, placement, state) => {
            sqlx::query("INSERT INTO charge (epoch, placement, state) VALUES (?, ?, ?) ON CONFLICT (epoch, placement) DO UPDATE SET state = excluded.state")
                .bind(*epoch)
                .bind(placement.clone())
                .bind(json(state)?)
        }
        Change::Placement(name, state) => part("placement", name.clone(), json(state)?),
        Change::Epoch(epoch, state) => part("epoch", epoch.to_string(), json(state)?),
        Change::Dispute(id, state) => part("dispute", id.clone(), json(state)?),
        Change::Owner(name, state) => part("owner", name.clone(), json(state)?),
        Change::Withdrawal(id, state) => part("withdrawal", id.clone(), json(state)?),
    };
    query.execute(connection).await?;
    Ok(())
}

/// An entry with the balances after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EntryRow {
    pub entry: Entry,
    pub debit_balance_micro: Option<i64>,
    pub credit_balance_micro: Option<i64>,
}

pub(super) async fn save_entry(
    connection: &mut SqliteConnection,
    row: &EntryRow,
) -> Result<(), StoreError> {
    let entry = &row.entry;
    sqlx::query("INSERT INTO entry (sequence, key, digest, cause, debit, credit, amount_micro, at_ms, hash, debit_balance_micro, credit_balance_micro) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
        .bind(entry.sequence)
        .bind(entry.key.clone())
        .bind(entry.digest.clone())
        .bind(entry.cause.clone())
        .bind(entry.debit.as_ref().map(ToString::to_string))
        .bind(entry.credit.as_ref().map(ToString::to_string))
        .bind(entry.amount_micro)
        .bind(entry.at_ms)
        .bind(entry.hash.clone())
        .bind(row.debit_balance_micro)
        .bind(row.credit_balance_micro)
        .execute(connection)
        .await?;
    Ok(())
}

pub(super) async fn save_request(
    connection: &mut SqliteConnection,
    key: &str,
    request: &RequestState,
    operation: &Operation,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO request (key, digest, first_sequence, entries, operation) VALUES (?, ?, ?, ?, ?)")
        .bind(key.to_owned())
        .bind(request.digest.clone())
        .bind(request.first_sequence)
        .bind(request.entries)
        .bind(json(operation)?)
        .execute(connection)
        .await?;
    Ok(())
}

pub(super) async fn epoch(
    connection: &mut SqliteConnection,
    epoch: i64,
) -> Result<Option<EpochState>, StoreError> {
    let row = sqlx::query("SELECT state FROM part WHERE kind = 'epoch' AND name = ?")
        .bind(epoch.to_string())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(state).transpose()
}

/// Goes through an epoch's charges, some thousands at a time.
pub(super) async fn each_charge(
    connection: &mut SqliteConnection,
    epoch: i64,
    mut take: impl FnMut(PlacementState, ChargeState) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    const PAGE: i64 = 4_096;
    let mut after = String::new();
    loop {
        let rows = sqlx::query("SELECT c.placement, c.state, p.state AS terms FROM charge c JOIN part p ON p.kind = 'placement' AND p.name = c.placement WHERE c.epoch = ? AND c.placement > ? ORDER BY c.placement LIMIT ?")
            .bind(epoch)
            .bind(after.clone())
            .bind(PAGE)
            .fetch_all(&mut *connection)
            .await?;
        let Some(last) = rows.last() else {
            return Ok(());
        };
        after = last.try_get("placement")?;
        for row in &rows {
            take(parsed(row.try_get("terms")?)?, state(row)?)?;
        }
    }
}

/// Bonds, with their owners' pay after `since_ms`.
pub(super) async fn bonds(
    connection: &mut SqliteConnection,
    since_ms: i64,
) -> Result<BTreeMap<String, BondState>, StoreError> {
    let mut bonds: BTreeMap<String, BondState> = BTreeMap::new();
    let owners = sqlx::query("SELECT name, state FROM part WHERE kind = 'owner'")
        .fetch_all(&mut *connection)
        .await?;
    for row in owners {
        let owner: OwnerState = state(&row)?;
        let bond = bonds.entry(row.try_get("name")?).or_default();
        bond.pay_micro = owner.pay_micro(since_ms);
    }
    let accounts = sqlx::query("SELECT account, balance_micro, state FROM account WHERE account >= 'bond:' AND account < 'bond;'")
        .fetch_all(&mut *connection)
        .await?;
    for row in accounts {
        if let Change::Account(account, state) = account_change(&row)? {
            debug_assert_eq!(account.kind(), Kind::Bond);
            let bond = bonds.entry(account.name().to_owned()).or_default();
            bond.bond_micro = state.balance_micro;
        }
    }
    Ok(bonds)
}

/// The keys of the payouts of an epoch that are posted already.
pub(super) async fn posted_pays(
    connection: &mut SqliteConnection,
    epoch: i64,
) -> Result<BTreeSet<String>, StoreError> {
    let rows = sqlx::query("SELECT key FROM request WHERE key >= ? AND key < ?")
        .bind(format!("pay/{epoch}/"))
        .bind(format!("pay/{epoch}0"))
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}
