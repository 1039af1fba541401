//! A real Kubernetes on one machine, the end-to-end tests and the benches.
