//! The program as a person or a pod starts it.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::machine::Machine;

const PROGRAM: &str = env!("CARGO_BIN_EXE_creo-gpu-device-plugin");

fn inventory(machine: &Machine, flags: &[&str]) -> Output {
    Command::new(PROGRAM)
        .arg("inventory")
        .arg("--driver-root")
        .arg(machine.driver_root())
        .args(flags)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn an_inventory_without_a_driver_is_one_sentence_and_exits_with_3() {
    let machine = Machine::without_driver("t4", 1);
    let output = inventory(&machine, &[]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(text(&output.stdout), "");
    let sentence = text(&output.stderr);
    assert_eq!(sentence.lines().count(), 1);
    assert!(sentence.starts_with("no NVIDIA driver: "), "{sentence}");
}

#[test]
fn an_inventory_is_a_table_for_people_and_json_for_programs() {
    let machine = Machine::new("a100-80gb", 8);
    let output = inventory(&machine, &[]);
    assert_eq!(output.status.code(), Some(0));
    let table = text(&output.stdout);
    assert!(
        table.starts_with("driver 570.133.20, CUDA 12.8, 8 GPUs\n"),
        "{table}"
    );
    assert!(
        table.lines().all(|line| line.chars().count() <= 100),
        "{table}"
    );
    assert!(table.contains("NVIDIA A100-SXM4-80GB") && table.contains("80.0 GiB"));
    let output = inventory(&machine, &["--output", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["gpus"][7]["uuid"], machine.uuid(7));
    assert_eq!(json["gpus"][7]["memoryBytes"], 81_920_u64 << 20);
}

fn config(flags: &[&str]) -> Output {
    Command::new(PROGRAM)
        .arg("config")
        .args(flags)
        .env_remove("NODE_NAME")
        .output()
        .unwrap()
}

#[test]
fn a_configuration_is_checked_and_printed_without_any_gpu() {
    let machine = Machine::without_driver("t4", 1);
    let file = machine.configure(
        "sharing: {cards: [{index: 0, replicas: 3}]}\nnodes: [{names: [b-*], set: {unlike: refuse}}]\n",
    );
    let output = config(&[&file, "--healthy-after", "2m"]);
    assert_eq!(output.status.code(), Some(0));
    let printed = text(&output.stdout);
    assert!(
        printed.contains("  cards:\n    - {index: 0, replicas: 3}\n"),
        "{printed}"
    );
    assert!(printed.contains("unlike: byModel\n") && printed.contains("healthyAfter: 120s\n"));
    let output = config(&[&file, "--node-name", "b-7"]);
    assert!(text(&output.stdout).contains("unlike: refuse\n"));
    let file = machine.configure("unlik: refuse\nmig: {strategy: both}\n");
    let output = config(&[&file]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    let told = text(&output.stderr);
    assert!(
        told.contains("plugin.yaml: line 1: unknown key \"unlik\"; did you mean unlike?\n  line 2: mig.strategy: "),
        "{told}"
    );
}

#[test]
fn serving_ends_in_order_when_it_is_told_to_even_while_the_driver_hangs() {
    let machine = Machine::new("t4", 2);
    machine.inject(0, "hang 60000");
    let mut serving = Command::new(PROGRAM)
        .args(["serve", "--metrics-address", "127.0.0.1:0"])
        .arg("--driver-root")
        .arg(machine.driver_root())
        .arg("--kubelet-dir")
        .arg(machine.kubelet_directory().parent().unwrap())
        .arg("--cdi-dir")
        .arg(machine.cdi_specification().parent().unwrap())
        .arg("--state-dir")
        .arg(machine.state_directory())
        .env_remove("NODE_NAME")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Long enough to be in the middle of it.
    std::thread::sleep(Duration::from_secs(1));
    let told = Instant::now();
    let kill = Command::new("kill")
        .arg(serving.id().to_string())
        .status()
        .unwrap();
    assert!(kill.success());
    assert_eq!(serving.wait().unwrap().code(), Some(0));
    assert!(told.elapsed() < Duration::from_secs(8));
}

#[test]
fn an_address_in_use_is_an_error_at_the_start() {
    let machine = Machine::new("t4", 1);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let output = Command::new(PROGRAM)
        .args(["serve", "--metrics-address"])
        .arg(taken.local_addr().unwrap().to_string())
        .arg("--driver-root")
        .arg(machine.driver_root())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let why = text(&output.stderr);
    assert!(why.contains("error: --metrics-address 127.0.0.1:"), "{why}");
}
