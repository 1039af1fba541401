//! Faults as verbs: what a test or a person lets happen to a cluster.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::{
    Cluster, DefaultRuntime, GpuFault, GpuLayout, GpuState, Node, NodeRecord, gpus, node::RUNTIME,
};
use crate::error::{Error, Result};

/// How long a component gets for an orderly end before SIGKILL.
const ORDERLY_END: Duration = Duration::from_secs(5);

impl Cluster {
    /// Takes a node's power: every process of it is gone at once.
    ///
    /// # Errors
    ///
    /// There is no such node, or it does not end.
    pub fn power_cut(&self, node: &str) -> Result<()> {
        let node = self.node(node)?;
        let name = node.process_name();
        // `unshare --kill-child` takes the node's first process with it.
        self.control().stop(&name, Signal::SIGKILL, ORDERLY_END)?;
        let deadline = std::time::Instant::now() + ORDERLY_END;
        while node.control().is_alive() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Gives a node its power back. What lay on its disk is there, what lay in
    /// `/run` is not. A node that is on already is left alone.
    ///
    /// # Errors
    ///
    /// There is no such node, or a component does not start.
    pub fn power_on(&self, node: &str) -> Result<()> {
        let node = self.node(node)?;
        if node.control().is_alive() {
            return Ok(());
        }
        self.start_node(&node)
    }

    /// Adds a node to the cluster and starts it.
    ///
    /// # Errors
    ///
    /// The cluster has as many as it can have, or the node does not start.
    pub fn add_node(&mut self, gpus: u8, gpu_profile: &str) -> Result<Node> {
        self.add_node_with(gpus, gpu_profile, GpuLayout::default())
    }

    /// As [`Cluster::add_node`], with this runtime from the start.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn add_node_running(
        &mut self,
        gpus: u8,
        gpu_profile: &str,
        runtime: DefaultRuntime,
    ) -> Result<Node> {
        self.add(gpus, gpu_profile, GpuLayout::default(), runtime)
    }

    /// As [`Cluster::add_node`], with GPUs that sit and are linked in this way.
    ///
    /// # Errors
    ///
    /// As there, and where these GPUs cannot be linked.
    pub fn add_node_with(
        &mut self,
        gpus: u8,
        gpu_profile: &str,
        gpu_layout: GpuLayout,
    ) -> Result<Node> {
        self.add(gpus, gpu_profile, gpu_layout, DefaultRuntime::default())
    }

    fn add(
        &mut self,
        gpus: u8,
        gpu_profile: &str,
        gpu_layout: GpuLayout,
        default_runtime: DefaultRuntime,
    ) -> Result<Node> {
        let last = self
            .record
            .nodes
            .iter()
            .map(|node| node.index)
            .max()
            .unwrap_or(0);
        if last >= super::MAX_NODES {
            return Err(Error::Usage(format!(
                "a cluster has at most {} nodes",
                super::MAX_NODES
            )));
        }
        let index = last + 1;
        let record = NodeRecord {
            name: format!("gpu-{index}"),
            index,
            gpus,
            gpu_profile: gpu_profile.to_owned(),
            gpu_layout,
            default_runtime,
        };
        self.record.nodes.push(record.clone());
        self.write_record()?;
        let node = Node::new(&self.dir, record);
        self.start_node(&node)?;
        Ok(node)
    }

    /// Gives a node another default runtime, as an administrator would: in containerd's
    /// configuration, which it is started again for. Its pods go on.
    ///
    /// # Errors
    ///
    /// There is no such node, or containerd does not start.
    pub fn set_default_runtime(&mut self, node: &str, runtime: &DefaultRuntime) -> Result<()> {
        let records = self.record.nodes.iter_mut();
        for record in records.filter(|record| record.name == node) {
            record.default_runtime = runtime.clone();
        }
        self.write_record()?;
        let node = self.node(node)?;
        node.configure_runtime(&self.record.pause.imported)?;
        node.control().stop(RUNTIME, Signal::SIGTERM, ORDERLY_END)?;
        node.control().start(node.request(RUNTIME, &self.programs)?)
    }

    /// Pulls a node's cable: it goes on, and nobody sees it.
    ///
    /// # Errors
    ///
    /// There is no such node, or it is off.
    pub fn partition(&self, node: &str) -> Result<()> {
        self.cable(node, "down")
    }

    /// Plugs a node's cable in again.
    ///
    /// # Errors
    ///
    /// There is no such node, or it is off.
    pub fn heal(&self, node: &str) -> Result<()> {
        self.cable(node, "up")
    }

    fn cable(&self, node: &str, state: &str) -> Result<()> {
        let node = self.node(node)?;
        self.control()
            .script(&format!("ip link set {} {state}", node.cable()))
            .map(drop)
    }

    /// Ends a node's kubelet and starts it again; its pods go on.
    ///
    /// # Errors
    ///
    /// There is no such node, or the kubelet does not start.
    pub fn restart_kubelet(&self, node: &str) -> Result<()> {
        let node = self.node(node)?;
        node.control()
            .stop("kubelet", Signal::SIGTERM, ORDERLY_END)?;
        node.control()
            .start(node.request("kubelet", &self.programs)?)
    }

    /// Kills the API server and starts it again. An orderly end would wait a
    /// minute for its watches.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub fn restart_api_server(&self) -> Result<()> {
        self.restart_component("kube-apiserver")
    }

    /// Kills etcd and starts it again.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub fn kill_etcd(&self) -> Result<()> {
        self.restart_component("etcd")
    }

    fn restart_component(&self, component: &str) -> Result<()> {
        let control = self.control();
        control.stop(component, Signal::SIGKILL, ORDERLY_END)?;
        control.start(self.control_plane_request(component)?)
    }

    /// Lets something happen to a GPU of a node.
    ///
    /// # Errors
    ///
    /// There is no such node or GPU, or the GPUs are real.
    pub fn gpu_fault(&self, node: &str, index: usize, fault: &GpuFault) -> Result<()> {
        self.stand_in_only()?;
        gpus::inject(&self.dir, self.node(node)?.dir(), index, fault)
    }

    /// The GPUs of a node, and the driver under them, as the stand-in has them now.
    ///
    /// # Errors
    ///
    /// There is no such node, or the GPUs are real.
    pub fn gpu_state(&self, node: &str) -> Result<GpuState> {
        self.stand_in_only()?;
        gpus::state(self.node(node)?.dir())
    }

    fn stand_in_only(&self) -> Result<()> {
        if self.record.gpus == super::Gpus::Real {
            return Err(Error::Usage(
                "gpu: this cluster's GPUs are real, and nothing can be done to those".to_owned(),
            ));
        }
        Ok(())
    }
}
