// What llama.cpp's CPU backend makes of a GGUF file: node llama_cpp.mjs REQUEST.json, which has
// {model, threads, strings, prompts: [[id]], tokens, page: [id], chats}. The last line of the output is JSON:
// {ids: [[id]], normalized: [[id]], greedy: [[id]], nll: [number], chats: [text], version}. Nothing is sampled: temperature 0.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { getLlama, LlamaLogLevel } from 'node-llama-cpp';
import { Template } from '@huggingface/jinja';

const request = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const llama = await getLlama({ gpu: false, build: 'never', skipDownload: true, progressLogs: false, logLevel: LlamaLogLevel.error, maxThreads: request.threads });
const model = await llama.loadModel({ modelPath: request.model, gpuLayers: 0, ignoreMemorySafetyChecks: true });
const ids = request.strings.map((text) => Array.from(model.tokenize(text, false)));
// llama.cpp does not normalize texts; a published tokenizer may (Qwen's to NFC).
const normalized = request.strings.map((text) => Array.from(model.tokenize(text.normalize('NFC'), false)));

const longest = Math.max(request.page.length, ...request.prompts.map((prompt) => prompt.length + request.tokens)) + 8;
const context = await model.createContext({ contextSize: longest, batchSize: longest, threads: request.threads, ignoreMemorySafetyChecks: true, flashAttention: false });
const sequence = context.getSequence();
const greedy = [];
for (const prompt of request.prompts) {
  await sequence.clearHistory();
  const found = [];
  for await (const token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
    found.push(token);
    if (found.length === request.tokens) break;
  }
  greedy.push(found);
}

// The probability of each next token of the page, a few positions at a time: each has a map of the whole vocabulary.
await sequence.clearHistory();
const nll = [];
const WINDOW = 8;
for (let start = 0; start < request.page.length - 1; start += WINDOW) {
  const part = request.page.slice(start, Math.min(start + WINDOW, request.page.length - 1));
  const results = await sequence.controlledEvaluate(part.map((token) => [token, { generateNext: { probabilities: true, options: { temperature: 1, topK: 0, topP: 1, minP: 0 } } }]));
  part.forEach((_, i) => nll.push(-Math.log(results[i].next.probabilities.get(request.page[start + i + 1]))));
}

const metadata = model.fileInfo.metadata.tokenizer;
const source = metadata.chat_template;
const template = source ? new Template(source) : null;
const text = (id) => (id == null ? '' : metadata.ggml.tokens[id]);
const chats = request.chats.map((messages) => {
  if (!template) return null;
  try {
    return template.render({ messages, add_generation_prompt: true, bos_token: text(metadata.ggml.bos_token_id), eos_token: text(metadata.ggml.eos_token_id) });
  } catch (error) {
    return { error: String(error.message ?? error) };
  }
});
const require = createRequire(import.meta.url);
const root = require.resolve('node-llama-cpp').replace(/dist[\\/].*$/, '');
const version = JSON.parse(readFileSync(`${root}package.json`, 'utf8')).version;
const { tag } = JSON.parse(readFileSync(`${root}llama/llama.cpp.info.json`, 'utf8'));
console.log(JSON.stringify({ ids, normalized, greedy, nll, chats, version: `node-llama-cpp ${version}, llama.cpp ${tag}` }));
process.exit(0);
