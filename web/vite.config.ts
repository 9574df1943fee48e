import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { defineConfig, type Plugin } from 'vite';

const at = (path: string) => fileURLToPath(new URL(path, import.meta.url));

/** Writes `sw.js` from src/sw.js with the list of built files, so that the page opens without a network. */
function serviceWorker(): Plugin {
  return {
    name: 'bayan-service-worker',
    apply: 'build',
    generateBundle(_options, bundle) {
      const files = Object.keys(bundle)
        // The reader of PDF files is large and seldom needed: it is cached when it is first used.
        .filter((name) => !name.endsWith('.map') && !/^assets\/pdf[.-]/.test(name))
        .sort();
      const hash = createHash('sha256');
      for (const name of files) {
        const item = bundle[name]!;
        hash.update(name).update(item.type === 'chunk' ? item.code : item.source);
      }
      const source = readFileSync(at('src/sw.js'), 'utf8')
        .replace('__VERSION__', JSON.stringify(hash.digest('hex').slice(0, 16)))
        .replace(
          '__FILES__',
          JSON.stringify(['./', 'manifest.webmanifest', 'icon.svg', ...files.filter((name) => name !== 'index.html')]),
        );
      this.emitFile({ type: 'asset', fileName: 'sw.js', source });
    },
  };
}

/** Relative addresses everywhere (`base: './'`): the build works from any host under any path. */
export default defineConfig({
  base: './',
  plugins: [serviceWorker()],
  resolve: { alias: { 'bayan-web': at('package/src/index.ts') } },
  oxc: { jsx: { runtime: 'automatic', importSource: 'preact' } },
  worker: { format: 'es' },
  build: { target: 'es2022', assetsInlineLimit: 0, modulePreload: { polyfill: false }, chunkSizeWarningLimit: 700 },
  server: { port: 8080 },
  preview: { port: 8080 },
  // Two cores beside other work: a slow test is no failed one.
  test: { testTimeout: 60_000, include: ['test/**/*.test.{ts,mjs}', 'package/test/**/*.test.ts'] },
} as Parameters<typeof defineConfig>[0]);
