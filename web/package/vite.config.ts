import { fileURLToPath } from 'node:url';
import { defineConfig, type Plugin } from 'vite';

const at = (path: string) => fileURLToPath(new URL(path, import.meta.url));

/**
 * Writes the addresses of worker and engine as literals into `new URL(…, import.meta.url)`, so that the user's bundler
 * finds them. If they were literals in the source, this build would inline the engine.
 */
function literalAddresses(): Plugin {
  return {
    name: 'bayan-literal-addresses',
    generateBundle(_options, bundle) {
      let written = 0;
      for (const file of Object.values(bundle)) {
        if (file.type !== 'chunk') continue;
        for (const [, name, address] of file.code.matchAll(
          /(?:const|let|var) ((?:ENGINE|WORKER)_\w+) = ("[^"]+");?/g,
        )) {
          file.code = file.code.replaceAll(`new URL(${name}, import.meta.url)`, () => {
            written++;
            return `new URL(${address}, import.meta.url)`;
          });
        }
      }
      if (written !== 3) this.error(`expected 3 addresses in the build, found ${written}`);
    },
  };
}

/**
 * The npm package: plain ES modules that run with or without a bundler. The worker (`--mode worker`) is built apart, so
 * that it is one file. Types come from tsc, after both builds.
 */
export default defineConfig(({ mode }) => ({
  root: at('.'),
  base: './',
  plugins: mode === 'worker' ? [] : [literalAddresses()],
  build: {
    outDir: at('dist'),
    emptyOutDir: mode !== 'worker',
    target: 'es2022',
    minify: false,
    lib: {
      entry:
        mode === 'worker'
          ? { worker: at('src/worker.ts') }
          : { index: at('src/index.ts'), engine: at('src/engine.ts') },
      formats: ['es' as const],
    },
    rollupOptions: { output: { entryFileNames: '[name].js', chunkFileNames: '[name].js' } },
  },
}));
