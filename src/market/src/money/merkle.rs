//! Merkle trees with the prefixes of RFC 6962: whoever has a leaf can prove that
//! it is in the tree of a published root, and a leaf can never pass for a node.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A SHA-256.
pub type Hash = [u8; 32];

/// The hash of a leaf: of a zero byte and the leaf's bytes.
#[must_use]
pub fn leaf_hash(leaf: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update([0]);
    hasher.update(leaf);
    hasher.finalize().into()
}

/// The hash of a node: of a one byte and the hashes of its two children.
fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update([1]);
    hasher.update(left);
    hasher.update(right);
    hasher.finalize().into()
}

/// How many of `leaves` (at least 2) are under the left child: the largest power
/// of two that is smaller than their number.
fn left_leaves(leaves: usize) -> usize {
    leaves.div_ceil(2).next_power_of_two()
}

/// The root over hashes of leaves, in their order. The root of no leaves is the
/// hash of nothing.
#[must_use]
pub fn root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Sha256::digest([]).into(),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(left_leaves(leaves.len()));
            node_hash(&root(left), &root(right))
        }
    }
}

/// What proves that a leaf is in a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The leaf's place, from 0.
    pub index: usize,
    /// Leaves in the tree.
    pub leaves: usize,
    /// The hashes beside the way from the leaf up to the root.
    pub path: Vec<Hash>,
}

/// The proof of the leaf at `index`; none where there is no such leaf.
#[must_use]
pub fn prove(leaves: &[Hash], index: usize) -> Option<Proof> {
    if index >= leaves.len() {
        return None;
    }
    let mut path = Vec::new();
    let (mut within, mut at) = (leaves, index);
    while within.len() > 1 {
        let (left, right) = within.split_at(left_leaves(within.len()));
        if at < left.len() {
            path.push(root(right));
            within = left;
        } else {
            path.push(root(left));
            at -= left.len();
            within = right;
        }
    }
    path.reverse();
    Some(Proof {
        index,
        leaves: leaves.len(),
        path,
    })
}

impl Proof {
    /// Whether it proves that `leaf` is at its place in the tree of `root`.
    #[must_use]
    pub fn holds(&self, leaf: &Hash, root: &Hash) -> bool {
        if self.index >= self.leaves {
            return false;
        }
        // From the root down: on which side of each node the leaf is.
        let mut sides = Vec::new();
        let (mut leaves, mut at) = (self.leaves, self.index);
        while leaves > 1 {
            let left = left_leaves(leaves);
            sides.push(at < left);
            (leaves, at) = if at < left {
                (left, at)
            } else {
                (leaves - left, at - left)
            };
        }
        if sides.len() != self.path.len() {
            return false;
        }
        let mut hash = *leaf;
        for (is_left, beside) in sides.iter().rev().zip(&self.path) {
            hash = if *is_left {
                node_hash(&hash, beside)
            } else {
                node_hash(beside, &hash)
            };
        }
        hash == *root
    }
}

#[cfg(test)]
mod tests {
    use super::super::terms::hexadecimal;
    use super::*;

    fn leaves(count: usize) -> Vec<Hash> {
        (0..count)
            .map(|leaf| leaf_hash(&leaf.to_be_bytes()))
            .collect()
    }

    /// The vectors that implementations of RFC 6962 share.
    #[test]
    fn the_roots_are_those_of_the_published_vectors() {
        let inputs: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let hashes: Vec<Hash> = inputs.iter().map(|input| leaf_hash(input)).collect();
        for (count, expected) in [
            (
                0,
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ),
            (
                1,
                "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            ),
            (
                2,
                "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            ),
            (
                3,
                "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            ),
            (
                7,
                "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            ),
            (
                8,
                "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
            ),
        ] {
            assert_eq!(
                hexadecimal(&root(&hashes[..count])),
                expected,
                "{count} leaves"
            );
        }
    }

    #[test]
    fn every_leaf_can_be_proved_and_no_other_passes_for_it() {
        for count in 1..40 {
            let leaves = leaves(count);
            let root = root(&leaves);
            for index in 0..count {
                let proof = prove(&leaves, index).unwrap();
                assert!(proof.holds(&leaves[index], &root), "{index} of {count}");
                assert!(!proof.holds(&leaf_hash(b"other"), &root));
                assert!(!proof.holds(&leaves[index], &leaf_hash(b"other")));
                let elsewhere = Proof {
                    index: (index + 1) % count,
                    ..proof.clone()
                };
                assert!(count == 1 || !elsewhere.holds(&leaves[index], &root));
                let mut longer = proof.clone();
                longer.path.push([0; 32]);
                assert!(!longer.holds(&leaves[index], &root));
                let outside = Proof {
                    index: count,
                    ..proof
                };
                assert!(!outside.holds(&leaves[index], &root));
            }
            assert_eq!(prove(&leaves, count), None);
        }
    }
}
