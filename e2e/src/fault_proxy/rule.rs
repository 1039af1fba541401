//! Which request is to be met by which fault, and the bookkeeping of what was.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::request::{ApiRequest, Verb};

/// Which requests a rule is about. Fields that are `None` match anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]

pub struct Match {
    /// What the request does.
    pub verb: Option<Verb>,
    /// API group; `Some("")` is the core group.
    pub group: Option<String>,
    /// Plural resource name.
    pub resource: Option<String>,
    /// Subresource; `Some("")` demands that there is none.
    pub subresource: Option<String>,
    /// Namespace.
    pub namespace: Option<String>,
    /// Object name, in which each `*` stands for any run of characters.
    pub name: Option<String>,
}

impl Match {
    /// Requests of `verb` for `resource`, which may carry its subresource:
    /// `("apply", "placements/status")`.
    #[must_use]
    pub fn of(verb: Verb, resource: &str) -> Self {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Self {
            verb: Some(verb),
            resource: Some(resource.to_owned()),
            subresource: Some(subresource.to_owned()),
            ..Self::default()
        }
    }

    /// The same, for objects whose name fits `pattern` alone.
    #[must_use]
    pub fn named(mut self, pattern: &str) -> Self {
        self.name = Some(pattern.to_owned());
        self
    }

    /// Whether a request is meant.
    #[must_use]
    pub fn accepts(&self, request: &ApiRequest) -> bool {
        let same = |wanted: &Option<String>, seen: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == seen)
        };
        self.verb.is_none_or(|verb| verb == request.verb)
            && same(&self.group, &request.group)
            && same(&self.resource, &request.resource)
            && same(
                &self.subresource,
                request.subresource.as_deref().unwrap_or_default(),
            )
            && same(
                &self.namespace,
                request.namespace.as_deref().unwrap_or_default(),
            )
            && self.name.as_deref().is_none_or(|pattern| {
                matches_pattern(pattern, request.name.as_deref().unwrap_or_default())
            })
    }
}

/// Whether `text` fits `pattern`, in which `*` stands for any run of characters.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(rest) = text.strip_prefix(head) else {
        return false;
    };
    (0..=rest.len())
        .filter(|at| rest.is_char_boundary(*at))
        .any(|at| matches_pattern(tail, &rest[at..]))
}

/// On which side of the API server's own work a fault lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Moment {
    /// The API server never sees the request.
    Before,
    /// The API server has done what was asked, and its answer is known here.
    After,
}

impl fmt::Display for Moment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Before => "before",
            Self::After => "after",
        })
    }
}

/// An answer that is given in the API server's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// 409, reason `Conflict`.
    Conflict,
    /// 429, reason `TooManyRequests`, with `Retry-After: 1`.
    TooManyRequests,
    /// 500, reason `InternalError`.
    InternalError,
    /// 503, reason `ServiceUnavailable`.
    Unavailable,
    /// 504, reason `Timeout`.
    Timeout,
}

impl Refusal {
    /// HTTP status code.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Conflict => 409,
            Self::TooManyRequests => 429,
            Self::InternalError => 500,
            Self::Unavailable => 503,
            Self::Timeout => 504,
        }
    }

    /// `reason` of the Kubernetes `Status`.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Conflict => "Conflict",
            Self::TooManyRequests => "TooManyRequests",
            Self::InternalError => "InternalError",
            Self::Unavailable => "ServiceUnavailable",
            Self::Timeout => "Timeout",
        }
    }
}

/// What happens to the request that a rule was waiting for, or, for the watch
/// faults, what happens to the controller's watches from that moment on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The controller is killed by SIGKILL and gets no reply.
    KillController(Moment),
    /// The connection is closed without a reply.
    DropReply(Moment),
    /// The controller is told that it failed.
    Answer(Moment, Refusal),
    /// Nothing happens for this long; then all goes on as it would have.
    Hang(Moment, Duration),
    /// The controller is killed after the API server has done what was asked,
    /// and the next one meets an API server that lags behind: for this long,
    /// watches deliver nothing, and lists that put up with any age
    /// (`resourceVersion=0`) are answered as they were when they were first
    /// asked for. Other lists are consistent reads, and never old.
    KillIntoThePast(Duration),
    /// Every open watch ends, in the orderly way of a server-side timeout.
    CutWatches,
    /// Every open watch ends with 410 Gone: list again.
    ExpireWatches,
    /// No watch delivers anything for this long; then all of it, in order, one
    /// watch after the other.
    HoldWatchEvents(Duration),
    /// For this long each event is delivered, then the object's older state,
    /// then the event once more.
    RepeatWatchEvents(Duration),
}

/// One fault and the request that sets it off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]

pub struct Rule {
    /// Which requests are counted.
    pub request: Match,
    /// The first of them that is met by the fault, from 1.
    pub nth: u32,
    /// How many in a row are met by it.
    pub times: u32,
    /// What is done.
    pub action: Action,
}

impl Rule {
    /// `action` at the n-th request (from 1) that `request` matches, once.
    #[must_use]
    pub fn once(request: Match, nth: u32, action: Action) -> Self {
        Self {
            request,
            nth,
            times: 1,
            action,
        }
    }

    /// What is wrong with this rule, if anything: a rule that could never fire
    /// would make a test that cannot fail.
    pub(super) fn defect(&self) -> Option<&'static str> {
        if self.nth == 0 {
            Some("nth counts from 1")
        } else if self.times == 0 {
            Some("times must be at least 1")
        } else {
            None
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let any = |value: &Option<String>| value.clone().unwrap_or_else(|| "*".to_owned());
        let verb = self
            .request
            .verb
            .map_or_else(|| "any verb".to_owned(), |verb| verb.to_string());
        write!(
            formatter,
            "{:?} at {verb} of {} {} #{}",
            self.action,
            any(&self.request.resource),
            any(&self.request.name),
            self.nth
        )?;
        match self.times {
            1 => Ok(()),
            times => write!(formatter, " and the {} after it", times - 1),
        }
    }
}

/// The rules of a run and how often each of them was reached.
#[derive(Debug, Default)]
pub(super) struct Rules {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    rule: Rule,
    matched: u32,
    fired: u32,
}

impl Rules {
    /// Adds a rule, counting from now, and returns its index.
    pub(super) fn add(&mut self, rule: Rule) -> usize {
        self.entries.push(Entry {
            rule,
            matched: 0,
            fired: 0,
        });
        self.entries.len() - 1
    }

    /// Counts a request and returns the rule that it sets off, by index. All
    /// rules count every request; where several would fire, the earliest does.
    pub(super) fn meet(&mut self, request: &ApiRequest) -> Option<(usize, Action)> {
        let mut chosen = None;
        for (index, entry) in self.entries.iter_mut().enumerate() {
            if !entry.rule.request.accepts(request) {
                continue;
            }
            entry.matched = entry.matched.saturating_add(1);
            let due = entry.matched >= entry.rule.nth && entry.fired < entry.rule.times;
            if due && chosen.is_none() {
                entry.fired += 1;
                chosen = Some((index, entry.rule.action));
            }
        }
        chosen
    }

    /// Takes back that a rule has fired: what it wanted could not be done.
    pub(super) fn miss(&mut self, index: usize) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.fired = entry.fired.saturating_sub(1);
        }
    }

    /// Whether a rule has fired as often as it should.
    pub(super) fn is_spent(&self, index: usize) -> bool {
        self.entries
            .get(index)
            .is_some_and(|entry| entry.fired >= entry.rule.times)
    }

    /// The rules that never fired.
    pub(super) fn unfired(&self) -> Vec<Rule> {
        self.entries
            .iter()
            .filter(|entry| entry.fired == 0)
            .map(|entry| entry.rule.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use hyper::Method;
    use proptest::prelude::*;

    use super::*;

    fn request(method: &Method, path: &str) -> ApiRequest {
        ApiRequest::parse(method, path, None, None).expect("a resource path")
    }

    #[test]
    fn a_pattern_matches_what_a_person_expects() {
        for (pattern, text, expected) in [
            ("chat", "chat", true),
            ("chat", "chat-0", false),
            ("chat-*", "chat-0", true),
            ("*-0", "chat-0", true),
            ("*", "", true),
            ("c*t*0", "chat-0", true),
            ("c*t*1", "chat-0", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(
                matches_pattern(pattern, text),
                expected,
                "{pattern} on {text}"
            );
        }
    }

    #[test]
    fn the_nth_matching_request_fires_and_no_other() {
        let mut rules = Rules::default();
        let index = rules.add(Rule::once(
            Match::of(Verb::Delete, "pods"),
            2,
            Action::DropReply(Moment::Before),
        ));
        let delete = request(&Method::DELETE, "/api/v1/namespaces/a/pods/p");
        let other = request(&Method::DELETE, "/api/v1/namespaces/a/services/p");
        assert_eq!(rules.meet(&delete), None);
        assert_eq!(rules.meet(&other), None);
        assert!(!rules.is_spent(index));
        assert_eq!(
            rules.meet(&delete),
            Some((index, Action::DropReply(Moment::Before)))
        );
        assert_eq!(rules.meet(&delete), None);
        assert!(rules.is_spent(index));
        assert!(rules.unfired().is_empty());
    }

    #[test]
    fn a_rule_on_the_object_leaves_its_status_alone() {
        let on_object = Match::of(Verb::Update, "pods");
        let on_status = Match::of(Verb::Update, "pods/status");
        let object = request(&Method::PUT, "/api/v1/namespaces/a/pods/p");
        let status = request(&Method::PUT, "/api/v1/namespaces/a/pods/p/status");
        assert!(on_object.accepts(&object) && !on_object.accepts(&status));
        assert!(on_status.accepts(&status) && !on_status.accepts(&object));
    }

    #[test]
    fn a_rule_that_could_never_fire_is_refused() {
        let rule = |nth, times| Rule {
            nth,
            times,
            ..Rule::once(Match::default(), 1, Action::CutWatches)
        };
        assert!(rule(1, 1).defect().is_none());
        assert!(rule(0, 1).defect().is_some());
        assert!(rule(1, 0).defect().is_some());
    }

    proptest! {
        #[test]
        fn a_rule_fires_exactly_its_times_from_its_nth(nth in 1u32..6, times in 1u32..6, requests in 0u32..16) {
            let mut rules = Rules::default();
            rules.add(Rule { nth, times, request: Match::default(), action: Action::CutWatches });
            let any = request(&Method::DELETE, "/api/v1/nodes/n");
            for number in 1..=requests {
                let fires = rules.meet(&any).is_some();
                prop_assert_eq!(fires, number >= nth && number < nth + times);
            }
            prop_assert_eq!(rules.unfired().is_empty(), requests >= nth);
        }
    }
}
