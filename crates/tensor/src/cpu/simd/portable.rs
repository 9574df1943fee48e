//! The vectors as arrays, for every processor; compilers make vector instructions of these loops where they can.

use half::f16;

use super::Simd;

/// Arrays.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn each<T: Copy, const N: usize>(f: impl Fn(usize) -> T) -> [T; N] {
    std::array::from_fn(f)
}

impl Simd for Portable {
    type F = [f32; 8];
    type I = [i32; 8];
    type B = [u8; 32];
    type X = [i8; 4];
    type S = [i32; 8];

    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; 8] {
        [value; 8]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 8] {
        // SAFETY: the caller's pointer is to eight values.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, values: [f32; 8]) {
        // SAFETY: the caller's pointer is to eight values.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(values) }
    }

    #[inline(always)]
    unsafe fn load_half(from: *const u8) -> [f32; 8] {
        // SAFETY: the caller's pointer is to eight values of two bytes.
        let halves = unsafe { from.cast::<[u16; 8]>().read_unaligned() };
        each(|i| f16::from_bits(u16::from_le(halves[i])).to_f32())
    }

    #[inline(always)]
    unsafe fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn mul(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn fma(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        each(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn sum(values: [f32; 8]) -> f32 {
        values.iter().sum()
    }

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> [u8; 32] {
        // SAFETY: the caller's pointer is to 32 bytes.
        unsafe { from.cast::<[u8; 32]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn splat4(from: *const i8) -> [i8; 4] {
        // SAFETY: the caller's pointer is to 4 bytes.
        unsafe { from.cast::<[i8; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn low_nibbles(bytes: [u8; 32]) -> [u8; 32] {
        bytes.map(|byte| byte & 15)
    }

    #[inline(always)]
    unsafe fn high_nibbles(bytes: [u8; 32]) -> [u8; 32] {
        bytes.map(|byte| byte >> 4)
    }

    #[inline(always)]
    unsafe fn high_bits(bytes: [u8; 32], shift: i32, mask: i8) -> [u8; 32] {
        bytes.map(|byte| (byte >> shift & mask as u8) << 4)
    }

    #[inline(always)]
    unsafe fn or(a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        each(|i| a[i] | b[i])
    }

    #[inline(always)]
    unsafe fn lookup(table: &[i8; 16], bytes: [u8; 32]) -> [u8; 32] {
        bytes.map(|byte| table[usize::from(byte & 15)] as u8)
    }

    #[inline(always)]
    unsafe fn no_sums() -> [i32; 8] {
        [0; 8]
    }

    #[inline(always)]
    unsafe fn dot(sums: [i32; 8], unsigned: [u8; 32], signed: [i8; 4]) -> [i32; 8] {
        let product = |i: usize| i32::from(unsigned[i]) * i32::from(signed[i % 4]);
        each(|i| sums[i] + product(4 * i) + product(4 * i + 1) + product(4 * i + 2) + product(4 * i + 3))
    }

    #[inline(always)]
    unsafe fn fold(sums: [i32; 8]) -> [i32; 8] {
        sums
    }

    #[inline(always)]
    unsafe fn dot_signed(sums: [i32; 8], a: [u8; 32], b: [i8; 4]) -> [i32; 8] {
        let product = |i: usize| i32::from(a[i] as i8) * i32::from(b[i % 4]);
        each(|i| sums[i] + product(4 * i) + product(4 * i + 1) + product(4 * i + 2) + product(4 * i + 3))
    }

    #[inline(always)]
    unsafe fn fold_signed(sums: [i32; 8]) -> [i32; 8] {
        sums
    }

    #[inline(always)]
    unsafe fn no_integers() -> [i32; 8] {
        [0; 8]
    }

    #[inline(always)]
    unsafe fn add_integers(a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn floats(values: [i32; 8]) -> [f32; 8] {
        values.map(|value| value as f32)
    }

    #[inline(always)]
    unsafe fn shorts(from: *const u8) -> [i32; 8] {
        // SAFETY: the caller's pointer is to 16 bytes.
        unsafe { from.cast::<[u16; 8]>().read_unaligned() }.map(|short| i32::from(u16::from_le(short)))
    }

    #[inline(always)]
    unsafe fn words(from: *const u8) -> [i32; 8] {
        // SAFETY: the caller's pointer is to 32 bytes.
        unsafe { from.cast::<[i32; 8]>().read_unaligned() }.map(i32::from_le)
    }

    #[inline(always)]
    unsafe fn field(words: [i32; 8], shift: i32, bits: u32) -> [i32; 8] {
        words.map(|word| word >> shift & ((1 << bits) - 1))
    }

    #[inline(always)]
    unsafe fn joined(low: [i32; 8], high: [i32; 8], shift: i32) -> [i32; 8] {
        each(|i| low[i] + (high[i] << shift))
    }

    #[inline(always)]
    unsafe fn low_halves(words: [i32; 8]) -> [f32; 8] {
        words.map(|word| f16::from_bits(word as u16).to_f32())
    }
}
