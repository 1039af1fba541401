//! The kinds of creo.cloud/v1alpha1 as types.
