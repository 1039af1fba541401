use super::*;
use crate::driver::Device;
use crate::driver::session::Memory;
use crate::health::{Finding, Health};
use crate::inventory::{Gpu, Mig, MigDevice, Versions};
use crate::pod_resources::Holder;
use crate::processes::Use;
use crate::resource::Resource;
use crate::unit::{Part, Unit};

fn device(index: u32) -> Device {
    Device {
        gpu: Gpu {
            index,
            uuid: format!("GPU-{index}"),
            model: "T4".to_owned(),
            memory_bytes: 1 << 34,
            compute_capability: "7.5".to_owned(),
            minor: index,
            ..Gpu::default()
        },
        health: Health::healthy(),
        partitions: BTreeMap::new(),
    }
}

fn snapshot(devices: Vec<Device>) -> Snapshot {
    Snapshot {
        driver: Ok(Versions {
            driver: "1".to_owned(),
            cuda: "12.8".to_owned(),
        }),
        devices,
        ..Snapshot::default()
    }
}

fn shown(registry: &Registry) -> String {
    prometheus::TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap()
}

#[test]
fn a_gpu_is_shown_with_its_health_and_forgotten_with_its_values() {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let mut ill = device(1);
    ill.health = Health::of([Finding::Lost, Finding::Xid(79), Finding::Xid(95)]);
    metrics.snapshot(&snapshot(vec![device(0), ill]));
    let reading = Reading {
        power_milliwatts: Some(70_500),
        temperature_celsius: Some(40),
        memory: Some(Memory {
            total: 16,
            used: 4,
            free: 12,
        }),
        ..Reading::default()
    };
    metrics.reading("GPU-0", &Arc::new(reading));
    metrics.xid("GPU-0", 79);
    let text = shown(&registry);
    let zero = "{gpu=\"0\",model=\"T4\",uuid=\"GPU-0\"}";
    for line in [
        format!("creo_gpu_healthy{zero} 1"),
        "creo_gpu_healthy{gpu=\"1\",model=\"T4\",uuid=\"GPU-1\"} 0".to_owned(),
        format!("creo_gpu_power_watts{zero} 70.5"),
        format!("creo_gpu_memory_free_bytes{zero} 12"),
        "reason=\"XidError\",severity=\"Out\",uuid=\"GPU-1\"} 2".to_owned(),
        "creo_gpu_driver_info{cuda=\"12.8\",driver=\"1\"} 1".to_owned(),
        "xid=\"79\"} 1".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
    // What it does not say is not shown at all.
    assert!(!text.contains("creo_gpu_ecc"), "{text}");
    metrics.unknown("GPU-0");
    let text = shown(&registry);
    assert!(!text.contains("creo_gpu_power_watts"), "{text}");
    assert!(text.contains("creo_gpu_healthy{gpu=\"0\""));
    metrics.snapshot(&snapshot(vec![device(1)]));
    let text = shown(&registry);
    assert!(!text.contains("GPU-0"), "{text}");
    assert!(text.contains("creo_gpu_driver_up 1"));
}

#[test]
fn a_card_that_gets_another_number_leaves_no_series_of_the_old_one() {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    metrics.snapshot(&snapshot(vec![device(0)]));
    metrics.xid("GPU-0", 13);
    let mut moved = device(0);
    moved.gpu.index = 5;
    metrics.snapshot(&snapshot(vec![moved]));
    let text = shown(&registry);
    assert!(!text.contains("gpu=\"0\""), "{text}");
    assert!(
        text.contains("creo_gpu_xids_total{gpu=\"5\",model=\"T4\",uuid=\"GPU-0\",xid=\"13\"} 1")
    );
}

#[test]
fn partitions_are_shown_below_their_card() {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let mut card = device(0);
    let partition = |number: u32| MigDevice {
        uuid: format!("MIG-{number}"),
        profile: "1g.10gb".to_owned(),
        gpu_instance: number,
        ..MigDevice::default()
    };
    card.gpu.mig = Mig::On(vec![partition(1), partition(2)]);
    card.partitions
        .insert("MIG-2".to_owned(), Health::of([Finding::Xid(94)]));
    metrics.snapshot(&snapshot(vec![card]));
    let text = shown(&registry);
    let labels = |number: u32| {
        format!(
            "{{gpu=\"0\",model=\"T4\",partition=\"MIG-{number}\",profile=\"1g.10gb\",uuid=\"GPU-0\"}}"
        )
    };
    for line in [
        format!("creo_gpu_partition_healthy{} 1", labels(1)),
        format!("creo_gpu_partition_healthy{} 0", labels(2)),
        "creo_gpu_partitions{gpu=\"0\",model=\"T4\",uuid=\"GPU-0\"} 2".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
}

#[test]
fn what_is_offered_held_and_used_is_shown_as_long_as_it_is_known() {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    metrics.snapshot(&snapshot(vec![device(0), device(1)]));
    let resource = Resource::default().sibling("gpu.shared".to_owned());
    let unit = |number: u32| Unit {
        id: format!("GPU-0::{number}"),
        gpu: "GPU-0".to_owned(),
        part: Part::Share { number, of: 3 },
        numa_node: None,
        memory_bytes: 1 << 30,
        health: Health::healthy(),
    };
    let offered = Offered {
        units: BTreeMap::from([(resource, vec![unit(0), unit(1), unit(2)])]),
        withheld: Vec::new(),
    };
    let (_offer, offered) = watch::channel(offered);
    metrics.show_offered(offered);
    let holder = Holder {
        namespace: "n".to_owned(),
        pod: "p".to_owned(),
        container: "c".to_owned(),
        resource: "creo.cloud/gpu.shared".to_owned(),
    };
    // The same ids in another resource are not ours.
    let other = Holder {
        resource: "example.com/gpu".to_owned(),
        ..holder.clone()
    };
    let held = [
        ("GPU-0::0", holder.clone()),
        ("GPU-0::2", holder),
        ("GPU-0::1", other),
    ];
    let (pods, told) = watch::channel(Some(held.into_iter().collect()));
    metrics.show_pods(told);
    let (uses, told) = watch::channel(Uses::from([("GPU-0".to_owned(), Use::Idle)]));
    metrics.show_uses(told);
    let text = shown(&registry);
    for line in [
        "creo_gpu_units{healthy=\"true\",resource=\"creo.cloud/gpu.shared\"} 3",
        "creo_gpu_units_allocated{resource=\"creo.cloud/gpu.shared\"} 2",
        "creo_gpu_allocated{container=\"c\",gpu=\"0\",model=\"T4\",namespace=\"n\",pod=\"p\",uuid=\"GPU-0\"} 2",
        "creo_gpu_use{gpu=\"0\",model=\"T4\",use=\"Idle\",uuid=\"GPU-0\"} 1",
        "creo_gpu_use{gpu=\"0\",model=\"T4\",use=\"Intruder\",uuid=\"GPU-0\"} 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    pods.send_replace(None);
    uses.send_replace(Uses::new());
    let text = shown(&registry);
    assert!(text.contains("creo_gpu_units{"));
    assert!(!text.contains("creo_gpu_units_allocated"), "{text}");
    assert!(!text.contains("creo_gpu_allocated"), "{text}");
    assert!(!text.contains("creo_gpu_use"), "{text}");
}

#[test]
fn every_use_has_its_word() {
    for (use_, word) in [
        (Use::Idle, "Idle"),
        (Use::Ours, "InUse"),
        (Use::Unknown, "Unknown"),
    ] {
        assert_eq!(use_.word(), word);
        assert!(Use::WORDS.contains(&word));
    }
}

#[test]
fn any_number_of_unknown_xids_is_one_series() {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    metrics.snapshot(&snapshot(vec![device(0)]));
    for code in 1_000..2_000 {
        metrics.xid("GPU-0", code);
    }
    metrics.xid("GPU-unknown", 79);
    let text = shown(&registry);
    assert!(text.contains("xid=\"other\"} 1000"), "{text}");
    assert_eq!(text.matches("creo_gpu_xids_total{").count(), 1);
}
