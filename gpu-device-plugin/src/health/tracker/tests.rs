use proptest::prelude::*;

use super::*;
use crate::health::Severity;

const QUIET: Duration = Duration::from_mins(1);

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn fine() -> Seen {
    Seen::default()
}

fn counted(errors: u64) -> Seen {
    Seen {
        counters: Counters {
            uncorrected_ecc_errors: Some(errors),
            ..Counters::default()
        },
        ..Seen::default()
    }
}

fn drew(millijoules: u64) -> Seen {
    Seen {
        counters: Counters {
            energy_millijoules: Some(millijoules),
            ..Counters::default()
        },
        ..Seen::default()
    }
}

fn state(state: State) -> Seen {
    Seen {
        state,
        ..Seen::default()
    }
}

fn slowed(why: Slowdown) -> Seen {
    state(State {
        slowdowns: vec![why],
        ..State::default()
    })
}

fn new() -> Tracker {
    Tracker::new(QUIET)
}

fn part(gpu_instance: u32, compute_instance: Option<u32>) -> Instance {
    Instance {
        gpu_instance,
        compute_instance,
    }
}

fn partitioned() -> Seen {
    state(State {
        instances: vec![(1, 0), (1, 1), (2, 0)],
        ..State::default()
    })
}

#[test]
fn errors_of_programs_leave_a_gpu_healthy() {
    let mut tracker = new();
    for code in [13, 31, 43, 45, 68, 109] {
        tracker.reported(code, None, at(1));
    }
    assert_eq!(tracker.health(), Health::healthy());
}

#[test]
fn an_xid_that_needs_no_reset_goes_after_a_quiet_time() {
    let mut tracker = new();
    tracker.reported(94, None, at(10));
    tracker.answered(&fine(), at(69));
    assert_eq!(tracker.health(), Health::of([Finding::Xid(94)]));
    tracker.answered(&fine(), at(70));
    assert_eq!(tracker.health(), Health::healthy());
}

#[test]
fn an_xid_that_needs_a_reset_stays_however_quiet_it_is() {
    let mut tracker = new();
    tracker.answered(&drew(5_000), at(0));
    tracker.reported(119, None, at(10));
    tracker.answered(&drew(900_000), at(100_000));
    assert_eq!(tracker.health().severity(), Some(Severity::Out));
    // The energy is counted from 0 again: the card was reset.
    tracker.answered(&drew(20), at(100_001));
    assert!(!tracker.health().is_healthy());
    tracker.answered(&drew(900), at(100_061));
    assert_eq!(tracker.health(), Health::healthy());
}

#[test]
fn every_sign_of_a_reset_is_recognised() {
    let asked = |recovery| {
        state(State {
            recovery_known: true,
            recovery,
            ..State::default()
        })
    };
    let signs: [(&str, Seen, Seen); 4] = [
        ("energy", drew(7), drew(0)),
        ("uncorrected", counted(2), counted(0)),
        (
            "corrected",
            Seen {
                counters: Counters {
                    corrected_ecc_errors: Some(1),
                    ..Counters::default()
                },
                ..Seen::default()
            },
            Seen {
                counters: Counters {
                    corrected_ecc_errors: Some(0),
                    ..Counters::default()
                },
                ..Seen::default()
            },
        ),
        ("recovery", asked(Some(Recovery::Reset)), asked(None)),
    ];
    for (sign, before, after) in signs {
        let mut tracker = new();
        tracker.answered(&before, at(0));
        tracker.reported(62, None, at(1));
        tracker.answered(&before, at(1_000));
        assert!(!tracker.health().is_healthy(), "{sign}");
        tracker.answered(&after, at(1_001));
        tracker.answered(&after, at(1_061));
        assert!(tracker.health().is_healthy(), "{sign}");
    }
}

#[test]
fn a_lost_gpu_that_answers_again_was_reset() {
    let mut tracker = new();
    tracker.answered(&fine(), at(0));
    tracker.reported(79, None, at(1));
    tracker.found(Finding::Lost, at(2));
    assert_eq!(
        tracker.health().findings(),
        [Finding::Lost, Finding::Xid(79)]
    );
    tracker.answered(&fine(), at(500));
    assert!(!tracker.health().is_healthy());
    tracker.answered(&fine(), at(560));
    assert!(tracker.health().is_healthy());
}

#[test]
fn a_gpu_that_fell_off_the_bus_and_was_back_before_anyone_looked_was_reset() {
    let mut tracker = new();
    tracker.answered(&fine(), at(0));
    tracker.reported(79, None, at(1));
    tracker.answered(&fine(), at(2));
    tracker.answered(&fine(), at(61));
    assert!(!tracker.health().is_healthy());
    tracker.answered(&fine(), at(62));
    assert!(tracker.health().is_healthy());
}

#[test]
fn a_silent_gpu_that_answers_again_was_not_reset() {
    let mut tracker = new();
    tracker.answered(&drew(1), at(0));
    tracker.reported(119, None, at(1));
    tracker.found(Finding::Silent, at(2));
    tracker.answered(&drew(2), at(500));
    assert_eq!(tracker.health(), Health::of([Finding::Xid(119)]));
}

#[test]
fn time_alone_heals_nothing() {
    let mut tracker = new();
    tracker.found(Finding::Lost, at(0));
    tracker.found(Finding::Silent, at(1_000));
    assert_eq!(tracker.health().worst(), Some(&Finding::Lost));
    tracker.answered(&fine(), at(1_001));
    assert_eq!(tracker.health().worst(), Some(&Finding::Lost));
    tracker.answered(&fine(), at(1_061));
    assert!(tracker.health().is_healthy());
}

#[test]
fn every_new_error_starts_the_quiet_time_again() {
    let mut tracker = new();
    for second in 0..100 {
        tracker.reported(94, None, at(second * 50));
        tracker.answered(&fine(), at(second * 50 + 49));
        assert!(!tracker.health().is_healthy());
    }
}

#[test]
fn uncorrected_errors_since_the_last_reset_drain_a_gpu_even_if_the_plugin_came_later() {
    let mut tracker = new();
    tracker.answered(&counted(7), at(0));
    assert_eq!(tracker.health(), Health::of([Finding::UncorrectedEcc]));
    tracker.answered(&counted(7), at(10_000));
    assert!(!tracker.health().is_healthy());
    tracker.answered(&counted(0), at(10_001));
    tracker.answered(&counted(0), at(10_060));
    assert!(tracker.health().is_healthy());
}

#[test]
fn states_of_the_memory_are_findings_for_as_long_as_they_last() {
    for (given, finding, severity) in [
        (
            State {
                row_remap_pending: Some(true),
                ..State::default()
            },
            Finding::RowRemapPending,
            Severity::Drain,
        ),
        (
            State {
                row_remap_failed: Some(true),
                ..State::default()
            },
            Finding::RowRemapFailed,
            Severity::Out,
        ),
        (
            State {
                retired_pages_pending: Some(true),
                ..State::default()
            },
            Finding::RetiredPagesPending,
            Severity::Drain,
        ),
        (
            State {
                sram_threshold_exceeded: Some(true),
                ..State::default()
            },
            Finding::SramThreshold,
            Severity::Out,
        ),
    ] {
        let mut tracker = new();
        for second in 0..200 {
            tracker.answered(&state(given.clone()), at(second));
        }
        assert_eq!(tracker.health(), Health::of([finding]));
        assert_eq!(tracker.health().severity(), Some(severity));
        tracker.answered(&fine(), at(259));
        assert!(tracker.health().is_healthy());
    }
}

#[test]
fn a_slowdown_is_a_note_and_drains_when_it_lasts() {
    for why in [
        Slowdown::Thermal,
        Slowdown::HardwareThermal,
        Slowdown::PowerBrake,
    ] {
        let patience = why.patience().as_secs();
        let mut tracker = new();
        tracker.answered(&slowed(why), at(0));
        assert_eq!(tracker.health(), Health::healthy(), "one look is a blink");
        for second in 1..patience {
            tracker.answered(&slowed(why), at(second));
            assert_eq!(tracker.health().severity(), Some(Severity::Note));
        }
        tracker.answered(&slowed(why), at(patience));
        assert_eq!(tracker.health().severity(), Some(Severity::Drain));
        // It goes after a quiet time, and begins anew.
        tracker.answered(&fine(), at(patience + 60));
        assert_eq!(tracker.health(), Health::healthy());
        tracker.answered(&slowed(why), at(patience + 61));
        tracker.answered(&slowed(why), at(patience + 62));
        assert_eq!(tracker.health().severity(), Some(Severity::Note));
    }
}

#[test]
fn blinks_of_a_slowdown_never_drain() {
    let mut tracker = new();
    for second in 0..10_000 {
        let seen = if second % 2 == 0 {
            slowed(Slowdown::PowerBrake)
        } else {
            fine()
        };
        tracker.answered(&seen, at(second));
        assert!(tracker.health().is_healthy());
    }
}

#[test]
fn an_nvlink_that_was_up_is_missed_and_one_that_never_was_is_not() {
    let links = |up| {
        state(State {
            nvlinks_up: Some(up),
            ..State::default()
        })
    };
    let mut tracker = new();
    tracker.answered(&links(0b0110), at(0));
    assert_eq!(tracker.health(), Health::healthy());
    tracker.answered(&links(0b0010), at(1));
    let down = Finding::NvLinkDown { down: 1, of: 2 };
    assert_eq!(tracker.health(), Health::of([down]));
    tracker.answered(&links(0b0110), at(61));
    assert!(tracker.health().is_healthy());
}

#[test]
fn a_slow_pcie_link_is_noted_when_the_card_has_worked_and_not_while_it_rests() {
    let link = |generation, busy| {
        state(State {
            pcie: Some(PcieLink {
                generation,
                generation_max: 5,
                width: 16,
                width_max: 16,
            }),
            busy,
            ..State::default()
        })
    };
    let mut tracker = new();
    for second in 0..100 {
        tracker.answered(&link(1, false), at(second));
    }
    assert_eq!(tracker.health(), Health::healthy());
    for second in 100..110 {
        tracker.answered(&link(4, true), at(second));
    }
    assert_eq!(tracker.health().severity(), Some(Severity::Note));
    assert!(
        tracker
            .health()
            .worst()
            .unwrap()
            .to_string()
            .contains("generation 4")
    );
    tracker.answered(&link(5, true), at(170));
    assert_eq!(tracker.health(), Health::healthy());
    assert_eq!(tracker.pcie().unwrap().generation, 5);
}

#[test]
fn an_xid_of_a_partition_marks_that_partition_alone() {
    let mut tracker = new();
    tracker.answered(&partitioned(), at(0));
    tracker.reported(94, Some(part(1, Some(0))), at(1));
    tracker.reported(119, Some(part(2, None)), at(1));
    assert_eq!(tracker.health(), Health::healthy());
    assert_eq!(
        tracker.instance_health(1, 0),
        Health::of([Finding::Xid(94)])
    );
    assert_eq!(tracker.instance_health(1, 1), Health::healthy());
    assert_eq!(
        tracker.instance_health(2, 0),
        Health::of([Finding::Xid(119)])
    );
    tracker.answered(&partitioned(), at(61));
    assert!(tracker.instance_health(1, 0).is_healthy());
    assert!(!tracker.instance_health(2, 0).is_healthy());
    // The partition is taken away, and with it what was wrong with it.
    let fewer = state(State {
        instances: vec![(1, 0)],
        ..State::default()
    });
    tracker.answered(&fewer, at(62));
    tracker.answered(&partitioned(), at(63));
    assert!(tracker.instance_health(2, 0).is_healthy());
}

#[test]
fn what_was_kept_is_known_after_a_restart_and_goes_with_a_reset() {
    let mut tracker = new();
    let mut seen = partitioned();
    seen.counters.energy_millijoules = Some(1_000);
    seen.state.nvlinks_up = Some(0b11);
    tracker.answered(&seen, at(0));
    tracker.reported(119, None, at(1));
    tracker.reported(94, None, at(1));
    tracker.reported(62, Some(part(2, Some(0))), at(1));
    let kept = tracker.kept();
    let mut again = Tracker::restored(QUIET, &kept, at(0));
    assert_eq!(again.kept(), kept);
    seen.counters.energy_millijoules = Some(2_000);
    again.answered(&seen, at(1_000));
    assert_eq!(again.health(), Health::of([Finding::Xid(119)]));
    assert_eq!(again.instance_health(2, 0), Health::of([Finding::Xid(62)]));
    seen.state.nvlinks_up = Some(0b01);
    again.answered(&seen, at(1_001));
    assert!(
        again
            .health()
            .findings()
            .contains(&Finding::NvLinkDown { down: 1, of: 2 })
    );
    // A driver that says what must be done asks for nothing.
    let mut fine = Tracker::restored(QUIET, &kept, at(0));
    let mut asked = seen.clone();
    asked.state.recovery_known = true;
    asked.state.nvlinks_up = Some(0b11);
    fine.answered(&asked, at(1));
    fine.answered(&asked, at(61));
    assert!(fine.health().is_healthy());
    let mut reset = Tracker::restored(QUIET, &kept, at(0));
    seen.counters.energy_millijoules = Some(10);
    seen.state.nvlinks_up = Some(0b11);
    reset.answered(&seen, at(1));
    reset.answered(&seen, at(61));
    assert!(reset.health().is_healthy());
    assert!(reset.instance_health(2, 0).is_healthy());
}

#[derive(Debug, Clone)]
enum Step {
    Xid(u64, Option<Instance>),
    Found(Finding),
    Answered(Seen),
}

fn step() -> impl Strategy<Value = Step> {
    let instance = proptest::option::of((0..200_u32, proptest::option::of(0..9_u32)).prop_map(
        |(gpu_instance, compute_instance)| Instance {
            gpu_instance,
            compute_instance,
        },
    ));
    prop_oneof![
        (0..200_u64, instance).prop_map(|(code, part)| Step::Xid(code, part)),
        prop_oneof![
            Just(Finding::Lost),
            Just(Finding::Silent),
            ".{0,8}".prop_map(Finding::Unreadable)
        ]
        .prop_map(Step::Found),
        (0..3_u64, 0..10_u64).prop_map(|(errors, energy)| Step::Answered(Seen {
            counters: Counters {
                uncorrected_ecc_errors: Some(errors),
                energy_millijoules: Some(energy),
                ..Counters::default()
            },
            state: State {
                instances: (0..200).map(|number| (number, 0)).collect(),
                ..State::default()
            },
        })),
    ]
}

proptest! {
    #[test]
    fn what_is_remembered_is_bounded_and_a_reset_and_quiet_always_heal(
        steps in proptest::collection::vec(step(), 0..400)
    ) {
        let mut tracker = new();
        for (second, step) in steps.into_iter().enumerate() {
            let now = at(second as u64);
            match step {
                Step::Xid(code, part) => tracker.reported(code, part, now),
                Step::Found(finding) => tracker.found(finding, now),
                Step::Answered(seen) => tracker.answered(&seen, now),
            }
            prop_assert!(tracker.card.0.len() <= MAX_FINDINGS);
            prop_assert!(tracker.instances.len() <= MAX_INSTANCES);
            prop_assert!(tracker.instances.values().all(|faults| faults.0.len() <= MAX_FINDINGS));
        }
        tracker.was_reset(at(1_000));
        tracker.answered(&fine(), at(1_001));
        tracker.answered(&fine(), at(1_061));
        prop_assert!(tracker.health().is_healthy());
        prop_assert!(tracker.kept().xids.is_empty());
    }
}
