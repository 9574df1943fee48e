//! Vectors of eight numbers: the only place that names the instructions of a processor.
//!
//! Kernels are generic over [`Simd`] and compiled once for each set of instructions ([`by_level`]); which set is used
//! is decided when a device is opened, or in WebAssembly, where a module cannot ask, when it is compiled. Rejected: a
//! crate of portable vectors, because none has the products of bytes that quantized weights need.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod simd128;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
pub(crate) use portable::Portable;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub(crate) use simd128::Simd128;

/// A set of instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// What the program is compiled for.
    Portable,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// WebAssembly's vectors of 128 bits.
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    Simd128,
}

impl Level {
    /// The best set that this processor has.
    pub(crate) fn detect() -> Level {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            return Level::Avx2;
        }
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        return Level::Simd128;
        #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
        Level::Portable
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "AVX2",
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Level::Simd128 => "SIMD128",
        }
    }
}

/// Eight lanes. A vector of bytes has 4 bytes in each lane.
///
/// # Safety
/// The processor has the instructions of the set. Pointers are to as many values as the vector has.
pub(crate) trait Simd: Copy {
    /// Eight f32.
    type F: Copy;
    /// Eight i32.
    type I: Copy;
    /// 32 bytes.
    type B: Copy;
    /// The same 4 signed bytes in every lane.
    type X: Copy;
    /// Sums of products of bytes.
    type S: Copy;

    unsafe fn splat(value: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn store(to: *mut f32, values: Self::F);
    /// Eight f16.
    unsafe fn load_half(from: *const u8) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// a · b + c
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn sum(values: Self::F) -> f32;

    unsafe fn bytes(from: *const u8) -> Self::B;
    unsafe fn splat4(from: *const i8) -> Self::X;
    /// The low 4 bits of every byte.
    unsafe fn low_nibbles(bytes: Self::B) -> Self::B;
    /// The high 4 bits of every byte.
    unsafe fn high_nibbles(bytes: Self::B) -> Self::B;
    /// The bits `mask` of every byte after a shift to the right by `shift`, moved to bit 4.
    unsafe fn high_bits(bytes: Self::B, shift: i32, mask: i8) -> Self::B;
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B;
    /// The entry of a table for every byte, each below 16.
    unsafe fn lookup(table: &[i8; 16], bytes: Self::B) -> Self::B;

    unsafe fn no_sums() -> Self::S;
    /// Adds Σ of 4 products of unsigned bytes of n bits (4 to 6) and signed bytes within ±127 to each lane. At most
    /// 128 / 2^n such sums fit before they are folded.
    unsafe fn dot(sums: Self::S, unsigned: Self::B, signed: Self::X) -> Self::S;
    /// The sums of each lane.
    unsafe fn fold(sums: Self::S) -> Self::I;
    /// Adds Σ of 4 products of signed bytes within ±127 to each lane.
    unsafe fn dot_signed(sums: Self::I, a: Self::B, b: Self::X) -> Self::I;
    /// The sums of each lane, of at most 256 such products.
    unsafe fn fold_signed(sums: Self::I) -> Self::I;
    unsafe fn no_integers() -> Self::I;
    unsafe fn add_integers(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn floats(values: Self::I) -> Self::F;
    /// Eight unsigned numbers of 16 bits.
    unsafe fn shorts(from: *const u8) -> Self::I;
    /// Eight words.
    unsafe fn words(from: *const u8) -> Self::I;
    /// The `bits` (below 32) bits from `shift` on of every word.
    unsafe fn field(words: Self::I, shift: i32, bits: u32) -> Self::I;
    /// low + high · 2^shift
    unsafe fn joined(low: Self::I, high: Self::I, shift: i32) -> Self::I;
    /// The f16 in the low half of every word.
    unsafe fn low_halves(words: Self::I) -> Self::F;
}

/// Defines a function that is compiled for every level: `by_level! { fn name<S>(level, arguments) { body } }`.
macro_rules! by_level {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$simd:ident>($($argument:ident: $kind:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis fn $name(level: $crate::cpu::simd::Level, $($argument: $kind),*) {
            #[inline(always)]
            unsafe fn body<$simd: $crate::cpu::simd::Simd>($($argument: $kind),*) $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2($($argument: $kind),*) {
                // SAFETY: the caller has checked that the processor has the instructions.
                unsafe { body::<$crate::cpu::simd::Avx2>($($argument),*) }
            }
            match level {
                // SAFETY: every processor has these instructions.
                $crate::cpu::simd::Level::Portable => unsafe { body::<$crate::cpu::simd::Portable>($($argument),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the level was detected on this processor.
                $crate::cpu::simd::Level::Avx2 => unsafe { avx2($($argument),*) },
                #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
                // SAFETY: the module is compiled for the instructions.
                $crate::cpu::simd::Level::Simd128 => unsafe { body::<$crate::cpu::simd::Simd128>($($argument),*) },
            }
        }
    };
}

pub(crate) use by_level;
