//! The roofline: the least time of a kernel on a device, and the share of it that latency and empty processors leave.
//!
//! The least time is that of its bytes at the memory's bandwidth, or of its operations at the peak of the units that it
//! uses, whichever is longer. A kernel that memory limits reaches the bandwidth only if `bandwidth x latency` bytes are
//! on their way at any time: workgroups x invocations x loads before the first wait x 16 bytes. A kernel that
//! arithmetic limits leaves processors empty in its last round of workgroups. Nothing here was compared with a
//! measurement yet.

use super::devices::Device;

/// Time from a load to its data, in seconds: an estimate for all devices.
const LATENCY_S: f64 = 0.7e-6;

/// Bytes of a load.
const LOAD_BYTES: f64 = 16.0;

/// Largest share of the nominal bandwidth that a copy reaches.
const COPY_SHARE: f64 = 0.9;

/// The units that compute most of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Matrix cores.
    Matrix,
    /// Packed dot products of int8.
    Dot,
    /// Everything else.
    Float,
}

/// What is known of a kernel's dispatch.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// Bytes of all bindings: each is read or written once, if caches hold what is read again.
    pub bytes: f64,
    /// Multiply-adds.
    pub multiply_adds: f64,
    /// Number of workgroups.
    pub workgroups: f64,
    /// Invocations of a workgroup.
    pub invocations: f64,
    /// Loads that an invocation starts before it waits for the first; 1 if the machine code does not say.
    pub loads: f64,
    /// The units.
    pub unit: Unit,
}

/// A kernel on a device.
#[derive(Debug, Clone, Copy)]
pub struct Estimate {
    /// The least time, in microseconds.
    pub least_us: f64,
    /// Whether memory limits the kernel, and not arithmetic.
    pub memory_bound: bool,
    /// The expected share of the bandwidth, or of the peak.
    pub share: f64,
}

impl Kernel {
    /// The roofline on this device; `None` where the device lacks the units, so that it would run another kernel.
    pub fn on(&self, device: &Device) -> Option<Estimate> {
        let bandwidth = device.bandwidth_gb_s * 1e9;
        let peak = match self.unit {
            Unit::Matrix => device.matrix_tflops,
            Unit::Dot => device.dot_tops,
            Unit::Float => device.f32_tflops,
        };
        if peak == 0.0 {
            return None;
        }
        let (memory_s, arithmetic_s) = (self.bytes / bandwidth, 2.0 * self.multiply_adds / (peak * 1e12));
        let memory_bound = memory_s >= arithmetic_s;
        let share = if memory_bound {
            let in_flight = self.workgroups * self.invocations * self.loads.max(1.0) * LOAD_BYTES;
            // A kernel with fewer bytes than that needs one latency, whatever it does.
            let needed = (bandwidth * LATENCY_S).min(self.bytes.max(1.0));
            (in_flight / needed).min(1.0) * COPY_SHARE * (memory_s / (memory_s + LATENCY_S))
        } else {
            let rounds = (self.workgroups / device.processors as f64).ceil().max(1.0);
            self.workgroups / (rounds * device.processors as f64)
        };
        Some(Estimate { least_us: memory_s.max(arithmetic_s) * 1e6, memory_bound, share })
    }
}

/// The unit that a kernel's name and machine code speak of.
pub fn unit(name: &str, matrix_instructions: u64) -> Unit {
    match name {
        _ if matrix_instructions > 0 || name.contains("_matrices") => Unit::Matrix,
        _ if name.contains("linear_dot") => Unit::Dot,
        _ => Unit::Float,
    }
}

/// Invocations of a workgroup: the execution mode LocalSize of a SPIR-V module.
pub fn invocations(spirv: &[u8]) -> Option<u64> {
    const EXECUTION_MODE: u32 = 16;
    const LOCAL_SIZE: u32 = 17;
    let words: Vec<u32> = spirv.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let mut rest = words.get(5..)?;
    while let Some(&first) = rest.first() {
        let (length, code) = ((first >> 16) as usize, first & 0xffff);
        let instruction = rest.get(..length).filter(|_| length > 0)?;
        if code == EXECUTION_MODE && instruction.get(2) == Some(&LOCAL_SIZE) {
            return Some(instruction.get(3..6)?.iter().map(|&size| u64::from(size)).product());
        }
        rest = &rest[length..];
    }
    None
}

/// The most loads from memory in AMD's machine code without a wait for loads or a branch between them.
pub fn loads_in_flight(assembly: &str) -> u64 {
    let (mut most, mut now) = (0, 0);
    for line in assembly.lines().map(str::trim_start) {
        let is_load = ["buffer_load", "global_load"].iter().any(|name| line.starts_with(name));
        let waits = line.starts_with("s_wait_loadcnt") || (line.starts_with("s_waitcnt") && line.contains("vmcnt"));
        if is_load {
            now += 1;
        } else if waits || line.starts_with("s_cbranch") || line.starts_with("s_branch") {
            now = 0;
        }
        most = most.max(now);
    }
    most
}

#[cfg(test)]
mod tests {
    use super::super::devices::DEVICES;
    use super::*;

    #[test]
    fn memory_or_arithmetic_limits_a_kernel() {
        let device = &DEVICES[0];
        let stream = Kernel {
            bytes: 1e9,
            multiply_adds: 1e9,
            workgroups: 1e4,
            invocations: 256.0,
            loads: 4.0,
            unit: Unit::Float,
        };
        let estimate = stream.on(device).expect("an estimate");
        assert!(estimate.memory_bound && (estimate.least_us - 992.06).abs() < 0.1, "{estimate:?}");
        assert!((0.89..0.9).contains(&estimate.share), "{estimate:?}");
        let lone = Kernel { workgroups: 1.0, loads: 1.0, ..stream }.on(device).expect("an estimate");
        assert!(lone.share < 0.01, "one workgroup does not fill the memory: {lone:?}");
        let product = Kernel { multiply_adds: 1e12, workgroups: 129.0, unit: Unit::Matrix, ..stream };
        let without = Device { matrix_tflops: 0.0, ..*device };
        assert!(product.on(&without).is_none(), "no matrices, so another kernel");
        let product = product.on(device).expect("an estimate");
        assert!(!product.memory_bound && (product.share - 129.0 / 256.0).abs() < 1e-9, "{product:?}");
        assert!((product.least_us - 12_106.5).abs() < 1.0, "{product:?}");
    }

    #[test]
    fn local_size_is_read_from_spirv() {
        let words: [u32; 5 + 2 + 6] = [0x0723_0203, 0, 0, 0, 0, 2 << 16 | 17, 1, 6 << 16 | 16, 4, 17, 8, 4, 2];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(invocations(&bytes), Some(64));
        assert_eq!(invocations(&bytes[..40]), None, "cut off");
        assert_eq!(invocations(&[]), None);
        assert_eq!(invocations(&[0; 64]), None, "an instruction of no words");
    }

    #[test]
    fn loads_are_counted_until_a_wait() {
        let text = "\tbuffer_load_b128 v[0:3]\n\tv_add_u32 v1\n\tbuffer_load_b32 v4\n\ts_waitcnt vmcnt(1)\n\
                    \tglobal_load_b64 v[5:6]\n\ts_waitcnt lgkmcnt(0)\n\tbuffer_load_b32 v7\n\tbuffer_load_b32 v8\n\
                    \ts_wait_loadcnt 0x0\n";
        assert_eq!(loads_in_flight(text), 3);
        assert_eq!(loads_in_flight(""), 0);
    }

    #[test]
    fn units_are_known_by_name_or_code() {
        assert_eq!(unit("linear_dot q4_k 64x64", 0), Unit::Dot);
        assert_eq!(unit("linear_matrices q4_k 64x64", 0), Unit::Matrix);
        assert_eq!(unit("attention", 4), Unit::Matrix);
        assert_eq!(unit("linear_rows q4_k 64x64", 0), Unit::Float);
    }
}
