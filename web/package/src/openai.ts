/** OpenAI's `chat.completions.create` on top of a session, for code written for that client. */
import { checkMessages, checkSampling } from './check';
import type {
  Message,
  Piece,
  ResponseFormat,
  Sampling,
  ScoredToken,
  Tool,
  ToolCall,
  ToolCallDelta,
  ToolChoice,
} from './types';

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
  tools?: Tool[] | null;
  tool_choice?: ToolChoice | null;
  parallel_tool_calls?: boolean | null;
  logprobs?: boolean | null;
  top_logprobs?: number | null;
  logit_bias?: Record<string, number> | null;
  /** Further variables of the model's chat template, as other local servers take them. */
  chat_template_kwargs?: Record<string, unknown> | null;
  /** Only 1. */
  n?: 1 | null;
}

/** Names of the request's fields and those of `Sampling`. */
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
  response_format: 'responseFormat',
  tools: 'tools',
  tool_choice: 'toolChoice',
  parallel_tool_calls: 'parallelToolCalls',
  logprobs: 'logprobs',
  top_logprobs: 'topLogprobs',
  logit_bias: 'logitBias',
  chat_template_kwargs: 'templateVariables',
} as const satisfies Record<string, keyof Sampling>;
const OTHERS = ['messages', 'model', 'user', 'stream', 'stream_options', 'stop', 'n'];

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

type Finish = 'stop' | 'length' | 'tool_calls';

export interface CompletionLogprobs {
  content: ScoredToken[];
  refusal: null;
}

/** It can be a message of the next request as it is. */
export interface CompletionMessage {
  role: 'assistant';
  /** Null where the answer holds only calls. */
  content: string | null;
  tool_calls?: ToolCall[];
}

export interface Completion {
  id: string;
  object: 'chat.completion';
  created: number;
  model: string;
  choices: { index: 0; message: CompletionMessage; logprobs: CompletionLogprobs | null; finish_reason: Finish }[];
  usage: CompletionUsage;
}

interface Delta {
  role?: 'assistant';
  content?: string;
  tool_calls?: ToolCallDelta[];
}

export interface CompletionChunk {
  id: string;
  object: 'chat.completion.chunk';
  created: number;
  model: string;
  choices: { index: 0; delta: Delta; logprobs: CompletionLogprobs | null; finish_reason: Finish | null }[];
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
    return request.stream
      ? stream(head, pieces, request.stream_options?.include_usage ?? false)
      : whole(head, pieces, request.logprobs ?? false);
  };
  return { create: create as ChatCompletions['create'] };
}

type Head = { id: string; created: number; model: string };

async function* stream(head: Head, pieces: AsyncIterable<Piece>, withUsage: boolean): AsyncIterable<CompletionChunk> {
  const chunk = (delta: Delta, logprobs: ScoredToken[] | undefined, finish: Finish | null): CompletionChunk => ({
    ...head,
    object: 'chat.completion.chunk',
    choices: [
      { index: 0, delta, logprobs: logprobs ? { content: logprobs, refusal: null } : null, finish_reason: finish },
    ],
  });
  yield chunk({ role: 'assistant', content: '' }, undefined, null);
  for await (const { text, toolCalls, logprobs, ...piece } of pieces) {
    const delta = { ...(text === '' ? {} : { content: text }), ...(toolCalls ? { tool_calls: toolCalls } : {}) };
    if (text !== '' || toolCalls || logprobs) yield chunk(delta, logprobs, null);
    if (!piece.done) continue;
    yield chunk({}, undefined, finishOf(piece));
    if (withUsage) yield { ...head, object: 'chat.completion.chunk', choices: [], usage: usageOf(piece) };
  }
}

async function whole(head: Head, pieces: AsyncIterable<Piece>, scored: boolean): Promise<Completion> {
  let text = '';
  const calls: ToolCall[] = [];
  const content: ScoredToken[] = [];
  let last: Piece = { text: '', tokens: 0 };
  for await (const piece of pieces) {
    text += piece.text;
    for (const { index, id = '', function: part } of piece.toolCalls ?? []) {
      const call = (calls[index] ??= { id, type: 'function', function: { name: part.name ?? '', arguments: '' } });
      call.function.arguments += part.arguments;
    }
    content.push(...(piece.logprobs ?? []));
    last = piece;
  }
  const message: CompletionMessage = { role: 'assistant', content: text === '' && calls.length > 0 ? null : text };
  if (calls.length > 0) message.tool_calls = calls;
  const logprobs = scored ? { content, refusal: null } : null;
  return {
    ...head,
    object: 'chat.completion',
    choices: [{ index: 0, message, logprobs, finish_reason: finishOf(last) }],
    usage: usageOf(last),
  };
}

/** A full context ends an answer as a length limit does, in OpenAI's words. */
function finishOf({ finishReason }: Pick<Piece, 'finishReason'>): Finish {
  return finishReason === 'context' ? 'length' : (finishReason ?? 'stop');
}

function usageOf(piece: Pick<Piece, 'usage' | 'tokens'>): CompletionUsage {
  const prompt = piece.usage?.promptTokens ?? 0;
  const completion = piece.usage?.completionTokens ?? piece.tokens;
  return { prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt + completion };
}

function samplingOf(request: CompletionRequest): Sampling {
  const sampling: Record<string, unknown> = {};
  for (const [name, field] of Object.entries(SAMPLING)) {
    const value = request[name as keyof typeof SAMPLING];
    if (value != null) sampling[field] = value;
  }
  if (request.stop != null) sampling['stop'] = Array.isArray(request.stop) ? request.stop : [request.stop];
  return checkSampling(sampling as Sampling);
}
