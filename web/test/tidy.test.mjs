/**
 * Lines of the page, the package and the browser tests have at most 120 columns; prettier leaves long strings alone.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const FOLDERS = ['web', 'tests/browser', 'crates/wasm/tests/browser'];
const LEFT_OUT = /(^|\/)(node_modules|dist|public|engine|hosting)(\/|$)|package-lock\.json$|catalogue\.json$/;

it('lines have at most 120 columns', () => {
  const paths = FOLDERS.flatMap((folder) =>
    readdirSync(`${ROOT}/${folder}`, { recursive: true, encoding: 'utf8' }).map((name) => `${folder}/${name}`),
  ).filter((path) => /\.(tsx?|m?js|css|html|json|md)$/.test(path) && !LEFT_OUT.test(path));
  expect(paths.length).toBeGreaterThan(60);
  const long = paths.flatMap((path) =>
    readFileSync(`${ROOT}/${path}`, 'utf8')
      .split('\n')
      // A row of a Markdown table cannot be broken.
      .flatMap((line, at) => ([...line].length > 120 && !line.startsWith('|') ? [`${path}:${at + 1}`] : [])),
  );
  expect(long).toEqual([]);
});
