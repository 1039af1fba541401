//! Creo's GPU device plugin for the kubelet.

fn main() {}
