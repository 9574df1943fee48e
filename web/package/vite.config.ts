import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vite';

const at = (path: string) => fileURLToPath(new URL(path, import.meta.url));

/** The npm package: plain ES modules that run with or without a bundler. Types come from tsc. */
export default defineConfig({
  root: at('.'),
  base: './',
  build: {
    outDir: at('dist'),
    emptyOutDir: true,
    target: 'es2022',
    minify: false,
    lib: {
      entry: { index: at('src/index.ts'), worker: at('src/worker.ts'), engine: at('src/engine.ts') },
      formats: ['es'],
    },
    rollupOptions: { output: { entryFileNames: '[name].js', chunkFileNames: '[name].js' } },
  },
});
