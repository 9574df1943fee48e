// Times llama.cpp on a GGUF file: node llama_cpp.mjs MODEL BACKEND PROMPT GENERATE REPETITIONS THREADS.
// BACKEND is vulkan or cpu. The last line of the output is JSON. One untimed run comes first, because pipelines are made
// at their first use; a run is a prompt without sampling, then single tokens, greedily.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { getLlama, LlamaLogLevel } from 'node-llama-cpp';

const [model, backend, ...numbers] = process.argv.slice(2);
const [prompt, generate, repetitions, threads] = numbers.map(Number);
const gpu = backend === 'vulkan' ? 'vulkan' : false;
const start = performance.now();
const llama = await getLlama({ gpu, build: 'never', skipDownload: true, progressLogs: false, logLevel: LlamaLogLevel.error, maxThreads: threads });
if (llama.gpu !== gpu) throw new Error(`expected the ${backend} backend, got ${llama.gpu || 'cpu'}`);
const devices = gpu ? await llama.getGpuDeviceNames() : [];
if (gpu && devices.length === 0) throw new Error('the Vulkan backend accepted no device');
const loaded = await llama.loadModel({ modelPath: model, gpuLayers: gpu ? 'max' : 0, ignoreMemorySafetyChecks: true });
if (gpu && loaded.gpuLayers === 0) throw new Error('no layer was put on the Vulkan device');
const context = await loaded.createContext({ contextSize: prompt + generate + 8, batchSize: prompt, threads, ignoreMemorySafetyChecks: true, flashAttention: true });
const sequence = context.getSequence();
const loadMs = performance.now() - start;
// The same tokens in every run: bytes, which every vocabulary of this comparison begins with.
const tokens = Array.from({ length: prompt }, (_, i) => (i * 37 + 11) % 256);

async function run() {
  await sequence.clearHistory();
  const cpu = () => { const { user, system } = process.cpuUsage(); return (user + system) / 1e3; };
  const [begin, cpuBegin] = [performance.now(), cpu()];
  await sequence.evaluateWithoutGeneratingNewTokens(tokens);
  const [middle, cpuMiddle] = [performance.now(), cpu()];
  let count = 0;
  for await (const _ of sequence.evaluate([tokens[0]], { temperature: 0, yieldEogToken: true })) {
    if (++count === generate) break;
  }
  if (count !== generate) throw new Error(`asked for ${generate} tokens, got ${count}`);
  const [end, cpuEnd] = [performance.now(), cpu()];
  return {
    prefill: (1000 * prompt) / (middle - begin), decode: (1000 * generate) / (end - middle),
    prefillPerCpuSecond: (1000 * prompt) / (cpuMiddle - cpuBegin), decodePerCpuSecond: (1000 * generate) / (cpuEnd - cpuMiddle),
  };
}

await run();
const runs = [];
for (let i = 0; i < repetitions; i++) runs.push(await run());
const median = (key) => runs.map((r) => r[key]).sort((a, b) => a - b)[Math.floor(runs.length / 2)];
const require = createRequire(import.meta.url);
const root = require.resolve('node-llama-cpp').replace(/dist[\\/].*$/, '');
const version = JSON.parse(readFileSync(`${root}package.json`, 'utf8')).version;
const { tag } = JSON.parse(readFileSync(`${root}llama/llama.cpp.info.json`, 'utf8'));
console.log(JSON.stringify({ prefill: median('prefill'), decode: median('decode'), prefill_per_cpu_s: median('prefillPerCpuSecond'), decode_per_cpu_s: median('decodePerCpuSecond'), load_ms: loadMs, devices, gpu_layers: loaded.gpuLayers, version: `node-llama-cpp ${version}, llama.cpp ${tag}` }));
process.exit(0);
