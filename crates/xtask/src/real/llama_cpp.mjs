// What llama.cpp's CPU backend makes of a GGUF file: node llama_cpp.mjs REQUEST.json, which has
// {model, threads, strings, chats}. The last line of the output is JSON: {ids: [[id]], normalized: [[id]], chats: [text],
// version}. libllama.py computes with the model.
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
console.log(JSON.stringify({ ids, normalized, chats, version: `node-llama-cpp ${version}, llama.cpp ${tag}` }));
process.exit(0);
