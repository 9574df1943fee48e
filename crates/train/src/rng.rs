//! A random number generator whose state is four words: xoshiro256**, seeded by SplitMix64.
//!
//! It is own code because checkpoints store the state, and a run resumed years later must draw the same numbers; a
//! crate may change its algorithm between versions.

use serde::{Deserialize, Serialize};

/// The generator; serde saves and restores its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rng {
    state: [u64; 4],
}

/// One step of SplitMix64: advances `state` and returns a mixed value.
pub fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Rng {
    /// A generator for a seed and a stream of it (an epoch, a purpose).
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut mixer = seed;
        let mut mixer = split_mix(&mut mixer) ^ stream.wrapping_mul(0xD1B5_4A32_D192_ED03);
        Self { state: std::array::from_fn(|_| split_mix(&mut mixer)) }
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let (c1, d1) = (c ^ a, d ^ b);
        self.state = [a ^ d1, b ^ c1, c1 ^ (b << 17), d1.rotate_left(45)];
        result
    }

    /// A uniform number below `bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        // The lowest 2^64 mod bound products would bias the result, so they are drawn again.
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            if product as u64 >= threshold {
                return (product >> 64) as u64;
            }
        }
    }

    /// A uniform number in 0..1.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A normally distributed number with mean 0 and variance 1.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Shuffles the elements.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_never_changes() {
        // Values from the authors' C code with this state.
        let mut rng = Rng { state: [1, 2, 3, 4] };
        let want = [11520, 0, 1509978240, 1215971899390074240];
        assert_eq!([rng.next_u64(), rng.next_u64(), rng.next_u64(), rng.next_u64()], want);
        let mut seeded = 1234567;
        assert_eq!(split_mix(&mut seeded), 6457827717110365317);
    }

    #[test]
    fn a_saved_state_goes_on_as_the_generator_does() {
        let mut rng = Rng::new(7, 3);
        rng.next_u64();
        let mut restored: Rng = serde_json::from_str(&serde_json::to_string(&rng).unwrap()).unwrap();
        assert!((0..100).all(|_| rng.next_u64() == restored.next_u64()));
        assert_ne!(Rng::new(7, 3), Rng::new(7, 4));
        assert_ne!(Rng::new(7, 3), Rng::new(8, 3));
    }

    #[test]
    fn draws_are_spread_as_they_should_be() {
        let mut rng = Rng::new(1, 0);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[rng.below(7) as usize] += 1;
        }
        assert!(counts.iter().all(|c| (9_500..10_500).contains(c)), "{counts:?}");
        let normals: Vec<f64> = (0..50_000).map(|_| rng.normal()).collect();
        let mean = normals.iter().sum::<f64>() / 5e4;
        let variance = normals.iter().map(|x| x * x).sum::<f64>() / 5e4;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }
}
