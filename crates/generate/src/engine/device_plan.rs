//! A graph prepared for a device: a step runs on a GPU or on the CPU by the same calls.

use bayan_gpu::{Gpu, GpuError, KernelTime, PendingRead};
use bayan_tensor::{Cost, Cpu, CpuPlan, Dtype, Graph, Plan, PlannedKernel, Pool, Tensor, Tuning, Values};

/// A prepared graph.
#[derive(Debug)]
pub(super) enum DevicePlan {
    /// On a GPU, which works beside the host.
    Gpu(Gpu, Plan),
    /// On the CPU, which has computed the graph when a run returns.
    Cpu(CpuPlan),
}

/// Values that a run computes.
pub(super) enum PendingValues {
    /// On their way from the device.
    Read(PendingRead, Dtype),
    /// Already there.
    Ready(Values),
}

impl PendingValues {
    /// Waits for the values.
    pub(super) async fn wait(self) -> Result<Values, GpuError> {
        match self {
            PendingValues::Read(read, dtype) => Ok(Values::from_bytes(&read.wait().await?, dtype)),
            PendingValues::Ready(values) => Ok(values),
        }
    }
}

impl DevicePlan {
    /// Plans a graph for a GPU, with activations in the memory of `pool`.
    pub(super) fn on_gpu(
        gpu: &Gpu,
        graph: Graph,
        keep: &[Tensor],
        tuning: &Tuning,
        pool: &mut Pool,
    ) -> Result<DevicePlan, GpuError> {
        Ok(DevicePlan::Gpu(gpu.clone(), Plan::sharing(gpu, graph, keep, tuning, pool)?))
    }

    pub(super) fn on_cpu(cpu: &Cpu, graph: Graph, keep: &[Tensor]) -> DevicePlan {
        DevicePlan::Cpu(CpuPlan::new(cpu, graph, keep))
    }

    /// Runs the plan and reads tensors; `cached` is the largest number of positions of a sequence after the run.
    pub(super) fn submit(&self, cached: usize, reads: &[Tensor]) -> Vec<PendingValues> {
        match self {
            DevicePlan::Gpu(gpu, plan) => {
                let requests: Vec<_> = reads.iter().map(|&tensor| plan.read_request(tensor)).collect();
                let types = reads.iter().map(|&tensor| plan.graph().info(tensor).dtype);
                plan.submit(gpu, cached, &requests)
                    .into_iter()
                    .zip(types)
                    .map(|(read, dtype)| PendingValues::Read(read, dtype))
                    .collect()
            }
            DevicePlan::Cpu(plan) => plan.run(reads).into_iter().map(PendingValues::Ready).collect(),
        }
    }

    /// Lets a GPU compile the kernels that it has not dispatched yet; nothing is computed.
    pub(super) fn submit_empty(&self) {
        if let DevicePlan::Gpu(gpu, plan) = self {
            plan.submit_empty(gpu);
        }
    }

    /// Runs the plan; on a GPU it is divided into this many submissions.
    pub(super) fn submit_parts(&self, cached: usize, parts: usize) {
        match self {
            DevicePlan::Gpu(gpu, plan) => plan.submit_parts(gpu, cached, parts),
            DevicePlan::Cpu(plan) => drop(plan.run(&[])),
        }
    }

    /// Fails if the CPU could not compute the last run. A GPU reports errors with what is read.
    pub(super) fn check(&self) -> Result<(), GpuError> {
        match self {
            DevicePlan::Gpu(..) => Ok(()),
            DevicePlan::Cpu(plan) => plan.check(),
        }
    }

    pub(super) fn is_on_cpu(&self) -> bool {
        matches!(self, DevicePlan::Cpu(_))
    }

    pub(super) fn cost(&self) -> Cost {
        match self {
            DevicePlan::Gpu(_, plan) => plan.cost(),
            DevicePlan::Cpu(plan) => plan.cost(),
        }
    }

    /// The dispatches; none on the CPU.
    pub(super) fn kernels(&self, cached: usize) -> Vec<PlannedKernel> {
        match self {
            DevicePlan::Gpu(_, plan) => plan.kernels(cached),
            DevicePlan::Cpu(_) => Vec::new(),
        }
    }

    /// Runs the plan once and measures each kernel or op.
    pub(super) async fn profile(&self, cached: usize) -> Result<Vec<KernelTime>, GpuError> {
        match self {
            DevicePlan::Gpu(gpu, plan) => plan.profile(gpu, cached).await,
            DevicePlan::Cpu(plan) => Ok(plan.profile()),
        }
    }
}
