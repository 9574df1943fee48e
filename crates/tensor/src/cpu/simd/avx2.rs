//! The vectors of AVX2, with FMA and F16C.

use std::arch::x86_64::*;

use super::Simd;

/// AVX2.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

// SAFETY of every block here: the instructions are those of the set, which the caller of the trait has checked, and
// the caller's pointers are to as many values as are read or written.
impl Simd for Avx2 {
    type F = __m256;
    type I = __m256i;
    type B = __m256i;
    type X = __m256i;
    /// Sixteen i16, two for each lane.
    type S = __m256i;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, values: __m256) {
        unsafe { _mm256_storeu_ps(to, values) }
    }

    #[inline(always)]
    unsafe fn load_half(from: *const u8) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn sum(values: __m256) -> f32 {
        unsafe {
            let half = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps::<1>(values));
            let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
        }
    }

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> __m256i {
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat4(from: *const i8) -> __m256i {
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn low_nibbles(bytes: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(bytes, _mm256_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn high_nibbles(bytes: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), _mm256_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn high_bits(bytes: __m256i, shift: i32, mask: i8) -> __m256i {
        unsafe {
            let shifted = _mm256_srl_epi32(bytes, _mm_cvtsi32_si128(shift));
            _mm256_slli_epi16::<4>(_mm256_and_si256(shifted, _mm256_set1_epi8(mask)))
        }
    }

    #[inline(always)]
    unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, b) }
    }

    #[inline(always)]
    unsafe fn lookup(table: &[i8; 16], bytes: __m256i) -> __m256i {
        unsafe { _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), bytes) }
    }

    #[inline(always)]
    unsafe fn no_sums() -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
        unsafe { _mm256_add_epi16(sums, _mm256_maddubs_epi16(unsigned, signed)) }
    }

    #[inline(always)]
    unsafe fn fold(sums: __m256i) -> __m256i {
        unsafe { _mm256_madd_epi16(sums, _mm256_set1_epi16(1)) }
    }

    #[inline(always)]
    unsafe fn dot_signed(sums: __m256i, a: __m256i, b: __m256i) -> __m256i {
        unsafe {
            let pairs = _mm256_maddubs_epi16(_mm256_sign_epi8(a, a), _mm256_sign_epi8(b, a));
            _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    unsafe fn fold_signed(sums: __m256i) -> __m256i {
        sums
    }

    #[inline(always)]
    unsafe fn no_integers() -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn add_integers(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn floats(values: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(values) }
    }

    #[inline(always)]
    unsafe fn shorts(from: *const u8) -> __m256i {
        unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn words(from: *const u8) -> __m256i {
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn field(words: __m256i, shift: i32, bits: u32) -> __m256i {
        unsafe {
            let shifted = _mm256_srl_epi32(words, _mm_cvtsi32_si128(shift));
            _mm256_and_si256(shifted, _mm256_set1_epi32((1 << bits) - 1))
        }
    }

    #[inline(always)]
    unsafe fn joined(low: __m256i, high: __m256i, shift: i32) -> __m256i {
        unsafe { _mm256_add_epi32(low, _mm256_sll_epi32(high, _mm_cvtsi32_si128(shift))) }
    }

    #[inline(always)]
    unsafe fn low_halves(words: __m256i) -> __m256 {
        unsafe {
            let low = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(low, low));
            _mm256_cvtph_ps(_mm256_castsi256_si128(packed))
        }
    }
}
