/** OpenAI's `chat.completions.create` on top of a session, for code written for that client. */
import type { Message, Piece, Sampling } from './types';

export interface CompletionRequest {
  messages: Message[];
  model?: string;
  stream?: boolean;
  temperature?: number | null;
  top_p?: number | null;
  max_tokens?: number | null;
  max_completion_tokens?: number | null;
  seed?: number | null;
  stop?: string | string[] | null;
  stream_options?: { include_usage?: boolean } | null;
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
  if (request.temperature != null) sampling.temperature = request.temperature;
  if (request.top_p != null) sampling.topP = request.top_p;
  const max = request.max_completion_tokens ?? request.max_tokens;
  if (max != null) sampling.maxTokens = max;
  if (request.seed != null) sampling.seed = request.seed;
  if (request.stop != null) sampling.stop = Array.isArray(request.stop) ? request.stop : [request.stop];
  return sampling;
}
