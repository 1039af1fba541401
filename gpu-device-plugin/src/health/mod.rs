//! Whether a GPU is fit for new work: a pure rule over what was seen of it, and when.

mod finding;
mod tracker;
pub mod xid;

pub use finding::{Finding, Recovery, Severity, Slowdown};
pub use tracker::{Counters, Instance, Kept, Seen, State, Tracker};

/// Most findings that are kept of one GPU. What is left out is no graver than what is kept.
pub const MAX_FINDINGS: usize = 16;

/// What is wrong with a GPU or a partition, and so whether it may be given to new containers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    findings: Vec<Finding>,
}

impl Health {
    /// Nothing is wrong.
    #[must_use]
    pub const fn healthy() -> Self {
        Self {
            findings: Vec::new(),
        }
    }

    /// These things are wrong: at most [`MAX_FINDINGS`] of them, the gravest ones, are kept.
    #[must_use]
    pub fn of(findings: impl IntoIterator<Item = Finding>) -> Self {
        let mut findings: Vec<Finding> = findings.into_iter().collect();
        // The same findings are the same health, in whatever order they came.
        findings.sort_by(|one, other| {
            (other.severity().cmp(&one.severity())).then_with(|| one.cmp(other))
        });
        findings.dedup();
        findings.truncate(MAX_FINDINGS);
        Self { findings }
    }

    /// The same, and this is wrong as well.
    #[must_use]
    pub fn with(self, finding: Finding) -> Self {
        Self::of(self.findings.into_iter().chain([finding]))
    }

    /// Whether it may be given to new containers.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.severity() < Some(Severity::Drain)
    }

    /// What is wrong, the gravest first.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The gravest finding.
    #[must_use]
    pub fn worst(&self) -> Option<&Finding> {
        self.findings.first()
    }

    /// How grave it is; nothing where there is no finding.
    #[must_use]
    pub fn severity(&self) -> Option<Severity> {
        self.worst().map(Finding::severity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_leave_a_gpu_healthy_and_anything_graver_does_not() {
        assert!(Health::healthy().is_healthy());
        let noted = Health::of([Finding::Xid(63)]);
        assert_eq!(noted.severity(), Some(Severity::Note));
        assert!(noted.is_healthy());
        assert!(!noted.clone().with(Finding::Silent).is_healthy());
        assert!(!noted.with(Finding::Lost).is_healthy());
    }

    #[test]
    fn the_gravest_finding_comes_first_whatever_the_order() {
        let all = [Finding::Xid(63), Finding::Lost, Finding::Silent];
        let health = Health::of(all.clone());
        assert_eq!(
            health.findings(),
            [Finding::Lost, Finding::Silent, Finding::Xid(63)]
        );
        assert_eq!(Health::of(all.into_iter().rev()), health);
        assert_eq!(health.clone().with(Finding::Lost), health);
    }

    #[test]
    fn the_number_of_findings_is_bounded_and_the_gravest_are_kept() {
        let many = (1_000..2_000).map(Finding::Xid).chain([Finding::Lost]);
        let health = Health::of(many);
        assert_eq!(health.findings().len(), MAX_FINDINGS);
        assert_eq!(health.worst(), Some(&Finding::Lost));
    }
}
