//! What a request asks of the API server, read from its method, path, query
//! and content type, in the way that the API server itself reads it.

use std::fmt;

use hyper::Method;
use serde::Serialize;

/// What a request wants to do, in the words of RBAC; server-side apply, which
/// RBAC knows as `patch`, is told apart because it may create.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Reads one object.
    Get,
    /// Reads all objects of a kind.
    List,
    /// Follows changes.
    Watch,
    /// Makes an object; fails when it exists.
    Create,
    /// Replaces an object.
    Update,
    /// Changes an object by a JSON, merge or strategic patch.
    Patch,
    /// Server-side apply: makes or changes an object.
    Apply,
    /// Deletes one object.
    Delete,
    /// Deletes all objects that a selector matches.
    DeleteCollection,
}

impl Verb {
    /// Whether the API server may store something because of this request.
    #[must_use]
    pub fn is_mutating(self) -> bool {
        !matches!(self, Self::Get | Self::List | Self::Watch)
    }

    /// The verb that RBAC asks for: `patch` for a server-side apply.
    #[must_use]
    pub fn as_rbac(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch | Self::Apply => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Apply => "apply",
            other => other.as_rbac(),
        })
    }
}

/// A request for a resource of the Kubernetes API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ApiRequest {
    /// What it wants to do.
    pub verb: Verb,
    /// API group; empty for the core group.
    pub group: String,
    /// Plural resource name, `pods`.
    pub resource: String,
    /// `status`, `scale`, ... where one is addressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subresource: Option<String>,
    /// Namespace, of a namespaced object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Object name. A create carries it in its body, not in its path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether the API server was asked to store nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

impl ApiRequest {
    /// Reads a request line. `None` for paths that address no resource
    /// (`/version`, `/readyz`, discovery, OpenAPI).
    #[must_use]
    pub fn parse(
        method: &Method,
        path: &str,
        query: Option<&str>,
        content_type: Option<&str>,
    ) -> Option<Self> {
        let segments: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (group, rest) = match segments.as_slice() {
            ["api", _version, rest @ ..] => ("", rest),
            ["apis", group, _version, rest @ ..] => (*group, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            // `namespaces/NAME/status` is a subresource of the namespace itself.
            ["namespaces", _, "status" | "finalize"] => (None, rest),
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
            _ => (None, rest),
        };
        let (resource, name, subresource) = match rest {
            [resource] => (*resource, None, None),
            [resource, name] => (*resource, Some(*name), None),
            [resource, name, subresource, ..] => (*resource, Some(*name), Some(*subresource)),
            [] => return None,
        };
        let query = query.unwrap_or_default();
        Some(Self {
            verb: verb(method, name.is_some(), query, content_type)?,
            group: group.to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.map(str::to_owned),
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
            dry_run: query_value(query, "dryRun").is_some(),
        })
    }

    /// Resource with its subresource and group, `deployments.apps/scale`.
    #[must_use]
    pub fn kind(&self) -> String {
        let mut kind = self.resource.clone();
        if !self.group.is_empty() {
            kind.push('.');
            kind.push_str(&self.group);
        }
        if let Some(subresource) = &self.subresource {
            kind.push('/');
            kind.push_str(subresource);
        }
        kind
    }
}

impl fmt::Display for ApiRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.verb, self.kind())?;
        match (&self.namespace, &self.name) {
            (Some(namespace), Some(name)) => write!(formatter, " {namespace}/{name}"),
            (Some(namespace), None) => write!(formatter, " in {namespace}"),
            (None, Some(name)) => write!(formatter, " {name}"),
            (None, None) => Ok(()),
        }
    }
}

fn verb(method: &Method, named: bool, query: &str, content_type: Option<&str>) -> Option<Verb> {
    Some(match *method {
        Method::GET if matches!(query_value(query, "watch"), Some("1" | "true")) => Verb::Watch,
        Method::GET if named => Verb::Get,
        Method::GET => Verb::List,
        Method::POST => Verb::Create,
        Method::PUT => Verb::Update,
        Method::PATCH
            if content_type.is_some_and(|kind| kind.starts_with("application/apply-patch")) =>
        {
            Verb::Apply
        }
        Method::PATCH => Verb::Patch,
        Method::DELETE if named => Verb::Delete,
        Method::DELETE => Verb::DeleteCollection,
        _ => return None,
    })
}

/// The raw value of a query parameter. The values that matter here are never
/// percent-encoded by a client.
pub(super) fn query_value<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        (name == key).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> String {
        let (method, uri) = line.split_once(' ').expect("a method and a path");
        let (method, content_type) = match method {
            "APPLY" => ("PATCH", Some("application/apply-patch+yaml")),
            "PATCH" => ("PATCH", Some("application/merge-patch+json")),
            other => (other, None),
        };
        let method = method.parse().expect("a method");
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        ApiRequest::parse(&method, path, Some(query), content_type)
            .map_or_else(|| "none".to_owned(), |request| request.to_string())
    }

    const LINES: &str = "
        GET /api/v1/pods = list pods
        GET /api/v1/pods?watch=true = watch pods
        GET /api/v1/pods?watch=1&limit=5 = watch pods
        GET /api/v1/pods?watch=false = list pods
        GET /api/v1/nodes/a = get nodes a
        GET /api/v1/namespaces = list namespaces
        GET /api/v1/namespaces/shop = get namespaces shop
        PUT /api/v1/namespaces/shop/finalize = update namespaces/finalize shop
        GET /api/v1/namespaces/shop/pods = list pods in shop
        POST /api/v1/namespaces/shop/pods = create pods in shop
        POST /api/v1/namespaces/shop/pods/a/eviction = create pods/eviction shop/a
        APPLY /apis/creo.cloud/v1alpha1/namespaces/shop/placements/a = apply placements.creo.cloud shop/a
        PATCH /apis/creo.cloud/v1alpha1/namespaces/shop/placements/a/status = patch placements.creo.cloud/status shop/a
        DELETE /apis/creo.cloud/v1alpha1/creonodes/a = delete creonodes.creo.cloud a
        DELETE /api/v1/namespaces/shop/pods = deletecollection pods in shop
        GET /apis/creo.cloud/v1alpha1 = none
        GET /version = none
        GET /readyz?verbose = none
        OPTIONS /api/v1/pods = none
    ";

    #[test]
    fn request_lines_are_read_as_the_api_server_reads_them() {
        for line in LINES.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (request, expected) = line.split_once(" = ").expect("a line of the table");
            assert_eq!(parse(request), expected, "{request}");
        }
    }

    #[test]
    fn a_dry_run_is_told_apart_from_a_write() {
        let parse =
            |query| ApiRequest::parse(&Method::POST, "/api/v1/namespaces/a/pods", query, None);
        assert!(parse(Some("dryRun=All")).is_some_and(|request| request.dry_run));
        assert!(parse(Some("fieldManager=x")).is_some_and(|request| !request.dry_run));
    }
}
