//! The plugin against a stand-in of the driver's library, a kubelet and a hub, all in this
//! process. The plugin's own parts are the real ones, from the library to the socket.
#![cfg(test)]

mod driver_root;
mod hub;
mod kubelet;
mod machine;

mod binary;
mod cdi;
mod claims;
mod configuration;
mod conflict;
mod documentation;
mod driver;
mod health;
mod life;
mod offering;
mod pod_resources;
mod processes;
