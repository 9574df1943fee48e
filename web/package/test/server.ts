/** A file server that fails on request: it cuts connections, sends other bytes or refuses. */
import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface Trouble {
  /** Answer this status this many times. */
  status?: { code: number; times: number; retryAfter?: string };
  /** Cut each answer after this many bytes, this many times. */
  cut?: { bytes: number; times: number };
  /** Flip a byte at this position in the next answers. */
  corrupt?: { at: number; times: number };
  ignoreRange?: boolean;
}

export class FileServer {
  readonly files = new Map<string, Buffer>();
  readonly trouble = new Map<string, Trouble>();
  readonly log: {
    path: string;
    method: string;
    range: string | undefined;
    authorization: string | undefined;
    status: number;
  }[] = [];
  private server!: Server;
  base = '';

  async start(): Promise<this> {
    this.server = createServer((request, response) => this.answer(request, response));
    await new Promise<void>((done) => this.server.listen(0, '127.0.0.1', done));
    this.base = `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
    return this;
  }

  stop(): Promise<void> {
    this.server.closeAllConnections();
    return new Promise((done) => this.server.close(() => done()));
  }

  put(path: string, bytes: Buffer | string): { size: number; sha256: string } {
    const buffer = Buffer.from(bytes as Buffer);
    this.files.set(path, buffer);
    return { size: buffer.length, sha256: createHash('sha256').update(buffer).digest('hex') };
  }

  private answer(request: IncomingMessage, response: ServerResponse): void {
    const path = request.url ?? '/';
    const trouble = this.trouble.get(path) ?? {};
    const range = request.headers.range;
    const end = (status: number, headers: Record<string, string | number> = {}, body?: Buffer) => {
      this.log.push({
        path,
        method: request.method ?? '',
        range,
        authorization: request.headers.authorization,
        status,
      });
      response.writeHead(status, { 'Access-Control-Allow-Origin': '*', ...headers });
      if (request.method === 'HEAD' || !body) return response.end();
      const cut = trouble.cut;
      if (cut && cut.times > 0 && body.length > cut.bytes) {
        cut.times--;
        response.write(body.subarray(0, cut.bytes), () => setTimeout(() => response.destroy(), 20));
        return;
      }
      return response.end(body);
    };
    if (trouble.status && trouble.status.times > 0) {
      trouble.status.times--;
      return void end(
        trouble.status.code,
        trouble.status.retryAfter ? { 'Retry-After': trouble.status.retryAfter } : {},
      );
    }
    let bytes = this.files.get(path);
    if (!bytes) return void end(404);
    if (request.method !== 'HEAD' && trouble.corrupt && trouble.corrupt.times > 0) {
      trouble.corrupt.times--;
      bytes = Buffer.from(bytes);
      bytes[trouble.corrupt.at]! ^= 0xff;
    }
    const etag = `"${createHash('sha256').update(this.files.get(path)!).digest('hex').slice(0, 16)}"`;
    const asked = /^bytes=(\d+)-(\d*)$/.exec(range ?? '');
    if (asked && !trouble.ignoreRange && (!request.headers['if-range'] || request.headers['if-range'] === etag)) {
      const from = Number(asked[1]);
      const to = asked[2] ? Math.min(Number(asked[2]), bytes.length - 1) : bytes.length - 1;
      if (from >= bytes.length) return void end(416, { 'Content-Range': `bytes */${bytes.length}` });
      const part = bytes.subarray(from, to + 1);
      return void end(
        206,
        { 'Content-Range': `bytes ${from}-${to}/${bytes.length}`, 'Content-Length': part.length, ETag: etag },
        part,
      );
    }
    end(200, { 'Content-Length': bytes.length, ETag: etag }, bytes);
  }
}
