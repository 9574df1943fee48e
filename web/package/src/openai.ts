/** OpenAI's `chat.completions.create` on top of a session, for code written for that client. */
import { checkMessages, checkSampling } from './check';
import type { Message, Piece, ResponseFormat, Sampling } from './types';

/**
 * Fields of OpenAI's request, and the sampling settings that other local servers add to it. A field that is not listed
 * is an error; null counts as missing.
 */
export interface CompletionRequest {
  messages: Message[];
  /** Not read: a session has one model. */
  model?: string | null;
  /** Not read: the request goes to no server. */
  user?: string | null;
  stream?: boolean | null;
  stream_options?: { include_usage?: boolean } | null;
  temperature?: number | null;
  top_p?: number | null;
  top_k?: number | null;
  min_p?: number | null;
  repetition_penalty?: number | null;
  presence_penalty?: number | null;
  frequency_penalty?: number | null;
  max_tokens?: number | null;
  max_completion_tokens?: number | null;
  seed?: number | null;
  stop?: string | string[] | null;
  response_format?: ResponseFormat | null;
  /** Only 1. */
  n?: 1 | null;
}

/** Names of the request's numbers and those of `Sampling`. */
const SAMPLING = {
  temperature: 'temperature',
  top_p: 'topP',
  top_k: 'topK',
  min_p: 'minP',
  repetition_penalty: 'repetitionPenalty',
  presence_penalty: 'presencePenalty',
  frequency_penalty: 'frequencyPenalty',
  max_tokens: 'maxTokens',
  max_completion_tokens: 'maxTokens',
  seed: 'seed',
} as const satisfies Record<string, keyof Sampling>;
const OTHERS = ['messages', 'model', 'user', 'stream', 'stream_options', 'stop', 'response_format', 'n'];

function checkRequest(request: CompletionRequest): void {
  const fail = (text: string) => {
    throw new TypeError(`chat.completions.create: ${text}`);
  };
  const known = [...OTHERS, ...Object.keys(SAMPLING)];
  for (const [name, value] of Object.entries(request))
    if (value != null && !known.includes(name)) fail(`${name} is not supported; supported: ${known.join(', ')}`);
  if (request.n != null && request.n !== 1) fail(`n: expected 1, got ${String(request.n)}`);
  for (const name of Object.keys(request.stream_options ?? {}))
    if (name !== 'include_usage') fail(`stream_options.${name} is not supported; supported: include_usage`);
}

export interface CompletionUsage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
}

type Finish = 'stop' | 'length';

export interface Completion {
  id: string;
  object: 'chat.completion';
  created: number;
  model: string;
  choices: { index: 0; message: { role: 'assistant'; content: string }; finish_reason: Finish }[];
  usage: CompletionUsage;
}

export interface CompletionChunk {
  id: string;
  object: 'chat.completion.chunk';
  created: number;
  model: string;
  choices: { index: 0; delta: { role?: 'assistant'; content?: string }; finish_reason: Finish | null }[];
  usage?: CompletionUsage;
}

export interface ChatCompletions {
  create(
    request: CompletionRequest & { stream: true },
    options?: { signal?: AbortSignal },
  ): Promise<AsyncIterable<CompletionChunk>>;
  create(request: CompletionRequest & { stream?: false }, options?: { signal?: AbortSignal }): Promise<Completion>;
}

type Chat = (messages: Message[], options: { sampling?: Sampling; signal?: AbortSignal }) => AsyncIterable<Piece>;

export function completions(chat: Chat, modelName: () => string): ChatCompletions {
  const create = async (request: CompletionRequest, options: { signal?: AbortSignal } = {}) => {
    checkRequest(request);
    checkMessages(request.messages);
    const head = { id: `chatcmpl-${crypto.randomUUID()}`, created: Math.floor(Date.now() / 1000), model: modelName() };
    const pieces = chat(request.messages, {
      sampling: samplingOf(request),
      ...(options.signal ? { signal: options.signal } : {}),
    });
    return request.stream ? stream(head, pieces, request.stream_options?.include_usage ?? false) : whole(head, pieces);
  };
  return { create: create as ChatCompletions['create'] };
}

type Head = { id: string; created: number; model: string };

async function* stream(head: Head, pieces: AsyncIterable<Piece>, withUsage: boolean): AsyncIterable<CompletionChunk> {
  const chunk = (delta: CompletionChunk['choices'][0]['delta'], finish: Finish | null): CompletionChunk => ({
    ...head,
    object: 'chat.completion.chunk',
    choices: [{ index: 0, delta, finish_reason: finish }],
  });
  yield chunk({ role: 'assistant', content: '' }, null);
  for await (const piece of pieces) {
    if (piece.text !== '') yield chunk({ content: piece.text }, null);
    if (!piece.done) continue;
    yield chunk({}, finishOf(piece));
    if (withUsage) yield { ...head, object: 'chat.completion.chunk', choices: [], usage: usageOf(piece) };
  }
}

async function whole(head: Head, pieces: AsyncIterable<Piece>): Promise<Completion> {
  let content = '';
  let last: Piece = { text: '', tokens: 0 };
  for await (const piece of pieces) {
    content += piece.text;
    last = piece;
  }
  return {
    ...head,
    object: 'chat.completion',
    choices: [{ index: 0, message: { role: 'assistant', content }, finish_reason: finishOf(last) }],
    usage: usageOf(last),
  };
}

/** A full context ends an answer as a length limit does, in OpenAI's words. */
function finishOf(piece: Piece): Finish {
  return piece.finishReason === 'length' || piece.finishReason === 'context' ? 'length' : 'stop';
}

function usageOf(piece: Piece): CompletionUsage {
  const prompt = piece.usage?.promptTokens ?? 0;
  const completion = piece.usage?.completionTokens ?? piece.tokens;
  return { prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt + completion };
}

function samplingOf(request: CompletionRequest): Sampling {
  const sampling: Sampling = {};
  for (const [name, field] of Object.entries(SAMPLING) as [keyof typeof SAMPLING, (typeof SAMPLING)['seed']][]) {
    const value = request[name];
    if (value != null) sampling[field] = value;
  }
  if (request.stop != null) sampling.stop = Array.isArray(request.stop) ? request.stop : [request.stop];
  if (request.response_format != null) sampling.responseFormat = request.response_format;
  return checkSampling(sampling);
}
