//! What is told of a settled epoch: to everyone, under pseudonyms, so that
//! anyone adds it up again; and to an auditor, so that everything is computed
//! again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Invalid,
    merkle::{self, Hash},
    price::{self, Usage},
    pseudonym::Secret,
    settlement::{EpochCharge, Pay, Settled, settle},
    terms::{Terms, hexadecimal},
};

/// One charge, as everyone sees it. Names are pseudonyms of the epoch; the
/// customer and the owner each know theirs, and so prove the same line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChargeLeaf {
    /// The epoch.
    pub epoch: i64,
    /// The Placement.
    pub placement: String,
    /// The customer.
    pub customer: String,
    /// The node's owner.
    pub owner: String,
    /// The digest of the terms.
    pub terms: String,
    /// The charge, in micro-credits.
    pub charge_micro: i64,
    /// The customer's fee, in micro-credits.
    pub fee_micro: i64,
    /// What became of the charge.
    #[serde(flatten)]
    pub settled: Settled,
}

/// One payout, as everyone sees it, before anything is withheld.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayoutLeaf {
    /// The epoch.
    pub epoch: i64,
    /// The owner's or validator's pseudonym.
    pub account: String,
    /// For its nodes, in micro-credits.
    pub node_micro: i64,
    /// For its checks, in micro-credits.
    pub validator_micro: i64,
    /// For standing by, in micro-credits.
    pub standby_micro: i64,
}

impl ChargeLeaf {
    /// The leaf of a charge on terms of this digest.
    #[must_use]
    pub fn new(secret: &Secret, epoch: i64, charge: &EpochCharge, terms: &str) -> Self {
        let name = |kind, name: &str| secret.pseudonym(kind, name, epoch);
        Self {
            epoch,
            placement: name("placement", &charge.placement),
            customer: name("customer", &charge.customer),
            owner: name("payout", &charge.owner),
            terms: name("terms", terms),
            charge_micro: charge.charge.charge_micro,
            fee_micro: charge.charge.fee_micro,
            settled: settle(charge.charge.charge_micro, &charge.shares, &charge.faults),
        }
    }

    /// The bytes that stand for it in the tree: `creo.charge.v1` and
    /// `name=value` of all fields, in the order of documents, a line each.
    #[must_use]
    pub fn canonical(&self) -> String {
        let parts = &self.settled.parts;
        format!(
            "creo.charge.v1\nepoch={}\nplacement={}\ncustomer={}\nowner={}\nterms={}\ncharge_micro={}\nfee_micro={}\nnode_credit_micro={}\nhub_credit_micro={}\nnode_micro={}\nvalidators_micro={}\nplatform_micro={}\n",
            self.epoch,
            self.placement,
            self.customer,
            self.owner,
            self.terms,
            self.charge_micro,
            self.fee_micro,
            self.settled.node_credit_micro,
            self.settled.hub_credit_micro,
            parts.node_micro,
            parts.validators_micro,
            parts.platform_micro,
        )
    }
}

impl PayoutLeaf {
    /// The leaf of a payout.
    #[must_use]
    pub fn new(secret: &Secret, epoch: i64, pay: &Pay) -> Self {
        Self {
            epoch,
            account: secret.pseudonym("payout", &pay.account, epoch),
            node_micro: pay.node_micro,
            validator_micro: pay.validator_micro,
            standby_micro: pay.standby_micro,
        }
    }

    /// The bytes that stand for it in the tree: `creo.payout.v1` and
    /// `name=value` of all fields, a line each.
    #[must_use]
    pub fn canonical(&self) -> String {
        format!(
            "creo.payout.v1\nepoch={}\naccount={}\nnode_micro={}\nvalidator_micro={}\nstandby_micro={}\n",
            self.epoch, self.account, self.node_micro, self.validator_micro, self.standby_micro,
        )
    }
}

/// The hashes of leaves, in the order of documents.
pub fn hashes<'a, L: 'a>(
    leaves: impl IntoIterator<Item = &'a L>,
    canonical: impl Fn(&L) -> String,
) -> Vec<Hash> {
    leaves
        .into_iter()
        .map(|leaf| merkle::leaf_hash(canonical(leaf).as_bytes()))
        .collect()
}

/// What everyone may see of a settled epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicExport {
    /// The epoch.
    pub epoch: i64,
    /// All charges, ordered by the pseudonym of the Placement.
    pub charges: Vec<ChargeLeaf>,
    /// All payouts, ordered by pseudonym.
    pub payouts: Vec<PayoutLeaf>,
    /// What earlier epochs left for validators, in micro-credits.
    pub validation_micro: i64,
    /// The Merkle root over the charges, in hexadecimal.
    pub charges_root: String,
    /// The Merkle root over the payouts, in hexadecimal.
    pub payouts_root: String,
}

impl PublicExport {
    /// Puts leaves in order and adds their roots.
    #[must_use]
    pub fn new(
        epoch: i64,
        mut charges: Vec<ChargeLeaf>,
        mut payouts: Vec<PayoutLeaf>,
        validation_micro: i64,
    ) -> Self {
        charges.sort_by(|a, b| a.placement.cmp(&b.placement));
        payouts.sort_by(|a, b| a.account.cmp(&b.account));
        let charges_root = merkle::root(&hashes(&charges, ChargeLeaf::canonical));
        let payouts_root = merkle::root(&hashes(&payouts, PayoutLeaf::canonical));
        Self {
            epoch,
            charges,
            payouts,
            validation_micro,
            charges_root: hexadecimal(&charges_root),
            payouts_root: hexadecimal(&payouts_root),
        }
    }

    /// Adds everything up again.
    ///
    /// # Errors
    ///
    /// The error names the first leaf or sum that is not as it must be.
    pub fn verify(&self) -> Result<(), Invalid> {
        self.verify_sums()?;
        let roots = Self::new(self.epoch, self.charges.clone(), self.payouts.clone(), 0);
        for (field, told, computed) in [
            ("charges_root", &self.charges_root, &roots.charges_root),
            ("payouts_root", &self.payouts_root, &roots.payouts_root),
        ] {
            if told != computed {
                return Err(Invalid::new(
                    field,
                    format!("must be {computed}, and is {told}"),
                ));
            }
        }
        Ok(())
    }

    fn verify_sums(&self) -> Result<(), Invalid> {
        let ordered = self
            .charges
            .windows(2)
            .all(|pair| pair[0].placement < pair[1].placement)
            && self
                .payouts
                .windows(2)
                .all(|pair| pair[0].account < pair[1].account);
        if !ordered {
            return Err(Invalid::new(
                "charges",
                "and payouts must be in order, each once",
            ));
        }
        let mut nodes: BTreeMap<&str, i128> = BTreeMap::new();
        let mut validators = i128::from(self.validation_micro);
        for leaf in &self.charges {
            let parts = &leaf.settled.parts;
            let given = [
                leaf.settled.node_credit_micro,
                parts.node_micro,
                parts.validators_micro,
                parts.platform_micro,
            ];
            let sum: i128 = given.into_iter().map(i128::from).sum();
            if sum != i128::from(leaf.charge_micro) || leaf.epoch != self.epoch {
                let why = "gives something else than was charged, or is of another epoch";
                return Err(Invalid::new(format!("charge {}", leaf.placement), why));
            }
            if i128::from(leaf.charge_micro) + i128::from(leaf.fee_micro) > 0 {
                *nodes.entry(&leaf.owner).or_default() += i128::from(parts.node_micro);
                validators += i128::from(parts.validators_micro);
            }
        }
        let mut checked = 0;
        for leaf in &self.payouts {
            let own = nodes.get(leaf.account.as_str()).copied().unwrap_or(0);
            if i128::from(leaf.node_micro) != own || leaf.epoch != self.epoch {
                let why = format!(
                    "gets {} for nodes of which the part is {own}",
                    leaf.node_micro
                );
                return Err(Invalid::new(format!("payout {}", leaf.account), why));
            }
            checked += own;
            validators -= i128::from(leaf.validator_micro);
        }
        if checked != nodes.values().sum::<i128>() {
            return Err(Invalid::new(
                "payouts",
                "must hold every owner that something was charged for",
            ));
        }
        if validators < self.validation_micro.min(0).into() {
            return Err(Invalid::new(
                "validator_micro",
                "is more in all than there was for validators",
            ));
        }
        Ok(())
    }
}

/// What proves to anyone with the published root that a charge is in an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChargeProof {
    /// The charge.
    pub leaf: ChargeLeaf,
    /// Its place among the charges, from 0.
    pub index: usize,
    /// Charges in the epoch.
    pub leaves: usize,
    /// The hashes beside the way up to the root, in hexadecimal.
    pub path: Vec<String>,
    /// The root, in hexadecimal: to be compared with the published one.
    pub charges_root: String,
}

impl PublicExport {
    /// The proof of the charge for a Placement of this pseudonym; none where
    /// there is no such charge.
    #[must_use]
    pub fn prove(&self, placement: &str) -> Option<ChargeProof> {
        let index = self
            .charges
            .iter()
            .position(|leaf| leaf.placement == placement)?;
        let proof = merkle::prove(&hashes(&self.charges, ChargeLeaf::canonical), index)?;
        Some(ChargeProof {
            leaf: self.charges.get(index)?.clone(),
            index,
            leaves: proof.leaves,
            path: proof.path.iter().map(|hash| hexadecimal(hash)).collect(),
            charges_root: self.charges_root.clone(),
        })
    }
}

impl ChargeProof {
    /// Computes the root from the leaf and the path.
    ///
    /// # Errors
    ///
    /// The proof does not lead to its root, or a hash is none.
    pub fn verify(&self) -> Result<(), Invalid> {
        let path: Result<Vec<Hash>, Invalid> = self
            .path
            .iter()
            .map(|hash| read_hash("path", hash))
            .collect();
        let proof = merkle::Proof {
            index: self.index,
            leaves: self.leaves,
            path: path?,
        };
        let root = read_hash("charges_root", &self.charges_root)?;
        let leaf = merkle::leaf_hash(self.leaf.canonical().as_bytes());
        if proof.holds(&leaf, &root) {
            Ok(())
        } else {
            Err(Invalid::new(
                "path",
                "does not lead from the charge to the root",
            ))
        }
    }
}

fn read_hash(field: &str, text: &str) -> Result<Hash, Invalid> {
    let wrong = || Invalid::new(field, "must be 64 hexadecimal digits");
    let mut hash = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return Err(wrong());
    }
    for (index, byte) in hash.iter_mut().enumerate() {
        let digits = text.get(2 * index..2 * index + 2).ok_or_else(wrong)?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
    }
    Ok(hash)
}

/// One charge with what it was computed from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditedCharge {
    /// What was agreed.
    pub terms: Terms,
    /// What had been used before the epoch.
    pub before: Usage,
    /// What was used in it; below 0 where corrections took back more.
    pub used: Usage,
    /// What was charged, with its credits.
    pub charge: EpochCharge,
}

/// What an auditor gets of a settled epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditorExport {
    /// What everyone sees.
    pub public: PublicExport,
    /// What the pseudonyms follow from.
    pub secret: Secret,
    /// The charges.
    pub charges: Vec<AuditedCharge>,
    /// The payouts.
    pub pays: Vec<Pay>,
}

impl AuditorExport {
    /// Computes every charge again from terms and usage, and every leaf from
    /// them.
    ///
    /// # Errors
    ///
    /// The error names the first charge that is not as it must be, or what of
    /// the public part is not.
    pub fn verify(&self) -> Result<(), Invalid> {
        self.public.verify()?;
        let mut leaves = Vec::with_capacity(self.charges.len());
        for audited in &self.charges {
            let (terms, charge) = (&audited.terms, &audited.charge);
            let after = audited.before.plus(&audited.used)?;
            let computed =
                price::charged(terms, &after)?.since(&price::charged(terms, &audited.before)?);
            let same = computed == charge.charge
                && (
                    &charge.placement,
                    &charge.customer,
                    &charge.owner,
                    charge.shares,
                ) == (
                    &terms.placement,
                    &terms.customer,
                    &terms.owner,
                    terms.shares,
                );
            if !same {
                let why = format!("must be {computed:?} on its terms");
                return Err(Invalid::new(format!("charge {}", charge.placement), why));
            }
            let digest = terms.digest()?;
            leaves.push(ChargeLeaf::new(
                &self.secret,
                self.public.epoch,
                charge,
                &digest,
            ));
        }
        let payouts = self
            .pays
            .iter()
            .map(|pay| PayoutLeaf::new(&self.secret, self.public.epoch, pay))
            .collect();
        let computed = PublicExport::new(
            self.public.epoch,
            leaves,
            payouts,
            self.public.validation_micro,
        );
        if computed != self.public {
            return Err(Invalid::new(
                "public",
                "is not what the charges and payouts give",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        objectives::Faults,
        price::{Charge, charged},
        settlement::{SettlementParameters, Surroundings, Tally},
        terms::tests::terms,
    };
    use super::*;

    /// An epoch of some Placements of two owners, as an auditor gets it.
    fn audited(placements: i64) -> AuditorExport {
        let secret = Secret::new([7; 32]);
        let (mut charges, mut leaves, mut tally) = (Vec::new(), Vec::new(), Tally::default());
        for number in 0..placements {
            let mut terms = terms();
            terms.placement = format!("p-{number}");
            terms.owner = ["olga", "paul"][usize::from(number % 2 == 1)].to_owned();
            let used = Usage {
                duration_ms: 1_000_000 + number,
                ..Usage::default()
            };
            let charge = EpochCharge {
                placement: terms.placement.clone(),
                customer: terms.customer.clone(),
                owner: terms.owner.clone(),
                charge: charged(&terms, &used).unwrap().since(&Charge::default()),
                shares: terms.shares,
                faults: Faults {
                    node_bp: number * 100,
                    hub_bp: 0,
                },
            };
            tally.add(&charge).unwrap();
            leaves.push(ChargeLeaf::new(
                &secret,
                3,
                &charge,
                &terms.digest().unwrap(),
            ));
            let before = Usage::default();
            charges.push(AuditedCharge {
                terms,
                before,
                used,
                charge,
            });
        }
        let around = Surroundings::default();
        let pays = tally
            .settle(&around, &SettlementParameters::default())
            .unwrap()
            .pays;
        let payouts = pays
            .iter()
            .map(|pay| PayoutLeaf::new(&secret, 3, pay))
            .collect();
        let public = PublicExport::new(3, leaves, payouts, 0);
        AuditorExport {
            public,
            secret,
            charges,
            pays,
        }
    }

    #[test]
    fn an_export_adds_up_and_any_change_of_it_shows() {
        type Edit = fn(&mut PublicExport);
        let public = audited(5).public;
        assert_eq!(public.verify(), Ok(()));
        let edits: [Edit; 8] = [
            |export| export.charges[2].charge_micro += 1,
            |export| export.charges[2].fee_micro += 1,
            |export| export.charges[2].settled.parts.node_micro += 1,
            |export| export.payouts[0].node_micro += 1,
            |export| export.payouts[0].validator_micro += 1_000_000_000,
            |export| export.charges.swap(0, 1),
            |export| drop(export.payouts.pop()),
            |export| export.charges_root.replace_range(0..1, "x"),
        ];
        for (number, edit) in edits.into_iter().enumerate() {
            let mut changed = public.clone();
            edit(&mut changed);
            assert!(changed.verify().is_err(), "change {number}");
        }
    }

    #[test]
    fn an_auditor_computes_every_charge_again() {
        type Edit = fn(&mut AuditorExport);
        let export = audited(5);
        assert_eq!(export.verify(), Ok(()));
        let edits: [Edit; 5] = [
            |export| export.charges[1].used.duration_ms += 1_000,
            |export| export.charges[1].terms.prices.price_micro_per_gpu_hour += 1,
            |export| export.charges[1].charge.faults.node_bp += 1,
            |export| export.pays[0].node_micro -= 1,
            |export| export.secret = Secret::new([8; 32]),
        ];
        for (number, edit) in edits.into_iter().enumerate() {
            let mut changed = export.clone();
            edit(&mut changed);
            assert!(changed.verify().is_err(), "change {number}");
        }
    }

    #[test]
    fn every_charge_can_be_proved_and_a_changed_one_cannot() {
        for placements in [1, 2, 5] {
            let public = audited(placements).public;
            for leaf in &public.charges {
                let proof = public.prove(&leaf.placement).unwrap();
                assert_eq!(proof.verify(), Ok(()));
                let mut changed = proof.clone();
                changed.leaf.charge_micro += 1;
                assert!(changed.verify().is_err());
                let mut elsewhere = proof;
                elsewhere.charges_root = "zz".to_owned();
                assert_eq!(elsewhere.verify().unwrap_err().field, "charges_root");
            }
            assert_eq!(public.prove("nobody"), None);
        }
    }
}
