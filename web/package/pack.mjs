/**
 * Before `npm pack`: puts the engine, the response headers for hosts and the licences into the package; with `--clean`,
 * after it: removes them. The engine is that of `cargo xtask web`, in BAYAN_ENGINE or in the target directory.
 */
import { copyFileSync, cpSync, existsSync, mkdirSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, '../..');
const engine = process.env.BAYAN_ENGINE ?? join(process.env.CARGO_TARGET_DIR ?? join(root, 'target'), 'wasm/engine');
const LICENCES = ['LICENSE-MIT', 'LICENSE-APACHE'];

function put() {
  for (const name of ['dist/index.js', 'dist/index.d.ts', 'dist/worker.js'])
    if (!existsSync(join(here, name))) throw new Error(`${name} is missing: run npm run build:package in web/ first`);
  mkdirSync(join(here, 'engine'), { recursive: true });
  for (const name of ['bayan.js', 'bayan_bg.wasm']) {
    if (!existsSync(join(engine, name)))
      throw new Error(`${join(engine, name)} is missing: build the engine first (cargo xtask web --release-dir DIR)`);
    copyFileSync(join(engine, name), join(here, 'engine', name));
  }
  cpSync(join(here, '../hosting'), join(here, 'hosting'), { recursive: true });
  copyFileSync(join(here, '../public/_headers'), join(here, 'hosting/_headers'));
  for (const name of LICENCES) copyFileSync(join(root, name), join(here, name));
}

function remove() {
  for (const name of ['engine', 'hosting', ...LICENCES]) rmSync(join(here, name), { recursive: true, force: true });
}

if (process.argv.includes('--clean')) remove();
else put();
