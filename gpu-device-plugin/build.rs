//! Makes the kubelet's gRPC services from `proto/`, with protox, so that no protoc is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let api = protox::compile(["deviceplugin.proto", "podresources.proto"], ["proto"])?;
    // Both sides of every service: the plugin serves one and calls the others, dials itself
    // before it registers, and the tests are a kubelet.
    tonic_prost_build::configure().compile_fds(api)?;
    Ok(())
}
