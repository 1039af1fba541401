//! Random prices, usage and settlements: what must hold whatever comes.

use creo_market::money::{
    amount::MICRO_MAX,
    objectives::Faults,
    price::{Charge, Usage, charged, quote, receipt},
    settlement::{EpochCharge, SettlementParameters, Surroundings, Tally},
    split::{Weight, apportion},
    terms::{Prices, Shares, Terms, Tier},
    usage::{Billable, Observation, Received, UsageParameters, billable, judged},
};
use proptest::prelude::*;

prop_compose! {
    fn any_shares()(fee in 0..=10_000_i64, node in 0..=10_000_i64, rest in 0..=10_000_i64) -> Shares {
        let validator_bp = rest.min(10_000 - node);
        Shares { customer_fee_bp: fee, node_bp: node, validator_bp, platform_bp: 10_000 - node - validator_bp }
    }
}

prop_compose! {
    fn any_terms()(
        gpu_count in 0..9_i64,
        storage_gib in 0..2_000_i64,
        price in prop_oneof![0..10_i64, 0..10_000_000_i64, Just(1_000_000_000_000)],
        (month, tokens_in, tokens_out, tokens_cached) in (0..1_000_000_i64, 0..100_i64, 0..1_000_000_i64, 0..9_i64),
        tier_bp in 1..=100_000_i64,
        shares in any_shares(),
    ) -> Terms {
        Terms {
            placement: "p-1".to_owned(),
            customer: "acme".to_owned(),
            node: "node-1".to_owned(),
            owner: "olga".to_owned(),
            gpu_model: "NVIDIA L4".to_owned(),
            gpu_count,
            storage_gib,
            prices: Prices {
                price_micro_per_gpu_hour: price,
                price_micro_per_gib_month: month,
                price_micro_per_million_tokens_in: tokens_in,
                price_micro_per_million_tokens_out: tokens_out,
                price_micro_per_million_tokens_cached: tokens_cached,
            },
            tier: Tier::Standard,
            tier_bp,
            parallelism: 1,
            interruptible: false,
            notice_seconds: 0,
            shares,
            since_ms: 0,
        }
    }
}

prop_compose! {
    fn any_usage()(
        duration_ms in prop_oneof![0..5_i64, 0..100_000_000_i64],
        (tokens_in, tokens_out, tokens_cached) in (0..3_i64, 0..10_000_000_i64, 0..1_000_i64),
    ) -> Usage {
        Usage { duration_ms, tokens_in, tokens_out, tokens_cached }
    }
}

fn any_observation() -> impl Strategy<Value = Observation> {
    let span =
        || (-5..100_i64, -20..60_i64).prop_map(|(from_ms, length)| (from_ms, from_ms + length));
    prop_oneof![
        4 => (span(), 0..3_i64, any::<bool>(), 0..3_i64).prop_map(|((from_ms, to_ms), incarnation, ready, restarts)| {
            Observation::Hub { incarnation, from_ms, to_ms, ready, restarts }
        }),
        1 => span().prop_map(|(from_ms, to_ms)| Observation::Gateway { from_ms, to_ms }),
        1 => span().prop_map(|(from_ms, to_ms)| Observation::NodeDown { from_ms, to_ms }),
    ]
}

fn any_observations() -> impl Strategy<Value = Vec<Observation>> {
    prop::collection::vec(any_observation(), 0..12)
}

fn billed(observations: &[Observation]) -> Billable {
    billable(
        observations,
        0,
        100,
        &UsageParameters { bridged_ms_max: 10 },
    )
}

/// Each millisecond by itself, with no thought of speed.
fn billed_naively(observations: &[Observation]) -> Vec<i64> {
    let valid = |from: i64, to: i64| 0 <= from && from < to;
    let seen = |at: i64| {
        observations
            .iter()
            .filter_map(|observation| match observation {
                Observation::Hub {
                    incarnation,
                    from_ms,
                    to_ms,
                    ready,
                    restarts,
                } if valid(*from_ms, *to_ms) && (*from_ms..*to_ms).contains(&at) => {
                    Some((*incarnation, !*ready, if *ready { *restarts } else { 0 }))
                }
                _ => None,
            })
            .max()
    };
    let told = |at: i64, served: bool| {
        observations.iter().any(|observation| match observation {
            Observation::Gateway { from_ms, to_ms } if served => {
                valid(*from_ms, *to_ms) && (*from_ms..*to_ms).contains(&at)
            }
            Observation::NodeDown { from_ms, to_ms } if !served => {
                valid(*from_ms, *to_ms) && (*from_ms..*to_ms).contains(&at)
            }
            _ => false,
        })
    };
    let bridged = |at: i64| {
        let before = (0..at)
            .rev()
            .find_map(|ms| seen(ms).map(|state| (ms, state)));
        let after = (at..200).find_map(|ms| seen(ms).map(|state| (ms, state)));
        matches!((before, after), (Some((left, (_, false, a))), Some((found, (_, false, b)))) if a == b && found - left - 1 <= 10)
    };
    (0..100)
        .filter(|at| !told(*at, false))
        .filter(|at| {
            told(*at, true)
                || match seen(*at) {
                    Some((_, not_ready, _)) => !not_ready,
                    None => bridged(*at),
                }
        })
        .collect()
}

proptest! {
    #[test]
    fn cutting_usage_differently_changes_no_charge(
        terms in any_terms(),
        cuts in prop::collection::vec(any_usage(), 1..8),
    ) {
        let (mut total, mut posted) = (Usage::default(), Charge::default());
        for cut in &cuts {
            let receipt = receipt(&terms, &total, cut).unwrap();
            prop_assert!(receipt.posted.charge_micro >= 0 && receipt.posted.fee_micro >= 0);
            let lines: i64 = receipt.lines.iter().map(|line| line.posted_micro).sum();
            prop_assert_eq!(lines, receipt.posted.charge_micro);
            posted = posted.plus(&receipt.posted);
            total = total.plus(cut).unwrap();
        }
        prop_assert_eq!(posted, charged(&terms, &total).unwrap());
    }

    #[test]
    fn a_quote_is_never_exceeded_and_less_than_a_micro_credit_a_line_above(
        terms in any_terms(),
        before in any_usage(),
        usage in any_usage(),
    ) {
        let quoted = quote(&terms, &usage).unwrap();
        let posted = receipt(&terms, &before, &usage).unwrap().posted;
        prop_assert!(posted.charge_micro <= quoted.charge_micro && posted.fee_micro <= quoted.fee_micro);
        prop_assert!(quoted.charge_micro - posted.charge_micro <= 10 && quoted.fee_micro - posted.fee_micro <= 10);
    }

    #[test]
    fn a_receipts_posted_difference_is_less_than_a_micro_credit_from_the_exact_price(
        terms in any_terms(),
        before in any_usage(),
        usage in any_usage(),
    ) {
        for line in receipt(&terms, &before, &usage).unwrap().lines {
            let off = i128::from(line.posted_micro) * line.exact.denominator - line.exact.numerator;
            prop_assert!(off.abs() < line.exact.denominator, "{line:?}");
        }
    }

    #[test]
    fn observations_count_as_a_set(
        (observations, shuffled) in any_observations()
            .prop_flat_map(|told| (Just(told.clone()), Just([told.clone(), told].concat()).prop_shuffle())),
    ) {
        prop_assert_eq!(billed(&observations), billed(&shuffled));
    }

    #[test]
    fn cutting_an_observation_in_two_changes_no_billable_time(
        observations in any_observations(),
        which in any::<prop::sample::Index>(),
        at in 0..100_i64,
    ) {
        let mut cut = observations.clone();
        if !cut.is_empty() {
            let index = which.index(cut.len());
            let (mut left, mut right) = (cut[index].clone(), cut[index].clone());
            for (half, is_left) in [(&mut left, true), (&mut right, false)] {
                let (Observation::Hub { from_ms, to_ms, .. }
                    | Observation::Gateway { from_ms, to_ms }
                    | Observation::NodeDown { from_ms, to_ms }) = half;
                if 0 <= *from_ms && *from_ms < at && at < *to_ms {
                    *(if is_left { to_ms } else { from_ms }) = at;
                }
            }
            cut[index] = left;
            cut.push(right);
        }
        prop_assert_eq!(billed(&observations).stretches, billed(&cut).stretches);
    }

    #[test]
    fn billable_time_is_what_each_millisecond_by_itself_deserves(observations in any_observations()) {
        let stretches = billed(&observations).stretches;
        prop_assert!(stretches.windows(2).all(|pair| pair[0].to_ms <= pair[1].from_ms));
        let billed: Vec<i64> = stretches.iter().flat_map(|stretch| stretch.from_ms..stretch.to_ms).collect();
        prop_assert_eq!(billed, billed_naively(&observations));
    }

    #[test]
    fn a_nodes_claim_shortens_and_never_lengthens(
        observations in any_observations(),
        from_ms in 0..100_i64,
        length_ms in 1..50_i64,
    ) {
        let before = billed_naively(&observations);
        let mut with = observations;
        with.push(Observation::NodeDown { from_ms, to_ms: from_ms + length_ms });
        let after: Vec<i64> = billed(&with).stretches.iter().flat_map(|stretch| stretch.from_ms..stretch.to_ms).collect();
        prop_assert!(after.iter().all(|ms| before.contains(ms)));
    }

    #[test]
    fn what_is_told_after_the_cut_off_is_a_correction_and_no_charge_of_the_epoch(
        received in prop::collection::vec((0..200_i64, any_observation()), 0..12),
    ) {
        let received: Vec<Received> = received
            .into_iter()
            .map(|(received_ms, observation)| Received { received_ms, observation })
            .collect();
        let parameters = UsageParameters { bridged_ms_max: 10 };
        let judged = judged(&received, (0, 100), 100, &parameters);
        let in_time: Vec<Observation> = received.iter().filter(|r| r.received_ms < 100).map(|r| r.observation.clone()).collect();
        let all: Vec<Observation> = received.into_iter().map(|r| r.observation).collect();
        prop_assert_eq!(judged.billed_ms, billed(&in_time).duration_ms());
        prop_assert_eq!(judged.billed_ms + judged.correction_ms, billed(&all).duration_ms());
    }

    #[test]
    fn a_split_sums_to_what_was_split_and_each_share_is_off_by_less_than_one(
        sum in 0..=MICRO_MAX,
        weights in prop::collection::vec(0..=MICRO_MAX, 1..8),
    ) {
        let weights: Vec<Weight> = weights
            .into_iter()
            .enumerate()
            .map(|(index, weight)| Weight { account: format!("v-{index}"), weight })
            .collect();
        let total: i128 = weights.iter().map(|weight| i128::from(weight.weight)).sum();
        let shares = apportion(sum, &weights).unwrap();
        let given: i64 = shares.iter().map(|(_, share)| share).sum();
        prop_assert_eq!(given, if total == 0 { 0 } else { sum });
        for (account, share) in &shares {
            let weight = weights.iter().find(|weight| weight.account == *account).unwrap().weight;
            let floor = i64::try_from(i128::from(sum) * i128::from(weight) / total).unwrap();
            prop_assert!(*share == floor || *share == floor + 1);
        }
    }

    #[test]
    fn a_settlement_gives_exactly_what_customers_were_charged(
        charges in prop::collection::vec((0..4_usize, 0..1_000_000_i64, any_shares(), 0..=10_000_i64), 0..12),
        validation in -1_000..1_000_i64,
        validators in prop::collection::vec(0..5_i64, 0..4),
    ) {
        let mut tally = Tally::default();
        for (owner, charge_micro, shares, node_bp) in charges {
            let faults = Faults { node_bp, hub_bp: 0 };
            tally.add(&EpochCharge {
                placement: "p-1".to_owned(),
                customer: "acme".to_owned(),
                owner: format!("owner-{owner}"),
                charge: Charge { charge_micro, fee_micro: charge_micro / 7 },
                shares,
                faults,
            }).unwrap();
        }
        let around = Surroundings {
            validators: validators.into_iter().enumerate().map(|(index, weight)| Weight { account: format!("v-{index}"), weight }).collect(),
            validation_micro: validation,
            ..Surroundings::default()
        };
        let settlement = tally.settle(&around, &SettlementParameters::default()).unwrap();
        let nodes: i64 = settlement.pays.iter().map(|pay| pay.node_micro).sum();
        let validators: i64 = settlement.pays.iter().map(|pay| pay.validator_micro).sum();
        prop_assert_eq!(
            settlement.charged.debit_micro(),
            settlement.node_credits_micro + nodes + settlement.validators_micro + settlement.platform_micro
        );
        prop_assert_eq!(settlement.validators_micro + validation, validators + settlement.validation_left_micro);
        prop_assert!(settlement.pays.iter().all(|pay| (0..=pay.gross_micro()).contains(&pay.withheld_micro)));
    }

    /// One person is every customer, every owner and every validator, and asks
    /// for all the standby pay that there is.
    #[test]
    fn trading_with_oneself_loses_under_any_number_of_identities(
        charges in prop::collection::vec((0..4_usize, 1..1_000_000_i64, 0..=10_000_i64), 1..12),
        mut shares in any_shares(),
    ) {
        // Where the platform takes nothing, there is nothing to lose.
        if shares.platform_bp == 0 {
            shares = Shares::default();
        }
        let mut tally = Tally::default();
        let mut paid = 0;
        for (owner, charge_micro, node_bp) in charges {
            let settled = tally.add(&EpochCharge {
                placement: "p-1".to_owned(),
                customer: "acme".to_owned(),
                owner: format!("owner-{owner}"),
                charge: Charge { charge_micro, fee_micro: 0 },
                shares,
                faults: Faults { node_bp, hub_bp: 0 },
            }).unwrap();
            paid += charge_micro - settled.node_credit_micro;
        }
        let around = Surroundings {
            validators: vec![Weight { account: "v".to_owned(), weight: 1 }],
            standby: (0..4).map(|owner| Weight { account: format!("owner-{owner}"), weight: MICRO_MAX }).collect(),
            subsidy_micro: MICRO_MAX,
            ..Surroundings::default()
        };
        let settlement = tally.settle(&around, &SettlementParameters::default()).unwrap();
        let got: i64 = settlement.pays.iter().map(creo_market::money::settlement::Pay::gross_micro).sum();
        prop_assert!(got < paid || settlement.platform_micro == 0, "{got} of {paid}");
        prop_assert!(got <= paid);
    }
}
