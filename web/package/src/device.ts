/** What the browser and the GPU adapter offer. No device is created, so the probe is cheap and needs no model. */
import type { DeviceProbe } from './types';

const NONE: DeviceProbe = {
  webgpu: false,
  missing: 'api',
  vendor: '',
  architecture: '',
  description: '',
  fallback: false,
  features: [],
  shaderF16: false,
  subgroups: false,
  packedDot: false,
  maxBufferBytes: 0,
  maxBindingBytes: 0,
  maxWorkgroupBytes: 0,
};

export async function probeDevice(): Promise<DeviceProbe> {
  const gpu = (globalThis.navigator as Navigator | undefined)?.gpu;
  if (!gpu) return { ...NONE, missing: globalThis.isSecureContext === false ? 'insecure' : 'api' };
  let adapter: GPUAdapter | null = null;
  try {
    adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' });
  } catch {
    adapter = null;
  }
  if (!adapter) return { ...NONE, missing: 'adapter' };
  const { info, limits, features } = adapter;
  return {
    webgpu: true,
    missing: null,
    vendor: info.vendor,
    architecture: info.architecture,
    description: info.description,
    fallback: Boolean((info as GPUAdapterInfo & { isFallbackAdapter?: boolean }).isFallbackAdapter),
    features: [...features].sort(),
    shaderF16: features.has('shader-f16'),
    // The engine's kernels need both: a subgroup's operations, and its number within the workgroup.
    subgroups: features.has('subgroups' as GPUFeatureName) && Boolean(gpu.wgslLanguageFeatures?.has('subgroup_id')),
    packedDot: Boolean(gpu.wgslLanguageFeatures?.has('packed_4x8_integer_dot_product')),
    maxBufferBytes: limits.maxBufferSize,
    maxBindingBytes: limits.maxStorageBufferBindingSize,
    maxWorkgroupBytes: limits.maxComputeWorkgroupStorageSize,
  };
}
