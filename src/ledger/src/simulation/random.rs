use std::{collections::BTreeMap, fmt::Write as _};

use creo_market::{
    money::{
        epoch::{DAY_MS, Window},
        objectives::Faults,
        price::{HOUR_MS, Usage},
        pseudonym::Secret,
        split::Weight,
        terms::{Prices, Shares, Terms, Tier},
    },
    simulation::{Random, Violation},
};

use super::{
    check::check,
    script::{Script, Transcript, time_text},
};
use crate::{Cause, Funded, Operation, SettlementInputs, Source};

/// What a random history did: so that one that tested nothing shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Entries by cause.
    pub causes: BTreeMap<String, u64>,
    /// Operations that were refused.
    pub refused: u64,
}

impl Report {
    /// Adds another history's.
    pub fn add(&mut self, other: &Self) {
        for (cause, count) in &other.causes {
            *self.causes.entry(cause.clone()).or_default() += count;
        }
        self.refused += other.refused;
    }

    /// The causes that money moved for in no history. Dust is not among them:
    /// the rules leave none.
    #[must_use]
    pub fn never(&self) -> Vec<&'static str> {
        Cause::ALL
            .into_iter()
            .filter(|cause| *cause != Cause::Dust)
            .map(Cause::word)
            .filter(|word| !self.causes.contains_key(*word))
            .collect()
    }
}

/// The secret of simulated ledgers.
#[must_use]
pub fn secret() -> Secret {
    Secret::new([7; 32])
}

/// Runs the random history of a seed, once and with every operation posted
/// twice, and checks what must hold of both. `transcript` gets what became of
/// it, for comparison with a model.
///
/// # Errors
///
/// The first thing that does not hold.
pub fn run(
    seed: u64,
    steps: u64,
    transcript: impl FnOnce(&str, &Transcript) -> Result<(), String>,
) -> Result<Report, Violation> {
    let text = history(seed, steps);
    let violation = |what: String| Violation {
        seed,
        step: 0,
        what,
    };
    let script = Script::parse(&text).map_err(|error| violation(error.to_string()))?;
    let once = script
        .run(&secret(), 1)
        .map_err(|error| violation(error.to_string()))?;
    let twice = script
        .run(&secret(), 2)
        .map_err(|error| violation(error.to_string()))?;
    if once.state != twice.state || once.entries != twice.entries {
        return Err(violation("everything twice is not as once".to_owned()));
    }
    check(&once).map_err(violation)?;
    transcript(&text, &once).map_err(violation)?;
    let mut report = Report {
        refused: u64::try_from(once.refused).unwrap_or(u64::MAX),
        ..Report::default()
    };
    for entry in &once.entries {
        *report.causes.entry(entry.cause.clone()).or_default() += 1;
    }
    Ok(report)
}

/// The random history of a seed, as text.
#[must_use]
pub fn history(seed: u64, steps: u64) -> String {
    let mut author = Author {
        random: Random::new(seed),
        now_ms: 0,
        text: String::new(),
        told: Vec::new(),
        serial: 0,
        epoch: None,
        sealed: -1,
        seals: BTreeMap::new(),
        windows: BTreeMap::new(),
        placements: Vec::new(),
        withdrawals: Vec::new(),
        disputes: Vec::new(),
    };
    author.begin();
    for _ in 0..steps {
        author.step();
    }
    author.text
}

const CUSTOMERS: i64 = 3;
const OWNERS: i64 = 3;

/// Writes a history: it keeps in mind what it told, and nothing of what became
/// of it.
struct Author {
    random: Random,
    now_ms: i64,
    text: String,
    told: Vec<Operation>,
    serial: i64,
    epoch: Option<Window>,
    sealed: i64,
    seals: BTreeMap<i64, Operation>,
    windows: BTreeMap<i64, Window>,
    placements: Vec<String>,
    withdrawals: Vec<String>,
    disputes: Vec<String>,
}

impl Author {
    fn tell(&mut self, operation: Operation) {
        if let Ok(json) = serde_json::to_string(&operation) {
            let _ = writeln!(self.text, "? {json}");
        }
        self.told.push(operation);
    }

    fn at(&mut self, now_ms: i64) {
        self.now_ms = now_ms;
        let _ = writeln!(self.text, "@ {}", time_text(now_ms));
    }

    fn next(&mut self, prefix: &str) -> String {
        self.serial += 1;
        format!("{prefix}-{}", self.serial)
    }

    fn customer(&mut self) -> String {
        format!("customer-{}", self.random.below(CUSTOMERS))
    }

    fn owner(&mut self) -> String {
        format!("owner-{}", self.random.below(OWNERS))
    }

    fn rail(&mut self) -> String {
        self.random.pick(&["bank".to_owned(), "card".to_owned()])
    }

    fn placement(&mut self) -> String {
        self.random.pick(&self.placements.clone())
    }

    /// Amounts of every size, so that some are too large.
    fn amount(&mut self) -> i64 {
        let digits = self.random.below(9) + 1;
        let digits = u32::try_from(digits).unwrap_or(1);
        1 + self.random.below(10_i64.pow(digits))
    }

    fn begin(&mut self) {
        self.at(DAY_MS);
        for customer in 0..CUSTOMERS {
            self.tell(Operation::Open {
                customer: format!("customer-{customer}"),
            });
        }
        self.open_epoch();
        for _ in 0..2 {
            self.deposit();
            self.agree();
        }
        self.attest();
    }

    fn step(&mut self) {
        match self.random.below(33) {
            0..=1 => self.deposit(),
            2 => self.agree(),
            3..=5 => self.hold(),
            6..=12 => self.usage(),
            13 => self.release(),
            14..=18 => self.pass_time(),
            19 => self.chargeback(),
            20 => self.fund(),
            21 => self.attest(),
            22..=23 => self.withdraw(),
            24..=25 => self.end_withdrawal(),
            26 => self.dispute(),
            27 => self.resolve(),
            28..=29 => self.leave(),
            30 => self.forgive(),
            31 => self.repeat(),
            _ => self.settle_again(),
        }
    }

    fn open_epoch(&mut self) {
        let hours = 1 + self.random.below(3) * 15;
        let (epoch, start_ms) = self
            .epoch
            .map_or((0, self.now_ms), |last| (last.epoch + 1, last.end_ms));
        let window = Window {
            epoch,
            start_ms,
            end_ms: start_ms + hours * HOUR_MS,
            grace_ms: HOUR_MS / 4,
        };
        self.epoch = Some(window);
        self.windows.insert(epoch, window);
        self.tell(Operation::OpenEpoch { window });
    }

    fn deposit(&mut self) {
        let (rail, customer) = (self.rail(), self.customer());
        let amount_micro = 1_000_000 + self.amount();
        let reference = self.next("d");
        self.tell(Operation::Deposit {
            rail,
            reference,
            customer,
            amount_micro,
        });
    }

    fn agree(&mut self) {
        let placement = self.next("p");
        let node_bp = 5_000 + self.random.below(4_501);
        let validator_bp = self.random.below(501);
        let terms = Terms {
            placement: placement.clone(),
            customer: self.customer(),
            node: "node".to_owned(),
            owner: self.owner(),
            gpu_model: "NVIDIA L4".to_owned(),
            gpu_count: self.random.below(5),
            storage_gib: self.random.below(300),
            prices: Prices {
                price_micro_per_gpu_hour: self.random.below(3_000_000),
                price_micro_per_gib_month: self.random.below(100_000),
                price_micro_per_million_tokens_in: self.random.below(1_000_000),
                price_micro_per_million_tokens_out: self.random.below(1_000_000),
                price_micro_per_million_tokens_cached: 0,
            },
            tier: Tier::Standard,
            tier_bp: self.random.pick(&[10_000, 8_000, 12_500, 12_345]),
            parallelism: 1,
            interruptible: false,
            notice_seconds: 0,
            shares: Shares {
                customer_fee_bp: self.random.below(300),
                node_bp,
                validator_bp,
                platform_bp: 10_000 - node_bp - validator_bp,
            },
            since_ms: 0,
        };
        self.placements.push(placement);
        self.tell(Operation::Agree { terms });
    }

    fn hold(&mut self) {
        let (placement, amount_micro) = (self.placement(), self.amount() / 20 + 1);
        self.serial += 1;
        let expires_at_ms = self.now_ms + self.random.below(3) * HOUR_MS;
        let sequence = self.serial;
        self.tell(Operation::Hold {
            placement,
            sequence,
            amount_micro,
            expires_at_ms,
        });
    }

    fn release(&mut self) {
        self.serial += 1;
        let (placement, sequence) = (self.placement(), self.serial);
        self.tell(Operation::Release {
            placement,
            sequence,
        });
    }

    fn usage(&mut self) {
        self.serial += 1;
        let epoch = self.epoch.map_or(0, |window| window.epoch);
        // Now and then for the epoch before, and now and then less than before.
        let epoch = epoch - i64::from(self.random.once_in(3));
        let sign = if self.random.once_in(4) { -1 } else { 1 };
        let used = Usage {
            duration_ms: sign * self.random.below(2 * HOUR_MS),
            tokens_in: sign * self.random.below(100_000),
            tokens_out: sign * self.random.below(1_000),
            tokens_cached: 0,
        };
        let (placement, sequence) = (self.placement(), self.serial);
        let source = "meter".to_owned();
        self.tell(Operation::Usage {
            source,
            sequence,
            placement,
            epoch,
            used,
        });
    }

    fn pass_time(&mut self) {
        let by_ms = match self.random.below(6) {
            0 => 0,
            1 => self.random.below(1_000),
            2 => DAY_MS,
            3 => self.random.below(2) * 7 * DAY_MS + self.random.below(DAY_MS),
            _ => self.random.below(2 * HOUR_MS),
        };
        self.at(self.now_ms + by_ms);
        while let Some(window) = self.epoch {
            if window.end_ms > self.now_ms {
                break;
            }
            self.open_epoch();
        }
        // Epochs are closed in their order, now and then too early.
        while let Some(window) = self.windows.get(&(self.sealed + 1)).copied() {
            let over = self.now_ms >= window.cut_off_ms();
            let early = self.now_ms >= window.end_ms && self.random.once_in(4);
            if !over && !early {
                break;
            }
            self.sealed += 1;
            self.seal(self.sealed);
        }
    }

    fn seal(&mut self, epoch: i64) {
        let mut inputs = SettlementInputs::default();
        for placement in self.placements.clone() {
            if self.random.once_in(3) {
                let node_bp = self.random.below(10_001);
                let hub_bp = self.random.below(10_001 - node_bp);
                inputs.faults.insert(placement, Faults { node_bp, hub_bp });
            }
        }
        for validator in 0..self.random.below(4) {
            let weight = self.random.below(5);
            // One of them is an owner as well.
            let account = format!(
                "{}-{validator}",
                if validator == 0 { "owner" } else { "validator" }
            );
            inputs.validators.push(Weight { account, weight });
        }
        for owner in 0..self.random.below(3) {
            let weight = self.amount();
            let account = format!("owner-{owner}");
            inputs.standby.push(Weight { account, weight });
        }
        let seal = Operation::Seal { epoch, inputs };
        self.seals.insert(epoch, seal.clone());
        self.tell(seal);
        let _ = writeln!(self.text, "settle {epoch}");
        if self.random.once_in(2) {
            self.dispute();
        }
    }

    /// Closing and settling may have been refused: again, in order.
    fn settle_again(&mut self) {
        self.attest();
        for (epoch, seal) in self.seals.clone() {
            self.tell(seal);
            let _ = writeln!(self.text, "settle {epoch}");
        }
    }

    fn chargeback(&mut self) {
        let (rail, customer) = (self.rail(), self.customer());
        let (reference, amount_micro) = (self.next("c"), self.amount());
        self.tell(Operation::Chargeback {
            rail,
            reference,
            customer,
            amount_micro,
        });
    }

    fn fund(&mut self) {
        let to = match self.random.below(3) {
            0 => Funded::Subsidy,
            1 => Funded::Reserve,
            _ => Funded::Bond(self.owner()),
        };
        let (rail, reference) = (self.rail(), self.next("f"));
        let amount_micro = self.amount();
        self.tell(Operation::Fund {
            rail,
            reference,
            to,
            amount_micro,
        });
    }

    fn attest(&mut self) {
        for rail in ["bank", "card"] {
            let reference = self.next("s");
            let balance_micro = 100_000_000_000 - self.random.below(2) * self.amount() * 100;
            let rail = rail.to_owned();
            self.tell(Operation::Attest {
                rail,
                reference,
                balance_micro,
            });
        }
    }

    fn withdraw(&mut self) {
        let id = self.next("w");
        let from = match self.random.below(5) {
            0..=2 => Source::Owner(self.owner()),
            3 => Source::Customer(self.customer()),
            _ => Source::Platform,
        };
        let (rail, amount_micro) = (self.rail(), self.amount() / 10 + 1);
        self.withdrawals.push(id.clone());
        self.tell(Operation::Withdraw {
            id,
            from,
            rail,
            amount_micro,
        });
    }

    fn end_withdrawal(&mut self) {
        let id = self.random.pick(&self.withdrawals.clone());
        let operation = if self.random.once_in(2) {
            Operation::Sent { id }
        } else {
            Operation::Failed { id }
        };
        self.tell(operation);
    }

    fn dispute(&mut self) {
        let id = self.next("x");
        let (placement, amount_micro) = (self.placement(), self.amount() / 100 + 1);
        let epoch = (self.sealed - self.random.below(2)).max(0);
        self.disputes.push(id.clone());
        self.tell(Operation::Dispute {
            id,
            epoch,
            placement,
            amount_micro,
        });
    }

    fn resolve(&mut self) {
        let id = self.random.pick(&self.disputes.clone());
        let upheld_micro = match self.random.below(3) {
            0 => 0,
            1 => 1 + self.random.below(9),
            _ => self.amount() / 100,
        };
        self.tell(Operation::Resolve { id, upheld_micro });
    }

    fn leave(&mut self) {
        let owner = self.owner();
        let id = "leaving".to_owned();
        let operation = match self.random.below(3) {
            0 => Operation::Notice { id, owner },
            1 => Operation::FreeBond { id, owner },
            _ => {
                let (id, amount_micro) = (self.next("g"), self.amount() / 100 + 1);
                Operation::Donate {
                    id,
                    owner,
                    amount_micro,
                }
            }
        };
        self.tell(operation);
    }

    fn forgive(&mut self) {
        let (customer, reference) = (self.customer(), self.next("n"));
        let operation = if self.random.once_in(3) {
            Operation::WriteOff {
                customer,
                reference,
            }
        } else {
            Operation::Unfreeze {
                customer,
                reference,
            }
        };
        self.tell(operation);
    }

    /// Something again, or under its name something else.
    fn repeat(&mut self) {
        let Some(mut operation) = self.told.get(self.random.index(self.told.len())).cloned() else {
            return;
        };
        if self.random.once_in(2)
            && let Operation::Deposit { amount_micro, .. }
            | Operation::Hold { amount_micro, .. }
            | Operation::Withdraw { amount_micro, .. } = &mut operation
        {
            *amount_micro += 1;
        }
        self.tell(operation);
    }
}
