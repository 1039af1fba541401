//! What every Creo process is made of: telemetry, probes, shutdown, the Kubernetes client.
