-- What there is once: the head, totals, rails.
CREATE TABLE ledger (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    state TEXT NOT NULL
) STRICT;

-- What the ledger is: its currency, and the secret of its pseudonyms.
CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Who writes now, a row a role: a writer that was given the role before holds a
-- lower number, and is refused.
CREATE TABLE fence (
    role TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE account (
    account TEXT PRIMARY KEY,
    balance_micro INTEGER NOT NULL,
    state TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Placements, epochs, disputes, owners and withdrawals.
CREATE TABLE part (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE charge (
    epoch INTEGER NOT NULL,
    placement TEXT NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (epoch, placement)
) STRICT, WITHOUT ROWID;

-- Every operation that was accepted, by the key of its cause.
CREATE TABLE request (
    key TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    first_sequence INTEGER NOT NULL,
    entries INTEGER NOT NULL,
    operation TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- What followed from them, with the balances after it for statements.
CREATE TABLE entry (
    sequence INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    digest TEXT NOT NULL,
    cause TEXT NOT NULL,
    debit TEXT,
    credit TEXT,
    amount_micro INTEGER NOT NULL CHECK (amount_micro >= 0),
    at_ms INTEGER NOT NULL,
    hash TEXT NOT NULL,
    debit_balance_micro INTEGER,
    credit_balance_micro INTEGER
) STRICT;

CREATE INDEX entry_of_debit ON entry (debit, sequence) WHERE debit IS NOT NULL;
CREATE INDEX entry_of_credit ON entry (credit, sequence) WHERE credit IS NOT NULL;

-- Written once. This keeps honest programs from mistakes; against others there
-- is the chain.
CREATE TRIGGER entry_is_never_changed BEFORE UPDATE ON entry
BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END;
CREATE TRIGGER entry_is_never_removed BEFORE DELETE ON entry
BEGIN SELECT RAISE(ABORT, 'entries are never removed'); END;
CREATE TRIGGER request_is_never_changed BEFORE UPDATE ON request
BEGIN SELECT RAISE(ABORT, 'operations are never changed'); END;
CREATE TRIGGER request_is_never_removed BEFORE DELETE ON request
BEGIN SELECT RAISE(ABORT, 'operations are never removed'); END;
