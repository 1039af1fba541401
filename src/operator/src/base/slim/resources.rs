//! Amounts of resources, as integers.

use std::collections::BTreeMap;

use creo_api::quantity;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Deserializer};

/// CPU, memory, ephemeral storage, pods, and each extended resource by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a CPU.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory_bytes: i64,
    /// Bytes of ephemeral storage.
    pub ephemeral_storage_bytes: i64,
    /// Pods; only nodes have them.
    pub pods: i64,
    /// Whole units of the extended resources, such as GPUs.
    pub extended: BTreeMap<String, i64>,
}

impl Amounts {
    /// Reads a resource list. What is not a quantity counts as nothing: the API server admits no
    /// such thing, and one odd object must not stop the reading of the others.
    #[must_use]
    pub fn read(list: &BTreeMap<String, Quantity>) -> Self {
        let mut amounts = Self::default();
        for (name, value) in list {
            let units = || quantity::bytes("resources", value).unwrap_or(0);
            match name.as_str() {
                "cpu" => {
                    amounts.cpu_milli = quantity::millicores("resources", value).unwrap_or(0);
                }
                "memory" => amounts.memory_bytes = units(),
                "ephemeral-storage" => amounts.ephemeral_storage_bytes = units(),
                "pods" => amounts.pods = units(),
                extended if extended.contains('/') => {
                    amounts.extended.insert(extended.to_owned(), units());
                }
                _ => {}
            }
        }
        amounts
    }

    /// How much there is of an extended resource.
    #[must_use]
    pub fn of(&self, resource: &str) -> i64 {
        self.extended.get(resource).copied().unwrap_or(0)
    }

    /// Adds the other amounts.
    pub fn add(&mut self, other: &Self) {
        self.each(other, i64::saturating_add);
    }

    /// Raises each amount to at least the other's.
    pub fn raise_to(&mut self, other: &Self) {
        self.each(other, i64::max);
    }

    fn each(&mut self, other: &Self, combine: impl Fn(i64, i64) -> i64) {
        self.cpu_milli = combine(self.cpu_milli, other.cpu_milli);
        self.memory_bytes = combine(self.memory_bytes, other.memory_bytes);
        self.ephemeral_storage_bytes =
            combine(self.ephemeral_storage_bytes, other.ephemeral_storage_bytes);
        self.pods = combine(self.pods, other.pods);
        for (name, amount) in &other.extended {
            let held = self.extended.entry(name.clone()).or_default();
            *held = combine(*held, *amount);
        }
    }
}

impl<'de> Deserialize<'de> for Amounts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let list = Option::<BTreeMap<String, Quantity>>::deserialize(deserializer)?;
        Ok(list.as_ref().map(Self::read).unwrap_or_default())
    }
}
