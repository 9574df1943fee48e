//! The vectors of WebAssembly, of 128 bits: every vector here is two of them.
//!
//! WebAssembly has no product of bytes. Bytes are taken as the two halves of 16-bit words, and
//! `i32x4.dot_i16x8_s` adds two products of 16 bits in each lane, so that a lane's four columns take two of them.
//! Rejected: the relaxed instructions, which have a product of bytes, because a browser without them refuses the whole
//! module, so that the engine would have to be built and downloaded in two versions.

use core::arch::wasm32::*;

use super::Simd;

/// SIMD128.
#[derive(Clone, Copy)]
pub(crate) struct Simd128;

/// Lanes 0 to 3, and 4 to 7.
type Two = [v128; 2];

#[inline(always)]
fn each(f: impl Fn(usize) -> v128) -> Two {
    [f(0), f(1)]
}

/// Four f16, each in the low half of a lane, as f32.
#[inline(always)]
fn widened(halves: v128) -> v128 {
    // An f16 in the place of an f32 is too small by this factor, exactly, subnormal or not.
    const FACTOR: f32 = f32::from_bits((127 + 112) << 23);
    let magnitude = i32x4_shl(v128_and(halves, i32x4_splat(0x7fff)), 13);
    let sign = i32x4_shl(v128_and(halves, i32x4_splat(0x8000)), 16);
    // Infinities and NaN have the largest exponent in either type.
    let special = v128_and(i32x4_ge(magnitude, i32x4_splat(0x7c00 << 13)), i32x4_splat(0xff << 23));
    v128_or(v128_or(f32x4_mul(magnitude, f32x4_splat(FACTOR)), sign), special)
}

// SAFETY of every block here: the module is compiled for the instructions, and the caller's pointers are to as many
// values as are read or written.
impl Simd for Simd128 {
    type F = Two;
    type I = Two;
    type B = Two;
    /// The even columns of the four, and the odd ones, as i16 in every lane.
    type X = [v128; 2];
    type S = Two;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Two {
        [f32x4_splat(value); 2]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Two {
        unsafe { [v128_load(from.cast()), v128_load(from.add(4).cast())] }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, values: Two) {
        unsafe {
            v128_store(to.cast(), values[0]);
            v128_store(to.add(4).cast(), values[1]);
        }
    }

    #[inline(always)]
    unsafe fn load_half(from: *const u8) -> Two {
        let halves = unsafe { v128_load(from.cast()) };
        [widened(u32x4_extend_low_u16x8(halves)), widened(u32x4_extend_high_u16x8(halves))]
    }

    #[inline(always)]
    unsafe fn add(a: Two, b: Two) -> Two {
        each(|i| f32x4_add(a[i], b[i]))
    }

    #[inline(always)]
    unsafe fn mul(a: Two, b: Two) -> Two {
        each(|i| f32x4_mul(a[i], b[i]))
    }

    #[inline(always)]
    unsafe fn fma(a: Two, b: Two, c: Two) -> Two {
        each(|i| f32x4_add(f32x4_mul(a[i], b[i]), c[i]))
    }

    #[inline(always)]
    unsafe fn sum(values: Two) -> f32 {
        let four = f32x4_add(values[0], values[1]);
        let two = f32x4_add(four, i32x4_shuffle::<2, 3, 0, 1>(four, four));
        f32x4_extract_lane::<0>(two) + f32x4_extract_lane::<1>(two)
    }

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Two {
        unsafe { [v128_load(from.cast()), v128_load(from.add(16).cast())] }
    }

    #[inline(always)]
    unsafe fn splat4(from: *const i8) -> [v128; 2] {
        let four = unsafe { v128_load32_splat(from.cast()) };
        [i16x8_shr(i16x8_shl(four, 8), 8), i16x8_shr(four, 8)]
    }

    #[inline(always)]
    unsafe fn low_nibbles(bytes: Two) -> Two {
        each(|i| v128_and(bytes[i], i8x16_splat(15)))
    }

    #[inline(always)]
    unsafe fn high_nibbles(bytes: Two) -> Two {
        each(|i| v128_and(u16x8_shr(bytes[i], 4), i8x16_splat(15)))
    }

    #[inline(always)]
    unsafe fn high_bits(bytes: Two, shift: i32, mask: i8) -> Two {
        each(|i| i16x8_shl(v128_and(u32x4_shr(bytes[i], shift as u32), i8x16_splat(mask)), 4))
    }

    #[inline(always)]
    unsafe fn or(a: Two, b: Two) -> Two {
        each(|i| v128_or(a[i], b[i]))
    }

    #[inline(always)]
    unsafe fn lookup(table: &[i8; 16], bytes: Two) -> Two {
        let table = unsafe { v128_load(table.as_ptr().cast()) };
        each(|i| i8x16_swizzle(table, bytes[i]))
    }

    #[inline(always)]
    unsafe fn no_sums() -> Two {
        [i32x4_splat(0); 2]
    }

    #[inline(always)]
    unsafe fn dot(sums: Two, unsigned: Two, signed: [v128; 2]) -> Two {
        each(|i| {
            let even = i32x4_dot_i16x8(v128_and(unsigned[i], i16x8_splat(0xff)), signed[0]);
            let odd = i32x4_dot_i16x8(u16x8_shr(unsigned[i], 8), signed[1]);
            i32x4_add(i32x4_add(sums[i], even), odd)
        })
    }

    #[inline(always)]
    unsafe fn fold(sums: Two) -> Two {
        sums
    }

    /// 256 times the sums: a signed byte in the high half of a word needs one instruction less.
    #[inline(always)]
    unsafe fn dot_signed(sums: Two, a: Two, b: [v128; 2]) -> Two {
        each(|i| {
            let even = i32x4_dot_i16x8(i16x8_shl(a[i], 8), b[0]);
            let odd = i32x4_dot_i16x8(v128_and(a[i], i16x8_splat(-256)), b[1]);
            i32x4_add(i32x4_add(sums[i], even), odd)
        })
    }

    #[inline(always)]
    unsafe fn fold_signed(sums: Two) -> Two {
        each(|i| i32x4_shr(sums[i], 8))
    }

    #[inline(always)]
    unsafe fn no_integers() -> Two {
        [i32x4_splat(0); 2]
    }

    #[inline(always)]
    unsafe fn add_integers(a: Two, b: Two) -> Two {
        each(|i| i32x4_add(a[i], b[i]))
    }

    #[inline(always)]
    unsafe fn floats(values: Two) -> Two {
        each(|i| f32x4_convert_i32x4(values[i]))
    }

    #[inline(always)]
    unsafe fn shorts(from: *const u8) -> Two {
        unsafe { [u32x4_load_extend_u16x4(from.cast()), u32x4_load_extend_u16x4(from.add(8).cast())] }
    }

    #[inline(always)]
    unsafe fn words(from: *const u8) -> Two {
        unsafe { [v128_load(from.cast()), v128_load(from.add(16).cast())] }
    }

    #[inline(always)]
    unsafe fn field(words: Two, shift: i32, bits: u32) -> Two {
        each(|i| v128_and(u32x4_shr(words[i], shift as u32), i32x4_splat((1 << bits) - 1)))
    }

    #[inline(always)]
    unsafe fn joined(low: Two, high: Two, shift: i32) -> Two {
        each(|i| i32x4_add(low[i], i32x4_shl(high[i], shift as u32)))
    }

    #[inline(always)]
    unsafe fn low_halves(words: Two) -> Two {
        each(|i| widened(words[i]))
    }
}
