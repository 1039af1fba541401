//! The addresses of a cluster. Every cluster has a network namespace of its
//! own, so they are the same in each.

use std::net::{Ipv4Addr, SocketAddr};

/// The bridge that the nodes hang on; the control plane has its address.
pub(super) const BRIDGE: &str = "creo0";
/// The control plane's address.
pub(super) const CONTROL_PLANE: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
/// The addresses of Services.
pub(super) const SERVICES: &str = "10.202.0.0/16";
/// The first address of [`SERVICES`], which Kubernetes gives to its own API.
pub(super) const KUBERNETES_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 202, 0, 1);
/// The addresses of all pods.
pub(super) const PODS: &str = "10.201.0.0/16";

/// Where the API server listens within the cluster.
#[must_use]
pub fn api_server() -> SocketAddr {
    SocketAddr::from((CONTROL_PLANE, 6443))
}

/// The address of the node with this index, counted from 1.
#[must_use]
pub fn node_address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 200, 1, index)
}

/// The addresses of the pods of the node with this index.
pub(super) fn node_pods(index: u8) -> String {
    format!("10.201.{index}.0/24")
}

/// Sets up the control plane's side: a bridge with its address, and forwarding
/// between the nodes.
pub(super) fn control_plane_script() -> String {
    format!(
        "ip link set lo up
        ip link add {BRIDGE} type bridge
        ip addr add {CONTROL_PLANE}/16 dev {BRIDGE}
        ip link set {BRIDGE} up
        ip route add default dev {BRIDGE}
        echo 1 > /proc/sys/net/ipv4/ip_forward
        echo 0 > /proc/sys/net/ipv4/conf/{BRIDGE}/send_redirects
        echo 0 > /proc/sys/net/ipv4/conf/all/send_redirects"
    )
}

/// Sets up a node's side of its cable.
pub(super) fn node_script(index: u8) -> String {
    let address = node_address(index);
    format!(
        "ip link set lo up
        ip addr add {address}/16 dev eth0
        ip link set eth0 up
        ip route add default via {CONTROL_PLANE}
        echo 1 > /proc/sys/net/ipv4/ip_forward"
    )
}

/// Plugs a node's cable in at the bridge, and says where its pods are.
pub(super) fn plug_in_script(cable: &str, index: u8) -> String {
    let (address, pods) = (node_address(index), node_pods(index));
    format!(
        "ip link set {cable} master {BRIDGE}
        ip link set {cable} up
        ip route replace {pods} via {address} dev {BRIDGE}"
    )
}
