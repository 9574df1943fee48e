//! What a driver says of the kernels that it compiled: registers, spills, occupancy, instructions.
//!
//! Vulkan drivers report it through `VK_KHR_pipeline_executable_properties`, each with names of its own. The figures that
//! Bayan compares have one name here; all others stay as the driver names them.

/// What the driver says of a kernel.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KernelReport {
    /// The programs that the driver made of the kernel; most make one.
    pub executables: Vec<Executable>,
    /// The SPIR-V that the driver compiled.
    pub spirv: Vec<u32>,
}

/// A program that a driver made of a kernel.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Executable {
    /// The driver's name of the program.
    pub name: String,
    /// Invocations of a subgroup.
    pub subgroup_size: u32,
    /// The driver's figures, in its order.
    pub statistics: Vec<Statistic>,
    /// The machine code as text, where the driver gives it.
    pub assembly: Option<String>,
}

/// A figure of a program.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Statistic {
    /// The driver's name of the figure.
    pub name: String,
    /// The figure.
    pub value: f64,
}

/// A figure that several drivers report, each under its own name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// Vector registers of an invocation.
    Registers,
    /// Registers, of any kind, that did not fit and are stored in memory.
    Spilled,
    /// Bytes of memory of an invocation, for what did not fit registers.
    ScratchBytes,
    /// Bytes of workgroup memory.
    WorkgroupBytes,
    /// Subgroups that a processor holds at a time for each of its units.
    Occupancy,
    /// Instructions.
    Instructions,
    /// The compiler's estimate of cycles from the first to the last instruction of a subgroup.
    Latency,
    /// The compiler's estimate of cycles that a subgroup keeps its unit busy.
    InverseThroughput,
}

impl Figure {
    /// All figures, in the order of tables.
    pub const ALL: [Figure; 8] = [
        Figure::Registers,
        Figure::Spilled,
        Figure::ScratchBytes,
        Figure::WorkgroupBytes,
        Figure::Occupancy,
        Figure::Instructions,
        Figure::Latency,
        Figure::InverseThroughput,
    ];

    /// The name in JSON and tables.
    pub fn name(self) -> &'static str {
        match self {
            Figure::Registers => "registers",
            Figure::Spilled => "spilled",
            Figure::ScratchBytes => "scratch_bytes",
            Figure::WorkgroupBytes => "workgroup_bytes",
            Figure::Occupancy => "occupancy",
            Figure::Instructions => "instructions",
            Figure::Latency => "latency",
            Figure::InverseThroughput => "inverse_throughput",
        }
    }

    /// The names that drivers give the figure (Mesa's RADV, Mesa's ANV and NVIDIA's driver), whose figures are added.
    fn names(self) -> &'static [&'static str] {
        match self {
            Figure::Registers => &["VGPRs", "Max live registers", "Register Count"],
            Figure::Spilled => &["Spilled SGPRs", "Spilled VGPRs", "Spill Count"],
            Figure::ScratchBytes => &["Scratch size", "Scratch Memory Size", "Local Memory Size"],
            Figure::WorkgroupBytes => &["LDS size", "Workgroup Memory Size", "Shared Memory Size"],
            Figure::Occupancy => &["Subgroups per SIMD"],
            Figure::Instructions => &["Instructions", "Instruction Count"],
            Figure::Latency => &["Latency", "Cycle Count"],
            Figure::InverseThroughput => &["Inverse Throughput"],
        }
    }
}

impl Executable {
    /// Number of instructions in the machine code that multiply matrices (AMD's, Intel's and NVIDIA's names), if the
    /// driver gives the machine code.
    pub fn matrix_instructions(&self) -> Option<usize> {
        const NAMES: [&str; 5] = ["v_wmma_", "v_swmmac_", "v_mfma_", "dpas", "HMMA"];
        let is_one = |line: &&str| NAMES.iter().any(|name| line.contains(name));
        self.assembly.as_ref().map(|text| text.lines().filter(is_one).count())
    }

    /// A figure, if the driver reports it.
    pub fn figure(&self, figure: Figure) -> Option<f64> {
        let known = self.statistics.iter().filter(|statistic| figure.names().contains(&statistic.name.as_str()));
        known.map(|statistic| statistic.value).reduce(|sum, value| sum + value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_one_name_for_all_drivers() {
        let of = |list: &[(&str, f64)]| Executable {
            statistics: list.iter().map(|&(name, value)| Statistic { name: name.into(), value }).collect(),
            ..Executable::default()
        };
        let radv = of(&[("SGPRs", 128.0), ("VGPRs", 96.0), ("Spilled SGPRs", 2.0), ("Spilled VGPRs", 3.0)]);
        assert_eq!(radv.figure(Figure::Registers), Some(96.0));
        assert_eq!(radv.figure(Figure::Spilled), Some(5.0));
        assert_eq!(radv.figure(Figure::Latency), None);
        let code = |text: &str| Executable { assembly: Some(text.into()), ..Executable::default() };
        let wmma = "  s_barrier\n  v_wmma_f32_16x16x16_f16 v[0:7], v[8:15], v[16:23], v[0:7]\n";
        assert_eq!(code(wmma).matrix_instructions(), Some(1));
        assert_eq!(code("v_fma_f32 v0, v1, v2, v0").matrix_instructions(), Some(0));
        assert_eq!(radv.matrix_instructions(), None);
        let anv = of(&[("Instruction Count", 700.0), ("Spill Count", 0.0)]);
        assert_eq!(anv.figure(Figure::Instructions), Some(700.0));
        assert_eq!(anv.figure(Figure::Spilled), Some(0.0));
    }
}
