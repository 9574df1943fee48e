/**
 * Requests with retries. Broken connections, 429 and 5xx are tried again after a growing wait (or the one that the
 * server asks for). Errors that a retry cannot change (401, 403, 404) and the caller's signal end a request at once.
 */
import { Aborted, BayanError, Network, throwIfAborted } from '../errors';

export interface HttpOptions {
  signal?: AbortSignal | undefined;
  token?: string | undefined;
  headers?: Record<string, string>;
  method?: string;
  onRetry?: (attempt: number, waitMs: number, reason: string) => void;
  /** Statuses besides 2xx that are returned to the caller and not thrown. */
  accept?: number[];
}

export const RETRIES = { attempts: 6, baseMs: 400, maxMs: 20_000 };

export function backoffMs(attempt: number): number {
  return Math.min(RETRIES.maxMs, RETRIES.baseMs * 2 ** (attempt - 1));
}

export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(new Aborted());
    const stop = () => {
      clearTimeout(timer);
      reject(new Aborted());
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', stop);
      resolve();
    }, ms);
    signal?.addEventListener('abort', stop, { once: true });
  });
}

/** One request without retries: a Response with an accepted status, or a typed error. */
export async function requestOnce(url: string, options: HttpOptions): Promise<Response> {
  throwIfAborted(options.signal);
  const headers = new Headers(options.headers);
  if (options.token) headers.set('Authorization', `Bearer ${options.token}`);
  let response: Response;
  try {
    response = await fetch(url, {
      method: options.method ?? 'GET',
      headers,
      signal: options.signal ?? null,
      credentials: 'omit',
      referrerPolicy: 'no-referrer',
      cache: 'no-store',
    });
  } catch (error) {
    if (options.signal?.aborted) throw new Aborted();
    const reason = error instanceof Error ? error.message : String(error);
    throw new Network(
      `no answer from ${shown(url)}: ${reason}. ` +
        'Check the connection, the address, and that the server allows this page (CORS)',
      { url: shown(url) },
    );
  }
  if (response.ok || options.accept?.includes(response.status)) return response;
  void response.body?.cancel().catch(() => {});
  throw statusError(url, response);
}

export async function request(url: string, options: HttpOptions): Promise<Response> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await requestOnce(url, options);
    } catch (error) {
      await waitOrThrow(error, attempt, options);
    }
  }
}

/** Waits before the next attempt, or throws the error where waiting does not help. */
export async function waitOrThrow(
  error: unknown,
  attempt: number,
  options: Pick<HttpOptions, 'signal' | 'onRetry'>,
): Promise<void> {
  if (!(error instanceof BayanError) || error.code !== 'Network' || !passes(error) || attempt >= RETRIES.attempts)
    throw error;
  const asked = error.details.retryAfterSeconds;
  if (asked !== undefined && asked * 1000 > 60_000) throw error;
  const waitMs = Math.max(backoffMs(attempt), (asked ?? 0) * 1000);
  options.onRetry?.(attempt, waitMs, error.message);
  await sleep(waitMs, options.signal);
}

function passes(error: BayanError): boolean {
  const status = error.details.status;
  return status === undefined || status === 408 || status === 425 || status === 429 || status >= 500;
}

function statusError(url: string, response: Response): Network {
  const { status } = response;
  const details = { status, url: shown(url) };
  const where = shown(url);
  if (status === 401 || status === 403) {
    return new Network(
      `${where} refused access (${status}). ` +
        'The model may be private, or its licence must be accepted on its page first; then give an access token',
      { ...details, needsToken: true },
    );
  }
  if (status === 404) return new Network(`${where} does not exist (404). Check the name`, details);
  if (status === 429) {
    const seconds = Number(response.headers.get('Retry-After'));
    return new Network(
      `${where} asks to wait (429): too many requests`,
      Number.isFinite(seconds) && seconds > 0 ? { ...details, retryAfterSeconds: seconds } : details,
    );
  }
  return new Network(`${where} answered with status ${status}`, details);
}

/** An address for messages: without query and user info, which may hold secrets. */
export function shown(url: string): string {
  try {
    const parsed = new URL(url);
    return `${parsed.origin}${parsed.pathname}`;
  } catch {
    return url.slice(0, 200);
  }
}

/** Size of a file on a server by HEAD, or by a request for its first byte where HEAD is refused. -1: unknown. */
export async function remoteSize(
  url: string,
  options: HttpOptions,
): Promise<{ size: number; etag: string | null } | null> {
  const head = await request(url, { ...options, method: 'HEAD', accept: [404, 405, 501] });
  if (head.status === 404) return null;
  if (head.ok) {
    const length = Number(head.headers.get('x-linked-size') ?? head.headers.get('Content-Length') ?? NaN);
    const etag = head.headers.get('ETag');
    if (Number.isInteger(length) && length >= 0 && !head.headers.get('Content-Encoding')) return { size: length, etag };
  }
  const one = await request(url, { ...options, headers: { Range: 'bytes=0-0' }, accept: [404, 416] });
  void one.body?.cancel().catch(() => {});
  if (one.status === 404) return null;
  const total = /\/(\d+)$/.exec(one.headers.get('Content-Range') ?? '')?.[1];
  return { size: total === undefined ? -1 : Number(total), etag: one.headers.get('ETag') };
}

export async function fetchJson(url: string, options: HttpOptions, maxBytes = 32 * 1024 * 1024): Promise<unknown> {
  const response = await request(url, options);
  const text = await response.text();
  if (text.length > maxBytes)
    throw new Network(`${shown(url)} sent ${text.length} characters of JSON; at most ${maxBytes} are read`);
  try {
    return JSON.parse(text);
  } catch {
    throw new Network(`${shown(url)} did not answer with JSON; a sign-in page of the network may be in the way`, {
      url: shown(url),
    });
  }
}
