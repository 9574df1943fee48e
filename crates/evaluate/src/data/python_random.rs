//! Python's `random.Random`, as far as harnesses draw examples, shuffle choices and draw bootstrap samples with it: the
//! Mersenne Twister (MT19937) seeded by a whole number, `sample`, `shuffle` and `choices`. NumPy's older generator,
//! which ROUGE is averaged with, is the same with another seeding.
//!
//! Own code, because crates of the generator know neither how Python seeds it nor how it draws from a list.

const WORDS: usize = 624;
const SHIFT: usize = 397;

/// The generator.
#[derive(Debug, Clone)]
pub struct PythonRandom {
    state: [u32; WORDS],
    next: usize,
}

impl PythonRandom {
    /// `random.Random(seed)`.
    pub fn new(seed: u64) -> PythonRandom {
        let low = seed as u32;
        let high = (seed >> 32) as u32;
        let key: &[u32] = if high == 0 { &[low] } else { &[low, high] };
        let mut state = filled(19_650_218);
        let (mut at, mut word) = (1, 0);
        for _ in 0..WORDS.max(key.len()) {
            state[at] = (state[at] ^ mixed(state[at - 1], 1_664_525)).wrapping_add(key[word]).wrapping_add(word as u32);
            at = following(at, &mut state);
            word = (word + 1) % key.len();
        }
        for _ in 0..WORDS - 1 {
            state[at] = (state[at] ^ mixed(state[at - 1], 1_566_083_941)).wrapping_sub(at as u32);
            at = following(at, &mut state);
        }
        state[0] = 0x8000_0000;
        PythonRandom { state, next: WORDS }
    }

    /// `getrandbits(32)`.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == WORDS {
            for at in 0..WORDS {
                let joined = (self.state[at] & 0x8000_0000) | (self.state[(at + 1) % WORDS] & 0x7FFF_FFFF);
                let odd = if joined & 1 == 1 { 0x9908_B0DF } else { 0 };
                self.state[at] = self.state[(at + SHIFT) % WORDS] ^ (joined >> 1) ^ odd;
            }
            self.next = 0;
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9D2C_5680;
        word ^= (word << 15) & 0xEFC6_0000;
        word ^ (word >> 18)
    }

    /// A number below `bound`, which is at least 1 and at most 2³².
    fn below(&mut self, bound: usize) -> usize {
        let bits = usize::BITS - bound.leading_zeros();
        loop {
            // Python takes the highest bits of a word, and draws again if the number is too large.
            let drawn = if bits > 32 { self.next_u32() } else { self.next_u32() >> (32 - bits) };
            if (drawn as usize) < bound {
                return drawn as usize;
            }
        }
    }

    /// `sample(range(count), wanted)`: different numbers in the order in which they are drawn; `None` if there are fewer
    /// than wanted.
    pub fn sample(&mut self, count: usize, wanted: usize) -> Option<Vec<usize>> {
        if wanted > count || count > u32::MAX as usize {
            return None;
        }
        // Short lists are shuffled; from long ones numbers are drawn until they differ.
        let mut longest_shuffled = 21.0;
        if wanted > 5 {
            longest_shuffled += 4f64.powf(((wanted * 3) as f64).log(4.0).ceil());
        }
        let mut drawn = Vec::with_capacity(wanted);
        if count as f64 <= longest_shuffled {
            let mut pool: Vec<usize> = (0..count).collect();
            for taken in 0..wanted {
                let at = self.below(count - taken);
                drawn.push(pool[at]);
                pool[at] = pool[count - taken - 1];
            }
        } else {
            while drawn.len() < wanted {
                let at = self.below(count);
                if !drawn.contains(&at) {
                    drawn.push(at);
                }
            }
        }
        Some(drawn)
    }

    /// `choices(range(count))[0]`; `count` is at least 1.
    pub fn choice(&mut self, count: usize) -> usize {
        let (high, low) = (f64::from(self.next_u32() >> 5), f64::from(self.next_u32() >> 6));
        let part = (high * f64::from(1 << 26) + low) / (1u64 << 53) as f64;
        (part * count as f64) as usize
    }

    /// The numbers below `count` in the order that `shuffle` brings a list of them into. `count` is at most 2³².
    pub fn shuffled(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for at in (1..count).rev() {
            order.swap(at, self.below(at + 1));
        }
        order
    }
}

/// `numpy.random.RandomState`.
#[derive(Debug, Clone)]
pub struct NumpyRandom(PythonRandom);

impl NumpyRandom {
    /// `numpy.random.RandomState(seed)`.
    pub fn new(seed: u32) -> NumpyRandom {
        NumpyRandom(PythonRandom { state: filled(seed), next: WORDS })
    }

    /// `randint(bound)`, a number below `bound`, which is at least 1 and below 2³².
    pub fn below(&mut self, bound: usize) -> usize {
        let largest = bound as u32 - 1;
        if largest == 0 {
            return 0;
        }
        let mask = u32::MAX >> largest.leading_zeros();
        loop {
            let drawn = self.0.next_u32() & mask;
            if drawn <= largest {
                return drawn as usize;
            }
        }
    }
}

/// The state that begins with this word.
fn filled(first: u32) -> [u32; WORDS] {
    let mut state = [0; WORDS];
    state[0] = first;
    for at in 1..WORDS {
        state[at] = mixed(state[at - 1], 1_812_433_253).wrapping_add(at as u32);
    }
    state
}

fn mixed(word: u32, factor: u32) -> u32 {
    (word ^ (word >> 30)).wrapping_mul(factor)
}

/// The place after `at`; the last word becomes the first one before the round begins anew.
fn following(at: usize, state: &mut [u32; WORDS]) -> usize {
    if at + 1 < WORDS {
        return at + 1;
    }
    state[0] = state[WORDS - 1];
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_python_s() {
        let words = |seed: u64, count: usize| {
            let mut random = PythonRandom::new(seed);
            (0..count).map(|_| random.next_u32()).collect::<Vec<_>>()
        };
        assert_eq!(words(1234, 4), [4_150_886_329, 3_342_196_574, 1_892_932_127, 501_869_158]);
        assert_eq!(words((1 << 40) + 5, 3), [2_166_296_868, 2_220_160_828, 1_153_647_273]);
        assert_eq!(words(0, 1), [3_626_764_237]);
    }

    #[test]
    fn choices_are_python_s_and_numpy_s() {
        let mut python = PythonRandom::new(0);
        assert_eq!([0; 8].map(|_| python.choice(10)), [8, 7, 4, 2, 5, 4, 7, 3]);
        let mut numpy = NumpyRandom::new(1234);
        assert_eq!([0; 8].map(|_| numpy.below(10)), [3, 6, 5, 4, 8, 9, 1, 7]);
        assert_eq!(NumpyRandom::new(1).below(1), 0);
    }

    /// What lm-evaluation-harness's own sampler drew with the seed 1234 from lists of these lengths.
    #[test]
    fn samples_are_those_of_the_harness() {
        let samples = |count: usize, wanted: usize, times: usize| {
            let mut random = PythonRandom::new(1234);
            (0..times).map(|_| random.sample(count, wanted).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(samples(6, 2, 4), [[3, 0], [0, 5], [4, 0], [5, 0]]);
        assert_eq!(samples(22, 3, 3), [[14, 3, 0], [2, 18, 1], [21, 2, 3]]);
        assert_eq!(samples(100, 5, 3), [[99, 56, 14, 0, 11], [74, 4, 85, 88, 10], [12, 98, 45, 30, 2]]);
        let long = [[3610, 957, 61, 742, 4769, 286, 687, 806], [2905, 1939, 142, 252, 129, 2835, 3966, 3797]];
        assert_eq!(samples(5000, 8, 2), long);
        assert_eq!(samples(90, 8, 2), [[56, 14, 0, 11, 74, 4, 85, 88], [10, 12, 45, 30, 2, 3, 44, 82]]);
        assert_eq!(PythonRandom::new(1).sample(3, 4), None);
    }
}
